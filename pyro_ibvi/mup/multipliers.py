r"""Multipliers that the maximal update parametrization asks of a network beyond scales and rates.

*Attention.* Once a network has learned, queries and keys are correlated, so that the product of
two vectors of ``d`` numbers grows like ``d``: the maximal parametrization divides logits by ``d``,
torch's modules by :math:`\sqrt d`. A module's divisor cannot be set, but the factor
:math:`\sqrt{d_\text{base} / d}` may just as well stand before the rows of the projection that make
the queries (Definition 4.1).

*Embeddings that are read-out matrices too.* Table 8 gives an embedding and a read-out the same
initial scale and the same rates, and the read-out a multiplier ``1 / width``. It belongs to one of
the tensor's two uses and is the network's to write.

References:
    Yang, Hu et al., Tensor Programs V, 2022, arXiv:2203.03466.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from pyro_ibvi._util.names import assigned
from pyro_ibvi.mup.flow import Flow
from pyro_ibvi.mup.layers import layer_names, parameter_path
from pyro_ibvi.mup.parametrization import BaseShapes, MaximalUpdate, Parametrization
from pyro_ibvi.mup.roles import RoleOverrides, WeightRole

#: By parameter name: how many of the first rows make queries, and their factor.
QueryScales = dict[str, tuple[int, float]]


def find_query_scales(net: nn.Module, parametrization: Parametrization) -> QueryScales:
    """The factors on the projections of attention that the parametrization asks for.

    Args:
        net: The network.
        parametrization: The parametrization; only :class:`MaximalUpdate` asks for any.

    Returns:
        Number of rows and factor by parameter name, without factors of one.
    """
    scales: QueryScales = {}
    if not isinstance(parametrization, MaximalUpdate):
        return scales
    for name, module in _attention_modules(net).items():
        base_size = _base_head_size(name, module, parametrization.base)
        factor = parametrization.query_scale(module.head_dim, base_size)
        for own in ("in_proj_weight", "q_proj_weight", "in_proj_bias"):
            if factor != 1 and getattr(module, own) is not None:
                scales[parameter_path(name, own)] = (module.embed_dim, factor)
    return scales


def scale_queries(
    values: Mapping[str, Tensor], scales: QueryScales, net: nn.Module
) -> dict[str, Tensor]:
    """Multiplies the rows that make queries by their factors.

    Args:
        values: Parameters by name.
        scales: The factors.
        net: The network, for the parameters that ``values`` leaves out.

    Returns:
        The values, those of ``scales`` multiplied.
    """
    scaled = dict(values)
    for name, (num_rows, factor) in scales.items():
        value = values[name] if name in values else net.get_parameter(name)
        scaled[name] = torch.cat([value[:num_rows] * factor, value[num_rows:]])
    return scaled


def attention_warning(
    net: nn.Module,
    flow: Flow,
    roles: Mapping[str, WeightRole],
    parametrization: Parametrization,
) -> str | None:
    """What to tell the user of attention whose logits are divided by the root of the head size.

    Args:
        net: The network.
        flow: What is known of its forward pass.
        roles: The roles by parameter name.
        parametrization: The parametrization.

    Returns:
        A sentence, or None if the logits are as they should be or the user has said what is.
    """
    if not isinstance(parametrization, MaximalUpdate) or parametrization.attention == "1/sqrt(d)":
        return None
    places, remedies = [], []
    modules = [] if parametrization.attention == "1/d" else _attention_modules(net).items()
    grown = [
        name
        for name, module in modules
        if _base_head_size(name, module, parametrization.base) != module.head_dim
    ]
    if grown:
        places.append(f"the attention modules {grown}")
        remedies.append('MaximalUpdate(attention="1/d") to have their logits divided by d')
    if flow.calls_attention and not _has_base_widths(roles):
        places.append("the network's own calls of scaled_dot_product_attention")
        remedies.append(
            "scale=1 / d in those calls, or scale=d_base**0.5 / d to change nothing at the base"
        )
    if not places:
        return None
    return (
        f"The logits of {' and '.join(places)} are divided by the square root of the head size d, "
        f"where the maximal update parametrization divides by d, so that the best learning rate "
        f"may drift with the width if d grows with it: write {' and '.join(remedies)}, or "
        f'MaximalUpdate(attention="1/sqrt(d)") to keep them, as you may if d is the same at every '
        f"width."
    )


def _has_base_widths(roles: Mapping[str, WeightRole]) -> bool:
    """Whether nothing has grown since the base, the size of heads that nobody sees included."""
    fans = [weight.fans for weight in roles.values()]
    widths = [(f.width_in, f.width_out) for f in fans]
    return widths == [(f.base_width_in, f.base_width_out) for f in fans]


def _attention_modules(net: nn.Module) -> dict[str, nn.MultiheadAttention]:
    return {n: m for n, m in net.named_modules() if isinstance(m, nn.MultiheadAttention)}


def _base_head_size(name: str, module: nn.MultiheadAttention, base: BaseShapes) -> int | None:
    """Head size in the base network; shapes alone are taken to keep the number of heads."""
    if base is None:
        return None
    if isinstance(base, nn.Module):
        return int(base.get_submodule(name).head_dim)  # type: ignore[arg-type]
    path = parameter_path(name, "out_proj.weight")
    width = base[path][0] if isinstance(base, Mapping) else base
    return max(width // int(module.num_heads), 1)


def logit_divisor(weight: WeightRole, parametrization: Parametrization) -> float:
    """What a read-out's logits are to be divided by: a tied one's width over the base's."""
    if not weight.tied or not isinstance(parametrization, MaximalUpdate):
        return 1.0
    return weight.fans.width_out / (weight.fans.base_width_out or 1)


def tied_warning(
    net: nn.Module,
    roles: Mapping[str, WeightRole],
    overrides: RoleOverrides | None,
    parametrization: Parametrization,
) -> str | None:
    """What to tell the user of embeddings that are read-outs too.

    Args:
        net: The network.
        roles: The roles by parameter name.
        overrides: Roles that the user has given.
        parametrization: The parametrization.

    Returns:
        A sentence, or None if there are none or the user has said what they are.
    """
    given = assigned(overrides or {}, roles, partial(layer_names, net))
    tied = {
        name: divisor
        for name, weight in roles.items()
        if (divisor := logit_divisor(weight, parametrization)) != 1 and name not in given
    }
    if not tied:
        return None
    name, divisor = next(iter(tied.items()))
    return (
        f"The embeddings {list(tied)} are read-out matrices too, and their scales and rates are "
        f"an embedding's, which suit a read-out only if the network divides its logits by the "
        f"width over that of the base ({divisor:g} here): do so in its forward pass, and say so "
        f'by roles={{"{name}": "input"}}.'
    )


def depth_warning(roles: Mapping[str, WeightRole], parametrization: Parametrization) -> str | None:
    """What to tell the user of residual branches in a network deeper or shallower than the base.

    Args:
        roles: The roles by parameter name.
        parametrization: The parametrization.

    Returns:
        A sentence, or None if the depths agree or the user has said what multiplies the branches.
    """
    if not isinstance(parametrization, MaximalUpdate) or parametrization.branches is not None:
        return None
    for weight in roles.values():
        depth, base = weight.fans.depth, weight.fans.base_depth
        if base is not None and depth != base:
            return (
                f"The network repeats a block {depth} times and the base {base} times: a learning "
                f"rate tuned at the base serves it only if each residual branch is multiplied by "
                f"{base / depth:g}, as in x + {base / depth:g} * branch(x), in the network's "
                f'forward pass. Write that, and MaximalUpdate(branches="1/depth") to have rates '
                f'and epsilons follow, or branches="1/sqrt(depth)" with the square root of it.'
            )
    return None
