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
``(fan_in width_in)^-1/2``. The covariance factor ``S`` of a weight follows its mean:
a low-rank factor learns at ``1/R`` times the mean's rate, a diagonal one at the mean's, see
:meth:`Parametrization.factor_rate` and :class:`MaximalUpdate`.

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

Role: TypeAlias = Literal["input", "hidden", "output", "bias", "gain"]
Family: TypeAlias = Literal["sgd", "adam"]
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
        rank_exponent: The rate of a factor that shares ``R`` noise variables is the mean's times
            ``R^-rank_exponent``; 1 is the limit of stability for single-draw training.

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

    Example:
        >>> mup = MaximalUpdate()
        >>> hidden = Fans(fan_in=256, width_in=256, width_out=256)
        >>> mup.rate("hidden", hidden, "sgd"), mup.rate("hidden", hidden, "adam")
        (1.0, 0.00390625)
        >>> mup.factor_rate("hidden", hidden, "sgd", rank=10)
        0.1
    """

    base: BaseShapes = None
    diagonal: Literal["reference", "maximal"] = "reference"
    rank_exponent: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.base, bool) or (isinstance(self.base, int) and self.base < 1):
            raise ValueError(f"base must be a positive width, got {self.base!r}.")
        if self.diagonal not in ("maximal", "reference"):
            raise ValueError(f"diagonal must be 'reference' or 'maximal', got {self.diagonal!r}.")
        if not math.isfinite(self.rank_exponent) or self.rank_exponent < 0:
            raise ValueError(
                f"rank_exponent must be finite and not negative, got {self.rank_exponent!r}."
            )

    def std(self, role: Role, fans: Fans) -> float:
        """Standard deviation at the start."""
        if role != "output":
            return _fan_in_std(role, fans)
        return (fans.fan_in * self._growth_in(role, fans)) ** -0.5

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
            return rate * rank**-self.rank_exponent
        if self.diagonal == "reference":
            return rate
        return rate * self._growth_in(role, fans) ** 0.5

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
