"""Scores of a model on batches, for validation while it trains and for tests after."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from pyro_ibvi.guides import AutoMuPNormal
from pyro_ibvi.models import SupervisedModel
from pyro_ibvi.prediction import Prediction, predict_batches, score


def score_batches(
    model: SupervisedModel,
    guide: AutoMuPNormal,
    batches: Iterable[Any],
    *,
    num_samples: int,
    seed: int | None = None,
    temperature: float = 1.0,
) -> dict[str, float]:
    """Scores on all batches together, each seen by the same draws of the weights.

    Args:
        model: The model.
        guide: Its guide.
        batches: Batches of inputs and targets.
        num_samples: Number of draws of the weights.
        seed: Makes the draws the same at each call.
        temperature: Temperature of the likelihood.

    Returns:
        The scores by name, see :func:`~pyro_ibvi.score`.

    Raises:
        ValueError: If there is no batch, or no target.
    """
    outputs, targets = [], []
    likelihood = model.likelihood
    parts = predict_batches(
        model,
        guide,
        batches,
        num_samples=num_samples,
        generator=seed,
        temperature=temperature,
    )
    for prediction, y in parts:
        if y is None:
            raise ValueError(
                "There is nothing to score by: the data hold inputs alone. Pass targets, too."
            )
        likelihood = prediction.likelihood
        outputs.append(prediction.outputs)
        targets.append(likelihood.as_target(y).to(prediction.outputs.device))
    return score(Prediction(torch.cat(outputs, dim=1), likelihood), torch.cat(targets))
