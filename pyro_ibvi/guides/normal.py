"""The guide: a Gaussian per layer, started at the prior, with width-aware learning rates."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro.infer.autoguide.initialization import init_to_sample
from torch import Tensor, nn

from pyro_ibvi._util.arguments import named_arguments
from pyro_ibvi._util.checks import check_positive_int, is_number
from pyro_ibvi._util.handlers import HANDLERS
from pyro_ibvi.guides import parameters
from pyro_ibvi.guides.direct import DirectRoute, find_route
from pyro_ibvi.guides.drawing import draw_sites, sample_layer
from pyro_ibvi.guides.layered import LayeredGuide
from pyro_ibvi.guides.prototype import (
    check_model,
    checked_roles,
    data_free_prior,
    find_sites,
    network_weights,
    networks_and_parameters,
    run_prototype,
    takes_no_arguments,
)
from pyro_ibvi.guides.rates import guide_rates, model_rates
from pyro_ibvi.guides.rows import Batch, Plates
from pyro_ibvi.guides.sites import CovarianceChoice, Layer, check_covariance, group_layers
from pyro_ibvi.guides.start import make_parameters
from pyro_ibvi.models.admission import admit_parametrization
from pyro_ibvi.mup.parametrization import Family, Parametrization, Rate
from pyro_ibvi.mup.roles import WeightRole


class AutoMuPNormal(LayeredGuide):
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
            ``LowRank(10)`` for networks' weights, ``Diagonal()`` for every other site.
        parametrization: Rules the learning rates of the sites that ``roles`` names; networks in
            a :class:`~pyro_ibvi.RandomModule` bring their own.
        init_loc_fn: Start of ``loc``, as in Pyro's autoguides;
            :func:`~pyro_ibvi.init_to_network` for a network that is trained already.
        init_scale: Start of the standard deviations, in units of the prior's. Implicit
            regularization is about 1. As a drop-in for `AutoNormal` on a hand-written model pass
            0.1: a Bayesian regression then trains in as many steps, and in ten times as many at 1.
            With priors such as ``Normal(0, 100)`` pass ``init_loc_fn=init_to_feasible`` as well.
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

    @named_arguments(elsewhere={"rank": "write covariance=LowRank(10)"})
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
        if not is_number(init_scale) or not 0 < float(init_scale) < math.inf:
            raise ValueError(f"init_scale must be positive and finite, got {init_scale!r}.")
        if not callable(init_loc_fn):
            raise TypeError(
                f"init_loc_fn must be a function of a site such as init_to_sample, got "
                f"{init_loc_fn!r}."
            )
        check_covariance(covariance)
        super().__init__(model, create_plates=create_plates)
        self._covariance_choice = covariance
        self._parametrization = admit_parametrization(parametrization)
        self._init_loc_fn = init_loc_fn
        self._init_scale = float(init_scale)
        self._roles = checked_roles(roles)
        self._route: DirectRoute | None = None
        has_prior = data_free_prior(model) is not None
        if has_prior or takes_no_arguments(model):
            self.initialize()

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
        model = self.model if self._has_model else None
        if self.master is not None:
            plates = self._create_plates(*args, **kwargs)
            with self._looking():
                return self._plates.check_rows(model, args, kwargs, plates)
        created = () if self.create_plates is None else self.create_plates(*args, **kwargs)
        created = (created,) if isinstance(created, pyro.plate) else tuple(created)
        known = {plate.name: plate for plate in created}
        with self._looking():
            batch = self._plates.open(model, args, kwargs, known)
        self.plates = batch.plates
        return batch

    @torch.no_grad()
    def draw(self, num_samples: int) -> dict[str, Tensor]:
        """Draws every global site many times at once, outside of any Pyro model.

        Args:
            num_samples: Number of draws.

        Returns:
            The draws by site name, the draws' dimension in front.

        Raises:
            ValueError: If the number is no positive whole one.
        """
        check_positive_int("num_samples", num_samples)
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

    @property
    def components(self) -> tuple[AutoMuPNormal, ...]:
        """The Gaussians of which this guide is the mixture: itself alone."""
        return (self,)

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
        with self._looking():
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
        layers = group_layers(sites, self._covariance_choice, weights)
        for kind in parameters.KINDS:
            self._modules[kind] = nn.Module()
        with torch.no_grad():
            make_parameters(self, layers, trace, self._init_scale)
        self._layers = layers
        self._plates = Plates(sites.values(), self._init_loc_fn)
        self._prototype_frames = {f.name: f for site in sites.values() for f in site.frames}
        self._read_from = networks_and_parameters(trace)
        self._begin_past()
        if self._pending_state is not None:
            self._load_pending()
