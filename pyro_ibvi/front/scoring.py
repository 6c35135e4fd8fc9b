"""What a network's predictions are worth on all batches of a loader, and their temperature."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from pyro_ibvi.guides import MuPGuide
from pyro_ibvi.models import SupervisedModel
from pyro_ibvi.prediction import Prediction, Temperature, fit_temperature, predict_batches
from pyro_ibvi.prediction.metrics import NUM_BINS
from pyro_ibvi.prediction.scored import Scored
from pyro_ibvi.prediction.scores import scored_parts, summarize


@torch.no_grad()
def score_batches(
    model: SupervisedModel,
    guide: MuPGuide,
    batches: Iterable[Any],
    *,
    num_samples: int,
    seed: int | None = None,
) -> dict[str, float]:
    """Scores on all batches together, each seen by the same draws of the weights.

    Args:
        model: The model.
        guide: Its guide.
        batches: Batches of inputs and targets.
        num_samples: Number of draws of the weights.
        seed: Makes the draws the same at each call.

    Returns:
        The scores by name, see :func:`~pyro_ibvi.score`.

    Raises:
        ValueError: If there is no batch, or no target.
    """
    parts: dict[str, list[Scored]] = {}
    options: dict[str, Any] = {"num_samples": num_samples, "generator": seed}
    for prediction, y in predict_batches(model, guide, batches, **options):
        for task, scored in scored_parts(prediction, _checked_target(y)).items():
            parts.setdefault(task, []).append(scored)
    return summarize({task: Scored.join(found) for task, found in parts.items()}, NUM_BINS)


def calibrate_batches(
    model: SupervisedModel,
    guide: MuPGuide,
    batches: Iterable[Any],
    *,
    num_samples: int,
    seed: int | None = None,
) -> Temperature:
    """The temperature of the least negative log predictive density on all batches together.

    Args:
        model: The model.
        guide: Its guide.
        batches: Batches of validation data.
        num_samples: Number of draws of the weights.
        seed: Makes the draws the same at each call.

    Returns:
        The temperature, see :func:`~pyro_ibvi.prediction.fit_temperature`.

    Raises:
        ValueError: If there is no batch, or no target.
    """
    outputs, targets = [], []
    options: dict[str, Any] = {"num_samples": num_samples, "generator": seed}
    for prediction, y in predict_batches(model, guide, batches, **options):
        outputs.append(prediction.outputs)
        targets.append(prediction.target(_checked_target(y)))
    whole = Prediction(torch.cat(outputs, dim=1), model.likelihood)
    return fit_temperature(whole, torch.cat(targets))


def _checked_target(y: Any) -> Any:
    if y is None:
        raise ValueError(
            "There is nothing to score by: the data hold inputs alone. Pass targets, too."
        )
    return y
