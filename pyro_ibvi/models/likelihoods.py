r"""Likelihoods: the distribution of a target given the network's output."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_ibvi._util.arguments import named_arguments
from pyro_ibvi._util.checks import checked_scale, checked_temperature
from pyro_ibvi._util.distributions import per_element
from pyro_ibvi._util.errors import DataError
from pyro_ibvi._util.precision import at_least_float32
from pyro_ibvi.models.parameters import full_name, read_parameter


class Likelihood(PyroModule):
    """Base of likelihoods: a distribution whose events are what lies right of the batch."""

    #: Whether targets are counts or labels, which may come in any integer type.
    discrete: bool = False
    #: Whether NaN among the targets marks what was not observed.
    allows_missing: bool = False
    #: Power ``1 / temperature`` to which the density is raised, then normalized.
    temperature: float | Tensor = 1.0

    def forward(self, output: Tensor, num_batch_dims: int = 1) -> TorchDistributionMixin:
        """The distribution of targets, as training counts it.

        Args:
            output: The network's output, shape ``(*batch, *event)``.
            num_batch_dims: Number of batch dimensions.

        Returns:
            A distribution with that many batch dimensions.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no forward: write one that returns a Pyro distribution "
            f"over targets, given the network's output."
        )

    def arguments(self) -> dict[str, Any]:
        """Arguments that make an equal likelihood, but for what is learned.

        Returns:
            The attributes that are named as the constructor's arguments are.
        """
        if type(self).__init__ is PyroModule.__init__:
            return {}
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def density(self, output: Tensor, num_batch_dims: int = 1) -> TorchDistributionMixin:
        """The distribution of targets for predictions, free of what only training weighs.

        Args:
            output: The network's output, shape ``(*batch, *event)``.
            num_batch_dims: Number of batch dimensions.

        Returns:
            A distribution with that many batch dimensions.
        """
        return self(output, num_batch_dims)

    def as_tensor(self, output: Any) -> Any:
        """What the network returns as one tensor, where the likelihood can tell.

        Args:
            output: What the network returned for one draw of its weights.

        Returns:
            A tensor, or the output as it is.
        """
        return output

    def by_task(self, target: Any) -> Any:
        """Targets by the names of tasks, where the columns of a data frame have them.

        Args:
            target: Observed targets, as the user has them.

        Returns:
            A mapping, or the targets as they are.
        """
        return target

    def as_target(self, target: Any) -> Any:
        """Targets as one tensor, where the likelihood can tell.

        Args:
            target: Observed targets.

        Returns:
            A tensor, or the targets as they are.
        """
        return target

    def target_shape(self, output_shape: torch.Size) -> torch.Size:
        """Shape that a target must have for an output of a shape.

        Args:
            output_shape: Shape of the network's output.

        Returns:
            The shape of the target.
        """
        return output_shape

    def moments(self, output: Tensor, num_batch_dims: int = 1) -> tuple[Tensor, Tensor]:
        """Mean and variance of the target given the output.

        Args:
            output: The network's output.
            num_batch_dims: Number of batch dimensions.

        Returns:
            The mean and the variance, of the same shape.

        Raises:
            NotImplementedError: If the distribution has none.
        """
        distribution = self.density(output, num_batch_dims)
        try:
            # Of labels torch says that they are NaN.
            if not isinstance(per_element(distribution), torch.distributions.Categorical):
                return distribution.mean, distribution.variance
        except NotImplementedError:  # torch says no more than that
            pass
        name = type(self).__name__
        raise NotImplementedError(
            f"The distribution of the {name} likelihood has no mean or variance of its own: write "
            f"{name}.moments(output, num_batch_dims), which returns both."
        )

    def convert_target(self, target: Tensor, output: Tensor) -> Tensor:
        """The target in the type in which the distribution takes it.

        Args:
            target: Observed targets.
            output: The network's output.

        Returns:
            The target.
        """
        return at_least_float32(target)

    def at_temperature(self, temperature: float) -> Likelihood:
        r"""A copy whose density is :math:`p(y \mid f)^{1/T}`, normalized.

        Args:
            temperature: :math:`T`, where 1 is the likelihood as it was trained.

        Returns:
            The copy, whose parameters are not trained.

        Raises:
            TypeError: If the likelihood has no tempered form, or the temperature is no number.
            ValueError: If the temperature is not positive and finite.
        """
        if not self._has_temperature:
            raise TypeError(f"The {type(self).__name__} likelihood has no temperature.")
        temperature = checked_temperature(temperature)
        tempered = self.detached()
        tempered.set_temperature(temperature)
        return tempered

    def set_temperature(self, temperature: float | Tensor) -> None:
        """Sets the temperature of this likelihood itself."""
        self.temperature = temperature

    @property
    def is_tempered(self) -> bool:
        """Whether the density is another than that of temperature 1."""
        return isinstance(self.temperature, Tensor) or self.temperature != 1.0

    def detached(self) -> Likelihood:
        """A copy that does not move with training."""
        copied = copy.deepcopy(self)
        copied.requires_grad_(requires_grad=False)
        return copied

    #: Whether `forward` acts on the temperature.
    _has_temperature: bool = False

    def check_target(self, target: Tensor, output: Tensor) -> None:
        """Checks that a target fits the network's output.

        Args:
            target: Observed targets.
            output: The network's output for one draw of the weights.

        Raises:
            TypeError: If the target has the wrong type.
            DataError: If it has the wrong shape or values outside of the support.
        """
        name = type(self).__name__
        expected = self.target_shape(output.shape)
        if target.shape != expected:
            raise DataError(
                f"The target has shape {tuple(target.shape)}, but for an output of shape "
                f"{tuple(output.shape)} the {name} likelihood expects {tuple(expected)}."
                + self._shape_hint(target, output)
            )
        if self.discrete:
            return
        if not target.is_floating_point():
            raise TypeError(
                f"The target has dtype {target.dtype}, but the {name} likelihood expects a "
                f"floating type: pass y.to({output.dtype})."
            )
        is_rounded = torch.is_autocast_enabled(output.device.type)
        if target.dtype.itemsize > output.dtype.itemsize and not is_rounded:
            raise TypeError(
                f"The target has dtype {target.dtype} and the network's output {output.dtype}: "
                f"pass y.to({output.dtype}), or a network.to({target.dtype})."
            )

    def _shape_hint(self, target: Tensor, output: Tensor) -> str:
        """What to write where a target has the wrong shape."""
        expected = self.target_shape(output.shape)
        if target.numel() == expected.numel():
            # Of a batch, while the user reshapes all targets.
            shape = ", ".join(map(str, (-1, *expected[1:])))
            return f" Write y.reshape({shape}), of pandas' y.to_numpy().reshape({shape})."
        if target.shape[:1] != output.shape[:1]:
            return (
                " The first dimension of both is the batch: if the network puts another one "
                "there, give SupervisedModel output=lambda out: out.transpose(0, 1)."
            ) * (len(target.shape) > 1 and target.shape[0] in output.shape[1:])
        return ""


def as_event(distribution: TorchDistributionMixin, num_batch_dims: int) -> TorchDistributionMixin:
    """A distribution with some batch dimensions, the others being events.

    Args:
        distribution: The distribution.
        num_batch_dims: Number of batch dimensions.

    Returns:
        The distribution.
    """
    num_event_dims = len(distribution.batch_shape) - num_batch_dims
    return distribution.to_event(num_event_dims) if num_event_dims > 0 else distribution


class Normal(Likelihood):
    r"""Gaussian noise of one standard deviation, known or learned.

    .. math:: p(y \mid f) = \mathcal N(y; f, \sigma^2)

    A learned scale is a point estimate without a prior. Where the network can interpolate the
    data, maximum likelihood drives it towards zero: prefer a known scale, or
    :class:`HeteroscedasticNormal` with ``min_scale``, if you cannot say that it will not.

    Args:
        scale: Standard deviation of the noise, in units of the target; the start if learned.
        learn_scale: Whether to learn it.

    Raises:
        TypeError: If the scale is no number.
        ValueError: If it is not positive and finite.

    Example:
        >>> Normal(0.5)(torch.zeros(4, 1)).variance[0].item()
        0.25
    """

    _has_temperature = True

    @named_arguments()
    def __init__(self, scale: float = 1.0, *, learn_scale: bool = False) -> None:
        super().__init__()
        scale = checked_scale("The scale of the Normal likelihood", scale)
        self.learn_scale = learn_scale
        self._known_scale = scale
        if learn_scale:
            self._parameters["log_scale"] = nn.Parameter(torch.tensor(scale).log())

    def arguments(self) -> dict[str, Any]:
        """The scale at the start, in full precision, and whether it is learned."""
        return {"scale": self._known_scale, "learn_scale": self.learn_scale}

    @property
    def scale(self) -> Tensor:
        """Standard deviation of the noise, in units of the target."""
        if not self.learn_scale:
            return torch.tensor(self._known_scale)
        parameter = self._parameters["log_scale"]
        assert parameter is not None
        return read_parameter(full_name(self, "log_scale"), parameter).exp()

    def forward(self, output: Tensor, num_batch_dims: int = 1) -> TorchDistributionMixin:
        """The distribution of targets, of the output's shape."""
        if self.learn_scale:
            scale = self.scale.to(output.dtype)
        else:
            scale = torch.full((), self._known_scale, dtype=output.dtype, device=output.device)
        if self.is_tempered:
            scale = scale * self.temperature**0.5
        return as_event(dist.Normal(output, scale, validate_args=False), num_batch_dims)

    def _shape_hint(self, target: Tensor, output: Tensor) -> str:
        if target.numel() * 2 == output.numel():
            return " Of two outputs for each target, a mean and a scale, HeteroscedasticNormal()."
        return super()._shape_hint(target, output)


#: What to write of outputs and targets in the layout of convolutional networks.
_IN_CHANNELS = (
    " If dimension 1 holds means and scales, give SupervisedModel output=lambda out: "
    "out.movedim(1, -1), and pass y.movedim(1, -1)."
)


class HeteroscedasticNormal(Likelihood):
    r"""Gaussian noise whose standard deviation the network predicts.

    The last dimension of the output holds the means and then the unconstrained scales:

    .. math:: p(y \mid f) = \mathcal N(y; f_1, (\sigma_\text{min} + \text{softplus}(f_2))^2)

    Args:
        min_scale: Smallest standard deviation, in units of the target.

    Raises:
        TypeError: If ``min_scale`` is no number.
        ValueError: If it is not positive and finite.

    Example:
        >>> HeteroscedasticNormal()(torch.zeros(4, 2)).mean.shape
        torch.Size([4, 1])
    """

    _has_temperature = True

    @named_arguments(elsewhere={"scale": "the network's second outputs give it"})
    def __init__(self, min_scale: float = 1e-3) -> None:
        super().__init__()
        self.min_scale = checked_scale("min_scale", min_scale)

    def forward(self, output: Tensor, num_batch_dims: int = 1) -> TorchDistributionMixin:
        """The distribution of targets, half as wide as the output."""
        self.target_shape(output.shape)
        loc, raw_scale = output.chunk(2, dim=-1)
        scale = self.min_scale + nn.functional.softplus(raw_scale)
        if self.is_tempered:
            scale = scale * self.temperature**0.5
        return as_event(dist.Normal(loc, scale, validate_args=False), num_batch_dims)

    def target_shape(self, output_shape: torch.Size) -> torch.Size:
        """The output's shape with half of its last dimension."""
        if len(output_shape) < 2 or output_shape[-1] % 2:
            raise DataError(
                f"HeteroscedasticNormal needs an output whose last dimension holds a mean and a "
                f"scale for each target, so an even number; got shape {tuple(output_shape)}."
                + _IN_CHANNELS
                * (len(output_shape) > 2 and not output_shape[1] % 2)
            )
        return torch.Size((*output_shape[:-1], output_shape[-1] // 2))

    def _shape_hint(self, target: Tensor, output: Tensor) -> str:
        batch_size, num_channels, *places = output.shape if output.dim() > 2 else (0, 0)
        if target.shape == (batch_size, num_channels // 2, *places):
            return _IN_CHANNELS
        return super()._shape_hint(target, output)
