"""How good a prediction is: scores of classifiers and regressions, and their calibration."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_ibvi.models.labels import Categorical
from pyro_ibvi.models.likelihoods import Bernoulli
from pyro_ibvi.prediction.mixture import Prediction


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
def score(prediction: Prediction, y: Tensor, *, num_bins: int = 15) -> dict[str, float]:
    """Scores of a prediction on held-out data.

    Args:
        prediction: The prediction.
        y: Targets, as the model's likelihood expects them.
        num_bins: Number of bins of the expected calibration error.

    Returns:
        ``nll``, the mean negative log predictive density in nats per datum; for labels also
        ``accuracy`` (a fraction) and ``ece``, the expected calibration error of the most
        probable class; for numbers ``rmse``, in units of the target, and ``coverage``, the share
        of targets within 1.96 predictive standard deviations of the mean.

    Example:
        >>> from pyro_ibvi import Categorical
        >>> prediction = Prediction(torch.tensor([[[2.0, 0.0], [0.0, 2.0]]]), Categorical())
        >>> scores = score(prediction, torch.tensor([0, 0]))
        >>> scores["accuracy"], round(scores["ece"], 3)
        (0.5, 0.381)
    """
    # Imported here, since torchmetrics imports matplotlib where that is installed.
    from torchmetrics.functional.classification import multiclass_calibration_error

    nll = -prediction.log_prob(y).mean().item()
    y = y.to(prediction.mean.device)
    if isinstance(prediction.likelihood, (Categorical, Bernoulli)):
        probabilities, labels = _class_probabilities(prediction, y)
        ece = multiclass_calibration_error(
            probabilities, labels, num_classes=probabilities.shape[-1], n_bins=num_bins
        )
        accuracy = (probabilities.argmax(-1) == labels).to(probabilities).mean()
        return {"nll": nll, "accuracy": accuracy.item(), "ece": ece.item()}
    error = prediction.mean - y
    covered = error.abs() <= 1.96 * prediction.stddev
    return {
        "nll": nll,
        "rmse": error.square().mean().sqrt().item(),
        "coverage": covered.to(error).mean().item(),
    }


@torch.no_grad()
def reliability(prediction: Prediction, y: Tensor, *, num_bins: int = 15) -> Reliability:
    """Confidence and accuracy of the most probable class, in bins of equal width.

    Args:
        prediction: A prediction of labels.
        y: Labels.
        num_bins: Number of bins between 0 and 1.

    Returns:
        The bins that are not empty.

    Raises:
        TypeError: If the prediction is not one of labels.

    Example:
        >>> from pyro_ibvi import Categorical
        >>> prediction = Prediction(torch.tensor([[[2.0, 0.0], [0.0, 2.0]]]), Categorical())
        >>> reliability(prediction, torch.tensor([0, 0])).accuracy
        tensor([0.5000])
    """
    if not isinstance(prediction.likelihood, (Categorical, Bernoulli)):
        raise TypeError(
            f"A reliability diagram needs predictions of labels, got the "
            f"{type(prediction.likelihood).__name__} likelihood; see score() for the coverage."
        )
    prediction.likelihood.check_target(y, prediction.outputs[0])
    probabilities, labels = _class_probabilities(prediction, y.to(prediction.mean.device))
    confidence, predicted = probabilities.max(-1)
    right = (predicted == labels).to(confidence)
    bins = (confidence * num_bins).long().clamp(max=num_bins - 1)
    counts = torch.bincount(bins, minlength=num_bins)
    used = counts > 0
    mean_confidence = torch.bincount(bins, weights=confidence, minlength=num_bins) / counts
    accuracy = torch.bincount(bins, weights=right, minlength=num_bins) / counts
    fraction = counts / counts.sum()
    return Reliability(
        mean_confidence[used].to(confidence), accuracy[used].to(confidence), fraction[used]
    )


def _class_probabilities(prediction: Prediction, y: Tensor) -> tuple[Tensor, Tensor]:
    """Class probabilities, shape ``(data, classes)``, and labels, shape ``(data,)``."""
    mean = prediction.mean
    if isinstance(prediction.likelihood, Bernoulli):
        mean = torch.stack([1 - mean, mean], dim=-1)
    return mean.reshape(-1, mean.shape[-1]), y.reshape(-1).long()
