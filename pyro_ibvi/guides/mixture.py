"""A guide that is a mixture: several Gaussians over the weights of one network."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NoReturn

import torch
from pyro.infer.autoguide.initialization import init_to_sample
from pyro.nn import PyroModule
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor, nn

from pyro_ibvi._util.arguments import named_arguments
from pyro_ibvi._util.checks import check_positive_int
from pyro_ibvi._util.names import chosen, chosen_by_any
from pyro_ibvi._util.random_state import thread_generator
from pyro_ibvi.guides import parameters
from pyro_ibvi.guides.base import MuPGuide
from pyro_ibvi.guides.direct import DirectRoute, find_route
from pyro_ibvi.guides.normal import AutoMuPNormal
from pyro_ibvi.guides.saving import without_model
from pyro_ibvi.guides.sites import Layer
from pyro_ibvi.mup.parametrization import Family, Rate


class AutoMuPMixture(PyroModule, MuPGuide):
    r"""Mixture of Gaussians with equal weights, for implicit-bias variational inference.

    .. math:: q(w) = \frac{1}{K} \sum_{k=1}^K q_k(w), \qquad
        q_k = \mathcal{N}(\text{loc}_k, S_k S_k^\top).

    Each component is an :class:`~pyro_ibvi.AutoMuPNormal` of the same model. What is random has
    means of its own in each, but for the sites of ``shared``; the parameters that are not random
    are the model's point estimates, which all share too. Where the last layers are random, or the
    others are shared, the components are an ensemble of networks with a common trunk. A step
    takes the expected loss of the mixture with a draw of each component,

    .. math:: \mathbb{E}_q[\ell] = \frac{1}{K} \sum_k \mathbb{E}_{w \sim q_k}[\ell(w)].

    What the components share runs once for all of them, up to the first layer that they do not
    share; the others run for each. A network that :func:`torch.func.vmap` cannot run, such as one
    with BatchNorm in training, runs whole for each.

    Where a step goes by Pyro's traces (a hand-written model, a KL term), it draws one component
    for the whole batch. The density of a draw is then that of its component. So an ELBO is a lower
    bound of the mixture's, by the information that a draw has on its component, and importance
    weights are those of stratified proposals, without bias.

    Args:
        model: A Pyro model.
        num_components: Number of components ``K``.
        shared: Names or patterns of sites whose means and factors all components have in common.
        init_loc_fn: Start of the means, called for each component. Where that gives the same each
            time (:func:`~pyro_ibvi.init_to_network`), a component starts at a draw of its own
            around it, for components that are equal stay equal.
        **options: The other options of :class:`~pyro_ibvi.AutoMuPNormal`, the same for all.

    Raises:
        TypeError: If the model or an option is of the wrong kind.
        ValueError: If the number is not positive, an option does not fit the model, or nothing
            has that name that is to be shared.

    References:
        Lee, Purushwalkam, Cogswell, Crandall, Batra, Why M heads are better than one: training a
        diverse ensemble of deep networks, arXiv:1511.06314, on ensembles with a common trunk.

    Example:
        >>> from pyro_ibvi import Categorical, RandomModule, SupervisedModel
        >>> net = nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Linear(16, 3))
        >>> model = SupervisedModel(RandomModule(net, stochastic="last"), Categorical())
        >>> guide = AutoMuPMixture(model, num_components=2)
        >>> guide.draw(6)["net.2.weight"].shape, guide.loc("net.2.weight").shape
        (torch.Size([6, 3, 16]), torch.Size([2, 3, 16]))
    """

    @named_arguments(passed_to=AutoMuPNormal, elsewhere={"rank": "write covariance=LowRank(10)"})
    def __init__(
        self,
        model: Callable[..., Any],
        num_components: int = 4,
        *,
        shared: Collection[str] = (),
        init_loc_fn: Callable[..., Any] = init_to_sample,
        **options: Any,
    ) -> None:
        super().__init__()
        check_positive_int("num_components", num_components)
        guides = [
            AutoMuPNormal(model, init_loc_fn=init_loc_fn, **options) for _ in range(num_components)
        ]
        self._parts: Any = PyroModule[nn.ModuleList](guides)  # type: ignore[arg-type]
        self._share = (shared,) if isinstance(shared, str) else tuple(shared)
        self._shared: set[str] | None = None
        self._route: DirectRoute | None = None
        if guides[0].is_initialized:
            self._part_and_share()

    # -- the mixture ---------------------------------------------------------------------------

    @property
    def components(self) -> tuple[AutoMuPNormal, ...]:
        """The components."""
        return tuple(self._parts)

    @property
    def model(self) -> Callable[..., Any]:
        """The model."""
        return self.components[0].model

    @property
    def layers(self) -> tuple[Layer, ...]:
        """A component's sites, those together that share their noise, each with its covariance."""
        return self.components[0].layers

    def loc(self, name: str) -> Tensor:
        """Means of a site in unconstrained space, ``(K, *shape)``; a shared site has one."""
        return self._of_each(name, [component.loc(name) for component in self.components])

    def factor(self, name: str) -> Tensor:
        """Factors ``S`` of a site's covariance, ``K`` of them; a shared site has one."""
        return self._of_each(name, [component.factor(name) for component in self.components])

    def scale(self, name: str) -> Tensor:
        """Marginal standard deviations of a site in each component, as :meth:`loc` its means."""
        return self._of_each(name, [component.scale(name) for component in self.components])

    def covariance(self, *names: str) -> Tensor:
        """Covariance matrix of sites of one layer in each component, as :meth:`loc` its means."""
        found = [component.covariance(*names) for component in self.components]
        return self._of_each(names[0], found)

    def median(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuses what a mixture has in no closed form.

        Args:
            *args: As for :class:`AutoMuPNormal`.
            **kwargs: Likewise.

        Raises:
            ValueError: In any case.
        """
        raise ValueError(
            f"A mixture of {len(self.components)} components has no median in closed form: take "
            f"that of draws, guide.draw(1000)[name].median(0).values, or of one component, "
            f"guide.components[0].median()."
        )

    def quantiles(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuses what a mixture has in no closed form.

        Args:
            *args: As for :class:`AutoMuPNormal`.
            **kwargs: Likewise.

        Raises:
            ValueError: In any case.
        """
        raise ValueError(
            f"A mixture of {len(self.components)} components has no quantiles in closed form: "
            f"take those of draws, torch.quantile(guide.draw(1000)[name], q, 0), or of one "
            f"component, guide.components[0].quantiles(q)."
        )

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        """Finds the model's latent sites and makes the parameters, unless that is done.

        Args:
            *args: Arguments of the model, targets included.
            **kwargs: Keyword arguments of the model.
        """
        if self._shared is None:
            for component in self.components:
                component.initialize(*args, **kwargs)
            self._part_and_share()

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draws a component, and every latent site from it.

        Args:
            *args: Arguments of the model.
            **kwargs: Keyword arguments of the model.

        Returns:
            The draws by site name.

        Raises:
            NotImplementedError: If ``Predictive(parallel=True)`` asks for many draws at once.
        """
        if any(getattr(h, "name", None) == "_num_predictive_samples" for h in _PYRO_STACK):
            raise NotImplementedError(
                "Predictive(parallel=True) takes all draws from one component of a mixture: write "
                "parallel=False, or posterior_samples=guide.draw(num_samples) instead of guide."
            )
        self.initialize(*args, **kwargs)
        draws: dict[str, Tensor] = self._parts[self._any()](*args, **kwargs)
        return draws

    def draw(self, num_samples: int) -> dict[str, Tensor]:
        """Draws every global site many times, from the components in turn.

        The one to begin with is drawn. The components' shares differ by one draw at most.

        Args:
            num_samples: Number of draws.

        Returns:
            The draws by site name, the draws' dimension in front.

        Raises:
            ValueError: If the number is no positive whole one.
        """
        check_positive_int("num_samples", num_samples)
        return self._draw_from(self._any(), num_samples)

    def draw_parts(self, num_samples: int, size: int) -> Iterator[dict[str, Tensor]]:
        """Draws as :meth:`draw` does, part by part: the components go on taking turns.

        Args:
            num_samples: Number of draws in all parts together.
            size: Number of draws in a part, but for the last.

        Yields:
            The draws of a part.
        """
        first = self._any()
        for start in range(0, num_samples, size):
            yield self._draw_from(first + start, min(size, num_samples - start))

    @torch.no_grad()
    def _draw_from(self, first: int, num_samples: int) -> dict[str, Tensor]:
        """Draws from the components in turn, beginning at one."""
        components = self.components
        result: dict[str, Tensor] = {}
        for i in range(min(num_samples, len(components))):
            own = slice(i, num_samples, len(components))
            size = len(range(num_samples)[own])
            for name, draws in components[(first + i) % len(components)].draw(size).items():
                if name not in result:
                    result[name] = draws.new_empty(num_samples, *draws.shape[1:])
                result[name][own] = draws
        return result

    def rsample(self, layers: Sequence[Layer] | None = None) -> dict[str, Tensor]:
        """Draws every global site once from each component, differentiably.

        Args:
            layers: Some of :attr:`layers`, to draw their sites alone.

        Returns:
            The draws by site name, the components' dimension in front; a shared site has one draw.
        """
        names = None if layers is None else {layer.name for layer in layers}
        draws = [
            component.rsample(
                [own for own in component.layers if names is None or own.name in names]
            )
            for component in self.components
        ]
        return {name: self._of_each(name, [draw[name] for draw in draws]) for name in draws[0]}

    # -- what training asks --------------------------------------------------------------------

    def named_rates(self, family: Family) -> Iterator[tuple[str, nn.Parameter, Rate]]:
        """Every parameter of the components, and those of the model once, with its learning rate.

        Args:
            family: How the optimizer scales its updates.

        Yields:
            Name, parameter, and what the optimizer is to do with it.

        Raises:
            RuntimeError: If the guide is not initialized.
        """
        seen: set[nn.Parameter] = set()
        for component in self.components:
            for name, parameter, rate in component.named_rates(family):
                if parameter not in seen:
                    seen.add(parameter)
                    yield name, parameter, rate

    def named_site_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The components' parameters in the order in which the guide reads them.

        Yields:
            The name of the parameter's statement, and the parameter.
        """
        for component in self.components:
            yield from component.named_site_parameters()

    def touch(self) -> Tensor:
        """Zero by way of every parameter.

        A trace leaves out all components but one, and ``DistributedDataParallel`` waits for the
        gradient of each parameter.

        Returns:
            The number 0.
        """
        return torch.stack([0.0 * parameter.sum() for parameter in self.parameters()]).sum()

    def direct_route(self, model: Any) -> DirectRoute | None:
        """The way to evaluate the likelihood of a model and this guide without Pyro's traces.

        Args:
            model: A model.

        Returns:
            The route, the same at every call; None where a component has none.
        """
        if any(component.direct_route(model) is None for component in self.components):
            return None
        if self._route is None or self._route.model() is not model:
            self._route = find_route(self, AutoMuPMixture, model)
        return self._route

    # -- inside --------------------------------------------------------------------------------

    @property
    def _model(self) -> Any:
        """What tells that the guide was unpickled, without its model."""
        return self.components[0]._model

    def _of_each(self, name: str, values: list[Tensor]) -> Tensor:
        """One component's values beside the other's, or those of a site that they share."""
        return values[0] if name in (self._shared or ()) else torch.stack(values)

    @torch.no_grad()
    def _part_and_share(self) -> None:
        """Lets components start apart, and gives all the same parameters of shared sites."""
        first, *others = self.components
        sites = {site.name: site for layer in first.layers for site in layer.sites}
        unknown = [choice for choice in self._share if not chosen(choice, sites)]
        if unknown:
            raise ValueError(f"shared names {unknown}, but the latent sites are {list(sites)}.")
        self._shared = chosen_by_any(self._share, sites)
        for component in others:
            draws: dict[str, Tensor] = {}
            for name, site in sites.items():
                loc = component.loc(name)
                if name in self._shared:
                    parameters.share(first, component, site)
                elif torch.equal(loc, first.loc(name)):
                    draws = draws or component.rsample()
                    loc.copy_(site.unconstrain(draws[name]))
        self._begin_past()

    def _any(self) -> int:
        generator = thread_generator(torch.device("cpu"))
        return int(torch.randint(len(self.components), (), generator=generator))

    def __getstate__(self) -> dict[str, Any]:
        return without_model(self)
