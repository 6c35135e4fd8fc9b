"""The precision that densities are counted in."""

from __future__ import annotations

from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """A tensor in the precision that densities need: bfloat16 has 8 bits, and rounds 0.996 to 1.

    Args:
        tensor: A tensor.

    Returns:
        The tensor, as float32 if its type is a smaller floating one.
    """
    small = tensor.is_floating_point() and tensor.dtype.itemsize < 4
    return tensor.float() if small else tensor
