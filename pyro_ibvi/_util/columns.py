"""Means and standard deviations of columns of data, by which they are standardized."""

from __future__ import annotations

import torch
from torch import Tensor


def column_moments(columns: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column, the latter exactly 0 where it is constant.

    The mean of equal numbers, summed up, differs from them in the last digits, and what is
    divided by that difference is no constant: so columns are summed from their least number on.
    The square of 1e200 is no number and that of 1e-200 is zero: so columns are summed in units of
    a power of two that is as large as their largest number, which rounds nothing.

    Args:
        columns: Numbers in double precision, the data in front; those that are NaN do not count.
        weight: Weights of the data, shape ``(len(columns),)``, or None.

    Returns:
        Both in the shape of a row.
    """
    _, exponent = columns.nan_to_num(nan=0.0).abs().amax(0).frexp()
    unit = torch.exp2((exponent - 1).to(columns.dtype))
    columns = columns / unit
    least = columns.nan_to_num(nan=torch.inf, posinf=torch.inf).amin(0)
    above = columns - least
    counts = (
        torch.ones_like(above) if weight is None else weight.view(-1, *[1] * (above.dim() - 1))
    )
    counts = torch.where(above.isnan(), 0.0, counts)
    total = counts.sum(0)
    mean = (counts * above).nansum(0) / total
    std = ((counts * (above - mean).square()).nansum(0) / total).sqrt()
    rounding = 10 * torch.finfo(columns.dtype).eps * columns.nan_to_num(nan=0.0).abs().amax(0)
    return unit * (least + mean), unit * torch.where(std <= rounding, 0.0, std)
