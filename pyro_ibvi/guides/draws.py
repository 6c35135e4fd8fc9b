r"""Draws of large weights whose memory, and that of their gradients, is used again.

The formulas are those of :mod:`pyro_ibvi.guides.covariance`. For :math:`w = \text{loc} + S z` the
gradient of ``S`` is the outer product of that of ``w`` with ``z``, or their elementwise product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from pyro_ibvi.guides.buffers import BufferPool


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """A sum of changes, where None is no change."""
    if first is None or second is None:
        return second if first is None else first.clone()
    return first + second


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
    def jvp(ctx: Any, loc: Tensor | None, factor: Tensor | None, *_: Any) -> Tensor | None:
        """The change of the weights with those of mean and factor."""
        (noise,) = ctx.saved_tensors
        return _sum(loc, None if factor is None else factor * noise)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Gradients of mean and factor."""
        (noise,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            return grad, grad * noise, None, None
        return grad, torch.mul(grad, noise, out=ctx.pool.empty(grad.shape, grad)), None, None


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
    def jvp(ctx: Any, loc: Tensor | None, factor: Tensor | None, *_: Any) -> Tensor | None:
        """The change of the weights with those of mean and factor."""
        (noise,) = ctx.saved_tensors
        return _sum(loc, None if factor is None else factor @ noise)

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
