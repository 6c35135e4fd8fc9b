"""Whether a model and its guide learned together, or one of the two was left behind.

A guide that was made anew for a trained model, and a guide whose state was loaded without the
model's, fit it in every shape and predict nonsense. What is known of a past goes with a
``state_dict`` in its metadata, which ``torch.save`` keeps; where it is lost, nothing is said.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pyro_ibvi._util.modes import owner_module

_ATTRIBUTE = "_past"
_KEY = "pyro_ibvi"
#: Numbers by which a parameter's values are known again.
_NUM_VALUES = 4
Values = dict[str, list[float]]


@dataclass
class Past:
    """What is known of the past of a model or a guide.

    Attributes:
        has_learned: Whether gradients were added to its parameters, or it has the state of such a
            one; None for a state of which nobody knows.
        start: A few values of a guide's parameters as it was made.
        saved: Such values of a guide and of its model, as a state was saved that was loaded and
            not trained since.
    """

    has_learned: bool | None = False
    start: Values = field(default_factory=dict)
    saved: Mapping[str, Values] | None = None


def note_learning(model: Any, guide: Any) -> None:
    """Notes that a model and a guide learn together.

    Args:
        model: The model; nothing is noted of functions and of modules without a past.
        guide: The guide.
    """
    for part in (model, guide):
        past = _past(part)
        if past is not None:
            past.has_learned, past.saved = True, None


def write_past(module: nn.Module, destination: Any, prefix: str, model: Any = None) -> None:
    """Adds a past to the metadata of a state.

    Args:
        module: The model or the guide.
        destination: The state.
        prefix: Prefix of the module's names in it.
        model: The model of a guide.
    """
    past, metadata = _past(module), getattr(destination, "_metadata", None)
    if past is None or metadata is None:
        return
    note: dict[str, Any] = {"has_learned": past.has_learned}
    if past.has_learned and isinstance(model, nn.Module):
        note["saved"] = past.saved or {"guide": few_values(module), "model": few_values(model)}
    metadata.setdefault(prefix[:-1], {})[_KEY] = note


def read_past(module: nn.Module, metadata: Mapping[str, Any]) -> None:
    """Takes over the past of a state.

    Args:
        module: The model or the guide that the state is loaded into.
        metadata: What the state says of it.
    """
    past, note = _past(module), metadata.get(_KEY)
    if past is None:
        return
    if note is not None:
        past.has_learned, past.saved = note["has_learned"], note.get("saved")
    elif past.has_learned is False:
        past.has_learned = None


def few_values(module: nn.Module) -> Values:
    """A few values of each parameter that is trained.

    Args:
        module: The module.

    Returns:
        The values by the parameters' names.
    """
    parts: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        is_plain = type(parameter) is nn.Parameter and parameter.device.type != "meta"
        if parameter.requires_grad and is_plain and parameter.numel():
            flat = parameter.detach().reshape(-1)
            parts[name] = flat[:: max(1, len(flat) // _NUM_VALUES)][:_NUM_VALUES].float()
    if not parts:
        return {}
    device = next(iter(parts.values())).device
    values = torch.cat([part.to(device) for part in parts.values()]).tolist()  # waits once
    rest = iter(values)
    return {name: [next(rest) for _ in part] for name, part in parts.items()}


def warn_of_one_left_behind(model: nn.Module, guide: Any) -> None:
    """Warns where a prediction would be by a model and a guide of which one alone has learned.

    Both may be as they were made, for predictions of the prior.

    Args:
        model: The model.
        guide: Its guide.
    """
    its, own = _past(model), _past(guide)
    if its is None or own is None:
        return
    if its.has_learned and own.has_learned is False:
        if few_values(model) and own.start and few_values(guide) == own.start:
            warnings.warn(
                "The model was trained and this guide was not: its weights are still those it was "
                "made with, beside what the model learned with another guide. Predict by the "
                "guide that was trained with the model, or load its state, "
                "guide.load_state_dict(...).",
                UserWarning,
                stacklevel=2,
            )
    elif its.has_learned is False and own.saved and _agree(few_values(guide), own.saved["guide"]):
        others = _differing(few_values(model), own.saved["model"])
        if others:
            warnings.warn(
                f"The guide has a state that was loaded, and the model is as it was made: "
                f"{others[0]!r}{' and others' * (len(others) > 1)} are not those that the guide "
                f"was trained with. Save and load both states, model.load_state_dict(...) too.",
                UserWarning,
                stacklevel=2,
            )


def _past(part: Any) -> Past | None:
    owner = owner_module(part)
    return None if owner is None else vars(owner).get(_ATTRIBUTE)


def _agree(values: Values, others: Values) -> bool:
    return not _differing(values, others)


def _differing(values: Values, others: Values) -> list[str]:
    """Names of the parameters in both whose values differ, beyond low precision."""
    return [
        name
        for name in values
        if name in others
        and any(
            not math.isclose(a, b, rel_tol=0.02, abs_tol=1e-6)
            for a, b in zip(values[name], others[name], strict=False)
        )
    ]
