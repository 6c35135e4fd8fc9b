"""Metrics of predictions as functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_ibvi._util.precision import in_double

#: Bins of the expected calibration error, as in Guo et al. (2017), arXiv:1706.04599.
NUM_BINS = 15


def ece(probabilities: Tensor, labels: Tensor, num_bins: int) -> Tensor:
    """Expected calibration error of the most probable class.

    Args:
        probabilities: Class probabilities, shape ``(n, classes)``.
        labels: Labels.
        num_bins: Number of bins of equal width.

    Returns:
        The mean distance of confidence and accuracy over the bins, a number between 0 and 1.
    """
    # Imported here, since torchmetrics imports matplotlib where that is installed.
    from torchmetrics.functional.classification import multiclass_calibration_error

    return multiclass_calibration_error(
        probabilities, labels, num_classes=probabilities.shape[-1], n_bins=num_bins
    )


def brier(probabilities: Tensor, labels: Tensor) -> Tensor:
    r"""Brier score, :math:`\sum_c (p_c - 1[y = c])^2`, mean over data.

    Args:
        probabilities: Class probabilities, shape ``(n, classes)``.
        labels: Labels.

    Returns:
        The score, between 0 and 2, lower is better.

    Example:
        >>> brier(torch.tensor([[0.5, 0.5]]), torch.tensor([0]))
        tensor(0.5000)
    """
    right = probabilities.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return (probabilities.square().sum(-1) - 2 * right + 1).mean()


def calibration_bins(
    probabilities: Tensor, labels: Tensor, num_bins: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Confidence, accuracy and share of the predictions in each bin that is not empty.

    Args:
        probabilities: Class probabilities, shape ``(n, classes)``.
        labels: Labels.
        num_bins: Number of bins of equal width.

    Returns:
        The three.
    """
    confidence, predicted = probabilities.max(-1)
    right = (predicted == labels).to(confidence)
    bins = (confidence * num_bins).long().clamp(max=num_bins - 1)
    counts = torch.bincount(bins, minlength=num_bins)
    used = counts > 0
    mean_confidence = torch.bincount(bins, weights=confidence, minlength=num_bins) / counts
    accuracy = torch.bincount(bins, weights=right, minlength=num_bins) / counts
    fraction = counts / counts.sum()
    return mean_confidence[used].to(confidence), accuracy[used].to(confidence), fraction[used]


def auroc(familiar: Tensor, foreign: Tensor) -> Tensor:
    """Probability that a foreign datum is less sure than a familiar one, ties counted half.

    Args:
        familiar: Uncertainties of data like those of training.
        foreign: Uncertainties of others.

    Returns:
        The area under the receiver operating characteristic.

    Example:
        >>> auroc(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0]))
        tensor(1.)
    """
    from torchmetrics.functional.classification import binary_auroc

    # Ranks, since numbers outside of [0, 1] would go through a sigmoid, which rounds to 1.
    _, ranks = torch.cat([familiar, foreign]).unique(return_inverse=True)
    scores = in_double(ranks) / max(1, int(ranks.max()))
    is_foreign = torch.cat([torch.zeros_like(familiar), torch.ones_like(foreign)]).long()
    return binary_auroc(scores, is_foreign).float()


def fpr95(familiar: Tensor, foreign: Tensor) -> Tensor:
    """Share of foreign data that pass for familiar where 95 % of the familiar do.

    Args:
        familiar: Uncertainties of data like those of training.
        foreign: Uncertainties of others.

    Returns:
        The share, lower is better.

    Example:
        >>> fpr95(torch.arange(100.0), torch.arange(90.0, 110.0))
        tensor(0.2500)
    """
    index = max(0, -(-len(familiar) * 95 // 100) - 1)
    threshold = familiar.sort().values[index]
    return (foreign <= threshold).float().mean()


def risk_coverage(loss: Tensor, uncertainty: Tensor) -> Tensor:
    """Mean loss of the surest predictions, from one of them to all.

    Args:
        loss: Loss of each prediction.
        uncertainty: Its uncertainty.

    Returns:
        The risks, one for each number of predictions kept.

    Example:
        >>> risk_coverage(torch.tensor([1.0, 0.0]), torch.tensor([0.9, 0.1]))
        tensor([0.0000, 0.5000])
    """
    ordered = in_double(loss[uncertainty.argsort(stable=True)])
    counts = torch.arange(1, len(ordered) + 1, device=loss.device)
    return (ordered.cumsum(0) / counts).to(loss)
