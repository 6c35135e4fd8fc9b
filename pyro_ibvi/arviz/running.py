"""How a model and a guide are run: streams of random numbers, modes, fixed values."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pyro.infer.inspect import site_is_deterministic
from pyro.poutine import Trace, unwrap
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from pyro.poutine.util import site_is_factor, site_is_subsample
from pyro.util import set_rng_seed
from torch import nn

from pyro_ibvi._util.checks import is_whole, shown
from pyro_ibvi._util.modes import module_mode
from pyro_ibvi._util.random_state import get_random_state, set_random_state
from pyro_ibvi.objectives.masks import without_masked_values


class RandomStreams:
    """Independent, named streams of random numbers over the global generators.

    Args:
        seed: Start of every stream. With ``None`` the stream ``"posterior"`` is the global
            generator itself, and the others are started from its state without advancing it.

    Raises:
        TypeError: If the seed is no whole number.
    """

    def __init__(self, seed: int | None) -> None:
        if seed is not None and not is_whole(seed):
            raise TypeError(f"seed must be a whole number, got {shown(seed)}.")
        self._live = "posterior" if seed is None else None
        self._first = None if seed is None else seed % 2**32
        entropy = torch.get_rng_state().numpy().tobytes() if seed is None else b"%d" % seed
        self._entropy = zlib.crc32(entropy)
        self._states: dict[str, Any] = {}
        self._open: str | None = None

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Draws from the stream ``name`` inside the context; leaves the global state alone.

        Opening a stream takes a while: open it around many draws, and it is open for each.
        """
        if name == self._open or (self._open is None and name == self._live):
            yield
            return
        outer, before, self._open = get_random_state(), self._open, name
        try:
            if name in self._states:
                set_random_state(self._states[name])
            elif name == "posterior" and self._first is not None:
                set_rng_seed(self._first)
            else:
                set_rng_seed(zlib.crc32(name.encode(), self._entropy))
            yield
            self._states[name] = get_random_state()
        finally:
            self._open = before
            set_random_state(outer)


@contextmanager
def evaluating(*callables: Callable[..., Any]) -> Iterator[None]:
    """Runs without gradients and with every module in ``eval`` mode; restores the modes after."""
    with torch.no_grad(), module_mode(*callables, training=False):
        yield


def own_sites(guide: Callable[..., Any], trace: Trace) -> Trace:
    """A guide's trace with the sites of the guide alone.

    A `GuideMessenger` runs the model with its draws, so that a trace of it holds data and factors
    of the model, too, whose densities are no part of the guide's.

    Args:
        guide: The guide.
        trace: A trace of it, which may be written to.

    Returns:
        The trace.
    """
    if isinstance(unwrap(guide), GuideMessenger):
        nodes: Mapping[str, Any] = trace.nodes
        for name, site in list(nodes.items()):
            is_data = site["type"] == "sample" and site["is_observed"]
            if is_data and not site_is_deterministic(site) and not site_is_subsample(site):
                trace.remove_node(name)
    return trace


@contextmanager
def known_latents(guide: Callable[..., Any]) -> Iterator[None]:
    """Refuses a run in which a guide that runs the model takes data for latents.

    Targets that are left out are drawn by such a guide, from parameters that it makes for them.

    Args:
        guide: The guide.

    Raises:
        ValueError: If a guide with parameters has made more of them; they are taken away.
    """
    owner = unwrap(guide)
    if not (isinstance(owner, GuideMessenger) and isinstance(owner, nn.Module)):
        yield
        return
    before = {name for name, _ in owner.named_parameters()}
    yield
    new = [name for name, _ in owner.named_parameters() if name not in before]
    if before and new:
        for name in new:
            path, _, last = name.rpartition(".")
            delattr(owner.get_submodule(path), last.removesuffix("_unconstrained"))
        raise ValueError(
            f"The guide {type(owner).__name__} runs the model, and has made the parameters {new} "
            f"for sites that it has not drawn before, such as targets that were left out: pass "
            f"them, to_arviz(model, guide, x, y), and inputs without targets as predictions=(x,)."
        )


class Given(Messenger):
    """Fixes the values of unobserved sites, plates' subsamples included.

    Unlike :class:`pyro.poutine.replay` it leaves the site's ``infer`` dictionary, in which the
    model marks its weights, as it is.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"] and msg["value"] is None:
            msg["value"] = self.values[msg["name"]]
            msg["done"] = True


class GivenWhereItFits(Messenger):
    """Fixes the values of unobserved sites whose shape is that of their distribution."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["value"] is not None or msg["name"] not in self.values:
            return
        value = self.values[msg["name"]]
        shape = getattr(msg["fn"], "shape", None)
        if shape is None or shape() == value.shape:
            msg["value"] = value
            msg["done"] = True


class FillMasked(Messenger):
    """Puts a point of the support where a mask hides an observation, which may be NaN."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] and not site_is_factor(msg):
            msg["value"] = without_masked_values(msg)


class Redraw(UnconditionMessenger):
    """Draws observed sites anew.

    Computed sites keep their values: Pyro holds them as observations of a Delta, of which a plate
    would make a draw of a larger shape.

    Args:
        computed: Names of the computed sites that are not marked as deterministic.
    """

    def __init__(self, computed: Collection[str] = ()) -> None:
        super().__init__()
        self.computed = computed

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_deterministic(msg) or site_is_factor(msg) or msg["name"] in self.computed:
            return
        super()._pyro_sample(msg)
