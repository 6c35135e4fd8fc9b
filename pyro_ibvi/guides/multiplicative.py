r"""Noise relative to the mean: :math:`w = \text{loc} (1 + s z)`, one ``z`` for each input."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Size, Tensor

from pyro_ibvi._util.checks import is_number
from pyro_ibvi.guides.buffers import BufferPool
from pyro_ibvi.mup.roles import WeightRole

#: Noise, in units of the weights, that was meant as a percentage: it is 3 where dropout drops nine
#: units of ten.
_PERCENT = 4.0


@dataclass(frozen=True)
class Multiplicative:
    r"""Noise that is proportional to the mean, shared by all weights of an input unit.

    With a standard normal :math:`z_j` for each input unit ``j`` of a layer,

    .. math:: w_{ij} = \text{loc}_{ij} (1 + s_j z_j), \qquad
        \mathrm{Cov}(w_{ij}, w_{kl}) = \delta_{jl}\, s_j^2\, \text{loc}_{ij} \text{loc}_{kj}.

    Under the expected loss alone a factor that does not depend on the mean keeps its size while
    the means grow, so the noise shrinks relative to the signal; this one grows with them. To
    multiply the columns of a weight matrix is to multiply the layer's inputs, so a draw for each
    datum costs no more than a draw for the batch: pass ``draws="datum"`` to
    :class:`~pyro_ibvi.TraceExpectedLogLikelihood`.

    This is the Gaussian form of dropout (Srivastava et al., 2014), with a standard deviation
    :math:`\sqrt{p / (1 - p)}` in the place of the probability ``p``, which variational dropout
    (Kingma, Salimans, Welling, 2015) takes for a posterior and trains under a KL divergence. Here
    the expected loss alone trains it. On a linear model that is a ridge penalty of the means, see
    :func:`~pyro_ibvi.theory.multiplicative_limit`, which also pulls ``s`` to zero: it learns at a
    tenth of the mean's rate so that it keeps most of its start, and ``rate=0`` holds it there.

    The start is **not the prior's**: the means are draws from it (or what ``init_loc_fn`` gives)
    and the standard deviations are ``std`` times these, whatever the prior's and ``init_scale``
    say.

    An input unit is a column of a linear layer or of a recurrent matrix (whose gates share it), a
    channel of a convolution (whose kernel positions share it), an entry of the vectors that
    attention projects (queries, keys and values share it where they share a weight), and a row of
    an embedding: a token's vector is scaled as a whole. The input of a bias is the constant 1,
    with one ``z`` for the whole bias; a gain has one for each entry. A site of a hand-written
    model needs a role that says its inputs.

    Attributes:
        std: Start of each ``s``, the standard deviation of a weight relative to its mean.
        rate: Learning rate of ``s`` relative to that of weights from one hidden layer to the next;
            0 holds ``s`` at its start.

    References:
        Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, Dropout: a simple way to prevent
        neural networks from overfitting, JMLR 15, 2014, section 10. Kingma, Salimans, Welling,
        Variational dropout and the local reparameterization trick, arXiv:1506.02557.

    Example:
        >>> from pyro_ibvi import AutoMuPNormal, RandomModule
        >>> net = RandomModule(torch.nn.Linear(3, 2), stochastic=["weight"])
        >>> guide = AutoMuPNormal(net, covariance=Multiplicative(0.4))
        >>> torch.allclose(guide.scale("weight"), 0.4 * guide.loc("weight").abs())
        True
        >>> guide.factor("weight").shape
        torch.Size([1, 3])
    """

    std: float
    rate: float = 0.1
    shares_noise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name, value, least in (("std", self.std, 0.0), ("rate", self.rate, None)):
            if not is_number(value) or not math.isfinite(value) or value < 0 or value == least:
                raise ValueError(
                    f"Multiplicative needs a {name} that is finite and "
                    f"{'positive' if least is not None else 'not negative'}, got {value!r}."
                )
        if self.std >= _PERCENT:
            warnings.warn(
                f"Multiplicative({self.std!r}) is noise of {self.std:g} times the weights, with "
                f"which nothing learns: std is a share, {self.std:g} percent {self.std / 100:g}.",
                UserWarning,
                stacklevel=3,
            )

    @property
    def is_held(self) -> bool:
        """Whether the factors keep their start."""
        return self.rate == 0

    def init_factors(
        self, scales: Sequence[Tensor], roles: Sequence[WeightRole | None] = ()
    ) -> list[Tensor]:
        """Factors of one number for each input unit, in a shape that goes with the site's.

        Args:
            scales: One tensor per site, of which the shape counts.
            roles: The sites' roles, which say their inputs.

        Returns:
            The factors, with as many dimensions as the site, or one more where the first is that
            of the groups of a convolution.

        Raises:
            ValueError: If it is not known which dimension of a site are the inputs.
        """
        pairs = zip(scales, roles or [None] * len(scales), strict=True)
        return [scale.new_full(_noise_shape(scale.shape, role), self.std) for scale, role in pairs]

    def init_layer_factor(self, scales: Sequence[Tensor]) -> None:
        """There is none."""

    def noise_rank(self, factor: Tensor) -> None:
        """Every input unit has noise of its own."""

    def noise_shape(self, factor: Tensor) -> Size:
        """Shape of the factor."""
        return factor.shape

    def draw(
        self, loc: Tensor, factor: Tensor, noise: Tensor, pool: BufferPool | None = None
    ) -> Tensor:
        """The weights ``loc * (1 + s * z)``."""
        draws = noise.shape[: noise.dim() - factor.dim()]
        multiplier = torch.addcmul(torch.ones_like(factor), factor, noise)
        return (_grouped(loc, factor) * multiplier).reshape(draws + loc.shape)

    def scale(
        self, factor: Tensor, layer_factor: Tensor | None = None, loc: Tensor | None = None
    ) -> Tensor:
        """Marginal standard deviation ``|loc * s|``."""
        return self.directions(factor, loc).abs()

    def directions(self, factor: Tensor, loc: Tensor | None) -> Tensor:
        """What one standard deviation of each input's ``z`` adds to its weights, ``loc * s``."""
        loc = _given(loc)
        return (_grouped(loc, factor) * factor).reshape(loc.shape)

    def rows(
        self, factor: Tensor, layer_factor: Tensor | None = None, loc: Tensor | None = None
    ) -> Tensor:
        """The rows of ``S``, shape ``(P, R)`` for ``R`` inputs: ``loc * s`` in one column each."""
        directions = self.directions(factor, loc).reshape(-1)
        rows = directions.new_zeros(len(directions), factor.numel())
        columns = input_index(factor, _given(loc)).unsqueeze(1)
        return rows.scatter(1, columns, directions.unsqueeze(1))

    def dense(
        self,
        factors: Sequence[Tensor],
        layer_factor: Tensor | None = None,
        locs: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Covariance matrix, shape ``(P, P)``; sites are independent."""
        pairs = zip(factors, [_given(None)] if locs is None else locs, strict=True)
        rows = [self.rows(factor, None, loc) for factor, loc in pairs]
        return torch.block_diag(*(r @ r.mT for r in rows))

    def blocks(self, factor: Tensor, loc: Tensor) -> tuple[Tensor, Tensor]:
        """The flattened :meth:`directions`, and the input that each weight goes with, ``(P,)``."""
        return self.directions(factor, loc).reshape(-1), input_index(factor, loc)

    def independent_scale(self, loc: Tensor, factor: Tensor) -> Tensor | None:
        """Standard deviations if every weight has an input of its own, or else None."""
        if factor.numel() != loc.numel():
            return None
        return self.scale(factor, None, loc)


def input_index(factor: Tensor, loc: Tensor) -> Tensor:
    """Which of the factor's entries each weight of a flattened site goes with.

    Args:
        factor: The site's factor.
        loc: The site's mean.

    Returns:
        The indices, shape ``(P,)``.
    """
    entries = torch.arange(factor.numel(), device=factor.device).reshape(factor.shape)
    return entries.expand(_grouped(loc, factor).shape).reshape(-1)


def _noise_shape(shape: Size, role: WeightRole | None) -> Size:
    """Shape of one number for each input of a site, which broadcasts against the site."""
    if role is None:
        raise ValueError(
            f"A site of shape {tuple(shape)} is no weight of a network, so nobody knows which of "
            f"its dimensions are inputs: give it a role, roles={{...: WeightRole.of(...)}}, or "
            f"another covariance, such as Diagonal()."
        )
    if role.role == "gain":
        return shape
    if role.role == "bias" or not shape:
        return Size((1,) * len(shape))
    if role.inputs_first:
        return Size((shape[0], *(1,) * (len(shape) - 1)))
    for last in range(2, len(shape) + 1):  # a bilinear layer's inputs are the pairs of two
        if shape[1:last].numel() == role.fans.width_in:
            own = (1, *shape[1:last], *(1,) * (len(shape) - last))
            return Size(own) if role.groups == 1 else Size((role.groups, *own))
    raise ValueError(
        f"A site of shape {tuple(shape)} has no dimension of the {role.fans.width_in} inputs that "
        f"its role says: they come second, or first with WeightRole.of(..., inputs_first=True)."
    )


def _grouped(loc: Tensor, factor: Tensor) -> Tensor:
    """The mean as the factor has it, with the groups of a convolution in front."""
    if factor.dim() == loc.dim():
        return loc
    return loc.reshape(factor.shape[0], -1, *loc.shape[1:])


def _given(loc: Tensor | None) -> Tensor:
    if loc is None:
        raise ValueError(
            "The noise of Multiplicative is relative to the mean, which is missing: pass "
            "loc=guide.loc(name)."
        )
    return loc
