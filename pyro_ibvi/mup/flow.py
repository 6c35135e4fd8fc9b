"""How data flow through a network: which layers they reach first and which they leave last."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from pyro_ibvi.mup.layers import NORM_LAYERS, TABLES, is_known

#: Functions that take rows from a table.
_LOOKUPS = (nn.functional.embedding, nn.functional.embedding_bag)


@dataclass
class Flow:
    """The known layers of a network and which of them data reach first and leave last.

    Attributes:
        layers: Known layers with parameters, by name.
        inputs: Names of weight layers that no other weight layer feeds.
        outputs: Names of weight layers that feed no other.
        calls_attention: Whether the network's own code, as far as it can be traced, calls
            ``scaled_dot_product_attention`` without a scale.
        tied: By parameter name, the table whose rows an index picks and whose weight is a
            read-out matrix too.
    """

    layers: dict[str, nn.Module]
    inputs: set[str] = field(default_factory=set)
    outputs: set[str] = field(default_factory=set)
    calls_attention: bool = False
    tied: dict[str, str] = field(default_factory=dict)


def find_flow(net: nn.Module) -> Flow:
    """Finds the layers that data reach first and leave last.

    The network is traced symbolically. Where its control flow cannot be traced, the first and
    the last registered layer stand for them.

    Args:
        net: The network.

    Returns:
        The layers.

    Raises:
        ValueError: If a parameter has no shape yet.
    """
    _check_not_lazy(net)
    prefix = ""
    while hasattr(net, "_orig_mod"):  # torch.compile wraps the network
        net, prefix = net._orig_mod, f"{prefix}_orig_mod."  # type: ignore[assignment]
    layers = {
        name: module
        for name, module in net.named_modules()
        if is_known(module) and any(True for _ in module.parameters(recurse=False))
    }
    weights = [name for name, module in layers.items() if not isinstance(module, NORM_LAYERS)]
    flow = Flow(layers, set(weights[:1]), set(weights[-1:]))
    for module in layers.values():
        if not isinstance(module, TABLES):
            _note_tied(flow, net, module.parameters(recurse=False))
    _trace_flow(net, flow, weights)
    return Flow(
        {prefix + name: module for name, module in flow.layers.items()},
        {prefix + name for name in flow.inputs},
        {prefix + name for name in flow.outputs},
        flow.calls_attention,
        {prefix + name: prefix + table for name, table in flow.tied.items()},
    )


def _note_tied(flow: Flow, net: nn.Module, matrices: Iterable[nn.Parameter]) -> None:
    """Notes the tables' weights among parameters that something multiplies by."""
    tables = {m.weight: name for name, m in flow.layers.items() if isinstance(m, TABLES)}
    if tables:
        names = {parameter: name for name, parameter in net.named_parameters()}
        flow.tied.update({names[p]: tables[p] for p in matrices if p in tables})


class _LayerTracer(torch.fx.Tracer):
    """Traces calls of modules without looking inside the known ones."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_known(m) or super().is_leaf_module(m, module_qualified_name)


def _trace_flow(net: nn.Module, flow: Flow, weights: list[str]) -> None:
    """Replaces what a flow says by what a symbolic trace tells, if there is one."""
    try:
        graph = _LayerTracer().trace(net)
    except Exception:  # whatever the network's own code raises when it is given a proxy
        return
    parameters = dict(net.named_parameters(remove_duplicate=False))
    before: dict[Any, frozenset[str]] = {}
    called: set[str] = set()
    fed: set[str] = set()
    feeding: set[str] = set()
    for node, reads in _reads(graph):
        flow.calls_attention |= _is_unscaled_attention(node)
        if node.target not in _LOOKUPS:
            _note_tied(flow, net, [parameters[name] for name in reads if name in parameters])
        reached = frozenset().union(*(before[n] for n in node.all_input_nodes))
        for layer in _layers_of(node, reads, weights):
            fed |= {layer} if reached - {layer} else set()
            feeding |= reached - {layer}
            called.add(layer)
            reached |= {layer}
        before[node] = reached
    if called == set(weights):
        flow.inputs, flow.outputs = called - fed, called - feeding


def _reads(graph: torch.fx.Graph) -> Iterator[tuple[torch.fx.Node, tuple[str, ...]]]:
    """Each node with the parameters that it applies to data, transposed ones included."""
    made_of: dict[Any, tuple[str, ...]] = {}  # values that are made of parameters alone
    for node in graph.nodes:
        inputs = node.all_input_nodes
        read = tuple(dict.fromkeys(name for n in inputs for name in made_of.get(n, ())))
        if node.op == "get_attr":
            made_of[node] = (str(node.target),)
        # A row of a table is data, even one at a fixed place.
        elif _is_computed(node) and inputs and all(n in made_of for n in inputs):
            made_of[node], read = read, ()
        yield node, read


def _is_computed(node: torch.fx.Node) -> bool:
    return node.op in ("call_function", "call_method") and node.target not in _LOOKUPS


def _is_unscaled_attention(node: torch.fx.Node) -> bool:
    is_attention = node.target is nn.functional.scaled_dot_product_attention
    return is_attention and node.kwargs.get("scale") is None


def _layers_of(
    node: torch.fx.Node, reads: Iterable[str], weights: Collection[str]
) -> Iterable[str]:
    """Weight layers that a node runs: itself, those inside it, or those whose weights it reads."""
    if node.op == "call_module":
        target = str(node.target)
        return [w for w in weights if w == target or w.startswith(f"{target}.")]
    read = (name.rpartition(".")[0] for name in reads)
    return [name for name in dict.fromkeys(read) if name in weights]


def _check_not_lazy(net: nn.Module) -> None:
    lazy = [
        name for name, parameter in net.named_parameters() if torch.nn.parameter.is_lazy(parameter)
    ]
    if lazy:
        raise ValueError(
            f"The parameters {lazy} have no shape yet: run the network once, net(x), before it "
            f"becomes random."
        )
