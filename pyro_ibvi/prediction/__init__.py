"""Predictions as mixtures over draws of the weights, and their scores."""

from pyro_ibvi.prediction.export import FrozenDraws, frozen_draws, mean_network
from pyro_ibvi.prediction.mixture import Prediction
from pyro_ibvi.prediction.predictive import predict, predict_batches
from pyro_ibvi.prediction.scores import Reliability, reliability, score

__all__ = [
    "FrozenDraws",
    "Prediction",
    "Reliability",
    "frozen_draws",
    "mean_network",
    "predict",
    "predict_batches",
    "reliability",
    "score",
]
