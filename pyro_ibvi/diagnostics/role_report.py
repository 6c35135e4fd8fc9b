"""A table of what each parameter of a network is, with its initial scale and learning rates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from pyro_ibvi._util.tables import table_lines
from pyro_ibvi.models.random_module import RandomModule
from pyro_ibvi.mup.multipliers import logit_divisor
from pyro_ibvi.mup.roles import NetworkWeight


@dataclass(frozen=True)
class RoleReport(Mapping[str, NetworkWeight]):
    """Roles of a network's parameters by site or parameter name; prints as a table.

    Attributes:
        weights: The weights by name, in the order of the network's parameters.
        stochastic: Names of those that are random.
        stds: Standard deviations of the random ones' priors.
    """

    weights: Mapping[str, NetworkWeight]
    stochastic: tuple[str, ...]
    stds: Mapping[str, float]

    def __getitem__(self, name: str) -> NetworkWeight:
        return self.weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)

    def __str__(self) -> str:
        header = ("parameter", "role", "fan_in", "width_out", "prior std", "SGD rate", "Adam rate")
        rows: list[tuple[str, ...]] = [header]
        for name, weight in self.weights.items():
            fans = weight.weight.fans
            std = f"{self.stds[name]:.4g}" if name in self.stochastic else "point"
            rates = [f"{weight.rate(family):.4g}" for family in ("sgd", "adam")]
            role = weight.weight.role + " (tied)" * weight.weight.tied
            rows.append((name, role, str(fans.fan_in), str(fans.width_out), std, *rates))
        return "\n".join(table_lines(rows) + self._notes())

    def _notes(self) -> list[str]:
        """What the forward pass must do for weights that are two things at once."""
        divisors = {
            name: logit_divisor(weight.weight, weight.parametrization)
            for name, weight in self.weights.items()
        }
        return [
            f"{name} is the read-out too: the network must divide its logits by {divisor:g}."
            for name, divisor in divisors.items()
            if divisor != 1
        ]


def roles(thing: Any, *, example_input: Any = None) -> RoleReport:
    """Says what each parameter of a network is, how it starts and how fast its mean learns.

    Args:
        thing: A :class:`RandomModule`, a model or another module that holds some, a guide of
            such a model, or a plain network, which is looked at as ``RandomModule(network)``.
        example_input: A batch of inputs for a plain network whose code cannot be traced, see
            :class:`RandomModule`.

    Returns:
        A mapping from name to role that prints as a table.

    Raises:
        TypeError: If there is no network to be found.

    Example:
        >>> print(roles(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))))
        parameter  role    fan_in  width_out  prior std  SGD rate  Adam rate
        0.weight   input   3       8          0.5774     2.667     0.3333
        0.bias     bias    3       8          point      8         1
        2.weight   output  8       1          0.125      0.125     0.125
        2.bias     bias    8       1          point      1         1
    """
    thing = getattr(thing, "model", thing)
    if not isinstance(thing, nn.Module):
        raise TypeError(
            f"roles() looks for networks in a module or in the guide of one, got "
            f"{type(thing).__name__}: pass the RandomModule itself."
        )
    networks = [module for module in thing.modules() if isinstance(module, RandomModule)]
    weights, stochastic, stds = {}, [], {}
    for network in networks or [RandomModule(thing, example_input=example_input)]:
        for name, role in network.roles.items():
            full_name = network.site_name(name)
            weights[full_name] = NetworkWeight(role, network.parametrization)
            if name in network.stochastic:
                stochastic.append(full_name)
                stds[full_name] = network.prior_std(name)
    return RoleReport(weights, tuple(stochastic), stds)
