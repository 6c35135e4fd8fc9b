"""A guide's latent sites: what each is, which share noise, and which covariance they have."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.transforms import (
    AffineTransform,
    ComposeTransform,
    Transform,
    identity_transform,
)

from pyro_ibvi._util.names import assigned
from pyro_ibvi.guides.covariance import Covariance, Diagonal, LowRank
from pyro_ibvi.models.padding import KeepRow
from pyro_ibvi.mup.roles import NetworkWeight

CovarianceChoice = Covariance | Mapping[str, Covariance | None] | None

#: Rank for networks' weights: a factor of rank 100 learns ten times as slowly, which is too slow
#: for tables (``benchmarks/evidence``), and costs up to 1.5 times as much.
DEFAULT_RANK = 10

#: What a guide gives to networks' weights, and to all other sites, unless it is told otherwise.
DEFAULT_COVARIANCE: Covariance = LowRank(DEFAULT_RANK)
DEFAULT_FOR_OTHERS: Covariance = Diagonal()


@dataclass
class Site:
    """A latent site; it holds shapes and the support, no data.

    Attributes:
        name: Name of the site.
        event_dim: Number of event dimensions of the unconstrained value.
        value_event_dim: Number of event dimensions of the value.
        support: Support of the prior.
        frames: Plates around the site.
        weight: The network weight that the site is, if it is one.
        keep: Puts back what the site keeps whatever is drawn, an embedding's padding row.
    """

    name: str
    event_dim: int
    value_event_dim: int
    support: constraints.Constraint
    frames: list[Any]
    weight: NetworkWeight | None
    keep: KeepRow | None = None

    @functools.cached_property
    def path(self) -> tuple[list[str], str]:
        """Modules that lead to the site's parameters, and their name there."""
        *path, last = self.name.split(".")
        return path, last

    @functools.cached_property
    def is_real(self) -> bool:
        """Whether the unconstrained value is the value itself, as networks' weights are."""
        return is_real(self.support)

    def transform(self) -> Transform | None:
        """The map from the unconstrained value to the site's, or None for the identity."""
        if self.is_real:
            return self.keep
        transform = biject_to(self.support)
        if transform == identity_transform:
            return None
        if isinstance(transform, ComposeTransform):
            # The positive numbers come as exp and then + 0, which is exp.
            parts = [part for part in transform.parts if part != AffineTransform(0.0, 1.0)]
            return parts[0] if len(parts) == 1 else transform
        return transform

    def constrain(self, value: Tensor) -> Tensor:
        """The site's value for an unconstrained one."""
        transform = self.transform()
        return value if transform is None else transform(value)

    def direction(self) -> Tensor | int | None:
        """Whether entries of the value grow with the unconstrained ones, as below a bound not.

        Returns:
            1 or -1, for each entry or for all; None if entries depend on several others.
        """
        transform = biject_to(self.support)
        try:
            sign: Tensor | int = transform.sign
        except NotImplementedError:
            return None
        return sign

    def unconstrain(self, value: Tensor) -> Tensor:
        """The unconstrained value for the site's."""
        transform = self.transform()
        return value if transform is None else transform.inv(value)


@dataclass
class Layer:
    """Sites that share their noise, or a site of its own; no covariance is a point estimate.

    Attributes:
        covariance: The covariance.
        sites: The sites.
        has_factor: Whether the layer has a factor of its own, beside those of its sites.
    """

    covariance: Covariance | None
    sites: list[Site] = field(default_factory=list)
    has_factor: bool = False

    @property
    def name(self) -> str:
        """Name of the first site, under which the layer's own factor stands."""
        return self.sites[0].name

    def init_factors(self, scales: Sequence[Tensor]) -> tuple[list[Tensor], Tensor | None]:
        """The covariance's factors at the start.

        Args:
            scales: Standard deviations, one tensor per site.

        Returns:
            The sites' factors, and the layer's if the covariance has one.

        Raises:
            ValueError: If the sites cannot share the covariance.
        """
        assert self.covariance is not None
        try:
            layer_factor = self.covariance.init_layer_factor(scales)
            if layer_factor is not None:
                self._check_same_first_dimension()
            roles = [None if site.weight is None else site.weight.weight for site in self.sites]
            return self.covariance.init_factors(scales, roles), layer_factor
        except ValueError as error:
            names = [site.name for site in self.sites]
            raise ValueError(f"The sites {names} cannot have {self.covariance}. {error}") from None

    def _check_same_first_dimension(self) -> None:
        kinds = {
            site.weight is not None and site.weight.weight.inputs_first for site in self.sites
        }
        if len(kinds) > 1:
            raise ValueError(
                "The first dimension is the layer's inputs in one of them and its outputs in "
                "another: give one of them another covariance, or leave it a point estimate."
            )


def group_layers(
    sites: Mapping[str, Site],
    choice: CovarianceChoice,
    weights: Mapping[str, NetworkWeight | None],
) -> list[Layer]:
    """Gives each site its covariance and puts sites that share noise together.

    Args:
        sites: Latent sites by name.
        choice: The guide's covariance argument.
        weights: The network weights among the model's sites and parameters, by name.

    Returns:
        The layers, in the order of their first sites.

    Raises:
        ValueError: If the choice leaves a site out, names one that is not there, or gives a
            covariance that does not go with a plate.
    """
    keys: dict[str, str] = {}
    if isinstance(choice, Mapping):
        keys = assigned(choice, sites, lambda name: _roles(sites[name]))
        _check_used(sites, choice, weights)
    layers: dict[Any, Layer] = {}
    kinds: list[Covariance] = []
    turns: Counter[int] = Counter()  # a network drawn in several scopes has as many sets of sites
    for site in sites.values():
        covariance = _covariance_of(site, choice, keys.get(site.name))
        if covariance is not None and covariance.shares_noise and site.frames:
            raise ValueError(
                f"The site {site.name!r} is inside the plate {site.frames[0].name!r}, whose "
                f"elements are independent, so {covariance} cannot share noise over it: choose "
                f'covariance={{"{site.name}": Diagonal(), ...}}.'
            )
        key: Any = site.name
        if site.weight is not None and covariance is not None and covariance.shares_noise:
            if covariance not in kinds:
                kinds.append(covariance)
            key = (site.weight.weight.layer, kinds.index(covariance), turns[id(site.weight)])
            turns[id(site.weight)] += 1
        layers.setdefault(key, Layer(covariance)).sites.append(site)
    return list(layers.values())


def check_covariance(choice: CovarianceChoice) -> None:
    """Checks the type of the guide's covariance argument.

    Args:
        choice: The argument.

    Raises:
        TypeError: If it is not a covariance or a mapping to such.
    """
    pairs = choice.items() if isinstance(choice, Mapping) else [("*", choice)]
    for key, value in pairs:
        if not isinstance(key, str):
            raise TypeError(
                f"covariance goes from roles, site names or patterns to covariances; got the key "
                f"{key!r}."
            )
        if value is not None and (isinstance(value, type) or not hasattr(value, "init_factors")):
            raise TypeError(
                f"Expected a covariance such as Diagonal() or LowRank(10), or a mapping from "
                f"roles or site names to such; got {value!r}."
            )


def _check_used(
    sites: Mapping[str, Site],
    choice: Mapping[str, Covariance | None],
    weights: Mapping[str, NetworkWeight | None],
) -> None:
    """Refuses a choice for what is not there, or is there and not random."""
    fixed = {name: w for name, w in weights.items() if w is not None and name not in sites}
    for pattern in choice:
        if assigned([pattern], sites, lambda name: _roles(sites[name])):
            continue
        meant = [*assigned([pattern], fixed, lambda name: (fixed[name].weight.layer_role,))]
        if meant:
            raise ValueError(
                f"covariance names {pattern!r}, which are parameters that are not random here: "
                f"{meant}. Make them so, RandomModule(net, stochastic=...) or "
                f"VariationalNetwork(net, likelihood, stochastic=...): 'linear+inner weights' "
                f"are those of all linear layers and of convolutions behind the first, 'all' is "
                f"all. Random are {list(sites)}."
            )
        raise ValueError(
            f"covariance names {pattern!r}, which matches no site: use a role among "
            f"{sorted({str(_role(s)) for s in sites.values()})} or a name or pattern "
            f"for {list(sites)}."
        )


def _covariance_of(site: Site, choice: CovarianceChoice, key: str | None) -> Covariance | None:
    """The covariance of a site, where a mapping has it under a key."""
    if choice is None:
        return DEFAULT_FOR_OTHERS if site.weight is None else DEFAULT_COVARIANCE
    if not isinstance(choice, Mapping):
        # Plates hold independent elements: their sites are mean-field whatever networks use.
        return choice if not (choice.shares_noise and site.frames) else Diagonal()
    if key is not None:
        return choice[key]
    raise ValueError(
        f"covariance says nothing of the site {site.name!r} (role {_role(site)}): add it, or a "
        f'pattern such as "*": Diagonal().'
    )


def _role(site: Site) -> str | None:
    return None if site.weight is None else site.weight.weight.layer_role


def _roles(site: Site) -> tuple[str, ...]:
    role = _role(site)
    return () if role is None else (role,)


def is_real(support: constraints.Constraint) -> bool:
    """Whether a support is all real numbers, entry by entry.

    Args:
        support: The support.

    Returns:
        Whether it is.
    """
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return isinstance(support, type(constraints.real))
