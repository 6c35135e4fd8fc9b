"""How good a prediction is: scores of classifiers and regressions, and their calibration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_ibvi._util.checks import check_positive_int
from pyro_ibvi.models.kinds import kind_of
from pyro_ibvi.prediction import metrics
from pyro_ibvi.prediction.mixture import Prediction, check_prediction
from pyro_ibvi.prediction.scored import Scored, score_labels, score_numbers


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy, for a reliability diagram.

    Attributes:
        confidence: Mean confidence of the predictions in each bin that is not empty.
        accuracy: Their accuracy.
        fraction: Their share of all predictions.
    """

    confidence: Tensor
    accuracy: Tensor
    fraction: Tensor


@torch.no_grad()
def score(prediction: Prediction, y: Any, *, num_bins: int = metrics.NUM_BINS) -> dict[str, float]:
    """Scores of a prediction on held-out data.

    Args:
        prediction: The prediction.
        y: Targets, as the model's likelihood expects them; arrays are converted.
        num_bins: Number of bins of the expected calibration error.

    Returns:
        ``nll``, the mean negative log predictive density in nats per datum, of a ``Categorical``
        per label that counts; for class labels ``accuracy`` (a fraction), ``ece``, the expected
        calibration error of the most probable class, and ``brier``, the Brier score, between 0
        and 2; for numbers ``rmse``, in units of the target, where their law has a mean, and
        ``coverage``, the share of targets in the central 95 % interval,
        ``prediction.interval(0.95)``, which a likelihood whose distribution function is not known
        does not have. What was not observed counts nowhere. Of several tasks the scores are named
        ``task/nll`` and so on.

    Raises:
        TypeError: If the first argument is no prediction, or the target has the wrong type.
        ValueError: If there is no target, or it has the wrong shape or impossible values.

    Example:
        >>> from pyro_ibvi import Categorical
        >>> prediction = Prediction(torch.tensor([[[2.0, 0.0], [0.0, 2.0]]]), Categorical())
        >>> scores = score(prediction, torch.tensor([0, 0]))
        >>> scores["accuracy"], round(scores["ece"], 3)
        (0.5, 0.381)
    """
    check_prediction(prediction, "score", "y")
    check_positive_int("num_bins", num_bins)
    return summarize(scored_parts(prediction, y), num_bins)


def scored_parts(prediction: Prediction, y: Any, *, ranked: bool = False) -> dict[str, Scored]:
    """What scores need to know of a prediction, for each task.

    Args:
        prediction: The prediction.
        y: Targets.
        ranked: Whether to compute the ranked probability score, whose cost grows with the square
            of the number of draws.

    Returns:
        The numbers by task, the name of the only one being empty.

    Raises:
        ValueError: If there are no targets.
    """
    y = checked_targets(y)
    kind = kind_of(prediction.likelihood)
    if kind == "tasks":
        y = prediction.target(y)
        target, soft = prediction.likelihood.split_target(y), prediction.likelihood.holds_shares(y)
        found = {}
        for name, part in target.items():
            task = prediction[name]
            is_label = kind_of(task.likelihood) == "categorical" and not soft
            part = part.long() if is_label else part
            for inner, scored in scored_parts(task, part, ranked=ranked).items():
                found[f"{name}/{inner}"] = scored
        return found
    if kind in ("categorical", "bernoulli"):
        return {"": score_labels(prediction, y)}
    return {"": score_numbers(prediction, y, ranked=ranked)}


def checked_targets(y: Any) -> Any:
    """The targets of a batch, which scores need.

    Args:
        y: Targets, None where the batch has none.

    Returns:
        The targets.

    Raises:
        ValueError: If there are none.
    """
    if y is None:
        raise ValueError(
            "There is nothing to score by: the data hold inputs alone. Pass the targets too, let "
            "the loader yield (x, y), or name the target by SupervisedModel(..., target=...)."
        )
    return y


def score_batches(
    predictions: Iterable[tuple[Prediction, Any]], *, ranked: bool = False
) -> dict[str, Scored]:
    """What scores need to know of predictions batch by batch, of all data together.

    Args:
        predictions: Predictions with their targets, as ``predict_batches`` gives them.
        ranked: As for :func:`scored_parts`.

    Returns:
        The numbers by task.
    """
    parts: dict[str, list[Scored]] = {}
    for prediction, y in predictions:
        for task, scored in scored_parts(prediction, y, ranked=ranked).items():
            parts.setdefault(task, []).append(scored)
    return join_parts(parts)


def join_parts(parts: Mapping[str, Sequence[Scored]]) -> dict[str, Scored]:
    """The numbers of all batches together, by task.

    Args:
        parts: Those of each batch, by task.

    Returns:
        The numbers.
    """
    return {task: Scored.join(found) for task, found in parts.items()}


def of_all_processes(
    parts: dict[tuple[int, str], list[Scored]],
) -> dict[tuple[int, str], list[Scored]]:
    """What all processes keep for their scores, on the CPU where there are several.

    Args:
        parts: What this process keeps, by loader and task.

    Returns:
        The same of all of them, alike in each.
    """
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_initialized():
        return parts
    mine = {task: [scored.cpu() for scored in found] for task, found in parts.items()}
    everyone: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(everyone, mine)
    tasks = {task for found in everyone for task in found}
    return {task: [s for found in everyone for s in found.get(task, [])] for task in sorted(tasks)}


def summarize(parts: dict[str, Scored], num_bins: int) -> dict[str, float]:
    """The scores.

    Args:
        parts: What :func:`scored_parts` gave, of all data together.
        num_bins: Number of bins of the expected calibration error.

    Returns:
        The scores by name.
    """
    return {
        task + name: value
        for task, scored in parts.items()
        for name, value in scored.summary(num_bins).items()
    }


@torch.no_grad()
def reliability(
    prediction: Prediction, y: Any, *, num_bins: int = metrics.NUM_BINS
) -> Reliability:
    """Confidence and accuracy of the most probable class, in bins of equal width.

    Args:
        prediction: A prediction of labels.
        y: Labels.
        num_bins: Number of bins between 0 and 1.

    Returns:
        The bins that are not empty.

    Raises:
        TypeError: If the prediction is not one of labels.
        ValueError: If the number of bins is not positive, or the labels do not fit.

    Example:
        >>> from pyro_ibvi import Categorical
        >>> prediction = Prediction(torch.tensor([[[2.0, 0.0], [0.0, 2.0]]]), Categorical())
        >>> reliability(prediction, torch.tensor([0, 0])).accuracy
        tensor([0.5000])
    """
    check_prediction(prediction, "reliability", "y")
    check_positive_int("num_bins", num_bins)
    if kind_of(prediction.likelihood) not in ("categorical", "bernoulli"):
        raise TypeError(
            f"A reliability diagram needs predictions of labels, got the "
            f"{type(prediction.likelihood).__name__} likelihood; see score() for the coverage."
        )
    scored = score_labels(prediction, y)
    assert scored.probabilities is not None
    assert scored.labels is not None
    return Reliability(*metrics.calibration_bins(scored.probabilities, scored.labels, num_bins))
