r"""Class labels: of data, of pixels and of tokens, with those that do not count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_ibvi._util.arguments import named_arguments
from pyro_ibvi._util.checks import checked_weights, is_whole
from pyro_ibvi._util.errors import DataError
from pyro_ibvi.models.likelihoods import Likelihood


class Categorical(Likelihood):
    r"""Class labels; one dimension of the output holds the logits.

    .. math:: p(y = c \mid f) = \operatorname{softmax}(f)_c

    Its mean is the vector of class probabilities, that of the one-hot label. The options are those
    of ``torch.nn.functional.cross_entropy`` and mean the same: with ``reduction="mean"`` the
    loss of one draw is what that function gives. So where a datum has many labels (pixels,
    tokens), each label that counts is one observation of the mean, while ``num_data`` counts
    data. Weights and smoothing are for training alone: predictions and scores are those of the
    plain probabilities.

    Floating-point targets of the output's shape are shares :math:`q` of the classes, as of mixed
    data, smoothed labels or a teacher's probabilities. What is counted then is, as in torch, the
    cross-entropy :math:`\sum_c q_c \log p_c`, which is no density of a label: scores go by the
    class of the largest share, but for ``nll``, which is the cross-entropy, too.

    Args:
        class_dim: The output's dimension that holds the classes: -1, or 1 for the layout
            ``(batch, classes, height, width)`` of torch.
        ignore_index: Label that marks what was not observed, which counts nothing.
        weight: Weight of each class.
        label_smoothing: Share of a label that is spread over all classes.

    Raises:
        TypeError: If an option has the wrong type.
        ValueError: If it has a value outside its range.

    Example:
        >>> Categorical()(torch.zeros(4, 10)).log_prob(torch.zeros(4)).exp()
        tensor([0.1000, 0.1000, 0.1000, 0.1000])
        >>> pixels = Categorical(class_dim=1, ignore_index=255)
        >>> pixels.target_shape(torch.Size([4, 10, 32, 32]))
        torch.Size([4, 32, 32])
    """

    discrete = True
    _has_temperature = True

    @named_arguments(
        elsewhere={
            "num_classes": "the network's outputs say how many there are",
            "temperature": "calibrate finds it, and predict takes it",
        }
    )
    def __init__(
        self,
        *,
        class_dim: int = -1,
        ignore_index: int | None = None,
        weight: Tensor | Sequence[float] | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if not is_whole(class_dim) or class_dim == 0:
            raise ValueError(
                f"class_dim is the output's dimension that holds the classes, and the batch is "
                f"dimension 0: -1 or 1, got {class_dim!r}."
            )
        if ignore_index is not None and not is_whole(ignore_index):
            raise TypeError(f"ignore_index is a label, a whole number; got {ignore_index!r}.")
        if isinstance(label_smoothing, str) or not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is a share in [0, 1), got {label_smoothing!r}.")
        self.class_dim = class_dim
        self.ignore_index = ignore_index
        self.label_smoothing = float(label_smoothing)
        weight = checked_weights("weight", weight)
        if weight is not None and weight.dim() != 1:
            raise ValueError(f"weight holds a number for each class; got {weight.tolist()}.")
        self.register_buffer("weight", weight)

    def arguments(self) -> dict[str, Any]:
        """The options, weights as numbers."""
        weight = None if self.weight is None else self.weight.tolist()
        return {**super().arguments(), "weight": weight}

    @property
    def is_plain(self) -> bool:
        """Whether every label counts as it is, and classes come last."""
        return self.class_dim == -1 and self.ignore_index is None and not self._is_weighted

    @property
    def _is_weighted(self) -> bool:
        return self.weight is not None or self.label_smoothing > 0

    def forward(self, output: Tensor, num_batch_dims: int = 1) -> TorchDistributionMixin:
        """The distribution of labels, as training counts it."""
        return self._law(output, num_batch_dims, self.weight, self.label_smoothing)

    def density(self, output: Tensor, num_batch_dims: int = 1) -> TorchDistributionMixin:
        """The distribution of labels without weights and smoothing."""
        return self._law(output, num_batch_dims, None, 0.0)

    def _law(
        self, output: Tensor, num_batch_dims: int, weight: Tensor | None, smoothing: float
    ) -> TorchDistributionMixin:
        dim = self._dim(output.dim(), num_batch_dims)
        logits = output if dim == -1 else output.movedim(dim, -1)
        if self.is_tempered:
            logits = logits / self.temperature
        if weight is not None:
            if len(weight) != logits.shape[-1]:
                raise DataError(
                    f"The Categorical likelihood has weights for {len(weight)} classes, and the "
                    f"network's output of shape {tuple(output.shape)} has {logits.shape[-1]}."
                )
            weight = weight.to(logits)
        return Labels(logits, num_batch_dims, self.ignore_index, weight, smoothing)

    def _dim(self, num_dims: int, num_batch_dims: int) -> int:
        """The dimension of the classes, behind what draws put in front of the batch."""
        dim = self.class_dim + num_batch_dims - 1 if self.class_dim > 0 else self.class_dim
        if not -num_dims + num_batch_dims <= dim < num_dims:
            raise DataError(
                f"Categorical(class_dim={self.class_dim}) needs an output that has this "
                f"dimension beside the batch; the network's has "
                f"{num_dims - num_batch_dims + 1} dimension(s)."
            )
        return dim

    def class_dim_of(self, output: Tensor, num_batch_dims: int) -> int:
        """The dimension that holds the classes in an output, counted from the end.

        Args:
            output: The network's output.
            num_batch_dims: Number of batch dimensions.

        Returns:
            The dimension, negative.
        """
        dim = self._dim(output.dim(), num_batch_dims)
        return dim if dim < 0 else dim - output.dim()

    def target_shape(self, output_shape: torch.Size) -> torch.Size:
        """The output's shape without the dimension of the classes."""
        shape = list(output_shape)
        del shape[self._dim(len(shape), 1)]
        return torch.Size(shape)

    def moments(self, output: Tensor, num_batch_dims: int = 1) -> tuple[Tensor, Tensor]:
        """Mean and variance of the one-hot label, in the output's shape."""
        logits = output / self.temperature if self.is_tempered else output
        probabilities = logits.softmax(self._dim(output.dim(), num_batch_dims))
        return probabilities, probabilities * (1 - probabilities)

    def check_target(self, target: Tensor, output: Tensor) -> None:
        """Checks shape, integer type and range of the labels."""
        num_classes = output.shape[self._dim(output.dim(), 1)]
        if num_classes == 1:
            raise DataError(
                f"The network's output of shape {tuple(output.shape)} has a logit for one class, "
                f"whose probability is always 1: for labels 0 and 1 with one logit write "
                f"Bernoulli()."
            )
        if target.is_floating_point() and target.shape == output.shape:
            self._check_shares(target)
            return
        super().check_target(target, output)
        if target.is_floating_point() or target.is_complex():
            hint = "pass y.long()"
            if target.isnan().any():  # pandas makes such numbers of labels of which some lack
                hint = (
                    "NaN among them marks what is missing: give it a number of its own, as in "
                    "y.nan_to_num(-1).long(), of pandas' y.fillna(-1).astype(int), and write "
                    "Categorical(ignore_index=-1)"
                )
            raise TypeError(f"Class labels must be integers, got dtype {target.dtype}: {hint}.")
        if target.device.type == "cpu":  # an accelerator would have to be waited for
            self._check_range(target, num_classes)

    def _check_shares(self, target: Tensor) -> None:
        """Checks that numbers in the output's shape are shares of the classes."""
        dim = self._dim(target.dim(), 1)
        if target.device.type != "cpu":  # an accelerator would have to be waited for
            return
        if not bool(target.isfinite().all()):
            raise DataError(
                f"Shares of the classes hold NaN or infinite numbers, and one share cannot lack "
                f"alone: write y = y.nan_to_num(0.0) and then y = y / y.sum({dim}, keepdim=True) "
                f"where that is meant, and leave out data without any share."
            )
        sums = target.sum(dim, dtype=torch.promote_types(target.dtype, torch.float32))
        if bool((target >= 0).all()) and bool(((sums - 1).abs() < _TOLERANCE).all()):
            return
        low, high = (bound.item() for bound in target.aminmax())
        least, most = (bound.item() for bound in sums.aminmax())
        raise DataError(
            f"Floating targets of the output's shape {tuple(target.shape)} are shares of the "
            f"classes, from 0 on, with the sum 1 over dimension {dim}; got numbers from {low:.3g} "
            f"to {high:.3g} with sums from {least:.3g} to {most:.3g}. Of a teacher's logits pass "
            f"y.softmax({dim}), and of counts y / y.sum({dim}, keepdim=True); if the labels are "
            f"one-hot, pass y.argmax({dim}); if several may hold at once, write Bernoulli()."
        )

    def convert_target(self, target: Tensor, output: Tensor) -> Tensor:
        """Labels as they are; shares in the output's type, the classes last."""
        if not target.is_floating_point():
            return super().convert_target(target, output)
        return target.to(output.dtype).movedim(self._dim(target.dim(), 1), -1)

    def _check_range(self, target: Tensor, num_classes: int) -> None:
        if self.ignore_index is not None:
            target = target[target != self.ignore_index]
        if target.numel() == 0:
            return
        low, high = (int(bound.item()) for bound in target.aminmax())
        if low >= 0 and high < num_classes:
            return
        beyond = target[(target < 0) | (target >= num_classes)]
        label, is_mark = int(beyond[0].item()), bool((beyond == beyond[0]).all())
        hint = f" If {label} marks what was not observed, write ignore_index={label}." * is_mark
        if low == 1 and high == num_classes:
            hint = " If labels start at 1, pass y - 1."
        raise DataError(
            f"Expected labels of {num_classes} classes, from 0 to {num_classes - 1}; got values "
            f"from {low} to {high}.{hint}"
        )

    def _shape_hint(self, target: Tensor, output: Tensor) -> str:
        dim = self._dim(output.dim(), 1)
        if target.shape == output.shape:
            return f" If the labels are one-hot, pass y.argmax({dim})."
        other = 1 if dim in (-1, output.dim() - 1) else -1
        moved = Categorical(class_dim=other)
        if output.dim() > 2 and target.shape == moved.target_shape(output.shape):
            where = (
                "dimension 1 holds the classes, not the last" if other == 1 else "they come last"
            )
            return f" If {where}, write Categorical(class_dim={other})."
        return super()._shape_hint(target, output)


#: How far the sum of shares may be from 1, as in half precision.
_TOLERANCE = 1e-2


class Labels(TorchDistribution):
    r"""Labels of which some count nothing, and each class by its weight.

    With smoothing :math:`\epsilon`, weights :math:`w` and :math:`C` classes the log-density of
    a label that counts is that of ``torch.nn.functional.cross_entropy``,

    .. math:: (1 - \epsilon) w_y \log p_y + \frac{\epsilon}{C} \sum_c w_c \log p_c

    and of shares :math:`q` of the classes, of the logits' shape, the mean of that over labels,
    :math:`\sum_c q_c (\cdot)_c`.

    Args:
        logits: Logits, shape ``(*batch, *event, classes)``.
        num_batch_dims: Number of batch dimensions.
        ignore_index: Label that counts nothing.
        weight: Weight of each class.
        smoothing: Share of a label that is spread over all classes.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012

    def __init__(
        self,
        logits: Tensor,
        num_batch_dims: int,
        ignore_index: int | None = None,
        weight: Tensor | None = None,
        smoothing: float = 0.0,
    ) -> None:
        self.logits = logits.log_softmax(-1)
        self.ignore_index, self.weight, self.smoothing = ignore_index, weight, smoothing
        super().__init__(
            logits.shape[:num_batch_dims], logits.shape[num_batch_dims:-1], validate_args=False
        )

    @property
    def support(self) -> Any:
        """Whole numbers below the number of classes."""
        labels = constraints.integer_interval(0, self.logits.shape[-1] - 1)
        return constraints.independent(labels, len(self.event_shape))

    @property
    def probs(self) -> Tensor:
        """Class probabilities, the classes last."""
        return self.logits.exp()

    def expand(self, batch_shape: Any, _instance: Any = None) -> Labels:
        """The same labels in a larger batch."""
        new = self._get_checked_instance(Labels, _instance)
        shape = torch.Size((*batch_shape, *self.event_shape, self.logits.shape[-1]))
        new.logits = self.logits.expand(shape)
        new.ignore_index, new.weight = self.ignore_index, self.weight
        new.smoothing = self.smoothing
        TorchDistribution.__init__(
            new, torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        return new

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws labels."""
        law = torch.distributions.Categorical(logits=self.logits, validate_args=False)
        return law.sample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density, of the batch shape."""
        return self._sum(self.each_log_prob(value))

    def each_log_prob(self, value: Tensor) -> Tensor:
        """The log-density of each label, 0 where it does not count.

        Args:
            value: Labels.

        Returns:
            The log-densities in nats.
        """
        if self.is_soft(value):
            return self._of_shares(value)
        labels, counts = self._counted(value)
        logits = self.logits
        if labels.shape != logits.shape[:-1]:
            logits = logits.expand(*labels.shape, logits.shape[-1])
        chosen = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        if self.weight is not None:
            chosen = chosen * self.weight[labels]
        if self.smoothing:
            spread = logits if self.weight is None else logits * self.weight
            chosen = (1 - self.smoothing) * chosen + self.smoothing * spread.mean(-1)
        return chosen if counts is None else torch.where(counts, chosen, 0.0)

    def num_observed(self, value: Tensor) -> Tensor | None:
        """Number of labels that count, each by its class's weight, of the batch shape.

        Args:
            value: Labels.

        Returns:
            The numbers; None where each element of the batch has one label that counts.
        """
        if self.ignore_index is None and self.weight is None and not self.event_shape:
            return None
        if self.is_soft(value):  # each counts once, whatever its classes weigh, as in torch
            return self._sum(self.logits.new_ones(self.logits.shape[:-1]))
        labels, counts = self._counted(value)
        share = self.logits.new_ones(()) if self.weight is None else self.weight[labels]
        share = share.expand(labels.shape)
        return self._sum(share if counts is None else share * counts)

    def is_soft(self, value: Tensor) -> bool:
        """Whether targets are shares of the classes, which come last, rather than labels.

        Args:
            value: Targets.

        Returns:
            Whether they are.
        """
        own = self.logits.shape[-len(self.event_shape) - 2 :]
        return value.is_floating_point() and value.shape[-len(own) :] == own

    def plain(self) -> Labels:
        """The same labels, each counting once and as it is."""
        new = self.expand(self.batch_shape)
        new.weight, new.smoothing = None, 0.0
        return new

    def _of_shares(self, shares: Tensor) -> Tensor:
        logits = self.logits if self.weight is None else self.logits * self.weight
        if self.smoothing:
            shares = (1 - self.smoothing) * shares + self.smoothing / shares.shape[-1]
        return (shares * logits).sum(-1)

    def _counted(self, value: Tensor) -> tuple[Tensor, Tensor | None]:
        labels, shape = value.long(), self.logits.shape[:-1]
        if labels.shape != shape:  # torch takes its time to broadcast
            labels = labels.expand(torch.broadcast_shapes(labels.shape, shape))
        if self.ignore_index is None:
            return labels, None
        counts = labels != self.ignore_index
        return torch.where(counts, labels, 0), counts

    def _sum(self, terms: Tensor) -> Tensor:
        num_event_dims = len(self.event_shape)
        return terms.sum(tuple(range(-num_event_dims, 0))) if num_event_dims else terms
