"""Running a network with many draws of its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pyro_ibvi._util.arguments import named_arguments
from pyro_ibvi._util.checks import check_positive_int
from pyro_ibvi._util.errors import DataError
from pyro_ibvi._util.inputs import as_call, is_array, to_device
from pyro_ibvi._util.modes import module_mode
from pyro_ibvi.guides import MuPGuide
from pyro_ibvi.models.likelihoods import Likelihood
from pyro_ibvi.models.running import network_mode
from pyro_ibvi.models.supervised import SupervisedModel
from pyro_ibvi.pairing.belonging import check_pair, check_unwrapped
from pyro_ibvi.pairing.past import warn_of_one_left_behind
from pyro_ibvi.prediction.budget import Memory, cut_to_budget, read_memory
from pyro_ibvi.prediction.chunking import draws_to_make
from pyro_ibvi.prediction.draws import draw_parts
from pyro_ibvi.prediction.loaders import as_loader, check_batches, unshuffled
from pyro_ibvi.prediction.mixture import Prediction
from pyro_ibvi.prediction.outputs import Outputs
from pyro_ibvi.prediction.rows import Rows
from pyro_ibvi.prediction.seeds import Seed, seed_of, seeded_numbers


@named_arguments()
def predict(
    model: SupervisedModel,
    guide: Callable[..., Any],
    x: Any,
    *,
    num_samples: int = 100,
    chunk_size: int | None = None,
    batch_size: int | None = None,
    max_memory: Memory | None = None,
    generator: Seed = None,
    temperature: float = 1.0,
    differentiable: bool = False,
) -> Prediction:
    """Predicts by averaging over draws of the weights.

    The network runs in evaluation mode (no dropout, norm layers with their running statistics)
    and stays as it is: its mode, its buffers, and whatever a forward pass writes on its modules.
    With this package's guide any number of threads may predict at the same time.

    Args:
        model: The model.
        guide: Its guide, of any kind that draws the model's sites.
        x: Inputs, as for the model; arrays and data frames are converted, labels in a mapping are
            left out. Or a data set, or a ``DataLoader`` that does not shuffle, whose targets are
            left out.
        num_samples: Number of draws of the weights.
        chunk_size: Number of draws that run at once; bounds the memory for weights and
            activations; a seed then gives other draws. By default a few million numbers' worth.
        batch_size: Number of inputs that run at once; bounds the memory for activations. The
            draws are the same for all of them. By default as many as make some 70 million numbers
            in a layer, where inputs can be cut.
        max_memory: Bytes, or a text such as ``"2 GB"``, that the prediction may allocate, its
            result included: fewer inputs and draws run at once, as far as their numbers are not
            given. What the network needs is estimated from its layers' outputs for one datum.
            Where not even the weights of all draws fit, a seed gives other draws than without. A
            result that does not fit is refused; :func:`predict_batches` is the way then.
        generator: A seed, or a generator that gives one: makes the draws reproducible, without
            touching the global random state.
        temperature: Temperature of the likelihood, see
            :func:`~pyro_ibvi.prediction.fit_temperature`.
        differentiable: Whether to keep the graph, for gradients with respect to the inputs, which
            are then no loader and no data set.

    Returns:
        The prediction.

    Raises:
        TypeError: If the model is not a :class:`~pyro_ibvi.SupervisedModel`, or the guide is none.
        ValueError: If a size is not positive, the guide is another model's, the inputs do not
            fit or hold NaN, they cannot be cut into batches, or a loader has no gradients to give.

    Example:
        >>> from pyro_ibvi import AutoMuPNormal, Normal, RandomModule
        >>> from torch import nn
        >>> model = SupervisedModel(RandomModule(nn.Linear(3, 1)), Normal(0.1), num_data=100)
        >>> pred = predict(model, AutoMuPNormal(model), torch.zeros(5, 3), num_samples=20)
        >>> pred.mean.shape, torch.equal(pred.variance, pred.epistemic + pred.aleatoric)
        (torch.Size([5, 1]), True)
    """
    _check(model, guide, num_samples, chunk_size, batch_size, max_memory)
    likelihood = _at_temperature(model, temperature)
    if isinstance(x, Dataset):
        x = as_loader(x, batch_size)
    if isinstance(x, DataLoader):
        if differentiable:
            raise ValueError(
                "differentiable=True is for gradients with respect to inputs that are given as "
                "tensors, and a loader reads its own: write one prediction for each batch, "
                "predict(model, guide, x, differentiable=True) for x, y in loader, with a seed."
            )
        parts = predict_batches(
            model,
            guide,
            unshuffled(x),
            num_samples=num_samples,
            chunk_size=chunk_size,
            batch_size=batch_size,
            max_memory=max_memory,
            generator=generator,
        )
        return Prediction(_joined([part.outputs for part, _ in parts]), likelihood)
    with torch.set_grad_enabled(differentiable):
        rows = prepare_rows(model, x)
        with _evaluation(guide), seeded_numbers(generator, guide):
            outputs = run_draws(
                model, guide, rows, num_samples, chunk_size, batch_size, max_memory
            )
        return Prediction(outputs, likelihood)


@named_arguments()
def predict_batches(
    model: SupervisedModel,
    guide: Callable[..., Any],
    loader: Any,
    *,
    num_samples: int = 100,
    chunk_size: int | None = None,
    batch_size: int | None = None,
    max_memory: Memory | None = None,
    generator: Seed = None,
    temperature: float = 1.0,
) -> Iterator[tuple[Prediction, Any]]:
    """Predicts one batch after the other by the same draws, for data whose outputs fill memory.

    Args:
        model: The model.
        guide: Its guide.
        loader: Batches, as for training; or inputs or a data set, of which ``batch_size`` rows
            are predicted at once.
        num_samples: Number of draws of the weights.
        chunk_size: As for :func:`predict`.
        batch_size: As for :func:`predict`.
        max_memory: As for :func:`predict`, for each batch by itself; the one before it is held by
            whoever has not let go of it.
        generator: As for :func:`predict`; without one the draws are new, and the same for all
            batches.
        temperature: As for :func:`predict`.

    Returns:
        An iterator over the prediction and the targets of each batch, None where there are none.
        It raises a ``ValueError`` where there is no batch.

    Raises:
        TypeError: As for :func:`predict`, or if the loader gives no batches.
        ValueError: As for :func:`predict`.

    Example:
        >>> from pyro_ibvi import AutoMuPNormal, Normal, RandomModule
        >>> from torch import nn
        >>> model = SupervisedModel(RandomModule(nn.Linear(3, 1)), Normal(0.1), num_data=100)
        >>> parts = predict_batches(model, AutoMuPNormal(model), torch.zeros(9, 3), batch_size=4)
        >>> [len(part.mean) for part, _ in parts]
        [4, 3, 2]
    """
    _check(model, guide, num_samples, chunk_size, batch_size, max_memory)
    likelihood = _at_temperature(model, temperature)
    seed = seed_of(generator)
    seed = int(torch.randint(2**62, ()).item()) if seed is None else seed
    if isinstance(loader, Dataset):
        loader = as_loader(loader, batch_size)
    check_batches(loader)

    def run(rows: Rows) -> Prediction:
        with torch.no_grad(), _evaluation(guide), seeded_numbers(seed, guide):
            outputs = run_draws(
                model, guide, rows, num_samples, chunk_size, batch_size, max_memory
            )
        return Prediction(outputs, likelihood)

    return _one_by_one(model, loader, batch_size, run)


def _joined(outputs: list[Tensor]) -> Tensor:
    """The outputs of all batches together."""
    first = outputs[0]
    for part in outputs:
        if part.shape[2:] != first.shape[2:]:
            raise DataError(
                f"The network's outputs have the shape {tuple(first.shape[2:])} for each datum of "
                f"the first batch and {tuple(part.shape[2:])} for those of another, as where each "
                f"batch is filled up to its own longest sequence, and one prediction holds one "
                f"shape: write for part, _ in predict_batches(model, guide, loader), or fill all "
                f"data up to one length."
            )
    return torch.cat(outputs, dim=1)


def _one_by_one(
    model: SupervisedModel, loader: Any, batch_size: int | None, run: Callable[[Rows], Prediction]
) -> Iterator[tuple[Prediction, Any]]:
    if is_array(loader) or isinstance(loader, Mapping):
        whole = prepare_rows(model, loader)
        batches = ((part, None) for part in whole.batches(batch_size))
    else:
        batches = (_read(model, batch) for batch in loader)
    is_empty = True
    for x, y in batches:
        is_empty = False
        yield run(prepare_rows(model, x)), y
    if is_empty:
        raise DataError("The loader is empty: it yielded no batch.")


def _check(
    model: Any,
    guide: Any,
    num_samples: int,
    chunk_size: int | None,
    batch_size: int | None,
    max_memory: Memory | None,
) -> None:
    check_unwrapped(model=model, guide=guide)
    if isinstance(model, MuPGuide):
        raise TypeError(
            f"The model comes first, got the guide {type(model).__name__} in its place: write "
            f"predict(model, guide, x)."
        )
    if not isinstance(model, SupervisedModel):
        raise TypeError(
            f"predict needs a SupervisedModel, got {type(model).__name__}; for other models "
            f"use pyro.infer.Predictive(model, guide=guide, num_samples={num_samples})."
        )
    if not callable(guide):
        raise TypeError(
            f"predict needs the guide that was trained, got {type(guide).__name__}: write "
            f"predict(model, guide, x)."
        )
    check_pair(model, guide)
    check_positive_int("num_samples", num_samples)
    for name, size in (("chunk_size", chunk_size), ("batch_size", batch_size)):
        if size is not None:
            check_positive_int(name, size)
    if max_memory is not None:
        read_memory(max_memory)
    warn_of_one_left_behind(model, guide)


def _at_temperature(model: SupervisedModel, temperature: float) -> Likelihood:
    likelihood = model.likelihood
    return likelihood if temperature == 1.0 else likelihood.at_temperature(temperature)


def prepare_rows(model: SupervisedModel, x: Any) -> Rows:
    """Inputs on the model's device, checked.

    Args:
        model: The model.
        x: Inputs.

    Returns:
        The inputs.
    """
    parameter = next(iter(model.parameters()), None)
    x = to_device(model.read_inputs(x), None if parameter is None else parameter.device)
    return Rows(model, x)


def run_draws(
    model: SupervisedModel,
    guide: Callable[..., Any],
    rows: Rows,
    num_samples: int,
    chunk_size: int | None,
    batch_size: int | None,
    max_memory: Memory | None = None,
) -> Tensor:
    """The network's outputs for draws of the guide, in chunks of draws and batches of inputs.

    Args:
        model: The model, in evaluation mode.
        guide: Its guide.
        rows: Inputs.
        num_samples: Number of draws.
        chunk_size: Number of draws that run at once.
        batch_size: Number of inputs that run at once.
        max_memory: Bytes for outputs and whatever makes them.

    Returns:
        The outputs, draws in front.

    Raises:
        ValueError: If the memory does not do.
    """
    num_drawn = draws_to_make(model.net) if chunk_size is None else chunk_size
    most = num_samples
    if max_memory is not None:
        args = (model.net, rows.one_row(), max_memory, num_samples, rows.num_rows)
        num_made, most, num_rows = cut_to_budget(*args)
        num_drawn = min(num_drawn, num_made)
        if batch_size is None and num_rows < rows.num_rows:
            batch_size = num_rows
    elif batch_size is None and not torch.is_grad_enabled():  # a graph keeps all of them anyway
        batch_size = rows.rows_to_run()
    num_run = min(most, rows.draws_to_run(batch_size)) if chunk_size is None else chunk_size
    is_cut = batch_size is not None and batch_size < rows.num_rows
    outputs = Outputs(num_samples, rows.num_rows if is_cut else None)
    for values in draw_parts(model, guide, rows.x, num_samples, num_drawn):
        for chunk in _chunks(model, values, num_run):
            outputs.add(rows.run(chunk, part, batch_size) for part in rows.batches(batch_size))
    return outputs.whole()


def _read(model: SupervisedModel, batch: Any) -> tuple[Any, Any]:
    args, kwargs = as_call(batch)
    return model.read(*args, **kwargs)


@contextmanager
def _evaluation(guide: Any) -> Iterator[None]:
    """Runs networks in evaluation mode, in this thread alone as far as they are this package's."""
    with ExitStack() as stack:
        stack.enter_context(network_mode(training=False))
        if not isinstance(guide, MuPGuide):  # which acts the same in both modes
            stack.enter_context(module_mode(guide, training=False))
        yield


def _chunks(
    model: SupervisedModel, values: Mapping[str, Tensor], size: int
) -> Iterator[dict[str, Tensor]]:
    """Some draws after the other, beside the parameters that are no draws."""
    names = model.net.stochastic
    for start in range(0, len(values[names[0]]), size):
        yield {**values, **{name: values[name][start : start + size] for name in names}}
