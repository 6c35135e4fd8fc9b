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
=========================== ============================ ===========================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Size, Tensor

from pyro_ibvi.guides import draws as _draws
from pyro_ibvi.guides.buffers import BufferPool
from pyro_ibvi.theory.kronecker_divergences import separate_scales


class Covariance(Protocol):
    """What the guide asks of a covariance structure."""

    @property
    def shares_noise(self) -> bool:
        """Whether the sites of a layer share their noise."""
        ...

    def init_factors(self, scales: Sequence[Tensor]) -> list[Tensor]:
        """Factors whose marginal standard deviations are ``scales``, one tensor per site."""
        ...

    def init_layer_factor(self, scales: Sequence[Tensor]) -> Tensor | None:
        """The factor that the sites of a layer have in common, if the structure has one."""
        ...

    def noise_rank(self, factor: Tensor) -> int | None:
        """Number of noise variables that a layer shares, or None if each weight has its own."""
        ...

    def noise_shape(self, factor: Tensor) -> Size:
        """Shape of the noise that one draw of a site needs, or of a row of it.

        Where there is a layer factor, the noise has one such row for each of its columns, and the
        layer factor is applied to them once for all sites.
        """
        ...

    def draw(
        self, loc: Tensor, factor: Tensor, noise: Tensor, pool: BufferPool | None = None
    ) -> Tensor:
        """The weights ``loc + S z``; leading dimensions of ``noise`` are independent draws.

        Where there is a layer factor, ``noise`` is what it makes of the layer's noise. Memory for
        large tensors may come from ``pool``.
        """
        ...

    def scale(self, factor: Tensor, layer_factor: Tensor | None = None) -> Tensor:
        """Marginal standard deviation of each weight of a site."""
        ...

    def rows(self, factor: Tensor, layer_factor: Tensor | None = None) -> Tensor:
        """The rows of ``S`` of a flattened site, ``(P, R)``, or ``(P,)`` for a diagonal."""
        ...

    def dense(self, factors: Sequence[Tensor], layer_factor: Tensor | None = None) -> Tensor:
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
            return _draws.DiagonalDraw.apply(loc, factor, noise, pool)
        return torch.addcmul(loc, factor, noise)

    def scale(self, factor: Tensor, layer_factor: Tensor | None = None) -> Tensor:
        """Marginal standard deviation ``|S|``."""
        return factor.abs()

    def rows(self, factor: Tensor, layer_factor: Tensor | None = None) -> Tensor:
        """The entries of ``S``, shape ``(P,)``."""
        return factor.reshape(-1)

    def dense(self, factors: Sequence[Tensor], layer_factor: Tensor | None = None) -> Tensor:
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
        _check_rank("LowRank", self.rank)

    def init_factors(self, scales: Sequence[Tensor]) -> list[Tensor]:
        """Factors whose rows have the prior's standard deviations as lengths."""
        sizes = [scale.numel() for scale in scales]
        rows = _unit_rows(sum(sizes), self.rank, like=scales[0])
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
            return _draws.LowRankDraw.apply(loc, factor, noise, pool)
        rows = self.rows(factor)
        if noise.dim() == 1:
            return torch.addmv(loc.reshape(-1), rows, noise).view(loc.shape)
        flat = torch.addmm(loc.reshape(-1), noise.reshape(-1, noise.shape[-1]), rows.mT)
        return flat.view(*noise.shape[:-1], *loc.shape)

    def scale(self, factor: Tensor, layer_factor: Tensor | None = None) -> Tensor:
        """Marginal standard deviation: the length of each row of ``S``."""
        return torch.linalg.vector_norm(factor, dim=-1)

    def rows(self, factor: Tensor, layer_factor: Tensor | None = None) -> Tensor:
        """The rows of ``S``, shape ``(P, R)``, a view."""
        return factor.reshape(-1, factor.shape[-1])

    def dense(self, factors: Sequence[Tensor], layer_factor: Tensor | None = None) -> Tensor:
        """Covariance matrix, shape ``(P, P)``."""
        rows = torch.cat([self.rows(factor) for factor in factors])
        return rows @ rows.mT


@dataclass(frozen=True)
class Kronecker:
    r"""A Kronecker product: one covariance of a layer's outputs and one of its inputs.

    The weights of a layer are a matrix :math:`W` of shape ``(n_out, P_in)``: each site reshaped
    to ``(site.shape[0], -1)``, a bias to one column, side by side. With standard normal
    :math:`Z` of shape ``(R_out, R_in)``, one for the layer and a draw,

    .. math:: W = \text{loc} + S_{out} Z S_{in}^\top, \qquad
        \mathrm{Cov}(w_{ij}, w_{kl}) = (S_{out} S_{out}^\top)_{ik} (S_{in} S_{in}^\top)_{jl},

    so the standard deviation of :math:`w_{ij}` is :math:`|S_{out,i}|\,|S_{in,j}|`. Of the two
    factors each site keeps its rows of :math:`S_{in}`, in the shape ``(*site.shape[1:], R_in)``
    (a bias: ``(R_in,)``), and the layer keeps :math:`S_{out}`, ``(n_out, R_out)``. The memory is
    ``P_in R_in + n_out R_out``, where a low-rank factor takes ``n_out P_in R``.

    At the start the rows of :math:`S_{in}` are random directions whose lengths are the prior's
    standard deviations, and those of :math:`S_{out}` random directions of length one, so that
    every weight's marginal is the prior's; a full factor starts diagonal. Standard deviations
    that vary along the outputs too must be products :math:`a_i b_j`; then the lengths are these.

    The sites of a layer must have the same first dimension. A vector counts as ``n_out`` by 1.
    Where the first dimension is that of the inputs (a transposed convolution's weight, an
    embedding's table), the two factors change places, with each other's learning rates.
    Noise of fixed rank grows in spectral norm as the layer widens, so learning rates transfer
    less well than with a low-rank factor, see :class:`~pyro_ibvi.MaximalUpdate`.

    Attributes:
        rank_in: Number ``R_in`` of columns of :math:`S_{in}`, reduced to ``P_in`` if larger. None
            is the full factor.
        rank_out: Number ``R_out`` of columns of :math:`S_{out}`, reduced to ``n_out`` if larger.
            None is the full factor.

    Example:
        >>> scales, covariance = [torch.ones(3, 4), torch.ones(3)], Kronecker(2, 2)
        >>> factors, layer_factor = (
        ...     covariance.init_factors(scales),
        ...     covariance.init_layer_factor(scales),
        ... )
        >>> [tuple(factor.shape) for factor in (*factors, layer_factor)]
        [(4, 2), (2,), (3, 2)]
        >>> covariance.dense(factors, layer_factor).shape
        torch.Size([15, 15])
    """

    rank_in: int | None
    rank_out: int | None
    shares_noise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for rank in (self.rank_in, self.rank_out):
            _check_rank("Kronecker", rank)

    def init_factors(self, scales: Sequence[Tensor]) -> list[Tensor]:
        """Each site's rows of :math:`S_{in}`."""
        _, lengths = _output_and_input_scales(scales)
        sizes = [scale.shape[1:].numel() for scale in scales]
        rows = _unit_rows(len(lengths), self.rank_in, like=lengths) * lengths.unsqueeze(-1)
        return [
            part.reshape(*scale.shape[1:], -1)
            for part, scale in zip(rows.split(sizes), scales, strict=True)
        ]

    def init_layer_factor(self, scales: Sequence[Tensor]) -> Tensor:
        """The layer's :math:`S_{out}`."""
        lengths, _ = _output_and_input_scales(scales)
        rows = _unit_rows(len(lengths), self.rank_out, like=lengths) * lengths.unsqueeze(-1)
        return rows.reshape(*scales[0].shape[:1], -1)

    def noise_rank(self, factor: Tensor) -> int:
        """Number of columns of :math:`S_{in}`."""
        return factor.shape[-1]

    def noise_shape(self, factor: Tensor) -> Size:
        """``(R_in,)``."""
        return factor.shape[-1:]

    def draw(
        self, loc: Tensor, factor: Tensor, noise: Tensor, pool: BufferPool | None = None
    ) -> Tensor:
        r"""The weights, from the layer's :math:`S_{out} Z`, without a copy of a factor."""
        rows = factor.reshape(-1, factor.shape[-1])
        if noise.dim() == 2:
            return torch.addmm(loc.reshape(len(noise), -1), noise, rows.mT).view(loc.shape)
        return loc + (noise @ rows.mT).view(*noise.shape[:-2], *loc.shape)

    def scale(self, factor: Tensor, layer_factor: Tensor | None = None) -> Tensor:
        """Marginal standard deviation: the product of the lengths of two rows."""
        inputs = torch.linalg.vector_norm(factor, dim=-1)
        outputs = torch.linalg.vector_norm(_given(layer_factor), dim=-1)
        return outputs[(..., *(None,) * inputs.dim())] * inputs

    def rows(self, factor: Tensor, layer_factor: Tensor | None = None) -> Tensor:
        """The product of the site's factors, shape ``(P, R_out R_in)``: larger than both."""
        outputs = _given(layer_factor)
        outputs = outputs.reshape(-1, outputs.shape[-1])
        return torch.kron(outputs, factor.reshape(-1, factor.shape[-1]))

    def dense(self, factors: Sequence[Tensor], layer_factor: Tensor | None = None) -> Tensor:
        """Covariance matrix, shape ``(P, P)``, in the order of the flattened sites."""
        outputs = _given(layer_factor)
        outputs = outputs.reshape(-1, outputs.shape[-1])
        of_outputs = outputs @ outputs.mT
        rows = [factor.reshape(-1, factor.shape[-1]) for factor in factors]
        # A block for each pair of sites: each is flattened by itself.
        blocks = [torch.cat([torch.kron(of_outputs, a @ b.mT) for b in rows], 1) for a in rows]
        return torch.cat(blocks)


def _output_and_input_scales(scales: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Lengths of the rows of the two Kronecker factors for given standard deviations."""
    sizes = [tuple(scale.shape[:1]) for scale in scales]
    if len(set(sizes)) > 1:
        raise ValueError(
            f"Kronecker needs sites with the same first dimension, the layer's outputs, and "
            f"theirs are of the sizes {sizes}: give one of them another covariance, or leave it "
            f"a point estimate."
        )
    num_outputs = scales[0].shape[:1].numel()
    pair = separate_scales(torch.cat([scale.reshape(num_outputs, -1) for scale in scales], dim=1))
    if pair is None:
        raise ValueError(
            "Kronecker can only start at standard deviations that are products a_i b_j of one "
            "number for each output and one for each input, and the prior's are not: give the "
            "prior such ones, or choose LowRank or Diagonal."
        )
    return pair


def _unit_rows(num_rows: int, rank: int | None, like: Tensor) -> Tensor:
    """Random directions, or the identity at full rank."""
    if rank is None or rank >= num_rows:
        return torch.eye(num_rows, dtype=like.dtype, device=like.device)
    rows = torch.randn(num_rows, rank, dtype=like.dtype, device=like.device)
    return rows / rows.norm(dim=-1, keepdim=True)


def _check_rank(name: str, rank: object) -> None:
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise ValueError(
            f"{name} needs a whole number of columns, at least 1, or None for the full factor; "
            f"got {rank!r}."
        )


def _given(layer_factor: Tensor | None) -> Tensor:
    if layer_factor is None:
        raise ValueError(
            "Kronecker has two factors, and the layer's is missing: pass what "
            "init_layer_factor(scales) or guide.layer_factor(name) gives."
        )
    return layer_factor
