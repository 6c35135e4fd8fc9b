"""Parameters of layers of a kind that is not known: what to write of them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import nn


def vector_size(shape: Sequence[int]) -> int:
    """Number of units of a parameter that has a number for each, or of a list of such ones.

    Args:
        shape: Its shape.

    Returns:
        The number: all of it where one dimension alone is above one, and else the last.
    """
    size = math.prod(shape)
    return size if max(shape, default=1) == size else shape[-1]


def check_turned(name: str, shape: tuple[int, ...], given: Any) -> None:
    """Checks that the sides of a matrix are where its role says, by which rates go.

    Args:
        name: Its name.
        shape: Its shape.
        given: The role that the user gave, with its fans.

    Raises:
        ValueError: If inputs and outputs are the other way round.
    """
    fans, first = given.fans, given.inputs_first
    sides = (fans.width_out, fans.fan_in) if first else (fans.fan_in, fans.width_out)
    if given.role in ("bias", "gain") or sides[0] == sides[1] or shape != sides:
        return
    raise ValueError(
        f"The role of {name!r} says fan_in={fans.fan_in}, fan_out={fans.width_out} and "
        f"inputs_first={first}, a matrix of shape {sides[::-1]}, and it has the shape {shape}: "
        f"turn the fans, or write inputs_first={not first}."
    )


def check_known(
    net: nn.Module,
    shapes: Mapping[str, tuple[int, ...]],
    named: Collection[str],
    *,
    was_seen: bool,
) -> None:
    """Refuses parameters whose roles nothing tells, all at once.

    Args:
        net: The network.
        shapes: Shapes of the parameters in question, by name.
        named: Names of the parameters of which the user has said something.
        was_seen: Whether the forward pass was seen.

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
    message += f'roles={{"{name}": "bias"}} if it is added to data or put beside them, "gain" '
    message += 'in the place of "bias" if it multiplies them number by number, and '
    if (size := vector_size(shapes[name])) == math.prod(shapes[name]):
        message += f'WeightRole.of("hidden", fan_in={size}, fan_out=1) if these are summed.'
    else:
        message += 'WeightRole.of("hidden", fan_in=..., fan_out=...) if it is a matrix of a layer.'
    if not was_seen:
        message += (
            " Or pass example_input=x, a batch of inputs, of which one pass tells the first two."
        )
    if name in named:
        message += " The role of a matrix, as roles has it there, does not say how wide it is."
    if others:
        message += f" The same goes for {', '.join(f'{n!r} {shapes[n]}' for n in others)}."
    raise ValueError(message)
