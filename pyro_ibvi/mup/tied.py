"""Embeddings that are read-out matrices too, under the maximal update parametrization.

Table 8 of Tensor Programs V (Yang, Hu et al., 2022, arXiv:2203.03466) gives an embedding and a
read-out the same initial scale and the same rates, and the read-out a multiplier ``1 / width``.
It belongs to one of the tensor's two uses and is the network's to write.
"""

from __future__ import annotations

from collections.abc import Mapping

from pyro_ibvi.mup.parametrization import MaximalUpdate, Parametrization
from pyro_ibvi.mup.roles import RoleOverrides, WeightRole, find_override


def logit_divisor(weight: WeightRole, parametrization: Parametrization) -> float:
    """What a read-out's logits are to be divided by: a tied one's width over the base's."""
    if not weight.tied or not isinstance(parametrization, MaximalUpdate):
        return 1.0
    return weight.fans.width_out / (weight.fans.base_width_out or 1)


def tied_warning(
    roles: Mapping[str, WeightRole],
    overrides: RoleOverrides | None,
    parametrization: Parametrization,
) -> str | None:
    """What to tell the user of embeddings that are read-outs too.

    Args:
        roles: The roles by parameter name.
        overrides: Roles that the user has given.
        parametrization: The parametrization.

    Returns:
        A sentence, or None if there are none or the user has said what they are.
    """
    tied = {
        name: divisor
        for name, weight in roles.items()
        if (divisor := logit_divisor(weight, parametrization)) != 1
        and find_override(name, overrides or {}) is None
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
