"""Batches that are objects, as those of graphs are, beside the tensors that they hold."""

import pytest
import torch
from torch import nn

import pyro_ibvi as ibvi

X = torch.randn(12, 20, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3


class Batch:
    """What holds tensors that the network alone knows, and goes to a device by itself."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def to(self, device):
        return Batch(self.x.to(device), self.y.to(device))


class Reads(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, batch):
        return self.net(batch.x)


def make(wrap=lambda net: net, **choices):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    return ibvi.VariationalNetwork(wrap(net), ibvi.Categorical(), **choices)


def losses(bnn, batches):
    torch.manual_seed(1)
    return bnn.fit(batches, num_epochs=3, progress=False).train_loss


@pytest.mark.parametrize("draws", [None, "batch"])
def test_an_object_trains_and_predicts_as_its_tensors(draws):
    plain, of_pairs, of_objects = (
        make(draws=draws),
        make(Reads, draws=draws),
        make(Reads, draws=draws, target="y"),
    )
    assert plain.loss.draws == (draws or "datum")
    parts = [(X[:8], Y[:8]), (X[8:], Y[8:])]
    objects = [Batch(*part) for part in parts]
    expected = losses(plain, parts)
    assert losses(of_pairs, list(zip(objects, [Y[:8], Y[8:]], strict=True))) == expected
    assert losses(of_objects, objects) == expected
    assert of_objects.model.num_data == 12
    mean = plain.predict(X[:8], num_samples=3, seed=0).mean
    assert torch.equal(of_objects.predict(objects[0], num_samples=3, seed=0).mean, mean)
    scores = plain.evaluate(parts, num_samples=3, seed=0)
    assert of_objects.evaluate(objects, num_samples=3, seed=0) == scores


def test_an_object_alone_hears_how_to_name_its_targets():
    with pytest.raises(ValueError, match=r"The batch is a Batch, .* target='y'"):
        make(Reads).fit([Batch(X, Y)], num_epochs=1, progress=False)
