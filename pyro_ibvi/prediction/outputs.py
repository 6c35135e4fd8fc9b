"""A network's outputs for many draws and data, put together without a second copy."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor


class Outputs:
    """Outputs of all draws and rows, put where they belong as they come.

    Only where a graph is kept are they put together at the end, which takes their memory twice.

    Args:
        num_samples: Number of draws.
        num_rows: Number of rows where they come in parts, None where each part has all.
    """

    def __init__(self, num_samples: int, num_rows: int | None) -> None:
        self._num_samples, self._num_rows = num_samples, num_rows
        self._place: Tensor | None = None
        self._num_done = 0
        self._parts: list[Tensor] = []

    def add(self, parts: Iterable[Tensor]) -> None:
        """Adds some draws.

        Args:
            parts: Their outputs, of some rows after the other, draws in front.
        """
        parts = iter(parts)
        first = next(parts)
        num_draws = len(first)
        is_whole = num_draws == self._num_samples and self._num_rows is None
        if torch.is_grad_enabled() or is_whole:
            rest = list(parts)
            self._parts.append(torch.cat([first, *rest], dim=1) if rest else first)
            return
        start = 0
        for part in chain([first], parts):
            if self._place is None:
                num_rows = part.shape[1] if self._num_rows is None else self._num_rows
                self._place = part.new_empty(self._num_samples, num_rows, *part.shape[2:])
            stop = start + part.shape[1]
            self._place[self._num_done : self._num_done + num_draws, start:stop] = part
            start = stop
        self._num_done += num_draws

    def whole(self) -> Tensor:
        """All of them.

        Returns:
            The outputs, draws in front.
        """
        if self._place is not None:
            return self._place
        return torch.cat(self._parts) if len(self._parts) > 1 else self._parts[0].contiguous()
