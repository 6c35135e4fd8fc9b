"""What of a batch goes into the network and what is the target."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from pyro_ibvi._util.errors import DataError
from pyro_ibvi._util.inputs import first_tensor
from pyro_ibvi._util.network_copies import unwrap

#: One part of a batch: its position in a tuple or its name in a mapping.
Part = int | str
#: The network's inputs: parts in the order of its arguments, or by their names.
Inputs = Part | Sequence[Part] | Mapping[str, Part]
Target = Part | Sequence[Part]

#: What data loaders call the target.
TARGETS = ("y", "label", "labels", "target", "targets")


class BatchReader:
    """Reads batches: pairs, tuples of several inputs and a target, mappings with labels.

    Without ``inputs`` and ``target`` it takes what has one reading: a pair is inputs and target;
    a longer tuple ends in the target if the network takes exactly the others; in a mapping the
    target is what is called so (``labels``, ``target``, ``y``), or the one part that the network
    does not take.

    Args:
        network: The network.
        inputs: Which parts of a batch the network gets.
        target: Which part is the target, or which parts are the targets of several tasks; of a
            batch that is one object, such as a batch of graphs, the name of its attribute.
        tasks: The tasks by name, if any; targets of other names are theirs in their order.

    Raises:
        TypeError: If the parts are neither positions nor names.
    """

    def __init__(
        self,
        network: nn.Module,
        inputs: Inputs | None,
        target: Target | None,
        tasks: Mapping[str, Any] | None = None,
    ) -> None:
        for name, parts in (("inputs", inputs), ("target", target)):
            if parts is not None and not all(_is_part(part) for part in _parts(parts)):
                raise TypeError(
                    f"{name} names parts of a batch, by positions such as 0 or names such as "
                    f"'labels'; got {parts!r}."
                )
        self.inputs, self.target = inputs, target
        self.tasks = frozenset(tasks if isinstance(tasks, Mapping) else ())
        self.signature = Signature(network)
        self._columns: list[str] = []

    def check_columns(self, x: Any) -> None:
        """Refuses a data frame whose columns are others than those of the first one, or turned.

        Columns without a name in common have none of their own, as those of an array.

        Args:
            x: Inputs, as the user has them.

        Raises:
            DataError: If they are.
        """
        columns = list(map(str, getattr(x, "columns", ()))) if hasattr(x, "to_numpy") else []
        self._columns = self._columns or columns
        if columns != self._columns and sorted(columns) == sorted(self._columns):
            raise DataError(
                f"The data frame has the columns {columns[:10]}, and the first one that was given "
                f"had the same in another order, {self._columns[:10]}: features go by their "
                f"places, so pass x[first.columns]."
            )
        is_other = columns != self._columns and len(columns) == len(self._columns)
        if is_other and not set(columns).isdisjoint(self._columns):
            here, there = (
                [c for c in ours if c not in theirs][:10]
                for ours, theirs in ((columns, self._columns), (self._columns, columns))
            )
            raise DataError(
                f"The data frame has the columns {here}, where the first one that was given had "
                f"{there}: pass the same features; if names alone have changed, "
                f"x.set_axis(first.columns, axis=1)."
            )

    def read(self, batch: Sequence[Any] | Mapping[str, Any]) -> tuple[Any, Any]:
        """Inputs and target of a batch.

        Args:
            batch: Its parts by position or by name.

        Returns:
            The inputs, as :func:`~pyro_ibvi._util.inputs.as_call` takes them, and the target,
            None if there is none.

        Raises:
            DataError: If the batch has no such parts, or more than one reading.
        """
        if self.inputs is not None or self.target is not None:
            return self._read_as_told(batch)
        if isinstance(batch, Mapping):
            return self._read_mapping(dict(batch))
        if len(batch) <= 2:
            return batch[0], batch[1] if len(batch) == 2 else None
        if self.signature.required == len(batch) - 1 == self.signature.most:
            return tuple(batch[:-1]), batch[-1]
        raise DataError(
            f"The batch has {len(batch)} parts, and the network takes {self.signature}: say which "
            f"of them are its inputs and which is the target, as in "
            f"SupervisedModel(..., inputs=[0], target=1), or let the loader yield "
            f"((first, second, ...), target)."
        )

    def read_inputs(self, x: Any) -> Any:
        """The inputs among what is there to be predicted: a mapping may hold labels too.

        Args:
            x: Inputs.

        Returns:
            The inputs without a target.
        """
        if isinstance(x, Mapping):
            return self.read(x)[0]
        self.check_columns(x)
        return x

    def _read_as_told(self, batch: Sequence[Any] | Mapping[str, Any]) -> tuple[Any, Any]:
        names = list(batch) if isinstance(batch, Mapping) else list(range(len(batch)))
        if names == [0]:  # inputs alone, made by hand, or an object that holds both, as of graphs
            return batch[0], self._attribute_of(batch[0])  # type: ignore[index]
        target, inputs = None, self._told_inputs(batch, names)
        if self.target is not None:
            told = _from_front(_parts(self.target), names)
            is_there = any(part in names for part in told)
            if not is_there and not isinstance(batch, Mapping) and not self.inputs:
                is_there = len(batch) != self.signature.required  # else they are inputs alone
            if is_there:
                found = {str(part): _find(batch, part, names) for part in told}
                target = self._of_tasks(found)
        elif not isinstance(batch, Mapping):
            used = _from_front(_parts(self.inputs), names)
            left = [name for name in names if name not in used]
            target = _find(batch, left[-1], names) if len(left) == 1 else None
            if len(left) > 1:
                raise DataError(
                    f"The parts {left} of the batch are no inputs: say which is the target, as in "
                    f"SupervisedModel(..., target={left[0]})."
                )
        else:
            left = [name for name in names if name not in _parts(self.inputs)]
            target = batch[self._target_among(left, batch)] if left else None
        return inputs, target

    def _attribute_of(self, x: Any) -> Any:
        is_object = isinstance(self.target, str) and self.inputs is None
        return (
            getattr(x, str(self.target), None) if is_object and first_tensor(x) is None else None
        )

    def _of_tasks(self, found: dict[str, Any]) -> Any:
        """Targets by the tasks' names, or in their order where they have other names."""
        if not _is_several(self.target):
            return next(iter(found.values()))
        return tuple(found.values()) if self.tasks and not self.tasks & found.keys() else found

    def _told_inputs(self, batch: Any, names: list[Any]) -> Any:
        inputs = self.inputs
        if inputs is None:
            targets = _from_front(_parts(self.target), names)
            rest = [name for name in names if name not in targets]
            return self._arrange({name: batch[name] for name in rest})
        if isinstance(inputs, Mapping):
            return {name: _find(batch, part, names) for name, part in inputs.items()}
        found = {part: _find(batch, part, names) for part in _parts(inputs)}
        if not _is_several(inputs):
            return next(iter(found.values()))
        return self._arrange(found)

    def _read_mapping(self, batch: dict[str, Any]) -> tuple[Any, Any]:
        name = self._target_among(list(batch), batch)
        target = None if name is None else batch.pop(name)
        return self._arrange(batch), target

    def _target_among(self, names: list[Any], batch: Any) -> Any:
        """Name of the target among the parts of a mapping, None if all are inputs."""
        called = [name for name in names if name in TARGETS]
        foreign = [name for name in names if not self.signature.takes(name)]
        if len(called) > 1:
            called = [name for name in called if name in foreign]
        if len(called) == 1:
            return called[0]
        if not called and len(foreign) <= 1:
            # A network's only input may have another name than its argument.
            return foreign[0] if foreign and len(names) > 1 else None
        hint = " If the network takes the mapping as a whole, put it into a tuple: predict((x,))."
        hint *= self.signature.most == 1
        raise DataError(
            f"The batch has the parts {list(batch)}, and the network takes {self.signature}: say "
            f"which is the target, as in SupervisedModel(..., target={names[-1]!r}), and which "
            f"are inputs, as in inputs={self._likely_inputs(names[:-1])}.{hint}"
        )

    def _arrange(self, parts: dict[Any, Any]) -> Any:
        """Parts as arguments: by name if the network has such arguments, else in their order."""
        if parts and all(isinstance(name, str) and self.signature.takes(name) for name in parts):
            return parts
        if len(parts) == 1 or all(isinstance(name, int) for name in parts):
            values = list(parts.values())
            return values[0] if len(values) == 1 else tuple(values)
        if self.inputs is not None:
            return tuple(parts.values())
        foreign = [name for name in parts if not self.signature.takes(name)]
        raise DataError(
            f"The network takes {self.signature}, and not the parts {foreign} of the batch: name "
            f"its inputs, as in SupervisedModel(..., inputs={self._likely_inputs(list(parts))})."
            + " If it takes the mapping as a whole, let the loader yield ((mapping,), target)."
            * (self.signature.most == 1)
        )

    def _likely_inputs(self, names: list[Any]) -> list[Any]:
        """Parts that are the network's by their names, none left out, such as a mask."""
        return [name for name in names if self.signature.takes(name)] or names[:1]


class Signature:
    """The arguments that a network takes.

    Args:
        network: The network.
    """

    def __init__(self, network: nn.Module) -> None:
        network, _ = unwrap(network)
        try:
            parameters = list(inspect.signature(network.forward).parameters.values())
        except (TypeError, ValueError):
            parameters = [inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL)]
        kinds = inspect.Parameter
        named = [
            p for p in parameters if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
        ]
        placed = [
            p for p in parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
        ]
        self.names = [p.name for p in named]
        self.required = sum(p.default is kinds.empty for p in placed)
        is_open = any(p.kind is kinds.VAR_POSITIONAL for p in parameters)
        self.most = None if is_open else len(placed)
        self._takes_all = any(p.kind is kinds.VAR_KEYWORD for p in parameters)
        self._text = ", ".join(str(p).partition(":")[0].partition("=")[0] for p in parameters)

    def takes(self, name: Any) -> bool:
        """Whether there is an argument of a name.

        Args:
            name: The name.

        Returns:
            Whether it can be passed by keyword.
        """
        return name in self.names or (self._takes_all and name not in TARGETS)

    def __str__(self) -> str:
        return f"({self._text})"


def _is_part(part: Any) -> bool:
    return isinstance(part, (int, str)) and not isinstance(part, bool)


def _is_several(parts: Any) -> bool:
    return isinstance(parts, (Sequence, Mapping)) and not isinstance(parts, str)


def _parts(parts: Any) -> list[Any]:
    if isinstance(parts, Mapping):
        return list(parts.values())
    return list(parts) if _is_several(parts) else [parts]


def _from_front(parts: list[Any], names: list[Any]) -> list[Any]:
    """Parts with positions from the end, such as -1, as positions from the front."""
    last = {position - len(names): position for position in names if isinstance(position, int)}
    return [last.get(part, part) for part in parts]


def _find(batch: Any, part: Part, names: list[Any]) -> Any:
    (part,) = _from_front([part], names)
    if part not in names:
        kind = "mapping with the parts" if isinstance(batch, Mapping) else "tuple with the parts"
        raise DataError(f"The batch has no part {part!r}; it is a {kind} {names}.")
    return batch[part]


def describe(data: Any) -> str:
    """What data are, in a few words.

    Args:
        data: Anything.

    Returns:
        Types and shapes.
    """
    if isinstance(data, Tensor):
        return f"a tensor of shape {tuple(data.shape)}"
    if isinstance(data, Mapping):
        return "{" + ", ".join(f"{k!r}: {describe(v)}" for k, v in data.items()) + "}"
    if isinstance(data, (tuple, list)):
        return "(" + ", ".join(describe(v) for v in data) + ")"
    return f"a {type(data).__name__}"
