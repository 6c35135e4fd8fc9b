"""An objective's evaluation has Pyro's handlers to itself, or says who else is at them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pyro.infer import SVI
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger

from pyro_ibvi._util.handlers import HANDLERS

_SENTENCE = (
    "Two threads are in SVI.step at the same time, and Pyro's handlers are the same for all "
    "threads, so that each would see the other's parameters. Train by pyro_ibvi.fit(svi, loader), "
    "which takes turns, or hold one lock around every svi.step(...)."
)


@contextmanager
def alone_at_handlers() -> Iterator[None]:
    """Keeps other threads' objectives away from Pyro's handlers.

    Yields:
        Nothing.

    Raises:
        RuntimeError: If another thread is in ``SVI.step`` by itself, whose handlers cannot be kept
            apart from this thread's.
    """
    with HANDLERS:
        _check_captures()
        try:
            yield
        except Exception as error:  # handlers that are not where they were put, among others
            if _other_thread_steps():
                raise RuntimeError(_SENTENCE) from error
            raise
        _check_captures()


def _check_captures() -> None:
    """Refuses a stack that holds another step's capture of parameters, or lost this one's."""
    captures = sum(type(h) is TraceMessenger and bool(h.param_only) for h in _PYRO_STACK)
    if captures > 1 and _other_thread_steps():
        raise RuntimeError(_SENTENCE)
    if captures == 0 and _is_in_step(sys._getframe()):
        raise RuntimeError(_SENTENCE)


def _other_thread_steps() -> bool:
    frames = sys._current_frames()
    frames.pop(threading.get_ident(), None)
    return any(_is_in_step(frame) for frame in frames.values())


def _is_in_step(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code is SVI.step.__code__:
            return True
        frame = frame.f_back
    return False
