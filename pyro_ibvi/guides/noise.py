"""Standard normal noise for large tensors, made by several threads.

``torch.randn`` fills a tensor on one CPU core, which at a few million numbers takes longer than
the multiplications of a wide layer. Here a large tensor is filled in pieces, each by a generator
with a seed of its own, which torch's global generator gives: the numbers follow from
``torch.manual_seed`` alone, whatever the number of threads.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from pyro_ibvi._util.random_state import thread_generator

#: Number of entries that one seed fills; a smaller tensor is left to torch.
_PIECE = 2**18

#: Number of rows that are made of one, and the number of entries from which that is faster.
_COPIES, _MIN_SHARED = 8, 2**13


def fill_normal(tensor: Tensor) -> Tensor:
    """Fills a tensor with standard normal numbers.

    Args:
        tensor: A contiguous tensor of a floating type.

    Returns:
        The tensor.

    Example:
        >>> torch.manual_seed(0)
        <torch._C.Generator object at ...>
        >>> noise = fill_normal(torch.empty(1000, 1000))
        >>> abs(noise.mean().item()) < 0.005, abs(noise.std().item() - 1) < 0.005
        (True, True)
    """
    generator = thread_generator(tensor.device)
    if tensor.device.type != "cpu" or tensor.numel() < 2 * _PIECE:
        return tensor.normal_(generator=generator)
    pieces = tensor.view(-1).split(_PIECE)
    seeds = torch.randint(2**63 - 1, (len(pieces),), generator=generator).tolist()
    num_threads = min(torch.get_num_threads(), len(pieces))
    jobs = [
        (pieces[first::num_threads], seeds[first::num_threads]) for first in range(num_threads)
    ]
    others = [_executor(num_threads).submit(_fill, *job) for job in jobs[1:]]
    _fill(*jobs[0])
    for other in others:
        other.result()
    return tensor


@dataclass(frozen=True)
class NormalRows:
    """Standard normal vectors, several of which are views of one.

    Attributes:
        drawn: The vectors as they were drawn, shape ``(num_drawn, copies, size)``.
        signs: What each copy is multiplied by, shape ``(copies, 1)``, or None for 1.
        num_rows: Number of vectors; the last drawn one may have copies beyond.
    """

    drawn: Tensor
    signs: Tensor | None
    num_rows: int

    def values(self) -> Tensor:
        """The vectors, shape ``(num_rows, size)``."""
        values = self.drawn if self.signs is None else self.drawn * self.signs
        return self._cut(values)

    def one_plus(self, factor: Tensor) -> Tensor:
        """The vectors ``1 + s z``, made without those of ``z``, which no gradient keeps either.

        Args:
            factor: The factor ``s``, shape ``(size,)``.

        Returns:
            A tensor of shape ``(num_rows, size)``.
        """
        signed = factor if self.signs is None else factor * self.signs
        rows = torch.addcmul(factor.new_ones(()), signed, self.drawn)
        return self._cut(rows)

    def _cut(self, rows: Tensor) -> Tensor:
        flat = rows.reshape(-1, rows.shape[-1])
        # The gradient of a slice is a pass of its own, also where the slice is everything.
        return flat if len(flat) == self.num_rows else flat[: self.num_rows]


def normal_rows(num_rows: int, size: int, like: Tensor) -> NormalRows:
    """Standard normal vectors whose own laws are exact and that need not be independent.

    For a sum over data it is the law of each datum's noise that counts. So of many long rows an
    eighth is drawn; the others are these with their entries moved along, every other one with its
    sign changed. No two rows have correlated entries in one place.

    Args:
        num_rows: Number of rows.
        size: Their length.
        like: A tensor of the wanted type and device.

    Returns:
        The rows.
    """
    num_drawn = -(-num_rows // _COPIES)
    if num_rows * size < _MIN_SHARED or size < 8 * _COPIES:
        num_drawn = num_rows
    drawn = fill_normal(torch.empty(num_drawn, size, dtype=like.dtype, device=like.device))
    if num_drawn == num_rows:
        return NormalRows(drawn.unsqueeze(1), None, num_rows)
    twice = torch.cat([drawn, drawn], dim=1)
    # Copies next to one another, so that what is made of them lies in memory row by row.
    moved = twice.as_strided((num_drawn, _COPIES, size), (2 * size, size // _COPIES, 1))
    signs = drawn.new_ones(_COPIES, 1)
    signs[1::2] = -1.0
    return NormalRows(moved, signs, num_rows)


def _fill(pieces: tuple[Tensor, ...], seeds: list[int]) -> None:
    generator = torch.Generator()
    for piece, seed in zip(pieces, seeds, strict=True):
        piece.normal_(generator=generator.manual_seed(seed))


@cache
def _executor(num_threads: int) -> ThreadPoolExecutor:
    # A forked process has none of its parent's threads. Windows knows no fork.
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_executor.cache_clear)
    # One core is the caller's.
    return ThreadPoolExecutor(max(1, num_threads - 1), thread_name_prefix="pyro_ibvi-noise")
