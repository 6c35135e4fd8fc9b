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
from typing import Any

import torch
from torch import Tensor

from pyro_ibvi._util.checks import check_positive_int
from pyro_ibvi.diagnostics.spread import (
    State,
    is_bias,
    marginal_scale,
    named_layers,
    span_basis,
    span_variance,
    squared_distance,
    state_of,
    total_variance,
)
from pyro_ibvi.diagnostics.variance_report import LayerChange, SiteChange, VarianceReport
from pyro_ibvi.guides.base import MuPGuide
from pyro_ibvi.guides.covariance import Covariance
from pyro_ibvi.guides.normal import AutoMuPNormal
from pyro_ibvi.guides.sites import DEFAULT_RANK, Layer


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
            hint = ""
            if isinstance(guide, MuPGuide):
                hint = ": watch one of its components, VarianceMonitor(guide.components[0])"
            raise TypeError(
                f"VarianceMonitor needs an AutoMuPNormal guide, got {type(guide).__name__}{hint}."
            )
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold={threshold!r}: expected a ratio above 0, at most 1.")
        check_positive_int("every", every)
        self.guide = guide
        self.threshold = threshold
        self.every = every
        self.reports: list[VarianceReport] = []
        self._layers = named_layers(guide)
        self._start = state_of(guide)
        self._bases = {
            name: span_basis(name, self._layers, matrix, self._start)
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
        now = state_of(self.guide)
        return VarianceReport(
            epoch=epoch,
            layers=tuple(self._layer_change(name, now) for name in self._layers),
            sites=tuple(self._site_changes(now)),
            threshold=self.threshold,
            notes=_notes(self._layers),
        )

    def _layer_change(self, name: str, now: State) -> LayerChange:
        groups = self._layers[name]
        squared = torch.stack(
            [squared_distance(group, now, self._start) for group in groups]
        ).sum()
        names = [site.name for group in groups for site in group.sites]
        shift = sum((now[n][0] - self._start[n][0]).square().sum() for n in names)
        total, total_start = (total_variance(groups, state) for state in (now, self._start))
        on_span = off_span = None
        if name in self._bases:
            on, on_start = (
                span_variance(groups, state, self._bases[name]) for state in (now, self._start)
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
                        marginal_scale(group.covariance, state[site.name])
                        .square()
                        .mean()
                        .sqrt()
                        .item()
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


def _notes(layers: Mapping[str, list[Layer]]) -> tuple[str, ...]:
    names = [
        name
        for name, groups in layers.items()
        for group in groups
        if group.covariance is not None
        and not group.covariance.shares_noise
        and any(site.weight is not None and not is_bias(site) for site in group.sites)
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
