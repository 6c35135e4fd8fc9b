"""Whether inputs have their batch dimension, and outputs keep it, of one datum as of many."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from pyro_ibvi._util.errors import DataError
from pyro_ibvi._util.inputs import first_tensor, map_tensors, tensors_of
from pyro_ibvi._util.network_copies import is_compiled
from pyro_ibvi.models.running import network_mode

Run = Callable[[Any], Any]

#: Number of dimensions of one datum in layers that also take it without a batch.
_DIMS_OF_ONE: dict[type[nn.Module], int] = {
    nn.Linear: 1,
    nn.Conv1d: 2,
    nn.Conv2d: 3,
    nn.Conv3d: 4,
}

_looks = threading.local()


class BatchDimension:
    """Tells one datum from a batch, by what a network's layers get and by whether it runs at all.

    Args:
        network: The network.
    """

    def __init__(self, network: nn.Module) -> None:
        self._of_one = set(_shapes_of_one(network))
        self._is_kept = False
        layers = list(network.modules())
        # A compiled network would be compiled anew for the sizes of a look.
        self._is_in_order = any(map(is_compiled, layers)) or not any(
            map(_takes_time_first, layers)
        )

    def check(self, x: Any, run: Run) -> None:
        """Refuses one datum that the network would take for a batch.

        Args:
            x: Inputs.
            run: Runs the network on them.

        Raises:
            DataError: If a layer gets it as it is, and takes its features for the batch.
        """
        # Of several inputs one may be meant for all data, as it is.
        given = {(part.dim(), len(part)) for part in tensors_of(x) if part.dim()}
        first = first_tensor(x)
        if first is None or not given <= self._of_one:
            return
        if _is_taken_whole(first, x, run):
            raise DataError(
                f"The input has shape {tuple(first.shape)}, one datum without its batch "
                f"dimension: pass {_with_batch(x)}."
            )

    def explain(self, error: Exception, x: Any, run: Run) -> None:
        """Says so where a network failed on one datum that it takes in a batch.

        Args:
            error: What the network raised.
            x: Its inputs.
            run: Runs the network on them.

        Raises:
            DataError: If it runs with a batch dimension, and by no means without.
        """
        first = first_tensor(x)
        if first is None or _runs(x, run):
            return
        if _is_one_row(x) and _runs(_twice(x), run):
            raise DataError(
                f"The network does not run on one datum, an input of shape {tuple(first.shape)}, "
                f"and runs on two of them: a squeeze() without a dimension leaves out that of the "
                f"batch too, where it is 1; write squeeze(-1), or the dimension that is meant."
            ) from error
        if _runs(map_tensors(lambda part: part.unsqueeze(0), x), run):
            raise DataError(
                f"The network does not run on an input of shape {tuple(first.shape)}, and runs on "
                f"{(1, *first.shape)}: for one datum without its batch dimension pass "
                f"{_with_batch(x)}."
            ) from error

    def look(self, x: Any, run: Callable[[Any], Tensor]) -> None:
        """Looks, after a run, at what the network makes of the dimension of the data.

        Args:
            x: Inputs.
            run: Runs the network on them, and picks its output.

        Raises:
            DataError: If the output of one datum has lost its batch dimension.
        """
        self._check_kept(x, run)
        self._warn_of_time(x, run)

    def _check_kept(self, x: Any, run: Callable[[Any], Tensor]) -> None:
        """Refuses the output of one datum that has lost its batch dimension on the way.

        A ``squeeze()`` leaves it out, and what remains, such as the classes, would be taken for
        it. A network is asked once, at its first batch of one datum.

        Raises:
            DataError: If the output of two data has a dimension more.
        """
        if self._is_kept or not _is_one_row(x):
            return
        one, two = _shape_of(x, run), _shape_of(_twice(x), run)
        if one is not None and two is not None and len(two) > len(one):
            rows = ", ".join(map(str, (-1, *two[1:])))
            raise DataError(
                f"The network's output for one datum has shape {tuple(one)}, and for two "
                f"{tuple(two)}: a squeeze() without a dimension leaves out that of the batch too, "
                f"where it is 1. Write squeeze(-1), or the dimension that is meant; of a network "
                f"that cannot be changed give SupervisedModel output=lambda out: "
                f"out.reshape({rows})."
            )
        self._is_kept = True

    def _warn_of_time(self, x: Any, run: Callable[[Any], Tensor]) -> None:
        """Warns where a layer takes data for times: with a datum more it gets a time more."""
        first = first_tensor(x)
        if self._is_in_order or first is None or len(first) < 2:
            return
        self._is_in_order = True  # or told
        one, two = (_times(x, num_data, run) for num_data in (1, 2))
        for (kind, before), (_, after) in zip(one, two, strict=False):
            if after == 2 * before:
                warnings.warn(
                    f"A layer {kind} takes the data of a batch for the times of one sequence, so "
                    f"that each prediction depends on the other data: torch's default is time in "
                    f"the first dimension. Write {kind}(..., batch_first=True), or "
                    f"x.transpose(0, 1) in front of it and behind it; where the inputs have times "
                    f"in front, give SupervisedModel output=lambda out: out.transpose(0, 1).",
                    UserWarning,
                    stacklevel=2,
                )
                return


def _is_one_row(x: Any) -> bool:
    parts = [part for part in tensors_of(x) if part.dim()]
    # Nested ones are not joined in their first dimension, which nobody squeezes.
    return bool(parts) and all(len(part) == 1 and not part.is_nested for part in parts)


def _twice(x: Any) -> Any:
    return map_tensors(lambda part: torch.cat([part, part]) if part.dim() else part, x)


def _shape_of(x: Any, run: Callable[[Any], Tensor]) -> torch.Size | None:
    """Shape of what comes out, None where the network fails."""
    shape: list[torch.Size] = []
    _runs(x, lambda data: shape.append(run(data).shape))
    return shape[0] if shape else None


def _with_batch(x: Any) -> str:
    return "x.unsqueeze(0)" if isinstance(x, Tensor) else "each input as x.unsqueeze(0)"


def _is_taken_whole(first: Tensor, x: Any, run: Run) -> bool:
    """Whether a layer gets the first input as it is, without a dimension for the batch."""
    thread, found = threading.get_ident(), False

    def look(layer: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal found
        is_one = _DIMS_OF_ONE.get(type(layer)) == first.dim() and threading.get_ident() == thread
        if is_one and args and isinstance(args[0], Tensor) and args[0].shape == first.shape:
            found = True

    with register_module_forward_pre_hook(look):
        _runs(x, run)
    return found


def is_a_look() -> bool:
    """Whether this thread runs a network only to see what it makes of a shape."""
    return getattr(_looks, "is_open", False)


def _runs(x: Any, run: Run) -> bool:
    _looks.is_open = True
    try:
        with torch.no_grad(), network_mode(training=False):  # statistics stay as they are
            run(x)
    except Exception:
        return False
    finally:
        _looks.is_open = False
    return True


def _takes_time_first(layer: nn.Module) -> bool:
    """Whether a layer has times in the first dimension of its inputs, and data in the second."""
    if isinstance(layer, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)):
        layer = layer.self_attn  # which evaluation may go past
    return isinstance(layer, (nn.RNNBase, nn.MultiheadAttention)) and not layer.batch_first


def _times(x: Any, num_data: int, run: Callable[[Any], Tensor]) -> list[tuple[str, int]]:
    """Numbers of times that such layers get of some data; none if these do not come first."""
    thread, found, rows = threading.get_ident(), [], []

    def look(layer: nn.Module, args: tuple[Any, ...]) -> None:
        first = args[0] if args and isinstance(args[0], Tensor) else torch.zeros(())
        is_own = _takes_time_first(layer) and threading.get_ident() == thread
        if is_own and first.dim() == 3:
            found.append((type(layer).__name__, len(first)))

    def run_first(data: Any) -> None:
        first = map_tensors(lambda part: part[:num_data] if part.dim() else part, data)
        rows.append(len(run(first)))

    with register_module_forward_pre_hook(look):
        _runs(x, run_first)
    return found if rows == [num_data] else []


def _shapes_of_one(network: nn.Module) -> Iterator[tuple[int, int]]:
    """Number of dimensions and first size of a datum that a layer would take by itself."""
    for layer in network.modules():
        if type(layer) in _DIMS_OF_ONE:
            size = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
            yield _DIMS_OF_ONE[type(layer)], int(size)  # type: ignore[arg-type]
