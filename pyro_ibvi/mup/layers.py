"""The kinds of layers that are known, and what their parameters are.

Each kind says what its own parameters are; nothing is guessed from pieces of a name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import nn
from torch.nn.utils.parametrizations import _SpectralNorm, _WeightNorm
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized
from torch.nn.utils.weight_norm import WeightNorm

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
_RECURRENT = (nn.modules.rnn.RNNBase, nn.modules.rnn.RNNCellBase)
_RECURRENT_PARTS = ("weight_ih", "weight_hh", "weight_hr", "bias_ih", "bias_hh")
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
        groups: Number of groups of outputs, each of which has inputs of its own.
    """

    kind: Kind
    fans: Fans
    widths: tuple[int, int]
    inputs_first: bool = False
    groups: int = 1


def is_known(module: nn.Module) -> bool:
    """Whether the module is a layer whose parameters have known roles."""
    return isinstance(module, (*_MATRICES, *TABLES, *NORM_LAYERS))


def knows(module: nn.Module, name: str) -> bool:
    """Whether a parameter is one that torch's own layers of this kind have.

    A layer that is derived from one of them may have further ones, of which nothing is known.

    Args:
        module: The layer.
        name: Name of the parameter in it.

    Returns:
        Whether the module is a known layer, and the parameter its own.
    """
    return is_known(module) and name in _own_names(module)


def _own_names(module: Any) -> set[str]:
    """Names of a known layer's own parameters, and of what norms and pruning make of them."""
    if isinstance(module, _RECURRENT):
        layers = [""]
        if isinstance(module, nn.RNNBase):
            numbers = range(module.num_layers)
            layers = [f"_l{number}{end}" for number in numbers for end in ("", "_reverse")]
        names = {part + layer for part in _RECURRENT_PARTS for layer in layers}
    elif isinstance(module, nn.MultiheadAttention):
        names = {f"{part}_proj_weight" for part in ("in", "q", "k", "v")}
        names |= {"in_proj_bias", "bias_k", "bias_v"}
    else:
        names = {"weight", "bias"}
    return names | {f"{name}_{end}" for name in names for end in ("g", "v", "orig")}


def owner_of(net: nn.Module, name: str) -> tuple[str, str]:
    """The layer that a parameter belongs to, and what the parameter is called in it.

    What torch's own ``weight_norm`` and ``spectral_norm`` make a tensor of stands for it: the
    tensor before it is scaled, and the lengths of its rows, which ``torch.nn.utils.weight_norm``
    calls ``weight_g``. Other parametrizations are layers of their own, of which nothing is known.

    Args:
        net: The network.
        name: Name of the parameter.

    Returns:
        Name of the layer, and of the parameter in it.
    """
    layer, _, own_name = name.rpartition(".")
    made_by = net.get_submodule(layer)
    if isinstance(made_by, ParametrizationList) and len(made_by) == 1:
        path, _, tensor = layer.rpartition(".")
        is_length = isinstance(made_by[0], _WeightNorm) and own_name == "original0"
        if is_length or isinstance(made_by[0], (_WeightNorm, _SpectralNorm)):
            return path.rpartition(".")[0], f"{tensor}_g" if is_length else tensor
    return layer, own_name


def layer_names(net: nn.Module, name: str) -> tuple[str, ...]:
    """The name of a parameter's layer, as an alias of the parameter's.

    Args:
        net: The network.
        name: Name of the parameter.

    Returns:
        The layer's name, none for a parameter of the network itself.
    """
    layer, _ = owner_of(net, name)
    return (layer,) if layer else ()


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
    if isinstance(module, NORM_LAYERS) or name in _lengths(module):
        size = math.prod(shape)
        is_bias = name in ("bias", "bias_orig")
        return Part("bias" if is_bias else "gain", Fans(1, 1, size), (1, size))
    if isinstance(module, TABLES):
        # A one-hot input picks one row, so one number reaches each output.
        return Part("table", Fans(1, 1, shape[1]), (1, shape[1]), inputs_first=True)
    if isinstance(module, _RECURRENT):
        return _describe_recurrent(module, name, shape)
    if isinstance(module, nn.MultiheadAttention):
        return _describe_attention(module, shape)
    width_in, width_out, fan_in = _layer_sizes(module)
    fans = Fans(fan_in, width_in, width_out)
    if name in ("bias", "bias_orig"):
        return Part("bias", fans, (1, shape[0]))
    if isinstance(module, _TRANSPOSED):
        return Part("matrix", fans, (shape[0], shape[1]), inputs_first=True)
    inputs = math.prod(shape[1:]) if isinstance(module, nn.Bilinear) else shape[1]
    return Part("matrix", fans, (inputs, shape[0]), groups=getattr(module, "groups", 1))


def _lengths(module: nn.Module) -> list[str]:
    """Parameters that are the lengths of a weight's rows, by either ``weight_norm`` of torch."""
    hooks = module._forward_pre_hooks.values()
    names = [hook.name for hook in hooks if isinstance(hook, WeightNorm)]
    if is_parametrized(module):
        made = module.parametrizations.items()  # type: ignore[operator, union-attr]
        names += [name for name, parts in made if isinstance(parts[0], _WeightNorm)]
    return [f"{name}_g" for name in names]


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
