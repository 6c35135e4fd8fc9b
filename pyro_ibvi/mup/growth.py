"""Which of a tensor's sizes are widths, where nobody but the user knows its layer.

The user gives the fans, and sizes that multiply to them are those of the inputs or of the outputs.
The others, of a stack of matrices or of a list of positions, are no widths.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

from pyro_ibvi.mup.parametrization import Fans

#: For each dimension ``"in"``, ``"out"`` or ``"none"``.
_Sides = tuple[str, ...]


def given_base_widths(
    fans: Fans, shape: Sequence[int], base_shape: Sequence[int], *, inputs_first: bool
) -> tuple[int, int]:
    """The widths of a weight in the base network, from the fans that a user gives.

    Args:
        fans: The fans.
        shape: Shape of the tensor.
        base_shape: Its shape in the base network.
        inputs_first: Whether the inputs' dimensions come before the outputs'.

    Returns:
        Width of the inputs and of the outputs.

    Example:
        >>> stack = Fans(fan_in=16, width_in=16, width_out=32)
        >>> given_base_widths(stack, (4, 16, 32), (4, 8, 16), inputs_first=True)
        (8, 16)
    """
    sides = _find_sides(fans, shape, base_shape, inputs_first)
    widths = []
    for side, width in (("in", fans.width_in), ("out", fans.width_out)):
        base, own = _size(side, sides, base_shape), _size(side, sides, shape)
        widths.append(max(width * base // own, 1))
    return widths[0], widths[1]


def _find_sides(
    fans: Fans, shape: Sequence[int], base_shape: Sequence[int], inputs_first: bool
) -> _Sides:
    first, second = ("in", "out") if inputs_first else ("out", "in")
    grown = [i for i, sizes in enumerate(zip(shape, base_shape, strict=True)) if len({*sizes}) > 1]

    def fit(sides: _Sides) -> tuple[bool, bool, int, bool]:
        places = {side: [i for i, s in enumerate(sides) if s == side] for side in sides}
        before, behind = places.get(first, []), places.get(second, [])
        return (
            _size("in", sides, shape) == fans.fan_in,
            _size("out", sides, shape) == fans.width_out,
            sum(sides[i] != "none" for i in grown),
            max(before, default=-1) < min(behind, default=len(sides)),
        )

    best = max(itertools.product(("none", first, second), repeat=len(shape)), key=fit)
    is_whole = fit(best)[:2] == (True, True)
    if not is_whole and len(shape) == 2 and fans.fan_in > 1:
        return (first, second)  # numbers that are not the tensor's
    return best


def _size(side: str, sides: Iterable[str], shape: Iterable[int]) -> int:
    return math.prod(n for n, s in zip(shape, sides, strict=True) if s == side)
