"""One step of a training, which is taken as a whole or leaves everything as it was."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.infer import SVI
from torch import Tensor

from pyro_ibvi._util.errors import DataError
from pyro_ibvi._util.gradients import set_aside
from pyro_ibvi._util.handlers import HANDLERS
from pyro_ibvi._util.inputs import as_call, first_tensor, to_device
from pyro_ibvi._util.random_state import own_random_numbers
from pyro_ibvi._util.undo import Undo
from pyro_ibvi.pairing.counting import Counted, counting
from pyro_ibvi.training.state import device_of, modules_of, named_parameters

Call = tuple[tuple[Any, ...], dict[str, Any]]


class Measured(NamedTuple):
    """A loss, and the number of observations by which it counts beside those of other batches."""

    loss: float
    size: float


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

    def step(self, batches: Sequence[Any], where: str) -> Measured:
        """Takes a step.

        Args:
            batches: The batches, each of which estimates the objective.
            where: Which step it is, for messages.

        Returns:
            The loss, each batch weighted by the number of its observations, and their sum.

        Raises:
            DataError: If one of several batches is empty.
            FloatingPointError: If a loss is not finite. As after any error, parameters, their
                gradients and buffers are those before the step.
        """
        calls = [self.call(batch) for batch in batches]
        done: list[Measured] = []
        with HANDLERS, self._undo.if_refused(), self._on_all(calls, where, done):
            args, kwargs = calls[0]
            loss = self.svi.step(*args, **kwargs)
        return Measured(float(loss), sum(each.size for each in done))

    @contextmanager
    def _on_all(self, calls: Sequence[Call], where: str, done: list[Measured]) -> Iterator[None]:
        """Makes ``svi.step`` see all batches, and stop before the optimizer at a bad loss."""
        svi = self.svi
        loss_and_grads = svi.loss_and_grads

        def on_one(model: Any, guide: Any, args: Any, kwargs: Any) -> Measured:
            with self._precision():
                one = measured(partial(loss_and_grads, model, guide), model, args, kwargs)
            if math.isfinite(one.loss):
                return one
            raise FloatingPointError(_diagnosis(model, guide, args, kwargs, one.loss, where))

        def on_all(model: Any, guide: Any, *_: Any, **__: Any) -> Any:
            for args, kwargs in calls:
                if len(calls) > 1 and batch_size(model, args, kwargs) == 0:
                    raise DataError(
                        f"The batch is empty: at {where} it has no data by which its gradient "
                        f"could count among those of {len(calls)} batches."
                    )
                with set_aside(self._parameters() if done else ()) as gradients:
                    done.append(on_one(model, guide, args, kwargs))
                    gradients.average(sum(each.size for each in done[:-1]), done[-1].size)
            return mean_of(done)

        svi.loss_and_grads = on_all
        try:
            yield
        finally:
            svi.loss_and_grads = loss_and_grads

    def _parameters(self) -> set[Tensor]:
        return set(named_parameters(self.svi).values())

    def _precision(self) -> Any:
        if self._autocast is None:
            return contextlib.nullcontext()
        device = self._device or device_of(self.svi) or torch.device("cpu")
        return torch.autocast(device.type, dtype=self._autocast)


def measured(evaluate: Callable[..., Any], model: Any, args: Any, kwargs: Any) -> Measured:
    """A loss, and by how much it counts beside those of other batches.

    Args:
        evaluate: The objective of the model and its guide.
        model: The model.
        args: Positional arguments of both.
        kwargs: Keyword arguments of both.

    Returns:
        The loss with the number of observations that it is the mean over, or, of a sum over data,
        the number of data in the batch.
    """
    with counting() as counted:
        loss = float(evaluate(*args, **kwargs))
    return Measured(loss, size_of(counted, model, args, kwargs))


def size_of(counted: Counted, model: Any, args: Any, kwargs: Any) -> float:
    """By how much the loss of a batch counts beside those of others.

    Args:
        counted: What its objective told of it.
        model: The model.
        args: Positional arguments of a step.
        kwargs: Keyword arguments of a step.

    Returns:
        The number of observations, or of a sum over data that of data.
    """
    size = counted.number
    return batch_size(model, args, kwargs) if size is None else size


def mean_of(measured: Sequence[Measured]) -> float:
    """The mean of losses over all their observations.

    Args:
        measured: The losses.

    Returns:
        The mean. Where nothing was observed at all, it is the zero that an objective gives.
    """
    size = sum(each.size for each in measured)
    return sum(each.size * each.loss for each in measured) / size if size else 0.0


def check_observed(which: str, size: float) -> None:
    """Refuses an epoch whose loss is the mean over nothing.

    Args:
        which: Which data they are.
        size: Number of observations in its batches.

    Raises:
        DataError: If there are none.
    """
    if size == 0:
        raise DataError(
            f"No target of the {which} data counts: in all batches of the epoch each is masked, "
            f"NaN, the likelihood's ignore_index, or of a class of weight 0. Look at the targets "
            f"that the loader yields."
        )


def batch_size(model: Any, args: Any, kwargs: Any) -> int:
    """Number of data in a batch: what the model says, or the rows of the first tensor.

    Args:
        model: The model.
        args: Positional arguments of a step.
        kwargs: Keyword arguments of a step.

    Returns:
        The number, by which sums over data of several batches are weighted.
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
        f"those before this step. Usual causes: a learning rate that is too large, NaN or "
        f"infinite data, or in a model written by hand a start at wide priors, where "
        f"AutoMuPNormal(model, init_scale=0.1, init_loc_fn=init_to_feasible) starts inside."
    )
