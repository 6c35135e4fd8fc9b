"""Scores of large outputs are those of all data together."""

import pytest
import torch
from torch import nn

import pyro_ibvi as ibvi
from pyro_ibvi.front import scoring

NUM_SAMPLES = 20


@pytest.fixture(scope="module")
def of_pixels():
    """A network with a label for each pixel, and images of which its outputs are large."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1))
    x, y = torch.randn(40, 1, 32, 32), torch.randint(0, 3, (40, 32, 32))
    bnn = ibvi.VariationalNetwork(net, ibvi.Categorical(class_dim=1))
    bnn.fit(x[:8], y[:8], num_epochs=1, progress=False)
    return bnn, x, y


def test_few_images_are_scored_at_once(of_pixels, monkeypatch):
    bnn, x, y = of_pixels
    prediction = bnn.predict(x, num_samples=NUM_SAMPLES, seed=0)
    monkeypatch.setattr(scoring, "_MAX_OUTPUTS", prediction.outputs[:, :7].numel())
    how = bnn.model, bnn.guide, x, y, NUM_SAMPLES
    assert [len(part) for part, _ in scoring.batches_to_score(*how)] == [7, 7, 7, 7, 7, 5]
    scores = bnn.evaluate(x, y, num_samples=NUM_SAMPLES, seed=0)
    expected = ibvi.score(prediction, y)
    assert {name: scores[name] for name in expected} == pytest.approx(expected, rel=1e-5)
