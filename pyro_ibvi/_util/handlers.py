"""Pyro's effect handlers: one thread at a time where they are at work, and what is behind them.

Pyro keeps its handlers on one stack for the whole process: what a thread traces, another one's
handlers see. Training takes this lock for as long as it needs handlers, so that two threads may
each train a model, one step after the other. Predictions need none and take none.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from pyro.poutine.messenger import Messenger

#: To be held while Pyro's handlers are on their stack. A thread may take it again.
HANDLERS = threading.RLock()


def handled(function: Any) -> tuple[Messenger, Callable[..., Any]] | None:
    """The outermost of Pyro's handlers around a function, and what is behind it.

    Args:
        function: A function, as ``poutine.block(model, ...)`` returns it.

    Returns:
        The handler and the function without it; None if there is none.
    """
    wrapped = function.func if isinstance(function, partial) else None
    if isinstance(wrapped, partial) and len(wrapped.args) > 1:
        handler, inner = wrapped.args[:2]
    else:  # poutine.reparam and poutine.trace return objects
        handler, inner = getattr(function, "msngr", None), getattr(function, "fn", None)
    return (handler, inner) if isinstance(handler, Messenger) and callable(inner) else None


def from_inside(messenger: Messenger, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function with a handler inside of those around it, which may hide its statements.

    Args:
        messenger: The handler, which sees what ``poutine.block`` hides.
        function: The function.

    Returns:
        The function with all handlers.
    """
    behind = handled(function)
    if behind is None:
        return messenger(function)
    handler, inner = behind
    return handler(from_inside(messenger, inner))
