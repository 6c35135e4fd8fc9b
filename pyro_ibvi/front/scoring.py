"""What a network's predictions are worth on all batches of a loader, and their temperature."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from pyro_ibvi.guides import MuPGuide
from pyro_ibvi.models import SupervisedModel
from pyro_ibvi.prediction import Prediction, Temperature, fit_temperature, predict_batches
from pyro_ibvi.prediction.metrics import NUM_BINS
from pyro_ibvi.prediction.scores import checked_targets, score_batches, summarize
from pyro_ibvi.prediction.seeds import Seed

#: Draws of the weights by which the validation data are predicted after each epoch.
NUM_VALID_SAMPLES = 16


@torch.no_grad()
def validation_scores(
    model: SupervisedModel,
    guide: MuPGuide,
    batches: Iterable[Any],
    *,
    num_samples: int,
    generator: Seed = None,
    temperature: float = 1.0,
) -> dict[str, float]:
    """Scores on all batches together, each seen by the same draws of the weights.

    Args:
        model: The model.
        guide: Its guide.
        batches: Batches of inputs and targets.
        num_samples: Number of draws of the weights.
        generator: A seed makes the draws the same at each call.
        temperature: Temperature of the likelihood.

    Returns:
        The scores by name, see :func:`~pyro_ibvi.score`.

    Raises:
        ValueError: If there is no batch, or no target.
    """
    options: dict[str, Any] = {"generator": generator, "temperature": temperature}
    predictions = predict_batches(model, guide, batches, num_samples=num_samples, **options)
    return summarize(score_batches(predictions), NUM_BINS)


def calibrate_batches(
    model: SupervisedModel,
    guide: MuPGuide,
    batches: Iterable[Any],
    *,
    num_samples: int,
    generator: Seed = None,
    temperature: float = 1.0,
) -> Temperature:
    """The temperature of the least negative log predictive density on all batches together.

    Args:
        model: The model.
        guide: Its guide.
        batches: Batches of validation data.
        num_samples: Number of draws of the weights.
        generator: A seed makes the draws the same at each call.
        temperature: Temperature of the prediction as it is before.

    Returns:
        The temperature, see :func:`~pyro_ibvi.prediction.fit_temperature`.

    Raises:
        ValueError: If there is no batch, or no target.
    """
    outputs, targets = [], []
    options: dict[str, Any] = {"generator": generator, "temperature": temperature}
    for prediction, y in predict_batches(
        model, guide, batches, num_samples=num_samples, **options
    ):
        outputs.append(prediction.outputs)
        targets.append(prediction.target(checked_targets(y)))
    whole = Prediction(torch.cat(outputs, dim=1), prediction.likelihood)
    return fit_temperature(whole, torch.cat(targets))
