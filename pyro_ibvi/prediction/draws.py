"""Draws of a network's parameters, from a guide of any kind."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.guide import GuideMessenger
from torch import Tensor

from pyro_ibvi._util.handlers import HANDLERS
from pyro_ibvi.guides import MuPGuide
from pyro_ibvi.models.supervised import SupervisedModel


def draw_parts(
    model: SupervisedModel, guide: Callable[..., Any], x: Any, num_samples: int, size: int
) -> Iterator[dict[str, Tensor]]:
    """Draws of the network's parameters, part by part.

    Args:
        model: The model.
        guide: Its guide.
        x: Inputs, for guides that look at them.
        num_samples: Number of draws in all parts together.
        size: Number of draws in a part, but for the last.

    Yields:
        Parameters by name, as of :func:`draw_parameters`.
    """
    if isinstance(guide, MuPGuide):  # whose components take turns over all parts
        for draws in guide.draw_parts(num_samples, size):
            yield _with_draws(model, draws)
        return
    for start in range(0, num_samples, size):
        yield draw_parameters(model, guide, x, min(size, num_samples - start))


def _with_draws(model: SupervisedModel, draws: dict[str, Tensor]) -> dict[str, Tensor]:
    """Draws of sites as parameters of the network, beside those that are no draws."""
    is_plain = type(model).sample_parameters is SupervisedModel.sample_parameters
    return model.net.with_draws(draws) if is_plain else _conditioned(model, draws)


def _conditioned(model: SupervisedModel, draws: dict[str, Tensor]) -> dict[str, Tensor]:
    with HANDLERS, poutine.block(), poutine.condition(data=draws):
        # Conditioning puts the draws in place of the sites, whatever their leading dimensions.
        return model.sample_parameters()


def draw_parameters(
    model: SupervisedModel, guide: Callable[..., Any], x: Any, num_samples: int
) -> dict[str, Tensor]:
    """Draws of the network's parameters from a guide.

    Args:
        model: The model.
        guide: Its guide.
        x: Inputs, for guides that look at them.
        num_samples: Number of draws.

    Returns:
        Parameters by name; the random ones with the draws in front.
    """
    if isinstance(guide, MuPGuide):
        return _with_draws(model, guide.draw(num_samples))
    traces: list[Any] = []
    if isinstance(guide, GuideMessenger):
        guide = _of_parameters_alone(guide, model)
    for _ in range(num_samples):
        with HANDLERS, poutine.block(), poutine.trace() as tracer:
            guide(x)
        traces.append(tracer.trace)
    names = [model.net.site_name(name) for name in model.net.stochastic]
    draws = {name: torch.stack([trace.nodes[name]["value"] for trace in traces]) for name in names}
    return _conditioned(model, draws)


def _of_parameters_alone(guide: GuideMessenger, model: SupervisedModel) -> GuideMessenger:
    """A guide with the same parameters that draws those of the network, and runs no network.

    A guide that runs the model would take the targets, which are not there, for latents.

    Returns:
        The guide.
    """
    guide = copy.copy(guide)
    guide._model = (lambda *args, **kwargs: model.sample_parameters(),)
    return guide
