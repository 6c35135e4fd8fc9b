"""Which of torch's implementations an optimizer's step is made by."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

# Optimizers with fused kernels on CPU and CUDA, and the arguments that choose them or others.
_FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
_IMPLEMENTATIONS = {"fused", "foreach", "differentiable", "capturable"}


def has_choice(optimizer: Any, arguments: Mapping[str, Any]) -> bool:
    """Whether an optimizer has fused kernels and nobody chose between them and others.

    Args:
        optimizer: Class of the optimizer.
        arguments: Its arguments.

    Returns:
        Whether it has.
    """
    return optimizer in _FUSED and not arguments.keys() & _IMPLEMENTATIONS


def can_fuse(optimizer: Any, arguments: Mapping[str, Any], parameters: Collection[Tensor]) -> bool:
    """Whether torch has fused kernels for all parameters and nobody chose another way.

    Args:
        optimizer: Class of the optimizer.
        arguments: Its arguments.
        parameters: The parameters.

    Returns:
        Whether it has.
    """
    kinds = ("cpu", "cuda")
    fits = all(p.is_floating_point() and p.device.type in kinds for p in parameters)
    return fits and has_choice(optimizer, arguments)


def choose_kernels(optimizer: Optimizer, parameters: Collection[Tensor]) -> bool:
    """Leaves the fused kernels aside where they cannot do a step.

    Those of SGD expect momentum for all parameters of a group or for none; none takes sparse
    gradients.

    Args:
        optimizer: The optimizer.
        parameters: Its parameters.

    Returns:
        Whether later steps may be fused.
    """
    is_sparse = any(p.grad is not None and p.grad.is_sparse for p in parameters)
    for group in optimizer.param_groups:
        group["fused"] = not is_sparse and len(optimizer.state) in (0, len(parameters))
    return not is_sparse
