"""A covariance of a layer's outputs and one of its inputs, as a Kronecker product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Size, Tensor

from pyro_ibvi.guides.buffers import BufferPool
from pyro_ibvi.guides.covariance import check_rank, unit_rows
from pyro_ibvi.mup.roles import WeightRole
from pyro_ibvi.theory.kronecker_divergences import separate_scales


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
    is_held: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for rank in (self.rank_in, self.rank_out):
            check_rank("Kronecker", rank)

    def init_factors(
        self, scales: Sequence[Tensor], roles: Sequence[WeightRole | None] = ()
    ) -> list[Tensor]:
        """Each site's rows of :math:`S_{in}`."""
        _, lengths = _output_and_input_scales(scales)
        sizes = [scale.shape[1:].numel() for scale in scales]
        rows = unit_rows(len(lengths), self.rank_in, like=lengths) * lengths.unsqueeze(-1)
        return [
            part.reshape(*scale.shape[1:], -1)
            for part, scale in zip(rows.split(sizes), scales, strict=True)
        ]

    def init_layer_factor(self, scales: Sequence[Tensor]) -> Tensor:
        """The layer's :math:`S_{out}`."""
        lengths, _ = _output_and_input_scales(scales)
        rows = unit_rows(len(lengths), self.rank_out, like=lengths) * lengths.unsqueeze(-1)
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

    def scale(
        self, factor: Tensor, layer_factor: Tensor | None = None, loc: Tensor | None = None
    ) -> Tensor:
        """Marginal standard deviation: the product of the lengths of two rows."""
        inputs = torch.linalg.vector_norm(factor, dim=-1)
        outputs = torch.linalg.vector_norm(_given(layer_factor), dim=-1)
        return outputs[(..., *(None,) * inputs.dim())] * inputs

    def independent_scale(self, loc: Tensor, factor: Tensor) -> None:
        """Weights depend on one another."""

    def rows(
        self, factor: Tensor, layer_factor: Tensor | None = None, loc: Tensor | None = None
    ) -> Tensor:
        """The product of the site's factors, shape ``(P, R_out R_in)``: larger than both."""
        outputs = _given(layer_factor)
        outputs = outputs.reshape(-1, outputs.shape[-1])
        return torch.kron(outputs, factor.reshape(-1, factor.shape[-1]))

    def dense(
        self,
        factors: Sequence[Tensor],
        layer_factor: Tensor | None = None,
        locs: Sequence[Tensor] | None = None,
    ) -> Tensor:
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


def _given(layer_factor: Tensor | None) -> Tensor:
    if layer_factor is None:
        raise ValueError(
            "Kronecker has two factors, and the layer's is missing: pass what "
            "init_layer_factor(scales) or guide.layer_factor(name) gives."
        )
    return layer_factor
