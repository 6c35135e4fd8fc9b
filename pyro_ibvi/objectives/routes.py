"""What an objective asks of a guide that can evaluate the likelihood without Pyro's traces.

The objective takes the long way for the first step with a pair of model and guide, with all its
checks, and whenever some handler, hook or option asks for more. What it sees there tells whether
the short way gives the same terms.
"""

from __future__ import annotations

import weakref
from typing import Any, Literal, Protocol, TypeAlias, cast

from pyro.poutine import Trace
from torch import Tensor

from pyro_ibvi._util.checks import is_whole
from pyro_ibvi.objectives.masks import own_masks
from pyro_ibvi.objectives.sites import sample_sites

#: Draws in a step: one, one for each datum, or one for each of so many parts of the batch.
NumDraws: TypeAlias = int | Literal["batch", "datum"]


class DirectRoute(Protocol):
    """The way from data to the likelihood of one pair of model and guide, without traces."""

    @property
    def observed(self) -> str:
        """Name of the one site whose log-density the route evaluates."""
        ...

    def is_open(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a step with these arguments may go without traces, handlers and hooks."""
        ...

    def log_likelihood(
        self, *args: Any, draws: NumDraws = "batch", **kwargs: Any
    ) -> tuple[Tensor, float, Tensor | None]:
        """Log-likelihoods ``(batch,)`` for draws, their scale, and how much each counts."""
        ...


def as_draws(draws: Any) -> NumDraws:
    """Checks the number of draws in a step.

    Args:
        draws: What the user gave.

    Returns:
        The same, as a number of Python's.

    Raises:
        ValueError: If it is none.
    """
    if is_whole(draws) and draws > 0:
        return int(draws)
    if draws not in ("batch", "datum"):
        raise ValueError(
            f"draws={draws!r}: expected 'batch' (one draw of the weights for a step), 'datum' "
            "(one for each datum), or a number of parts of the batch that have one each."
        )
    return cast("NumDraws", draws)


def direct_route(model: Any, guide: Any) -> DirectRoute | None:
    """The direct route of a pair, if its guide offers one.

    Args:
        model: The model.
        guide: The guide.

    Returns:
        The route or None.
    """
    # Of the class: what wraps a guide and hands its attributes on does not act as the guide does.
    find = getattr(type(guide), "direct_route", None)
    return None if find is None else find(guide, model)


class KnownRoutes:
    """The routes that an objective has seen to give the same terms as the traces.

    It holds no route, model or guide alive, and copies and pickles are empty.
    """

    def __init__(self) -> None:
        self._routes: weakref.WeakSet[DirectRoute] = weakref.WeakSet()

    def learn(self, route: DirectRoute | None, model_trace: Trace, guide_trace: Trace) -> None:
        """Remembers a route if a pair of traces has its terms and no others.

        Args:
            route: The pair's route, if there is one.
            model_trace: The model's trace, without the sites that the objective drops.
            guide_trace: The guide's trace, without the sites that the objective drops.
        """
        if route is None:
            return
        sites = dict(sample_sites(model_trace))
        is_all = list(sites) == [route.observed] and not list(sample_sites(guide_trace))
        if is_all and not _is_masked(sites[route.observed]):
            self._routes.add(route)
        else:
            self._routes.discard(route)

    def knows(self, model: Any, guide: Any) -> bool:
        """Whether steps of a pair go without traces.

        Args:
            model: The model.
            guide: The guide.

        Returns:
            Whether they do.
        """
        return direct_route(model, guide) in self

    def trust(self, model: Any, guide: Any) -> None:
        """Takes the route of a pair that is the copy of one whose route is known.

        Args:
            model: The model.
            guide: The guide.
        """
        route = direct_route(model, guide)
        if route is not None:
            self._routes.add(route)

    def __contains__(self, route: object) -> bool:
        return route is not None and route in self._routes

    def __reduce__(self) -> tuple[type[KnownRoutes], tuple[()]]:
        return KnownRoutes, ()


def _is_masked(site: Any) -> bool:
    return site["mask"] is not None or bool(own_masks(site["fn"]))
