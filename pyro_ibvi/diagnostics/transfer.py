r"""Learning-rate transfer: does the rate that is best for a small network serve a wide one?

A grid of short trainings over sizes, learning rates and seeds, with the loss at the end of each.
Where the learning rate transfers, the best one does not depend on the width, and a wider network
is not worse at it.

Over batch sizes :math:`B` the best rate does move: the literature expects it to grow as :math:`B`
for SGD and as :math:`\sqrt B` for Adam, while the noise of the gradient is that of the data.

References:
    Malladi, Lyu, Panigrahi, Arora, On the SDEs and scaling rules for adaptive gradient algorithms,
    2022, arXiv:2205.10287.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias, get_args

import torch
from pyro.infer import SVI
from torch.optim import Optimizer
from tqdm.auto import tqdm

from pyro_ibvi._util.arguments import named_arguments
from pyro_ibvi._util.checks import check_positive_int, checked_rates
from pyro_ibvi._util.handlers import HANDLERS
from pyro_ibvi._util.inputs import as_call, to_device
from pyro_ibvi._util.modes import module_mode
from pyro_ibvi._util.random_state import own_generators, own_random_numbers
from pyro_ibvi.diagnostics.book import (
    Book,
    describe_loss,
    digest_of_data,
    digest_of_pair,
)
from pyro_ibvi.diagnostics.coordinates import Build, checked_build, checked_sizes
from pyro_ibvi.diagnostics.transfer_result import RateTransfer, TransferAxis
from pyro_ibvi.mup.parametrization import Family
from pyro_ibvi.objectives.expected_log_likelihood import TraceExpectedLogLikelihood
from pyro_ibvi.training.families import find_family
from pyro_ibvi.training.loop import fit
from pyro_ibvi.training.optim import MuPOptim
from pyro_ibvi.training.step import check_observed, mean_of, measured

#: Makes the loader for a size.
LoaderOf: TypeAlias = Callable[[int], Iterable[Any]]


@named_arguments()
def rate_transfer(
    build: Build,
    sizes: Sequence[int],
    rates: Sequence[float],
    train_loader: Iterable[Any] | LoaderOf,
    num_epochs: int,
    *,
    axis: TransferAxis = "width",
    valid_loader: Iterable[Any] | None = None,
    optimizer: type[Optimizer] = torch.optim.SGD,
    optim_args: dict[str, Any] | None = None,
    family: Family | None = None,
    loss: Any = None,
    num_seeds: int = 1,
    num_draws: int = 16,
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> RateTransfer:
    """Trains networks of several widths at several learning rates, or one on several batch sizes.

    Each run starts from its seed, whatever ran before, and leaves the global random state as it
    was. A loader that shuffles by the global random state, as a ``DataLoader`` without a
    generator of its own does, is part of that; one with such a generator begins each run, whatever
    its seed, with the same order, and has the generator as before in the end.

    Args:
        build: Makes a fresh model and its initialized guide for a size. Over batch sizes it makes
            the same network for each.
        sizes: At least two widths, depths or batch sizes.
        rates: At least two global learning rates.
        train_loader: Batches to train on, iterated once per epoch; or a function that makes the
            loader for a size, as it must be over batch sizes:
            ``lambda size: DataLoader(data, size, shuffle=True)``.
        num_epochs: Number of epochs of each run, over which all sizes see as many data. For as
            many steps in their place let the function make loaders of as many batches.
        axis: What the sizes are: ``"width"``, ``"depth"`` or ``"batch_size"``.
        valid_loader: Batches for the loss at the end; the training batches by default.
        optimizer: Class of the torch optimizer.
        optim_args: Its arguments but for ``lr``.
        family: How an optimizer that is not one of torch's scales its updates.
        loss: Pyro's loss; ``TraceExpectedLogLikelihood(reduction="mean")`` by default.
        num_seeds: Number of runs per size and rate.
        num_draws: Number of weight draws over which the loss at the end is averaged.
        path: JSON file to which each finished run is added, and whose runs are not run again. It
            knows the networks, data, loss and optimizer that they are of.
        progress: Whether to show a progress bar; there is none where output is no terminal.

    Returns:
        The losses, with the best rates, a table and a picture.

    Raises:
        FileNotFoundError: If the file's folder does not exist.
        TypeError: If the batches cannot have the sizes asked for.
        ValueError: If the arguments do not make sense, or the file is of other arguments.

    Example:
        >>> import pyro_ibvi as ibvi
        >>> from torch import nn
        >>> def build(width):
        ...     net = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1))
        ...     model = ibvi.SupervisedModel(ibvi.RandomModule(net), ibvi.Normal())
        ...     return model, ibvi.AutoMuPNormal(model, covariance=ibvi.LowRank(4))
        >>> loader = [(torch.zeros(8, 2), torch.zeros(8, 1))]
        >>> result = ibvi.rate_transfer(build, [16, 32], [1e-3, 1e-2], loader, num_epochs=5)
        >>> result.best_rate(32)
        0.01
    """
    _check_axis(axis)
    sizes, rates = checked_sizes(f"{axis}s", sizes), checked_rates(rates)
    loader_of = _loader_of(train_loader, axis)
    for name, number in (("num_seeds", num_seeds), ("num_draws", num_draws)):
        check_positive_int(name, number)
    if "lr" in (optim_args or {}):
        raise ValueError("optim_args must not name lr: the learning rates are given by `rates`.")
    loss = TraceExpectedLogLikelihood(reduction="mean") if loss is None else loss
    settings = {
        "num_epochs": num_epochs,
        "num_draws": num_draws,
        "optimizer": optimizer.__name__,
        "optim_args": repr(optim_args or {}),
        "family": find_family(optimizer, family),
        "loss": describe_loss(loss),
    }
    book = Book(None, settings, {})
    if path is not None:
        loaders = {"train_loader": train_loader, "valid_loader": valid_loader}
        book = _open_book(path, settings, loaders, build, sizes, axis)
    cells = [(w, r, s) for w in sizes for r in rates for s in range(num_seeds)]
    for cell in tqdm(cells, desc="rate transfer", disable=None if progress else True):
        if cell in book.losses:
            continue
        size, rate, seed = cell
        start = time.perf_counter()
        loaders = {"train_loader": train_loader, "valid_loader": valid_loader}
        with own_random_numbers(seed), own_generators(loaders):
            loader = loader_of(size)
            model, guide = checked_build(build, size)
            optim = MuPOptim(optimizer, {**(optim_args or {}), "lr": rate}, guide, family=family)
            svi = SVI(model, guide, optim, loss)
            value = _train(svi, loader, num_epochs, valid_loader or loader, num_draws)
        book.add(cell, value, time.perf_counter() - start)
    losses = {
        (w, r): tuple(book.losses[w, r, s] for s in range(num_seeds)) for w in sizes for r in rates
    }
    return RateTransfer(tuple(sizes), tuple(rates), losses, axis)


def _train(
    svi: SVI,
    train_loader: Iterable[Any],
    num_epochs: int,
    loss_loader: Iterable[Any],
    num_draws: int,
) -> float:
    """The loss after training, infinite if it diverges."""
    try:
        with warnings.catch_warnings():
            # Pyro announces what is a result here: some rate is too large.
            warnings.filterwarnings("ignore", message=r"Encountered (NaN|[+-]inf)")
            fit(svi, train_loader, num_epochs, progress=False)
    except FloatingPointError:
        return math.inf
    device = next(svi.guide.parameters()).device
    losses = []
    with module_mode(svi.model, svi.guide, training=False):
        for batch in loss_loader:
            args, kwargs = as_call(to_device(batch, device))
            for _ in range(num_draws):
                with HANDLERS:
                    losses.append(measured(svi.evaluate_loss, svi.model, args, kwargs))
    check_observed("validation", sum(each.size for each in losses))
    value = mean_of(losses)
    return value if math.isfinite(value) else math.inf


def _open_book(
    path: str | os.PathLike[str],
    settings: dict[str, Any],
    loaders: dict[str, Any],
    build: Build,
    sizes: list[int],
    axis: TransferAxis,
) -> Book:
    """The file of these runs, which knows them by their networks and data."""
    data: dict[int, str] = {}
    make_loader = loaders["train_loader"]
    if callable(make_loader):
        loaders = {"valid_loader": loaders["valid_loader"]}
        data = {size: digest_of_data({"train_loader": make_loader(size)}) for size in sizes}
    networks = {size: _digest_at(build, size) for size in sizes}
    return Book(path, {**settings, "data": digest_of_data(loaders)}, networks, data, axis=axis)


def _digest_at(build: Build, size: int) -> str:
    """A digest of what is trained at a size, by the run of seed 0."""
    with own_random_numbers(0):
        return digest_of_pair(*checked_build(build, size))


def _check_axis(axis: str) -> None:
    if axis not in get_args(TransferAxis):
        raise ValueError(f"axis must be 'width', 'depth' or 'batch_size', got {axis!r}.")


def _loader_of(train_loader: Iterable[Any] | LoaderOf, axis: TransferAxis) -> LoaderOf:
    """A function that gives the loader for a size, and refuses one of another batch size."""
    if not callable(train_loader):
        if axis == "batch_size":
            raise TypeError(
                f"Over batch sizes train_loader must be a function that makes a loader for each, "
                f"such as lambda size: DataLoader(data, size, shuffle=True), got "
                f"{type(train_loader).__name__}."
            )
        return lambda _: train_loader

    def loader_of(size: int) -> Iterable[Any]:
        loader = train_loader(size)
        actual = getattr(loader, "batch_size", None)
        if axis == "batch_size" and actual not in (None, size):
            raise ValueError(
                f"train_loader({size}) made a loader of batch size {actual}: write "
                f"lambda size: DataLoader(data, size, shuffle=True)."
            )
        return loader

    return loader_of
