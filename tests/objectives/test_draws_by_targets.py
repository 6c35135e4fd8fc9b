"""A draw for each datum where inputs have words, nodes or time in front of the data."""

import pytest
import torch
from torch import nn

import pyro_ibvi as ibvi

NUM_DATA, SCALE = 8000, 0.5


class Bags(nn.Module):
    """Bags of words: all words in one row, and where each bag begins."""

    def __init__(self):
        super().__init__()
        self.table, self.last = nn.EmbeddingBag(9, 4), nn.Linear(4, 3)

    def features(self, words, offsets):
        return self.table(words, offsets)

    def forward(self, words, offsets):
        return self.last(self.features(words, offsets))


class Graphs(nn.Module):
    """Nodes of all graphs in one table, pooled by graph."""

    def __init__(self):
        super().__init__()
        self.node, self.last = nn.Linear(2, 4), nn.Linear(4, 3)

    def features(self, nodes, graph):
        pooled = torch.zeros(NUM_DATA, 4, dtype=nodes.dtype)
        return pooled.index_add(0, graph, self.node(nodes).tanh())

    def forward(self, nodes, graph):
        return self.last(self.features(nodes, graph))


class TimeFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(2, 4), nn.Linear(4, 3)

    def features(self, x):
        return self.first(x).tanh()[-1]

    def forward(self, x):
        return self.last(self.features(x))


#: Equal data, of which each has three words, nodes or times.
BATCHES = {
    Bags: (torch.tensor([1, 5, 7]).repeat(NUM_DATA), torch.arange(0, 3 * NUM_DATA, 3)),
    Graphs: (torch.ones(3 * NUM_DATA, 2), torch.arange(3 * NUM_DATA) % NUM_DATA),
    TimeFirst: (torch.ones(3, NUM_DATA, 2),),
}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("kind", BATCHES, ids=lambda kind: kind.__name__)
def test_each_target_has_a_draw_where_inputs_have_other_rows(kind):
    """The logits of equal data differ by the noise of one linear layer, in closed form."""
    torch.manual_seed(0)
    x = tuple(part.double() if part.is_floating_point() else part for part in BATCHES[kind])
    net = ibvi.RandomModule(kind(), stochastic=["last.weight"], example_input=x)
    model = ibvi.SupervisedModel(net, ibvi.Categorical(), num_data=NUM_DATA)
    covariance = ibvi.Multiplicative(SCALE, rate=0.0)
    guide = ibvi.AutoMuPNormal(model, covariance=covariance)
    outputs = []
    loss = ibvi.TraceExpectedLogLikelihood(reduction="mean", draws="datum")
    y = torch.zeros(NUM_DATA, dtype=torch.long)
    for _ in range(2):  # the first step goes by traces
        loss.loss(model, guide, x, y)
    model.net.network.register_forward_hook(lambda *args: outputs.append(args[-1]))
    loss.loss(model, guide, x, y)
    with torch.no_grad():
        features = model.net.network.features(*x)[0]
        weight, noise = guide.loc("net.last.weight"), guide.factor("net.last.weight").reshape(-1)
        expected = (weight * noise * features).square().sum(-1)
        found = outputs[-1].var(0)
    assert (noise.abs() - SCALE).abs().max() < 1e-12
    # Four standard errors of a Gaussian variance.
    assert ((found - expected).abs() < 4 * expected * (2 / NUM_DATA) ** 0.5).all()
