"""A guide of layers: its posterior by the names of its sites, its model, and how it is saved."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, Self

import torch
from pyro.infer.autoguide.guides import AutoGuide
from torch import Tensor

from pyro_ibvi.guides import parameters
from pyro_ibvi.guides.base import MuPGuide
from pyro_ibvi.guides.buffers import BufferPool
from pyro_ibvi.guides.saving import CopiedModel, strip_prefix, without_model
from pyro_ibvi.guides.sites import Layer, Site

#: What Pyro's autoguides have of their posteriors, most of them for all latents in one vector.
_OF_ALL_SITES = {
    "scales",
    "get_posterior",
    "get_base_dist",
    "get_transform",
    "latent_dim",
    "scale_tril",
    "cov_factor",
}


class LayeredGuide(AutoGuide, MuPGuide):
    """What a guide knows of its layers once they are made, and keeps when it is saved.

    Args:
        model: The model.
        create_plates: As in Pyro's autoguides.
    """

    def __init__(
        self, model: Callable[..., Any], *, create_plates: Callable[..., Any] | None = None
    ) -> None:
        super().__init__(model, create_plates=create_plates)
        self._layers: list[Layer] | None = None
        self._pending_state: dict[str, Any] | None = None
        self._pool = BufferPool()
        self._read_from: dict[str, Any] = {}  # by name, the network or the parameter itself
        self._copied_model: CopiedModel | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name not in _OF_ALL_SITES:
                raise
            raise AttributeError(
                f"{type(self).__name__} has no {name!r}, since each site has a posterior of its "
                f"own: loc(name), scale(name), factor(name) and covariance(name), in "
                f"unconstrained space."
            ) from None

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        """Makes the layers, unless that is done.

        Args:
            *args: Arguments of the model, targets included.
            **kwargs: Keyword arguments of the model.
        """
        raise NotImplementedError

    @property
    def model(self) -> Callable[..., Any]:
        """The model.

        Raises:
            RuntimeError: If the guide was unpickled, without its model.
        """
        if self._copied_model is not None:
            model, self._read_from = self._copied_model.resolve()
            self._model, self._copied_model = (model,), None
        if self._model is None:
            raise RuntimeError(
                "This guide was unpickled, without its model: make a new guide of the model and "
                "load this one's state_dict into it."
            )
        return self._model[0]

    @property
    def known_of_model(self) -> dict[str, Any]:
        """By name of a site or parameter, the network that it belongs to, or the parameter.

        :meta private:
        """
        if self._has_model:
            _ = self.model  # that of a copy is found at its first use
        return self._read_from

    def rejoin(self, model: Callable[..., Any], known: dict[str, Any]) -> None:
        """Gives a guide that was unpickled the model that was pickled beside it.

        :meta private:

        Args:
            model: The model.
            known: The guide's :attr:`known_of_model`, pickled with it.
        """
        self._model, self._read_from, self._copied_model = (model,), known, None

    @property
    def is_initialized(self) -> bool:
        """Whether the guide has its layers and parameters."""
        return self._layers is not None

    @property
    def _has_model(self) -> bool:
        return self._model is not None or self._copied_model is not None

    @contextmanager
    def _looking(self) -> Iterator[None]:
        """Lets the model, run to be looked at, draw what it draws anew, and keeps none of that.

        Within a call of a `PyroModule` each of its samples is drawn once; where one module holds
        model and guide, they are in one call, and the next run would have no sites.
        """
        context = self._pyro_context
        kept, context.cache = context.cache, {}
        try:
            yield
        finally:
            context.cache = kept

    # -- the posterior by name -----------------------------------------------------------------

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The sites, those together that share their noise, each with its covariance."""
        return tuple(self._made_layers())

    def loc(self, name: str) -> Tensor:
        """Mean of a site in unconstrained space, in the site's shape."""
        return parameters.get(self, "locs", self._find(name)[1])

    def factor(self, name: str) -> Tensor:
        """Factor ``S`` of a site's covariance; a point estimate has none."""
        layer, site = self._find(name)
        if layer.covariance is None:
            raise ValueError(f"The site {name!r} is a point estimate and has no covariance.")
        return parameters.get(self, "factors", site)

    def layer_factor(self, name: str) -> Tensor | None:
        """What a site's layer has in common: ``S_out`` of a ``Kronecker``, None for others."""
        return parameters.layer_factor(self, self._find(name)[0])

    def scale(self, name: str) -> Tensor:
        """Marginal standard deviations of a site in unconstrained space, 0 for a point."""
        layer, site = self._find(name)
        loc = self.loc(name)
        if layer.covariance is None:
            return torch.zeros_like(loc)
        layer_factor = parameters.layer_factor(self, layer)
        scale = layer.covariance.scale(self.factor(name), layer_factor, loc)
        return scale if site.keep is None else site.keep.still(scale)

    def covariance(self, *names: str) -> Tensor:
        """Covariance matrix of sites of one layer in unconstrained space.

        Args:
            *names: Names of one site, or of several that share a layer.

        Returns:
            The matrix over the flattened sites in the order given, shape ``(P, P)``.

        Raises:
            ValueError: If the sites are of different layers, or point estimates.
        """
        factors = [self.factor(name) for name in names]
        layers = [self._find(name)[0] for name in names]
        if any(layer is not layers[0] for layer in layers):
            raise ValueError(f"The sites {list(names)} are independent: they share no layer.")
        covariance = layers[0].covariance
        assert covariance is not None
        locs = [self.loc(name) for name in names]
        return covariance.dense(factors, parameters.layer_factor(self, layers[0]), locs)

    @torch.no_grad()
    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Median of every site by name; the model's arguments serve to initialize the guide."""
        self.initialize(*args, **kwargs)
        return {s.name: s.constrain(self.loc(s.name)).clone() for s in self._sites()}

    @torch.no_grad()
    def quantiles(
        self, quantiles: Tensor | list[float], *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Marginal quantiles of every site.

        Entries that depend on one another, as those of a simplex or of ordered numbers do, have
        none in closed form, and a warning says so: theirs are the quantiles in unconstrained
        space, mapped to the site's.

        Args:
            quantiles: Probabilities between 0 and 1.
            *args: Arguments of the model, which serve to initialize the guide.
            **kwargs: Keyword arguments of the model.

        Returns:
            The quantiles by site name, a new dimension in front.

        Raises:
            ValueError: If a probability is not between 0 and 1.
        """
        given = torch.as_tensor(quantiles, dtype=torch.double)
        if not ((given >= 0) & (given <= 1)).all():
            raise ValueError(
                f"quantiles takes probabilities between 0 and 1, got {given.tolist()}: for "
                f"percentages write [0.05, 0.5, 0.95]."
            )
        self.initialize(*args, **kwargs)
        result, mixed = {}, []
        for site in self._sites():
            loc, scale = self.loc(site.name), self.scale(site.name)
            direction = site.direction()
            if direction is None and bool((scale > 0).any()):
                mixed.append(site.name)
            probabilities = torch.as_tensor(quantiles, dtype=loc.dtype, device=loc.device)
            normal = torch.special.ndtri(probabilities).reshape(-1, *(1,) * loc.dim())
            # The median of a point estimate is itself, at infinite quantiles of the noise too.
            spread = torch.where(scale > 0, scale * normal, torch.zeros_like(scale))
            spread = spread if direction is None else direction * spread
            result[site.name] = site.constrain(loc + spread)
        if mixed:
            warnings.warn(
                f"The entries of the sites {mixed} depend on one another, as their supports want: "
                f"what quantiles gives for them are quantiles in unconstrained space, mapped, and "
                f"not those of the entries. Take those of draws, "
                f"torch.quantile(guide.draw(1000)[{mixed[0]!r}], q, 0).",
                UserWarning,
                stacklevel=3,
            )
        return result

    def sample_latent(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuses: there is no vector of all latents, as some of Pyro's guides have.

        Args:
            *args: Arguments of the model.
            **kwargs: Keyword arguments of the model.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no vector of all latents to sample: draw(num_samples) "
            f"gives draws by site name."
        )

    def _made_layers(self) -> list[Layer]:
        if self._layers is None:
            raise RuntimeError(
                "The guide has no parameters yet: call guide.initialize(*args) with the model's "
                "arguments, targets included."
            )
        return self._layers

    def _sites(self) -> Iterator[Site]:
        return (site for layer in self._made_layers() for site in layer.sites)

    def _find(self, name: str) -> tuple[Layer, Site]:
        return parameters.find(self._made_layers(), name)

    # -- saving --------------------------------------------------------------------------------

    def _load_pending(self) -> None:
        assert self._pending_state is not None
        try:
            self.load_state_dict(self._pending_state)
        except Exception:
            self._layers = None  # to fail the next time too, not to go on from the prior
            raise
        self._pending_state = None

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *args: Any) -> None:
        """Keeps parameters that come before :meth:`initialize` until it is called."""
        if self._layers is None:
            self._pending_state = strip_prefix(state, prefix)
        else:
            super()._load_from_state_dict(state, prefix, metadata, *args)

    def train(self, mode: bool = True) -> Self:
        """Sets the mode, and lets go of the memory that training steps use again."""
        self._pool.clear()
        super().train(mode)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self._pool.clear()  # training is over, or pauses
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for key, value in (self._pending_state or {}).items():
            destination[prefix + key] = value

    def __getstate__(self) -> dict[str, Any]:
        # The base class clears the live guide's model here; a copy leaves it as it is.
        return without_model(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        if self._has_model:
            new.__dict__["_copied_model"] = CopiedModel(self.model, self._read_from, memo)
        return new
