"""Running a network with many draws of its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_ibvi._util.checks import check_positive_int
from pyro_ibvi._util.inputs import as_call, map_tensors, to_device
from pyro_ibvi._util.modes import module_mode
from pyro_ibvi._util.random_state import own_random_numbers, thread_random_numbers
from pyro_ibvi.guides.normal import AutoMuPNormal
from pyro_ibvi.models.running import network_mode
from pyro_ibvi.models.supervised import SupervisedModel, batch_of
from pyro_ibvi.prediction.chunking import draws_to_make, draws_to_run
from pyro_ibvi.prediction.mixture import Prediction


@torch.no_grad()
def predict(
    model: SupervisedModel,
    guide: Callable[..., Any],
    x: Any,
    *,
    num_samples: int = 100,
    chunk_size: int | None = None,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
) -> Prediction:
    """Predicts by averaging over draws of the weights.

    The network runs in evaluation mode (no dropout, norm layers with their running statistics)
    and stays as it is: its mode, its buffers, and whatever a forward pass writes on its modules.
    With this package's guide any number of threads may predict at the same time.

    Args:
        model: The model.
        guide: Its guide, of any kind that draws the model's sites.
        x: Inputs, as for the model.
        num_samples: Number of draws of the weights.
        chunk_size: Number of draws that run at once; bounds the memory for weights and
            activations. By default as many as a few million numbers allow.
        batch_size: Number of inputs that run at once; bounds the memory for activations. The
            draws are the same for all of them.
        generator: Makes the draws reproducible, without touching the global random state.

    Returns:
        The prediction.

    Raises:
        TypeError: If the model is not a :class:`~pyro_ibvi.SupervisedModel`.
        ValueError: If a size is not positive.

    Example:
        >>> from pyro_ibvi import Normal, RandomModule
        >>> from torch import nn
        >>> model = SupervisedModel(RandomModule(nn.Linear(3, 1)), Normal(0.1), num_data=100)
        >>> pred = predict(model, AutoMuPNormal(model), torch.zeros(5, 3), num_samples=20)
        >>> pred.mean.shape, torch.equal(pred.variance, pred.epistemic + pred.aleatoric)
        (torch.Size([5, 1]), True)
    """
    if not isinstance(model, SupervisedModel):
        raise TypeError(
            f"predict needs a SupervisedModel, got {type(model).__name__}; for other models "
            f"use pyro.infer.Predictive(model, guide=guide, num_samples={num_samples})."
        )
    check_positive_int("num_samples", num_samples)
    for name, size in (("chunk_size", chunk_size), ("batch_size", batch_size)):
        if size is not None:
            check_positive_int(name, size)
    device = next((p.device for p in model.parameters()), None)
    x = to_device(x, device)
    outputs = []
    with _evaluation(guide), seeded_numbers(generator, guide):
        num_drawn, num_run = chunk_size, chunk_size
        if num_drawn is None or num_run is None:
            num_drawn, num_run = _default_chunk_sizes(model, x, batch_size)
        for start in range(0, num_samples, num_drawn):
            values = draw_parameters(model, guide, x, min(num_drawn, num_samples - start))
            for chunk in _chunks(model, values, num_run):
                parts = [model.run(chunk, part) for part in _batches(x, batch_size)]
                outputs.append(torch.cat(parts, dim=1))
    return Prediction(torch.cat(outputs), model.likelihood)


def draw_parameters(
    model: SupervisedModel, guide: Callable[..., Any], x: Any, num_samples: int
) -> dict[str, Tensor]:
    """Draws of the network's parameters from a guide.

    Args:
        model: The model.
        guide: Its guide.
        x: Inputs, for guides that look at them.
        num_samples: Number of draws.

    Returns:
        Parameters by name; the random ones with the draws in front.
    """
    if isinstance(guide, AutoMuPNormal):
        draws = guide.draw(num_samples)
        if type(model).sample_parameters is SupervisedModel.sample_parameters:
            return model.net.with_draws(draws)
    else:
        traces: list[Any] = []
        for _ in range(num_samples):
            with poutine.block(), poutine.trace() as tracer:
                guide(x)
            traces.append(tracer.trace)
        names = [model.net.site_name(name) for name in model.net.stochastic]
        draws = {
            name: torch.stack([trace.nodes[name]["value"] for trace in traces]) for name in names
        }
    with poutine.block(), poutine.condition(data=draws):
        # Conditioning puts the draws in place of the sites, whatever their leading dimensions.
        return model.sample_parameters()


@contextmanager
def _evaluation(guide: Any) -> Iterator[None]:
    """Runs networks in evaluation mode, in this thread alone as far as they are this package's."""
    with ExitStack() as stack:
        stack.enter_context(network_mode(training=False))
        if not isinstance(guide, AutoMuPNormal):  # which acts the same in both modes
            stack.enter_context(module_mode(guide, training=False))
        yield


@contextmanager
def seeded_numbers(generator: torch.Generator | None, guide: Any) -> Iterator[None]:
    """Random numbers from a generator's seed.

    Other guides than this package's know the global random state alone.

    Args:
        generator: The generator; without one the global random state goes on.
        guide: The guide that draws.

    Yields:
        Nothing.
    """
    if generator is None:
        yield
        return
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    is_own = isinstance(guide, AutoMuPNormal)
    numbers = thread_random_numbers if is_own else own_random_numbers
    with numbers(int(seed.item())):
        yield


def _default_chunk_sizes(
    model: SupervisedModel, x: Any, batch_size: int | None
) -> tuple[int, int]:
    """How many draws are made at once, whatever the data, and how many of them run at once."""
    num_rows = batch_of(x).shape[0]
    one_row = as_call(next(_batches(x, 1)) if num_rows else x)
    num_run = draws_to_run(model.net, one_row, min(num_rows, batch_size or num_rows))
    return draws_to_make(model.net), num_run


def _chunks(
    model: SupervisedModel, values: Mapping[str, Tensor], size: int
) -> Iterator[dict[str, Tensor]]:
    """Some draws after the other, beside the parameters that are no draws."""
    names = model.net.stochastic
    for start in range(0, len(values[names[0]]), size):
        yield {**values, **{name: values[name][start : start + size] for name in names}}


def _batches(x: Any, batch_size: int | None) -> Iterator[Any]:
    num_data = batch_of(x).shape[0]
    if batch_size is None or batch_size >= num_data:
        yield x
        return
    for start in range(0, num_data, batch_size):
        rows = slice(start, start + batch_size)
        yield map_tensors(partial(_rows, rows=rows, num_data=num_data), x)


def _rows(leaf: Tensor, *, rows: slice, num_data: int) -> Tensor:
    return leaf[rows] if leaf.dim() > 0 and leaf.shape[0] == num_data else leaf
