"""How much of a default rate a network bears.

By SGD it goes with the labels of a datum, of whose losses its own is the sum. Labels beside one
another have weights of their own in the last layer, those of places, such as pixels and times,
share all of theirs. And it goes with the batch: what its choice leaves to chance in a step grows
with the rate over its size, and with a share of that size an epoch learns as much. Adam does not
feel how large a loss is, but the steps of all layers add up.
"""

from __future__ import annotations

import math
from contextlib import suppress

import torch
from torch.optim import Optimizer

from pyro_ibvi.front.first_batch import FirstBatch
from pyro_ibvi.front.tables import reads_rows
from pyro_ibvi.models import MultiTask, SupervisedModel
from pyro_ibvi.models.kinds import kind_of, without_wrappers
from pyro_ibvi.pairing.loss_scale import places_of_datum
from pyro_ibvi.training import MuPOptim, default_rate

#: Weight layers one behind another up to which Adam's default rate is borne.
_FEW_LAYERS = 3
#: Labels of a datum up to which SGD bears its default rate.
_FEW_LABELS = 10
#: Data in a step from which on it does (page *Results*): where each is a row of a table, and where
#: it is the mean over words, pixels or times, which leaves less to chance.
_MANY_ROWS, _MANY_DATA = 128, 32


def share_of_rate(model: SupervisedModel, optimizer: type[Optimizer]) -> float:
    """How much of an optimizer's default rate a model bears.

    Args:
        model: The model.
        optimizer: Class of the optimizer.

    Returns:
        The share, at most 1.
    """
    if optimizer is torch.optim.SGD:
        return _share_of_labels(model)
    return _share_of_layers(model) if optimizer in (torch.optim.Adam, torch.optim.AdamW) else 1.0


def _share_of_layers(model: SupervisedModel) -> float:
    """The share by depth: what a step changes grows with the layers that take it."""
    roles = model.net.roles.values()
    layers = {role.layer for role in roles if role.role == "hidden"}
    ends = {role.role for role in roles if role.role in ("input", "output")}  # side by side
    return min(1.0, _FEW_LAYERS / max(1, len(layers) + len(ends)))


def _share_of_labels(model: SupervisedModel) -> float:
    """The share by what a datum has several labels of, 1 up to ten beside one another."""
    # Their gradients add up in all layers but the last, and there the more, the more alike they
    # are: of hundreds of labels many say the same or little.
    likelihood = without_wrappers(model.likelihood)
    num_labels: int = 1
    if isinstance(likelihood, MultiTask):
        num_labels = likelihood.num_targets
    elif kind_of(likelihood) == "bernoulli":
        num_labels = model.net.num_outputs
    if num_labels <= _FEW_LABELS:
        return 1.0
    return max(_FEW_LABELS / num_labels, 1 / math.sqrt(num_labels))  # the root from 100 on


def settle_rate(optim: MuPOptim, model: SupervisedModel, first: FirstBatch) -> None:
    """Sets SGD's default rate by what a step sees: its data, and the places of their labels.

    With a share of one over the places SGD learns as it does by the mean over them, which is what
    ``Categorical`` takes.

    Args:
        optim: The optimizer, which has the default rate.
        model: The model, which knows the number of data.
        first: Data; where there are none, the rate stays.
    """
    share = share_of_rate(model, torch.optim.SGD) * _share_of_batch(model, first)
    optim.start_at(default_rate(torch.optim.SGD) * share / _places(model, first))


def _share_of_batch(model: SupervisedModel, first: FirstBatch) -> float:
    """The share by how many data a step sees; where it sees all, nothing is left to chance."""
    size, num_data = first.data_in_step(), model.num_data
    if size is None or num_data is None or size >= min(_MANY_ROWS, num_data):
        return 1.0
    return min(1.0, size / (_MANY_ROWS if reads_rows(model.net.network, first) else _MANY_DATA))


def _places(model: SupervisedModel, first: FirstBatch) -> int:
    """The number of places at which a datum has labels whose losses add up."""
    is_summed = kind_of(model.likelihood) == "bernoulli"  # the others' loss is no sum over places
    if is_summed and (target := first.target()) is not None:
        with suppress(Exception):  # what is wrong shows in the first step
            model.likelihood.check_target(target, target)  # counts the labels
            return places_of_datum(model)
    return 1
