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
=========================== ============================ ===========================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Size, Tensor

from pyro_ibvi import _draws
from pyro_ibvi._buffers import BufferPool


class Covariance(Protocol):
    """What the guide asks of a covariance structure."""

    @property
    def shares_noise(self) -> bool:
        """Whether the sites of a layer share their noise."""
        ...

    def init_factors(self, scales: Sequence[Tensor]) -> list[Tensor]:
        """Factors whose marginal standard deviations are ``scales``, one tensor per site."""
        ...

    def noise_rank(self, factor: Tensor) -> int | None:
        """Number of noise variables that a layer shares, or None if each weight has its own."""
        ...

    def noise_shape(self, factor: Tensor) -> Size:
        """Shape of the noise that one draw of a site needs."""
        ...

    def draw(
        self, loc: Tensor, factor: Tensor, noise: Tensor, pool: BufferPool | None = None
    ) -> Tensor:
        """The weights ``loc + S z``; leading dimensions of ``noise`` are independent draws.

        Memory for large tensors may come from ``pool``.
        """
        ...

    def scale(self, factor: Tensor) -> Tensor:
        """Marginal standard deviation of each weight of a site."""
        ...

    def dense(self, factors: Sequence[Tensor]) -> Tensor:
        """Covariance matrix of the flattened, concatenated sites of a layer."""
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

    def init_factors(self, scales: Sequence[Tensor]) -> list[Tensor]:
        """The prior's standard deviations themselves, so that the start is the prior exactly."""
        return [scale.clone() for scale in scales]

    def noise_rank(self, factor: Tensor) -> None:
        """Every weight has noise of its own."""

    def noise_shape(self, factor: Tensor) -> Size:
        """Shape of the site."""
        return factor.shape

    def draw(
        self, loc: Tensor, factor: Tensor, noise: Tensor, pool: BufferPool | None = None
    ) -> Tensor:
        """The weights ``loc + S * z``."""
        if pool is None or not pool.keeps(factor):
            return torch.addcmul(loc, factor, noise)
        return _draws.DiagonalDraw.apply(loc, factor, noise, pool)

    def scale(self, factor: Tensor) -> Tensor:
        """Marginal standard deviation ``|S|``."""
        return factor.abs()

    def dense(self, factors: Sequence[Tensor]) -> Tensor:
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

    def __post_init__(self) -> None:
        rank = self.rank
        if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
            raise ValueError(
                f"LowRank needs a whole number of columns, at least 1, or None for the full "
                f"factor; got {rank!r}."
            )

    def init_factors(self, scales: Sequence[Tensor]) -> list[Tensor]:
        """Factors whose rows have the prior's standard deviations as lengths."""
        sizes = [scale.numel() for scale in scales]
        num_weights = sum(sizes)
        rank = num_weights if self.rank is None else min(self.rank, num_weights)
        if rank == num_weights:
            rows = torch.eye(num_weights, dtype=scales[0].dtype, device=scales[0].device)
        else:
            rows = torch.randn(num_weights, rank, dtype=scales[0].dtype, device=scales[0].device)
            rows /= rows.norm(dim=-1, keepdim=True)
        return [
            part.reshape(*scale.shape, rank) * scale.unsqueeze(-1)
            for part, scale in zip(rows.split(sizes), scales, strict=True)
        ]

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
            return _draws.LowRankDraw.apply(loc, factor, noise, pool)
        rows = factor.reshape(-1, factor.shape[-1])
        if noise.dim() == 1:
            return torch.addmv(loc.reshape(-1), rows, noise).view(loc.shape)
        flat = torch.addmm(loc.reshape(-1), noise.reshape(-1, noise.shape[-1]), rows.mT)
        return flat.view(*noise.shape[:-1], *loc.shape)

    def scale(self, factor: Tensor) -> Tensor:
        """Marginal standard deviation: the length of each row of ``S``."""
        return torch.linalg.vector_norm(factor, dim=-1)

    def dense(self, factors: Sequence[Tensor]) -> Tensor:
        """Covariance matrix, shape ``(P, P)``."""
        rows = torch.cat([factor.reshape(-1, factor.shape[-1]) for factor in factors])
        return rows @ rows.mT
