"""Whether noise on the inputs of layers is noise on their weights, seen on one batch.

A layer may be used in ways that its input does not show: its weight by a function of the user's
own, or its input with the time in front of the data. So both ways are compared on the first batch.
Likewise whether a part of a batch is treated as it is in the whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pyro_ibvi._util.errors import DataError
from pyro_ibvi._util.inputs import first_tensor, map_tensors
from pyro_ibvi._util.precision import are_close
from pyro_ibvi._util.random_state import own_random_numbers
from pyro_ibvi.guides.base import MuPGuide
from pyro_ibvi.guides.multiplicative import Multiplicative
from pyro_ibvi.guides.per_datum import InputNoise, NoDrawPerDatumError, PerDatum
from pyro_ibvi.models.data_checks import batch_of
from pyro_ibvi.models.replicas import Replica, find_places
from pyro_ibvi.models.supervised import SupervisedModel


@torch.no_grad()
def drop_misaligned(
    per_datum: PerDatum, model: SupervisedModel, guide: MuPGuide, x: Any, num_data: int
) -> None:
    """Takes out the layers in which noise on the inputs is not a draw of the weights.

    The network runs with norm layers' running statistics, and leaves no trace.

    Args:
        per_datum: The layers.
        model: The model.
        guide: Its guide.
        x: A batch.
        num_data: Number of data in it.
    """
    with _comparing(model, x) as x:
        together = list(per_datum.inputs)
        if not together or _is_aligned(per_datum, model, guide, x, num_data, together):
            return
        for name, inputs in list(per_datum.inputs.items()):
            if not _is_aligned(per_datum, model, guide, x, num_data, [name]):
                per_datum.drop(inputs.layer)


@torch.no_grad()
def check_parts(model: SupervisedModel, guide: MuPGuide, x: Any, parts: Sequence[Any]) -> None:
    """Checks that the network treats a part of a batch as it does in the whole.

    Args:
        model: The model.
        guide: Its guide.
        x: A batch.
        parts: The batch, cut at its first dimension.

    Raises:
        DataError: If the last part has other outputs than in the whole.
    """
    if len(parts) < 2:
        return
    with _comparing(model, (x, parts[-1])) as (x, part):
        values = guide.rsample()
        seed = torch.initial_seed()
        whole, again, own = (
            _output(model, values, data, {}, s)
            for data, s in ((x, seed), (x, seed + 1), (part, seed))
        )
    size = len(batch_of(part))
    fits = own.shape == whole[-size:].shape and len(whole) == len(batch_of(x))
    if fits and torch.equal(whole, again):  # there is no dropout, whose numbers go by the size
        fits = are_close(own, whole[-size:], whole)
    if not fits:
        raise DataError(
            f"draws={len(parts)} cuts the batch at its first dimension, of size "
            f"{len(batch_of(x))}, and for a part the network's outputs are others than in the "
            f"whole: the data are not there, or see one another. Write draws='batch'."
        )


@torch.no_grad()
def runs_in_parts(model: SupervisedModel, guide: MuPGuide, x: Any, parts: Sequence[Any]) -> bool:
    """Whether a batch may surely be cut: data do not see one another, and a run leaves no trace.

    Args:
        model: The model.
        guide: Its guide.
        x: A batch.
        parts: The batch, cut at its first dimension in two or more.

    Returns:
        Whether it may; not where a run is random by itself but for dropout layers.
    """
    with _comparing(model, (x, *parts)) as (x, *parts):
        values, seed = guide.rsample(), torch.initial_seed()
        replica = _replica(model, values, training=True)
        _run(replica, model, values, x, seed)
        if replica.is_changed():  # batch statistics, or a state that goes on
            return False
        outputs = []
        for data in (x, x, *parts):
            replica, seed = _replica(model, values, training=True), seed + 1
            for module in replica.network.modules():
                module.training &= not isinstance(module, nn.modules.dropout._DropoutNd)
            outputs.append(_run(replica, model, values, data, seed))
    whole, again, *own = outputs
    if not torch.equal(whole, again):
        return False
    joined = torch.cat(own)
    return joined.shape == whole.shape and are_close(joined, whole, whole)


def _is_aligned(
    per_datum: PerDatum,
    model: SupervisedModel,
    guide: MuPGuide,
    x: Any,
    num_data: int,
    names: list[str],
) -> bool:
    """Whether the last datum's output is that of the weights which its noise stands for."""
    values, maps = per_datum.draw(guide, num_data)
    layers = {name: per_datum.inputs[name].layer for name in names}
    chosen = {layer: maps[layer] for layer in layers.values()}
    seed = torch.initial_seed()
    try:
        output = _output(model, values, x, chosen, seed)
    except NoDrawPerDatumError as error:
        if len(names) == 1:
            return False
        per_datum.drop(error.layer)
        rest = [name for name in names if name in per_datum.inputs]
        return not rest or _is_aligned(per_datum, model, guide, x, num_data, rest)
    for name, layer in layers.items():
        loc, factor = guide.loc(name), guide.factor(name)
        relative = (maps[layer].multiplier[-1] - 1).reshape(factor.shape)
        values[name] = Multiplicative(1.0).draw(loc, torch.ones_like(factor), relative)
    expected = _output(model, values, x, {}, seed)
    return expected.shape == output.shape and are_close(output[-1], expected[-1], expected)


@contextmanager
def _comparing(model: SupervisedModel, x: Any) -> Iterator[Any]:
    """Runs that leave no trace, of data that are not rounded on the way.

    Yields:
        The data.
    """
    # Under autocast both ways would be rounded, each in its own places; without it the network
    # takes numbers of its own type alone.
    first = first_tensor(x)
    kind = (next(model.parameters()) if first is None else first).device.type
    if torch.is_autocast_enabled(kind):
        parameters = model.net.network.parameters()
        dtype = next((p.dtype for p in parameters if p.is_floating_point()), torch.float32)
        x = map_tensors(lambda t: t.to(dtype) if t.is_floating_point() else t, x)
    with own_random_numbers(), torch.autocast(kind, enabled=False):
        yield x


def _output(
    model: SupervisedModel,
    values: Mapping[str, Tensor],
    x: Any,
    maps: Mapping[str, InputNoise],
    seed: int,
) -> Tensor:
    """What the network makes of a batch, whose data do not see one another."""
    # In the network's own mode: in evaluation torch's transformer layers go past their parts.
    replica = _replica(model, values)
    for module in replica.network.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.training = False
    for layer, function in maps.items():
        replica.map_input(layer, function)
    return _run(replica, model, values, x, seed)


def _replica(
    model: SupervisedModel, values: Mapping[str, Tensor], *, training: bool | None = None
) -> Replica:
    """The network with some weights."""
    net = model.net
    replica = Replica(net.network, own_buffers=True, training=training)
    replica.put(net.network_values(_named(model, values)), find_places(net.network))
    return replica


def _run(
    replica: Replica, model: SupervisedModel, values: Mapping[str, Tensor], x: Any, seed: int
) -> Tensor:
    """What a network with these weights makes of a batch."""
    with own_random_numbers(seed):  # dropout and other numbers are the same both times
        own = map_tensors(torch.Tensor.clone, x)  # the network may write on it
        return model.picker.pick(model.call(replica.network, _named(model, values), own))


def _named(model: SupervisedModel, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by the names that they have in the network."""
    return {name: values[model.net.site_name(name)] for name in model.net.stochastic}
