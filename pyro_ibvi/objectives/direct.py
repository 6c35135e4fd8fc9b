"""The expected log-likelihood of a network and its guide, without traces.

Pyro finds a model's terms by running it under effect handlers, which costs some microseconds per
site and step. A :class:`~pyro_ibvi.SupervisedModel` and its :class:`~pyro_ibvi.AutoMuPNormal` know
their terms: where nothing else takes part, one draw of the guide and one run of the network give
the same loss and the same gradients. The objective takes the long way for its first step, with
all its checks, and whenever some handler, hook or option asks for more.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from pyro.distributions import MaskedDistribution
from pyro.poutine import Trace
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor, nn

from pyro_ibvi.guides.normal import AutoMuPNormal
from pyro_ibvi.models.parameters import announce_parameter
from pyro_ibvi.models.random_module import RandomModule
from pyro_ibvi.models.supervised import SupervisedModel
from pyro_ibvi.objectives.sites import sample_sites

#: What the classes do themselves; a subclass that does otherwise takes the long way.
_OWN_METHODS: dict[type, tuple[str, ...]] = {
    SupervisedModel: ("forward", "sample_parameters", "run", "log_likelihood", "__call__"),
    AutoMuPNormal: ("forward", "rsample", "__call__"),
}


class DirectRoute:
    """Whether an objective may evaluate a model and a guide without traces, and the evaluation."""

    def __init__(self) -> None:
        self._pair: tuple[Any, Any] = (None, None)
        self._announced: dict[str, Tensor] = {}

    def learn(self, model: Any, guide: Any, model_trace: Trace, guide_trace: Trace) -> None:
        """Remembers a model and its guide if their terms are those of the likelihood alone.

        Args:
            model: The model.
            guide: The guide.
            model_trace: The model's trace, without the sites that the objective drops.
            guide_trace: The guide's trace, without the sites that the objective drops.
        """
        self._pair = (None, None)
        self._announced.clear()
        if not isinstance(model, SupervisedModel) or not isinstance(guide, AutoMuPNormal):
            return
        if type(model.net).sample_parameters is not RandomModule.sample_parameters:
            return
        sites = dict(sample_sites(model_trace))
        weights = {model.net.site_name(name) for name in model.net.stochastic}
        if (
            list(sites) == ["obs"]
            and not list(sample_sites(guide_trace))
            and not _is_masked(sites["obs"])
            and {site.name for layer in guide.layers for site in layer.sites} == weights
            and all(not site.frames for layer in guide.layers for site in layer.sites)
        ):
            self._pair = (weakref.ref(model), weakref.ref(guide))

    def is_open(
        self, model: Any, guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> bool:
        """Whether this step may go without traces.

        Args:
            model: The model.
            guide: The guide.
            args: Positional arguments of both.
            kwargs: Keyword arguments of both.

        Returns:
            Whether nothing takes part but the model, the guide and what collects parameters.
        """
        known_model, known_guide = self._pair
        is_data = kwargs.keys() <= {"x", "y"} and len(args) + len(kwargs) == 2
        y = args[1] if len(args) == 2 else kwargs.get("y")
        return (
            known_model is not None
            and known_model() is model
            and known_guide() is guide
            and guide.is_guide_of(model)
            and is_data
            and y is not None
            and all(type(h) is TraceMessenger and h.param_only for h in _PYRO_STACK)
            and _acts_as_itself(model, SupervisedModel)
            and _acts_as_itself(guide, AutoMuPNormal)
            and not torch._C._are_functorch_transforms_active()
        )

    def log_likelihood(
        self, model: SupervisedModel, guide: AutoMuPNormal, x: Any, y: Tensor
    ) -> tuple[Tensor, float]:
        """The log-likelihood of each datum for one draw of the guide.

        Args:
            model: The model.
            guide: Its guide.
            x: Inputs.
            y: Targets.

        Returns:
            The log-likelihoods in nats, shape ``(batch,)``, and the scale of each.
        """
        net = model.net  # PyroModule takes its time to find an attribute
        if _PYRO_STACK:
            for name, parameter in guide.named_site_parameters():
                announce_parameter(name, parameter, self._announced)
            for name, parameter in net.named_point_estimates():
                announce_parameter(name, parameter, self._announced)
        draws = guide.rsample()
        values = {name: draws[net.site_name(name)] for name in net.stochastic}
        return model.log_likelihood(values, x, y)

    def __reduce__(self) -> tuple[type[DirectRoute], tuple[()]]:
        return DirectRoute, ()  # what is known of a pair does not go into a file


def _is_masked(site: Any) -> bool:
    fn = site["fn"]
    while hasattr(fn, "base_dist"):
        if isinstance(fn, MaskedDistribution):
            return True
        fn = fn.base_dist
    return site["mask"] is not None


def _acts_as_itself(module: nn.Module, own: type) -> bool:
    """Whether a module has neither hooks nor methods other than a class's own."""
    kind = type(module)
    if kind is not own and any(
        getattr(kind, name) is not getattr(own, name) for name in _OWN_METHODS[own]
    ):
        return False
    if not module.__dict__.keys().isdisjoint(_OWN_METHODS[own]):
        return False
    return not (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
