"""What an objective has learned about each pair of a model and a guide."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

from pyro_ibvi._util.undo import Undo
from pyro_ibvi.objectives.masks import count_observations
from pyro_ibvi.objectives.sites import Traces
from pyro_ibvi.pairing.belonging import check_owner, check_unwrapped


@dataclass
class Known:
    """What is known of one pair; nothing here refers to its tensors.

    Attributes:
        max_plate_nesting: Number of nested plates, infinite until it is found out.
        checked: Which sets of sites were checked.
        judged: Which sets of sites were judged at ``kl_weight=0``.
        warned: Names that a warning has named.
        went_by_traces: Whether a step with several draws of the weights went by traces.
        data: Names of point masses that are data, no computed values.
        is_counting: Whether the step at hand is to find out ``num_observed``.
        num_observed: Number of observations that a sum adds up, None until it is found out.
        undo: Takes back a step that ends in an error.
    """

    undo: Undo

    max_plate_nesting: float = math.inf
    checked: set[int] = field(default_factory=set)
    judged: set[int] = field(default_factory=set)
    warned: set[str] = field(default_factory=set)
    went_by_traces: bool = False
    data: set[str] = field(default_factory=set)
    is_counting: bool = False
    num_observed: float | None = None

    def count(self, traces: Traces, max_plate_nesting: float, num_particles: int) -> None:
        """Counts observations, unless that was done or nobody asked.

        Args:
            traces: The traces of a step.
            max_plate_nesting: Number of plate dimensions.
            num_particles: Number of particles that the traces hold.
        """
        if self.is_counting:
            count = count_observations(traces, max_plate_nesting, num_particles)
            self.num_observed, self.is_counting = float(count) or 1.0, False


class Pairs:
    """What is known of pairs of a model and a guide, for as long as both live.

    Models and guides are told apart by identity and referred to weakly; a bound method is its
    object and its function. Copies and pickles are empty.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], tuple[Known, list[weakref.ref[Any]]]] = {}

    def of(self, model: Callable[..., Any], guide: Callable[..., Any]) -> Known:
        """What is known of a pair, to be added to.

        Args:
            model: The model.
            guide: The guide.

        Returns:
            The same object as long as both live; of what cannot be referred to weakly nothing is
            remembered.

        Raises:
            TypeError: If one of them is wrapped for several devices.
            ValueError: If the guide was made for another model.
        """
        owners = _owners(model) + _owners(guide)
        key = tuple(map(id, owners))
        if key not in self._known:
            check_unwrapped(model=model, guide=guide)
            check_owner(model, guide)
            known = self._known

            def forget(_: Any) -> None:
                known.pop(key, None)

            try:
                references = [weakref.ref(owner, forget) for owner in owners]
            except TypeError:
                return Known(Undo(model, guide))
            known[key] = Known(Undo(model, guide)), references
        return self._known[key][0]

    def __len__(self) -> int:
        return len(self._known)

    def __reduce__(self) -> tuple[type[Pairs], tuple[()]]:
        return Pairs, ()  # what is known of a pair does not go into a file


def _owners(fn: Callable[..., Any]) -> tuple[Any, ...]:
    return (fn.__self__, fn.__func__) if isinstance(fn, MethodType) else (fn,)
