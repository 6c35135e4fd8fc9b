"""How a call is timed, and what it does: the same for steps, predictions and growth."""

from __future__ import annotations

import gc
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Call = Callable[[], object]


def milliseconds(
    call: Call, device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Time of a call: by the clock, on a GPU by events on its stream."""
    if device.type != "cuda":
        start = clock()
        call()
        return 1e3 * (clock() - start)
    torch.cuda.synchronize(device)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def in_turn(
    calls: Mapping[str, Call],
    rounds: int,
    device: torch.device,
    warmup: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Times A B C A B C: each call once in a round, so that a drifting machine slows all alike.

    Garbage is collected between rounds and not during them: otherwise what one leaves behind is
    cleared away in another's time.

    Args:
        calls: The calls by name.
        rounds: Number of timed rounds.
        device: Where they run.
        warmup: Number of rounds before them.
        clock: The clock on a processor, in seconds: ``time.thread_time`` for a single thread on a
            machine that has other work.

    Returns:
        Milliseconds by name, one a round.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        for i in range(warmup + rounds):
            for name, call in calls.items():
                elapsed = milliseconds(call, device, clock)
                if i >= warmup:
                    times[name].append(elapsed)
            gc.collect()
    finally:
        gc.enable()
        gc.unfreeze()
    return times


def summary(times: list[float], **bases: list[float] | None) -> dict[str, Any]:
    """Median time with its quartiles, and the medians of ratios within a round.

    Args:
        times: Milliseconds, one a round.
        **bases: Times of others in the same rounds, by the name that the ratio gets.

    Returns:
        Numbers by name.
    """
    result: dict[str, Any] = {"ms": statistics.median(times), "rounds": len(times)}
    if len(times) > 1:
        result["ms_quartiles"] = statistics.quantiles(times, n=4)[::2]
    for name, base in bases.items():
        if base is not None:
            result[name] = statistics.median(t / b for t, b in zip(times, base, strict=True))
    return result


class _RandomNumbers(TorchDispatchMode):
    """Counts the numbers that torch's generators draw."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags and isinstance(result, Tensor):
            self.count += result.numel()
        return result


def random_numbers(call: Call) -> int:
    """How many random numbers a call draws."""
    with _RandomNumbers() as counter:
        call()
    return counter.count


def fraction_changed(call: Call, parameters: Callable[[], list[Tensor]]) -> float:
    """Share of the numbers in the parameters whose tensors a call changes."""
    before = [p.detach().clone() for p in parameters()]
    call()
    pairs = list(zip(before, parameters(), strict=True))
    changed = sum(old.numel() for old, new in pairs if not torch.equal(old, new))
    return changed / sum(old.numel() for old in before)


def host_syncs(call: Call, device: torch.device) -> int | None:
    """How often a call makes the host wait for the GPU; None without one."""
    if device.type != "cuda":
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(w.message) for w in caught)
