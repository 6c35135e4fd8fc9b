"""Batches that are objects or lists, as of graphs and bags, beside the tensors that they hold."""

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


def test_what_asks_for_tensors_of_an_object_says_so():
    batches = [(Batch(X, Y), Y)]
    with pytest.raises(ValueError, match=r"draws=2 cuts .* a Batch does not show.*draws='batch'"):
        make(Reads, draws=2).fit(batches, num_epochs=2, progress=False)
    failing = make(lambda net: Reads(nn.Sequential(nn.Unflatten(1, (3, 7)), net)))
    with pytest.raises(RuntimeError, match="The network fails on a Batch: "):
        failing.fit(batches, num_epochs=1, progress=False)


class OfBags(nn.Module):
    """Takes a list of tensors of different lengths."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, bags):
        return torch.stack([self.net(bag).mean(0) for bag in bags])


def test_a_list_is_one_input_where_the_network_takes_one():
    bags = [X[i : i + 2 + i % 3] for i in range(8)]
    choices = {"draws": "batch", "example_input": bags}
    of_lists, of_tuples = make(OfBags, **choices), make(OfBags, **choices)
    assert losses(of_lists, [(bags, Y[:8])]) == losses(of_tuples, [((bags,), Y[:8])])
    mean = of_lists.predict(bags, num_samples=3, seed=0).mean
    assert mean.shape == (8, 3)
    alone = of_lists.predict((bags[:1],), num_samples=3, seed=0).mean
    torch.testing.assert_close(alone, mean[:1])
