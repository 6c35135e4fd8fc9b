"""The padding row of an embedding, which keeps the network's value.

Torch gives the row ``padding_idx`` no gradient, so that it stays what it is, zeros by default. A
random table keeps it too: neither prior nor guide put noise there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from pyro_ibvi.mup.layers import TABLES

#: Key of a site's ``infer`` dictionary under which its :class:`KeepRow` stands.
KEEP_KEY = "ibvi_keep"


class KeepRow(Transform):
    """A table with one row put in its place.

    Taken for a bijection of volume one: the row enters no likelihood, and as what it is given it
    is as probable as any other.

    Args:
        row: Number of the row.
        value: Its value, shape ``(columns,)``.

    Example:
        >>> KeepRow(1, torch.zeros(2))(torch.ones(3, 2))
        tensor([[1., 1.],
                [0., 0.],
                [1., 1.]])
    """

    domain = constraints.independent(constraints.real, 2)
    codomain = constraints.independent(constraints.real, 2)
    bijective = True

    def __init__(self, row: int, value: Tensor) -> None:
        super().__init__()
        self.row = row
        self.value = value

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def _call(self, x: Tensor) -> Tensor:
        row = self.value.to(x).expand(*x.shape[:-2], 1, x.shape[-1])
        return x.index_copy(-2, torch.tensor([self.row], device=x.device), row)

    def _inverse(self, y: Tensor) -> Tensor:
        return y

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """The logarithm of one, for each table."""
        return x.new_zeros(x.shape[:-2])

    def still(self, scale: Tensor) -> Tensor:
        """Standard deviations with none for the row."""
        return KeepRow(self.row, torch.zeros_like(scale[..., 0, :]))(scale)


def find_padding(net: nn.Module) -> dict[str, int]:
    """The padding rows of a network's tables.

    Args:
        net: The network.

    Returns:
        The number of the row, by the parameter's name in ``net.named_parameters()``.
    """
    rows = {
        module.weight: module.padding_idx
        for module in net.modules()
        if isinstance(module, TABLES) and module.padding_idx is not None
    }
    return {name: rows[p] for name, p in net.named_parameters() if p in rows}
