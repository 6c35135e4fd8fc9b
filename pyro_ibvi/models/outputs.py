"""The tensor that a likelihood takes, among what a network returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from pyro_ibvi._util.errors import DataError
from pyro_ibvi._util.inputs import tensors_of
from pyro_ibvi._util.precision import at_least_float32
from pyro_ibvi.models.batches import describe
from pyro_ibvi.models.likelihoods import HeteroscedasticNormal, Likelihood

#: Which part of a network's output the likelihood takes, or what to make of it.
Output = int | str | Callable[[Any], Any]


class OutputPicker:
    """Picks the output of one draw of the weights.

    Without a choice it takes what has one reading: a tensor, the ``logits`` of a mapping or named
    tuple, the only tensor in a container.

    Args:
        choice: Position, name, or function of what the network returns.
        likelihood: The likelihood, which may put several outputs together.

    Raises:
        TypeError: If the choice is of another type.
    """

    def __init__(self, choice: Output | None, likelihood: Likelihood) -> None:
        is_index = isinstance(choice, (int, str)) and not isinstance(choice, bool)
        if choice is not None and not is_index and not callable(choice):
            raise TypeError(
                f"output picks a part of what the network returns: a position, a name or a "
                f"function; got {choice!r}."
            )
        self.choice, self.likelihood = choice, likelihood

    def __call__(self, returned: Any) -> Tensor:
        """The tensor that the likelihood takes.

        Args:
            returned: What the network returned.

        Returns:
            The tensor, in float32 at least.

        Raises:
            TypeError: If there is none, or several and no choice.
            ValueError: If the choice is not among what the network returned.
        """
        return at_least_float32(self.pick(returned))

    def pick(self, returned: Any) -> Tensor:
        """The tensor that the likelihood takes, in the network's own precision.

        Args:
            returned: What the network returned.

        Returns:
            The tensor, the network's own where the choice takes a part as it is.

        Raises:
            TypeError: As for a call.
            ValueError: As for a call.
        """
        if isinstance(returned, Tensor) and self.choice is None:
            return returned
        output = self.likelihood.as_tensor(self._chosen(returned))
        if isinstance(output, Tensor):
            return output
        _refuse_apart(output, self.likelihood)
        return _only_reading(output)

    def _chosen(self, returned: Any) -> Any:
        choice = self.choice
        if choice is None:
            return returned
        if callable(choice):
            return choice(returned)
        if isinstance(choice, str) and not isinstance(returned, Mapping):
            if hasattr(returned, choice):
                return getattr(returned, choice)
        elif not isinstance(returned, Tensor):
            try:
                return returned[choice]
            except (KeyError, IndexError, TypeError):
                pass
        part = f"[{choice!r}]" if isinstance(choice, int) else f".{choice}"
        hint = (
            f" If it returns more in training than in prediction, write output=lambda out: out if "
            f"isinstance(out, torch.Tensor) else out{part}."
        ) * isinstance(returned, Tensor)
        raise DataError(
            f"output={choice!r} picks no part of what the network returned, which is "
            f"{describe(returned)}.{hint}"
        )


def _refuse_apart(returned: Any, likelihood: Likelihood) -> None:
    """Says how to join what a likelihood takes side by side, such as a mean and a scale."""
    while hasattr(likelihood, "likelihood"):  # those around it, such as Masked
        likelihood = likelihood.likelihood
    is_container = isinstance(returned, (Mapping, tuple, list))
    if not isinstance(likelihood, HeteroscedasticNormal) or not is_container:
        return
    parts = dict(returned) if isinstance(returned, Mapping) else dict(enumerate(returned))
    tensors = {name: part for name, part in parts.items() if isinstance(part, Tensor)}
    if len(tensors) != 2:
        return
    first, second = tensors.values()
    if first.shape == second.shape:
        places = ", ".join(f"out[{name!r}]" for name in tensors)
        raise TypeError(
            f"The network returned {describe(returned)}, and {type(likelihood).__name__} takes "
            f"means and scales side by side: give SupervisedModel output=lambda out: "
            f"torch.cat([{places}], -1). It makes a scale positive itself, by softplus."
        )


def _only_reading(returned: Any) -> Tensor:
    if isinstance(returned, PackedSequence):
        raise TypeError(
            "The network returned a PackedSequence, whose first dimension is no batch: give "
            "SupervisedModel output=lambda out: pad_packed_sequence(out, batch_first=True)[0]."
        )
    if isinstance(returned, np.ndarray):
        raise TypeError(
            "The network returned a NumPy array, which has left autograd's graph, so that nothing "
            "could be learned: let its forward return the tensor, without .detach().numpy()."
        )
    logits = returned.get("logits") if isinstance(returned, Mapping) else None
    if logits is None:
        logits = getattr(returned, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    if returned is None:
        raise TypeError("The network returned None: let its forward end in `return output`.")
    parts = _named_parts(returned)
    tensors = list(tensors_of(returned if parts is None else parts))
    is_container = isinstance(returned, (Mapping, tuple, list)) or is_dataclass(returned)
    if len(tensors) == 1 and is_container:  # what else an object's only tensor means, who knows
        return tensors[0]
    if not tensors:
        raise TypeError(
            f"The network returned a {type(returned).__name__} without a tensor in it, and the "
            f"likelihood takes one: let its forward return the tensor, or say how to get at it, "
            f"by output=lambda out: ... of SupervisedModel."
        )
    name = 0 if parts is None else next(n for n, p in parts.items() if [*tensors_of(p)])
    path = f"[{name!r}]" if parts is None or isinstance(returned, Mapping) else f".{name}"
    raise TypeError(
        f"The network returned {describe(returned)}, and the likelihood takes one tensor: say "
        f"which, as in SupervisedModel(..., output={name!r}), or what to make of it, as in "
        f"output=lambda out: out{path}."
    )


def _named_parts(returned: Any) -> Mapping[str, Any] | None:
    """What a mapping, a dataclass or another object holds, by name; None for a sequence."""
    if isinstance(returned, Mapping):
        return returned
    if is_dataclass(returned):
        return {field.name: getattr(returned, field.name) for field in fields(returned)}
    if isinstance(returned, (tuple, list)):
        return None
    return dict(getattr(returned, "__dict__", {}))
