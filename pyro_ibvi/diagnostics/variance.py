r"""How far training has taken each layer from its start, and what variance is left.

With no divergence in the objective nothing but the optimizer keeps a guide near the prior. What
that does is measured here: the 2-Wasserstein distance of each layer to its start, the standard
deviations that are left, and, for a linear layer whose inputs are given, the share of the initial
variance left in the directions that the inputs span and in those that they do not. On a linear
model the first share goes to 0 and the second stays 1 (Theorem 1; :mod:`pyro_ibvi.theory`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_ibvi._util.tables import table_lines
from pyro_ibvi.guides.covariance import Covariance
from pyro_ibvi.guides.normal import AutoMuPNormal
from pyro_ibvi.guides.sites import DEFAULT_RANK, Layer, Site
from pyro_ibvi.theory.divergences import wasserstein2_squared
from pyro_ibvi.theory.kronecker_divergences import kronecker_wasserstein2_squared
from pyro_ibvi.theory.limits import null_space_projection

# Mean, factor and layer factor by site.
SiteState = tuple[Tensor, Tensor | None, Tensor | None]
State = Mapping[str, SiteState]


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


class VarianceMonitor:
    r"""Compares a guide with its start: distances, shares of variance, collapsed sites.

    Make it before training; it keeps a copy of the guide's parameters. It is a callback for
    :func:`~pyro_ibvi.fit`, and :meth:`report` can be called at any time.

    The distance is the joint one of a layer's weight and bias, by
    :func:`~pyro_ibvi.theory.wasserstein2_squared`: with P weights and a factor of R columns
    it takes of the order of :math:`P R^2` operations, and less for a Kronecker product. With
    ``inputs`` a Kronecker product's columns are written out, :math:`P R_{in} R_{out}` numbers.

    For a linear layer with inputs :math:`X` the variance on the span of the data is
    :math:`\sum_c \mathrm{tr}(X^+ X\, \Sigma_c)`, over the outputs c with the covariance
    :math:`\Sigma_c` of their incoming weights. A random bias counts as the weight of one more
    input, which is always 1. Where there are as many independent data as inputs the span is
    everything.

    Args:
        guide: An initialized guide.
        inputs: Inputs of linear layers, ``(N, features)``: one matrix for the network's first
            layer, or a mapping from layer to matrix, for deeper layers (features change while
            the network is trained; these stay) or for a site of a hand-written linear model.
        threshold: A site has collapsed if the ratio of its standard deviation to the start's is
            below this.
        every: As a callback, number of epochs from one report to the next.

    Raises:
        TypeError: If the guide is not an :class:`~pyro_ibvi.AutoMuPNormal`.
        ValueError: If inputs do not fit a linear layer, or an option is outside its range.

    Example:
        >>> import pyro_ibvi as ibvi
        >>> from torch import nn
        >>> net = ibvi.RandomModule(nn.Linear(3, 1))
        >>> guide = ibvi.AutoMuPNormal(ibvi.SupervisedModel(net, ibvi.Normal()))
        >>> monitor = ibvi.VarianceMonitor(guide, inputs=torch.eye(3)[:2])
        >>> with torch.no_grad():
        ...     _ = guide.factor("net.weight").mul_(0.5)
        >>> report = monitor.report()
        >>> report.sites[0].ratio, report.collapsed
        (0.5, ())
    """

    def __init__(
        self,
        guide: AutoMuPNormal,
        *,
        inputs: Tensor | Mapping[str, Tensor] | None = None,
        threshold: float = 0.1,
        every: int = 1,
    ) -> None:
        if not isinstance(guide, AutoMuPNormal):
            raise TypeError(
                f"VarianceMonitor needs an AutoMuPNormal guide, got {type(guide).__name__}."
            )
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold={threshold!r}: expected a ratio above 0, at most 1.")
        if isinstance(every, bool) or every < 1:
            raise ValueError(f"every={every!r}: expected a whole number of at least 1.")
        self.guide = guide
        self.threshold = threshold
        self.every = every
        self.reports: list[VarianceReport] = []
        self._layers = _named_layers(guide)
        self._start = _state(guide)
        self._bases = {
            name: _basis(name, self._layers, matrix, self._start)
            for name, matrix in _by_layer(inputs, self._layers).items()
        }

    def __call__(self, epoch: int, history: Any = None) -> None:
        """Keeps a report of every ``every``-th epoch in ``reports``.

        Args:
            epoch: The epoch, from 0.
            history: Unused; ``fit`` passes it.
        """
        if (epoch + 1) % self.every == 0:
            self.reports.append(self.report(epoch))

    @torch.no_grad()
    def report(self, epoch: int | None = None) -> VarianceReport:
        """Compares the guide as it is now with its start.

        Args:
            epoch: A number to label the report with.

        Returns:
            The report.
        """
        now = _state(self.guide)
        return VarianceReport(
            epoch=epoch,
            layers=tuple(self._layer_change(name, now) for name in self._layers),
            sites=tuple(self._site_changes(now)),
            threshold=self.threshold,
            notes=_notes(self._layers),
        )

    def _layer_change(self, name: str, now: State) -> LayerChange:
        groups = self._layers[name]
        squared = torch.stack([_distance(group, now, self._start) for group in groups]).sum()
        names = [site.name for group in groups for site in group.sites]
        shift = sum((now[n][0] - self._start[n][0]).square().sum() for n in names)
        total, total_start = (_variance(groups, state) for state in (now, self._start))
        on_span = off_span = None
        if name in self._bases:
            on, on_start = (
                _span_variance(groups, state, self._bases[name]) for state in (now, self._start)
            )
            rounding = total_start * torch.finfo(self._bases[name].dtype).eps * 100
            on_span = _ratio(on, on_start, rounding)
            off_span = _ratio(total - on, total_start - on_start, rounding)
        return LayerChange(
            name=name,
            sites=tuple(names),
            wasserstein2=squared.clamp_min(0).sqrt().item(),
            mean_shift=float(shift) ** 0.5,
            variance_left=_ratio(total, total_start),
            on_span=on_span,
            off_span=off_span,
        )

    def _site_changes(self, now: State) -> Iterator[SiteChange]:
        for layer, groups in self._layers.items():
            for group in groups:
                for site in group.sites:
                    stds = [
                        _scale(group.covariance, state[site.name]).square().mean().sqrt().item()
                        for state in (self._start, now)
                    ]
                    yield SiteChange(
                        name=site.name,
                        layer=layer,
                        covariance=_described(group.covariance),
                        num_weights=now[site.name][0].numel(),
                        initial_std=stds[0],
                        std=stds[1],
                        ratio=stds[1] / stds[0] if stds[0] else math.nan,
                    )


def _named_layers(guide: AutoMuPNormal) -> dict[str, list[Layer]]:
    """Sites that share noise, together by the network's layer or else by the site's name."""
    layers: dict[str, list[Layer]] = {}
    for group in guide.layers:
        first = group.sites[0]
        # A network that is one layer has no name of its own: "net." is its parameters' prefix.
        layer = "" if first.weight is None else first.weight.weight.layer.rstrip(".")
        name = layer or first.name
        layers.setdefault(name, []).append(group)
    return layers


def _state(guide: AutoMuPNormal) -> dict[str, SiteState]:
    state: dict[str, SiteState] = {}
    for group in guide.layers:
        layer_factor = _copy(guide.layer_factor(group.name))
        for site in group.sites:
            factor = None if group.covariance is None else _copy(guide.factor(site.name))
            state[site.name] = guide.loc(site.name).detach().clone(), factor, layer_factor
    return state


def _copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().clone()


def _joint(group: Layer, state: State) -> tuple[Tensor, Tensor]:
    """Mean ``(P,)`` and factor ``(P,)`` or ``(P, R)`` of sites that share noise."""
    sites = [state[site.name] for site in group.sites]
    loc = torch.cat([mean.flatten() for mean, _, _ in sites])
    if group.covariance is None:
        return loc, torch.zeros_like(loc)
    return loc, torch.cat(
        [group.covariance.rows(f, layer_factor) for _, f, layer_factor in sites if f is not None]
    )


def _matrix(group: Layer, state: State) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Mean ``(n, P)`` and the two factors of sites with a Kronecker product."""
    sites = [state[site.name] for site in group.sites]
    outputs = sites[0][2]
    assert outputs is not None
    outputs = outputs.reshape(-1, outputs.shape[-1])
    loc = torch.cat([mean.reshape(len(outputs), -1) for mean, _, _ in sites], dim=1)
    rows = [f.reshape(-1, f.shape[-1]) for _, f, _ in sites if f is not None]
    return loc, (outputs, torch.cat(rows))


def _distance(group: Layer, now: State, start: State) -> Tensor:
    if group.has_factor:
        return kronecker_wasserstein2_squared(*_matrix(group, now), *_matrix(group, start))
    return wasserstein2_squared(*_joint(group, now), *_joint(group, start))


def _variance(groups: list[Layer], state: State) -> Tensor:
    scales = [
        _scale(group.covariance, state[site.name]) for group in groups for site in group.sites
    ]
    return torch.stack([scale.square().sum() for scale in scales]).sum()


def _scale(covariance: Covariance | None, site: SiteState) -> Tensor:
    loc, factor, layer_factor = site
    if covariance is None or factor is None:
        return torch.zeros_like(loc)
    return covariance.scale(factor, layer_factor)


def _span_variance(groups: list[Layer], state: State, basis: Tensor) -> Tensor:
    """Variance of a linear layer's weights along the basis ``(features, rank)``."""
    total = basis.new_zeros(())
    for group in groups:
        factor = _joint(group, state)[1]
        along: Any = 0.0
        begin = 0
        for site in group.sites:
            rows = _basis_rows(site, state, basis)
            size = state[site.name][0].numel()
            part = factor[begin : begin + size]
            begin += size
            if factor.dim() == 1:
                scales = part.reshape(-1, len(rows))
                total = total + (scales.square() @ rows.square()).sum()
            else:  # (outputs, features, R) along (features, rank)
                along = along + rows.mT @ part.reshape(-1, len(rows), factor.shape[1])
        if factor.dim() == 2:
            total = total + along.square().sum()
    return total


def _basis_rows(site: Site, state: State, basis: Tensor) -> Tensor:
    """The rows of the basis that belong to a weight, or the last one, which is the bias's."""
    return basis[-1:] if _is_bias(site) else basis[: state[site.name][0].shape[-1]]


def _is_bias(site: Site) -> bool:
    return site.weight is not None and site.weight.weight.role == "bias"


def _by_layer(
    inputs: Tensor | Mapping[str, Tensor] | None, layers: Mapping[str, list[Layer]]
) -> Mapping[str, Tensor]:
    if inputs is None:
        return {}
    if not isinstance(inputs, Tensor):
        unknown = [name for name in inputs if name not in layers]
        if unknown:
            raise ValueError(f"inputs names {unknown}, but the layers are {list(layers)}.")
        return inputs
    first = [name for name, groups in layers.items() if _layer_role(groups) == "input"]
    if len(first) != 1 and len(layers) == 1:
        first = list(layers)
    if len(first) != 1:
        raise ValueError(
            f"inputs is one matrix, and it is not clear which layer reads it: the guide has the "
            f"layers {list(layers)}. Write inputs={{layer: matrix}}."
        )
    return {first[0]: inputs}


def _layer_role(groups: list[Layer]) -> str | None:
    weight = groups[0].sites[0].weight
    return None if weight is None else weight.weight.layer_role


def _basis(name: str, layers: Mapping[str, list[Layer]], inputs: Tensor, start: State) -> Tensor:
    """Orthonormal basis of the span of a layer's inputs, with a one for a random bias."""
    sites = [site for group in layers[name] for site in group.sites]
    weights = [site for site in sites if not _is_bias(site)]
    shapes = {site.name: tuple(start[site.name][0].shape) for site in weights}
    features = {shape[-1] for shape in shapes.values() if len(shape) in {1, 2}}
    if len(weights) != 1 or features != set(inputs.shape[1:]) or inputs.dim() != 2:
        raise ValueError(
            f"The inputs of the layer {name!r} have the shape {tuple(inputs.shape)}, and its "
            f"weights {shapes}: (N, features) was expected, for one linear layer whose weight is "
            "(outputs, features)."
        )
    inputs = inputs.detach().to(start[weights[0].name][0])
    if len(weights) < len(sites):
        inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], dim=-1)
    return null_space_projection(inputs).basis


def _notes(layers: Mapping[str, list[Layer]]) -> tuple[str, ...]:
    names = [
        name
        for name, groups in layers.items()
        for group in groups
        if group.covariance is not None
        and not group.covariance.shares_noise
        and any(site.weight is not None and not _is_bias(site) for site in group.sites)
    ]
    if not names:
        return ()
    patterns = ", ".join(f'"{name}.*": LowRank({DEFAULT_RANK})' for name in names)
    return (
        f"The layers {names} are mean-field. A diagonal cannot keep variance in the directions "
        "that the data leave open: it shrinks on every feature that any datum uses. A low-rank "
        f'factor keeps it: covariance={{{patterns}, "*": Diagonal()}}.',
    )


def _described(covariance: Covariance | None) -> str:
    return "point estimate" if covariance is None else str(covariance)


def _ratio(value: Tensor, start: Tensor, rounding: Tensor | float = 0.0) -> float:
    return math.nan if start <= rounding else max(0.0, (value / start).item())


def _share(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{100 * value:.3g} %"
