r"""Parametrizations: how initial scales and learning rates follow a layer's width.

A parametrization is a pure rule. From a weight's role and its fans it gives the standard
deviation at the start, :math:`\sigma`, the factor :math:`\eta_w / \eta` by which the global
learning rate is multiplied for a family of optimizers, and the factor on Adam's epsilon. The
absolute table of :class:`MaximalUpdate`:

======================== ======================= ============= ============== =================
base = None              input weight            hidden weight output weight  bias or gain
======================== ======================= ============= ============== =================
:math:`\sigma`           fan_in^-1/2             fan_in^-1/2   fan_in^-1      1
SGD rate                 width_out / fan_in      1             1/width_in     width_out
Adam rate                1 / fan_in              1/width_in    1/width_in     1
Muon rate                (Adam's)                sqrt(out/in)  (Adam's)       (Adam's)
epsilon                  1/width_out             1/width_out   1              1/width_out
======================== ======================= ============= ============== =================

For linear layers a width is a fan; for convolutions the widths are channels, since the size of a
kernel does not grow with the network, and an output convolution starts at
``(fan_in width_in)^-1/2``. A size that the data or the classes fix is no width: a weight between
two of them (a single layer, a skip) has none, and neither has the output's bias. The covariance
factor ``S`` of a weight follows its mean; its rate is the mean's times

============================================== ===================
diagonal factor                                1
low-rank factor, rank ``R``                    1/R
the same, ``num_particles=M`` draws in a step  M/(R + 1 + M)
============================================== ===================

and the two factors of a Kronecker product have rules of their own, see
:meth:`Parametrization.factor_rate`, :meth:`Parametrization.kronecker_rate` and
:class:`MaximalUpdate`.

References:
    Yang, Hu et al., Tensor Programs V, 2022, arXiv:2203.03466, Tables 3 and 8. Yang, Simon,
    Bernstein, A Spectral Condition for Feature Learning, 2023, arXiv:2310.17813. Dey et al.,
    CompleteP, 2025, arXiv:2505.01618. Wenger, Coker, Marusic, Cunningham, Variational Deep
    Learning via Implicit Regularization, arXiv:2505.20235.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from torch import nn

from pyro_ibvi._util.checks import check_positive_int, is_number
from pyro_ibvi.theory.stability import rank_rate_factor

Role: TypeAlias = Literal["input", "hidden", "output", "bias", "gain"]
#: How an optimizer's step depends on the gradient: in proportion to it, on its sign or its size
#: relative to the past, or, of a matrix, on its singular vectors alone.
Family: TypeAlias = Literal["sgd", "adam", "muon"]
Side: TypeAlias = Literal["in", "out"]
BaseShapes: TypeAlias = int | nn.Module | Mapping[str, tuple[int, ...]] | None


@dataclass(frozen=True)
class Fans:
    """The sizes of a weight that a parametrization looks at.

    Attributes:
        fan_in: Number of inputs that one output sums over, kernel positions included.
        width_in: Number of input features or channels.
        width_out: Number of output features or channels.
        base_width_in: ``width_in`` of the same weight in the base network, if there is one, and
            ``width_in`` itself where no network changes it.
        base_width_out: The same for ``width_out``.
        depth: Number of repeated blocks of which the weight's is one; 1 outside of such blocks.
        base_depth: Number of these blocks in the base network, if there is one.
    """

    fan_in: int
    width_in: int
    width_out: int
    base_width_in: int | None = None
    base_width_out: int | None = None
    depth: int = 1
    base_depth: int | None = None


@dataclass(frozen=True)
class Rate:
    """How an optimizer is to treat a parameter.

    Attributes:
        factor: Factor on the global learning rate.
        epsilon: Factor on the optimizer's epsilon, the length that gradients are compared with.
        decays: Whether weight decay is meant for it: for the means of weights, not for
            covariance factors, biases and gains.
        family: Whose rule the factor is. Of ``"muon"`` it is the size of an orthogonal update
            of norm one.
    """

    factor: float = 1.0
    epsilon: float = 1.0
    decays: bool = True
    family: Family = "sgd"


class Parametrization(Protocol):
    """What the guide, the optimizer and the priors ask of a parametrization."""

    @property
    def base(self) -> BaseShapes:
        """The network at which rates equal those of :class:`Standard`, or None."""

    def std(self, role: Role, fans: Fans) -> float:
        """Standard deviation of a weight at the start.

        Args:
            role: The role of the weight.
            fans: The sizes of the weight.
        """

    def rate(self, role: Role, fans: Fans, family: Family) -> float:
        """Factor on the global learning rate for a weight's mean.

        Args:
            role: The role of the weight.
            fans: The sizes of the weight.
            family: How the optimizer scales its updates.
        """

    def factor_rate(self, role: Role, fans: Fans, family: Family, *, rank: int | None) -> float:
        """Factor on the global learning rate for a weight's covariance factor.

        Args:
            role: The role of the weight.
            fans: The sizes of the weight.
            family: How the optimizer scales its updates.
            rank: Number ``R`` of noise variables that the weights of the layer share, or None
                if every weight has noise of its own.
        """

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

    def multiplicative_rate(self, role: Role, fans: Fans, family: Family) -> float:
        """Factor on the global learning rate for noise relative to a weight's mean.

        Args:
            role: The role of the weight.
            fans: The sizes of the weight.
            family: How the optimizer scales its updates.
        """

    def epsilon(self, role: Role, fans: Fans, *, side: Side | None = None) -> float:
        """Factor on the epsilon of an optimizer like Adam: how its gradients shrink.

        Args:
            role: The role of the weight.
            fans: The sizes of the weight.
            side: Which factor of a Kronecker product it is, or None for the weight's mean and
                its covariance factor.
        """


def fan_in_std(role: Role, fans: Fans) -> float:
    """Standard deviation that keeps the size of what a layer passes on, 1 for vectors."""
    return 1.0 if role in ("bias", "gain") else fans.fan_in**-0.5


@dataclass(frozen=True)
class MaximalUpdate:
    r"""The maximal update parametrization (muP): rates tuned on a small network serve a wide one.

    What was measured of it is on the page *Learning rates and width*.

    Attributes:
        base: The network at which initial scales and rates equal those of :class:`Standard`: its
            width (an int, for networks with one width), a module of the same architecture, or a
            mapping from parameter name to shape. None is the absolute table at the head of this
            module. A module or mapping with fewer repeated blocks is the base of the depth too.
        diagonal: What a covariance factor with noise of its own per weight learns at:
            ``"reference"``, the rule of the paper's code, is the mean's rate, the largest that
            single draws allow; ``"maximal"`` multiplies it by the square root of the layer's
            input width, which keeps the size of its change and lets the largest stable rate fall
            as ``width^-1/2``.
        kronecker: What the two factors of a ``Kronecker`` covariance learn at, before the rank's
            factor. ``"reference"`` is the mean's rate for both; ``"maximal"`` is that of weights
            from the layer's inputs to a fixed number of units, ``1/growth_in``, and from these to
            its outputs, ``growth_out`` by SGD and 1 by Adam, where a growth is a width, or its
            ratio to the base's, and 1 for a network's own inputs and outputs.
        multiplicative: What the scale of noise relative to the mean learns at, before the
            covariance's own ``rate``. ``"reference"`` is the rate of a hidden layer's weights,
            which leaves it near its start in wide networks; ``"maximal"`` is that of a gain of the
            layer's inputs, at which its change is flat in the width.
        rank_exponent: The rate of a factor that shares ``R`` noise variables is the mean's times
            ``R^-rank_exponent``; 1 is the limit of stability for single-draw training.
        num_particles: Number ``M`` of weight draws in a step, the objective's ``num_particles``:
            the rate of a factor that shares ``R`` noise variables is the mean's times
            ``M / (R + 1 + M)``, see :func:`~pyro_ibvi.theory.rank_rate_factor`, whose limit of
            stability is the mean's; of both together :func:`~pyro_ibvi.theory.max_stable_rate`.
        attention: What the logits of attention are divided by, of a head size ``d``. torch divides
            by ``sqrt(d)``, the maximal parametrization by ``d``. ``"1/d"`` multiplies the queries
            of every ``nn.MultiheadAttention``, those in transformer layers included, by
            ``sqrt(d_base / d)``: the logits are ``q k sqrt(d_base) / d`` (``d_base`` is 1 with
            ``base=None``; with a base the number of heads is taken to be the same).
            ``"1/sqrt(d)"`` leaves them as they are, which is right if ``d`` is the same at every
            width and the number of heads grows. None leaves them too, and
            :class:`~pyro_ibvi.RandomModule` warns if ``d`` is not known to be the base's.
        inputs: What the weights that read data learn at in the absolute table. A step by Adam
            changes their outputs in proportion to the sum of the data's sizes, by SGD of their
            squares; ``"normalized"`` divides the rate by the number of features, so that for
            standardized data the first layer is as stable as the hidden ones. ``"reference"``,
            the rule of the paper's code, does not.
        vectors: Factor on what biases and gains learn at by Adam in the absolute table, which muP
            leaves open. Learned positions, which are biases, bear a small one.
        branches: What the network multiplies the residual branches of its repeated blocks by,
            ``"1/depth"`` or ``"1/sqrt(depth)"`` relative to the base's depth: rates and epsilons
            of their weights follow. With None the depth changes nothing, and
            :class:`~pyro_ibvi.RandomModule` warns if it is not the base's.

    Scaled queries are the network's forward pass, not its parameters: a site's value is the
    projection before the factor, so weights that are taken out of a guide have the first
    ``embed_dim`` rows of ``in_proj_weight`` and ``in_proj_bias`` multiplied by the factor to serve
    in the network itself. Calls of ``scaled_dot_product_attention`` in the network's own code are
    out of reach: give them ``scale=1 / d``, or ``scale=d_base**0.5 / d``.

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
    inputs: Literal["normalized", "reference"] = "normalized"
    vectors: float = 1.0
    branches: Literal["1/depth", "1/sqrt(depth)"] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.base, bool) or (isinstance(self.base, int) and self.base < 1):
            raise ValueError(f"base must be a positive width, got {self.base!r}.")
        for name, choices in _CHOICES.items():
            chosen = getattr(self, name)
            if chosen not in choices:
                *others, last = map(repr, choices)
                raise ValueError(f"{name} must be {', '.join(others)} or {last}, got {chosen!r}.")
        if not math.isfinite(self.rank_exponent) or self.rank_exponent < 0:
            raise ValueError(
                f"rank_exponent must be finite and not negative, got {self.rank_exponent!r}."
            )
        if not is_number(self.vectors) or not 0 < self.vectors < math.inf:
            raise ValueError(f"vectors must be positive and finite, got {self.vectors!r}.")
        if self.num_particles is not None:
            check_positive_int("num_particles", self.num_particles)
            if self.rank_exponent != 1:
                raise ValueError(
                    f"num_particles={self.num_particles} sets the rate of a low-rank factor by "
                    f"itself, in the place of rank_exponent={self.rank_exponent}: give one of "
                    f"the two."
                )

    def std(self, role: Role, fans: Fans) -> float:
        """Standard deviation at the start."""
        if role != "output":
            return fan_in_std(role, fans)
        return 1.0 / math.sqrt(fans.fan_in * self._growth_in(role, fans))

    def rate(self, role: Role, fans: Fans, family: Family) -> float:
        """Factor on the global learning rate."""
        growth_in, growth_out = self._growth_in(role, fans), self._growth_out(role, fans)
        if family == "muon":
            return self._muon_rate(fans) * self._depth_rate(fans, family)
        rate = 1.0 if role in ("bias", "gain") else 1.0 / growth_in
        if family == "sgd":
            rate *= growth_out
        if role == "input" and self.base is None and self.inputs == "normalized":
            rate /= fans.fan_in
        if role in ("bias", "gain") and self.base is None and family == "adam":
            rate *= self.vectors
        return rate * self._depth_rate(fans, family)

    def factor_rate(self, role: Role, fans: Fans, family: Family, *, rank: int | None) -> float:
        """Factor on the global learning rate for a weight's covariance factor."""
        rate = self.rate(role, fans, family)
        if rank is not None:
            return rate * self._rank_factor(rank)
        if self.diagonal == "reference":
            return rate
        return rate * math.sqrt(self._growth_in(role, fans))

    def kronecker_rate(
        self, role: Role, fans: Fans, family: Family, *, rank: int, side: Side
    ) -> float:
        """Factor on the global learning rate for one factor of a Kronecker product."""
        if self.kronecker == "reference":
            return self.rate(role, fans, family) * self._rank_factor(rank)
        if side == "in":
            rate = 1.0 / self._growth_in(role, fans)
            if role == "input" and self.base is None and self.inputs == "normalized":
                rate /= fans.fan_in
        else:
            # In the table a hidden layer's rate is 1 whatever its shape; this one has one width.
            vector_like: Role = "input" if role == "hidden" else role
            rate = self._growth_out(vector_like, fans) if family == "sgd" else 1.0
        return rate * self._rank_factor(rank) * self._depth_rate(fans, family)

    def multiplicative_rate(self, role: Role, fans: Fans, family: Family) -> float:
        """Factor on the global learning rate for noise relative to a weight's mean."""
        if self.multiplicative == "maximal":
            return self._growth_in(role, fans) if family == "sgd" else 1.0
        if family == "sgd":
            return 1.0
        is_first = role in ("input", "bias", "gain")
        return 1.0 / (self._growth_out if is_first else self._growth_in)(role, fans)

    def epsilon(self, role: Role, fans: Fans, *, side: Side | None = None) -> float:
        """Factor on epsilon: gradients shrink as the outputs grow in number, and with depth."""
        vector_like: Role = "input" if role == "hidden" else role
        growth = 1.0 if side == "in" else self._growth_out(vector_like, fans)
        return float(self._depth(fans) ** -_EXPONENTS[self.branches]) / growth

    def query_scale(self, head_size: int, base_head_size: int | None) -> float:
        """Factor on the queries of attention that divides its logits by ``sqrt(head_size)``."""
        if self.attention != "1/d":
            return 1.0
        return math.sqrt((base_head_size or 1) / head_size)

    def _muon_rate(self, fans: Fans) -> float:
        """Size of an orthogonal update: that of :class:`Standard` at the base."""
        if self.base is None:
            return math.sqrt(fans.width_out / fans.width_in)
        base_in = fans.base_width_in or fans.width_in
        base_out = fans.base_width_out or fans.width_out
        growth = (fans.width_out / base_out) / (fans.width_in / base_in)
        return math.sqrt(growth * max(1.0, base_out / base_in))

    def _rank_factor(self, rank: int) -> float:
        """Factor for a covariance factor that shares ``rank`` noise variables."""
        if self.num_particles is not None:
            return rank_rate_factor(rank, self.num_particles)
        return float(rank**-self.rank_exponent)

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

    def _depth(self, fans: Fans) -> float:
        """How many times deeper than the base network, where the branches are multiplied."""
        if self.branches is None or (self.base is not None and fans.base_depth is None):
            return 1.0
        return fans.depth / (fans.base_depth or 1)

    def _depth_rate(self, fans: Fans, family: Family) -> float:
        """Keeps the sum over blocks: a branch's step counts, and its gradient shrinks, by 1/m."""
        exponent = _EXPONENTS[self.branches]
        return float(self._depth(fans) ** ((2 if family == "sgd" else 1) * exponent - 1))


#: Powers of the depth by which a network divides its residual branches.
_EXPONENTS = {"1/depth": 1.0, "1/sqrt(depth)": 0.5, None: 0.0}
_CHOICES: dict[str, tuple[str | None, ...]] = {
    "diagonal": ("reference", "maximal"),
    "kronecker": ("reference", "maximal"),
    "multiplicative": ("reference", "maximal"),
    "attention": ("1/d", "1/sqrt(d)", None),
    "inputs": ("normalized", "reference"),
    "branches": ("1/depth", "1/sqrt(depth)", None),
}
