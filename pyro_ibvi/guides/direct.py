"""The expected log-likelihood of a network and its guide, without traces.

Pyro finds a model's terms by running it under effect handlers, which costs some microseconds per
site and step. A :class:`~pyro_ibvi.SupervisedModel` and its :class:`~pyro_ibvi.AutoMuPNormal` know
their terms: where nothing else takes part, one draw of the guide and one run of the network give
the same loss and the same gradients.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import torch
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor, nn

from pyro_ibvi._util.errors import DataError
from pyro_ibvi._util.inputs import first_tensor, rows_of
from pyro_ibvi.guides.alignment import check_parts, drop_misaligned
from pyro_ibvi.guides.base import MuPGuide
from pyro_ibvi.guides.per_datum import NoDrawPerDatumError, PerDatum, warn_of
from pyro_ibvi.models.data_checks import batch_of
from pyro_ibvi.models.parameters import announce_parameter
from pyro_ibvi.models.random_module import RandomModule
from pyro_ibvi.models.supervised import SupervisedModel

#: Draws of the weights in a step: one, one for each datum, or one for each of so many parts.
NumDraws: TypeAlias = int | Literal["batch", "datum"]

#: What the classes do themselves; a subclass that does otherwise takes the long way.
_MODEL_METHODS = (
    "forward",
    "sample_parameters",
    "run",
    "log_likelihood",
    "log_likelihood_of",
    "__call__",
)
_GUIDE_METHODS = ("forward", "rsample", "__call__")


class DirectRoute:
    """The way from data to the likelihood of one pair of model and guide.

    It belongs to the guide and refers to both weakly: what it knows goes with them.

    Args:
        guide: The guide.
        own: The class whose draws the route knows.
        model: The guide's model.
    """

    def __init__(self, guide: MuPGuide, own: type[nn.Module], model: SupervisedModel) -> None:
        self.guide = weakref.ref(guide)
        self.model = weakref.ref(model)
        self._own = own
        self._announced: dict[str, Tensor] = {}
        self._per_datum: PerDatum | None = None
        self._num_compared = 0
        self._counts_targets = False

    @property
    def observed(self) -> str:
        """Name of the one site whose log-density the route evaluates."""
        return "obs"

    def is_open(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a step may go without traces.

        Args:
            args: Positional arguments of model and guide.
            kwargs: Keyword arguments of both.

        Returns:
            Whether nothing takes part but the model, the guide and what collects parameters.
        """
        model, guide = self.model(), self.guide()
        return (
            model is not None
            and guide is not None
            and model.read(*args, **kwargs)[1] is not None
            and all(type(h) is TraceMessenger and h.param_only for h in _PYRO_STACK)
            and _acts_as_itself(model, SupervisedModel, _MODEL_METHODS)
            and _acts_as_itself(guide, self._own, _GUIDE_METHODS)
            and not torch._C._are_functorch_transforms_active()
        )

    def log_likelihood(
        self, *args: Any, draws: NumDraws = "batch", **kwargs: Any
    ) -> tuple[Tensor, float, Tensor | None]:
        """The log-likelihood of each datum for a draw of the guide, or several.

        Args:
            *args: Inputs and targets.
            draws: ``"batch"`` for one draw of all sites; ``"datum"`` for a draw for each datum of
                the sites that can have it and one of the others, which a warning names; a number
                for as many draws of the others, each for a part of the batch, in pairs with
                opposite noise.
            **kwargs: Inputs and targets by name, ``x`` and ``y``.

        Returns:
            The log-likelihoods in nats, shape ``(batch,)``, the scale of each, and the number of
            observations of each, None where it is 1.
        """
        model, guide = self.model(), self.guide()
        assert model is not None
        assert guide is not None
        net = model.net  # PyroModule takes its time to find an attribute
        if _PYRO_STACK:
            for name, parameter in guide.named_site_parameters():
                announce_parameter(name, parameter, self._announced)
            for name, parameter in net.named_point_estimates():
                announce_parameter(name, parameter, self._announced)
        if draws != "batch":
            return self._many_draws(model, guide, draws, *args, **kwargs)
        return model.log_likelihood(self._values(net, guide.rsample()), *args, **kwargs)

    def _many_draws(
        self, model: SupervisedModel, guide: MuPGuide, draws: NumDraws, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, float, Tensor | None]:
        x, y = model.read(*args, **kwargs)
        # Graphs, say, may come as objects, which hold tensors that nobody but the network knows.
        is_object = first_tensor(x) is None
        if is_object and draws != "datum":
            raise DataError(
                f"draws={draws} cuts the batch at its first dimension, which a "
                f"{type(x).__name__} does not show. Write draws='batch'."
            )
        num_data = len(batch_of(y if is_object else x))
        parts = [x] if draws == "datum" else cut_batch(x, int(draws))
        if self._per_datum is None or self._num_compared < min(num_data, 2):
            self._num_compared = num_data  # a single datum shows little
            self._per_datum = self._compared(model, guide, x, num_data)
            self._counts_targets = is_object
            if draws == "datum":
                self._compare_targets(model, guide, x, y)
                warn_of(self._per_datum.left_out())
            else:
                check_parts(model, guide.components[0], x, parts)
        outputs = []
        values: dict[str, Tensor] = {}
        for i, part in enumerate(parts):
            opposite = values if i % 2 else None
            size = len(batch_of(y if self._counts_targets else part))
            output, values = self._output(self._per_datum, model, guide, part, size, opposite)
            outputs.append(output)
        num_draw_dims = model.net.num_draw_dims(self._values(model.net, values))
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, num_draw_dims)
        return model.log_likelihood_of(output, x, y, num_draw_dims)

    def _compared(
        self, model: SupervisedModel, guide: MuPGuide, x: Any, num_data: int
    ) -> PerDatum:
        per_datum = PerDatum(guide.layers, model.net, len(guide.components))
        drop_misaligned(per_datum, model, guide.components[0], x, num_data)
        return per_datum

    def _compare_targets(self, model: SupervisedModel, guide: MuPGuide, x: Any, y: Any) -> None:
        """Looks whether the data are as many as targets: inputs may have words in front."""
        assert self._per_datum is not None
        targets = first_tensor(y)
        if self._counts_targets or targets is None or len(targets) == len(batch_of(x)):
            return
        by_target = self._compared(model, guide, x, len(targets))
        if len(by_target.left_out()) < len(self._per_datum.left_out()):
            self._per_datum, self._counts_targets = by_target, True

    def _output(
        self,
        per_datum: PerDatum,
        model: SupervisedModel,
        guide: MuPGuide,
        x: Any,
        size: int,
        opposite: Mapping[str, Tensor] | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The network's output, and the draws of the sites that it has with them."""
        while True:
            draws, maps = per_datum.draw(guide, size, opposite)
            try:
                return model.run(self._values(model.net, draws), x, maps), draws
            except NoDrawPerDatumError as error:  # a batch of another form than the first
                opposite = None  # it had no noise of the sites that lose it here
                lost = [n for n, i in per_datum.inputs.items() if i.layer == error.layer]
                per_datum.drop(error.layer)
                warn_of(lost)

    def _values(self, net: RandomModule, draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: draws[net.site_name(name)] for name in net.stochastic}


def find_route(guide: MuPGuide, own: type[nn.Module], model: Any) -> DirectRoute | None:
    """The direct route of a guide that draws all weights of a supervised model.

    Args:
        guide: An initialized guide of the model.
        own: The class whose draws the route knows.
        model: The model.

    Returns:
        The route; None if the model is of another kind or has other sites than the guide.
    """
    if not isinstance(model, SupervisedModel):
        return None
    if type(model.net).sample_parameters is not RandomModule.sample_parameters:
        return None
    weights = {model.net.site_name(name) for name in model.net.stochastic}
    sites = [site for layer in guide.layers for site in layer.sites]
    if {site.name for site in sites} != weights or any(site.frames for site in sites):
        return None
    return DirectRoute(guide, own, model)


def cut_batch(x: Any, num_parts: int) -> list[Any]:
    """A batch in parts of nearly equal size.

    Args:
        x: Inputs.
        num_parts: Number of parts, reduced to the number of data if it is larger.

    Returns:
        The parts in their order; what has no row for each datum goes to all.
    """
    num_data = len(batch_of(x))
    parts = torch.arange(num_data).tensor_split(min(num_parts, num_data))
    return [rows_of(x, slice(int(p[0]), int(p[-1]) + 1), num_data) for p in parts]


def _acts_as_itself(module: Any, own: type, methods: tuple[str, ...]) -> bool:
    """Whether a module has neither hooks nor methods other than a class's own."""
    kind = type(module)
    if kind is not own and any(getattr(kind, name) is not getattr(own, name) for name in methods):
        return False
    if not module.__dict__.keys().isdisjoint(methods):
        return False
    return not (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
