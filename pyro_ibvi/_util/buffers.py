"""Buffers of modules, such as BatchNorm's statistics, given back as they were."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

#: Larger buffers are data, which no step changes.
_MAX_NUMEL = 2**22


class KeptBuffers:
    """The buffers of some modules, as they are now.

    Args:
        modules: The modules themselves, without those that they hold.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        # By memory: copies of a network's structure share its buffers.
        self._kept: dict[int, tuple[nn.Module, str, Tensor, Tensor]] = {}
        for module in modules:
            self._keep(module)

    @property
    def modules(self) -> list[nn.Module]:
        """The modules that have buffers."""
        return [module for module, *_ in self._kept.values()]

    def watch(self) -> RemovableHandle:
        """Keeps the buffers of every module that this thread runs from now on, too.

        A model may be a function that calls a network which nothing else leads to.

        Returns:
            What ends it, by its method ``remove``.
        """
        thread = threading.get_ident()  # torch's hook is on the modules of all threads

        def keep(module: nn.Module, _: Any) -> None:
            # A compiler that reads this cannot read the thread, and is in this one.
            if torch.compiler.is_compiling() or threading.get_ident() == thread:
                self._keep(module)

        return register_module_forward_pre_hook(keep)

    def give_back(self) -> None:
        """Puts the buffers back."""
        for module, name, buffer, copy in self._kept.values():
            module._buffers[name] = buffer
            # Not in place for autograd: a graph that was made before may still need the buffer.
            buffer.data.copy_(copy)

    def _keep(self, module: nn.Module) -> None:
        for name, buffer in module._buffers.items():
            if buffer is None or nn.parameter.is_lazy(buffer):
                continue
            if not 0 < buffer.numel() <= _MAX_NUMEL:
                continue
            if torch._C._functorch.is_functorch_wrapped_tensor(buffer):
                continue
            if buffer.data_ptr() not in self._kept:
                self._kept[buffer.data_ptr()] = module, name, buffer, buffer.detach().clone()


@contextmanager
def buffers_kept(*roots: Any) -> Iterator[None]:
    """Gives buffers back as they were before, those of modules that are run meanwhile included.

    Args:
        *roots: Modules; other objects are left alone.

    Yields:
        Nothing.
    """
    found = [m for root in roots if isinstance(root, nn.Module) for m in root.modules()]
    buffers = KeptBuffers(found)
    watch = buffers.watch()
    try:
        yield
    finally:
        watch.remove()
        buffers.give_back()
