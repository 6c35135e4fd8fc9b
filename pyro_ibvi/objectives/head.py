"""A network's last layer taken in closed form: what an objective that does so holds.

Where a network ends in a Gaussian linear layer, its output for given features is Gaussian, and
the expected log-likelihood over that layer needs no draw of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.distributions import Normal as NormalDistribution
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_ibvi._util.distributions import per_element
from pyro_ibvi._util.precision import at_least_float32
from pyro_ibvi.models.batch_dimension import is_a_look
from pyro_ibvi.models.binary import Bernoulli
from pyro_ibvi.models.counts import Poisson
from pyro_ibvi.models.labels import Categorical
from pyro_ibvi.models.likelihoods import Normal
from pyro_ibvi.models.supervised import SupervisedModel
from pyro_ibvi.mup.layers import parameter_path
from pyro_ibvi.objectives.expected_law import expected_law
from pyro_ibvi.objectives.penalty import FactoredGaussian
from pyro_ibvi.objectives.terms import run_traces
from pyro_ibvi.theory.expectations import (
    CategoricalBound,
    Spread,
    kronecker_spread,
    linear_spread,
)

_EXACT = (Normal, Poisson, Bernoulli)


class ClosedFormHead:
    """Takes the expectation over a network's last layer exactly, for an objective that holds it.

    The guide's mean takes the place of its draw of the layer, and the likelihood's log-density
    becomes its expectation over the layer's law. See `TraceClosedFormHead`.

    Args:
        categorical_bound: The bound for `Categorical` likelihoods, ``"tilted"`` or ``"jensen"``;
            with None a `Categorical` likelihood is refused.

    Raises:
        ValueError: If the bound is of no known kind.

    Example:
        >>> from pyro_ibvi import TraceExpectedLogLikelihood
        >>> loss = TraceExpectedLogLikelihood(head=ClosedFormHead(), reduction="mean")
    """

    def __init__(self, categorical_bound: CategoricalBound | None = None) -> None:
        if categorical_bound not in (None, *get_args(CategoricalBound)):
            raise ValueError(
                f'categorical_bound={categorical_bound!r}: expected "tilted", "jensen" or None.'
            )
        self.categorical_bound = categorical_bound

    def run(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[Trace, Trace]:
        """Runs guide and model with the last layer at its mean.

        Args:
            model: A `SupervisedModel`, possibly under handlers.
            guide: The guide.
            args: Positional arguments of both.
            kwargs: Keyword arguments of both.

        Returns:
            The traces, the expectation over the last layer in the log-density of the targets.

        Raises:
            TypeError: If the model is of another kind.
            ValueError: If the network does not end in a random ``nn.Linear``, the guide does not
                draw it from a Gaussian, or the likelihood has no closed form.
        """
        supervised = _supervised(model)
        self._check_likelihood(supervised)
        name, layer = _find_head(supervised)
        sites = {
            part: supervised.net.site_name(parameter_path(name, part))
            for part in ("weight", "bias")
        }
        laws, seen = _HeadAtMean(sites), _Seen()

        def guide_at_mean(*args: Any, **kwargs: Any) -> Any:
            with laws:
                return guide(*args, **kwargs)

        def watched_model(*args: Any, **kwargs: Any) -> Any:
            with _watch(supervised.net.network, layer, seen):
                return model(*args, **kwargs)

        traces = run_traces("flat", watched_model, guide_at_mean, args, kwargs)
        site = traces[0].nodes[_target_site(traces[0])]
        # What the network returned is of the model's choice, as where its target is drawn.
        seen.output = supervised.picker.pick(seen.network_output)
        spread = _Run(name, laws.found, seen).spread(traces[1])
        output, likelihood = at_least_float32(seen.output), supervised.likelihood
        site["fn"] = expected_law(site["fn"], likelihood, output, spread, self.categorical_bound)
        return traces

    def _check_likelihood(self, model: SupervisedModel) -> None:
        kind = type(model.likelihood)
        if model.likelihood.is_tempered and kind is not Normal:  # whose scale has it
            raise ValueError(
                f"The {kind.__name__} likelihood has the temperature "
                f"{model.likelihood.temperature}, and a closed-form last layer knows "
                "temperature 1 alone: use TraceExpectedLogLikelihood, which draws the last layer."
            )
        is_of_labels = isinstance(model.likelihood, (Categorical, Bernoulli))
        if is_of_labels and not model.likelihood.is_plain:
            raise ValueError(
                f"A closed-form last layer knows {kind.__name__}() without options alone: use "
                f"TraceExpectedLogLikelihood, which draws the last layer."
            )
        if kind is Categorical:
            if self.categorical_bound is None:
                raise ValueError(
                    "The expected log-likelihood of class labels has no closed form over the last "
                    'layer. Pass categorical_bound="tilted" to train on an upper bound of the '
                    "loss, or use TraceExpectedLogLikelihood, which draws the last layer."
                )
        elif kind not in _EXACT:
            raise ValueError(
                f"The {kind.__name__} likelihood has no closed-form expectation over the last "
                "layer: Normal, Poisson and Bernoulli have, Categorical has a bound. Use "
                "TraceExpectedLogLikelihood, which draws the last layer."
            )


@dataclass
class _Seen:
    """What hooks saw of one run of the network."""

    features: list[Tensor] = field(default_factory=list)
    head_output: Tensor | None = None
    version: int = 0
    network_output: Any = None
    output: Tensor | None = None


@dataclass
class _Run:
    """What is known of the last layer after a run."""

    head: str
    laws: dict[str, Any]
    seen: _Seen

    def spread(self, guide_trace: Trace) -> Spread:
        """Covariance of the network's output, in its shape.

        Args:
            guide_trace: The guide's trace.

        Returns:
            The covariance.

        Raises:
            ValueError: If the guide does not draw the layer from a Gaussian.
        """
        seen = self.seen
        _check_ends_in_head(seen, self.head)
        if not self.laws:
            drawn = sorted(guide_trace.nodes)
            raise ValueError(
                f"The guide does not draw the last layer {self.head!r} from a Gaussian (its sites "
                f"are {drawn}). Use AutoMuPNormal with a covariance for the output layer, or "
                "TraceExpectedLogLikelihood."
            )
        assert seen.head_output is not None
        assert seen.output is not None
        spread = _head_spread(seen.features[0], seen.head_output.shape[-1], self.laws)
        spread = Spread(at_least_float32(spread.factor), at_least_float32(spread.diagonal))
        return spread.reshape(*seen.output.shape)


class _HeadAtMean(Messenger):
    """Gives the last layer's sites their means in place of draws, and keeps their laws."""

    def __init__(self, sites: Mapping[str, str]) -> None:
        super().__init__()
        self.sites = {site: part for part, site in sites.items()}
        self.found: dict[str, Any] = {}

    def _pyro_sample(self, msg: Any) -> None:
        part = self.sites.get(msg["name"])
        if part is None or msg["done"] or msg["is_observed"]:
            return
        law = per_element(msg["fn"])
        if isinstance(law, FactoredGaussian | NormalDistribution):
            self.found[part] = law
            msg["value"] = law.loc.view_as(law.loc)
            msg["done"] = True
        elif not isinstance(law, Delta):
            raise ValueError(
                f"The guide draws {msg['name']!r} from {type(law).__name__}, and a closed-form "
                "last layer must be Gaussian: use AutoMuPNormal, or TraceExpectedLogLikelihood."
            )


def _head_spread(features: Tensor, num_outputs: int, laws: Mapping[str, Any]) -> Spread:
    """Covariance of a linear layer's outputs under the laws of its weight and bias."""
    weight, bias = laws.get("weight"), laws.get("bias")
    if weight is not None and bias is not None and _share_noise(weight, bias):
        return _spread_by_weight(features, weight, bias)
    zero = features.new_zeros(*features.shape[:-1], num_outputs)
    total = Spread(zero.unsqueeze(-1)[..., :0], zero)
    parts = []
    if weight is not None:
        parts.append(_spread_by_weight(features, weight))
    if bias is not None:  # a weight of one feature that is always 1
        factor = _factor(bias).unsqueeze(1)
        parts.append(linear_spread(torch.ones_like(features[..., :1]), factor))
    for part in parts:
        factor = torch.cat([total.factor, part.factor], -1)
        total = Spread(factor, total.diagonal + part.diagonal)
    return total


def _share_noise(weight: Any, bias: Any) -> bool:
    shared = [getattr(law, "shared", None) for law in (weight, bias)]
    return shared[0] is not None and shared[0] is shared[1]


def _spread_by_weight(features: Tensor, weight: Any, bias: Any = None) -> Spread:
    """Covariance of the outputs by the weight's noise, which the bias may share."""
    laws = [law for law in (weight, bias) if law is not None]
    if isinstance(weight, FactoredGaussian) and weight.layer_factor is not None:
        return kronecker_spread(features, weight.layer_factor, *(law.factor for law in laws))
    return linear_spread(features, *map(_factor, laws))


def _factor(law: Any) -> Tensor:
    """Factor of one site's covariance: of its shape, or with one dimension more."""
    if not isinstance(law, FactoredGaussian):
        scale: Tensor = law.scale
        return scale.expand(law.loc.shape)
    rows = law.covariance.rows(law.factor, law.layer_factor, law.loc)
    return rows.reshape(*law.loc.shape, *rows.shape[1:])


def _supervised(model: Any) -> SupervisedModel:
    unwrapped = poutine.unwrap(model)
    if not isinstance(unwrapped, SupervisedModel):
        raise TypeError(
            f"TraceClosedFormHead needs a SupervisedModel, whose last layer it can find, got "
            f"{type(unwrapped).__name__}. Use TraceExpectedLogLikelihood for other models."
        )
    return unwrapped


def _find_head(model: SupervisedModel) -> tuple[str, nn.Linear]:
    """The name and the module of the linear layer that the network ends in."""
    net = model.net
    names = {
        name.rpartition(".")[0] for name, role in net.roles.items() if role.layer_role == "output"
    }
    layers = {name: net.network.get_submodule(name) for name in names}
    if len(layers) != 1 or not all(isinstance(layer, nn.Linear) for layer in layers.values()):
        found = {name: type(layer).__name__ for name, layer in layers.items()}
        raise ValueError(
            f"A closed-form last layer needs a network that ends in one nn.Linear; its output "
            f"layers are {found}. Use TraceExpectedLogLikelihood."
        )
    ((name, layer),) = layers.items()
    if not {parameter_path(name, "weight"), parameter_path(name, "bias")} & set(net.stochastic):
        raise ValueError(
            f"The last layer {name!r} is not random (random are {net.stochastic}), so there is no "
            'expectation to take. Use RandomModule(net, stochastic="last") or '
            "TraceExpectedLogLikelihood."
        )
    assert isinstance(layer, nn.Linear)
    return name, layer


def _target_site(trace: Trace) -> str:
    """Name of the observed site of a `SupervisedModel`, whatever prefix handlers gave it."""
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and site["is_observed"]:
            return str(name)
    raise ValueError("The model observed nothing: pass the targets to the step.")


@contextmanager
def _watch(network: nn.Module, head: nn.Module, seen: _Seen) -> Iterator[None]:
    """Keeps what goes into the last layer and what comes out of it and of the network."""
    thread = threading.get_ident()  # others may be running the network

    def of_head(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if threading.get_ident() == thread and not is_a_look():
            seen.features.append(inputs[0])
            seen.head_output, seen.version = output, output._version

    def of_network(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        if threading.get_ident() == thread and not is_a_look():
            seen.network_output = output

    hooks = [head.register_forward_hook(of_head), network.register_forward_hook(of_network)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _check_ends_in_head(seen: _Seen, head: str) -> None:
    """Refuses what is done with the last layer's output before the likelihood, and two calls."""
    if len(seen.features) != 1:
        raise ValueError(
            f"The network ran its last layer {head!r} {len(seen.features)} times, and a closed "
            "form needs it once. Use TraceExpectedLogLikelihood."
        )
    inner, outer = seen.head_output, seen.output
    assert inner is not None
    assert outer is not None
    same = outer is inner or (
        outer.data_ptr() == inner.data_ptr()
        and outer.numel() == inner.numel()
        and outer.is_contiguous()
        and inner.is_contiguous()
    )
    if not same or inner._version != seen.version:
        raise ValueError(
            f"The network, or output= of the SupervisedModel, changes the output of its last "
            f"layer {head!r} or takes a part of it, and the closed form is that of all of it. "
            "Leave activations after the last layer to the likelihood, or use "
            "TraceExpectedLogLikelihood."
        )
