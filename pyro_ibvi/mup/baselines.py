"""The parametrizations that the maximal update is compared with."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pyro_ibvi.mup.parametrization import (
    BaseShapes,
    Family,
    Fans,
    Role,
    Side,
    fan_in_std,
)


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
        return fan_in_std(role, fans)

    def rate(self, role: Role, fans: Fans, family: Family) -> float:
        """Factor on the global learning rate: 1, and for Muon torch's own."""
        return math.sqrt(max(1.0, fans.width_out / fans.width_in)) if family == "muon" else 1.0

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

    def epsilon(self, role: Role, fans: Fans, *, side: Side | None = None) -> float:
        """Factor on epsilon: 1."""
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
        return fan_in_std(role, fans)

    def rate(self, role: Role, fans: Fans, family: Family) -> float:
        """Factor on the global learning rate."""
        if family == "muon":
            raise ValueError(
                "NeuralTangent has no rule for Muon: choose MaximalUpdate() or Standard(), or "
                "another optimizer."
            )
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

    def epsilon(self, role: Role, fans: Fans, *, side: Side | None = None) -> float:
        """Factor on epsilon: 1."""
        return 1.0
