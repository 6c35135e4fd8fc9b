"""Which latent sites belong to single data, and which to all of them.

A density of data that a fit has not seen may use what the fit knows of the world, never what it
knows of the very data. A latent site is *local* where its value belongs to one datum: a label, the
code of an autoencoder, the effect of one unit. Its draws are then those of other data, or have
seen the datum.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pyro.poutine import Trace

from pyro_ibvi._util.names import chosen, chosen_by_any
from pyro_ibvi.arviz.dependence import Sources
from pyro_ibvi.arviz.marginal import Marks
from pyro_ibvi.arviz.sites import Kinds, Site, sample_sites


@dataclass(frozen=True)
class Latents:
    """The unobserved sites of a model, by what becomes of them.

    Attributes:
        given: Shared by all data: the guide draws them.
        local: Of single data, or missing from the guide: the model draws them.
        summed: Of single data and enumerable, with what ``infer`` says of that, by name.
    """

    given: frozenset[str]
    local: frozenset[str]
    summed: Mapping[str, Marks]


class Pair:
    """What is known of a model and its guide on the data that are to be scored.

    Args:
        model_trace: A trace of the model.
        guide_trace: A trace of the guide, up to where it failed.
        kinds: What the sites of the model are.
        guide_sources: What the guide's sites are computed from.
        targets: Names of the arguments that hold the data.
        failure: What the guide raised.
    """

    def __init__(
        self,
        model_trace: Trace,
        guide_trace: Trace,
        kinds: Kinds,
        guide_sources: Sources,
        targets: Collection[str],
        failure: Exception | None = None,
    ) -> None:
        self.sites, self.guide_sites = sample_sites(model_trace), sample_sites(guide_trace)
        self.latent = {
            n: s
            for n, s in self.sites.items()
            if kinds(s) in ("latent", "predicted", "enumerated")
        }
        #: plates around each observed site
        self.data = [_plates(s) for s in self.sites.values() if kinds(s) == "observed"]
        self._guide_sources, self._targets = guide_sources, set(targets)
        self.failure = failure

    def is_per_datum(self, name: str) -> bool:
        """Whether a site lies in all plates of some observed site."""
        own = _plates(self.sites[name])
        return any(plates <= own for plates in self.data if plates)

    def has_seen(self, name: str) -> bool:
        """Whether the guide computes a site from the data that are scored."""
        sources = self._guide_sources
        above = {name, *sources.ancestors(name)}
        seen = sources.arguments(above, of="values") | sources.arguments(above, of="laws")
        return bool(seen & self._targets)

    def is_shared(self, name: str) -> bool:
        """Whether a site has no plate in common with any data that lie in plates."""
        return any(self.data) and not self._is_near(name)

    def _is_near(self, name: str) -> bool:
        """Whether a site has a plate in common with some data."""
        return bool(_plates(self.sites[name]) & set().union(*self.data))

    def fits(self, name: str) -> bool:
        """Whether the guide's draw of a site has the shape that the model needs."""
        return self.sites[name]["value"].shape == self.guide_sites[name]["value"].shape

    def find(self, wanted: Collection[str] | None) -> Latents:
        """Tells the latent sites of single data from those that all data share.

        Args:
            wanted: Names or shell patterns of the local sites; by default those that lie in all
                plates of some observed site, that the guide computes from the data, or whose
                plates have another size in the guide.

        Returns:
            The sites.

        Raises:
            ValueError: If a pattern fits no latent site, or a site can be neither.
        """
        for pattern in wanted or ():
            if not chosen(pattern, self.latent):
                raise ValueError(
                    f"local names {pattern!r}; the latent sites are {sorted(self.latent)}."
                )
        found = self.split(wanted)
        self._check({*found.local, *found.summed}, wanted)
        return found

    def split(self, wanted: Collection[str] | None = None) -> Latents:
        """As :meth:`find`, without a check that the sites can be what they shall be.

        Args:
            wanted: Names or shell patterns of the local sites.

        Returns:
            The sites.
        """
        named = None if wanted is None else chosen_by_any(wanted, self.latent)
        local = {n for n in self.latent if self._is_local(n, named)}
        summed = {n: how for n in local if (how := self._enumeration(n))}
        return Latents(frozenset(self.latent) - local, frozenset(local) - set(summed), summed)

    def _is_local(self, name: str, named: Collection[str] | None) -> bool:
        if name not in self.guide_sites:
            return True
        if named is not None:
            return name in named
        elsewhere = bool(_plates(self.sites[name])) and not self.fits(name)
        return elsewhere or self.is_per_datum(name) or self.has_seen(name)

    def _check(self, local: Collection[str], wanted: Collection[str] | None) -> None:
        named = chosen_by_any(wanted or (), self.latent)
        for name in sorted(self.latent):
            if name in local:
                drawn = name in self.guide_sites
                if drawn and name not in named and self.is_shared(name) and self.has_seen(name):
                    raise ValueError(
                        f"The guide draws {name!r}, which all data share, from the data that are "
                        f"scored: it has seen them. Condition it on other data, as by a guide "
                        f"that keeps the training data, or name the site in local=[{name!r}] to "
                        f"draw it from its prior."
                    )
                if not drawn and self.failure is not None and not self._is_near(name):
                    raise ValueError(
                        f"The guide fails on these data before it has drawn {name!r}, which "
                        f"they share ({str(self.failure).splitlines()[0]}): let it draw what all "
                        f"data share first, or run on data of any size."
                    ) from self.failure
            elif not self.fits(name):
                drawn_shape = tuple(self.guide_sites[name]["value"].shape)
                raise ValueError(
                    f"The guide draws {name!r} in shape {drawn_shape}, but the model needs "
                    f"{tuple(self.sites[name]['value'].shape)} for these data: name the site in "
                    f"local=[{name!r}] if its values belong to single data."
                )
            elif self.has_seen(name):
                raise ValueError(
                    f"The guide draws {name!r} from the data that are scored: it has seen them. "
                    f"Name the site in local=[{name!r}], and it is drawn from its prior."
                )

    def _enumeration(self, name: str) -> Marks | None:
        """How a site is enumerated, in the guide or else in the model; None where it is not."""
        places = [s[name] for s in (self.guide_sites, self.sites) if name in s]
        infer = (site["infer"] for site in places)
        found = next((i for i in infer if i.get("enumerate") in ("parallel", "sequential")), None)
        if found is None or not getattr(self.sites[name]["fn"], "has_enumerate_support", False):
            return None
        return {key: found[key] for key in ("enumerate", "expand") if key in found}


def _plates(site: Site) -> set[str]:
    return {frame.name for frame in site["cond_indep_stack"]}
