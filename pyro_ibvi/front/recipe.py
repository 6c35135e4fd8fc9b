"""What is random, and how, where a user says nothing of it.

Class labels and tables of numbers ask for different noise. On images the standard deviations of an
additive factor keep their size while the means grow around them, so that the noise fades beside
the signal; noise relative to the mean grows with it (page *Choose a guide and its covariance*). On
tables with a learned noise scale it was the other way round.

A convolution is used at many places, whose noise is one: it bears less than a linear layer. Where
convolutions are the trunk, a mixture over the linear layers behind them costs little and is what
an ensemble gains most by.

The gradient by one draw for a batch has the noise of the draw, which is far above that of numbers
that are all but exact. Half of the batch with the noise and half with its opposite have it no more
in first order, for little more than the price of one draw.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from pyro.infer.autoguide.initialization import init_to_sample
from torch import nn
from torch.optim import Optimizer

from pyro_ibvi._util.checks import check_positive_int
from pyro_ibvi._util.network_copies import is_parallel
from pyro_ibvi.front.noise import noise_on_features
from pyro_ibvi.front.tables import is_of_tables
from pyro_ibvi.guides import AutoMuPMixture, AutoMuPNormal, Multiplicative
from pyro_ibvi.models import (
    RandomModule,
    SupervisedModel,
    init_to_network,
)
from pyro_ibvi.models.admission import admit_network
from pyro_ibvi.models.choices import (
    INNER_WEIGHTS,
    LINEAR_AND_INNER_WEIGHTS,
    NothingChosenError,
)
from pyro_ibvi.models.kinds import is_of_labels
from pyro_ibvi.models.likelihoods import Likelihood
from pyro_ibvi.models.running import network_mode
from pyro_ibvi.mup.flow import check_not_lazy
from pyro_ibvi.mup.layers import owner_of
from pyro_ibvi.mup.parametrization import MaximalUpdate
from pyro_ibvi.objectives.routes import NumDraws
from pyro_ibvi.training.cosine import CosineOverFit
from pyro_ibvi.training.scheduler_maker import MakeScheduler

_CONV = nn.modules.conv._ConvNd
#: What biases, gains and positions of transformers learn at, in units of the rate (page
#: *Results*).
_RATE_OF_POSITIONS = 0.03

#: Layers that take each row by itself.
_OF_EACH_DATUM = {nn.Sequential, nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Identity, nn.Dropout}
_OF_EACH_DATUM |= {nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish}
_OF_EACH_DATUM |= {nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish}

#: Steps of training from which on the rate falls: with fewer a network has not learned yet.
_MIN_STEPS_OF_SCHEDULE = 1000
#: Number of random weights of a component up to which several of them are the default.
_MAX_OF_COMPONENT = 10**6


@dataclass(frozen=True)
class Recipe:
    """Choices that go together.

    Attributes:
        stochastic: Which parameters are random, or None where the user has said it.
        covariance: Their covariance, or None for the guide's own choice.
        of_convolutions: The covariance of convolutions, if it is another one.
        init_loc_fn: Start of the means.
        draws: Draws of the weights in a step, unless :meth:`draws_for` knows better.
        num_components: Number of components of the linear layers behind convolutions.
    """

    stochastic: str | None
    covariance: Any
    of_convolutions: Any
    init_loc_fn: Callable[..., Any]
    draws: NumDraws
    num_components: int = 1

    def make_guide(
        self,
        model: SupervisedModel,
        num_components: int | None,
        init_loc_fn: Callable[..., Any] | None,
        init_scale: float | None,
    ) -> AutoMuPNormal | AutoMuPMixture:
        """The guide of a model.

        Args:
            model: The model.
            num_components: Number of components, if the user has chosen it.
            init_loc_fn: Start of the means, likewise.
            init_scale: Start of the standard deviations in units of the prior's, likewise.

        Returns:
            The guide.
        """
        net = model.net
        inner = {
            name: net.network.get_submodule(owner_of(net.network, name)[0])
            for name in net.stochastic
        }
        convolutions = [net.site_name(n) for n, layer in inner.items() if isinstance(layer, _CONV)]
        covariance = self.covariance
        special = {}
        if self.stochastic == LINEAR_AND_INNER_WEIGHTS:
            special = noise_on_features(net, covariance)
        if self.of_convolutions is not None:
            special |= dict.fromkeys(convolutions, self.of_convolutions)
        if special:
            covariance = {net.site_name(name): covariance for name in inner} | special
        options: dict[str, Any] = {
            "covariance": covariance,
            "init_loc_fn": self.init_loc_fn if init_loc_fn is None else init_loc_fn,
            "init_scale": 1.0 if init_scale is None else init_scale,
        }
        _warn_of_scale(self.covariance, options["init_scale"])
        if num_components is None:
            num_components = self._num_components(net, convolutions)
        check_positive_int("num_components", num_components)
        if num_components == 1:
            return AutoMuPNormal(model, **options)
        shared = convolutions if len(convolutions) < len(inner) else ()
        return AutoMuPMixture(model, num_components, shared=shared, **options)

    def draws_for(self, model: SupervisedModel) -> NumDraws:
        """Draws of the weights in a step.

        Args:
            model: The model.

        Returns:
            Two instead of one for numbers, where a part of a batch is surely one: batch statistics
            would be a part's, and the nodes of a graph belong together.
        """
        is_for_numbers = self.draws == "batch" and not is_of_labels(model.likelihood)
        return 2 if is_for_numbers and _treats_data_alone(model.net.network) else self.draws

    @property
    def follows_data(self) -> bool:
        """Whether the noise goes with the number of data, as where the user has chosen none."""
        return self in (RELATIVE, NUMBERS)

    def _num_components(self, net: RandomModule, convolutions: Collection[str]) -> int:
        """More than one behind convolutions, where that costs little time and memory."""
        own = [name for name in net.stochastic if net.site_name(name) not in convolutions]
        num_weights = sum(net.network.get_parameter(name).numel() for name in own)
        has_trunk = any(isinstance(module, _CONV) for module in net.network.modules())
        with network_mode(training=True):
            runs_once = net.runner.runs_batched(own)
        is_cheap = has_trunk and runs_once and 0 < num_weights <= _MAX_OF_COMPONENT
        return self.num_components if is_cheap else 1


def _treats_data_alone(net: nn.Module) -> bool:
    """Whether a network is made of nothing but layers that know no batch."""
    return type(net) is nn.Sequential and all(type(m) in _OF_EACH_DATUM for m in net.modules())


#: Relative noise on what linear layers and inner convolutions read, a draw for each datum.
RELATIVE = Recipe(
    LINEAR_AND_INNER_WEIGHTS,
    covariance=Multiplicative(0.35, rate=0.0),
    of_convolutions=Multiplicative(0.2, rate=0.0),
    init_loc_fn=init_to_network,
    draws="datum",
    num_components=4,
)
#: The same with less of it: targets that are all but exact bear no more.
NUMBERS = replace(
    RELATIVE,
    covariance=Multiplicative(0.2, rate=0.0),
    of_convolutions=Multiplicative(0.1, rate=0.0),
)
#: The paper's: a low-rank factor in the first and the last layer, one draw for a batch.
PAPER = Recipe(None, None, None, init_to_sample, "batch")


def as_random(
    net: nn.Module,
    likelihood: Likelihood,
    *,
    stochastic: Any = None,
    covariance: Any = None,
    is_scaled: bool = False,
    optimizer: type[Optimizer] | None = None,
    **choices: Any,
) -> tuple[RandomModule, Recipe]:
    """The random network of a network, or the one that was given, and the recipe for the rest.

    Args:
        net: The network.
        likelihood: The likelihood.
        stochastic: Which parameters are random, for a network that is not random yet.
        covariance: Their covariance, if the user has chosen it.
        is_scaled: Whether the user has chosen how much of the prior's scale they start with.
        optimizer: Class of the optimizer, if the user has chosen it.
        **choices: Further arguments of ``RandomModule``, None where the user has not chosen.

    Returns:
        The random network, and the recipe with the covariance that was given.

    Raises:
        TypeError: If a likelihood stands in the network's place.
        ValueError: If choices are given for a network that has made them.
    """
    if isinstance(net, Likelihood):
        raise TypeError(
            f"The network comes first, got the likelihood {type(net).__name__} in its place: "
            f"write VariationalNetwork(net, likelihood)."
        )
    if not isinstance(net, nn.Module) or isinstance(net, torch.jit.ScriptModule):
        net = admit_network(net)  # which says what to write
    choices = {"stochastic": stochastic, **choices}
    given = {name: value for name, value in choices.items() if value is not None}
    is_open = stochastic is None and not isinstance(net, RandomModule)
    of_labels = is_of_labels(likelihood)
    if covariance is not None:
        recipe = _recipe_of(covariance, is_open=is_open, of_labels=of_labels)
    elif is_open and not is_scaled:
        recipe = RELATIVE if of_labels else NUMBERS
    else:
        recipe = PAPER
    if isinstance(net, RandomModule):
        if given:
            raise ValueError(
                f"The network is a RandomModule already, with choices of its own: pass "
                f"{' and '.join(given)} to RandomModule(net, ...)."
            )
        return net, recipe
    # What is learned by heart leaves a noise scale that learns with nothing to explain. Networks
    # that read words, pixels and times can, and relative noise is in their way.
    if recipe == NUMBERS and is_of_tables(net):
        recipe = PAPER
    if recipe.stochastic is None:
        return RandomModule(net, **given), recipe
    if any(map(is_parallel, net.modules())):
        net = admit_network(net)  # under the names that it has on one device
    rates = _rates_for(net, optimizer or default_optimizer(net, likelihood), given)
    try:
        return RandomModule(net, stochastic=recipe.stochastic, **{**rates, **given}), recipe
    except NothingChosenError:  # no dense layer behind another
        return RandomModule(net, **given), recipe if covariance is not None else PAPER


def _rates_for(
    net: nn.Module, optimizer: type[Optimizer], given: Mapping[str, Any]
) -> dict[str, Any]:
    """The parametrization by whose rates means learn that start as the network does."""
    if optimizer is torch.optim.SGD:
        return {"parametrization": _ordinary_rates(net, given.get("example_input"))}
    # The default rate of adaptive optimizers is for those of the absolute table.
    if attends(net):
        rates = MaximalUpdate(vectors=_RATE_OF_POSITIONS, attention="1/sqrt(d)")  # as torch has it
        return {"parametrization": rates}
    return {}


def _ordinary_rates(net: nn.Module, example: Any) -> MaximalUpdate:
    """Those at which the network learns as it would, which is the base of its own rates."""
    base = net if example is None else admit_network(net, example)  # may give it its shapes
    check_not_lazy(base)
    # By its shapes, for a network that is kept is memory.
    return MaximalUpdate(base={name: tuple(p.shape) for name, p in base.named_parameters()})


def _recipe_of(covariance: Any, *, is_open: bool, of_labels: bool) -> Recipe:
    """The recipe that goes with a covariance; noise on features is for labels alone."""
    kind = RELATIVE if _is_relative(covariance) else PAPER
    stochastic = kind.stochastic if is_open else None
    if stochastic is not None and (isinstance(covariance, Mapping) or not of_labels):
        stochastic = INNER_WEIGHTS
    return replace(kind, stochastic=stochastic, covariance=covariance, of_convolutions=None)


def _is_relative(covariance: Any) -> bool:
    """Whether all noise is relative to the mean: what else is chosen for it serves no other."""
    choices = covariance.values() if isinstance(covariance, Mapping) else (covariance,)
    random = [choice for choice in choices if choice is not None]
    return bool(random) and all(isinstance(choice, Multiplicative) for choice in random)


def _warn_of_scale(covariance: Any, init_scale: float) -> None:
    """Warns where a start in units of the prior's changes nothing."""
    if init_scale != 1.0 and _is_relative(covariance):
        warnings.warn(
            f"init_scale={init_scale!r} changes nothing: noise relative to the means starts at "
            f"its own std, Multiplicative(std).",
            UserWarning,
            stacklevel=5,
        )


def default_optimizer(net: nn.Module, likelihood: Likelihood) -> type[Optimizer]:
    """The class of the optimizer where the user names none.

    The gradient of a Gaussian's loss goes with one over its variance, and so does the largest
    stable rate of SGD; with a scale that learns, it changes in training. Adam does not feel it.
    Nor does it feel how far apart the gradients of a transformer's layers are, by which SGD
    stays at guessing (page *Results*).

    Args:
        net: The network.
        likelihood: The likelihood.

    Returns:
        SGD for class labels, unless the network is a transformer, Adam for the rest.
    """
    is_for_sgd = is_of_labels(likelihood) and not attends(net)
    return torch.optim.SGD if is_for_sgd else torch.optim.Adam


def attends(net: nn.Module) -> bool:
    """Whether a network is a transformer, as far as its layers tell.

    Args:
        net: The network.

    Returns:
        Whether it has torch's attention; or it normalizes tokens and has embeddings, or attention
        of its own, which goes by that name.
    """
    names = {kind.__name__ for module in net.modules() for kind in type(module).__mro__}

    def has(*words: str) -> bool:
        return any(word in name for name in names for word in words)

    is_own = has("LayerNorm", "RMSNorm") and has("Attention", "Embedding")
    return is_own or nn.MultiheadAttention.__name__ in names


def scheduler_for(likelihood: Likelihood, scheduler: Any) -> MakeScheduler | None:
    """The schedule of the rate.

    Adam's steps do not shrink with the gradients. What they leave at a constant rate a learned
    noise scale takes for noise of the targets, and in a long training that is most of it (page
    *Results*).

    Args:
        likelihood: The likelihood.
        scheduler: What the user gave, None for the default.

    Returns:
        What makes it, None for a constant rate, as labels have it by default.
    """
    if scheduler == "constant":
        return None
    if scheduler is not None or is_of_labels(likelihood):
        made: MakeScheduler | None = scheduler
        return made
    return partial(CosineOverFit, min_steps=_MIN_STEPS_OF_SCHEDULE)
