r"""Binary labels: of data, or several of each, with a weight of those that are 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from pyro_ibvi._util.arguments import named_arguments
from pyro_ibvi._util.checks import checked_weights
from pyro_ibvi._util.errors import DataError
from pyro_ibvi.models.likelihoods import Likelihood, as_event


class Bernoulli(Likelihood):
    r"""Binary labels, 0 or 1, of any number type; the output holds the logits.

    .. math:: p(y = 1 \mid f) = 1 / (1 + e^{-f})

    The weight is that of ``torch.nn.BCEWithLogitsLoss`` and means the same; it is for training
    alone. A target between 0 and 1 is a share, as of mixed data or of a teacher: then what is
    counted is, as in torch, the cross-entropy :math:`y \log p + (1 - y) \log(1 - p)`, which is
    no density of a label. Of a datum with several labels the loss is their sum.

    Args:
        pos_weight: Weight of labels that are 1: a number, or one for each label of a datum.

    Raises:
        TypeError: If the weight is a mapping or a word.
        ValueError: If it is negative or not finite.

    Example:
        >>> Bernoulli()(torch.zeros(4, 1)).mean[0].item()
        0.5
        >>> Bernoulli(pos_weight=3.0)(torch.zeros(2, 1)).log_prob(torch.tensor([[0.0], [1.0]]))
        tensor([-0.6931, -2.0794])
    """

    discrete = True
    _has_temperature = True
    #: Number of labels of a datum, of which its loss is the sum.
    num_summed: int = 1

    @named_arguments()
    def __init__(self, *, pos_weight: Tensor | Sequence[float] | float | None = None) -> None:
        super().__init__()
        self.register_buffer("pos_weight", checked_weights("pos_weight", pos_weight))

    def arguments(self) -> dict[str, Any]:
        """The weight, as numbers."""
        return {"pos_weight": None if self.pos_weight is None else self.pos_weight.tolist()}

    @property
    def is_plain(self) -> bool:
        """Whether every label counts as it is."""
        return self.pos_weight is None

    def forward(self, output: Tensor, num_batch_dims: int = 1) -> TorchDistributionMixin:
        """The distribution of labels, of the output's shape, as training counts it."""
        if self.pos_weight is None:
            return self.density(output, num_batch_dims)
        weight, event = self.pos_weight, output.shape[num_batch_dims:]
        try:
            weight = weight.to(output).expand(event)
        except RuntimeError as error:
            raise DataError(
                f"The Bernoulli likelihood has pos_weight of shape {tuple(weight.shape)}, and the "
                f"network's output has {tuple(event)} for each datum: give it a number, or one "
                f"for each of these."
            ) from error
        return as_event(WeightedBinary(self._logits(output), weight), num_batch_dims)

    def density(self, output: Tensor, num_batch_dims: int = 1) -> TorchDistributionMixin:
        """The distribution of labels without the weight."""
        law = dist.Bernoulli(logits=self._logits(output), validate_args=False)
        return as_event(law, num_batch_dims)

    def _logits(self, output: Tensor) -> Tensor:
        return output / self.temperature if self.is_tempered else output

    def convert_target(self, target: Tensor, output: Tensor) -> Tensor:
        """The target as floating point numbers."""
        return target.to(output.dtype)

    def check_target(self, target: Tensor, output: Tensor) -> None:
        """Checks shape and values of the labels."""
        super().check_target(target, output)
        self.num_summed = target[0].numel()
        is_label = ((target >= 0) & (target <= 1)) | target.isnan()
        if target.device.type == "cpu" and not is_label.all():
            low, high = target.min().item(), target.max().item()
            raise DataError(
                f"Bernoulli labels must be 0 or 1, or shares between them, got values from {low} "
                f"to {high}: of two values write (y > 0).float()."
            )

    def _shape_hint(self, target: Tensor, output: Tensor) -> str:
        if output.dim() > 1 and output.shape[-1] > 1 and target.shape == output.shape[:-1]:
            num = output.shape[-1]
            return (
                f" If a datum has one of {num} classes, which exclude each other: Categorical()."
            )
        return super()._shape_hint(target, output)


class WeightedBinary(dist.Bernoulli):  # type: ignore[misc]
    r"""Binary labels of which those that are 1 count by a weight.

    .. math:: w y \log p + (1 - y) \log(1 - p)

    Args:
        logits: Logits.
        weight: The weight :math:`w`, which can be broadcast to them.
    """

    def __init__(self, logits: Tensor, weight: Tensor) -> None:
        self.weight = weight
        super().__init__(logits=logits, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> WeightedBinary:
        """The same labels in a larger batch."""
        new: WeightedBinary = self._get_checked_instance(WeightedBinary, _instance)
        new.weight = self.weight
        super().expand(batch_shape, new)
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """The weighted log-density of each label."""
        logits, value = torch.broadcast_tensors(self.logits, value)
        return -binary_cross_entropy_with_logits(
            logits, value, pos_weight=self.weight, reduction="none"
        )

    def plain(self) -> TorchDistributionMixin:
        """The distribution without the weight."""
        return dist.Bernoulli(logits=self.logits, validate_args=False)
