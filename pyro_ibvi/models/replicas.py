"""A network's structure, copied for one run with weights of its own.

``torch.func.functional_call`` puts weights into the one module that everybody shares, and takes
them out again when the call returns. So two threads see one another's weights, and a block under
``torch.utils.checkpoint``, which runs again in the backward pass, finds them gone. Here each run
gets a copy of the structure instead: new module objects with dictionaries of their own, which
share parameters, buffers, hooks and everything else with the network. It lives as long as someone
refers to it, such as the graph of a checkpointed block, and takes its weights with it.

What a forward pass writes on its modules (a recurrent state kept between batches, a counter, an
activation) lands on the copy; :meth:`Replica.keep` brings it to the network, where the next run
finds it.
"""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyro_ibvi._util.references import CONTAINERS, PLAIN, rebind

#: The path to a module and the name of one of its parameters.
Place = tuple[tuple[str, ...], str]

#: What a layer's input becomes.
InputMap = Callable[[Tensor], Tensor]

#: What sees a layer's name and output.
Watch = Callable[[str, Any], None]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")

#: What torch's base class keeps on a module, and what recurrent layers derive from their weights.
_INTERNAL = frozenset(nn.Module().__dict__) | {
    "_flat_weights",
    "_flat_weight_refs",
    "_flat_weights_names",
    "_all_weights",
}

_MISSING: Any = object()

#: By module: its attributes' values, and the names of those that may lead to modules.
Known = dict[int, tuple[dict[str, Any], list[str]]]


def find_places(net: nn.Module) -> dict[str, list[Place]]:
    """Where each parameter is: in several modules if they share it.

    Args:
        net: The network.

    Returns:
        The places by the parameter's name in ``net.named_parameters()``.
    """
    places: dict[Tensor, list[Place]] = {}
    for name, parameter in net.named_parameters(remove_duplicate=False):
        *path, key = name.split(".")
        places.setdefault(parameter, []).append((tuple(path), key))
    return {name: places[parameter] for name, parameter in net.named_parameters()}


class Replica:
    """A copy of a network's structure for one run.

    Args:
        net: The network, which is left as it is.
        own_buffers: Whether the copy has buffers of its own, or updates the network's.
        training: The mode to run in, if it is not to be the network's.
        known: What earlier runs found out of the same network, to be handed from one to the next.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        own_buffers: bool = False,
        training: bool | None = None,
        known: Known | None = None,
    ) -> None:
        self._known = {} if known is None else known
        self._pairs: dict[int, tuple[nn.Module, nn.Module]] = {}
        self._containers: dict[int, tuple[Any, Any, Any]] = {}
        self._buffers: list[tuple[Tensor, Tensor]] = []
        self.network = self._copy(net)
        for original, new in self._pairs.values():
            names = self._leading_names(original)
            if names:
                self._take_attributes(new.__dict__, names)
        if own_buffers:
            self._copy_buffers()
        if training is not None:
            self.network.train(training)
        self._before = {id(new): new.__dict__.copy() for _, new in self._pairs.values()}

    def put(self, values: Mapping[str, Tensor], places: Mapping[str, Iterable[Place]]) -> None:
        """Puts weights in place of parameters.

        Args:
            values: The weights by name.
            places: Where they go, see :func:`find_places`.
        """
        for name, value in values.items():
            for path, key in places[name]:
                module = self.network
                for part in path:
                    module = module._modules[part]  # type: ignore[assignment]
                module._parameters[key] = value  # type: ignore[assignment]

    def map_input(self, layer: str, function: InputMap) -> None:
        """Lets a layer see a function of its first input.

        Args:
            layer: Name of the layer.
            function: The function.
        """
        module: Any = self.network
        for part in layer.split(".") if layer else ():
            module = module._modules[part]

        def mapped(_: nn.Module, forward: Any, first: Any, *args: Any, **kwargs: Any) -> Any:
            return forward(function(first), *args, **kwargs)

        # Past torch's hooks, which take their time.
        self.set_forward(module, mapped)

    def set_forward(self, module: nn.Module, around: Callable[..., Any]) -> None:
        """Puts a function around a module's forward; it counts as no change by the run.

        Args:
            module: One of the copy's modules.
            around: Takes the module, its forward as it was, and the arguments.
        """
        # A module that refers to itself would live, and its weights with it, until Python looks
        # for such circles: hundreds of megabytes later.
        weak, own = weakref.ref(module), module.__dict__.get("forward")

        def forward(*args: Any, **kwargs: Any) -> Any:
            owner: Any = weak()
            inner = functools.partial(type(owner).forward, owner) if own is None else own
            return around(owner, inner, *args, **kwargs)

        module.__dict__["forward"] = self._before[id(module)]["forward"] = forward

    def watch(self, layer: str, function: Watch) -> None:
        """Shows a layer's output when it runs.

        Args:
            layer: Name of the layer.
            function: Takes the name and the output.
        """
        module = self.network.get_submodule(layer)
        module.__dict__["_forward_hooks"] = module._forward_hooks.copy()
        module.register_forward_hook(lambda _, inputs, output: function(layer, output))

    def is_changed(self) -> bool:
        """Whether the run wrote on its modules or buffers, so that the next may differ."""
        return (
            any(_is_written(new) for _, new in self._buffers)
            or any(True for _ in self._changed_modules())
            or any(True for _ in self._changed_containers())
        )

    def keep(self, *, attributes: bool = True) -> None:
        """Brings what the run wrote to the network, numbers without their graph.

        Args:
            attributes: Whether to bring attributes too, or buffers alone.

        Raises:
            RuntimeError: If the run made parameters or layers, which nothing would train.
        """
        for buffer, own in self._buffers:
            if _is_written(own):
                buffer.copy_(own)
        modules, containers = list(self._changed_modules()), list(self._changed_containers())
        if not modules and not containers:
            return
        originals: dict[int, Any] = {id(new): old for old, new in self._pairs.values()}
        originals |= {id(new): old for old, new, _ in self._containers.values()}
        for old, new, changed in modules:
            _check_complete(old, new)
            if not self._buffers:
                old._buffers.update(_settle(new._buffers, originals))
            for name in changed if attributes else ():
                if name in new.__dict__:
                    old.__dict__[name] = _settle(new.__dict__[name], originals)
                else:
                    old.__dict__.pop(name, None)
        for old_container, new_container in containers if attributes else ():
            # Its parts, since the container itself is one of the copies.
            _refill(old_container, _settle(copy.copy(new_container), originals))

    def _copy(self, module: nn.Module) -> nn.Module:
        known = self._pairs.get(id(module))
        if known is not None:
            return known[1]
        new: nn.Module = object.__new__(type(module))
        state = module.__dict__.copy()
        object.__setattr__(new, "__dict__", state)
        self._pairs[id(module)] = module, new
        state["_parameters"] = state["_parameters"].copy()
        if state["_buffers"]:
            state["_buffers"] = state["_buffers"].copy()
        if state["_modules"]:
            state["_modules"] = {
                name: child if child is None else self._copy(child)
                for name, child in state["_modules"].items()
            }
        return new

    def _leading_names(self, module: nn.Module) -> list[str]:
        """Attributes that may lead to modules, or that a forward pass may change in place."""
        state = module.__dict__
        known = self._known.get(id(module))
        if known is None or not _is_same(state, known[0]):
            names = [
                name
                for name, value in state.items()
                if type(value) not in PLAIN and name not in _INTERNAL
            ]
            self._known[id(module)] = known = state.copy(), names
        if state["_forward_hooks"] or state["_forward_pre_hooks"]:
            return [*known[1], *_HOOKS]
        return known[1]

    def _take_attributes(self, state: dict[str, Any], names: Iterable[str]) -> None:
        """Gives a copy containers of its own, and the copies of what leads to modules."""
        copies = {key: new for key, (_, new) in self._pairs.items()}
        for name in names:
            value = state[name]
            if type(value) in CONTAINERS and name not in _HOOKS:
                state[name] = self._copy_container(value, copies)
            else:
                state[name] = rebind(value, copies)

    def _copy_container(self, value: Any, copies: dict[int, Any]) -> Any:
        known = self._containers.get(id(value))
        if known is None:
            new = copy.copy(value)
            known = self._containers[id(value)] = value, new, copy.copy(new)
            rebound = rebind(value, copies)
            if rebound is not value:
                _refill(new, rebound)
                known = self._containers[id(value)] = value, new, copy.copy(new)
        return known[1]

    def _copy_buffers(self) -> None:
        own: dict[int, Tensor] = {}
        for _, new in self._pairs.values():
            for name, buffer in new._buffers.items():
                if buffer is None:
                    continue
                if id(buffer) not in own:
                    own[id(buffer)] = buffer.clone()
                    self._buffers.append((buffer, own[id(buffer)]))
                new._buffers[name] = own[id(buffer)]

    def _changed_modules(self) -> Iterator[tuple[nn.Module, nn.Module, list[str]]]:
        """Original, copy, and the names of attributes that the run set or took away."""
        for old, new in self._pairs.values():
            state, before, own = new.__dict__, self._before[id(new)], old.__dict__
            changed = [] if _is_same(state, before) else [*_differing(state, before)]
            if (
                changed
                or len(state["_parameters"]) != len(own["_parameters"])
                or len(state["_modules"]) != len(own["_modules"])
                or (
                    (own["_buffers"] and not self._buffers)
                    and not _is_same(state["_buffers"], own["_buffers"])
                )
            ):
                yield old, new, changed

    def _changed_containers(self) -> Iterator[tuple[Any, Any]]:
        for original, new, before in self._containers.values():
            if not _is_same(new, before):
                yield original, new


def _is_written(buffer: Tensor) -> bool:
    """Whether a fresh buffer was written to, as far as can be told."""
    return buffer.is_inference() or buffer._version > 0


def _is_same(state: Any, other: Any) -> bool:
    """Whether containers hold the same or equal things."""
    try:
        return bool(state == other)  # looks at what is not one object alone
    except Exception:  # tensors that differ have no truth value
        return False


def _differing(state: dict[str, Any], before: dict[str, Any]) -> Iterator[str]:
    """Names of what was set or taken away, but for what torch derives from the weights."""
    for name in dict.fromkeys((*state, *before)):
        is_kept = state.get(name, _MISSING) is before.get(name, _MISSING)
        if name not in _INTERNAL and not is_kept:
            yield name


def _settle(value: Any, originals: dict[int, Any]) -> Any:
    """A value as it is kept: without a graph, and with the network's modules for the copies."""

    def detach(leaf: Any) -> Any:
        return leaf.detach() if isinstance(leaf, Tensor) and leaf.grad_fn is not None else leaf

    return torch.utils._pytree.tree_map(detach, rebind(value, originals))


def _refill(container: Any, parts: Any) -> None:
    container.clear()
    (container.extend if hasattr(container, "extend") else container.update)(parts)


def _check_complete(old: nn.Module, new: nn.Module) -> None:
    for kind, what in (("_parameters", "parameters"), ("_modules", "layers")):
        made = new.__dict__[kind].keys() - old.__dict__[kind].keys()
        if made:
            raise RuntimeError(
                f"The {type(old).__name__} made the {what} {sorted(made)} while it ran, which "
                f"nothing would train: run the network once, net(x), before RandomModule(net)."
            )
