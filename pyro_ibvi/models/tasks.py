r"""Several targets of different kinds for each datum."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any, NoReturn

import torch
from pyro.distributions import TorchDistribution, constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn.functional import one_hot

from pyro_ibvi._util.checks import check_positive_int, shown
from pyro_ibvi._util.errors import DataError
from pyro_ibvi._util.precision import side_by_side
from pyro_ibvi.models.labels import Categorical, Labels
from pyro_ibvi.models.likelihoods import Likelihood


class MultiTask(Likelihood):
    r"""Several targets of different kinds for each datum, independent given the network.

    .. math:: \log p(y \mid f) = \sum_t \log p_t(y_t \mid f_t)

    The network returns a mapping or a tuple with an output of shape ``(batch, width)`` for each
    task, or one tensor that holds them side by side; targets come as a mapping or a tuple, too,
    see ``target=`` of :class:`~pyro_ibvi.SupervisedModel`. Inside they are one tensor each, the
    tasks side by side, with a column for the labels of a task, or for the share of each class. A
    datum counts as one observation unless none of its targets is observed.

    Args:
        tasks: The likelihood of each task and the width of its output, by the task's name.

    Raises:
        TypeError: If they are no mapping, or a task is not such a pair.
        ValueError: If there is no task, or a width is not positive.

    Example:
        >>> from pyro_ibvi import Categorical, Normal
        >>> likelihood = MultiTask({"kind": (Categorical(), 5), "age": (Normal(0.1), 1)})
        >>> output = likelihood.as_tensor({"kind": torch.zeros(4, 5), "age": torch.zeros(4, 1)})
        >>> target = likelihood.as_target((torch.tensor([0, 1, 2, 3]), torch.zeros(4, 1)))
        >>> output.shape, target.shape, likelihood(output).log_prob(target).shape
        (torch.Size([4, 6]), torch.Size([4, 2]), torch.Size([4]))
    """

    allows_missing = True  # each task checks its own

    def __init__(self, tasks: Mapping[str, tuple[Likelihood, int]]) -> None:
        super().__init__()
        if not isinstance(tasks, Mapping):
            raise TypeError(
                f"MultiTask takes its tasks by name, such as "
                f'{{"kind": (Categorical(), 5), "age": (Normal(0.1), 1)}}, got {shown(tasks)}.'
            )
        if not tasks:
            raise ValueError("MultiTask needs a task at least.")
        for name, task in tasks.items():
            is_pair = isinstance(task, (tuple, list)) and len(task) == 2
            if (
                not is_pair
                or not isinstance(task[0], Likelihood)
                or isinstance(task[0], MultiTask)
            ):
                raise TypeError(
                    f"Each task is a pair of a likelihood and the width of its output, such as "
                    f"(Categorical(), 10); got {task!r} for {name!r}."
                )
            check_positive_int(f"The width of {name!r}", task[1])
        likelihoods: Any = {name: task[0] for name, task in tasks.items()}
        # A PyroModule, so that parameters have their task's name.
        self.tasks = PyroModule[nn.ModuleDict](likelihoods)
        self.widths = {name: int(width) for name, (_, width) in tasks.items()}
        # Each step asks for them several times.
        self._columns = {soft: self._columns_of(soft=soft) for soft in (False, True)}

    def arguments(self) -> dict[str, Any]:
        """The likelihoods and widths of the tasks."""
        return {"tasks": {name: (self.likelihoods[name], w) for name, w in self.widths.items()}}

    @property
    def likelihoods(self) -> dict[str, Likelihood]:
        """The likelihoods of the tasks by name."""
        return dict(self.tasks.items())

    @property
    def num_targets(self) -> int:
        """Number of targets of a datum, the label of a class counted as one."""
        return _total(self._columns[False])

    def split(self, output: Tensor) -> dict[str, Tensor]:
        """The outputs of the tasks in an output that holds them side by side.

        Args:
            output: The output, shape ``(*batch, sum of widths)``.

        Returns:
            The outputs by task.
        """
        parts = output.split(list(self.widths.values()), dim=-1)
        return dict(zip(self.widths, parts, strict=True))

    def split_target(self, target: Tensor) -> dict[str, Tensor]:
        """The targets of the tasks, as their likelihoods take them.

        Args:
            target: Targets side by side.

        Returns:
            The targets by task.
        """
        columns = self._columns[self.holds_shares(target)]
        parts = target.split([max(1, number) for number in columns.values()], dim=-1)
        named = zip(columns.items(), parts, strict=True)
        return {name: part if number else part[..., 0] for (name, number), part in named}

    def holds_shares(self, target: Tensor) -> bool:
        """Whether targets side by side are shares of the classes where others have labels.

        Args:
            target: Targets side by side.

        Returns:
            Whether they are: those of all tasks of classes, or of none.
        """
        labels, shares = map(_total, self._columns.values())
        return labels != shares and target.shape[-1:] == (shares,)

    def as_tensor(self, output: Any) -> Any:
        """The outputs of the tasks side by side."""
        return self._joined("output", output, self.widths)

    def by_task(self, target: Any) -> Any:
        """Columns of a data frame by the tasks' names, in whatever order they are."""
        if self.widths.keys() <= set(getattr(target, "columns", ())):
            return {name: target[name] for name in self.widths}
        return target

    def as_target(self, target: Any) -> Any:
        """The targets of the tasks side by side, as floating point numbers."""
        if isinstance(target, (tuple, list)) and len(target) == len(self.widths):
            target = dict(zip(self.widths, target, strict=True))
        is_named = isinstance(target, Mapping)
        soft = is_named and any(self._is_share(n, target.get(n)) for n in self.widths)
        if soft:
            target = {name: self._as_share(name, part) for name, part in target.items()}
        return self._joined("target", target, self._columns[soft])

    def _is_share(self, name: str, part: Any) -> bool:
        """Whether targets of a task are shares of its classes."""
        is_float = isinstance(part, Tensor) and part.is_floating_point()
        of_classes = isinstance(self.likelihoods.get(name), Categorical)
        return is_float and of_classes and part.shape == (len(part), self.widths[name])

    def _as_share(self, name: str, part: Any) -> Any:
        """Labels as shares of 1, to stand beside the shares of another task."""
        likelihood = self.likelihoods.get(name)
        if not isinstance(likelihood, Categorical):
            return part
        labels = torch.as_tensor(part)
        if labels.shape[1:] == (self.widths[name],):  # whole numbers are shares, too: one-hot
            return part
        labels = labels.reshape(-1)
        likelihood.check_target(labels, labels.new_empty((len(labels), self.widths[name])))
        if likelihood.ignore_index is not None and (labels == likelihood.ignore_index).any():
            raise DataError(
                f"The task {name!r} has labels that are missing beside a task whose targets are "
                f"shares of classes, of which none can be: leave such data out, or pass labels to "
                f"all tasks."
            )
        return one_hot(labels.long(), self.widths[name]).to(torch.get_default_dtype())

    def _joined(self, what: str, data: Any, widths: Mapping[str, int]) -> Any:
        if isinstance(data, Tensor):
            return data
        if not isinstance(data, Mapping):
            if not isinstance(data, (tuple, list)) or len(data) != len(widths):
                raise TypeError(
                    f"MultiTask needs an {what} for each of {list(widths)}, as a mapping or a "
                    f"tuple; got {type(data).__name__}."
                )
            data = dict(zip(widths, data, strict=True))
        parts: list[Tensor] = []
        for name, width in widths.items():
            if name not in data:
                raise DataError(f"No {what} for the task {name!r} among {list(data)}.")
            part = torch.as_tensor(data[name])
            size = len(parts[0]) if parts else part.shape[:1].numel()
            expected = (size, width) if width else (size,)
            if part.shape != expected and (width > 1 or part.shape not in ((size,), (size, 1))):
                is_one_hot = what == "target" and part.shape == (size, self.widths[name])
                hint = " If the labels are one-hot, pass y.argmax(-1)." * (
                    is_one_hot and not width
                )
                raise DataError(
                    f"The {what} of the task {name!r} has shape {tuple(part.shape)}, expected "
                    f"{expected}.{hint}"
                )
            parts.append(part.reshape(size, max(1, width)))
        kinds = [part.dtype for part in parts if part.is_floating_point()]
        dtype = reduce(torch.promote_types, kinds) if kinds else torch.get_default_dtype()
        return side_by_side(parts, dtype)

    def _columns_of(self, *, soft: bool) -> dict[str, int]:
        """Number of targets of each task, where classes have shares or labels."""
        return {
            name: self.widths[name]
            if soft and isinstance(likelihood, Categorical)
            else self._num_columns(name)
            for name, likelihood in self.likelihoods.items()
        }

    def _num_columns(self, name: str) -> int:
        """Number of targets of a task beside the batch; 0 where it has one without a dimension."""
        shape = self.likelihoods[name].target_shape(torch.Size((1, self.widths[name])))
        return shape[1] if len(shape) > 1 else 0

    def forward(self, output: Tensor, num_batch_dims: int = 1) -> TorchDistributionMixin:
        """The joint distribution of the tasks' targets."""
        return self._joint(output, num_batch_dims, density=False)

    def density(self, output: Tensor, num_batch_dims: int = 1) -> TorchDistributionMixin:
        """The joint distribution, free of what only training weighs."""
        return self._joint(output, num_batch_dims, density=True)

    def _joint(self, output: Tensor, num_batch_dims: int, *, density: bool) -> Joint:
        outputs = self.split(output)
        laws = {
            name: (likelihood.density if density else likelihood)(outputs[name], num_batch_dims)
            for name, likelihood in self.likelihoods.items()
        }
        return Joint(self, laws, torch.promote_types(output.dtype, torch.float32))

    def at_temperature(self, temperature: float) -> NoReturn:
        """Refused: each task has a temperature of its own.

        Args:
            temperature: A temperature.

        Raises:
            TypeError: Always.
        """
        raise TypeError(
            "Several tasks have no temperature in common: find each one's by "
            "pyro_ibvi.prediction.fit_temperature(prediction['name'], y['name']).value, and ask "
            "prediction['name'].at_temperature(value)."
        )

    def target_shape(self, output_shape: torch.Size) -> torch.Size:
        """The batch and a column for each target."""
        total = sum(self.widths.values())
        if len(output_shape) != 2 or output_shape[-1] != total:
            raise DataError(
                f"MultiTask with the widths {self.widths} needs an output of shape (batch, "
                f"{total}), got {tuple(output_shape)}."
            )
        return torch.Size((output_shape[0], self.num_targets))

    def moments(self, output: Tensor, num_batch_dims: int = 1) -> tuple[Tensor, Tensor]:
        """Moments of the tasks side by side."""
        outputs = self.split(output)
        moments = [
            likelihood.moments(outputs[name], num_batch_dims)
            for name, likelihood in self.likelihoods.items()
        ]
        return torch.cat([m for m, _ in moments], -1), torch.cat([v for _, v in moments], -1)

    def check_target(self, target: Tensor, output: Tensor) -> None:
        """Checks each task's targets."""
        soft = self.holds_shares(target)
        num_labels = self.target_shape(output.shape)[1]
        super().check_target(target[:, :num_labels] if soft else target, output)
        outputs, targets = self.split(output), self.split_target(target)
        for name, likelihood in self.likelihoods.items():
            part, of_classes = targets[name], isinstance(likelihood, Categorical)
            if not likelihood.allows_missing and not of_classes and part.isnan().any():
                raise DataError(
                    f"The target of the task {name!r} holds NaN: remove or impute such data, or "
                    f"write Masked(...) around its likelihood."
                )
            is_whole = not bool((part != part.round()).any())
            is_share = soft and of_classes
            if likelihood.discrete and not likelihood.allows_missing and is_whole and not is_share:
                part = part.long()
            likelihood.check_target(part, outputs[name])


def _total(columns: Mapping[str, int]) -> int:
    return sum(max(1, number) for number in columns.values())


class Joint(TorchDistribution):
    """The targets of several tasks side by side.

    Args:
        likelihood: The likelihood, which knows where each task's targets are.
        laws: The distribution of each task's targets.
        dtype: Type of the targets.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012

    def __init__(self, likelihood: MultiTask, laws: dict[str, Any], dtype: torch.dtype) -> None:
        self.likelihood, self.laws, self.dtype = likelihood, laws, dtype
        batch_shape = next(iter(laws.values())).batch_shape
        num_columns = sum(law.event_shape.numel() for law in laws.values())
        super().__init__(batch_shape, torch.Size((num_columns,)), validate_args=False)

    @property
    def support(self) -> Any:
        """Real numbers, among them labels and counts."""
        return constraints.real_vector

    def expand(self, batch_shape: Any, _instance: Any = None) -> Joint:
        """The same targets in a larger batch."""
        shape = torch.Size(batch_shape)
        laws = {name: law.expand(shape) for name, law in self.laws.items()}
        return Joint(self.likelihood, laws, self.dtype)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws targets of all tasks."""
        drawn = [law.sample(torch.Size(sample_shape)) for law in self.laws.values()]
        columns = [
            part if law.event_shape else part.unsqueeze(-1)
            for part, law in zip(drawn, self.laws.values(), strict=True)
        ]
        return torch.cat([column.to(self.dtype) for column in columns], dim=-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """The sum of the tasks' log-densities, of the batch shape."""
        targets = self._targets(value)
        return torch.stack([law.log_prob(targets[n]) for n, law in self.laws.items()]).sum(0)

    def _targets(self, value: Tensor) -> dict[str, Tensor]:
        """The targets of each task, class labels as whole numbers again."""
        targets = self.likelihood.split_target(value)
        soft = self.likelihood.holds_shares(value)
        return {
            name: targets[name].long() if isinstance(law, Labels) and not soft else targets[name]
            for name, law in self.laws.items()
        }

    def num_observed(self, value: Tensor) -> Tensor:
        """1 where some task's target is observed, of the batch shape.

        Args:
            value: Targets.

        Returns:
            The numbers.
        """
        targets = self._targets(value)
        counts = [
            None if not hasattr(law, "num_observed") else law.num_observed(targets[name])
            for name, law in self.laws.items()
        ]
        seen = torch.zeros(self.batch_shape, dtype=torch.bool, device=value.device)
        for count in counts:
            seen = seen | (torch.ones_like(seen) if count is None else count > 0)
        return seen.to(value.dtype)
