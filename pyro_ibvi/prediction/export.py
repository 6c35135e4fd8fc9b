"""Networks to serve elsewhere: plain modules of torch that need nothing of this package to run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_ibvi._util.checks import check_positive_int
from pyro_ibvi._util.network_copies import copy_network, unwrap
from pyro_ibvi.guides import MuPGuide
from pyro_ibvi.models.likelihoods import Likelihood
from pyro_ibvi.models.own_inputs import copied
from pyro_ibvi.models.supervised import SupervisedModel
from pyro_ibvi.pairing.belonging import check_pair
from pyro_ibvi.pairing.past import warn_of_one_left_behind
from pyro_ibvi.prediction.chunking import draws_to_make
from pyro_ibvi.prediction.draws import draw_parts
from pyro_ibvi.prediction.moments import whole_moments
from pyro_ibvi.prediction.seeds import seeded_numbers


@torch.no_grad()
def mean_network(model: SupervisedModel, guide: MuPGuide) -> nn.Module:
    """The network with each weight at its mean: one forward pass, and no word of uncertainty.

    Its outputs are those of the network itself, logits for classes.

    Args:
        model: The model.
        guide: Its guide.

    Returns:
        A plain network in evaluation mode that shares nothing with the model.

    Raises:
        ValueError: If the guide is a mixture.

    Example:
        >>> from pyro_ibvi import AutoMuPNormal, Normal, RandomModule
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> model = SupervisedModel(RandomModule(net), Normal(0.1))
        >>> plain = mean_network(model, AutoMuPNormal(model))
        >>> type(plain).__name__, plain(torch.zeros(5, 3)).shape
        ('Sequential', torch.Size([5, 1]))
    """
    _check(model, guide)
    if len(guide.components) > 1:
        raise ValueError(
            f"A mixture of {len(guide.components)} components has no network at its mean, which "
            f"lies between them: take frozen_draws(...), or the mean of one component, "
            f"mean_network(model, guide.components[0])."
        )
    medians = {n: value.unsqueeze(0) for n, value in guide.components[0].median().items()}
    return _with_weights(model, _nth(model, model.net.with_draws(medians), 0))


@torch.no_grad()
def frozen_draws(
    model: SupervisedModel,
    guide: MuPGuide,
    *,
    num_samples: int = 16,
    generator: torch.Generator | int | None = None,
    temperature: float = 1.0,
) -> FrozenDraws:
    """The predictive mean and variance by a fixed number of draws, as one module.

    Args:
        model: The model.
        guide: Its guide.
        num_samples: Number of draws, each of which is a network of its own in the module;
            parameters that are not random are shared.
        generator: As for :func:`~pyro_ibvi.predict`: in an equal state it gives equal draws.
        temperature: Temperature of the likelihood, as there.

    Returns:
        The module, in evaluation mode.

    Raises:
        ValueError: If the number is not positive.

    Example:
        >>> from pyro_ibvi import AutoMuPNormal, Normal, RandomModule
        >>> model = SupervisedModel(RandomModule(nn.Linear(3, 1)), Normal(0.1))
        >>> guide, x = AutoMuPNormal(model), torch.ones(5, 3)
        >>> served = frozen_draws(model, guide, num_samples=4)
        >>> program = torch.export.export(served, (x,)).module()
        >>> mean, variance = program(x)
        >>> mean.shape, variance.shape
        (torch.Size([5, 1]), torch.Size([5, 1]))
    """
    _check(model, guide)
    check_positive_int("num_samples", num_samples)
    networks: list[nn.Module] = []
    at_once = draws_to_make(model.net)
    with seeded_numbers(generator, guide):
        for values in draw_parts(model, guide, None, num_samples, at_once):
            size = min(at_once, num_samples - len(networks))
            networks += [_with_weights(model, _nth(model, values, i)) for i in range(size)]
    for network in networks[1:]:
        _share(networks[0], network, {_own_name(model, name) for name in model.net.stochastic})
    likelihood = copy_network(model.likelihood)
    if temperature != 1.0:
        likelihood = likelihood.at_temperature(temperature)
    return FrozenDraws(networks, model.picker, likelihood).eval()


class FrozenDraws(nn.Module):
    """A mixture of networks that stand for draws of the weights.

    It runs in plain torch: ``torch.export``, ``torch.jit.trace`` and ONNX take it.

    Args:
        networks: The networks, one per draw.
        pick: Takes what the likelihood needs of what a network returns.
        likelihood: The distribution of a target given a network's output.
    """

    def __init__(
        self, networks: list[nn.Module], pick: Callable[[Any], Tensor], likelihood: Likelihood
    ) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.pick = pick
        self.likelihood = likelihood

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Mean and variance of the target, noise included; class probabilities for labels.

        Args:
            *args: Arguments of the network.
            **kwargs: Keyword arguments of the network.

        Returns:
            The mean and the variance, as in :class:`~pyro_ibvi.Prediction`.
        """
        outputs = torch.stack([self._output(network, args, kwargs) for network in self.networks])
        # What a distribution checks of its parameters depends on data, which no graph can follow.
        is_graph = torch.compiler.is_compiling()
        with dist.validation_enabled(False) if is_graph else contextlib.nullcontext():
            mean, epistemic, aleatoric = whole_moments(outputs, self.likelihood)
        return mean, epistemic + aleatoric

    def _output(self, network: nn.Module, args: Any, kwargs: Any) -> Tensor:
        args, kwargs = copied(args, kwargs)  # a network may write on its inputs
        return self.pick(network(*args, **kwargs))


def _check(model: Any, guide: Any) -> None:
    if not isinstance(model, SupervisedModel) or not isinstance(guide, MuPGuide):
        raise TypeError(
            f"Networks are exported from a SupervisedModel and its AutoMuPNormal guide, got "
            f"{type(model).__name__} and {type(guide).__name__}."
        )
    check_pair(model, guide)
    warn_of_one_left_behind(model, guide)


def _nth(model: SupervisedModel, values: Mapping[str, Tensor], i: int) -> dict[str, Tensor]:
    """One of several draws, beside the parameters that are no draws."""
    return {name: v[i] if name in model.net.stochastic else v for name, v in values.items()}


def _own_name(model: SupervisedModel, name: str) -> str:
    """A parameter's name in the network that the user wrote, inside of its wrappers."""
    return name.removeprefix(unwrap(model.net.network)[1])


def _with_weights(model: SupervisedModel, values: Mapping[str, Tensor]) -> nn.Module:
    network = copy_network(unwrap(model.net.network)[0])
    parameters = dict(network.named_parameters())
    for name, value in model.net.network_values(values).items():
        parameters[_own_name(model, name)].copy_(value)
    return network.requires_grad_(False).eval()


def _share(first: nn.Module, other: nn.Module, own: set[str]) -> None:
    """Puts one network's parameters and buffers in the place of an equal other's.

    Args:
        first: The network whose parameters are shared.
        other: The network that takes them.
        own: Names of parameters that it keeps, wherever they are used.
    """
    kept = {parameter for name, parameter in other.named_parameters() if name in own}
    for module, twin in zip(first.modules(), other.modules(), strict=True):
        for key, parameter in module._parameters.items():
            if twin._parameters[key] not in kept:
                twin._parameters[key] = parameter
        twin._buffers.update(module._buffers)
