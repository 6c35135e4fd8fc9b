"""What a guide's spread has become, layer by layer and site by site, as numbers and a text."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from pyro_ibvi._util.tables import table_lines


@dataclass(frozen=True)
class SiteChange:
    """How the spread of one site has changed.

    Attributes:
        name: Name of the site.
        layer: Name of its layer.
        covariance: Its covariance structure, as it is written.
        num_weights: Number of weights.
        initial_std: Root mean square of the weights' standard deviations at the start, in
            unconstrained space; 0 for a point estimate.
        std: The same now.
        ratio: ``std / initial_std``; NaN for a point estimate.
    """

    name: str
    layer: str
    covariance: str
    num_weights: int
    initial_std: float
    std: float
    ratio: float


@dataclass(frozen=True)
class LayerChange:
    """How far the joint law of a layer's weights is from its start.

    Attributes:
        name: Name of the layer, or of the site if it belongs to no network.
        sites: Names of its sites.
        wasserstein2: 2-Wasserstein distance to the start, in the units of the weights.
        mean_shift: Euclidean distance of the mean to the start, which is a part of it.
        variance_left: Sum of the variances over that at the start; NaN for a point estimate.
        on_span: The same for the variance in the directions that the layer's inputs span; None
            without inputs, NaN if there was none.
        off_span: The same for the variance in the other directions.
    """

    name: str
    sites: tuple[str, ...]
    wasserstein2: float
    mean_shift: float
    variance_left: float
    on_span: float | None
    off_span: float | None


@dataclass(frozen=True)
class VarianceReport:
    """What :class:`VarianceMonitor` found at one moment; ``print`` it for a table.

    Attributes:
        epoch: The epoch, from 0, or None.
        layers: One entry a layer.
        sites: One entry a site.
        threshold: A site has collapsed if its ratio is below this.
        notes: Sentences on what to do.
    """

    epoch: int | None
    layers: tuple[LayerChange, ...]
    sites: tuple[SiteChange, ...]
    threshold: float
    notes: tuple[str, ...]

    @property
    def collapsed(self) -> tuple[str, ...]:
        """Names of the sites whose standard deviation is below ``threshold`` of the start's."""
        return tuple(site.name for site in self.sites if site.ratio < self.threshold)

    def to_dict(self) -> dict[str, Any]:
        """The report as dictionaries, lists, strings and numbers.

        Returns:
            The dictionary, with the entry ``collapsed`` too.
        """
        return {**asdict(self), "collapsed": self.collapsed}

    def __str__(self) -> str:
        header = ("layer", "W2 to start", "mean shift", "variance left", "on span", "off span")
        rows: list[tuple[Any, ...]] = [header]
        for layer in self.layers:
            shares = (layer.variance_left, layer.on_span, layer.off_span)
            rows.append((layer.name, layer.wasserstein2, layer.mean_shift, *map(_share, shares)))
        lines = table_lines(rows)
        rows = [("site", "covariance", "std at start", "std", "ratio", "")]
        for site in self.sites:
            mark = "collapsed" if site.name in self.collapsed else ""
            numbers = (site.initial_std, site.std, _share(site.ratio), mark)
            rows.append((site.name, site.covariance, *numbers))
        return "\n".join([*lines, "", *table_lines(rows), *(f"\n{note}" for note in self.notes)])


def _share(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{100 * value:.3g} %"
