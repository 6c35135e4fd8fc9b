"""Log-densities with their dimensions named, and the sum over enumerated states."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.poutine import Trace
from torch import Tensor

from pyro_ibvi.arviz.sites import Site, density_sites, kept, log_prob_of, sample_sites

#: a density with its dimensions named: of plates, or of enumerated sites
Packed = Any


def frames(site: Site) -> dict[str, Any]:
    """The vectorized plates around a site, by name."""
    return {f.name: f for f in site["cond_indep_stack"] if f.vectorized}


class Extra:
    """A term of the density that is no site of the model, such as a weight of draws.

    Args:
        frames: The plates around it, by name.
        value: Its logarithm, of the plates' dimensions.
    """

    def __init__(self, frames: Mapping[str, Any], value: Tensor) -> None:
        self.frames, self.value = frames, value


class Terms:
    """Log-densities of some sites of a trace, with their dimensions named.

    Args:
        trace: A trace of the model, as :func:`run_summed` gives it.
        names: The sites whose densities count; enumerated sites are added.
        extra: Further terms by name.
    """

    def __init__(
        self, trace: Trace, names: Iterable[str], extra: Mapping[str, Extra] | None = None
    ) -> None:
        trace.symbolize_dims()
        self.plates: Mapping[str, str] = trace.plate_to_symbol
        sites = density_sites(trace)
        states = [n for n, s in sites.items() if s["infer"].get("_enumerate_dim") is not None]
        self.frames: dict[str, Mapping[str, Any]] = {}
        self.packed: dict[str, Packed] = {}
        for name in dict.fromkeys([*(n for n in names if n in sites), *states]):
            value = log_prob_of(sites[name])
            if name not in states:
                keep = kept(sites[name]).to(value.device)
                value = torch.where(keep, value, value.new_zeros(()))
            symbols = sites[name]["infer"]["_dim_to_symbol"]
            self._add(name, frames(sites[name]), value, symbols)
        for name, term in (extra or {}).items():
            symbols = {f.dim: self.plates[n] for n, f in term.frames.items() if n in self.plates}
            self._add(name, term.frames, term.value, symbols)

    def _add(
        self, name: str, around: Mapping[str, Any], value: Tensor, symbols: Mapping[int, str]
    ) -> None:
        self.frames[name] = around
        try:
            # a fresh tensor, for Pyro hangs the names of the dimensions on it
            self.packed[name] = packed.pack(value[...], symbols)
        except ValueError:
            raise ValueError(
                f"The log-density of site {name!r} has shape {tuple(value.shape)}, but its plates "
                f"are {list(around)}: put the other dimensions into a pyro.plate, or make "
                f"them event dimensions by .to_event(), so that the site has one density per "
                f"datum."
            ) from None

    def states(self, name: str) -> set[str]:
        """Symbols of the enumerated states that a density depends on."""
        return set(self.packed[name]._pyro_dims) - set(self.plates.values())

    def connected(self, links: Iterable[Collection[str]] = ()) -> list[tuple[str, ...]]:
        """Sets of terms that share an enumerated state, or are linked otherwise.

        Args:
            links: Names of terms that belong together.

        Returns:
            The names, in the order of the trace.
        """
        parts = [({n}, self.states(n)) for n in self.packed]
        parts += [({n for n in link if n in self.packed}, set()) for link in links]
        groups: list[tuple[set[str], set[str]]] = []
        for names, states in parts:
            met = [g for g in groups if g[0] & names or g[1] & states]
            groups = [g for g in groups if g not in met]
            groups.append((names.union(*(g[0] for g in met)), states.union(*(g[1] for g in met))))
        order = list(self.packed)
        found = (tuple(sorted(g[0], key=order.index)) for g in groups if g[0])
        return sorted(found, key=lambda names: order.index(names[0]))

    def contract(self, names: Iterable[str], plates: Iterable[tuple[str, int]]) -> Tensor:
        """The log-density of connected terms: states summed out, other plates multiplied.

        Args:
            names: Names of the terms.
            plates: Names and sizes of the plates to keep.

        Returns:
            A tensor with the sizes of the plates as its shape.
        """
        tree: OrderedDict[frozenset[str], list[Packed]] = OrderedDict()
        states: set[str] = set()
        for name in names:
            around = self.frames[name].items()
            ordinal = frozenset(self.plates[p] for p, f in around if f.size > 1)
            tree.setdefault(ordinal, []).append(self.packed[name])
            states |= self.states(name)
        plates = tuple(plates)
        terms = [t for found in contract_tensor_tree(tree, states).values() for t in found]
        keep = [self.plates[name] for name, _ in plates]
        total = torch.stack(torch.broadcast_tensors(*(_to_plates(t, keep) for t in terms))).sum(0)
        return total.expand([size for _, size in plates])


def _to_plates(term: Packed, symbols: list[str]) -> Tensor:
    """Sums the other dimensions of a term, and brings the rest into the order of some plates."""
    dims = list(term._pyro_dims)
    extra = [k for k, d in enumerate(dims) if d not in symbols]
    value: Tensor = term.sum(extra) if extra else term[...]
    dims = [d for d in dims if d in symbols]
    value = value.permute([dims.index(s) for s in symbols if s in dims])
    sizes = iter(value.shape)
    return value.reshape([next(sizes) if s in dims else 1 for s in symbols])


def agrees(
    enumerated: Trace, single: Trace, states: Collection[str], observed: Collection[str]
) -> bool:
    """Whether a run in all states at once has the densities of a run in single states.

    A model that was not written for enumeration may mix its states up, and raise nothing.

    Args:
        enumerated: A trace with all states of some sites.
        single: A trace with the same values, and one state of each of these sites.
        states: Names of the sites.
        observed: Sites whose densities are compared.

    Returns:
        Whether the densities are those of the single states.
    """
    many, one = Terms(enumerated, observed), sample_sites(single)
    sites = sample_sites(enumerated)
    chosen = {}
    for name in states:
        site, event_dim = sites[name], sites[name]["fn"].event_dim
        dim, symbols = site["infer"]["_enumerate_dim"], site["infer"]["_dim_to_symbol"]
        equal = site["value"] == one[name]["value"]
        equal = equal.flatten(-event_dim).all(-1) if event_dim else equal
        chosen[symbols[dim]] = packed.pack(equal.long().argmax(dim, keepdim=True), symbols)
    for name in observed:
        found = many.packed[name]
        for symbol, index in chosen.items():
            if symbol in found._pyro_dims:
                found = packed.gather(found, index, symbol)
        value = log_prob_of(one[name])
        value = torch.where(kept(one[name]).to(value.device), value, value.new_zeros(()))
        expected = packed.pack(value[...], sites[name]["infer"]["_dim_to_symbol"])
        found, expected = packed.broadcast_all(found, expected)
        if not torch.allclose(found, expected, rtol=1e-4, atol=1e-5):
            return False
    return True
