r"""Likelihoods around others: missing targets, and targets in units of their own."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import AffineTransform

from pyro_ibvi._util.columns import column_moments
from pyro_ibvi._util.errors import DataError
from pyro_ibvi._util.inputs import as_tensors
from pyro_ibvi.models.likelihoods import Likelihood, as_event


class _Around(Likelihood):
    """A likelihood around another of numbers, whose targets' shape and temperature it has."""

    def __init__(self, likelihood: Likelihood) -> None:
        super().__init__()
        _check_elementwise(type(self).__name__, likelihood)
        self.likelihood = likelihood

    def target_shape(self, output_shape: torch.Size) -> torch.Size:
        """As the likelihood inside has it."""
        return self.likelihood.target_shape(output_shape)

    @property
    def _has_temperature(self) -> bool:  # type: ignore[override]
        return self.likelihood._has_temperature

    @property
    def temperature(self) -> float | Tensor:  # type: ignore[override]
        """The temperature of the likelihood inside."""
        return self.likelihood.temperature

    def set_temperature(self, temperature: float | Tensor) -> None:
        """Sets the temperature of the likelihood inside."""
        self.likelihood.set_temperature(temperature)


class Masked(_Around):
    r"""A likelihood whose targets may be missing, marked by NaN.

    .. math:: p(y \mid f) = \prod_{j\ \text{observed}} p(y_j \mid f_j)

    A missing number counts nothing, neither in the loss nor in the number of observations by
    which ``reduction="mean"`` divides: a datum half of whose targets are observed counts a half.
    Missing class labels are marked by ``Categorical(ignore_index=...)`` instead.

    Args:
        likelihood: The likelihood of the targets that are observed, one number each.

    Raises:
        TypeError: If it is one of class labels or of several tasks, or no likelihood.

    Example:
        >>> from pyro_ibvi import Normal
        >>> likelihood, nan = Masked(Normal(1.0)), float("nan")
        >>> y = torch.tensor([[0.0, nan], [nan, nan]])
        >>> likelihood(torch.zeros(2, 2)).log_prob(y)
        tensor([-0.9189,  0.0000])
    """

    allows_missing = True

    def __init__(self, likelihood: Likelihood) -> None:
        super().__init__(likelihood)
        self.discrete = likelihood.discrete

    def forward(self, output: Tensor, num_batch_dims: int = 1) -> TorchDistributionMixin:
        """The distribution of targets, of which those that are missing count nothing."""
        return Partial(self.likelihood(output, num_batch_dims))

    def density(self, output: Tensor, num_batch_dims: int = 1) -> TorchDistributionMixin:
        """The same, free of what only training weighs."""
        return Partial(self.likelihood.density(output, num_batch_dims))

    def moments(self, output: Tensor, num_batch_dims: int = 1) -> tuple[Tensor, Tensor]:
        """Mean and variance of the targets, missing or not."""
        return self.likelihood.moments(output, num_batch_dims)

    def convert_target(self, target: Tensor, output: Tensor) -> Tensor:
        """The target as floating point numbers."""
        return self.likelihood.convert_target(target, output)

    def check_target(self, target: Tensor, output: Tensor) -> None:
        """Checks what is observed."""
        if target.is_floating_point():
            target = torch.where(target.isnan(), 0.0, target)
        self.likelihood.check_target(target, output)


class Standardized(_Around):
    r"""A likelihood of standardized targets, for targets in their own units.

    .. math:: (y - m) / s \mid f \sim p(\cdot \mid f)

    The network learns standardized numbers, while data, densities and predictions are in the
    targets' units: nothing is left to be undone.

    Args:
        likelihood: The likelihood of standardized targets, such as ``Normal(0.1)``.
        loc: Mean ``m`` of the targets, a number or one for each of them.
        scale: Standard deviation ``s``, likewise.

    Raises:
        TypeError: If the likelihood is not one of real numbers.
        ValueError: If a scale is not positive and finite.

    Example:
        >>> from pyro_ibvi import Normal
        >>> likelihood = Standardized.of(Normal(0.5), torch.tensor([[10.0], [30.0]]))
        >>> mean, variance = likelihood.moments(torch.ones(1, 1))
        >>> mean.item(), variance.sqrt().item()
        (30.0, 5.0)
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, likelihood: Likelihood, loc: Tensor | float, scale: Tensor | float) -> None:
        super().__init__(likelihood)
        if likelihood.discrete:
            raise TypeError(
                f"Standardized needs a likelihood of real numbers, got the "
                f"{type(likelihood).__name__}."
            )
        # A model brings them to the type of its network.
        dtype = torch.float64
        loc, scale = (torch.as_tensor(as_tensors(v, dtype), dtype=dtype) for v in (loc, scale))
        if not (loc.isfinite().all() and scale.isfinite().all() and (scale > 0).all()):
            raise ValueError(
                f"Standardized needs finite means and positive standard deviations, got loc "
                f"{loc.tolist()} and scale {scale.tolist()}. A target that is constant has none."
            )
        self.register_buffer("loc", loc)
        self.register_buffer("scale", scale)

    @classmethod
    def of(cls, likelihood: Likelihood, targets: Any) -> Standardized:
        """A likelihood with the mean and the standard deviation of targets.

        Args:
            likelihood: The likelihood of standardized targets.
            targets: Targets of the training set, the data in front: a tensor, an array, a data
                frame or a list. Those that are NaN are missing, and count in neither.

        Returns:
            The likelihood.
        """
        _check_elementwise(cls.__name__, likelihood)
        targets = torch.as_tensor(as_tensors(targets, torch.float64)).to(torch.float64)
        return cls(likelihood, *column_moments(targets))

    def arguments(self) -> dict[str, Any]:
        """The likelihood, and means and standard deviations as numbers."""
        numbers = {"loc": self.loc.tolist(), "scale": self.scale.tolist()}
        return {"likelihood": self.likelihood, **numbers}

    def forward(self, output: Tensor, num_batch_dims: int = 1) -> TorchDistributionMixin:
        """The distribution of targets in their own units."""
        law = elementwise(self.likelihood(output, num_batch_dims))
        loc, scale = self.loc.to(output), self.scale.to(output)
        moved = dist.TransformedDistribution(law, AffineTransform(loc, scale), validate_args=False)
        return as_event(moved, num_batch_dims)

    def moments(self, output: Tensor, num_batch_dims: int = 1) -> tuple[Tensor, Tensor]:
        """Mean and variance of the targets in their own units."""
        mean, variance = self.likelihood.moments(output, num_batch_dims)
        loc, scale = self.loc.to(output), self.scale.to(output)
        return loc + scale * mean, scale.square() * variance

    def check_target(self, target: Tensor, output: Tensor) -> None:
        """Checks shape and type, and that there are means and standard deviations for them."""
        self.likelihood.check_target(target, output)
        for moment in (self.loc, self.scale):
            shape = target.shape[1:]  # to which other numbers would not be broadcast
            if moment.numel() > 1 and not _fits(moment.shape, shape):
                raise DataError(
                    f"Standardized has means and standard deviations of the shape "
                    f"{tuple(moment.shape)}, and the targets of a datum have the shape "
                    f"{tuple(shape)}: make it of the training targets, in the shape in "
                    f"which they are given, Standardized.of(Normal(...), y)."
                )


def _fits(shape: torch.Size, whole: torch.Size) -> bool:
    """Whether numbers of a shape are one for each of a whole, or for several of it."""
    pairs = zip(shape[::-1], whole[::-1], strict=False)
    return len(shape) <= len(whole) and all(own in (1, size) for own, size in pairs)


class LawAround(TorchDistribution):
    """A distribution around another, whose batches and draws it has, with a density of its own.

    Args:
        law: The distribution inside.
        event_shape: Shape of an event, None for that of the law.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012

    def __init__(self, law: Any, event_shape: torch.Size | None = None) -> None:
        self.law = law
        shape = law.event_shape if event_shape is None else event_shape
        super().__init__(law.batch_shape, shape, validate_args=False)

    @property
    def support(self) -> Any:
        """The support of the law."""
        return self.law.support

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws from the law."""
        drawn: Tensor = self.law.sample(torch.Size(sample_shape))
        return drawn


class Partial(LawAround):
    """Targets of which those that are NaN count nothing.

    Args:
        law: The distribution of the targets.
    """

    def expand(self, batch_shape: Any, _instance: Any = None) -> Partial:
        """The same targets in a larger batch."""
        return Partial(self.law.expand(torch.Size(batch_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density of what is observed, of the batch shape."""
        missing = value.isnan()
        # Filled before the density is taken, or its gradient would be 0 * NaN.
        terms = elementwise(self.law).log_prob(torch.where(missing, 0.0, value))
        terms = torch.where(missing, 0.0, terms)
        num_event_dims = len(self.event_shape)
        return terms.sum(tuple(range(-num_event_dims, 0))) if num_event_dims else terms

    def num_observed(self, value: Tensor) -> Tensor:
        """Share of each datum that is observed, of the batch shape.

        Args:
            value: Targets.

        Returns:
            The shares.
        """
        share = (~value.isnan()).to(value.dtype)
        if self.event_shape:
            share = share.flatten(-len(self.event_shape)).mean(-1)
        return share.expand(self.batch_shape)


def elementwise(law: Any) -> Any:
    """A distribution whose events are numbers, in place of one that joins them.

    Args:
        law: A distribution.

    Returns:
        The distribution without its outer event dimensions.
    """
    while isinstance(law, (torch.distributions.Independent, Partial)):
        law = law.law if isinstance(law, Partial) else law.base_dist
    return law


def _check_elementwise(name: str, likelihood: Any) -> None:
    if not isinstance(likelihood, Likelihood):
        what = getattr(likelihood, "__name__", type(likelihood).__name__)
        raise TypeError(f"{name} needs a likelihood such as Normal(0.1), got {what}.")
    if isinstance(likelihood, Masked):
        raise TypeError(
            f"{name} got a Masked likelihood, and Masked is outermost, once: write "
            f"Masked(Standardized.of(Normal(0.1), y))."
        )
    if not _is_elementwise(likelihood):
        raise TypeError(
            f"{name} needs a likelihood of numbers, got {type(likelihood).__name__}: class labels "
            f"have Categorical(ignore_index=...), and tasks are masked one by one."
        )


def _is_elementwise(likelihood: Likelihood) -> bool:
    try:
        return len(likelihood.target_shape(torch.Size((2, 4)))) == 2
    except ValueError:  # several tasks, whose widths are others
        return False
