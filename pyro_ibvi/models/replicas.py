"""A network's structure, copied for one run with weights of its own.

``torch.func.functional_call`` puts weights into the one module that everybody shares, and takes
them out again when the call returns. Then two threads see one another's weights, and a block under
``torch.utils.checkpoint``, which runs again in the backward pass, finds them gone. Here each run
gets a copy of the structure instead: new module objects with dictionaries of their own, which share
parameters, buffers, hooks and everything else with the network. It lives as long as someone, such
as the graph of a checkpointed block, refers to it.

What a forward pass writes on its modules (a recurrent state kept between batches, a counter) lands
on the copy; :meth:`Replica.keep` brings it to the network, where the next run finds it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.eval_frame import OptimizedModule

from pyro_ibvi.models.references import References, reaches_nothing

#: The path to a module and the name of one of its parameters.
Place = tuple[tuple[str, ...], str]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
#: What torch's own base class keeps on a module, and what recurrent layers derive from weights.
_INTERNAL = frozenset(nn.Module().__dict__) - frozenset(_HOOKS) | {
    "_flat_weights",
    "_flat_weight_refs",
    "_flat_weights_names",
    "_all_weights",
}
