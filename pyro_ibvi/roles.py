"""Roles: which layer a weight belongs to, what part it plays there, and its widths.

The only place that looks for them. Roles come from module objects, never from pieces of a name:
each known kind of layer says what its own parameters are; the first and the last weight layer in
the order in which data flow through the network are its input and output. An unknown kind of
layer is an error that shows what to write.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch import nn

from pyro_ibvi.parametrization import BaseShapes, Family, Fans, Parametrization, Role

_NORM_LAYERS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    *((nn.RMSNorm,) if hasattr(nn, "RMSNorm") else ()),
)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_MATRIX_ROLES: tuple[Role, ...] = ("input", "hidden", "output")


@dataclass(frozen=True)
class WeightRole:
    """What a weight tensor is in its network.

    Attributes:
        role: ``"input"``, ``"hidden"`` or ``"output"`` for matrices and kernels, ``"bias"`` or
            ``"gain"`` for vectors.
        fans: The sizes that a parametrization looks at.
        layer: Name of the layer; the weights of a layer share their noise.
        layer_role: Role of the layer's weight matrix, which a covariance may be chosen by.
    """

    role: Role
    fans: Fans
    layer: str
    layer_role: Role

    @classmethod
    def of(
        cls,
        role: Role,
        *,
        fan_in: int,
        fan_out: int,
        layer: str = "",
        layer_role: Role | None = None,
    ) -> WeightRole:
        """The role of a weight that no known layer describes, for ``roles={...}``.

        Args:
            role: The part that the weight plays.
            fan_in: Number of inputs that one output sums over.
            fan_out: Number of outputs.
            layer: Name of the layer, if the weight shares one with others; its own name by
                default.
            layer_role: Role of the layer; the weight's own by default.

        Returns:
            The role.

        Raises:
            ValueError: If the role is unknown or a fan is not positive.

        Example:
            >>> WeightRole.of("hidden", fan_in=64, fan_out=32).fans.width_out
            32
        """
        _check_role(role)
        if fan_in < 1 or fan_out < 1:
            raise ValueError(f"Fans must be positive, got fan_in={fan_in}, fan_out={fan_out}.")
        fans = Fans(fan_in=fan_in, width_in=fan_in, width_out=fan_out)
        return cls(role, fans, layer, layer_role or role)


RoleOverrides = Mapping[str, "Role | WeightRole"]

#: Key of a site's or parameter's ``infer`` dictionary under which its network weight stands.
WEIGHT_KEY = "ibvi_weight"


@dataclass(frozen=True)
class NetworkWeight:
    """A weight's role and the parametrization that rules it, as sites carry them."""

    weight: WeightRole
    parametrization: Parametrization

    def std(self) -> float:
        """Standard deviation at the start."""
        return self.parametrization.std(self.weight.role, self.weight.fans)

    def rate(self, family: Family) -> float:
        """Factor on the global learning rate for the mean."""
        return self.parametrization.rate(self.weight.role, self.weight.fans, family)

    def factor_rate(self, family: Family, *, rank: int | None) -> float:
        """Factor on the global learning rate for the covariance factor."""
        rule = self.parametrization.factor_rate
        return rule(self.weight.role, self.weight.fans, family, rank=rank)


def find_roles(
    net: nn.Module, *, base: BaseShapes = None, overrides: RoleOverrides | None = None
) -> dict[str, WeightRole]:
    """Finds the role of every parameter of a network.

    Args:
        net: The network; it is not run.
        base: Base width, module or shapes, see :class:`~pyro_ibvi.MaximalUpdate`.
        overrides: Roles by parameter or layer name (patterns allowed), for what the network's
            modules do not tell.

    Returns:
        A role for each name in ``net.named_parameters()``.

    Raises:
        ValueError: If a parameter belongs to a kind of layer that is not known, or an override
            or a base shape does not fit the network.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
        >>> {name: weight.role for name, weight in find_roles(net).items()}
        {'0.weight': 'input', '0.bias': 'bias', '2.weight': 'output', '2.bias': 'bias'}
    """
    overrides = dict(overrides or {})
    layers = _layers_in_order(net)
    matrices = [name for name, layer in layers.items() if not isinstance(layer, _NORM_LAYERS)]
    ends: dict[str, Role] = {}
    if matrices:
        ends = {matrices[0]: "input", matrices[-1]: "output"}
    unused = set(overrides)
    roles: dict[str, WeightRole] = {}
    for name, parameter in net.named_parameters():
        layer_name, _, own_name = name.rpartition(".")
        key = next((k for k in overrides if _matches(k, name) or _matches(k, layer_name)), None)
        unused -= {key}
        given = None if key is None else overrides[key]
        if isinstance(given, WeightRole):
            roles[name] = given if given.layer else replace(given, layer=layer_name or name)
            continue
        if given is not None:
            _check_role(given)
        module = net.get_submodule(layer_name)
        if layer_name not in layers:
            raise ValueError(_unknown_layer(name, module, tuple(parameter.shape)))
        layer_role = ends.get(layer_name, "hidden")
        if given in _MATRIX_ROLES:
            layer_role = given
        fans = _layer_fans(module)
        if isinstance(module, _NORM_LAYERS):
            layer_role = "gain"
        role: Role = "bias" if own_name == "bias" else layer_role
        roles[name] = WeightRole(role, fans, layer_name, layer_role)
    if unused:
        raise ValueError(
            f"roles names {sorted(unused)}, which match no parameter; the parameters are "
            f"{list(roles)}."
        )
    return _with_base(roles, net, base)


def _check_role(role: object) -> None:
    if role not in get_args(Role):
        raise ValueError(f"Expected a role among {get_args(Role)}, got {role!r}.")


def _matches(pattern: str, name: str) -> bool:
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


def _unknown_layer(name: str, module: nn.Module, shape: tuple[int, ...]) -> str:
    return (
        f"The parameter {name!r} of shape {shape} belongs to a {type(module).__name__}, a kind of "
        f"layer whose role is not known. Say what it is: "
        f'roles={{"{name}": WeightRole.of("hidden", fan_in=..., fan_out=...)}}.'
    )


def _is_known(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.Embedding, *_CONVOLUTIONS, *_NORM_LAYERS))


def _layer_fans(module: nn.Module) -> Fans:
    if isinstance(module, nn.Linear):
        return Fans(module.in_features, module.in_features, module.out_features)
    if isinstance(module, _CONVOLUTIONS):
        width_in = module.in_channels // module.groups
        return Fans(width_in * math.prod(module.kernel_size), width_in, module.out_channels)
    if isinstance(module, nn.Embedding):
        # A one-hot input picks one row, so one number reaches each output.
        return Fans(1, 1, module.embedding_dim)
    parameter = next(module.parameters())
    return Fans(1, 1, parameter.numel())


def _layers_in_order(net: nn.Module) -> dict[str, nn.Module]:
    """Known layers that hold parameters, in the order in which data reach them."""
    layers = {
        name: module
        for name, module in net.named_modules()
        if _is_known(module) and any(True for _ in module.parameters(recurse=False))
    }
    order = [name for name in _traced_order(net) if name in layers]
    if set(order) != set(layers):
        # Control flow that cannot be traced: modules are registered in data-flow order by
        # convention, and roles= overrides where they are not.
        return layers
    return {name: layers[name] for name in order}


class _LayerTracer(torch.fx.Tracer):
    """Traces calls of modules without looking inside the known ones."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _is_known(m) or super().is_leaf_module(m, module_qualified_name)


def _traced_order(net: nn.Module) -> Iterator[str]:
    if isinstance(net, nn.Sequential) or _is_known(net):
        return iter([name for name, _ in net.named_modules()])
    try:
        graph = _LayerTracer().trace(net)
    except Exception:  # whatever the network's own code raises when it is given a proxy
        return iter(())
    return iter(dict.fromkeys(str(n.target) for n in graph.nodes if n.op == "call_module"))


def _with_base(
    roles: dict[str, WeightRole], net: nn.Module, base: BaseShapes
) -> dict[str, WeightRole]:
    if base is None:
        return roles
    widths = _base_widths(roles, net, base)
    return {
        name: replace(
            weight,
            fans=replace(
                weight.fans, base_width_in=widths[name][0], base_width_out=widths[name][1]
            ),
        )
        for name, weight in roles.items()
    }


def _base_widths(
    roles: Mapping[str, WeightRole], net: nn.Module, base: BaseShapes
) -> dict[str, tuple[int, int]]:
    if isinstance(base, int):
        return {name: _base_widths_from_width(weight, base) for name, weight in roles.items()}
    if isinstance(base, nn.Module):
        base = {name: tuple(p.shape) for name, p in base.named_parameters()}
    assert base is not None
    missing = [name for name in roles if name not in base]
    if missing:
        raise ValueError(
            f"The base has no shape for {missing}: give a base network of the same architecture "
            f"or a mapping from every parameter name to its shape."
        )
    shapes = {name: tuple(p.shape) for name, p in net.named_parameters()}
    return {
        name: _base_widths_from_shape(name, weight, shapes[name], tuple(base[name]), net)
        for name, weight in roles.items()
    }


def _base_widths_from_width(weight: WeightRole, base: int) -> tuple[int, int]:
    """Widths at the base where every width of the network is ``base``."""
    at_input = weight.layer_role == "input"
    at_output = weight.layer_role == "output"
    width_in = weight.fans.width_in if at_input or weight.role == "gain" else base
    width_out = weight.fans.width_out if at_output else base
    return width_in, width_out


def _base_widths_from_shape(
    name: str,
    weight: WeightRole,
    shape: tuple[int, ...],
    base_shape: tuple[int, ...],
    net: nn.Module,
) -> tuple[int, int]:
    """Widths at the base, scaled as the tensor's own dimensions are."""
    if len(shape) != len(base_shape) or any(size < 1 for size in base_shape):
        raise ValueError(f"The base shape {base_shape} of {name!r} does not fit {shape}.")
    fans = weight.fans
    if weight.role in ("bias", "gain"):
        return fans.width_in, fans.width_out * math.prod(base_shape) // math.prod(shape)
    if isinstance(net.get_submodule(name.rpartition(".")[0]), nn.Embedding):
        return fans.width_in, max(fans.width_out * base_shape[1] // shape[1], 1)
    # Every other weight is (out, in, *kernel).
    width_in = max(fans.width_in * base_shape[1] // shape[1], 1)
    return width_in, max(fans.width_out * base_shape[0] // shape[0], 1)


def role_table(
    roles: Mapping[str, WeightRole], parametrization: Parametrization, std: Callable[[str], Any]
) -> str:
    """A table of roles with initial scales and rates, one line per weight."""
    header = ("parameter", "role", "fan_in", "width_out", "prior std", "SGD rate", "Adam rate")
    rows: list[tuple[str, ...]] = [header]
    for name, weight in roles.items():
        rates = [parametrization.rate(weight.role, weight.fans, f) for f in ("sgd", "adam")]
        cells = (name, weight.role, weight.fans.fan_in, weight.fans.width_out, std(name), *rates)
        rows.append(tuple(f"{c:.4g}" if isinstance(c, float) else str(c) for c in cells))
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
