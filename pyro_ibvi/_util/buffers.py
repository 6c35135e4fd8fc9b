"""Buffers of modules, such as BatchNorm's statistics, given back as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook


@contextmanager
def buffers_kept(*roots: Any) -> Iterator[None]:
    """Gives buffers back as they were before.

    Those of every module that runs meanwhile are, too: a model may be a function that calls a
    network which nothing else leads to.

    Args:
        *roots: Modules; other objects are left alone.

    Yields:
        Nothing.
    """
    kept: dict[tuple[int, str], tuple[nn.Module, Tensor, Tensor]] = {}

    def keep(module: nn.Module, _: Any = None) -> None:
        for name, buffer in module._buffers.items():
            if buffer is None or (id(module), name) in kept:
                continue
            if not torch._C._functorch.is_functorch_wrapped_tensor(buffer):
                kept[id(module), name] = module, buffer, buffer.detach().clone()

    for root in roots:
        if isinstance(root, nn.Module):
            for module in root.modules():
                keep(module)
    hook = register_module_forward_pre_hook(keep)
    try:
        yield
    finally:
        hook.remove()
        for (_, name), (module, buffer, copy) in kept.items():
            module._buffers[name] = buffer
            # Not in place for autograd: a graph that was made before may still need the buffer.
            buffer.data.copy_(copy)
