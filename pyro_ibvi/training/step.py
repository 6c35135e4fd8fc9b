"""One step of a training, which is taken as a whole or leaves everything as it was."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pyro import poutine
from pyro.infer import SVI
from torch import Tensor

from pyro_ibvi._util.errors import DataError
from pyro_ibvi._util.gradients import gradient_of
from pyro_ibvi._util.handlers import HANDLERS
from pyro_ibvi._util.inputs import as_call, first_tensor, to_device
from pyro_ibvi._util.random_state import own_random_numbers
from pyro_ibvi._util.undo import Undo
from pyro_ibvi.training.state import device_of, modules_of, named_parameters

Call = tuple[tuple[Any, ...], dict[str, Any]]


class Stepper:
    """Takes steps of ``SVI`` on one batch or on several whose gradients are averaged.

    Two threads that train take turns, since Pyro's handlers are the same for both.

    Args:
        svi: The training.
        device: Where batches are moved to; by default where the parameters are.
        autocast: Floating point type of a network's inner arithmetic, or None.
    """

    def __init__(
        self, svi: SVI, device: torch.device | None, autocast: torch.dtype | None
    ) -> None:
        self.svi = svi
        self._undo = Undo(*modules_of(svi).values())
        self._device = device
        self._autocast = autocast

    def call(self, batch: Any) -> Call:
        """A batch as arguments of the model, on its device.

        Args:
            batch: The batch.

        Returns:
            Positional and keyword arguments.
        """
        return as_call(to_device(batch, self._device or device_of(self.svi)))

    def step(self, batches: Sequence[Any], where: str) -> float:
        """Takes a step.

        Args:
            batches: The batches, each of which estimates the objective.
            where: Which step it is, for messages.

        Returns:
            The loss, the batches weighted by their sizes.

        Raises:
            DataError: If one of several batches is empty.
            FloatingPointError: If a loss is not finite. As after any error, parameters, their
                gradients and buffers are those before the step.
        """
        calls = [self.call(batch) for batch in batches]
        with HANDLERS, self._undo.if_refused(), self._on_all(calls, where):
            args, kwargs = calls[0]
            return float(self.svi.step(*args, **kwargs))

    @contextmanager
    def _on_all(self, calls: Sequence[Call], where: str) -> Iterator[None]:
        """Makes ``svi.step`` see all batches, and stop before the optimizer at a bad loss."""
        svi = self.svi
        loss_and_grads = svi.loss_and_grads

        def on_all(model: Any, guide: Any, *_: Any, **__: Any) -> Any:
            total, done = 0.0, 0
            for args, kwargs in calls:
                size = batch_size(model, args, kwargs)
                if size == 0 and len(calls) > 1:
                    raise DataError(
                        f"The batch is empty: at {where} it has no data by which its gradient "
                        f"could count among those of {len(calls)} batches."
                    )
                if done:
                    self._scale_gradients(done / size)
                with self._precision():
                    loss = loss_and_grads(model, guide, *args, **kwargs)
                if not math.isfinite(loss):
                    raise FloatingPointError(
                        _diagnosis(model, guide, args, kwargs, float(loss), where)
                    )
                if len(calls) == 1:
                    return loss
                total, done = total + size * float(loss), done + size
                self._scale_gradients(size / done)
            return total / done

        svi.loss_and_grads = on_all
        try:
            yield
        finally:
            svi.loss_and_grads = loss_and_grads

    def _precision(self) -> Any:
        if self._autocast is None:
            return contextlib.nullcontext()
        device = self._device or device_of(self.svi) or torch.device("cpu")
        return torch.autocast(device.type, dtype=self._autocast)

    def _scale_gradients(self, factor: float) -> None:
        if factor == 1.0:
            return
        gradients = {gradient_of(parameter) for parameter in named_parameters(self.svi).values()}
        for gradient in gradients:
            if gradient is not None:
                gradient.mul_(factor)


def batch_size(model: Any, args: Any, kwargs: Any) -> int:
    """Number of data in a batch: what the model says, or the rows of the first tensor.

    Args:
        model: The model.
        args: Positional arguments of a step.
        kwargs: Keyword arguments of a step.

    Returns:
        The number, by which losses of several batches are weighted.
    """
    count = getattr(model, "num_data_in", None)
    if callable(count):
        return int(count(*args, **kwargs))
    tensor = first_tensor((args, kwargs))
    return 1 if tensor is None else len(tensor)


def _diagnosis(model: Any, guide: Any, args: Any, kwargs: Any, loss: float, where: str) -> str:
    """A sentence that says at which sites a loss is not finite."""
    with own_random_numbers(), torch.no_grad(), poutine.block():
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        trace = poutine.trace(poutine.replay(model, guide_trace)).get_trace(*args, **kwargs)
    bad = []
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or not isinstance(site["value"], Tensor):
            continue
        if site["value"].is_floating_point() and not site["value"].isfinite().all():
            bad.append(f"{name!r} (its value)")
        elif site["is_observed"] and not site["fn"].log_prob(site["value"]).isfinite().all():
            bad.append(f"{name!r} (its log-probability)")
    sites = ", ".join(bad) or "none that another draw shows"
    return (
        f"The loss is {loss} at {where}; sites that are not finite: {sites}. The parameters are "
        f"those before this step. Usual causes: a learning rate that is too large, or NaN or "
        f"infinite data."
    )
