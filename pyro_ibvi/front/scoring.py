"""What a network's predictions are worth on all batches of a loader, and their temperature."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import torch

from pyro_ibvi.front.batches import as_batches
from pyro_ibvi.front.first_batch import batch_at_hand
from pyro_ibvi.guides import MuPGuide
from pyro_ibvi.models import SupervisedModel
from pyro_ibvi.prediction import Temperature, predict_batches
from pyro_ibvi.prediction.calibration import temperature_of
from pyro_ibvi.prediction.metrics import NUM_BINS
from pyro_ibvi.prediction.scores import checked_targets, score_batches, summarize
from pyro_ibvi.prediction.seeds import Seed

#: Draws of the weights by which the validation data are predicted after each epoch.
NUM_VALID_SAMPLES = 16
#: Number of data that are scored at once.
_NUM_ROWS = 1000
#: Numbers of their outputs, by all draws; scoring takes several times their memory.
_MAX_OUTPUTS = 2**25


def batches_to_score(
    model: SupervisedModel, guide: MuPGuide, data: Any, y: Any, num_samples: int
) -> Iterable[Any]:
    """Batches of held-out data, in their order, of as many data as memory bears.

    Args:
        model: The model.
        guide: Its guide.
        data: Data as for :func:`~pyro_ibvi.front.batches.as_batches`.
        y: The targets, if these are inputs.
        num_samples: Number of draws of the weights.

    Returns:
        The batches; those that the user has made are as they were.
    """
    options: dict[str, Any] = {"model": model, "shuffle": False}
    batches = as_batches(data, y, batch_size=_NUM_ROWS, **options)
    if batches is not data:
        with suppress(Exception):  # what is wrong shows when they are predicted
            few = [batch_at_hand(batches)]
            part, _ = next(predict_batches(model, guide, few, num_samples=1, generator=0))
            # Of an image or a series there may be very many.
            num_rows = _MAX_OUTPUTS * len(part.outputs[0]) // (num_samples * part.outputs.numel())
            if num_rows < _NUM_ROWS:  # two at least: a squeeze() would take the batch of one
                batches = as_batches(data, y, batch_size=max(2, num_rows), **options)
    return batches


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
    options: dict[str, Any] = {"generator": generator, "temperature": temperature}
    parts = predict_batches(model, guide, batches, num_samples=num_samples, **options)
    return temperature_of([(part, part.target(checked_targets(y))) for part, y in parts])
