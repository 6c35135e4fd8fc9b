r"""The law of one site of a guide, :math:`w = \text{loc} + S z`, with a density on request."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor
from torch.distributions import (
    Distribution,
    Normal,
    constraints,
    kl_divergence,
    register_kl,
)

from pyro_ibvi._util.distributions import per_element
from pyro_ibvi._util.random_state import thread_generator
from pyro_ibvi.guides.buffers import BufferPool
from pyro_ibvi.guides.covariance import Covariance
from pyro_ibvi.guides.noise import fill_normal
from pyro_ibvi.theory.divergences import triangular_root

_ONE = Size(())


class SharedNoise:
    """Standard normal noise of a layer for one call of the guide, made at the first draw.

    The sites of the layer share it. A site that draws once more begins a new round of noise.

    Args:
        layer_factor: Factor ``(..., R)`` that the layer's sites have in common, if there is one;
            it is applied to the noise once for all of them.
        pool: Gives memory for large tensors.
    """

    def __init__(self, layer_factor: Tensor | None = None, pool: BufferPool | None = None) -> None:
        self.layer_factor = layer_factor
        self.pool = pool
        self._noise: dict[Size, Tensor] = {}
        self._served: list[Tensor] = []

    def draw(
        self, loc: Tensor, factor: Tensor, covariance: Covariance, draws: Size = _ONE
    ) -> Tensor:
        """Draws the weights of one site of the layer.

        Args:
            loc: Mean.
            factor: Factor of the covariance.
            covariance: The covariance structure.
            draws: Shape of independent draws.

        Returns:
            The weights, the draws' dimensions in front.
        """
        shape = draws + covariance.noise_shape(factor)
        if covariance.shares_noise:
            if any(factor is served for served in self._served):
                self._noise.clear()
                self._served.clear()
            self._served.append(factor)
            noise = self.get(shape, loc)
        else:
            noise = self._new(shape, loc)
        return covariance.draw(loc, factor, noise, self.pool)

    def get(self, shape: Size, like: Tensor) -> Tensor:
        """The noise of a shape, the same for every site of the layer that asks.

        Args:
            shape: Shape of the noise of a site; a layer factor puts its rows before the last
                dimension.
            like: A tensor of the wanted type and device.

        Returns:
            The noise.
        """
        if shape not in self._noise:
            if self.layer_factor is None:
                noise = self._new(shape, like)
            else:
                rows = self.layer_factor.reshape(-1, self.layer_factor.shape[-1])
                drawn = Size((*shape[:-1], rows.shape[-1], shape[-1]))
                noise = rows @ self._new(drawn, like)
            self._noise[shape] = noise
        return self._noise[shape]

    def _new(self, shape: Size, like: Tensor) -> Tensor:
        if torch._C._are_functorch_transforms_active():
            generator = thread_generator(like.device)
            return torch.randn(shape, dtype=like.dtype, device=like.device, generator=generator)
        return fill_normal((self.pool or BufferPool()).empty(shape, like))


class FactorNormal(TorchDistribution):
    r"""A Gaussian given by its mean and a factor of its covariance.

    A draw costs one multiply-add. The density is computed only when it is asked for, and it is
    that of the site given the sites of the same layer that were drawn before, so that the sum
    over a layer is the layer's joint density.

    Args:
        loc: Mean, shape ``batch_shape + event_shape``.
        factor: Factor of the covariance, see :mod:`pyro_ibvi.guides.covariance`.
        covariance: The covariance structure.
        event_dim: Number of event dimensions.
        layer_factor: Factor that the sites of a layer have in common, for structures with one.
        shared: Noise that the sites of a layer share, for structures that share it.
        previous: Mean, factor and value of the layer's sites that were drawn before.

    Example:
        >>> from pyro_ibvi import Diagonal
        >>> law = FactorNormal(torch.zeros(3), -torch.ones(3), Diagonal(), event_dim=1)
        >>> law.log_prob(torch.zeros(3)).item() == Normal(0.0, 1.0).log_prob(torch.zeros(3)).sum()
        tensor(True)
    """

    has_rsample = True
    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012

    def __init__(
        self,
        loc: Tensor,
        factor: Tensor,
        covariance: Covariance,
        *,
        event_dim: int,
        layer_factor: Tensor | None = None,
        shared: SharedNoise | None = None,
        previous: Sequence[tuple[Tensor, Tensor, Tensor]] = (),
    ) -> None:
        self.loc = loc
        self.factor = factor
        self.covariance = covariance
        self.layer_factor = layer_factor
        self.shared = shared
        self.previous = previous
        cut = loc.dim() - event_dim
        super().__init__(loc.shape[:cut], loc.shape[cut:], validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """The real numbers."""
        return constraints.independent(constraints.real, self.event_dim)

    @property
    def mean(self) -> Tensor:
        """The mean."""
        return self.loc.expand(self.shape())

    @property
    def variance(self) -> Tensor:
        """The marginal variance of each entry."""
        scale = self.covariance.scale(self.factor, self.layer_factor, self.loc)
        return scale.square().expand(self.shape())

    def expand(self, batch_shape: Any, _instance: Any = None) -> FactorNormal:
        """The same law for a larger batch of independent draws.

        Args:
            batch_shape: The new batch shape.
            _instance: Unused; torch's protocol.

        Returns:
            The expanded law.
        """
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__)
        new._batch_shape = Size(batch_shape)
        return new

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws weights, differentiably.

        Args:
            sample_shape: Shape of independent draws.

        Returns:
            The weights, shape ``sample_shape + batch_shape + event_shape``.

        Raises:
            ValueError: If the law was expanded along dimensions that its parameters have.
        """
        own = self.loc.dim() - self.event_dim
        batch_shape = Size(sample_shape) + self.batch_shape
        # Draws to the left of the parameters' own dimensions get noise of their own; a plate
        # that the parameters do not have is one more draw.
        draws = batch_shape[: len(batch_shape) - own]
        if batch_shape[len(batch_shape) - own :] != self.loc.shape[:own]:
            raise ValueError(
                f"A law of batch shape {tuple(self.loc.shape[:own])} cannot be drawn in plates "
                f"of shape {tuple(batch_shape)}."
            )
        noise = SharedNoise(self.layer_factor) if self.shared is None else self.shared
        return noise.draw(self.loc, self.factor, self.covariance, draws)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density in nats, given the sites of the layer that were drawn before.

        Args:
            value: Weights.

        Returns:
            The log-density, of the batch shape.

        Raises:
            RuntimeError: If the covariance is degenerate.
        """
        scale = self.covariance.independent_scale(self.loc, self.factor)
        if scale is not None:
            density = Normal(self.loc, scale, validate_args=False).log_prob(value)
            return density.sum(dim=tuple(range(-self.event_dim, 0))) if self.event_dim else density
        if not self.covariance.shares_noise:
            _raise_degenerate(self.factor.numel(), self.loc.numel())
        sites = [*self.previous, (self.loc, self.factor, value)]
        density = _joint_log_prob(sites, self.layer_factor)
        if not self.previous:
            return density
        return density - _joint_log_prob(self.previous, self.layer_factor)


def _joint_log_prob(
    sites: Sequence[tuple[Tensor, Tensor, Tensor]], layer_factor: Tensor | None
) -> Tensor:
    """Log-density of the values of several sites of a layer."""
    rows = torch.cat([factor.reshape(-1, factor.shape[-1]) for _, factor, _ in sites])
    # Without a layer factor the weights are one row of a matrix, with one they have its rows.
    outputs = rows.new_ones(1, 1) if layer_factor is None else layer_factor
    outputs = outputs.reshape(-1, outputs.shape[-1])
    _check_not_degenerate(outputs, rows)
    residual = torch.cat(
        [
            (value - loc).reshape(*value.shape[: value.dim() - loc.dim()], len(outputs), -1)
            for loc, _, value in sites
        ],
        dim=-1,
    )
    root = triangular_root(rows)
    white = torch.linalg.solve_triangular(root, residual.mT, upper=False)
    log_det = len(outputs) * root.diagonal().abs().log().sum()
    if layer_factor is not None:
        root = triangular_root(outputs)
        white = torch.linalg.solve_triangular(root, white.mT, upper=False)
        log_det = log_det + len(rows) * root.diagonal().abs().log().sum()
    constant = 0.5 * len(outputs) * len(rows) * math.log(2 * math.pi)
    return -0.5 * white.square().sum(dim=(-2, -1)) - log_det - constant


def _check_not_degenerate(outputs: Tensor, rows: Tensor) -> None:
    if rows.shape[1] >= rows.shape[0] and outputs.shape[1] >= outputs.shape[0]:
        return
    _raise_degenerate(min(rows.shape) * min(outputs.shape), len(outputs) * len(rows))


def _raise_degenerate(rank: int, size: int) -> NoReturn:
    raise RuntimeError(
        f"A covariance of rank {rank} over {size} weights is degenerate and "
        f"has no density, which this objective asks for. Use kl_weight=0 "
        f"(TraceExpectedLogLikelihood), the 2-Wasserstein penalty (TraceGeneralizedVI with "
        f'divergence="wasserstein2"), or a covariance that has one: Diagonal(), or with a full '
        f"factor LowRank(None) or Kronecker(None, None)."
    )


@register_kl(FactorNormal, Distribution)
def _kl_factor_normal(p: FactorNormal, q: Distribution) -> Tensor:
    """Closed form against independent Gaussians; other pairs are left to Monte Carlo."""
    base = per_element(q)
    scale = p.covariance.independent_scale(p.loc, p.factor)
    if scale is None or not isinstance(base, Normal):
        raise NotImplementedError(
            f"The KL divergence of a law with {p.covariance} from {type(base).__name__} is known "
            f"in no closed form: where p has a density, as with LowRank(None), take the mean of "
            f"p.log_prob(w) - q.log_prob(w) over draws of p."
        )
    divergence = kl_divergence(Normal(p.loc, scale, validate_args=False), base)
    if p.event_dim:
        divergence = divergence.sum(dim=tuple(range(-p.event_dim, 0)))
    # An expanded law is many independent ones, each with its divergence.
    return divergence.expand(torch.broadcast_shapes(divergence.shape, p.batch_shape))
