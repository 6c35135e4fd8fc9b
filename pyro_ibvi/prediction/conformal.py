r"""Split-conformal intervals and sets: coverage that holds whatever the model.

On calibration data that neither training nor a temperature has seen, the
:math:`\lceil (n + 1) c \rceil`-th smallest score is the threshold. New data that are exchangeable
with them are then covered with probability :math:`c` at least, over both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_ibvi.models.kinds import kind_of
from pyro_ibvi.prediction.mixture import Prediction, check_prediction
from pyro_ibvi.prediction.scored import score_labels


@dataclass(frozen=True)
class ConformalIntervals:
    """Intervals of a threshold times the predictive standard deviation on both sides of the mean.

    Attributes:
        threshold: Half the width, in predictive standard deviations.
        coverage: Probability of a datum within, all its targets together.
    """

    threshold: float
    coverage: float

    def __call__(self, prediction: Prediction) -> tuple[Tensor, Tensor]:
        """The intervals of a prediction.

        Args:
            prediction: A prediction of new data.

        Returns:
            Lower and upper ends, in the targets' shape and units.

        Raises:
            TypeError: If the prediction is not one of numbers.
            ValueError: If its standard deviations are no such numbers.
        """
        _check_numbers(prediction, "intervals")
        half = self.threshold * prediction.stddev
        return prediction.mean - half, prediction.mean + half


@dataclass(frozen=True)
class ConformalSets:
    """Sets of the classes whose probability reaches a threshold, never empty.

    Attributes:
        threshold: The least probability of a class in the set.
        coverage: Probability of the label in the set.
    """

    threshold: float
    coverage: float

    def __call__(self, prediction: Prediction) -> Tensor:
        """The sets of a prediction.

        Args:
            prediction: A prediction of new data.

        Returns:
            Whether each class is in the set, in the shape of ``prediction.mean``; of binary labels
            with one dimension more, for 0 and 1.

        Raises:
            TypeError: If the prediction is not one of class labels.
        """
        kind, dim = _checked_labels(prediction, "sets"), -1
        probabilities = prediction.mean
        if kind == "bernoulli":
            probabilities = torch.stack([1 - probabilities, probabilities], -1)
        else:
            dim = prediction.likelihood.class_dim_of(prediction.mean, 1)
        largest = probabilities.amax(dim, keepdim=True)
        return (probabilities >= self.threshold) | (probabilities == largest)


@torch.no_grad()
def conformal_intervals(
    prediction: Prediction, y: Any, *, coverage: float = 0.9
) -> ConformalIntervals:
    """Intervals of numbers with a coverage that does not rest on the model.

    Args:
        prediction: A prediction of calibration data.
        y: Their targets, all of them observed.
        coverage: The coverage wanted.

    Returns:
        What makes intervals of predictions.

    Raises:
        TypeError: If the targets are no numbers.
        ValueError: If there are too few data for the coverage, or a predictive standard deviation
            is not finite.

    References:
        Lei, G'Sell, Rinaldo, Tibshirani and Wasserman, 2018, *Distribution-Free Predictive
        Inference for Regression*.

    Example:
        >>> from pyro_ibvi import Normal
        >>> prediction = Prediction(torch.zeros(1, 9, 1), Normal(1.0))
        >>> conformal_intervals(prediction, torch.arange(9.0).unsqueeze(-1)).threshold
        8.0
    """
    _check_numbers(prediction, "conformal_intervals", "y")
    scores = (prediction.target(y) - prediction.mean).abs() / prediction.stddev
    if scores.dim() > 1:
        scores = scores.flatten(1).amax(1)  # nan where a target is missing
    return ConformalIntervals(_threshold(scores[~scores.isnan()], coverage), coverage)


@torch.no_grad()
def conformal_sets(prediction: Prediction, y: Any, *, coverage: float = 0.9) -> ConformalSets:
    """Sets of classes with a coverage that does not rest on the model.

    Args:
        prediction: A prediction of calibration data.
        y: Their labels; several binary ones of a datum count each by itself.
        coverage: The coverage wanted.

    Returns:
        What makes sets of predictions.

    Raises:
        TypeError: If the targets are no class labels.
        ValueError: If there are too few data for the coverage.

    References:
        Sadinle, Lei and Wasserman, 2019, *Least Ambiguous Set-Valued Classifiers with Bounded
        Error Levels*.

    Example:
        >>> from pyro_ibvi import Categorical
        >>> prediction = Prediction(torch.tensor([[[2.0, 0.0]] * 9]), Categorical())
        >>> sets = conformal_sets(prediction, torch.zeros(9).long())
        >>> sets(prediction)[0]
        tensor([ True, False])
    """
    _checked_labels(prediction, "conformal_sets", "y")
    scored = score_labels(prediction, y)
    assert scored.probabilities is not None
    assert scored.labels is not None
    right = scored.probabilities.gather(-1, scored.labels.unsqueeze(-1)).squeeze(-1)
    return ConformalSets(-_threshold(-right, coverage), coverage)


def _check_numbers(prediction: Any, function: str, *rest: str) -> None:
    check_prediction(prediction, function, *rest)
    kind = kind_of(prediction.likelihood)
    if kind == "tasks":
        raise TypeError(
            "Each task has intervals of its own: conformal_intervals(prediction['name'], y)."
        )
    if kind in ("categorical", "bernoulli"):
        raise TypeError("Intervals are of numbers: for class labels write conformal_sets.")
    stddev = prediction.stddev
    if not bool(stddev.isfinite().all() and (stddev > 0).any()):
        raise ValueError(
            f"The intervals are multiples of the predictive standard deviation, which is not "
            f"finite or nowhere positive: the {type(prediction.likelihood).__name__} likelihood "
            f"may have no variance, or one in the targets' units that {stddev.dtype} cannot hold. "
            f"Take prediction.interval(coverage), which needs none."
        )


def _checked_labels(prediction: Any, function: str, *rest: str) -> str:
    check_prediction(prediction, function, *rest)
    kind = kind_of(prediction.likelihood)
    if kind == "tasks":
        raise TypeError("Each task has sets of its own: conformal_sets(prediction['name'], y).")
    if kind not in ("categorical", "bernoulli"):
        raise TypeError("Sets are of class labels: for numbers write conformal_intervals.")
    return kind


def _threshold(scores: Tensor, coverage: float) -> float:
    if not 0 < coverage < 1:
        raise ValueError(f"coverage is a probability such as 0.9, got {coverage!r}.")
    rank = math.ceil((len(scores) + 1) * coverage - 1e-9)
    if rank > len(scores):
        needed = math.ceil(coverage / (1 - coverage) - 1e-9)
        raise ValueError(
            f"A coverage of {coverage} needs {needed} calibration data at least, got "
            f"{len(scores)}."
        )
    return float(scores.sort().values[rank - 1])
