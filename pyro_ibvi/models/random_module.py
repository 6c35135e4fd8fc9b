"""A network whose weights are random: any ``nn.Module`` as a Pyro model of its weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pyro
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_ibvi._util.arguments import named_arguments
from pyro_ibvi.models.admission import admit_network, admit_parametrization
from pyro_ibvi.models.choices import Prior, Priors, Stochastic, choose, match_priors
from pyro_ibvi.models.initialization import NETWORK_VALUE_KEY
from pyro_ibvi.models.padding import KEEP_KEY, KeepRow, find_padding
from pyro_ibvi.models.parameters import full_name, is_drawn, read_parameter
from pyro_ibvi.models.plates import check_plates
from pyro_ibvi.models.running import Runner
from pyro_ibvi.mup.flow import find_flow
from pyro_ibvi.mup.multipliers import (
    attention_warning,
    depth_warning,
    find_query_scales,
    tied_warning,
)
from pyro_ibvi.mup.parametrization import Parametrization
from pyro_ibvi.mup.roles import (
    NETWORK_KEY,
    WEIGHT_KEY,
    NetworkWeight,
    RoleOverrides,
    find_roles,
)


class RandomModule(PyroModule):
    r"""An unmodified ``nn.Module`` some of whose parameters are Pyro sample sites.

    Each call draws the stochastic parameters, at sites named as the parameters are, from
    :math:`\mathcal N(0, \sigma^2)` with the scale that the parametrization gives, and runs the
    network with them, see :class:`~pyro_ibvi.models.running.Runner`. Calls within one call of a
    ``PyroModule`` that holds this one share a draw. The other parameters are point-estimated. Norm
    layers' gains and biases are never stochastic unless named, nor is what requires no gradient,
    and an embedding's padding row keeps its value.

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
            after it, as in the default, the weights alone; ``"dense weights"``, those of linear
            layers that read other layers, ``"inner weights"``, those of convolutions too, and
            ``"linear+inner weights"``, those of linear layers that read data beside them;
            parameter or layer names, patterns (``["0.*"]``); module types; or a predicate on the
            parameter's name.
        prior: Overrides of the prior: one standard deviation for all sites, or a mapping from
            name or pattern to a standard deviation or to a distribution.
        roles: Overrides of roles, see :func:`~pyro_ibvi.mup.roles.find_roles`.
        example_input: A batch of inputs, a tensor, a tuple of arguments or a mapping, for networks
            whose code cannot be traced: which layers are inputs and outputs is found by running a
            copy once. It also gives parameters their shapes that have none yet.
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
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 1))
        >>> random_net = RandomModule(net, stochastic="last")
        >>> random_net(torch.zeros(5, 3)).shape, random_net.stochastic
        (torch.Size([5, 1]), ['2.weight', '2.bias'])
    """

    @named_arguments(
        elsewhere={"covariance": "it is the guide's, AutoMuPNormal(model, covariance=...)"}
    )
    def __init__(
        self,
        net: nn.Module,
        *,
        parametrization: Parametrization | None = None,
        stochastic: Stochastic = "input+output weights",
        prior: Prior | Mapping[str, Prior] | None = None,
        roles: RoleOverrides | None = None,
        example_input: Any = None,
        name: str = "",
    ) -> None:
        super().__init__(name)
        net = admit_network(net, example_input)
        # Into the dictionary of modules, past PyroModule's own bookkeeping, which would announce
        # every parameter of the network at every access.
        self._modules["net"] = net
        self.parametrization = admit_parametrization(parametrization)
        flow = find_flow(net, example_input)
        self.roles = find_roles(net, base=self.parametrization.base, overrides=roles, flow=flow)
        self.runner = Runner(net, find_query_scales(net, self.parametrization))
        self._weights: dict[str, NetworkWeight] = {}
        self.stochastic = choose(net, self.roles, stochastic)
        self._priors = self._make_priors(prior)
        self._padding = find_padding(net)
        for chosen in self.stochastic:
            net.get_parameter(chosen).requires_grad_(False)
        for warning in (
            attention_warning(net, flow, self.roles, self.parametrization),
            tied_warning(net, self.roles, roles, self.parametrization),
            depth_warning(self.roles, self.parametrization),
        ):
            if warning is not None:
                warnings.warn(warning, UserWarning, stacklevel=3)

    @property
    def network(self) -> nn.Module:
        """The copy of the network that is run.

        The values of its stochastic parameters are unused, but for
        :func:`~pyro_ibvi.init_to_network`.
        """
        net = self._modules["net"]
        assert net is not None
        return net

    @property
    def num_outputs(self) -> int:
        """Number of outputs of all layers in which the network ends, 0 where none is known."""
        ends = [r for r in self.roles.values() if r.layer_role == "output"]
        return sum(r.fans.width_out for r in ends if r.role in ("input", "output"))

    def site_name(self, parameter_name: str) -> str:
        """Name of the site or parameter statement of one of the network's parameters."""
        return full_name(self, parameter_name)

    def sample_parameters(self) -> dict[str, Tensor]:
        """Samples the stochastic parameters and reads the others, without running the network.

        Within one call of a ``PyroModule`` that holds this one they are drawn once.

        Returns:
            A tensor for each parameter of the network that is random or trained.

        Raises:
            ValueError: If a model that is no ``PyroModule`` draws them a second time.
        """
        self._pyro_context.used = True
        values: dict[str, Tensor] = {}
        for name, parameter in self.network.named_parameters():
            site_name = self.site_name(name)
            infer: Any = {WEIGHT_KEY: self._weight(name), NETWORK_KEY: self}
            if name in self._priors:
                infer[NETWORK_VALUE_KEY] = parameter
                row = self._padding.get(name)
                if row is not None:
                    infer[KEEP_KEY] = KeepRow(row, parameter.detach()[row].clone())
                values[name] = self._draw(site_name, self._priors.of(name, parameter), infer)
            elif parameter.requires_grad:
                values[name] = read_parameter(site_name, parameter, infer=infer)
        return values

    def _draw(self, site_name: str, prior: TorchDistributionMixin, infer: Any) -> Tensor:
        value: Tensor | None = self._pyro_context.get(site_name)
        if value is None:  # Pyro's samples too are drawn once in the call of a PyroModule
            if is_drawn(site_name, self):
                raise ValueError(
                    f"The network draws {site_name!r} a second time in one run of the model, "
                    f"which would give it other weights there. Draw once and run it as often as "
                    f"you like, weights = net.sample_parameters(), then net.run(weights, x); or "
                    f"write the model as a PyroModule that holds the network, self.net = net, "
                    f"whose calls share one draw."
                )
            value = pyro.sample(site_name, prior, infer=infer)
            self._pyro_context.set(site_name, value)
        return value

    def named_point_estimates(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that are trained and not random.

        Yields:
            The name of the parameter's statement, and the parameter.
        """
        for name, parameter in self.runner.named_parameters():
            if name not in self._priors and parameter.requires_grad:
                yield self.site_name(name), parameter

    def with_draws(self, draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameters as :meth:`sample_parameters` gives them, from draws that are there already.

        Nothing of Pyro's takes part, whose handlers are the same for all threads.

        Args:
            draws: The stochastic parameters by the names of their sites, with or without further
                dimensions in front.

        Returns:
            A tensor for each parameter of the network that is random or trained.
        """
        values: dict[str, Tensor] = {}
        for name, parameter in self.runner.named_parameters():
            if name in self._priors:
                values[name] = draws[self.site_name(name)]
            elif parameter.requires_grad:
                values[name] = parameter
        return values

    def named_weights(self) -> Iterator[tuple[str, nn.Parameter, NetworkWeight]]:
        """The parameters that are not random, as they are now, frozen ones included.

        Yields:
            The name of the parameter's statement, the parameter, and the weight that it is.
        """
        for name, parameter in self.network.named_parameters():
            if name not in self._priors:
                yield self.site_name(name), parameter, self._weight(name)

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
        return self.runner.run(values, args, kwargs)

    def network_values(self, values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The parameters as the network gets them, see ``attention`` of ``MaximalUpdate``.

        Args:
            values: One draw of the parameters by name.

        Returns:
            The parameters with the parametrization's multipliers.
        """
        return self.runner.network_values(values)

    def num_draw_dims(self, values: Mapping[str, Tensor]) -> int:
        """Number of dimensions of the values to the left of the parameters' own.

        Args:
            values: Parameters by name, as :meth:`sample_parameters` returns them.

        Returns:
            The number of dimensions, 0 for a single draw.
        """
        return self.runner.num_draw_dims(values)

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
            check_plates(args, kwargs)
        return self.run(values, *args, **kwargs)

    def prior(self, parameter_name: str) -> TorchDistributionMixin:
        """The prior of a stochastic parameter, at the parameter's type and device."""
        return self._priors.of(parameter_name, self.network.get_parameter(parameter_name))

    def prior_std(self, parameter_name: str) -> float:
        """Standard deviation of a stochastic parameter's prior (its mean over entries).

        Args:
            parameter_name: Name of the parameter in the network.

        Returns:
            The standard deviation, or NaN for a parameter that is not stochastic.
        """
        if parameter_name not in self._priors:
            return float("nan")
        return float(self.prior(parameter_name).stddev.mean())

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Copies a state of this module; that of the plain network is loaded before it is wrapped.

        Args:
            state_dict: The state.
            *args: As for ``torch.nn.Module``.
            **kwargs: Likewise.

        Returns:
            What torch returns.

        Raises:
            ValueError: If the state is the plain network's.
        """
        names = self.network.state_dict().keys()
        if (
            state_dict.keys()
            and state_dict.keys() <= names
            and not names & self.state_dict().keys()
        ):
            raise ValueError(
                "The state is that of the plain network: load it before it is wrapped, "
                "net.load_state_dict(state), and start at it by init_loc_fn=init_to_network."
            )
        return super().load_state_dict(state_dict, *args, **kwargs)

    def extra_repr(self) -> str:
        """The stochastic parameters."""
        return f"stochastic={self.stochastic}, parametrization={self.parametrization}"

    def _make_priors(self, prior: Prior | Mapping[str, Prior] | None) -> Priors:
        given = match_priors(prior, self.network, self.stochastic)
        priors = {name: given.get(name, self._weight(name).std()) for name in self.stochastic}
        gains = {name: 1.0 for name in priors if self.roles[name].role == "gain"}
        return Priors(priors, means=gains)

    def _weight(self, name: str) -> NetworkWeight:
        site_name = self.site_name(name)  # changes when a module takes this one in
        if site_name not in self._weights:
            # Two networks of one model may have layers of the same name, which share no noise.
            weight = self.roles[name]
            layer = replace(weight, layer=self.site_name(weight.layer))
            self._weights[site_name] = NetworkWeight(layer, self.parametrization)
        return self._weights[site_name]
