"""What scores need to know of predictions, datum by datum, and the scores of them together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from pyro_ibvi._util.precision import in_double
from pyro_ibvi.models.kinds import kind_of
from pyro_ibvi.models.labels import Categorical, Labels
from pyro_ibvi.models.likelihoods import Likelihood
from pyro_ibvi.models.soft import mixed_law
from pyro_ibvi.prediction import marginals, metrics
from pyro_ibvi.prediction.mixture import Prediction

#: Probability of the interval whose share of the targets is measured.
_COVERAGE = 0.95


@dataclass(frozen=True, eq=False)
class Scored:
    """Numbers of each observation.

    Attributes:
        log_probs: Log predictive densities in nats.
        weights: How much each of these counts.
        loss: What a selective predictor risks: 1 for a wrong label, the squared error.
        uncertainty: What grows where the prediction is unsure: entropy, standard deviation.
        probabilities: Class probabilities, shape ``(n, classes)``, of labels.
        labels: The labels.
        errors: Errors of the mean, of numbers.
        covered: Whether they are in the central 95 % interval, where its ends are known.
        ranked: Continuous ranked probability scores.
    """

    log_probs: Tensor
    weights: Tensor
    loss: Tensor
    uncertainty: Tensor
    probabilities: Tensor | None = None
    labels: Tensor | None = None
    errors: Tensor | None = None
    covered: Tensor | None = None
    ranked: Tensor | None = None

    @classmethod
    def join(cls, parts: Sequence[Scored]) -> Scored:
        """The numbers of several batches together.

        Args:
            parts: Those of each batch.

        Returns:
            The numbers.
        """
        joined: dict[str, Any] = {}
        for field in fields(cls):
            values = [getattr(part, field.name) for part in parts]
            joined[field.name] = None if values[0] is None else torch.cat(values)
        return cls(**joined)

    def cpu(self) -> Scored:
        """The same numbers on the CPU."""
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            moved[field.name] = None if value is None else value.cpu()
        return Scored(**moved)

    @property
    def has_mean(self) -> bool:
        """Whether the law of numbers has a mean, as that of a Cauchy has not."""
        return self.errors is not None and not bool(self.errors.isnan().all())

    def summary(self, num_bins: int) -> dict[str, float]:
        """The scores that cost nothing more.

        Args:
            num_bins: Number of bins of the expected calibration error.

        Returns:
            The scores by name.
        """
        scores = {"nll": -(self.log_probs.sum() / self.weights.sum())}
        if self.probabilities is not None and self.labels is not None:
            scores["accuracy"] = 1 - self.loss.mean()
            scores["ece"] = metrics.ece(self.probabilities, self.labels, num_bins)
            scores["brier"] = metrics.brier(self.probabilities, self.labels)
        elif self.errors is not None:
            if self.has_mean:
                scores["rmse"] = in_double(self.errors).square().mean().sqrt()
            if self.covered is not None:
                scores["coverage"] = self.covered.to(self.errors).mean()
        return {name: float(value) for name, value in scores.items()}


def mixture_log_probs(outputs: Tensor, likelihood: Likelihood, y: Tensor) -> tuple[Tensor, Tensor]:
    """Log predictive densities of what was observed, and how much each counts.

    Args:
        outputs: The network's outputs, draws in front.
        likelihood: The likelihood.
        y: Targets as it takes them.

    Returns:
        Both for each datum; for class labels for each label.
    """
    law: Any = mixed_law(likelihood, outputs, y)
    if isinstance(law, Labels):
        assert isinstance(likelihood, Categorical)
        log_probs = law.each_log_prob(y)
        weights = log_probs.new_ones(log_probs.shape[1:])
        if likelihood.ignore_index is not None and not law.is_soft(y):
            weights = (y != likelihood.ignore_index).to(outputs)
    else:
        log_probs = law.log_prob(y)
        weights = log_probs.new_ones(log_probs.shape[1:])
        if hasattr(law, "num_observed"):
            weights = law.num_observed(y).expand(log_probs.shape)[0]
    mixture = log_probs.logsumexp(0) - math.log(len(log_probs))
    return torch.where(weights > 0, mixture, 0.0), weights


def score_labels(prediction: Prediction, y: Any) -> Scored:
    """Numbers of each label that counts.

    Args:
        prediction: A prediction of labels.
        y: Labels.

    Returns:
        The numbers.
    """
    y = prediction.target(y)
    likelihood = prediction.likelihood
    log_probs, weights = mixture_log_probs(prediction.outputs, likelihood, y)
    entropy = prediction.entropy().flatten()
    if kind_of(likelihood) == "categorical":
        assert isinstance(likelihood, Categorical)
        probabilities = prediction.mean.movedim(likelihood.class_dim_of(prediction.mean, 1), -1)
        seen = weights.flatten() > 0
        y = y.argmax(-1) if y.is_floating_point() else y
    else:
        probabilities = torch.stack([1 - prediction.mean, prediction.mean], -1)
        seen = ~y.flatten().isnan()
        y = y > 0.5  # of a share the label that it is nearer to
    probabilities = probabilities.reshape(-1, probabilities.shape[-1])[seen]
    labels = y.flatten()[seen].long()
    return Scored(
        log_probs.flatten(),
        weights.flatten(),
        loss=(probabilities.argmax(-1) != labels).to(probabilities),
        uncertainty=entropy[seen],
        probabilities=probabilities,
        labels=labels,
    )


def score_numbers(prediction: Prediction, y: Any, *, ranked: bool = False) -> Scored:
    """Numbers of each target that was observed.

    Args:
        prediction: A prediction of numbers.
        y: Targets.
        ranked: Whether to compute the ranked probability score, too.

    Returns:
        The numbers.
    """
    y = prediction.target(y)
    log_probs, weights = mixture_log_probs(prediction.outputs, prediction.likelihood, y)
    seen = ~y.isnan()
    try:
        mean, stddev = prediction.mean, prediction.stddev
    except NotImplementedError:  # labels by a law of one's own, whose density is scored alone
        kind: dict[str, Any] = {"dtype": log_probs.dtype, "device": log_probs.device}
        mean = stddev = torch.full(y.shape, math.nan, **kind)
    errors = (mean - y)[seen]
    filled = torch.where(seen, y, 0.0)
    covered, crps = _covered(prediction, filled), None
    if ranked and kind_of(prediction.likelihood) == "normal":
        crps = marginals.normal_crps(*prediction.components(), filled)[seen]
    return Scored(
        log_probs,
        weights,
        loss=in_double(errors).square(),
        uncertainty=stddev[seen],
        errors=errors,
        covered=None if covered is None else covered[seen],
        ranked=crps,
    )


def _covered(prediction: Prediction, y: Tensor) -> Tensor | None:
    """Whether numbers are in the central interval, by their levels instead of by its ends."""
    below = (1 - _COVERAGE) / 2
    try:
        level = prediction.cdf(y)
        # The upper end is the smallest number with enough below: what is less must not have it.
        level_before = prediction.cdf(y - 1) if prediction.likelihood.discrete else level
    except TypeError:  # no distribution function
        return None
    return (level >= below) & (level_before <= 1 - below)
