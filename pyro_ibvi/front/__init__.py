"""One object for a whole analysis: from a network and data to a saved model that predicts."""

from pyro_ibvi.front.batches import TensorBatches
from pyro_ibvi.front.grid_search import GridSearch, grid_search
from pyro_ibvi.front.loading import load
from pyro_ibvi.front.network import VariationalNetwork
from pyro_ibvi.front.rate_search import RateSearch, rate_search

__all__ = [
    "GridSearch",
    "RateSearch",
    "TensorBatches",
    "VariationalNetwork",
    "grid_search",
    "load",
    "rate_search",
]
