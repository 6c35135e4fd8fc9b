"""How large a loss is whose gradients an optimizer gets.

``SVI`` calls an objective and then an optimizer, and neither sees the other. Rates that suit a
loss per datum are too large for a sum over data by the number of data.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from pyro_ibvi._util.modes import owner_module
from pyro_ibvi.pairing.past import note_learning


@dataclass(frozen=True)
class LossScale:
    """What a loss is a sum of.

    Attributes:
        objective: Name of the objective's class.
        num_terms: Number of observations that it adds up, 1 for a mean.
        is_of_labels: Whether these are the labels of one datum at many places.
    """

    objective: str
    num_terms: float
    is_of_labels: bool = False


_scales: WeakKeyDictionary[nn.Module, LossScale] = WeakKeyDictionary()


def note_gradients(model: Any, guide: Any, objective: str, num_terms: float | None) -> None:
    """Notes that a model and a guide learn, and what the gradients are of that were added last.

    Args:
        model: The model.
        guide: The guide; nothing is noted of a function.
        objective: Name of the objective's class.
        num_terms: Number of observations that it adds up, None if it is not known.
    """
    note_learning(model, guide)
    owner = owner_module(guide)
    if owner is None:
        return
    if num_terms is None:
        _scales.pop(owner, None)
        return
    num_places = places_of_datum(model) if num_terms == 1 else 1
    scale = LossScale(objective, num_terms * num_places, num_places > 1)
    if _scales.get(owner) != scale:
        _scales[owner] = scale


def places_of_datum(model: Any) -> int:
    """Number of places at which a datum has labels, of which its loss is the sum.

    Args:
        model: The model, which has seen targets.

    Returns:
        The number, 1 where labels are beside one another.
    """
    owner = owner_module(model)
    likelihood: Any = getattr(owner, "likelihood", None)
    while hasattr(likelihood, "likelihood"):  # those around it, such as Masked
        likelihood = likelihood.likelihood
    # Labels beside one another have weights of their own; those of places share them.
    num_outputs = getattr(getattr(owner, "net", None), "num_outputs", 0)
    return getattr(likelihood, "num_summed", 1) // num_outputs if num_outputs else 1


def noted_scale(guide: Any) -> LossScale | None:
    """What the gradients of a guide's parameters are of.

    Args:
        guide: The guide, or one that holds it, or that it holds.

    Returns:
        The scale, or None if nothing is known.
    """
    owner = owner_module(guide)
    if owner is None or owner in _scales:
        return None if owner is None else _scales[owner]
    own = set(owner.parameters())
    found = (scale for other, scale in _scales.items() if not own.isdisjoint(other.parameters()))
    return next(found, None)


def noted_guides(params: Collection[Tensor]) -> Iterator[nn.Module]:
    """The guides of which an objective added gradients to some parameters.

    Args:
        params: The parameters.

    Yields:
        The guides.
    """
    params = set(params)
    yield from (own for own in list(_scales) if not params.isdisjoint(own.parameters()))
