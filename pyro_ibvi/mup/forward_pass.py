"""The steps of a network's forward pass: traced from its code, or recorded while it runs.

Both run the user's code, with what is no data in the first case, so a copy of the network is for
them to work on. A call of a known layer is one step, whatever the layer does inside.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pyro_ibvi._util.inputs import as_arguments, tensors_of
from pyro_ibvi._util.network_copies import is_parallel
from pyro_ibvi._util.random_state import own_random_numbers
from pyro_ibvi.mup.layers import is_known

#: What a parameter is that is applied to data number by number.
Use: TypeAlias = Literal["bias", "gain"]

#: Functions, methods and operators by name that take rows from a table.
_LOOKUPS = {"embedding", "embedding_bag", "index_select", "gather", "take_along_dim"}
#: Those that multiply by a matrix, so that its columns are summed over.
_PRODUCTS = {"linear", "bilinear", "matmul", "rmatmul", "mm", "bmm", "mv", "inner", "tensordot"}
_PRODUCTS |= {"addmm", "addmv", "addbmm", "baddbmm", "einsum", "conv1d", "conv2d", "conv3d"}
#: Those that give another form to their first argument, by sizes that may come from data.
_FORMS = {"getitem", "narrow", "expand", "expand_as", "broadcast_to", "repeat", "tile", "view"}
_FORMS |= {"view_as", "reshape", "reshape_as", "to", "type", "type_as"}
#: Those that add to a value or put something beside it, and those that multiply each number by
#: one of its own.
_ADDITIONS = {"add", "iadd", "radd", "sub", "isub", "rsub", "subtract", "cat", "concat", "stack"}
_ADDITIONS |= {"concatenate", "hstack", "vstack", "dstack"}
_FACTORS = {"mul", "imul", "rmul", "multiply", "truediv", "itruediv", "div", "divide"}
#: Those by which factors of numbers become weights of a sum.
_SUMS = {"sum", "mean", "nansum", "nanmean", "norm", "cumsum"}


@dataclass(frozen=True)
class Step:
    """One call in a forward pass.

    Attributes:
        target: What was called: a function, the name of a method, or the name of a module.
        inputs: Keys of the values that went in.
        outputs: Keys of those that came out, or were written to.
        is_module: Whether a module was called.
        is_lookup: Whether rows were taken from a table.
        parameter: Name of the parameter that was read, where that is all there is to the step, or
            of the buffer.
        kwargs: Keyword arguments.
    """

    target: Any
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    is_module: bool = False
    is_lookup: bool = False
    parameter: str | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_computed(self) -> bool:
        """Whether the step computes something of all of its inputs; a row of a table is data."""
        return not self.is_module and self.parameter is None and not self.is_lookup

    @property
    def is_form(self) -> bool:
        """Whether it is the first input that comes out, in another form."""
        return self.is_computed and _name(self.target) in _FORMS

    @property
    def is_product(self) -> bool:
        """Whether the step multiplies by a matrix, not by numbers one for each of another."""
        return not self.is_module and _name(self.target) in _PRODUCTS

    @property
    def is_sum(self) -> bool:
        """Whether the step sums or averages."""
        return not self.is_module and _name(self.target) in _SUMS

    @property
    def use(self) -> Use | None:
        """What a parameter is that the step applies to data; None if the step does not tell.

        What is put beside data, picked as a row, or read by a layer is as data are.
        """
        name = _name(self.target)
        if self.is_module or self.is_lookup or name in _ADDITIONS:
            return "bias"
        return "gain" if name in _FACTORS else None


def _name(target: Any) -> str:
    """Name of a function, a method or an operator, the same for all three."""
    return str(getattr(target, "__name__", target)).strip("_")


def _is_lookup(target: Any, args: tuple[Any, ...]) -> bool:
    """Whether a call takes rows that an index picks; a slice is no index."""
    if _name(target) != "getitem":
        return _name(target) in _LOOKUPS
    index = args[1] if isinstance(args[1], tuple) else args[1:]
    return not all(isinstance(part, (slice, int, type(None), type(...))) for part in index)


def trace_steps(net: nn.Module, *, training: bool = False) -> Iterator[Step]:
    """The steps of a symbolic trace.

    Args:
        net: A network to work on.
        training: The mode in which it is traced.

    Yields:
        The steps, in their order.
    """
    net.train(training)
    with own_random_numbers():
        graph = _LayerTracer().trace(net)
    for node in graph.nodes:
        is_read = node.op == "get_attr"
        yield Step(
            node.target,
            tuple(node.all_input_nodes),
            (node,),
            is_module=node.op == "call_module",
            is_lookup=node.op != "call_module" and _is_lookup(node.target, node.args),
            parameter=str(node.target) if is_read else None,
            kwargs=node.kwargs,
        )


class _LayerTracer(torch.fx.Tracer):
    """Traces calls of modules without looking inside the known ones.

    A trace replaces ``nn.Module.__call__`` for all threads; those that run networks meanwhile go
    past it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if is_parallel(m):
            return False
        return is_known(m) or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


def record_steps(net: nn.Module, example_input: Any, *, training: bool = False) -> list[Step]:
    """The steps of one pass on real data.

    Args:
        net: A network to work on.
        example_input: A batch of inputs: a tensor, a tuple of arguments or a mapping.
        training: The mode in which it runs.

    Returns:
        The steps, in their order.
    """
    args, kwargs = as_arguments(net.forward, example_input)
    recorder = _Recorder(net)
    net.train(training)
    with torch.no_grad(), own_random_numbers(), recorder:
        net(*args, **kwargs)
    return recorder.steps


class _Recorder(TorchFunctionMode):
    """Notes calls of torch's functions and of modules, outside of known layers."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self._alive: list[Tensor] = []  # an id names one tensor only as long as that lives
        self._layer: nn.Module | None = None
        own = [*net.named_parameters(), *net.named_buffers()]
        for name, tensor in own:
            self.steps.append(Step(name, (), (id(tensor),), parameter=name))
        self._seen = {id(tensor) for _, tensor in own}
        for name, module in net.named_modules():
            self._watch(module, name)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self._layer is None:
            changed: list[Any] = [result, kwargs.get("out")]
            if _writes(func):
                written = args[0]
                changed += [written, written._base] if isinstance(written, Tensor) else []
            is_lookup = _is_lookup(func, args)
            self._note(func, (args, dict(kwargs)), changed, is_lookup=is_lookup, kwargs=kwargs)
        return result

    def _watch(self, module: nn.Module, name: str) -> None:
        known = is_known(module)
        starts: list[int] = []

        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            starts.append(len(self.steps))
            if known and self._layer is None:
                self._layer = module

        def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            start = starts.pop()
            if known and self._layer is module:
                self._layer = None
                self._note(name, (args, kwargs), output, is_module=True)
            elif self._layer is None and any(id(t) not in self._seen for t in tensors_of(output)):
                # Made where no function of torch was seen, by NumPy say, of whatever went before.
                inside = [key for step in self.steps[start:] for key in step.outputs]
                self._note(None, (args, kwargs), output, is_module=True, more=inside)

        module.register_forward_pre_hook(before, with_kwargs=True)
        module.register_forward_hook(after, with_kwargs=True)

    def _note(
        self,
        target: Any,
        inputs: Any,
        outputs: Any,
        *,
        is_module: bool = False,
        is_lookup: bool = False,
        kwargs: Mapping[str, Any] | None = None,
        more: Iterable[int] = (),
    ) -> None:
        read, made = self._keys(tensors_of(inputs)), self._keys(tensors_of(outputs))
        read = (*read, *more)
        if made:
            self._seen.update(made)
            step = Step(target, read, made, is_module, is_lookup, kwargs=kwargs or {})
            self.steps.append(step)

    def _keys(self, tensors: Iterable[Tensor]) -> tuple[int, ...]:
        tensors = list(tensors)
        self._alive += tensors
        return tuple(dict.fromkeys(map(id, tensors)))


def _writes(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
