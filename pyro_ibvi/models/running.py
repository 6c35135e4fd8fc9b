"""How a network is run with given weights: one draw of them, or many at once.

Running never touches the network that is shared: see :mod:`pyro_ibvi.models.replicas`.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.utils._pytree import tree_map

from pyro_ibvi._util.network_copies import is_compiled
from pyro_ibvi._util.random_state import get_torch_state, set_torch_state
from pyro_ibvi.models.own_inputs import OwnInputs, copied
from pyro_ibvi.models.padding import KeepRow, find_padding
from pyro_ibvi.models.replicas import InputMap, Known, Replica, Watch, find_places
from pyro_ibvi.models.together import FUSED, NotTogetherError, prepare
from pyro_ibvi.mup.multipliers import QueryScales, scale_queries

#: Seconds of draws one after the other from which it is worth a word that they are.
_SLOW = 2.0


_mode: ContextVar[bool | None] = ContextVar("pyro_ibvi_network_mode", default=None)


@contextmanager
def network_mode(*, training: bool) -> Iterator[None]:
    """Lets networks run in a mode in this thread, and leaves their modules in theirs.

    Args:
        training: The mode.

    Yields:
        Nothing.
    """
    token = _mode.set(training)
    try:
        yield
    finally:
        _mode.reset(token)


class Runner:
    """Runs a network with given weights.

    Safe to use from several threads. Dropout, norm layers and whatever else a network does follow
    its mode. What a single run writes on its modules is kept, as torch would keep it. Of several
    draws each starts at the network's state; in training mode the last one's is kept and every
    draw updates the buffers, in evaluation mode nothing is kept.

    Args:
        net: The network.
        query_scales: The parametrization's multipliers, see
            :func:`~pyro_ibvi.mup.multipliers.find_query_scales`.
    """

    def __init__(self, net: nn.Module, query_scales: QueryScales | None = None) -> None:
        self.network = net
        self._query_scales = query_scales or {}
        self._places = find_places(net)
        self._padding = find_padding(net)
        self._num_dims = {name: p.dim() for name, p in net.named_parameters()}
        self._known: Known = {}
        self._refused: set[bool] = set()  # modes in which vmap cannot run the network
        self._is_compiled = any(is_compiled(module) for module in net.modules())
        self._has_warned = False
        self._own_inputs = OwnInputs()

    def run(
        self,
        values: Mapping[str, Tensor],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        input_maps: Mapping[str, InputMap] | None = None,
        pick: Callable[[Any], Any] | None = None,
    ) -> Any:
        """Runs the network.

        Args:
            values: Weights by name; the network's own stand in for those that are not there.
                Dimensions to the left of a weight's own are draws, for each of which the network
                is run.
            args: Positional arguments of the network.
            kwargs: Keyword arguments of the network.
            input_maps: For layers by name, a function that their first input goes through, such
                as a multiplication by noise of each datum.
            pick: What to make of the network's output, for each draw.

        Returns:
            The output. With draws of shape ``(K, 1, ..., 1)`` an output of shape
            ``(batch, *event)`` becomes ``(K, 1, ..., batch, *event)``, aligned with plates.
        """

        def run_one(
            draw: Mapping[str, Tensor], *, together: bool = False, **options: Any
        ) -> tuple[Any, Replica]:
            replica = Replica(self.network, training=mode, known=self._known, **options)
            replica.put(self.network_values(draw), self._places)
            if together:
                prepare(replica)
            for layer, function in (input_maps or {}).items():
                replica.map_input(layer, function)
            own = self._own_inputs.before(args, kwargs, trains)
            if self._is_compiled:
                output = _call_compiled(replica.network, *own)
            else:
                output = replica.network(*own[0], **own[1])
            self._own_inputs.after(own, trains)
            return output if pick is None else pick(output), replica

        mode, trains = _mode.get(), self._trains()
        num_extra = self.num_draw_dims(values)
        if num_extra == 0:
            output, replica = run_one(values)
            if not torch._C._are_functorch_transforms_active():
                replica.keep()
            return output
        output = self._run_draws(run_one, *self._split_draws(values))
        return tree_map(lambda leaf: _pad(leaf, num_extra - 2), output)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The network's parameters, found faster than by ``nn.Module.named_parameters``.

        Yields:
            The name and the parameter.
        """
        for name, places in self._places.items():
            module, (path, key) = self.network, places[0]
            for part in path:
                module = module._modules[part]  # type: ignore[assignment]
            parameter = module._parameters[key]
            if parameter is not None:
                yield name, parameter

    @torch.no_grad()
    def watch(
        self,
        layers: Iterable[str],
        function: Watch,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        """Runs the network once with its own parameters, to look at its layers.

        Args:
            layers: Names of the layers.
            function: Takes the name and the output of each, in the order in which they run; it
                returns nothing.
            args: Positional arguments of the network.
            kwargs: Keyword arguments of the network.
        """
        replica = Replica(self.network, own_buffers=True, training=_mode.get(), known=self._known)
        for layer in layers:
            replica.watch(layer, function)
        args, kwargs = copied(args, kwargs)
        replica.network(*args, **kwargs)

    def network_values(self, values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The weights as the network gets them: with multipliers and padding rows.

        Args:
            values: One draw of the weights by name.

        Returns:
            The weights.
        """
        if self._padding:
            values = {name: self._with_padding(name, value) for name, value in values.items()}
        if self._query_scales:
            values = scale_queries(values, self._query_scales, self.network)
        return values

    def _with_padding(self, name: str, value: Tensor) -> Tensor:
        """A table with the network's own padding row, whoever has drawn it."""
        row = self._padding.get(name)
        if row is None or isinstance(value, nn.Parameter):
            return value
        own = self.network.get_parameter(name).detach()[row]
        is_plain = not torch._C._are_functorch_transforms_active() and value.device.type == "cpu"
        if is_plain and torch.equal(value.detach()[row], own):
            return value
        return KeepRow(row, own)(value)

    def num_draw_dims(self, values: Mapping[str, Tensor]) -> int:
        """Number of dimensions of the values to the left of the parameters' own.

        Args:
            values: Weights by name.

        Returns:
            The number of dimensions, 0 for a single draw.
        """
        return max((v.dim() - self._num_dims[k] for k, v in values.items()), default=0)

    def __getstate__(self) -> dict[str, Any]:
        # What is known of this network's objects is not known of a copy's.
        return {**self.__dict__, "_known": {}, "_refused": set()}

    def runs_batched(self, names: Iterable[str]) -> bool:
        """Whether many draws run at once, in the present mode and as far as is known.

        Args:
            names: Parameters that differ between draws.

        Returns:
            Whether they do; otherwise the network runs draw by draw.
        """
        if self._trains() in self._refused:
            return False
        layers = {path for name in names for path, _ in self._places[name]}
        return _may_run_batched(self.network, layers, _mode.get())

    def _trains(self) -> bool:
        mode = _mode.get()
        return self.network.training if mode is None else mode

    def _split_draws(
        self, values: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The values that all draws share, and those that differ, the draws in front."""
        shared, drawn = {}, {}
        for name, value in values.items():
            own = value.shape[value.dim() - self._num_dims[name] :]
            num_draws = value.shape[: value.dim() - len(own)].numel()
            if value.dim() == len(own):
                shared[name] = value
            elif value.shape[0] == num_draws:
                drawn[name] = value.reshape(num_draws, *own)
            else:
                raise ValueError(
                    f"The draws of {name!r} have shape {tuple(value.shape)} for a parameter of "
                    f"shape {tuple(own)}: only the leftmost plate may hold more than one draw."
                )
        return shared, drawn

    def _run_draws(self, run_one: Any, shared: dict[str, Tensor], drawn: dict[str, Tensor]) -> Any:
        num_draws, training = len(next(iter(drawn.values()))), self._trains()
        if num_draws == 1 or not self.runs_batched(drawn):
            return self._run_in_turn(run_one, shared, drawn, training)
        random_state = get_torch_state()
        try:
            return _run_together(run_one, shared, drawn, training)
        except Exception as error:  # whatever the network's own code raises of draws in a batch
            # Words alone: the error itself keeps the batch and all activations in memory.
            kind, words = type(error), str(error)
        set_torch_state(random_state)
        start = time.monotonic()
        # A network that is at fault itself says so here, in its own words.
        output = self._run_in_turn(run_one, shared, drawn, training)
        if not _is_of_memory(kind, words):  # fewer draws, or a smaller batch, may fit
            self._refused.add(training)
        if kind is not NotTogetherError:  # which nobody could change
            first_line = next(iter(words.splitlines()), kind.__name__)
            self._hint(first_line, num_draws, time.monotonic() - start)
        return output

    def _run_in_turn(
        self, run_one: Any, shared: dict[str, Tensor], drawn: dict[str, Tensor], training: bool
    ) -> Any:
        outputs = []
        num_draws = len(next(iter(drawn.values())))
        for i in range(num_draws):
            values = {**shared, **{name: value[i] for name, value in drawn.items()}}
            output, replica = run_one(values, own_buffers=not training)
            outputs.append(output)
            if training:
                replica.keep(attributes=i == num_draws - 1)
        return tree_map(_stack, *outputs)

    def _hint(self, first_line: str, num_draws: int, seconds: float) -> None:
        if seconds > _SLOW and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"The {type(self.network).__name__} took {seconds:.1f} s for {num_draws} draws of "
                f"its weights, one after the other: torch.vmap cannot run it on all at once "
                f"({first_line}).",
                UserWarning,
                stacklevel=2,
            )


def _run_together(
    run_one: Any, shared: dict[str, Tensor], drawn: dict[str, Tensor], training: bool
) -> Any:
    """All draws at once by vmap, which fails where a network's code does not allow it."""
    replicas = []

    def run_draw(draw: dict[str, Tensor]) -> Any:
        # Buffers of its own: a run that fails has not changed the network's.
        output, replica = run_one({**shared, **draw}, own_buffers=True, together=True)
        replicas.append(replica)
        return output

    # Torch would ask the user to report each operation that it runs draw by draw. Whether that was
    # on before torch does not tell, so it is left on, as torch has it; a filter of warnings would
    # be common to all threads, and could stay in place where two of them cross.
    tell = torch._C._functorch._set_vmap_fallback_warning_enabled  # type: ignore[attr-defined]
    tell(False)
    try:
        output = vmap(run_draw, randomness="different")(drawn)
    finally:
        tell(True)
    if training and any(replica.is_changed() for replica in replicas):
        raise RuntimeError("Each draw leaves a state of its own")
    return output


def _is_of_memory(kind: type[Exception], words: str) -> bool:
    """Whether an error says that memory was short, which torch says of the CPU in words alone."""
    return (
        issubclass(kind, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in words
    )


def _call_compiled(net: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    with warnings.catch_warnings():
        # The compiler looks at the gradients of all tensors, which draws do not have.
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor")
        # The package's own hooks may watch which modules run, and see the wrapper as well.
        warnings.filterwarnings("ignore", message="Using `torch.compile.module.` when there are")
        return net(*args, **kwargs)


def _may_run_batched(
    net: nn.Module, random: Collection[tuple[str, ...]], training: bool | None
) -> bool:
    """Whether vmap can run a network with some random modules, as far as its layers tell."""
    for name, module in net.named_modules():
        path = tuple(name.split("."))
        is_random = any(place[: len(path)] == path for place in random) or not name
        if (isinstance(module, FUSED) and is_random) or is_compiled(module):
            return False
        # Running statistics are updated in place, draw after draw.
        is_norm = isinstance(module, nn.modules.batchnorm._NormBase)
        trains = module.training if training is None else training
        if is_norm and trains and module.track_running_stats:
            return False
    return True


def _stack(*leaves: Any) -> Any:
    first = leaves[0]
    if isinstance(first, Tensor):
        return torch.stack(leaves)
    if isinstance(first, (type(None), bool, int, float, str)) and len(set(leaves)) == 1:
        return first
    raise TypeError(
        f"The network's output holds a {type(first).__name__}, which cannot be put together for "
        f"several draws of the weights: return tensors, or tuples, lists or dictionaries of them."
    )


def _pad(output: Any, num_inner: int) -> Any:
    """Puts singleton dimensions for inner plates between the draws and the batch."""
    if not isinstance(output, Tensor) or num_inner < 1:
        return output
    return output.reshape(output.shape[0], *(1,) * num_inner, *output.shape[1:])
