r"""Memory of large tensors that a training step makes anew, used again by the next step.

The draws of weights use it, for their values and for the gradients of their factors: for
:math:`w = \text{loc} + S z` the gradient of ``S`` is the outer product of that of ``w`` with
``z``, or their elementwise product.

On a CPU a fresh tensor of some megabytes is mapped in and out of memory at every step, and its
page faults can cost more than the arithmetic on it. CUDA has an allocator that keeps memory by
itself.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Size, Tensor, UntypedStorage
from torch.autograd import Function

#: Number of bytes from which a tensor is worth keeping.
_MIN_BYTES = 2**18

#: Torch's count of the tensors that use some memory; nothing is used twice where it is missing.
_count_uses: Any = getattr(torch._C, "_storage_Use_Count", None)


class BufferPool:
    """Gives out tensors whose memory no other tensor uses.

    Memory that was given out is given out again once every tensor on it is gone: values, what
    the gradient's graph saved, gradients. Threads may share a pool. A copy or a pickle of a pool
    is an empty one.

    Example:
        >>> pool = BufferPool()
        >>> first = pool.empty(torch.Size((1000, 1000)), like=torch.zeros(()))
        >>> address = first.data_ptr()
        >>> pool.empty(first.shape, like=first).data_ptr() == address
        False
        >>> del first
        >>> pool.empty(torch.Size((1000, 1000)), like=torch.zeros(())).data_ptr() == address
        True
    """

    def __init__(self) -> None:
        self._storages: dict[int, list[UntypedStorage]] = {}
        self._lock = threading.Lock()  # between finding memory that is free and taking it

    def keeps(self, tensor: Tensor) -> bool:
        """Whether tensors of this size are kept.

        Args:
            tensor: A tensor of the size, type and device in question.

        Returns:
            Whether :meth:`empty` would give out memory that was used before.
        """
        return self._is_worth(tensor.numel(), tensor)

    def empty(self, shape: Size, like: Tensor) -> Tensor:
        """A tensor without values, in memory of its own.

        Args:
            shape: Its shape.
            like: A tensor of the wanted type and device.

        Returns:
            The tensor, contiguous.
        """
        if not self._is_worth(shape.numel(), like):
            return torch.empty(shape, dtype=like.dtype, device=like.device)
        with self._lock:
            storages = self._storages.setdefault(shape.numel() * like.element_size(), [])
            for storage in storages:
                if _count_uses(storage._cdata) == 1:  # our own
                    empty = torch.empty((), dtype=like.dtype)
                    return empty.set_(storage, 0, shape)  # type: ignore[call-overload]
            tensor = torch.empty(shape, dtype=like.dtype)
            storages.append(tensor.untyped_storage())
            return tensor

    def clear(self) -> None:
        """Lets go of the memory; tensors on it keep theirs."""
        with self._lock:
            self._storages.clear()

    def _is_worth(self, numel: int, like: Tensor) -> bool:
        is_large = numel * like.element_size() >= _MIN_BYTES
        return is_large and like.device.type == "cpu" and _count_uses is not None

    def __deepcopy__(self, memo: dict[int, Any]) -> BufferPool:
        return BufferPool()

    def __reduce__(self) -> tuple[type[BufferPool], tuple[()]]:
        return BufferPool, ()


class DiagonalDraw(Function):
    """``loc + S * z``."""

    @staticmethod
    def forward(ctx: Any, loc: Tensor, factor: Tensor, noise: Tensor, pool: BufferPool) -> Tensor:
        """Draws weights; all tensors have their shape."""
        ctx.save_for_backward(noise)
        ctx.save_for_forward(noise)
        ctx.pool = pool
        return torch.addcmul(loc, factor, noise, out=pool.empty(loc.shape, loc))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Gradients of mean and factor."""
        (noise,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            return grad, grad * noise, None, None
        return grad, torch.mul(grad, noise, out=ctx.pool.empty(grad.shape, grad)), None, None

    @staticmethod
    def jvp(ctx: Any, loc: Tensor | None, factor: Tensor | None, *_: Any) -> Any:
        """The derivative along changes of mean and factor."""
        (noise,) = ctx.saved_tensors
        return _sum(loc, None if factor is None else factor * noise)


class LowRankDraw(Function):
    """``loc + S @ z`` for the noise of one draw."""

    @staticmethod
    def forward(ctx: Any, loc: Tensor, factor: Tensor, noise: Tensor, pool: BufferPool) -> Tensor:
        """Draws weights of the shape of ``loc``; ``S`` has the noise's dimension behind it."""
        ctx.save_for_backward(noise)
        ctx.save_for_forward(noise)
        ctx.pool = pool
        value = pool.empty(loc.shape, loc)
        rows = factor.reshape(-1, factor.shape[-1])
        torch.addmv(loc.reshape(-1), rows, noise, out=value.view(-1))
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Gradients of mean and factor."""
        (noise,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            return grad, grad.unsqueeze(-1) * noise, None, None
        grad_factor = ctx.pool.empty(torch.Size((*grad.shape, len(noise))), grad)
        # A matrix product, since the elementwise one is slow over a short last dimension.
        torch.mm(grad.reshape(-1, 1), noise.unsqueeze(0), out=grad_factor.view(-1, len(noise)))
        return grad, grad_factor, None, None

    @staticmethod
    def jvp(ctx: Any, loc: Tensor | None, factor: Tensor | None, *_: Any) -> Any:
        """The derivative along changes of mean and factor."""
        (noise,) = ctx.saved_tensors
        return _sum(loc, None if factor is None else factor @ noise)


def _sum(*parts: Tensor | None) -> Tensor | None:
    """The sum of what there is; a new tensor, which torch asks of a derivative."""
    present = [part for part in parts if part is not None]
    return None if not present else sum(present[1:], present[0].clone())
