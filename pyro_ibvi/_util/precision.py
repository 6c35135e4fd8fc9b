"""The precision that densities are counted in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_ibvi._util.errors import DataError

#: How far two ways of the same may be apart, relative to the largest output; more where numbers
#: are shorter.
_TOLERANCE = 1e-3
_TOLERANCE_IN_EPS = 16


def at_least_float32(tensor: Tensor) -> Tensor:
    """A tensor in the precision that densities need: bfloat16 has 8 bits, and rounds 0.996 to 1.

    Args:
        tensor: A tensor.

    Returns:
        The tensor, as float32 if its type is a smaller floating one.
    """
    small = tensor.is_floating_point() and tensor.dtype.itemsize < 4
    return tensor.float() if small else tensor


def in_double(tensor: Tensor) -> Tensor:
    """A tensor in double precision, or in single where its device has no other.

    Args:
        tensor: A tensor.

    Returns:
        The tensor.
    """
    return tensor.float() if tensor.device.type == "mps" else tensor.double()


def side_by_side(columns: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Columns in one tensor, in which class labels and counts stay what they are.

    Args:
        columns: Tensors of shape ``(batch, num)``, of any type.
        dtype: A floating type; where it is shorter than float32, in which whole numbers have 24
            bits, float32 takes its place: bfloat16 has the labels 1000 and 1004, and none between.

    Returns:
        Shape ``(batch, sum of nums)``.

    Raises:
        DataError: If a whole number is too large for the type.
    """
    dtype = torch.promote_types(dtype, torch.float32)
    parts = []
    for column in columns:
        part = column.to(dtype)
        if column.dtype.itemsize > 2 and not column.is_floating_point():
            changed = part.to(column.dtype) != column
            if changed.any():
                number, near = column[changed][0].item(), int(part[changed][0].item())
                raise DataError(
                    f"The number {number} would become {near} in one tensor of {dtype} with "
                    f"other targets: pass one of those as torch.float64 if this is a label, or "
                    f"this one as a floating type if it is none and may lose digits."
                )
        parts.append(part)
    return torch.cat(parts, dim=-1)


def are_close(found: Tensor, expected: Tensor, outputs: Tensor) -> bool:
    """Whether two of some outputs are equal up to rounding, beside the largest of all.

    Args:
        found: Outputs that were made one way.
        expected: Those of another.
        outputs: All outputs.

    Returns:
        Whether they are.
    """
    tolerance = _TOLERANCE
    if found.is_floating_point():
        tolerance = max(tolerance, _TOLERANCE_IN_EPS * torch.finfo(found.dtype).eps)
        found, expected, outputs = found.float(), expected.float(), outputs.float()
    return bool((found - expected).abs().max() <= tolerance * outputs.abs().max())
