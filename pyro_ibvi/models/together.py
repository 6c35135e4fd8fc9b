"""How layers of a network run for many draws of the weights at once.

Under :func:`torch.func.vmap` whatever does not depend on a draw runs once for all: the layers in
front of the first random one. Two things need help there. A linear layer whose input all draws
share is one product of matrices over all draws, a few times faster than the product per draw that
vmap makes of it. And fused kernels (recurrent layers, attention) run on what the draws share, but
not on what differs between them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import Function

from pyro_ibvi.models.replicas import Replica

#: Layers whose fused kernels vmap cannot run on draws.
FUSED = (
    nn.modules.rnn.RNNBase,
    nn.modules.rnn.RNNCellBase,
    nn.MultiheadAttention,
    nn.TransformerEncoderLayer,  # which in evaluation mode goes past its parts
)


class NotTogetherError(RuntimeError):
    """A layer cannot run for all draws at once."""


def prepare(replica: Replica) -> None:
    """Lets the layers of a replica run for many draws at once.

    Args:
        replica: The replica, with the draws in place.
    """
    for module in list(replica.network.modules()):
        if type(module) is nn.Linear and _differs(module._parameters["weight"]):
            replica.set_forward(module, _run_linear)
        elif isinstance(module, FUSED):
            replica.set_forward(module, _run_fused)


def _run_linear(
    module: nn.Module, forward: Callable[..., Tensor], first: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    weight, bias = module._parameters["weight"], module._parameters["bias"]
    is_plain = type(first) is Tensor and first.dim() > 0
    if args or kwargs or not is_plain or _is_wrapped(first) or not _differs(weight):
        return forward(first, *args, **kwargs)
    output: Tensor = SharedInput.apply(first, weight, bias)
    return output


def _run_fused(module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    leaves = torch.utils._pytree.tree_leaves((args, kwargs, dict(module.named_parameters())))
    if any(_differs(leaf) for leaf in leaves):
        raise NotTogetherError(f"The kernel of {type(module).__name__} takes one draw")
    return forward(*args, **kwargs)


def _differs(value: Any) -> bool:
    """Whether a tensor differs between draws."""
    return isinstance(value, Tensor) and torch._C._functorch.is_batchedtensor(value)


def _is_wrapped(value: Tensor) -> bool:
    """Whether a tensor differs between draws, or some function transform looks at it."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(value))


class SharedInput(Function):
    """A linear layer's output where the weights differ between draws and the input does not."""

    @staticmethod
    def forward(first: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The output for one draw."""
        return nn.functional.linear(first, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept: gradients go through the operations of :meth:`vmap`."""

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, first: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, int]:
        """The outputs of all draws, which lie before the last dimension."""
        weight = weight.movedim(in_dims[1], 0)
        num_draws, num_outputs, num_inputs = weight.shape
        rows = nn.functional.linear(first, weight.reshape(-1, num_inputs))
        outputs = rows.unflatten(-1, (num_draws, num_outputs))
        if bias is not None:
            outputs = outputs + (bias if in_dims[2] is None else bias.movedim(in_dims[2], 0))
        return outputs, outputs.dim() - 2
