r"""Parametrizations: how initial scales and learning rates follow a layer's width.

A parametrization is a pure rule. From a weight's role and its fans it gives the standard
deviation at the start, :math:`\sigma`, and the factor :math:`\eta_w / \eta` by which the global
learning rate is multiplied, for optimizers that act like SGD and for those that act like Adam:

======================== =================== ==================== =================== ============
base = None              input weight        hidden weight        output weight       bias or gain
======================== =================== ==================== =================== ============
:math:`\sigma`           fan_in^-1/2         fan_in^-1/2          fan_in^-1           1
SGD rate                 width_out           1                    1/width_in          width_out
Adam rate                1                   1/width_in           1/width_in          1
======================== =================== ==================== =================== ============

For linear layers a width is a fan; for convolutions the widths are channels, since the size of a
kernel does not grow with the network, and an output convolution starts at
``(fan_in width_in)^-1/2``. The covariance factor ``S`` of a weight follows its mean; its rate is
the mean's times

============================================== ===================
diagonal factor                                1
low-rank factor, rank ``R``                    1/R
the same, ``num_particles=M`` draws in a step  M/(R + 1 + M)
============================================== ===================

and the two factors of a Kronecker product have rules of their own, see
:meth:`Parametrization.factor_rate`, :meth:`Parametrization.kronecker_rate` and
:class:`MaximalUpdate`.

References:
    Yang, Hu et al., Tensor Programs V, 2022, arXiv:2203.03466, Tables 3 and 8. Wenger, Coker,
    Marusic, Cunningham, Variational Deep Learning via Implicit Regularization, arXiv:2505.20235.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from torch import nn

from pyro_ibvi._util.checks import check_positive_int
from pyro_ibvi.theory.stability import rank_rate_factor

Role: TypeAlias = Literal["input", "hidden", "output", "bias", "gain"]
Family: TypeAlias = Literal["sgd", "adam"]
Side: TypeAlias = Literal["in", "out"]
BaseShapes: TypeAlias = int | nn.Module | Mapping[str, tuple[int, ...]] | None


@dataclass(frozen=True)
class Fans:
    """The sizes of a weight that a parametrization looks at.

    Attributes:
        fan_in: Number of inputs that one output sums over, kernel positions included.
        width_in: Number of input features or channels.
        width_out: Number of output features or channels.
        base_width_in: ``width_in`` of the same weight in the base network, if there is one.
        base_width_out: ``width_out`` of the same weight in the base network, if there is one.
    """

    fan_in: int
    width_in: int
    width_out: int
    base_width_in: int | None = None
    base_width_out: int | None = None


class Parametrization(Protocol):
    """What the guide, the optimizer and the priors ask of a parametrization."""

    @property
    def base(self) -> BaseShapes:
        """The network at which rates equal those of :class:`Standard`, or None."""
        ...

    def std(self, role: Role, fans: Fans) -> float:
        """Standard deviation of a weight at the start."""
        ...

    def rate(self, role: Role, fans: Fans, family: Family) -> float:
        """Factor on the global learning rate for a weight's mean."""
        ...

    def factor_rate(self, role: Role, fans: Fans, family: Family, *, rank: int | None) -> float:
        """Factor on the global learning rate for a weight's covariance factor.

        Args:
            role: The role of the weight.
            fans: The sizes of the weight.
            family: How the optimizer scales its updates.
            rank: Number ``R`` of noise variables that the weights of the layer share, or None
                if every weight has noise of its own.
        """
        ...

    def kronecker_rate(
        self, role: Role, fans: Fans, family: Family, *, rank: int, side: Side
    ) -> float:
        """Factor on the global learning rate for one factor of a Kronecker product.

        Args:
            role: The role of the weight.
            fans: The sizes of the weight.
            family: How the optimizer scales its updates.
            rank: Number of the factor's columns.
            side: Whether its rows are those of the weight's inputs or of its outputs.
        """
        ...

    def multiplicative_rate(self, role: Role, fans: Fans, family: Family) -> float:
        """Factor on the global learning rate for noise relative to a weight's mean.

        Args:
            role: The role of the weight.
            fans: The sizes of the weight.
            family: How the optimizer scales its updates.
        """
        ...


def _fan_in_std(role: Role, fans: Fans) -> float:
    return 1.0 if role in ("bias", "gain") else fans.fan_in**-0.5


@dataclass(frozen=True)
class Standard:
    """The standard parametrization: ``fan_in^-1/2`` at the start and one rate for all.

    Optimal learning rates shrink as the network widens. Here for comparison.

    Example:
        >>> Standard().std("hidden", Fans(fan_in=64, width_in=64, width_out=64))
        0.125
    """

    @property
    def base(self) -> BaseShapes:
        """Every width is at its base, so there is none to name."""
        return None

    def std(self, role: Role, fans: Fans) -> float:
        """Standard deviation at the start: ``fan_in^-1/2``, and 1 for biases."""
        return _fan_in_std(role, fans)

    def rate(self, role: Role, fans: Fans, family: Family) -> float:
        """Factor on the global learning rate: 1."""
        return 1.0

    def factor_rate(self, role: Role, fans: Fans, family: Family, *, rank: int | None) -> float:
        """Factor for the covariance factor: ``1/R``, the limit of stability."""
        return 1.0 if rank is None else 1.0 / rank

    def kronecker_rate(
        self, role: Role, fans: Fans, family: Family, *, rank: int, side: Side
    ) -> float:
        """Factor for one of two Kronecker factors: ``1/R`` too."""
        return 1.0 / rank

    def multiplicative_rate(self, role: Role, fans: Fans, family: Family) -> float:
        """Factor for noise relative to the mean: 1."""
        return 1.0


@dataclass(frozen=True)
class NeuralTangent:
    """The neural tangent parametrization, without multipliers in the forward pass.

    By abc-symmetry a weight of unit scale with multiplier ``fan_in^-1/2`` and rate 1 is a weight
    of scale ``fan_in^-1/2`` with SGD rate ``1/fan_in`` and Adam rate ``fan_in^-1/2``. Features
    freeze as the network widens. Here for comparison.

    Example:
        >>> NeuralTangent().rate("hidden", Fans(64, 64, 64), "sgd")
        0.015625
    """

    @property
    def base(self) -> BaseShapes:
        """The rule is absolute."""
        return None

    def std(self, role: Role, fans: Fans) -> float:
        """Standard deviation at the start: ``fan_in^-1/2``, and 1 for biases."""
        return _fan_in_std(role, fans)

    def rate(self, role: Role, fans: Fans, family: Family) -> float:
        """Factor on the global learning rate."""
        if role in ("bias", "gain"):
            return 1.0
        return 1.0 / fans.fan_in if family == "sgd" else fans.fan_in**-0.5

    def factor_rate(self, role: Role, fans: Fans, family: Family, *, rank: int | None) -> float:
        """Factor for the covariance factor: the mean's, divided by ``R``."""
        return self.rate(role, fans, family) / (1 if rank is None else rank)

    def kronecker_rate(
        self, role: Role, fans: Fans, family: Family, *, rank: int, side: Side
    ) -> float:
        """Factor for one of two Kronecker factors: the mean's, divided by its ``R``."""
        return self.rate(role, fans, family) / rank

    def multiplicative_rate(self, role: Role, fans: Fans, family: Family) -> float:
        """Factor for noise relative to the mean: the mean's."""
        return self.rate(role, fans, family)


@dataclass(frozen=True)
class MaximalUpdate:
    r"""The maximal update parametrization (muP): rates tuned on a small network serve a wide one.

    Attributes:
        base: The network at which initial scales and rates equal those of :class:`Standard`: its
            width (an int, for networks with one width), a module of the same architecture, or a
            mapping from parameter name to shape. None is the absolute table at the head of this
            module, as in the paper's code.
        diagonal: What a covariance factor with noise of its own per weight learns at.
            ``"reference"``, the rule of the paper's code, is the mean's rate; ``"maximal"``
            multiplies it by the square root of the layer's input width. See below.
        kronecker: What the two factors of a ``Kronecker`` covariance learn at, before the rank's
            factor. ``"reference"`` is the mean's rate for both; ``"maximal"`` is that of weights
            from the layer's inputs to a fixed number of units and from these to its outputs. See
            below.
        multiplicative: What the scale of noise relative to the mean learns at, before the
            covariance's own ``rate``. ``"reference"`` is the rate of a hidden layer's weights;
            ``"maximal"`` is that of a gain of the layer's inputs, at which its change is flat in
            the width. See below.
        rank_exponent: The rate of a factor that shares ``R`` noise variables is the mean's times
            ``R^-rank_exponent``; 1 is the limit of stability for single-draw training.
        num_particles: Number ``M`` of weight draws in a step, the objective's ``num_particles``:
            the rate of a factor that shares ``R`` noise variables is the mean's times
            ``M / (R + 1 + M)``, see :func:`~pyro_ibvi.theory.rank_rate_factor`, in the place of a
            power of ``R``. Many draws are steadier than one and allow a larger rate, 0.48 in the
            place of 0.1 at ``R = 10`` and ``M = 10``. Then the factor's limit of stability is the
            mean's, each taken alone; together they need a smaller global rate, see
            :func:`~pyro_ibvi.theory.max_stable_rate`.
        attention: What the logits of attention are divided by, of a head size ``d``. torch divides
            by ``sqrt(d)``, the maximal parametrization by ``d``. ``"1/d"`` multiplies the queries
            of every ``nn.MultiheadAttention``, those in transformer layers included, by
            ``sqrt(d_base / d)``, so that at the base nothing changes and the logits of wider heads
            are ``q k sqrt(d_base) / d`` (``d_base`` is 1 with ``base=None``; with a base width or
            base shapes the number of heads is taken to be the same). ``"1/sqrt(d)"`` leaves the
            logits as they are, which is right if ``d`` is the same at every width and the number
            of heads grows. None leaves them too, and :class:`~pyro_ibvi.RandomModule` warns if
            ``d`` is not known to be the base's.

    Scaled queries are the network's forward pass, not its parameters: a site's value is the
    projection before the factor, so weights that are taken out of a guide have the first
    ``embed_dim`` rows of ``in_proj_weight`` and ``in_proj_bias`` multiplied by the factor to serve
    in the network itself. Calls of ``scaled_dot_product_attention`` in the network's own code are
    out of reach: give them ``scale=1 / d``, or ``scale=d_base**0.5 / d``.

    An update of a diagonal factor reaches a fresh draw only through a sum of random signs, so at
    the mean's rate the change that it makes in a hidden activation falls as ``width^-1/2``
    (measured slope -0.50), and with ``"maximal"`` it is flat. But that change is noise, not
    learning: each step sees a single draw, whose gradient points in a random direction. For a
    unit with inputs :math:`x_i`, :math:`i \le n`, of equal size and squared loss the variance
    :math:`V = \sum_i s_i^2 x_i^2` is multiplied per step, in expectation, by

    .. math:: 1 - 2 \eta x_i^2 + \eta^2 (n + 2) x_i^4, \quad\text{stable for}\quad
        \eta\, |x|^2 < 2 n / (n + 2),

    where the mean needs :math:`\eta |x|^2 < 2`. So a diagonal factor can learn at the mean's rate
    and no faster, and with ``"maximal"`` the largest stable global rate falls as
    ``width^-1/2``: learning rates do not transfer. Measured on digits (MLP, all layers random, 5
    epochs, one seed, widths 64, 256, 1024; ``benchmarks/mup/diagonal_rate.py``), the largest
    stable rate of SGD with momentum is 0.032, 0.018 and 0.006 with ``"maximal"`` and 0.056 at
    every width with ``"reference"``, whose best loss is smaller too: 0.89, 0.45, 0.28 nats against
    1.59, 1.58, 1.66 (Adam: 0.68, 0.41, 0.31 against 1.69, 1.95, 2.16). The price of
    ``"reference"`` is that a wide layer's diagonal factor hardly moves in a finite run.

    A ``Kronecker`` factor has one width only: :math:`S_{in}^\top` takes a layer's inputs to
    ``R_in`` numbers, as an output weight does, and :math:`S_{out}` takes ``R_out`` numbers to the
    layer's outputs, as an input weight does. ``"maximal"`` gives them these weights' rates:

    ============================== =============== ===============
    ``kronecker="maximal"``        S_in            S_out
    ============================== =============== ===============
    SGD rate                       1/growth_in     growth_out
    Adam rate                      1/growth_in     1
    ============================== =============== ===============

    times ``R_in^-rank_exponent`` and ``R_out^-rank_exponent``, where a growth is the width, or its
    ratio to the base's, and 1 for a network's own inputs and outputs. With ``"reference"``, the
    rule of the paper's code, a hidden layer's factors both have the rate 1 (Adam: ``1/width``).
    Measured on digits (MLP, all layers random, ``Kronecker(10, 10)``;
    ``benchmarks/mup/kronecker_rate.py``), slopes over widths 64 to 1024 of what each factor
    changes in the hidden activations in one and in ten steps, 4 seeds, errors up to 0.10:

    ==================== ============== ============== ============== ==============
    \                    S_in, SGD      S_out, SGD     S_in, Adam     S_out, Adam
    ==================== ============== ============== ============== ==============
    ``"reference"``      +0.41, +0.62   -1.05, -0.83   -0.07, -0.11   -1.01, -1.04
    ``"maximal"``        -0.59, -0.65   -0.09, +0.01   -0.07, -0.11   -0.01, -0.04
    ==================== ============== ============== ============== ==============

    With ``"reference"`` and SGD one factor blows up and the other freezes, so ``"maximal"`` is the
    default. Its :math:`S_{in}` is not flat by SGD: the gradient that reaches it is a sum over
    the outputs whose signs are random until :math:`S_{out}` has moved. By the derivation a
    larger rate would be too large from then on; these runs are too short to show it. In
    training (5 epochs, one seed, widths 64, 256, 1024) the best losses with SGD and momentum
    are 0.32, 0.34 and 0.89 nats against 1.57, 1.38 and 2.09 with ``"reference"``, and with
    Adam 0.30, 0.27, 0.50 against 0.34, 0.26, 0.46.

    No rule makes a Kronecker product of fixed ranks independent of the width, since its start is
    not: noise of rank ``R`` whose marginals are the prior's has a spectral norm that grows as
    ``width^1/2`` (measured slope 0.51; ``LowRank(10)``: 0.04), and what an earlier layer learns is
    amplified by it. The change of the hidden activations grows with the slope +0.23 (SGD) and
    +0.22 (Adam), and +0.06 and +0.04 with ``LowRank(10)``; the largest stable rate of SGD falls,
    0.100, 0.032, 0.018 (``"reference"``: 0.018, 0.010, 0.003; ``LowRank(10)``: 0.100, 0.056,
    0.056). With Adam it was the largest tried, 0.32, at every width.

    Noise relative to the mean, :math:`w_{ij} = loc_{ij} (1 + s_j z_j)`, adds
    :math:`\sum_j loc_{ij} x_j s_j z_j` to a unit of the next layer: in a hidden layer of width
    ``n`` that is a sum of ``n`` independent terms of size ``n^-1/2``, flat in the width, and for
    an output it falls as ``n^-1/2`` beside a signal that does not, as that of dropout does. The
    gradient of :math:`s_j` is :math:`\delta_j x_j z_j`, of size ``1/n`` with :math:`\delta_j`, the
    gradient of the layer's input, as a gain's is. So a gain's rates, ``n`` by SGD and 1 by Adam,
    and 1 where the inputs are the network's own, change the noise by as much at every width, and
    stay within the limit of stability. But the part of that change that does not average out over
    draws is :math:`-\eta_s s_j (\partial f / \partial x_j)^2 x_j^2`, a fraction of ``1/n``: the
    rest is a random walk, and with these rates a scale of 0.4 is gone before the means are
    trained. ``"reference"`` divides both by ``n``, which leaves ``s`` near its start in wide
    networks.

    Example:
        >>> mup = MaximalUpdate()
        >>> hidden = Fans(fan_in=256, width_in=256, width_out=256)
        >>> mup.rate("hidden", hidden, "sgd"), mup.rate("hidden", hidden, "adam")
        (1.0, 0.00390625)
        >>> mup.factor_rate("hidden", hidden, "sgd", rank=10)
        0.1
        >>> round(MaximalUpdate(num_particles=10).factor_rate("hidden", hidden, "sgd", rank=10), 3)
        0.476
    """

    base: BaseShapes = None
    diagonal: Literal["reference", "maximal"] = "reference"
    kronecker: Literal["reference", "maximal"] = "maximal"
    multiplicative: Literal["reference", "maximal"] = "reference"
    rank_exponent: float = 1.0
    attention: Literal["1/d", "1/sqrt(d)"] | None = None
    num_particles: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.base, bool) or (isinstance(self.base, int) and self.base < 1):
            raise ValueError(f"base must be a positive width, got {self.base!r}.")
        for name in ("diagonal", "kronecker", "multiplicative"):
            rule = getattr(self, name)
            if rule not in ("maximal", "reference"):
                raise ValueError(f"{name} must be 'reference' or 'maximal', got {rule!r}.")
        if not math.isfinite(self.rank_exponent) or self.rank_exponent < 0:
            raise ValueError(
                f"rank_exponent must be finite and not negative, got {self.rank_exponent!r}."
            )
        if self.num_particles is not None:
            check_positive_int("num_particles", self.num_particles)
            if self.rank_exponent != 1:
                raise ValueError(
                    f"num_particles={self.num_particles} sets the rate of a low-rank factor by "
                    f"itself, in the place of rank_exponent={self.rank_exponent}: give one of "
                    f"the two."
                )
        if self.attention not in ("1/d", "1/sqrt(d)", None):
            raise ValueError(
                f"attention must be '1/d', '1/sqrt(d)' or None, got {self.attention!r}."
            )

    def std(self, role: Role, fans: Fans) -> float:
        """Standard deviation at the start."""
        if role != "output":
            return _fan_in_std(role, fans)
        return 1.0 / math.sqrt(fans.fan_in * self._growth_in(role, fans))

    def rate(self, role: Role, fans: Fans, family: Family) -> float:
        """Factor on the global learning rate."""
        growth_in, growth_out = self._growth_in(role, fans), self._growth_out(role, fans)
        if role in ("bias", "gain"):
            return growth_out if family == "sgd" else 1.0
        return growth_out / growth_in if family == "sgd" else 1.0 / growth_in

    def factor_rate(self, role: Role, fans: Fans, family: Family, *, rank: int | None) -> float:
        """Factor on the global learning rate for a weight's covariance factor."""
        rate = self.rate(role, fans, family)
        if rank is not None:
            return rate * self._rank_factor(rank)
        if self.diagonal == "reference":
            return rate
        return rate * math.sqrt(self._growth_in(role, fans))

    def _rank_factor(self, rank: int) -> float:
        """Factor for a covariance factor that shares ``rank`` noise variables."""
        if self.num_particles is not None:
            return rank_rate_factor(rank, self.num_particles)
        return float(rank**-self.rank_exponent)

    def query_scale(self, head_size: int, base_head_size: int | None) -> float:
        """Factor on the queries of attention that divides its logits by ``sqrt(head_size)``."""
        if self.attention != "1/d":
            return 1.0
        return math.sqrt((base_head_size or 1) / head_size)

    def kronecker_rate(
        self, role: Role, fans: Fans, family: Family, *, rank: int, side: Side
    ) -> float:
        """Factor on the global learning rate for one factor of a Kronecker product."""
        if self.kronecker == "reference":
            rate = self.rate(role, fans, family)
        elif side == "in":
            rate = 1.0 / self._growth_in(role, fans)
        else:
            # In the table a hidden layer's rate is 1 whatever its shape; this one has one width.
            vector_like: Role = "input" if role == "hidden" else role
            rate = self._growth_out(vector_like, fans) if family == "sgd" else 1.0
        return rate * self._rank_factor(rank)

    def multiplicative_rate(self, role: Role, fans: Fans, family: Family) -> float:
        """Factor on the global learning rate for noise relative to a weight's mean."""
        if self.multiplicative == "maximal":
            return self._growth_in(role, fans) if family == "sgd" else 1.0
        if family == "sgd":
            return 1.0
        is_first = role in ("input", "bias", "gain")
        return 1.0 / (self._growth_out if is_first else self._growth_in)(role, fans)

    def _growth_in(self, role: Role, fans: Fans) -> float:
        """How far the input side has grown since the base network."""
        if role in ("bias", "gain"):
            return 1.0
        if fans.base_width_in is not None:
            return fans.width_in / fans.base_width_in
        # The absolute table: the base is a network of width one, whose data have their size.
        return 1.0 if role == "input" else float(fans.width_in)

    def _growth_out(self, role: Role, fans: Fans) -> float:
        """How far the output side has grown since the base network."""
        if fans.base_width_out is not None:
            return fans.width_out / fans.base_width_out
        if role == "output":
            return 1.0
        # A hidden layer's rate in the absolute table is 1 whatever its shape.
        return float(fans.width_in if role == "hidden" else fans.width_out)
