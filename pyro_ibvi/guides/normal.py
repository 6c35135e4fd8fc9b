"""The guide: a Gaussian per layer, started at the prior, with width-aware learning rates."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro.infer.autoguide.guides import AutoGuide
from pyro.infer.autoguide.initialization import init_to_sample
from torch import Tensor, nn

from pyro_ibvi._util.handlers import HANDLERS
from pyro_ibvi.guides import parameters
from pyro_ibvi.guides.buffers import BufferPool
from pyro_ibvi.guides.direct import DirectRoute, find_route
from pyro_ibvi.guides.drawing import draw_sites, sample_layer
from pyro_ibvi.guides.prototype import (
    check_model,
    data_free_prior,
    find_sites,
    network_weights,
    networks_and_parameters,
    run_prototype,
    takes_no_arguments,
)
from pyro_ibvi.guides.rates import guide_rates, model_rates
from pyro_ibvi.guides.rows import Batch, Plates
from pyro_ibvi.guides.saving import CopiedModel, strip_prefix, without_model
from pyro_ibvi.guides.sites import CovarianceChoice, Layer, Site, check_covariance, group_layers
from pyro_ibvi.guides.start import make_parameters
from pyro_ibvi.mup.parametrization import Family, MaximalUpdate, Parametrization, Rate
from pyro_ibvi.mup.roles import WeightRole


class AutoMuPNormal(AutoGuide):
    r"""Gaussian guide for implicit-bias variational inference, on any Pyro model.

    In unconstrained space the weights of a layer are :math:`w = \text{loc} + S z` with standard
    normal ``z``. The factor ``S`` starts so that each weight's standard deviation is its prior's
    (times ``init_scale``); ``loc`` starts at a draw from the prior, which breaks the symmetry of
    networks. A layer's weight and bias share one ``z`` where the covariance is low-rank or a
    Kronecker product.

    For a model with a method ``sample_parameters()`` (:class:`~pyro_ibvi.SupervisedModel`,
    :class:`~pyro_ibvi.RandomModule`) and for a model without arguments the guide is complete
    after construction. For other models call :meth:`initialize` with the model's arguments,
    targets included, or the guide itself.

    Parameters live in the guide, not in Pyro's global store: save and restore them by
    ``state_dict`` and ``load_state_dict``, and the model's point estimates by the model's. Pyro's
    own optimizers train them, but those look up names in the store, for arguments per parameter
    and for their state: prefer :class:`~pyro_ibvi.MuPOptim`, which takes any guide.

    Args:
        model: A Pyro model.
        covariance: One covariance for all sites; or a mapping from role (``"input"``,
            ``"hidden"``, ``"output"``: of the layer, so biases included), site name or pattern
            to a covariance, where None is a point estimate. An exact name counts before a role,
            and both before patterns, of which the first that matches does. By default
            ``LowRank(100)`` for networks' weights, ``Diagonal()`` for every other site.
        parametrization: Rules the learning rates of the sites that ``roles`` names; networks in
            a :class:`~pyro_ibvi.RandomModule` bring their own.
        init_loc_fn: Start of ``loc``, as in Pyro's autoguides;
            :func:`~pyro_ibvi.init_to_network` for a network that is trained already.
        init_scale: Start of the standard deviations, in units of the prior's.
        create_plates: As in Pyro's autoguides, for subsampled local latents.
        roles: For hand-written models: which sites are network weights, by site name.

    Raises:
        TypeError: If the model, the covariance or a role is of the wrong kind.
        ValueError: If a choice does not fit the model's sites.

    References:
        Wenger, Coker, Marusic, Cunningham, Variational Deep Learning via Implicit
        Regularization, arXiv:2505.20235.

    Example:
        >>> from pyro_ibvi import Categorical, Diagonal, LowRank, RandomModule, SupervisedModel
        >>> net = nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Linear(16, 3))
        >>> model = SupervisedModel(RandomModule(net), Categorical(), num_data=100)
        >>> guide = AutoMuPNormal(model, covariance={"input": Diagonal(), "*": LowRank(10)})
        >>> guide.factor("net.2.weight").shape
        torch.Size([3, 16, 10])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        covariance: CovarianceChoice = None,
        parametrization: Parametrization | None = None,
        init_loc_fn: Callable[..., Any] = init_to_sample,
        init_scale: float = 1.0,
        create_plates: Callable[..., Any] | None = None,
        roles: Mapping[str, WeightRole] | None = None,
    ) -> None:
        check_model(model)
        if not isinstance(init_scale, (int, float)) or not 0 < init_scale < math.inf:
            raise ValueError(f"init_scale must be positive and finite, got {init_scale!r}.")
        if not callable(init_loc_fn):
            raise TypeError(
                f"init_loc_fn must be a function of a site such as init_to_sample, got "
                f"{init_loc_fn!r}."
            )
        check_covariance(covariance)
        super().__init__(model, create_plates=create_plates)
        self._covariance_choice = covariance
        self._parametrization = MaximalUpdate() if parametrization is None else parametrization
        self._init_loc_fn = init_loc_fn
        self._init_scale = float(init_scale)
        self._roles = _checked_roles(roles)
        self._layers: list[Layer] | None = None
        self._pending_state: dict[str, Any] | None = None
        self._pool = BufferPool()
        self._route: DirectRoute | None = None
        self._read_from: dict[str, Any] = {}  # by name, the network or the parameter itself
        self._copied_model: CopiedModel | None = None
        has_prior = data_free_prior(model) is not None
        if has_prior or takes_no_arguments(model):
            self.initialize()

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
    def _has_model(self) -> bool:
        return self._model is not None or self._copied_model is not None

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        """Finds the model's latent sites and makes the parameters, unless that is done.

        Args:
            *args: Arguments of the model, targets included.
            **kwargs: Keyword arguments of the model.
        """
        if self._layers is None:
            with HANDLERS:
                self._setup_prototype(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draws every latent site.

        Args:
            *args: Arguments of the model.
            **kwargs: Keyword arguments of the model.

        Returns:
            The draws by site name.
        """
        self.initialize(*args, **kwargs)
        assert self._layers is not None
        batch = self._open_plates(args, kwargs)
        result: dict[str, Tensor] = {}
        for layer in self._layers:
            sample_layer(self, layer, batch, self._pool, result)
        return result

    def _open_plates(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Batch:
        if not self._prototype_frames and self.create_plates is None:
            return Batch({})
        if self.master is not None:
            plates = self._create_plates(*args, **kwargs)
            return self._plates.check_rows(self.model, args, kwargs, plates)
        created = () if self.create_plates is None else self.create_plates(*args, **kwargs)
        created = (created,) if isinstance(created, pyro.plate) else tuple(created)
        model = self.model if self._has_model else None
        batch = self._plates.open(model, args, kwargs, {plate.name: plate for plate in created})
        self.plates = batch.plates
        return batch

    @torch.no_grad()
    def draw(self, num_samples: int) -> dict[str, Tensor]:
        """Draws every global site many times at once, outside of any Pyro model.

        Args:
            num_samples: Number of draws.

        Returns:
            The draws by site name, the draws' dimension in front.
        """
        self._pool.clear()  # training is over, or pauses
        draws = draw_sites(self, self._made_layers(), self._pool, torch.Size((num_samples,)))
        points = {s.name for layer in self.layers if layer.covariance is None for s in layer.sites}
        return {name: v.clone() if name in points else v for name, v in draws.items()}

    def rsample(self, layers: Sequence[Layer] | None = None) -> dict[str, Tensor]:
        """Draws every global site once, differentiably, outside of any Pyro model.

        Args:
            layers: Some of :attr:`layers`, to draw their sites alone.

        Returns:
            The draws by site name.
        """
        layers = self._made_layers() if layers is None else layers
        return draw_sites(self, layers, self._pool, torch.Size())

    # -- the posterior by name -----------------------------------------------------------------

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The sites, those together that share their noise, each with its covariance."""
        if self._layers is None:
            raise RuntimeError(
                "The guide has no layers yet: call guide.initialize(*args) with the model's "
                "arguments, targets included."
            )
        return tuple(self._layers)

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

        Args:
            quantiles: Probabilities between 0 and 1.
            *args: Arguments of the model, which serve to initialize the guide.
            **kwargs: Keyword arguments of the model.

        Returns:
            The quantiles by site name, a new dimension in front.
        """
        self.initialize(*args, **kwargs)
        result = {}
        for site in self._sites():
            loc, scale = self.loc(site.name), self.scale(site.name)
            probabilities = torch.as_tensor(quantiles, dtype=loc.dtype, device=loc.device)
            normal = torch.special.ndtri(probabilities).reshape(-1, *(1,) * loc.dim())
            # The median of a point estimate is itself, at infinite quantiles of the noise too.
            spread = torch.where(scale > 0, scale * normal, torch.zeros_like(scale))
            result[site.name] = site.constrain(loc + spread)
        return result

    def named_rates(self, family: Family) -> Iterator[tuple[str, nn.Parameter, Rate]]:
        """Every parameter of the guide and of the model as it is now, with its learning rate.

        Args:
            family: How the optimizer scales its updates.

        Yields:
            Name, parameter, and what the optimizer is to do with it.

        Raises:
            RuntimeError: If the guide is not initialized.
        """
        find = functools.partial(parameters.named, self)
        yield from guide_rates(self._made_layers(), find, family)
        yield from model_rates(self.model, self._read_from, family)

    def named_site_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The guide's parameters in the order in which it reads them.

        Yields:
            The name of the parameter's statement, and the parameter.
        """
        for layer in self._made_layers():
            if layer.has_factor:
                yield parameters.named(self, "layer_factors", layer.sites[0])
            for site in layer.sites:
                is_point = layer.covariance is None or layer.covariance.is_held
                for kind in ("locs",) if is_point else ("locs", "factors"):
                    yield parameters.named(self, kind, site)

    def direct_route(self, model: Any) -> DirectRoute | None:
        """The way to evaluate the likelihood of a model and this guide without Pyro's traces.

        Args:
            model: A model.

        Returns:
            The route, the same at every call; None if the model is not this guide's, has other
            sites than the guide, or the guide is a part of an ``AutoGuideList``.
        """
        is_own = self.master is None and self._has_model and self.model is model
        if not is_own or self._layers is None:
            return None
        if self._route is None or self._route.model() is not model:
            self._route = find_route(self, AutoMuPNormal, model)
        return self._route

    # -- inside --------------------------------------------------------------------------------

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        trace = run_prototype(self.model, self._init_loc_fn, args, kwargs)
        if self.master is not None and self.master().prototype_trace is not None:
            self.master()._check_prototype(trace)
        weights = network_weights(trace, self._roles, self._parametrization)
        sites = find_sites(trace, weights, self._roles)
        if not sites and self.create_plates is None:
            raise RuntimeError(
                "The model has no latent variables: there is nothing to infer. A network gets "
                "random weights by RandomModule(net)."
            )
        layers = group_layers(sites, self._covariance_choice)
        for kind in parameters.KINDS:
            self._modules[kind] = nn.Module()
        with torch.no_grad():
            for layer in layers:
                make_parameters(self, layer, trace, self._init_scale)
        self._layers = layers
        self._plates = Plates(sites.values(), self._init_loc_fn)
        self._prototype_frames = {f.name: f for site in sites.values() for f in site.frames}
        self._read_from = networks_and_parameters(trace)
        if self._pending_state is not None:
            self._load_pending()

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

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Keeps parameters that come before :meth:`initialize` until it is called."""
        if self._layers is None:
            self._pending_state = strip_prefix(state_dict, prefix)
        else:
            super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def train(self, mode: bool = True) -> AutoMuPNormal:
        """Sets the mode, and lets go of the memory that training steps use again."""
        self._pool.clear()
        return super().train(mode)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self._pool.clear()  # training is over, or pauses
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for key, value in (self._pending_state or {}).items():
            destination[prefix + key] = value

    def __getstate__(self) -> dict[str, Any]:
        # The base class clears the live guide's model here; a copy leaves it as it is.
        return without_model(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> AutoMuPNormal:
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        if self._has_model:
            new.__dict__["_copied_model"] = CopiedModel(self.model, self._read_from, memo)
        return new


def _checked_roles(roles: Mapping[str, WeightRole] | None) -> dict[str, WeightRole]:
    for name, role in (roles or {}).items():
        if not isinstance(role, WeightRole):
            raise TypeError(
                f"The role of the site {name!r} must say its fans: "
                f'WeightRole.of("hidden", fan_in=..., fan_out=...), got {role!r}.'
            )
    return {
        name: role if role.layer else dataclasses.replace(role, layer=name)
        for name, role in (roles or {}).items()
    }
