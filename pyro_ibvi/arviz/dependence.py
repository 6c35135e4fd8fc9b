"""What the sites of a model and a guide are computed from: arguments, and other sites."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from pyro import poutine
from pyro.ops.provenance import ProvenanceTensor, detach_provenance, get_provenance
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger

from pyro_ibvi._util.buffers import buffers_kept
from pyro_ibvi._util.distributions import is_delta
from pyro_ibvi._util.random_state import own_random_numbers
from pyro_ibvi.arviz.inputs import Inputs, leaves
from pyro_ibvi.arviz.sites import sample_sites
from pyro_ibvi.objectives.reach import tensors_of

#: an argument (``"argument", "x"``) or an unobserved site (``"site", "z"``)
Source = tuple[str, str]


@dataclass(frozen=True)
class Sources:
    """What each site of a trace is computed from, directly.

    Attributes:
        laws: Sources of the parameters of a site's distribution, masks apart.
        values: Sources of a site's value.
        known: Whether the sources could be followed at all.
    """

    laws: Mapping[str, frozenset[Source]] = field(default_factory=dict)
    values: Mapping[str, frozenset[Source]] = field(default_factory=dict)
    known: bool = False

    @property
    def used(self) -> set[str]:
        """Unobserved sites that anything is known to be computed from."""
        every = frozenset().union(*self.laws.values(), *self.values.values())
        return {site for kind, site in every if kind == "site"}

    def arguments(self, names: Collection[str], *, of: str) -> set[str]:
        """Arguments that some sites are computed from.

        Args:
            names: Names of the sites.
            of: ``"laws"`` or ``"values"``.

        Returns:
            Names of the arguments.
        """
        sources: Mapping[str, frozenset[Source]] = getattr(self, of)
        return {a for n in names for kind, a in sources.get(n, ()) if kind == "argument"}

    def ancestors(self, name: str) -> set[str]:
        """Unobserved sites that a site is computed from, at any remove.

        Args:
            name: Name of the site.

        Returns:
            Names of the sites.
        """
        found: set[str] = set()
        pending = [name]
        while pending:
            n = pending.pop()
            sources = self.laws.get(n, frozenset()) | self.values.get(n, frozenset())
            above = {site for kind, site in sources if kind == "site"} - found - {n}
            found |= above
            pending += above
        return found


def tracked(inputs: Inputs, model: Callable[..., Any]) -> Inputs:
    """Arguments whose tensors know their own names, as the model's signature gives them.

    Args:
        inputs: The arguments.
        model: The model.

    Returns:
        The arguments; one tensor that is passed twice has two names.
    """
    tags = (str(i) for i in count())
    numbered = inputs.map(lambda t: ProvenanceTensor(t, frozenset({next(tags)})))
    found = leaves(numbered.named(model))
    names = {tag: name for name, leaf in found.items() for tag in get_provenance(leaf)}
    tags = (str(i) for i in count())
    return inputs.map(
        lambda t: ProvenanceTensor(t, frozenset({("argument", names.get(next(tags), ""))}))
    )


def find_sources(fn: Callable[..., Any], trace: Trace, inputs: Inputs) -> Sources:
    """Runs a model or a guide once more against its own trace, to see what comes from where.

    Args:
        fn: The model or the guide.
        trace: A trace of it.
        inputs: The arguments of that run, as :func:`tracked` gives them.

    Returns:
        The sources; unknown where Pyro's tracking does not pass through what is done.
    """
    try:
        with poutine.block(), own_random_numbers(), buffers_kept(fn), torch.no_grad(), _Track():
            again = poutine.trace(poutine.replay(fn, trace)).get_trace(
                *inputs.args, **inputs.kwargs
            )
    except Exception:  # a subclass of tensors does not go through everything
        return Sources()
    sites = sample_sites(again)
    return Sources(
        {n: frozenset(get_provenance(tensors_of(s["fn"], masks=False))) for n, s in sites.items()},
        {n: s["infer"].get("_sources", get_provenance(s["value"])) for n, s in sites.items()},
        known=True,
    )


class _Track(Messenger):
    """Lets what is computed from an unobserved site know it, and that site alone.

    What is computed from data that the model has observed is computed from the site, and no longer
    from the argument that held them.
    """

    def _pyro_post_sample(self, msg: Any) -> None:
        if not isinstance(msg["value"], torch.Tensor) or (
            msg["is_observed"] and is_delta(msg["fn"])  # computed
        ):
            return
        msg["infer"] = {**msg["infer"], "_sources": get_provenance(msg["value"])}
        value = detach_provenance(msg["value"])
        if not msg["is_observed"]:
            value = ProvenanceTensor(value, frozenset({("site", msg["name"])}))
        msg["value"] = value
