"""One object for a whole analysis: from a network and data to a saved model that predicts."""

from pyro_ibvi.front.batches import TensorBatches
from pyro_ibvi.front.loading import load
from pyro_ibvi.front.network import VariationalNetwork

__all__ = ["TensorBatches", "VariationalNetwork", "load"]
