"""How data flow through a network: which layers they reach first and which they leave last."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from pyro_ibvi._util.network_copies import copy_network, unwrap
from pyro_ibvi.mup.forward_pass import Step, Use, record_steps, trace_steps
from pyro_ibvi.mup.layers import NORM_LAYERS, TABLES, is_known, owner_of


@dataclass
class Flow:
    """The known layers of a network and which of them data reach first and leave last.

    Attributes:
        layers: Known layers with parameters, by name.
        inputs: Names of weight layers that no other weight layer feeds; where each is fed by
            another, as in a loop, those that data reach first.
        outputs: Names of weight layers that feed no other; in a loop those that feed no other in
            the end.
        calls_attention: Whether the network's own code, as far as it was seen, calls
            ``scaled_dot_product_attention`` without a scale.
        tied: By parameter name, the table whose rows an index picks and whose weight is a
            read-out matrix too.
        uses: What parameters of no known layer are, as far as the steps that read them tell:
            added to data or put beside them, or factors of theirs that no sum makes a matrix.
        assumption: A sentence where the order of registration stands for that of the data.
        assumed: The ends that it is about, ``"input"`` and ``"output"``, without those whose
            layer has no parameters of its own, as a read-out by the table of the embedding.
    """

    layers: dict[str, nn.Module]
    inputs: set[str] = field(default_factory=set)
    outputs: set[str] = field(default_factory=set)
    calls_attention: bool = False
    tied: dict[str, str] = field(default_factory=dict)
    uses: dict[str, Use | None] = field(default_factory=dict)
    assumption: str | None = None
    assumed: frozenset[str] = frozenset()


def find_flow(net: nn.Module, example_input: Any = None) -> Flow:
    """Finds the layers that data reach first and leave last.

    One forward pass of a copy is recorded, if there is an input for it, or else traced
    symbolically. Where the network's code cannot be traced, the first and the last registered
    layer stand for them, and :attr:`Flow.assumption` says so.

    Args:
        net: The network, which is left as it is.
        example_input: A batch of inputs: a tensor, a tuple of arguments or a mapping.

    Returns:
        The layers.

    Raises:
        ValueError: If a parameter has no shape yet, or the network fails on the input.
    """
    check_not_lazy(net)
    net, prefix = unwrap(net)
    layers = {
        name: module
        for name, module in net.named_modules()
        if is_known(module)
        and (is_parametrized(module) or any(True for _ in module.parameters(recurse=False)))
    }
    weights = [name for name, module in layers.items() if not isinstance(module, NORM_LAYERS)]
    flow = Flow(layers, set(weights[:1]), set(weights[-1:]))
    for module in layers.values():
        if not isinstance(module, TABLES):
            _note_tied(flow, net, module.parameters(recurse=False))
    steps = _find_steps(net, example_input, flow, weights, prefix)
    if steps:
        walk = _Walk(net, flow, weights)
        if not walk.follow(steps):
            # A part of a network may run in training alone. Both passes count.
            walk.follow(_training_steps(net, example_input))
    return Flow(
        {prefix + name: module for name, module in flow.layers.items()},
        {prefix + name for name in flow.inputs},
        {prefix + name for name in flow.outputs},
        flow.calls_attention,
        {prefix + name: prefix + table for name, table in flow.tied.items()},
        {prefix + name: use for name, use in flow.uses.items()},
        flow.assumption,
        flow.assumed,
    )


def _find_steps(
    net: nn.Module, example_input: Any, flow: Flow, weights: list[str], prefix: str
) -> list[Step]:
    """The steps of the forward pass, or a note of why they are not to be had."""
    if is_known(net):  # a layer that is all of the network
        return []
    if example_input is not None:
        try:
            with warnings.catch_warnings(action="ignore"):  # they come when the network is used
                return record_steps(_plain_copy(net), example_input)
        except Exception as error:  # whatever the network's own code raises
            raise ValueError(
                f"The {type(net).__name__} fails on example_input: {type(error).__name__}: {error}"
            ) from error
    try:
        with warnings.catch_warnings(action="ignore"):
            return list(trace_steps(_plain_copy(net)))
    except Exception as error:  # of a proxy in the place of data, anything
        if len(weights) > 1:
            _note_assumption(flow, net, weights, prefix, error)
        return []


def _training_steps(net: nn.Module, example_input: Any) -> list[Step]:
    with contextlib.suppress(Exception), warnings.catch_warnings(action="ignore"):
        if example_input is not None:
            return record_steps(_plain_copy(net), example_input, training=True)
        return list(trace_steps(_plain_copy(net), training=True))
    return []


def _note_assumption(
    flow: Flow, net: nn.Module, weights: list[str], prefix: str, error: Exception
) -> None:
    """Notes that the first layer stands for the input and the last for the output."""
    own = {owner_of(net, name)[0] for name, _ in net.named_parameters()}
    ends = {"input": weights[0], "output": weights[-1]}
    flow.assumed = frozenset(end for end, layer in ends.items() if layer in own)
    layers = {end: prefix + layer for end, layer in ends.items()}
    flow.assumption = _assumption(net, layers, flow.assumed, error)


def _assumption(
    net: nn.Module, layers: Mapping[str, str], assumed: Collection[str], error: Exception
) -> str:
    why = next(iter(str(error).splitlines()), "").strip(" .") or type(error).__name__
    said = {layer: end for end, layer in layers.items() if end in assumed}
    return (
        f"The forward pass of {type(net).__name__} cannot be traced ({why}), so the order in "
        f"which its layers were registered stands for that of the data: {layers['input']!r} is "
        f"taken for the input layer and {layers['output']!r} for the output layer. Pass "
        f"example_input=x, a batch of inputs, and one pass is recorded instead, or say what they "
        f"are: roles={json.dumps(said)}."
    )


def _plain_copy(net: nn.Module) -> nn.Module:
    """A copy to work on, that the compiler leaves alone."""
    net = copy_network(net)
    for module in net.modules():
        module._compiled_call_impl = None
    return net


def _note_tied(flow: Flow, net: nn.Module, matrices: Iterable[nn.Parameter]) -> None:
    """Notes the tables' weights among parameters that something multiplies by."""
    tables = {
        module.weight: name for name, module in flow.layers.items() if isinstance(module, TABLES)
    }
    if tables:
        names = {parameter: name for name, parameter in net.named_parameters()}
        flow.tied.update({names[p]: tables[p] for p in matrices if p in tables})


class _Walk:
    """Follows data from layer to layer."""

    def __init__(self, net: nn.Module, flow: Flow, weights: list[str]) -> None:
        self._net, self._flow, self._weights = net, flow, weights
        self._parameters = dict(net.named_parameters(remove_duplicate=False))
        self._made_of: dict[Any, tuple[str, ...]] = {}  # values that are made of parameters alone
        self._reached: dict[Any, frozenset[str]] = {}  # layers that lie before a value
        self._called: set[str] = set()
        self._fed: set[str] = set()
        self._feeding: set[str] = set()
        self._first: set[str] = set()  # run at least once on what no other has made
        self._last: set[str] = set()  # whose last result no other has taken
        self._scaled: dict[Any, frozenset[str]] = {}  # parameters that are factors in a value

    def follow(self, steps: Iterable[Step]) -> bool:
        """Replaces what the flow says by what the steps tell, and tells whether that is all."""
        for step in steps:
            self._take(step, self._reads(step))
        if self._called:
            self._flow.inputs = self._called - self._fed or self._first
            self._flow.outputs = self._called - self._feeding or self._last
        return self._called == set(self._weights)

    def _reads(self, step: Step) -> tuple[str, ...]:
        """The parameters that a step applies to data, transposed ones included."""
        if step.parameter is not None:
            self._made_of.update(dict.fromkeys(step.outputs, (step.parameter,)))
            return ()
        values = step.inputs[:1] if step.is_form else step.inputs
        read = tuple(dict.fromkeys(n for i in values for n in self._made_of.get(i, ())))
        if step.is_computed and values and all(i in self._made_of for i in values):
            self._made_of.update(dict.fromkeys(step.outputs, read))
            return ()
        return tuple(name for name in read if name in self._parameters)  # and no buffers

    def _take(self, step: Step, reads: tuple[str, ...]) -> None:
        is_attention = step.target is nn.functional.scaled_dot_product_attention
        self._flow.calls_attention |= is_attention and step.kwargs.get("scale") is None
        if step.is_product:
            _note_tied(self._flow, self._net, [self._parameters[name] for name in reads])
        self._note_uses(step, reads)
        nothing: frozenset[str] = frozenset()
        reached = nothing.union(*(self._reached.get(key, nothing) for key in step.inputs))
        for layer in _layers_of(self._net, step, reads, self._weights):
            (self._fed if reached - {layer} else self._first).add(layer)
            self._feeding |= reached - {layer}
            # A table that is the read-out too is an input and no loop.
            last = set() if isinstance(self._flow.layers[layer], TABLES) else {layer}
            self._last = (self._last - reached) | last
            self._called.add(layer)
            reached |= {layer}
        for key in step.outputs:
            self._reached[key] = reached

    def _note_uses(self, step: Step, reads: tuple[str, ...]) -> None:
        """Notes what the step makes of parameters, and of those that are factors already."""
        uses, nothing = self._flow.uses, frozenset[str]()
        for name in reads:
            before = uses.get(name, step.use)
            is_told = None not in (before, step.use)
            uses[name] = ("bias" if "bias" in (before, step.use) else "gain") if is_told else None
        scaled = nothing.union(*(self._scaled.get(key, nothing) for key in step.inputs))
        if step.is_sum:
            uses.update(dict.fromkeys(scaled))
        if step.is_computed and not step.is_product:
            scaled |= frozenset(reads) if step.use == "gain" else nothing
            self._scaled.update(dict.fromkeys(step.outputs, scaled))


def _layers_of(
    net: nn.Module, step: Step, reads: Iterable[str], weights: Collection[str]
) -> Iterable[str]:
    """Weight layers that a step runs: itself, those inside it, or those whose weights it reads."""
    if step.is_module:
        return [w for w in weights if w == step.target or w.startswith(f"{step.target}.")]
    read = (owner_of(net, name)[0] for name in reads)
    return [name for name in dict.fromkeys(read) if name in weights]


def check_not_lazy(net: nn.Module) -> None:
    """Refuses a network with parameters that get their shapes from the first batch.

    Args:
        net: The network.

    Raises:
        ValueError: If there are any.
    """
    lazy = [name for name, parameter in net.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise ValueError(
            f"The parameters {lazy} have no shape yet: run the network once on a batch, net(x), "
            f"or pass the batch as example_input= where the network becomes random."
        )
