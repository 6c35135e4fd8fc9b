"""Standard normal noise for large tensors, made by several threads.

``torch.randn`` fills a tensor on one CPU core, which at a few million numbers takes longer than
the multiplications of a wide layer. Here a large tensor is filled in pieces, each by a generator
with a seed of its own, which torch's global generator gives: the numbers follow from
``torch.manual_seed`` alone, whatever the number of threads.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor

from pyro_ibvi._util.random_state import thread_generator

#: Number of entries that one seed fills; a smaller tensor is left to torch.
_PIECE = 2**18


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


def _fill(pieces: tuple[Tensor, ...], seeds: list[int]) -> None:
    generator = torch.Generator()
    for piece, seed in zip(pieces, seeds, strict=True):
        piece.normal_(generator=generator.manual_seed(seed))


@cache
def _executor(num_threads: int) -> ThreadPoolExecutor:
    # A forked process has none of its parent's threads.
    os.register_at_fork(after_in_child=_executor.cache_clear)
    # One core is the caller's.
    return ThreadPoolExecutor(max(1, num_threads - 1), thread_name_prefix="pyro_ibvi-noise")
