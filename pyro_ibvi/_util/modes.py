"""Training and evaluation mode, given back as they were."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.module import register_module_forward_pre_hook

from pyro_ibvi._util.handlers import handled


@contextmanager
def module_mode(*callables: Any, training: bool) -> Iterator[None]:
    """Puts modules into a mode, and each of them back into its own after.

    The modules' own ``train`` is called, which some override to keep a part of them fixed. In
    training mode what its user put into evaluation mode stays there: a layer, or one of several
    parts, whose surroundings train, and a norm layer without a parameter to train.

    Args:
        *callables: Modules, or bound methods of modules. A function hides its modules: in
            evaluation mode they are found when they are called; in training mode they are left
            in theirs.
        training: The mode.

    Yields:
        Nothing.
    """
    before: dict[nn.Module, bool] = {}
    with ExitStack() as stack:
        stack.callback(_give_back, before)
        owners = [owner_module(c) for c in callables]
        for owner in owners:
            if owner is not None:
                _switch(owner, training, before)
        if not training and any(owner is None for owner in owners):
            stack.callback(_switch_when_called(before).remove)
        yield


def owner_module(callable_: Any) -> nn.Module | None:
    """The module that is called, also behind Pyro's handlers.

    Args:
        callable_: A module, a bound method of one, or anything else.

    Returns:
        The module, or None.
    """
    while (behind := handled(callable_)) is not None or isinstance(callable_, partial):
        callable_ = callable_.func if behind is None else behind[1]
    owner = getattr(callable_, "__self__", callable_)
    return owner if isinstance(owner, nn.Module) else None


def _switch(root: nn.Module, training: bool, before: dict[nn.Module, bool]) -> None:
    fixed = _fixed(root) if training else []
    for module in root.modules():
        before.setdefault(module, module.training)
    root.train(training)
    for module in fixed:
        module.eval()


def _fixed(root: nn.Module) -> list[nn.Module]:
    """The modules that were put into evaluation mode to stay there."""
    found: list[nn.Module] = []
    for parent in root.modules():
        children = list(parent.children())
        for child in children:
            if child.training:
                continue
            # A network that is wrapped in evaluation mode is a whole, and the only child.
            is_part = len(children) > 1 or not list(child.children())
            parameters = list(child.parameters())
            is_frozen = bool(parameters) and not any(p.requires_grad for p in parameters)
            if (parent.training and is_part) or (isinstance(child, _NormBase) and is_frozen):
                found.append(child)
    return found


def _switch_when_called(before: dict[nn.Module, bool]) -> Any:
    thread = threading.get_ident()

    def hook(module: nn.Module, _: Any) -> None:
        if module.training and threading.get_ident() == thread:
            _switch(module, False, before)

    return register_module_forward_pre_hook(hook)


def _give_back(before: dict[nn.Module, bool]) -> None:
    for module, was_training in before.items():
        module.training = was_training
