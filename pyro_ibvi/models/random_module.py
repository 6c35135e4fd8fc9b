"""A network whose weights are random: any ``nn.Module`` as a Pyro model of its weights."""

from __future__ import annotations

import copy
import fnmatch
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.func import functional_call, vmap

from pyro_ibvi.models.initialization import NETWORK_VALUE_KEY
from pyro_ibvi.models.parameters import full_name, read_parameter
from pyro_ibvi.mup.attention import attention_warning, find_query_scales, scale_queries
from pyro_ibvi.mup.layers import find_flow
from pyro_ibvi.mup.parametrization import MaximalUpdate, Parametrization
from pyro_ibvi.mup.roles import WEIGHT_KEY, NetworkWeight, RoleOverrides, WeightRole, find_roles
from pyro_ibvi.mup.tied import tied_warning

Stochastic = str | Iterable[str | type[nn.Module]] | type[nn.Module] | Callable[[str], bool]
Prior = float | TorchDistributionMixin
#: The path to a module and the name of one of its parameters.
Place = tuple[tuple[str, ...], str]
#: Layers whose fused kernels vmap cannot run.
_UNBATCHED = (nn.modules.rnn.RNNBase, nn.MultiheadAttention)
#: Plates that Pyro itself puts around a model, for draws.
_PYROS_PLATES = ("num_particles_vectorized", "_num_predictive_samples")
_LAYER_CHOICES: dict[str, tuple[str, ...]] = {
    "all": ("input", "hidden", "output"),
    "input+output": ("input", "output"),
    "input": ("input",),
    "last": ("output",),
}


class RandomModule(PyroModule):
    r"""An unmodified ``nn.Module`` some of whose parameters are Pyro sample sites.

    Each call draws the stochastic parameters, at sites named as the parameters are, from
    :math:`\mathcal N(0, \sigma^2)` with the scale that the parametrization gives, and runs the
    network with them by ``torch.func.functional_call``. The other parameters are
    point-estimated. Norm layers' gains and biases are never stochastic unless named.

    The network is copied with its values; the one that is passed stays as it is. Its point
    estimates start at those values, and parameters that require no gradient keep them. Stochastic
    parameters start where the guide says: ``AutoMuPNormal(..., init_loc_fn=init_to_network)``
    starts their means at the network's values too. Site and parameter names start with the path
    of this module in the ``PyroModule`` that holds it, so that a network kept as ``self.net`` has
    sites such as ``"net.0.weight"``.

    Args:
        net: The network. Dropout, norm layers, tied weights and compiled networks work as usual.
        parametrization: Initial scales and learning rates; ``MaximalUpdate()`` by default.
        stochastic: Which parameters are random: ``"input+output"`` (as in the paper), ``"all"``,
            ``"input"`` or ``"last"``, weights and biases of those layers; with ``" weights"``
            after it, as in the default, the weights alone; parameter or layer names, patterns
            (``["0.*"]``); module types; or a predicate on the parameter's name.
        prior: Overrides of the prior: one standard deviation for all sites, or a mapping from
            name or pattern to a standard deviation or to a distribution.
        roles: Overrides of roles, see :func:`~pyro_ibvi.mup.roles.find_roles`.
        name: Prefix of the names where no other ``PyroModule`` holds this one.

    By default biases are point-estimated: in muP a bias starts with standard deviation 1, and a
    low-rank factor learns at 1/R times the mean's rate, so that random biases feed the network
    with noise that fades slowly. On an MLP they make no difference; a small convolutional network
    learns nothing with them in epochs that are enough without (``benchmarks/biases``).

    Under :class:`~pyro_ibvi.MaximalUpdate` attention whose logits are divided by the square root
    of a head size that may grow with the width gives a warning, see its ``attention``, and so does
    an embedding that is the read-out too, see :func:`~pyro_ibvi.mup.roles.find_roles`.

    Raises:
        TypeError: If ``net`` is not an ``nn.Module``, or a class stands for an object.
        ValueError: If nothing is stochastic, a choice matches nothing, a layer is of an unknown
            kind, or a prior does not fit.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 1))
        >>> random_net = RandomModule(net, stochastic="last")
        >>> random_net(torch.zeros(5, 3)).shape, random_net.stochastic
        (torch.Size([5, 1]), ['2.weight', '2.bias'])
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        parametrization: Parametrization | None = None,
        stochastic: Stochastic = "input+output weights",
        prior: Prior | Mapping[str, Prior] | None = None,
        roles: RoleOverrides | None = None,
        name: str = "",
    ) -> None:
        super().__init__(name)
        if isinstance(net, type):
            raise TypeError(
                f"RandomModule needs an object, got the class {net.__name__}: write "
                f"{net.__name__}(...)."
            )
        if not isinstance(net, nn.Module):
            raise TypeError(f"RandomModule needs a torch.nn.Module, got {type(net).__name__}.")
        if isinstance(parametrization, type):
            raise TypeError(
                f"parametrization must be an object such as MaximalUpdate(), got the class "
                f"{parametrization.__name__}."
            )
        net = copy.deepcopy(net)
        # Into the dictionary of modules, past PyroModule's own bookkeeping, which would announce
        # every parameter of the network at every access.
        self._modules["net"] = net
        self.parametrization = MaximalUpdate() if parametrization is None else parametrization
        flow = find_flow(net)
        self.roles = find_roles(net, base=self.parametrization.base, overrides=roles, flow=flow)
        self._query_scales = find_query_scales(net, self.parametrization)
        self._weight_cache: dict[str, NetworkWeight] = {}
        self.stochastic = _choose(net, self.roles, stochastic)
        given = _match_priors(prior, net, self.stochastic)
        self._priors = {n: given.get(n, self._default_std(n)) for n in self.stochastic}
        self._is_compiled = any(hasattr(module, "_orig_mod") for module in net.modules())
        self._num_dims = {name: p.dim() for name, p in net.named_parameters()}
        self._places = _find_places(net)
        self._prior_cache: dict[str, TorchDistributionMixin] = {}
        for chosen in self.stochastic:
            net.get_parameter(chosen).requires_grad_(False)
        for warning in (
            attention_warning(net, flow, self.parametrization),
            tied_warning(self.roles, roles, self.parametrization),
        ):
            if warning is not None:
                warnings.warn(warning, UserWarning, stacklevel=2)

    @property
    def network(self) -> nn.Module:
        """The copy of the network that is run.

        The values of its stochastic parameters are unused, but for
        :func:`~pyro_ibvi.init_to_network`.
        """
        net = self._modules["net"]
        assert net is not None
        return net

    def site_name(self, parameter_name: str) -> str:
        """Name of the site or parameter statement of one of the network's parameters."""
        return full_name(self, parameter_name)

    def sample_parameters(self) -> dict[str, Tensor]:
        """Samples the stochastic parameters and reads the others, without running the network.

        Returns:
            A tensor for each parameter of the network that is random or trained.
        """
        self._pyro_context.used = True
        values: dict[str, Tensor] = {}
        for name, parameter in self.network.named_parameters():
            site_name = self.site_name(name)
            infer: Any = {WEIGHT_KEY: self._weight(name)}
            if name in self._priors:
                infer[NETWORK_VALUE_KEY] = parameter
                values[name] = pyro.sample(site_name, self._prior(name, parameter), infer=infer)
            elif parameter.requires_grad:
                values[name] = read_parameter(site_name, parameter, infer=infer)
        return values

    def named_point_estimates(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that are trained and not random.

        Yields:
            The name of the parameter's statement, and the parameter.
        """
        for name in self._num_dims:
            if name not in self._priors:
                module, key = _module_at(self.network, self._places[name][0])
                parameter = module._parameters[key]
                if parameter is not None and parameter.requires_grad:
                    yield self.site_name(name), parameter

    def run(self, values: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """Runs the network with the given parameters.

        Args:
            values: Parameters by name, as :meth:`sample_parameters` returns them. Dimensions to
                the left of a parameter's own are independent draws, for each of which the
                network is run.
            *args: Arguments of the network.
            **kwargs: Keyword arguments of the network.

        Returns:
            The network's output. With draws of shape ``(K, 1, ..., 1)`` an output of shape
            ``(batch, *event)`` becomes ``(K, 1, ..., batch, *event)``, aligned with plates.
        """
        num_extra = self.num_draw_dims(values)
        if num_extra == 0:
            return self._call(values, args, kwargs)
        output = self._run_draws(values, args, kwargs)
        return torch.utils._pytree.tree_map(lambda t: _pad(t, num_extra - 2), output)

    def network_values(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parameters as the network gets them, see ``attention`` of ``MaximalUpdate``.

        Args:
            values: One draw of the parameters by name.

        Returns:
            The parameters with the parametrization's multipliers.
        """
        return scale_queries(values, self._query_scales, self.network)

    def num_draw_dims(self, values: Mapping[str, Tensor]) -> int:
        """Number of dimensions of the values to the left of the parameters' own.

        Args:
            values: Parameters by name, as :meth:`sample_parameters` returns them.

        Returns:
            The number of dimensions, 0 for a single draw.
        """
        return max((v.dim() - self._num_dims[k] for k, v in values.items()), default=0)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Draws the stochastic parameters and runs the network.

        Args:
            *args: Arguments of the network.
            **kwargs: Keyword arguments of the network.

        Returns:
            The network's output.
        """
        values = self.sample_parameters()
        if self.num_draw_dims(values):
            _check_plates(args, kwargs)
        return self.run(values, *args, **kwargs)

    def prior_std(self, parameter_name: str) -> float:
        """Standard deviation of a stochastic parameter's prior (its mean over entries).

        Args:
            parameter_name: Name of the parameter in the network.

        Returns:
            The standard deviation, or NaN for a parameter that is not stochastic.
        """
        if parameter_name not in self._priors:
            return float("nan")
        prior = self._prior(parameter_name, self.network.get_parameter(parameter_name))
        return float(prior.stddev.mean())

    def extra_repr(self) -> str:
        """The stochastic parameters."""
        return f"stochastic={self.stochastic}, parametrization={self.parametrization}"

    def _default_std(self, name: str) -> float:
        return self._weight(name).std()

    def _weight(self, name: str) -> NetworkWeight:
        site_name = self.site_name(name)  # changes when a module takes this one in
        if site_name not in self._weight_cache:
            # Two networks of one model may have layers of the same name, which share no noise.
            weight = self.roles[name]
            layer = replace(weight, layer=self.site_name(weight.layer))
            self._weight_cache[site_name] = NetworkWeight(layer, self.parametrization)
        return self._weight_cache[site_name]

    def _prior(self, name: str, parameter: Tensor) -> TorchDistributionMixin:
        prior = self._priors[name]
        if not isinstance(prior, float):
            return prior
        cached = self._prior_cache.get(name)
        if cached is not None:
            scale = cached.base_dist.scale
            if scale.device == parameter.device and scale.dtype == parameter.dtype:
                return cached
        mean = 1.0 if self.roles[name].role == "gain" else 0.0
        # Expanded numbers: a cached prior must not hold a copy of the weights' memory.
        options: Any = {"dtype": parameter.dtype, "device": parameter.device}
        base = dist.Normal(
            torch.full((), mean, **options).expand(parameter.shape),
            torch.full((), prior, **options),
            validate_args=False,
        )
        self._prior_cache[name] = base.to_event(parameter.dim())
        return self._prior_cache[name]

    def _call(
        self, values: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        values = self.network_values(values)
        if not self._is_compiled:
            return self._call_in_place(values, args, kwargs)
        with warnings.catch_warnings():
            # The compiler looks at the gradients of all tensors, which draws do not have.
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor")
            return functional_call(self.network, values, args, kwargs)

    def _call_in_place(
        self, values: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """What ``functional_call`` does, which looks for tied parameters at each call anew."""
        net = self.network
        before = []
        try:
            for name, value in values.items():
                for place in self._places[name]:
                    module, key = _module_at(net, place)
                    before.append((module._parameters, key, module._parameters[key]))
                    module._parameters[key] = value  # type: ignore[assignment]
            return net(*args, **kwargs)
        finally:
            for parameters, key, parameter in before:
                parameters[key] = parameter

    def _run_draws(
        self, values: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        net = self.network
        shared, drawn = {}, {}
        for name, value in values.items():
            own = net.get_parameter(name).shape
            num_draws = value.numel() // own.numel()
            if value.dim() == len(own):
                shared[name] = value
            elif value.shape[0] == num_draws:
                drawn[name] = value.reshape(num_draws, *own)
            else:
                raise ValueError(
                    f"The draws of {name!r} have shape {tuple(value.shape)} for a parameter of "
                    f"shape {tuple(own)}: only the leftmost plate may hold more than one draw."
                )

        def run_one(draw: dict[str, Tensor]) -> Any:
            return self._call({**shared, **draw}, args, kwargs)

        num_draws = next(iter(drawn.values())).shape[0]
        if num_draws == 1 or not runs_batched(net):
            outputs = [run_one({k: v[i] for k, v in drawn.items()}) for i in range(num_draws)]
            return torch.utils._pytree.tree_map(lambda *ts: torch.stack(ts), *outputs)
        return vmap(run_one, randomness="different")(drawn)


def _find_places(net: nn.Module) -> dict[str, list[Place]]:
    """Where each parameter is: in several modules if they share it."""
    places: dict[Tensor, list[Place]] = {}
    for name, parameter in net.named_parameters(remove_duplicate=False):
        *path, key = name.split(".")
        places.setdefault(parameter, []).append((tuple(path), key))
    return {name: places[parameter] for name, parameter in net.named_parameters()}


def _module_at(net: nn.Module, place: Place) -> tuple[nn.Module, str]:
    module = net
    for part in place[0]:
        module = module._modules[part]  # type: ignore[assignment]
    return module, place[1]


def _check_plates(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuses a plate over the data, in which each datum would have weights of its own."""
    leaves = torch.utils._pytree.tree_leaves((args, kwargs))
    batch_sizes = {leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()}
    for handler in poutine.runtime._PYRO_STACK:
        if not isinstance(handler, pyro.plate) or handler.name in _PYROS_PLATES:
            continue
        if handler.dim == -1 and handler.subsample_size in batch_sizes:
            raise ValueError(
                f"The network is called inside of the plate {handler.name!r}, where each of the "
                f"{handler.subsample_size} data would draw weights of its own. Call it before "
                f"`with pyro.plate(...)`."
            )


def _choose(
    net: nn.Module, weights: Mapping[str, WeightRole], stochastic: Stochastic
) -> list[str]:
    """Names of the parameters that ``stochastic`` chooses."""
    ends = stochastic.removesuffix(" weights") if isinstance(stochastic, str) else None
    if ends in _LAYER_CHOICES:
        roles = _LAYER_CHOICES[ends]
        left_out = ("gain",) if ends == stochastic else ("gain", "bias")
        chosen = [
            n for n, w in weights.items() if w.layer_role in roles and w.role not in left_out
        ]
    elif callable(stochastic) and not isinstance(stochastic, type):
        chosen = [name for name in weights if stochastic(name)]
    else:
        chosen = []
        for choice in _checked_choices(stochastic):
            matched = [name for name in weights if _is_chosen(net, name, choice)]
            if not matched:
                raise ValueError(
                    f"stochastic names {choice!r}, which matches no parameter; choose "
                    f"{sorted(_LAYER_CHOICES)} or among the parameters {list(weights)}."
                )
            chosen += matched
    if not chosen:
        raise ValueError(
            f"stochastic={stochastic!r} chooses none of the parameters {list(weights)}, so "
            f"there is nothing to infer."
        )
    return [name for name in weights if name in set(chosen)]


def _checked_choices(stochastic: Any) -> list[str | type[nn.Module]]:
    choices = [stochastic] if isinstance(stochastic, (str, type)) else stochastic
    if not isinstance(choices, Iterable) or not all(isinstance(c, (str, type)) for c in choices):
        raise TypeError(
            f"stochastic must be one of {sorted(_LAYER_CHOICES)}, names or types of layers, or a "
            f"predicate on names; got {stochastic!r}."
        )
    return list(choices)


def _is_chosen(net: nn.Module, name: str, choice: str | type[nn.Module]) -> bool:
    layer = name.rpartition(".")[0]
    if isinstance(choice, type):
        return isinstance(net.get_submodule(layer), choice)
    return fnmatch.fnmatchcase(name, choice) or fnmatch.fnmatchcase(layer, choice)


def _match_priors(
    prior: Prior | Mapping[str, Prior] | None, net: nn.Module, names: list[str]
) -> dict[str, Prior]:
    """The overriding prior of each site that has one, checked."""
    if prior is None:
        return {}
    if not isinstance(prior, Mapping):
        prior = {"*": prior}
    matched: dict[str, Prior] = {}
    for pattern, value in prior.items():
        if not isinstance(pattern, str):
            raise TypeError(
                f"prior goes from names or patterns to priors; got the key {pattern!r}."
            )
        hits = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not hits:
            raise ValueError(f"prior names {pattern!r}, which matches none of the sites {names}.")
        for name in hits:
            matched.setdefault(name, _check_prior(name, value, net.get_parameter(name).shape))
    return matched


def _check_prior(name: str, prior: object, shape: torch.Size) -> Prior:
    if isinstance(prior, (int, float)) and not isinstance(prior, bool):
        if not 0 < prior < float("inf"):
            raise ValueError(
                f"The prior standard deviation of {name!r} must be positive and finite, "
                f"got {prior}."
            )
        return float(prior)
    if not isinstance(prior, TorchDistributionMixin):
        raise ValueError(
            f"The prior of {name!r} must be a standard deviation or a Pyro distribution, "
            f"got {prior!r}."
        )
    if prior.batch_shape or prior.event_shape != shape:
        raise ValueError(
            f"The prior of {name!r} has batch shape {tuple(prior.batch_shape)} and event shape "
            f"{tuple(prior.event_shape)}, expected () and {tuple(shape)}: write "
            f"dist.Normal(0., 1.).expand({list(shape)}).to_event({len(shape)})."
        )
    return prior


def runs_batched(net: nn.Module) -> bool:
    """Whether vmap can run a network with many draws at once.

    Args:
        net: The network, in the mode in which it will run.

    Returns:
        Whether it can; otherwise the network runs draw by draw.
    """
    for module in net.modules():
        if isinstance(module, _UNBATCHED) or hasattr(module, "_orig_mod"):
            return False
        # Running statistics are updated in place, draw after draw.
        is_norm = isinstance(module, nn.modules.batchnorm._NormBase)
        if is_norm and module.training and module.track_running_stats:
            return False
    return True


def _pad(output: Any, num_inner: int) -> Any:
    """Puts singleton dimensions for inner plates between the draws and the batch."""
    if not isinstance(output, Tensor) or num_inner < 1:
        return output
    return output.reshape(output.shape[0], *(1,) * num_inner, *output.shape[1:])
