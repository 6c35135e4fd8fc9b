"""What a run leaves behind in memory: nothing, without Python's search for circles."""

import gc
import weakref

import pytest
import torch
from torch import nn

import pyro_ibvi as ibvi
from pyro_ibvi.models import replicas


@pytest.fixture
def no_search():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("draws", ["batch", "datum"])
def test_copies_for_a_run_go_with_it(no_search, monkeypatch, draws):
    """In a circle they would hold the draws of all batches of a prediction."""
    made = []

    class Seen(replicas.Replica):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.extend(weakref.ref(module) for module in self.network.modules())

    monkeypatch.setattr("pyro_ibvi.models.running.Replica", Seen)
    net = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 2))
    random = ibvi.RandomModule(net, stochastic="dense weights")
    model = ibvi.SupervisedModel(random, ibvi.Categorical())
    guide = ibvi.AutoMuPNormal(model, covariance=ibvi.Multiplicative(0.1))
    x, y = torch.randn(5, 3), torch.zeros(5, dtype=torch.long)
    for _, _ in ibvi.prediction.predict_batches(model, guide, x, num_samples=4, batch_size=2):
        pass
    ibvi.TraceExpectedLogLikelihood(draws=draws)(model, guide)(x, y).backward()
    assert len(made) > 4
    assert not [module() for module in made if module() is not None]
