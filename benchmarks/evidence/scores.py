"""Scores of class probabilities, in the same way for every contender."""

from __future__ import annotations

import numpy as np
import scipy.stats
import torch
from torch import Tensor


def nll(p: Tensor, y: Tensor) -> float:
    """Mean negative log-probability of the labels in nats."""
    return -p[torch.arange(len(y)), y].clamp_min(1e-12).log().mean().item()


def entropy(p: Tensor) -> Tensor:
    """Entropy of the last dimension in nats."""
    return -(p * p.clamp_min(1e-12).log()).sum(-1)


def calibration_error(p: Tensor, y: Tensor, num_bins: int = 15) -> float:
    """Expected calibration error of the most probable class."""
    confidence, predicted = p.max(-1)
    right = (predicted == y).float()
    bins = (confidence * num_bins).long().clamp(max=num_bins - 1)
    total = 0.0
    for k in range(num_bins):
        members = bins == k
        if members.any():
            gap = right[members].mean() - confidence[members].mean()
            total += (members.float().mean() * gap.abs()).item()
    return total


def tempered(p: Tensor, temperature: float) -> Tensor:
    """Probabilities whose logarithms are divided by a temperature."""
    return (p.clamp_min(1e-12).log() / temperature).softmax(-1)


def find_temperature(p: Tensor, y: Tensor) -> float:
    """The temperature of least negative log-likelihood, from a fine grid."""
    grid = torch.exp(torch.linspace(np.log(0.5), np.log(8.0), 200)).tolist()
    return min(grid, key=lambda t: nll(tempered(p, t), y))


def classification(p: Tensor, y: Tensor) -> dict[str, float]:
    """Error, negative log-likelihood, calibration, Brier score, and error at 80 % coverage."""
    confidence, predicted = p.max(-1)
    wrong = (predicted != y).float()
    kept = confidence.argsort(descending=True)[: int(0.8 * len(y))]
    brier = (p - torch.nn.functional.one_hot(y, p.shape[-1])).square().sum(-1).mean()
    return {
        "error": wrong.mean().item(),
        "nll": nll(p, y),
        "ece": calibration_error(p, y),
        "brier": brier.item(),
        "error80": wrong[kept].mean().item(),
    }


def detection(strange: Tensor, usual: Tensor) -> dict[str, float]:
    """AUROC of a score that is larger for strangers, and false alarms where 95 % are found."""
    both = torch.cat([strange, usual]).double().numpy()
    ranks = scipy.stats.rankdata(both)[: len(strange)].sum()
    auroc = (ranks - len(strange) * (len(strange) + 1) / 2) / (len(strange) * len(usual))
    threshold = torch.quantile(strange.double(), 0.05)
    return {"auroc": float(auroc), "fpr95": (usual >= threshold).float().mean().item()}
