"""Held-out data, batch by batch: every score that a prediction has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_ibvi._util.arguments import named_arguments
from pyro_ibvi._util.checks import check_positive_int
from pyro_ibvi._util.errors import DataError
from pyro_ibvi.models.kinds import kind_of
from pyro_ibvi.models.supervised import SupervisedModel
from pyro_ibvi.prediction import metrics
from pyro_ibvi.prediction.mixture import Prediction
from pyro_ibvi.prediction.predictive import predict_batches
from pyro_ibvi.prediction.scored import Scored
from pyro_ibvi.prediction.scores import score_batches
from pyro_ibvi.prediction.seeds import Seed, seed_of

#: Share of the predictions that a selective predictor keeps, for one number of its curve.
_KEPT = 0.8


@named_arguments()
@torch.no_grad()
def evaluate(
    model: SupervisedModel,
    guide: Callable[..., Any],
    data: Any,
    *,
    foreign: Any = None,
    num_samples: int = 100,
    chunk_size: int | None = None,
    generator: Seed = None,
    temperature: float = 1.0,
    num_bins: int = metrics.NUM_BINS,
) -> dict[str, float]:
    """Scores of a model on held-out data, one batch in memory after the other.

    Args:
        model: The model.
        guide: Its guide.
        data: A loader of batches with targets, as for training, or a data set.
        foreign: A loader or a data set unlike those of training, with or without targets, to see
            whether the model tells them by its uncertainty: the entropy of labels, the predictive
            standard deviation of numbers.
        num_samples: Number of draws of the weights, the same for all batches.
        chunk_size: Number of draws that run at once, see :func:`~pyro_ibvi.predict`.
        generator: A seed, or a generator that gives one.
        temperature: Temperature of the likelihood.
        num_bins: Number of bins of the expected calibration error.

    Returns:
        Scores by name. Always ``nll``, in nats per datum (per label of a ``Categorical``), and,
        unless the law of a number has no mean, ``aurc``, the area under the risk-coverage curve:
        the mean loss (errors, or squared errors) of the surest predictions, averaged over the
        share that is kept. For labels ``accuracy``, ``error``, ``ece``, ``brier``, and
        ``error_at_80``, the error of the surest 80 %. For numbers ``rmse`` and ``mae``, where
        there is a mean, ``coverage`` of the central 95 % interval, where the likelihood's
        distribution function is known, and ``crps`` under the Normal family, in the targets'
        units. With foreign data ``auroc`` and
        ``fpr95``, the share of them that passes where 95 % of the others do. Of several tasks
        the names begin with ``task/``.

    Raises:
        ValueError: If a batch has no target, a loader is empty, or a number is not positive.
        DataError: If nothing was observed, or foreign data are to be told by a standard deviation
            that the law of the targets does not have.

    Example:
        >>> from pyro_ibvi import AutoMuPNormal, Normal, RandomModule
        >>> net = RandomModule(torch.nn.Linear(3, 1))
        >>> model = SupervisedModel(net, Normal(0.1), num_data=8)
        >>> data = [(torch.randn(4, 3), torch.randn(4, 1)) for _ in range(2)]
        >>> sorted(evaluate(model, AutoMuPNormal(model), data, num_samples=5))
        ['aurc', 'coverage', 'crps', 'mae', 'nll', 'rmse']
    """
    check_positive_int("num_bins", num_bins)
    generator = seed_of(generator)
    if generator is None:  # foreign data are seen by the same draws
        generator = int(torch.randint(2**62, ()).item())
    options: dict[str, Any] = {
        "num_samples": num_samples,
        "chunk_size": chunk_size,
        "generator": generator,
        "temperature": temperature,
    }
    joined = score_batches(predict_batches(model, guide, data, **options), ranked=True)
    scores = {
        task + name: value
        for task, scored in joined.items()
        for name, value in _all_scores(scored, num_bins).items()
    }
    if foreign is not None:
        scores |= _foreign_scores(joined, predict_batches(model, guide, foreign, **options))
    return scores


def _all_scores(scored: Scored, num_bins: int) -> dict[str, float]:
    if len(scored.loss) == 0:
        raise DataError("Nothing was observed: all targets are missing or ignored.")
    scores: dict[str, Any] = dict(scored.summary(num_bins))
    if scored.labels is None and not scored.has_mean:
        return scores
    risks = metrics.risk_coverage(scored.loss, scored.uncertainty)
    scores["aurc"] = risks.mean()
    if scored.labels is not None:
        scores["error"] = scored.loss.mean()
        scores["error_at_80"] = risks[max(0, round(_KEPT * len(risks)) - 1)]
    elif scored.errors is not None:
        scores["mae"] = scored.errors.abs().mean()
    if scored.ranked is not None:
        scores["crps"] = scored.ranked.mean()
    return {name: float(value) for name, value in scores.items()}


def _foreign_scores(familiar: dict[str, Scored], foreign: Any) -> dict[str, float]:
    unsure: dict[str, list[Tensor]] = {}
    for prediction, _ in foreign:
        for task, uncertainty in _uncertainty(prediction).items():
            unsure.setdefault(task, []).append(uncertainty)
    scores = {}
    for task, scored in familiar.items():
        others = torch.cat(unsure[task])
        if scored.uncertainty.isnan().any() or others.isnan().any():
            raise DataError(
                "Foreign data are told by the predictive standard deviation, and the law of the "
                "targets has none: leave out foreign=, and compare the widths of "
                "prediction.interval()."
            )
        scores[task + "auroc"] = float(metrics.auroc(scored.uncertainty, others))
        scores[task + "fpr95"] = float(metrics.fpr95(scored.uncertainty, others))
    return scores


def _uncertainty(prediction: Prediction) -> dict[str, Tensor]:
    """The uncertainty of each label or number, for each task."""
    kind = kind_of(prediction.likelihood)
    if kind == "tasks":
        names = prediction.likelihood.widths
        return {f"{name}/": _uncertainty(prediction[name])[""] for name in names}
    if kind in ("categorical", "bernoulli"):
        return {"": prediction.entropy().flatten()}
    return {"": prediction.stddev.flatten()}
