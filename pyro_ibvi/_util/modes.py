"""Training and evaluation mode, given back as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def module_mode(*roots: Any, training: bool) -> Iterator[None]:
    """Puts modules into a mode, and each of them back into its own after.

    Args:
        *roots: Modules; other objects are left alone.
        training: The mode.

    Yields:
        Nothing.
    """
    modules = [m for root in roots if isinstance(root, nn.Module) for m in root.modules()]
    before = [module.training for module in modules]
    for module in modules:
        module.training = training
    try:
        yield
    finally:
        for module, was_training in zip(modules, before, strict=True):
            module.training = was_training
