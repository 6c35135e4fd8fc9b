"""What a coordinate check measured: slopes, a table and a picture."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from pyro_ibvi._util.plots import axes_or_new
from pyro_ibvi.diagnostics.probe import Key
from pyro_ibvi.diagnostics.slopes import log_log_slope

#: What networks differ in.
Axis: TypeAlias = Literal["width", "depth"]


@dataclass(frozen=True)
class CoordinateCheck:
    """What :func:`coordinate_check` measured.

    Attributes:
        sizes: Widths of the networks, or their depths.
        rms: Root mean squares by (quantity, step, name), one row per network, one entry per seed;
            the name is a layer's, or a parameter's for the quantities ``loc``, ``factor`` and
            ``layer factor``. Where networks have different numbers of seeds, of which the smallest
            is ``n``, entries ``i`` and ``i + n`` have the same noise.
        axis: What the sizes are.
    """

    sizes: tuple[int, ...]
    rms: Mapping[Key, tuple[tuple[float, ...], ...]]
    axis: Axis = "width"

    def mean(self, quantity: str, step: int, layer: str) -> list[float]:
        """The quantity at each size, the root mean square over seeds.

        Args:
            quantity: Name of the quantity, see :mod:`pyro_ibvi.diagnostics.coordinates`.
            step: Number of optimizer steps.
            layer: Name of the layer in the network.

        Returns:
            A number per size.

        Raises:
            KeyError: If that was not measured.
        """
        key = (quantity, step, layer)
        if key not in self.rms:
            raise KeyError(f"No {key!r} was measured; there are {sorted(self.rms)}.")
        return root_mean_squares(self.rms[key])

    def slope(self, quantity: str, step: int, layer: str) -> float:
        """Least-squares slope of the logarithm of a quantity over that of the size.

        Args:
            quantity: Name of the quantity.
            step: Number of optimizer steps.
            layer: Name of the layer in the network.

        Returns:
            The slope: 0 if the quantity does not depend on the size, NaN if it is zero or not
            finite at some size.
        """
        return log_log_slope(self.sizes, self.mean(quantity, step, layer))

    def slope_error(self, quantity: str, step: int, layer: str) -> float:
        """Standard error of a slope, by the jackknife over the seeds of the noise.

        One is left out at every size, so that what its runs have in common does not count.

        Args:
            quantity: Name of the quantity.
            step: Number of optimizer steps.
            layer: Name of the layer in the network.

        Returns:
            The standard error, NaN where a size has a single run.
        """
        self.mean(quantity, step, layer)  # the error for a key that is not there
        rows = self.rms[quantity, step, layer]
        num_seeds = min(map(len, rows))
        if num_seeds < 2:
            return math.nan
        slopes = []
        for left_out in range(num_seeds):
            rest = [[v for i, v in enumerate(row) if i % num_seeds != left_out] for row in rows]
            slopes.append(log_log_slope(self.sizes, root_mean_squares(rest)))
        return math.sqrt(num_seeds - 1) * statistics.pstdev(slopes)

    def largest_slope(
        self,
        quantities: Iterable[str] = ("size", "change"),
        *,
        layers: Iterable[str] | None = None,
        from_step: int = 0,
    ) -> float:
        """Largest absolute slope, the number to compare with a tolerance.

        Args:
            quantities: Quantities to look at.
            layers: Layers to look at; all by default.
            from_step: First step to look at.

        Returns:
            The slope's absolute value; infinite if a quantity vanished or diverged.

        Raises:
            ValueError: If nothing was measured that fits.
        """
        quantities, chosen = set(quantities), None if layers is None else set(layers)
        slopes = [
            abs(self.slope(*key))
            for key in self.rms
            if key[0] in quantities
            and key[1] >= from_step
            and (chosen is None or key[2] in chosen)
        ]
        if not slopes:
            raise ValueError(
                f"Nothing was measured of {sorted(quantities)} from step {from_step} on"
                + (f" in the layers {sorted(chosen)}." if chosen is not None else ".")
            )
        return max(math.inf if math.isnan(slope) else slope for slope in slopes)

    def to_dict(self) -> dict[str, Any]:
        """Numbers and strings alone, for JSON.

        Returns:
            The widths or depths and one record per quantity, step and layer, with its slope
            (None for NaN).
        """
        records = []
        for (quantity, step, layer), rows in self.rms.items():
            slope = self.slope(quantity, step, layer)
            records.append(
                {
                    "quantity": quantity,
                    "step": step,
                    "layer": layer,
                    "slope": None if math.isnan(slope) else slope,
                    "rms": [list(row) for row in rows],
                }
            )
        return {f"{self.axis}s": list(self.sizes), "records": records}

    def plot(self, quantity: str = "change", *, step: int | None = None, ax: Any = None) -> Any:
        """Draws a quantity of each layer over the width or depth, both axes logarithmic.

        Args:
            quantity: Name of the quantity.
            step: Number of optimizer steps; the last by default.
            ax: Axes of matplotlib; new ones by default.

        Returns:
            The axes.
        """
        ax = axes_or_new(ax)
        step = max(key[1] for key in self.rms) if step is None else step
        for layer in dict.fromkeys(k[2] for k in self.rms if k[:2] == (quantity, step)):
            label = f"{layer} ({self.slope(quantity, step, layer):+.2f})"
            ax.plot(self.sizes, self.mean(quantity, step, layer), "o-", label=label)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set(xlabel=self.axis, ylabel=f"{quantity}, step {step}")
        ax.legend(title="layer (slope)")
        return ax

    def __str__(self) -> str:
        layer_width = max(5, *(len(layer) for _, _, layer in self.rms))
        head = f"{'quantity':<12} {'step':>4} {'layer':<{layer_width}} "
        lines = [head + " ".join(f"{w:>9}" for w in self.sizes) + f" {'slope':>7}"]
        for key in self.rms:
            values = " ".join(f"{value:9.3g}" for value in self.mean(*key))
            slope = f"{self.slope(*key):+7.2f}"
            lines.append(f"{key[0]:<12} {key[1]:>4} {key[2]:<{layer_width}} {values} {slope}")
        return "\n".join(lines)


def root_mean_squares(rows: Iterable[Sequence[float]]) -> list[float]:
    """One number per row.

    Args:
        rows: Numbers.

    Returns:
        The root of the mean of each row's squares.
    """
    return [math.sqrt(sum(v * v for v in row) / len(row)) for row in rows]
