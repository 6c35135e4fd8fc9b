"""A learning rate for one network, by short trainings on a grid."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pyro_ibvi._util.arguments import named_arguments
from pyro_ibvi._util.checks import checked_rates
from pyro_ibvi._util.plots import axes_or_new
from pyro_ibvi._util.tables import table_lines
from pyro_ibvi.front.network import VariationalNetwork
from pyro_ibvi.front.trials import Trials, check_build, index_of_best, shown_nll

#: Each about three times the one before.
_RATES = (0.003, 0.01, 0.03, 0.1, 0.3)


@dataclass(frozen=True)
class RateSearch:
    """What short trainings at several rates came to; prints as a table.

    Attributes:
        rates: The global learning rates, in ascending order.
        nlls: Negative log predictive density on the validation data after each, in nats per
            datum, of several tasks the sum of theirs; infinite where the training diverged.
    """

    rates: tuple[float, ...]
    nlls: tuple[float, ...]

    @property
    def best(self) -> float:
        """The rate with the smallest ``nll``."""
        return self.rates[index_of_best(self.nlls)]

    def __str__(self) -> str:
        rows = [("rate", "nll", "")]
        for rate, nll in zip(self.rates, self.nlls, strict=True):
            rows.append((f"{rate:.4g}", shown_nll(nll), "best" * (rate == self.best)))
        return "\n".join(table_lines(rows))

    def plot(self, ax: Any = None) -> Any:
        """Draws the validation loss over the rate.

        Args:
            ax: Axes of matplotlib; new ones by default.

        Returns:
            The axes.
        """
        ax = axes_or_new(ax)
        pairs = list(zip(self.rates, self.nlls, strict=True))
        ended = [(rate, nll) for rate, nll in pairs if math.isfinite(nll)]
        ax.plot(*zip(*ended, strict=True), marker="o", color="C0")
        ax.axvline(self.best, color="C1", linestyle="--", label=f"best: {self.best:.4g}")
        diverged = [rate for rate, nll in pairs if not math.isfinite(nll)]
        if diverged:
            ax.axvspan(min(diverged), max(diverged) * 1.1, color="0.9", label="diverged")
        ax.set(xscale="log", xlabel="learning rate", ylabel="validation nll (nats per datum)")
        ax.legend()
        return ax


@named_arguments()
def rate_search(
    build: Callable[[float], VariationalNetwork],
    data: Any,
    y: Any = None,
    *,
    valid_loader: Any,
    rates: Sequence[float] = _RATES,
    num_epochs: int = 5,
    batch_size: int | None = None,
    num_samples: int = 16,
    seed: int = 0,
    progress: bool = True,
) -> RateSearch:
    """Trains a network shortly at several rates and compares them on validation data.

    Each training begins at the same weights and sees the same batches and draws. Short trainings
    favor rates that are fast over those that end well: take the best for a training of the same
    length, and a schedule that lowers it for a longer one.

    Args:
        build: Makes the network for a rate, as in
            ``lambda lr: VariationalNetwork(net, Categorical(), lr=lr)``.
        data: Training data, in any form that ``fit`` takes.
        y: The targets, if ``data`` are inputs.
        valid_loader: Validation data, likewise; inputs with targets as a pair.
        rates: The rates to try.
        num_epochs: Number of epochs at each.
        batch_size: Number of data in a step, where they come without a loader; by default 128.
        num_samples: Number of draws by which the validation data are predicted.
        seed: Seed of all trainings; the global random state and the generators of loaders are as
            before in the end.
        progress: Whether to show a progress bar; there is none where output is no terminal.

    Returns:
        The negative log predictive densities, with the best rate.

    Raises:
        TypeError: If ``build`` is no function of a rate, or makes something else.
        ValueError: If there are not two different rates, or all trainings diverged.

    Example:
        >>> import torch, pyro_ibvi as ibvi
        >>> x = torch.linspace(-1, 1, 64).unsqueeze(-1)
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))
        >>> found = ibvi.rate_search(
        ...     lambda lr: ibvi.VariationalNetwork(net, ibvi.Normal(0.3), lr=lr),
        ...     x[::2], x[::2] ** 2, valid_loader=(x[1::2], x[1::2] ** 2), num_epochs=20,
        ...     rates=(1e-4, 0.03, 100.0))
        >>> found.best
        0.03
    """
    ordered = checked_rates(rates)
    trials = Trials(data, y, valid_loader, num_epochs, batch_size, num_samples, seed, progress)
    call = "lambda lr: VariationalNetwork(net, likelihood, lr=lr)"
    check_build(build, call, ordered[0])
    nlls = trials.nlls([partial(_built, build, rate) for rate in ordered], "rate search", call)
    found = RateSearch(tuple(ordered), nlls)
    _check_found(found)
    return found


def _built(build: Callable[[float], Any], rate: float) -> Any:
    """What is made for a rate, if it has that rate."""
    bnn = build(rate)
    if isinstance(bnn, VariationalNetwork) and not math.isclose(bnn.optim.lr, rate):
        raise ValueError(
            f"The network that was built learns at {bnn.optim.lr}, not at the rate "
            f"{rate} that is tried: pass it on, VariationalNetwork(..., lr=lr)."
        )
    return bnn


def _check_found(found: RateSearch) -> None:
    if all(math.isinf(nll) for nll in found.nlls):
        raise ValueError(
            f"Training diverged at every rate of {list(found.rates)}: try smaller ones, and look "
            f"whether inputs and targets are standardized."
        )
    ends = {found.rates[0]: "smallest", found.rates[-1]: "largest"}
    if found.best in ends:
        warnings.warn(
            f"The best rate, {found.best:.4g}, is the {ends[found.best]} that was tried: a better "
            f"one may lie beyond.",
            UserWarning,
            stacklevel=4,
        )
