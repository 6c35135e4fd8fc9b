"""Scores of a model on batches, for validation while it trains and for tests after."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from pyro_ibvi._util.inputs import as_call
from pyro_ibvi.guides import AutoMuPNormal
from pyro_ibvi.models import SupervisedModel
from pyro_ibvi.prediction import Prediction, predict, score


def score_batches(
    model: SupervisedModel,
    guide: AutoMuPNormal,
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
    outputs, targets = [], []
    seed = int(torch.randint(2**31, ()).item()) if seed is None else seed
    for batch in batches:
        args, kwargs = as_call(batch)
        x, y = model.read(*args, **kwargs)
        if y is None:
            raise ValueError(
                "There is nothing to score by: the data hold inputs alone. Pass targets, too."
            )
        generator = torch.Generator().manual_seed(seed)
        prediction = predict(model, guide, x, num_samples=num_samples, generator=generator)
        outputs.append(prediction.outputs)
        targets.append(model.likelihood.as_target(y).to(prediction.outputs.device))
    if not outputs:
        raise ValueError("There is nothing to score: the loader yielded no batch.")
    return score(Prediction(torch.cat(outputs, dim=1), model.likelihood), torch.cat(targets))
