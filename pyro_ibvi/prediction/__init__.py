"""Predictions as mixtures over draws of the weights, and their scores."""

from pyro_ibvi.prediction.budget import read_memory
from pyro_ibvi.prediction.calibration import Temperature, fit_temperature
from pyro_ibvi.prediction.conformal import (
    ConformalIntervals,
    ConformalSets,
    conformal_intervals,
    conformal_sets,
)
from pyro_ibvi.prediction.evaluation import evaluate
from pyro_ibvi.prediction.export import FrozenDraws, frozen_draws, mean_network
from pyro_ibvi.prediction.mixture import Prediction
from pyro_ibvi.prediction.predictive import predict, predict_batches
from pyro_ibvi.prediction.scores import Reliability, reliability, score

__all__ = [
    "ConformalIntervals",
    "ConformalSets",
    "FrozenDraws",
    "Prediction",
    "Reliability",
    "Temperature",
    "conformal_intervals",
    "conformal_sets",
    "evaluate",
    "fit_temperature",
    "frozen_draws",
    "mean_network",
    "predict",
    "predict_batches",
    "read_memory",
    "reliability",
    "score",
]
