r"""Covariance structures of a layer's weights :math:`w = \text{loc} + S z`.

The weights of one layer (its weight tensor and its bias) are jointly Gaussian with mean ``loc``
and covariance :math:`S S^\top`, where ``z`` is standard normal noise. ``S`` is unconstrained and
free to change sign, so that gradient steps act on it as they act on the mean. A covariance says
what shape ``S`` has, how it starts, and how noise becomes weights; each site of the layer holds
its own rows of ``S``.

=========================== ============================ ===========================
covariance                  factor of a site             noise of the layer
=========================== ============================ ===========================
``Diagonal()``              shape of the site            one number per weight
``LowRank(R)``              shape of the site + ``(R,)`` ``(R,)``, shared by the sites
``LowRank(None)``           the same, ``R = P``          ``(P,)``, ``P`` weights in all
``Kronecker(R_in, R_out)``  ``shape[1:] + (R_in,)``, and ``(R_out, R_in)``, shared by the
                            one for the layer,           sites
                            ``shape[:1] + (R_out,)``
``Multiplicative(std)``     one number per input, in a   one number per input
                            shape that goes with the
                            site's
=========================== ============================ ===========================

The noise of :class:`~pyro_ibvi.guides.multiplicative.Multiplicative` is relative to the mean, so
there ``S`` depends on ``loc``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Size, Tensor

from pyro_ibvi._util.checks import is_whole
from pyro_ibvi.guides.buffers import BufferPool, DiagonalDraw, LowRankDraw
from pyro_ibvi.mup.roles import WeightRole


class Covariance(Protocol):
    """What the guide asks of a covariance structure."""

    @property
    def shares_noise(self) -> bool:
        """Whether the sites of a layer share their noise."""
        ...

    @property
    def is_held(self) -> bool:
        """Whether the sites' factors keep their start."""
        ...

    def init_factors(
        self, scales: Sequence[Tensor], roles: Sequence[WeightRole | None] = ()
    ) -> list[Tensor]:
        """Factors at the start of a layer's sites, by which their marginals are the prior's.

        Args:
            scales: Standard deviations of the prior, one tensor per site, of its shape.
            roles: The sites' roles in a network, for structures that look at more than shapes.

        Returns:
            The factors, one per site.
        """
        ...

    def init_layer_factor(self, scales: Sequence[Tensor]) -> Tensor | None:
        """The factor that the sites of a layer have in common, if the structure has one.

        Args:
            scales: As for :meth:`init_factors`.

        Returns:
            The factor, or None.
        """
        ...

    def noise_rank(self, factor: Tensor) -> int | None:
        """Number of noise variables that a layer shares, by which its rates are chosen.

        Args:
            factor: The factor of a site.

        Returns:
            The number, or None if each weight has noise of its own.
        """
        ...

    def noise_shape(self, factor: Tensor) -> Size:
        """Shape of the noise that one draw of a site needs, or of a row of it.

        Where there is a layer factor, the noise has one such row for each of its columns, and the
        layer factor is applied to them once for all sites.

        Args:
            factor: The factor of a site.

        Returns:
            The shape.
        """
        ...

    def draw(
        self, loc: Tensor, factor: Tensor, noise: Tensor, pool: BufferPool | None = None
    ) -> Tensor:
        """The weights ``loc + S z``.

        Args:
            loc: Mean of a site, of its shape.
            factor: Its factor.
            noise: Standard normal, of the shape ``(*draws, *noise_shape)``; where there is a layer
                factor, what that makes of the layer's noise.
            pool: Where memory for large tensors may come from.

        Returns:
            The weights, of the shape ``(*draws, *loc.shape)``.
        """
        ...

    def scale(
        self, factor: Tensor, layer_factor: Tensor | None = None, loc: Tensor | None = None
    ) -> Tensor:
        """Marginal standard deviation of each weight of a site.

        Args:
            factor: The site's factor.
            layer_factor: That of its layer, for structures that have one.
            loc: The site's mean, for structures whose ``S`` depends on it.

        Returns:
            The standard deviations, of the site's shape.
        """
        ...

    def independent_scale(self, loc: Tensor, factor: Tensor) -> Tensor | None:
        """The same where all weights of a site are independent.

        Args:
            loc: The site's mean.
            factor: The site's factor.

        Returns:
            The standard deviations, of the site's shape, or None where weights are dependent.
        """
        ...

    def rows(
        self, factor: Tensor, layer_factor: Tensor | None = None, loc: Tensor | None = None
    ) -> Tensor:
        """The rows of ``S`` of a flattened site of ``P`` weights.

        Args:
            factor: As for :meth:`scale`.
            layer_factor: Likewise.
            loc: Likewise.

        Returns:
            Shape ``(P, R)`` for ``R`` noise variables, or ``(P,)`` for a diagonal.
        """
        ...

    def dense(
        self,
        factors: Sequence[Tensor],
        layer_factor: Tensor | None = None,
        locs: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Covariance matrix of the flattened, concatenated sites of a layer.

        Args:
            factors: The factors of the sites.
            layer_factor: That of the layer, for structures that have one.
            locs: The sites' means, for structures whose ``S`` depends on them.

        Returns:
            Shape ``(P, P)`` for ``P`` weights in all.
        """
        ...


@dataclass(frozen=True)
class Diagonal:
    """Independent weights (mean-field): ``S`` is diagonal, one entry per weight.

    Under implicit regularization a diagonal factor cannot keep variance in the null space of the
    data: it shrinks on every feature that any datum uses.

    Example:
        >>> (factor,) = Diagonal().init_factors([torch.full((3, 2), 0.5)])
        >>> factor.shape, Diagonal().dense([factor]).diagonal()[0].item()
        (torch.Size([3, 2]), 0.25)
    """

    shares_noise: ClassVar[bool] = False
    is_held: ClassVar[bool] = False

    def init_factors(
        self, scales: Sequence[Tensor], roles: Sequence[WeightRole | None] = ()
    ) -> list[Tensor]:
        """The prior's standard deviations themselves, so that the start is the prior exactly."""
        return [scale.clone() for scale in scales]

    def init_layer_factor(self, scales: Sequence[Tensor]) -> None:
        """There is none."""

    def noise_rank(self, factor: Tensor) -> None:
        """Every weight has noise of its own."""

    def noise_shape(self, factor: Tensor) -> Size:
        """Shape of the site."""
        return factor.shape

    def draw(
        self, loc: Tensor, factor: Tensor, noise: Tensor, pool: BufferPool | None = None
    ) -> Tensor:
        """The weights ``loc + S * z``."""
        if pool is not None and noise.shape == loc.shape and pool.keeps(factor):
            return DiagonalDraw.apply(loc, factor, noise, pool)
        return torch.addcmul(loc, factor, noise)

    def scale(
        self, factor: Tensor, layer_factor: Tensor | None = None, loc: Tensor | None = None
    ) -> Tensor:
        """Marginal standard deviation ``|S|``."""
        return factor.abs()

    def independent_scale(self, loc: Tensor, factor: Tensor) -> Tensor:
        """All weights are independent."""
        return factor.abs()

    def rows(
        self, factor: Tensor, layer_factor: Tensor | None = None, loc: Tensor | None = None
    ) -> Tensor:
        """The entries of ``S``, shape ``(P,)``."""
        return factor.reshape(-1)

    def dense(
        self,
        factors: Sequence[Tensor],
        layer_factor: Tensor | None = None,
        locs: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Covariance matrix, shape ``(P, P)``."""
        return torch.cat([factor.reshape(-1) for factor in factors]).square().diag()


@dataclass(frozen=True)
class LowRank:
    r"""A factor with ``R`` columns: all weights of a layer share ``R`` noise variables.

    At the start each row of ``S`` is a random direction whose length is the prior's standard
    deviation, so that every weight's marginal is the prior's; the full factor starts at the
    prior's covariance itself.

    Attributes:
        rank: Number ``R`` of columns, at most the number ``P`` of weights in the layer: a larger
            one is reduced to ``P``. None is the full factor, ``R = P``.

    Example:
        >>> weight, bias = LowRank(2).init_factors([torch.ones(3, 4), torch.ones(3)])
        >>> weight.shape, bias.shape
        (torch.Size([3, 4, 2]), torch.Size([3, 2]))
        >>> LowRank(2).dense([weight, bias]).shape
        torch.Size([15, 15])
    """

    rank: int | None
    shares_noise: ClassVar[bool] = True
    is_held: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_rank("LowRank", self.rank)

    def init_factors(
        self, scales: Sequence[Tensor], roles: Sequence[WeightRole | None] = ()
    ) -> list[Tensor]:
        """Factors whose rows have the prior's standard deviations as lengths."""
        sizes = [scale.numel() for scale in scales]
        rows = unit_rows(sum(sizes), self.rank, like=scales[0])
        return [
            part.reshape(*scale.shape, -1) * scale.unsqueeze(-1)
            for part, scale in zip(rows.split(sizes), scales, strict=True)
        ]

    def init_layer_factor(self, scales: Sequence[Tensor]) -> None:
        """There is none."""

    def noise_rank(self, factor: Tensor) -> int:
        """Number of columns."""
        return factor.shape[-1]

    def noise_shape(self, factor: Tensor) -> Size:
        """``(R,)``."""
        return factor.shape[-1:]

    def draw(
        self, loc: Tensor, factor: Tensor, noise: Tensor, pool: BufferPool | None = None
    ) -> Tensor:
        """The weights ``loc + S @ z``, in one pass over ``S`` and without a copy of it."""
        if noise.dim() == 1 and pool is not None and pool.keeps(factor):
            return LowRankDraw.apply(loc, factor, noise, pool)
        rows = self.rows(factor)
        if noise.dim() == 1:
            return torch.addmv(loc.reshape(-1), rows, noise).view(loc.shape)
        flat = torch.addmm(loc.reshape(-1), noise.reshape(-1, noise.shape[-1]), rows.mT)
        return flat.view(*noise.shape[:-1], *loc.shape)

    def scale(
        self, factor: Tensor, layer_factor: Tensor | None = None, loc: Tensor | None = None
    ) -> Tensor:
        """Marginal standard deviation: the length of each row of ``S``."""
        return torch.linalg.vector_norm(factor, dim=-1)

    def independent_scale(self, loc: Tensor, factor: Tensor) -> None:
        """Weights depend on one another."""

    def rows(
        self, factor: Tensor, layer_factor: Tensor | None = None, loc: Tensor | None = None
    ) -> Tensor:
        """The rows of ``S``, shape ``(P, R)``, a view."""
        return factor.reshape(-1, factor.shape[-1])

    def dense(
        self,
        factors: Sequence[Tensor],
        layer_factor: Tensor | None = None,
        locs: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Covariance matrix, shape ``(P, P)``."""
        rows = torch.cat([self.rows(factor) for factor in factors])
        return rows @ rows.mT


def unit_rows(num_rows: int, rank: int | None, like: Tensor) -> Tensor:
    """Random directions, or the identity at full rank.

    Args:
        num_rows: Number of rows.
        rank: Number of columns, None for the identity.
        like: A tensor of the wanted type and device.

    Returns:
        The rows, of length one.
    """
    if rank is None or rank >= num_rows:
        return torch.eye(num_rows, dtype=like.dtype, device=like.device)
    rows = torch.randn(num_rows, rank, dtype=like.dtype, device=like.device)
    return rows / rows.norm(dim=-1, keepdim=True)


def check_rank(name: str, rank: Any) -> None:
    """Checks a number of columns.

    Args:
        name: The covariance that has it.
        rank: The number, or None.

    Raises:
        ValueError: If it is not a positive whole number.
    """
    if rank is not None and (not is_whole(rank) or rank < 1):
        raise ValueError(
            f"{name} needs a whole number of columns, at least 1, or None for the full factor; "
            f"got {rank!r}."
        )
