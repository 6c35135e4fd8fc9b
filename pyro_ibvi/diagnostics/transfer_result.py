"""What a search for the best learning rates over sizes found."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from pyro_ibvi._util.plots import axes_or_new
from pyro_ibvi.diagnostics.book import json_number
from pyro_ibvi.diagnostics.slopes import log_log_slope

#: What grows: a network's width or depth, or the batches that it is trained on.
TransferAxis: TypeAlias = Literal["width", "depth", "batch_size"]


@dataclass(frozen=True)
class RateTransfer:
    """What :func:`rate_transfer` measured.

    Attributes:
        sizes: Widths or depths of the networks, or sizes of the batches.
        rates: Global learning rates, increasing.
        losses: Losses by (size, rate), one per seed; infinite where training diverged.
        axis: What the sizes are.
    """

    sizes: tuple[int, ...]
    rates: tuple[float, ...]
    losses: Mapping[tuple[int, float], tuple[float, ...]]
    axis: TransferAxis = "width"

    def mean(self, size: int) -> list[float]:
        """The loss at each rate, its mean over seeds.

        Args:
            size: One of the sizes.

        Returns:
            A loss per rate, infinite where some seed diverged.

        Raises:
            KeyError: If there is no such size.
        """
        if size not in self.sizes:
            what = _words(self.axis)
            raise KeyError(f"No run of {what} {size}; the {what}s are {list(self.sizes)}.")
        rows = [self.losses[size, rate] for rate in self.rates]
        return [sum(row) / len(row) for row in rows]

    def best_rate(self, size: int) -> float:
        """The rate with the smallest loss.

        Args:
            size: One of the sizes.

        Returns:
            The rate, NaN if every one diverged.
        """
        losses = self.mean(size)
        best = min(losses)
        return self.rates[losses.index(best)] if math.isfinite(best) else math.nan

    def slope(self) -> float:
        """Least-squares slope of the logarithm of the best rate over that of the size.

        Returns:
            The slope: 0 where the learning rate transfers, 1/2 over batch sizes where the rate
            goes with their square root; NaN if every run of some size diverged.
        """
        return log_log_slope(self.sizes, [self.best_rate(size) for size in self.sizes])

    def to_dict(self) -> dict[str, Any]:
        """Numbers alone, for JSON; a loss that is not finite is None.

        Returns:
            Sizes, rates, the best rate of each size, and a loss per size, rate and seed.
        """
        best = [self.best_rate(size) for size in self.sizes]
        return {
            f"{self.axis}s": list(self.sizes),
            "rates": list(self.rates),
            "best_rates": [json_number(rate) for rate in best],
            "losses": [
                [[json_number(v) for v in self.losses[size, rate]] for rate in self.rates]
                for size in self.sizes
            ],
        }

    def plot(self, ax: Any = None) -> Any:
        """Draws the loss over the learning rate, a line per size, with the best rates marked.

        Args:
            ax: Axes of matplotlib; new ones by default.

        Returns:
            The axes.
        """
        ax = axes_or_new(ax)
        for size in self.sizes:
            losses = [v if math.isfinite(v) else math.nan for v in self.mean(size)]
            (line,) = ax.plot(self.rates, losses, "o-", markersize=3, label=str(size))
            best = self.best_rate(size)
            if not math.isnan(best):
                lowest = losses[self.rates.index(best)]
                ax.plot([best], [lowest], "*", markersize=12, color=line.get_color())
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set(xlabel="global learning rate", ylabel="loss at the end")
        ax.legend(title=_words(self.axis))
        return ax

    def __str__(self) -> str:
        head = _words(self.axis)
        wide = max(6, len(head))
        rates = " ".join(f"{rate:>9.3g}" for rate in self.rates)
        lines = [f"{head:>{wide}} {'best':>9} | {rates}"]
        for size in self.sizes:
            losses = " ".join(f"{loss:9.4g}" for loss in self.mean(size))
            lines.append(f"{size:>{wide}} {self.best_rate(size):>9.3g} | {losses}")
        return "\n".join(lines)


def _words(axis: str) -> str:
    return axis.replace("_", " ")
