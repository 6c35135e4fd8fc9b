"""What an optimizer is told of a parameter."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

#: How an optimizer's step depends on the gradient: in proportion to it, on its sign or its size
#: relative to the past, or, of a matrix, on its singular vectors alone.
Family: TypeAlias = Literal["sgd", "adam", "muon"]


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

    def at(self, share: float) -> Rate:
        """The rate at which a share of the gradient does what the whole one does at this rate.

        Args:
            share: What is left of the gradient, above 0.

        Returns:
            The rate. An update by Adam or Muon does not go with the gradient's size, but epsilon
            is of that size.
        """
        factor = self.factor / share if self.family == "sgd" else self.factor
        return replace(self, factor=factor, epsilon=self.epsilon * share)
