"""Learning-rate transfer: does the rate that is best for a small network serve a wide one?

A grid of short trainings over widths, learning rates and seeds, with the loss at the end of each.
Where the learning rate transfers, the best one does not depend on the width, and a wider network
is not worse at it.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer import SVI
from torch.optim import Optimizer
from tqdm.auto import tqdm

from pyro_ibvi._util.checks import check_positive_int
from pyro_ibvi._util.inputs import as_call, first_tensor, to_device
from pyro_ibvi._util.modes import module_mode
from pyro_ibvi._util.random_state import own_random_numbers
from pyro_ibvi.diagnostics.book import (
    Book,
    describe_loss,
    digest_of_data,
    digest_of_pair,
    json_number,
)
from pyro_ibvi.diagnostics.coordinates import Build, checked_build, checked_widths
from pyro_ibvi.diagnostics.slopes import log_log_slope
from pyro_ibvi.mup.parametrization import Family
from pyro_ibvi.objectives.expected_log_likelihood import TraceExpectedLogLikelihood
from pyro_ibvi.training.families import find_family
from pyro_ibvi.training.loop import fit
from pyro_ibvi.training.optim import MuPOptim


@dataclass(frozen=True)
class RateTransfer:
    """What :func:`rate_transfer` measured.

    Attributes:
        widths: Widths of the networks.
        rates: Global learning rates, increasing.
        losses: Losses by (width, rate), one per seed; infinite where training diverged.
    """

    widths: tuple[int, ...]
    rates: tuple[float, ...]
    losses: Mapping[tuple[int, float], tuple[float, ...]]

    def mean(self, width: int) -> list[float]:
        """The loss at each rate, its mean over seeds.

        Args:
            width: One of the widths.

        Returns:
            A loss per rate, infinite where some seed diverged.

        Raises:
            KeyError: If there is no such width.
        """
        if width not in self.widths:
            raise KeyError(f"No network of width {width}; the widths are {list(self.widths)}.")
        rows = [self.losses[width, rate] for rate in self.rates]
        return [sum(row) / len(row) for row in rows]

    def best_rate(self, width: int) -> float:
        """The rate with the smallest loss.

        Args:
            width: One of the widths.

        Returns:
            The rate, NaN if every one diverged.
        """
        losses = self.mean(width)
        best = min(losses)
        return self.rates[losses.index(best)] if math.isfinite(best) else math.nan

    def slope(self) -> float:
        """Least-squares slope of the logarithm of the best rate over that of the width.

        Returns:
            The slope: 0 where the learning rate transfers, NaN if some width always diverged.
        """
        return log_log_slope(self.widths, [self.best_rate(width) for width in self.widths])

    def to_dict(self) -> dict[str, Any]:
        """Numbers alone, for JSON; a loss that is not finite is None.

        Returns:
            Widths, rates, the best rate of each width, and a loss per width, rate and seed.
        """
        best = [self.best_rate(width) for width in self.widths]
        return {
            "widths": list(self.widths),
            "rates": list(self.rates),
            "best_rates": [json_number(rate) for rate in best],
            "losses": [
                [[json_number(v) for v in self.losses[width, rate]] for rate in self.rates]
                for width in self.widths
            ],
        }

    def plot(self, ax: Any = None) -> Any:
        """Draws the loss over the learning rate, a line per width, with the best rates marked.

        Args:
            ax: Axes of matplotlib; new ones by default.

        Returns:
            The axes.
        """
        if ax is None:
            import matplotlib.pyplot as plt

            ax = plt.subplots()[1]
        for width in self.widths:
            losses = [v if math.isfinite(v) else math.nan for v in self.mean(width)]
            (line,) = ax.plot(self.rates, losses, "o-", markersize=3, label=str(width))
            best = self.best_rate(width)
            if not math.isnan(best):
                lowest = losses[self.rates.index(best)]
                ax.plot([best], [lowest], "*", markersize=12, color=line.get_color())
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set(xlabel="global learning rate", ylabel="loss at the end")
        ax.legend(title="width")
        return ax

    def __str__(self) -> str:
        lines = [f"{'width':>6} {'best':>9} | " + " ".join(f"{rate:>9.3g}" for rate in self.rates)]
        for width in self.widths:
            losses = " ".join(f"{loss:9.4g}" for loss in self.mean(width))
            lines.append(f"{width:>6} {self.best_rate(width):>9.3g} | {losses}")
        return "\n".join(lines)


def rate_transfer(
    build: Build,
    widths: Sequence[int],
    rates: Sequence[float],
    train_loader: Iterable[Any],
    num_epochs: int,
    *,
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
    """Trains networks of several widths at several learning rates.

    Each run starts from its seed, whatever ran before, and leaves the global random state as it
    was. A loader that shuffles by the global random state, as a ``DataLoader`` without a
    generator of its own does, is part of that.

    Args:
        build: Makes a fresh model and its initialized guide for a width.
        widths: At least two widths.
        rates: At least two global learning rates.
        train_loader: Batches to train on, iterated once per epoch.
        num_epochs: Number of epochs of each run.
        valid_loader: Batches for the loss at the end; the training batches by default.
        optimizer: Class of the torch optimizer.
        optim_args: Its arguments but for ``lr``.
        family: How an optimizer that is not one of torch's scales its updates.
        loss: Pyro's loss; ``TraceExpectedLogLikelihood(reduction="mean")`` by default.
        num_seeds: Number of runs per width and rate.
        num_draws: Number of weight draws over which the loss at the end is averaged.
        path: JSON file to which each finished run is added, and whose runs are not run again. It
            knows the networks, data, loss and optimizer that they are of.
        progress: Whether to show a progress bar; there is none where output is no terminal.

    Returns:
        The losses, with the best rates, a table and a picture.

    Raises:
        FileNotFoundError: If the file's folder does not exist.
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
    widths = checked_widths(widths)
    rates = _checked_rates(rates)
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
    networks: dict[int, str] = {}
    if path is not None:
        loaders = {"train_loader": train_loader, "valid_loader": valid_loader}
        settings["data"] = digest_of_data(loaders)
        networks = {width: _digest_at(build, width) for width in widths}
    book = Book(path, settings, networks)
    cells = [(w, r, s) for w in widths for r in rates for s in range(num_seeds)]
    for cell in tqdm(cells, desc="rate transfer", disable=None if progress else True):
        if cell in book.losses:
            continue
        width, rate, seed = cell
        start = time.perf_counter()
        with own_random_numbers(seed):
            model, guide = checked_build(build, width)
            optim = MuPOptim(optimizer, {**(optim_args or {}), "lr": rate}, guide, family=family)
            svi = SVI(model, guide, optim, loss)
            value = _train(svi, train_loader, num_epochs, valid_loader or train_loader, num_draws)
        book.add(cell, value, time.perf_counter() - start)
    losses = {
        (w, r): tuple(book.losses[w, r, s] for s in range(num_seeds))
        for w in widths
        for r in rates
    }
    return RateTransfer(tuple(widths), tuple(rates), losses)


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
    total, num_data = 0.0, 0
    with module_mode(svi.model, svi.guide, training=False):
        for batch in loss_loader:
            args, kwargs = as_call(to_device(batch, device))
            tensor = first_tensor((args, kwargs))
            size = 1 if tensor is None else len(tensor)
            total += size * sum(svi.evaluate_loss(*args, **kwargs) for _ in range(num_draws))
            num_data += size
    value = total / (num_data * num_draws)
    return value if math.isfinite(value) else math.inf


def _digest_at(build: Build, width: int) -> str:
    """A digest of what is trained at a width, by the run of seed 0."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return digest_of_pair(*checked_build(build, width))


def _checked_rates(rates: Sequence[float]) -> list[float]:
    result = sorted(float(rate) for rate in rates)
    if len(set(result)) < max(2, len(result)) or not all(0 < r < math.inf for r in result):
        raise ValueError(f"rates must be at least two different positive numbers, got {result}.")
    return result
