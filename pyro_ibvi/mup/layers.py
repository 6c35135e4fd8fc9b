"""The kinds of layers that are known, what their parameters are, and how data flow through them.

Each kind says what its own parameters are; nothing is guessed from pieces of a name.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from pyro_ibvi.mup.parametrization import Fans

Kind: TypeAlias = Literal["matrix", "recurrent", "table", "bias", "gain"]

NORM_LAYERS: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.PReLU,
    *((nn.RMSNorm,) if hasattr(nn, "RMSNorm") else ()),
)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
TABLES = (nn.Embedding, nn.EmbeddingBag)
_LOOKUPS = (nn.functional.embedding, nn.functional.embedding_bag)
_RECURRENT = (nn.modules.rnn.RNNBase, nn.modules.rnn.RNNCellBase)
_MATRICES: tuple[type[nn.Module], ...] = (
    nn.Linear,
    nn.Bilinear,
    nn.MultiheadAttention,
    *_CONVOLUTIONS,
    *_TRANSPOSED,
    *_RECURRENT,
)


@dataclass(frozen=True)
class Part:
    """What a parameter is within its layer.

    Attributes:
        kind: ``"matrix"`` for weights and kernels, ``"recurrent"`` for matrices from hidden to
            hidden units, ``"table"`` for rows that an index picks, ``"bias"`` and ``"gain"``.
        fans: The sizes that a parametrization looks at.
        widths: Sizes of the tensor that ``fans.width_in`` and ``fans.width_out`` grow with.
        inputs_first: Whether the tensor's first dimension is that of the inputs.
    """

    kind: Kind
    fans: Fans
    widths: tuple[int, int]
    inputs_first: bool = False


def is_known(module: nn.Module) -> bool:
    """Whether the module is a layer whose parameters have known roles."""
    return isinstance(module, (*_MATRICES, *TABLES, *NORM_LAYERS))


def parameter_path(layer: str, name: str) -> str:
    """Name in the network of a layer's parameter."""
    return f"{layer}.{name}" if layer else name


def describe_parameter(module: nn.Module, name: str, shape: Iterable[int]) -> Part:
    """What a parameter of a known layer is.

    Args:
        module: The layer.
        name: Name of the parameter in the layer.
        shape: Its shape, which may be that of another network than the layer's.

    Returns:
        The description.
    """
    shape = tuple(shape)
    if isinstance(module, NORM_LAYERS):
        size = math.prod(shape)
        return Part("bias" if name == "bias" else "gain", Fans(1, 1, size), (1, size))
    if isinstance(module, TABLES):
        # A one-hot input picks one row, so one number reaches each output.
        return Part("table", Fans(1, 1, shape[1]), (1, shape[1]), inputs_first=True)
    if isinstance(module, _RECURRENT):
        return _describe_recurrent(module, name, shape)
    if isinstance(module, nn.MultiheadAttention):
        return _describe_attention(module, shape)
    width_in, width_out, fan_in = _layer_sizes(module)
    fans = Fans(fan_in, width_in, width_out)
    if name == "bias":
        return Part("bias", fans, (1, shape[0]))
    if isinstance(module, _TRANSPOSED):
        return Part("matrix", fans, (shape[0], shape[1]), inputs_first=True)
    inputs = math.prod(shape[1:]) if isinstance(module, nn.Bilinear) else shape[1]
    return Part("matrix", fans, (inputs, shape[0]))


def _layer_sizes(module: Any) -> tuple[int, int, int]:
    """Input width, output width and fan-in of a layer with one weight tensor."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features, module.in_features
    if isinstance(module, nn.Bilinear):
        products = module.in1_features * module.in2_features
        return products, module.out_features, products
    width_in = module.in_channels // module.groups
    positions = math.prod(module.kernel_size)
    if isinstance(module, _TRANSPOSED):
        # A stride spreads the kernel's positions over the outputs.
        positions = max(1, positions // math.prod(module.stride))
    return width_in, module.out_channels, width_in * positions


def _describe_recurrent(module: Any, name: str, shape: tuple[int, ...]) -> Part:
    hidden = module.hidden_size
    if len(shape) == 1:
        return Part("bias", Fans(hidden, hidden, hidden), (1, shape[0]))
    num_out = shape[0] if name.startswith("weight_hr") else hidden  # the rest stack their gates
    reads_input = name in {"weight_ih", "weight_ih_l0", "weight_ih_l0_reverse"}
    fans = Fans(shape[1], shape[1], num_out)
    return Part("matrix" if reads_input else "recurrent", fans, (shape[1], shape[0]))


def _describe_attention(module: nn.MultiheadAttention, shape: tuple[int, ...]) -> Part:
    width = module.embed_dim
    if len(shape) != 2:  # in_proj_bias, bias_k, bias_v; out_proj is a layer of its own
        return Part("bias", Fans(width, width, width), (1, math.prod(shape)))
    return Part("matrix", Fans(shape[1], shape[1], width), (shape[1], shape[0]))


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
