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


def test_batches_of_different_lengths_have_one_temperature():
    """That of the same data filled up to one length, what is filled up counting nowhere."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(1, 9, (12, 6), generator=generator)
    y = torch.randint(0, 3, (12, 6), generator=generator)
    y[6:, 4:] = -100
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(9, 8), nn.Tanh(), nn.Linear(8, 3))
    bnn = ibvi.VariationalNetwork(net, ibvi.Categorical(ignore_index=-100))
    whole = bnn.calibrate(x, y, num_samples=NUM_SAMPLES, seed=0)
    bnn.temperature = 1.0
    batches = [(x[:6], y[:6]), (x[6:, :4], y[6:, :4])]
    parts = bnn.calibrate(batches, num_samples=NUM_SAMPLES, seed=0)
    assert parts.value == pytest.approx(whole.value, rel=1e-4)
    assert parts.nll == pytest.approx(whole.nll, rel=1e-6)
    assert parts.nll_before == pytest.approx(whole.nll_before, rel=1e-6)
