"""Parameters of layers of a kind that is not known: what to write of them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from torch import nn


def check_known(
    net: nn.Module, shapes: Mapping[str, tuple[int, ...]], named: Collection[str]
) -> None:
    """Refuses parameters whose roles nothing tells, all at once.

    Args:
        net: The network.
        shapes: Shapes of the parameters in question, by name.
        named: Names of the parameters of which the user has said something.

    Raises:
        ValueError: If there are any such parameters.
    """
    if not shapes:
        return
    name, *others = shapes
    kind = type(net.get_submodule(name.rpartition(".")[0])).__name__
    message = (
        f"The parameter {name!r} of shape {shapes[name]} belongs to a {kind}, a kind of "
        f"layer whose role is not known. Say what it is: "
    )
    size = math.prod(shapes[name])
    if max(shapes[name], default=1) == size:
        message += (
            f'roles={{"{name}": WeightRole.of("bias", fan_in=1, fan_out={size})}} if it is added '
            f'to data or put beside them, "gain" in the place of "bias" if they are multiplied '
            f"by it."
        )
    else:
        message += (
            f'roles={{"{name}": WeightRole.of("hidden", fan_in=..., fan_out=...)}} for a matrix '
            f'that data are multiplied by, "bias" in the place of "hidden", and fan_in=1, for '
            f'what is added to them, such as positions, "gain" for factors of theirs.'
        )
    if name in named:
        message += " A role's name alone, as roles has it there, does not say how wide it is."
    if others:
        message += f" The same goes for {', '.join(f'{n!r} {shapes[n]}' for n in others)}."
    raise ValueError(message)
