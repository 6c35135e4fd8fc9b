"""A step that is refused is taken back: buffers and gradients are as before."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
from torch import Tensor

from pyro_ibvi._util.buffers import KeptBuffers
from pyro_ibvi._util.gradients import gradient_of
from pyro_ibvi._util.modes import owner_module

_STATE = threading.local()


class Undo:
    """Takes steps back that end in an error, for one model and its guide.

    Back to what they were go the buffers of modules, such as BatchNorm's statistics (of up to
    four million numbers each), and the gradients of parameters, those in Pyro's store included:
    None where there was none, and zero, as Pyro leaves them after each step, where there was one.
    Modules that hide behind a function are found when they run. Random states go on: another try
    draws other numbers.

    Args:
        *roots: The model and the guide, to whose modules it refers weakly.
    """

    def __init__(self, *roots: Any) -> None:
        owners = [owner for root in roots if (owner := owner_module(root)) is not None]
        found = [module for owner in owners for module in owner.modules()]
        self._modules = weakref.WeakSet(module for module in found if module._buffers)
        self._roots = [weakref.ref(owner) for owner in owners]
        self._has_run = False
        self._found: list[weakref.ref[Tensor]] = []
        self._find_parameters()

    @contextmanager
    def if_refused(self) -> Iterator[None]:
        """Takes back what happens inside if it ends in an error; the outermost one does it all.

        Yields:
            Nothing.
        """
        if getattr(_STATE, "is_watched", False):
            yield
            return
        _STATE.is_watched = True
        buffers = KeptBuffers(self._modules)
        known = (*(ref() for ref in self._found), *pyro.get_param_store()._params.values())
        had_gradient = {id(p) for p in known if p is not None and gradient_of(p) is not None}
        hook = None if self._has_run else buffers.watch()
        try:
            yield
        except BaseException:
            buffers.give_back()
            self._clear_gradients(had_gradient)
            raise
        else:
            if hook is not None:
                self._has_run = True
                self._find_parameters()  # some are made in the first step
                self._modules.update(buffers.modules)
        finally:
            _STATE.is_watched = False
            if hook is not None:
                hook.remove()

    def _find_parameters(self) -> None:
        # Once: a module takes its time to list them.
        self._found = [weakref.ref(parameter) for parameter in self._parameters()]

    def _parameters(self) -> Iterator[Tensor]:
        for reference in self._roots:
            root = reference()
            if root is not None:
                yield from root.parameters()
        yield from pyro.get_param_store()._params.values()

    def _clear_gradients(self, had_gradient: set[int]) -> None:
        for parameter in self._parameters():
            gradient = gradient_of(parameter)
            if gradient is not None:
                had = id(parameter) in had_gradient
                parameter.grad = gradient.new_zeros(gradient.shape) if had else None
