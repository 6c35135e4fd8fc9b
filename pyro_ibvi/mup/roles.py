"""Roles: which layer a weight belongs to, what part it plays there, and its widths.

The only place that looks for them. Roles come from module objects, never from pieces of a name:
each known kind of layer says what its own parameters are, and what is added to data or multiplies
them number by number is told by the forward pass. Weight layers that data reach first are
the network's inputs, those that feed no other its outputs, in the order in which data flow through
it. Any other parameter of an unknown layer is an error that shows what to write.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral
from typing import Any, cast, get_args

from torch import nn

from pyro_ibvi._util.names import assigned
from pyro_ibvi.mup.depth import complete_shapes, find_blocks
from pyro_ibvi.mup.flow import Flow, find_flow
from pyro_ibvi.mup.growth import given_base_widths
from pyro_ibvi.mup.layers import (
    NORM_LAYERS,
    TABLES,
    Part,
    describe_parameter,
    knows,
    layer_names,
    owner_of,
)
from pyro_ibvi.mup.parametrization import BaseShapes, Family, Fans, Parametrization, Role, Side
from pyro_ibvi.mup.unknown import check_known, check_turned, vector_size

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
        tied: Whether this is a table that is the read-out matrix too, see :func:`find_roles`.
        inputs_first: Whether the tensor's first dimension is that of the layer's inputs, as in
            transposed convolutions and tables, and not that of its outputs.
        groups: Number of groups of outputs, each of which has inputs of its own.
    """

    role: Role
    fans: Fans
    layer: str
    layer_role: Role
    tied: bool = False
    inputs_first: bool = False
    groups: int = 1

    @classmethod
    def of(
        cls,
        role: Role,
        *,
        fan_in: int,
        fan_out: int,
        layer: str = "",
        layer_role: Role | None = None,
        inputs_first: bool = False,
    ) -> WeightRole:
        """The role of a weight that no known layer describes, for ``roles={...}``.

        Args:
            role: The part that the weight plays.
            fan_in: Number of inputs that one output sums over.
            fan_out: Number of outputs.
            layer: Name of the layer, if the weight shares one with others; its own name by
                default.
            layer_role: Role of the layer; the weight's own by default.
            inputs_first: Whether the site's first dimension is that of the inputs, as in
                ``x @ weight``; what a :class:`~pyro_ibvi.Kronecker` covariance learns at
                depends on it.

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
        return cls(role, fans, layer, layer_role or role, inputs_first=inputs_first)


RoleOverrides = Mapping[str, "Role | WeightRole"]

#: Key of a site's or parameter's ``infer`` dictionary under which its network weight stands.
WEIGHT_KEY = "ibvi_weight"
#: The same for the module that the weight belongs to, which has a method ``named_weights()``.
NETWORK_KEY = "ibvi_network"


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

    def multiplicative_rate(self, family: Family) -> float:
        """Factor on the global learning rate for noise relative to the mean."""
        return self.parametrization.multiplicative_rate(self.weight.role, self.weight.fans, family)

    def kronecker_rate(self, family: Family, *, rank: int, first: bool) -> float:
        """Factor on the global learning rate for one of two Kronecker factors.

        Args:
            family: How the optimizer scales its updates.
            rank: Number of the factor's columns.
            first: Whether the factor has the weight's first dimension, or else the others.

        Returns:
            The factor.
        """
        rule = self.parametrization.kronecker_rate
        return rule(self.weight.role, self.weight.fans, family, rank=rank, side=self._side(first))

    def epsilon(self, *, first: bool | None = None) -> float:
        """Factor on the epsilon of an optimizer like Adam.

        Args:
            first: Which of two Kronecker factors it is for, as in :meth:`kronecker_rate`; None
                for the mean, and for the covariance factor otherwise.

        Returns:
            The factor.
        """
        side = None if first is None else self._side(first)
        return self.parametrization.epsilon(self.weight.role, self.weight.fans, side=side)

    def _side(self, first: bool) -> Side:
        return "in" if first == self.weight.inputs_first else "out"


def find_roles(
    net: nn.Module,
    *,
    base: BaseShapes = None,
    overrides: RoleOverrides | None = None,
    example_input: Any = None,
    flow: Flow | None = None,
) -> dict[str, WeightRole]:
    """Finds the role of every parameter of a network.

    An embedding whose weight is the read-out matrix too is an input (``tied``). Table 8 of Tensor
    Programs V gives both the same numbers, standard deviation 1, SGD rate ``width``, Adam rate 1,
    and the read-out the multiplier ``1 / width``. That multiplier belongs to one of the tensor's
    two uses and is the network's to write: divide the logits by the width, or by width / base
    width. :class:`~pyro_ibvi.RandomModule` warns under
    :class:`~pyro_ibvi.MaximalUpdate` unless the parameter is among the overrides.

    Args:
        net: The network, which is left as it is.
        base: Base width, module or shapes, see :class:`~pyro_ibvi.MaximalUpdate`.
        overrides: Roles by parameter or layer name, or by patterns, of which the first that fits
            counts where no name does; for what the network's modules do not tell.
        example_input: A batch of inputs, a tensor, a tuple of arguments or a mapping: one pass of
            a copy of the network is recorded with it. Without one the network's code is traced,
            and where that fails a warning says what is assumed.
        flow: The network's layers and the flow of data through them, if they are known already.

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
    overrides = _checked_overrides(overrides)
    flow = find_flow(net, example_input) if flow is None else flow
    flow = _without_guesses(flow, overrides)
    unused = set(overrides)
    names = [name for name, _ in net.named_parameters()]
    keys = assigned(overrides, names, partial(layer_names, net))
    roles: dict[str, WeightRole] = {}
    unknown: dict[str, tuple[int, ...]] = {}
    for name, parameter in net.named_parameters():
        layer, own_name = owner_of(net, name)
        key = keys.get(name)
        unused -= {key}
        given = None if key is None else overrides[key]
        if isinstance(given, WeightRole):
            check_turned(name, tuple(parameter.shape), given)
            roles[name] = given if given.layer else replace(given, layer=layer or name)
            continue
        if layer not in flow.layers or not knows(flow.layers[layer], own_name):
            use = flow.uses.get(name) if given is None else given
            if use in ("bias", "gain"):
                of_vector = WeightRole.of(use, fan_in=1, fan_out=vector_size(parameter.shape))
                roles[name] = replace(of_vector, layer=layer or name)
            else:
                unknown[name] = tuple(parameter.shape)
            continue
        table = flow.tied.get(name)
        if table is not None:
            layer, own_name = table, "weight"
        part = describe_parameter(flow.layers[layer], own_name, parameter.shape)
        role = _role_in_layer(part, layer, flow, given)
        roles[name] = replace(role, tied=table is not None)
    check_known(net, unknown, keys, was_seen=flow.assumption is None)
    if unused:
        raise ValueError(
            f"roles names {sorted(unused)}, which match no parameter; the parameters are "
            f"{list(roles)}."
        )
    return _with_base(roles, net, base)


def _without_guesses(flow: Flow, overrides: Mapping[str, Role | WeightRole]) -> Flow:
    """A flow in which a user's word for one end replaces what is assumed of that end."""
    if flow.assumption is None:
        return flow
    given = {g.layer_role if isinstance(g, WeightRole) else g for g in overrides.values()}
    if not flow.assumed <= given:
        warnings.warn(flow.assumption, UserWarning, stacklevel=5)
    return replace(
        flow,
        inputs=set() if "input" in given else flow.inputs,
        outputs=set() if "output" in given else flow.outputs,
    )


def _role_in_layer(part: Part, layer: str, flow: Flow, given: Role | None) -> WeightRole:
    """The role of a parameter of a known layer, where the layer's own may be given."""
    layer_role: Role = "hidden"
    if isinstance(flow.layers[layer], NORM_LAYERS):
        layer_role = "gain"
    elif layer in flow.outputs:
        layer_role = "output"
    elif layer in flow.inputs or isinstance(flow.layers[layer], TABLES):
        layer_role = "input"
    if given in _MATRIX_ROLES:
        layer_role = given
    fixed_out = replace(part.fans, base_width_out=part.fans.width_out)
    if part.kind in ("bias", "gain"):
        fans = fixed_out if layer_role == "output" else part.fans
        return WeightRole(cast("Role", part.kind), fans, layer, layer_role)
    # What an index picks from a table is data, wherever the table stands, and both sides of a
    # recurrent matrix are hidden units.
    inside: Role = {"table": "input", "recurrent": "hidden"}.get(part.kind, layer_role)  # type: ignore[assignment]
    role, fans = inside if given is None else layer_role, part.fans
    if given is None and role == layer_role == "output" and layer in flow.inputs:
        # From the data straight to the outputs, neither of which a network changes: no width.
        role = "input"
    if role == "input" and layer_role == "output":
        fans = fixed_out
    first, groups = part.inputs_first, part.groups
    return WeightRole(role, fans, layer, layer_role, inputs_first=first, groups=groups)


def _checked_overrides(overrides: RoleOverrides | None) -> dict[str, Role | WeightRole]:
    if not isinstance(overrides, Mapping | None):
        raise TypeError(
            f'roles must be a mapping such as {{"0": "input"}}, got {type(overrides).__name__}.'
        )
    for key, given in (overrides or {}).items():
        if not isinstance(key, str):
            raise TypeError(f"roles goes from names or patterns to roles; got the key {key!r}.")
        if not isinstance(given, WeightRole):
            _check_role(given)
    return dict(overrides or {})


def _check_role(role: object) -> None:
    if role not in get_args(Role):
        raise ValueError(f"Expected a role among {get_args(Role)}, got {role!r}.")


def _with_base(
    roles: dict[str, WeightRole], net: nn.Module, base: BaseShapes
) -> dict[str, WeightRole]:
    blocks = find_blocks(net)
    based = {
        name: replace(weight, fans=replace(weight.fans, depth=blocks[name].depth))
        if name in blocks
        else weight
        for name, weight in roles.items()
    }
    if isinstance(base, Integral):
        for name, weight in roles.items():
            based[name] = _at_base(based[name], _base_widths(name, weight, net, base))
    elif base is not None:
        given = _with_aliases(_base_shapes(base), net)
        shapes = complete_shapes(given, blocks)
        _check_complete(shapes, list(roles))
        for name, weight in roles.items():
            depth = blocks[name].depth_in(name, given) if name in blocks else None
            widths = _scaled_widths(name, weight, net, shapes[name])
            based[name] = _at_base(based[name], widths, depth)
    return based


def _at_base(weight: WeightRole, widths: tuple[int, int], depth: int | None = None) -> WeightRole:
    width_in, width_out = widths
    fans = replace(weight.fans, base_width_in=width_in, base_width_out=width_out, base_depth=depth)
    return replace(weight, fans=fans)


def _base_shapes(base: Any) -> Mapping[str, tuple[int, ...]]:
    if isinstance(base, nn.Module):
        base = {name: tuple(p.shape) for name, p in base.named_parameters()}
    if not isinstance(base, Mapping):
        raise TypeError(
            f"base must be a width, a network, a mapping from parameter name to shape, or None; "
            f"got {base!r}."
        )
    return base


def _with_aliases(
    shapes: Mapping[str, tuple[int, ...]], net: nn.Module
) -> Mapping[str, tuple[int, ...]]:
    """The shapes, with those of tensors that several modules share by all of their names."""
    first = {parameter: name for name, parameter in net.named_parameters()}
    shared = net.named_parameters(remove_duplicate=False)
    aliases = {n: shapes[first[p]] for n, p in shared if first[p] in shapes}
    return {**aliases, **shapes}


def _check_complete(shapes: Mapping[str, tuple[int, ...]], names: list[str]) -> None:
    missing = [name for name in names if name not in shapes]
    if missing:
        raise ValueError(
            f"The base has no shape for {missing}: give a base network of the same architecture "
            f"or a mapping from every parameter name to its shape."
        )


def _base_widths(name: str, weight: WeightRole, net: nn.Module, base: int) -> tuple[int, int]:
    """Widths at the base where every width of the network is ``base``."""
    fans = weight.fans
    ends_here = weight.layer_role == "output" and weight.role in ("bias", "input", "output")
    groups = getattr(net.get_submodule(owner_of(net, name)[0]), "groups", 1)
    width_in = fans.width_in if weight.role in ("input", "gain") else max(base // groups, 1)
    width_out = fans.width_out if ends_here else base
    # A size of one is no width: a gain for all channels, a filter for each of them.
    return (
        1 if fans.width_in == 1 else width_in,
        1 if fans.width_out == 1 else width_out,
    )


def _scaled_widths(
    name: str, weight: WeightRole, net: nn.Module, base_shape: tuple[int, ...]
) -> tuple[int, int]:
    """Widths at the base, scaled as the tensor's own dimensions are."""
    shape = tuple(net.get_parameter(name).shape)
    base_shape = tuple(base_shape)
    if len(shape) != len(base_shape) or any(size < 1 for size in base_shape):
        raise ValueError(f"The base shape {base_shape} of {name!r} does not fit {shape}.")
    layer, own_name = owner_of(net, name)
    # A tied weight goes by its first layer's name, which need not be the table's.
    module, fans = net.get_submodule(weight.layer if weight.tied else layer), weight.fans
    if not knows(module, own_name):
        return given_base_widths(fans, shape, base_shape, inputs_first=weight.inputs_first)
    width_in, width_out = describe_parameter(module, own_name, shape).widths
    base_in, base_out = describe_parameter(module, own_name, base_shape).widths
    return (
        max(fans.width_in * base_in // width_in, 1),
        max(fans.width_out * base_out // width_out, 1),
    )
