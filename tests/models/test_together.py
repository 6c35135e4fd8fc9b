"""Layers whose input all draws share run once, and as one product over all draws."""

import warnings

import pytest
import torch
from torch import nn
from torch.func import functional_call

import pyro_ibvi as ibvi


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 5, batch_first=True)
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class Attending(nn.Module):
    """Attention behind the layer that is random."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        h = self.first(x)
        return self.attention(h, h, h, need_weights=False)[0]


def draws_of(net, stochastic, num_draws=7):
    torch.manual_seed(0)
    way = ibvi.MaximalUpdate(attention="1/sqrt(d)")
    random = ibvi.RandomModule(net, stochastic=stochastic, parametrization=way)
    values = {
        name: torch.randn(num_draws, *net.get_parameter(name).shape) for name in random.stochastic
    }
    return random, random.with_draws({random.site_name(n): v for n, v in values.items()}), values


def in_turn(net, values, x):
    """Torch's own way, draw after draw."""
    num_draws = len(next(iter(values.values())))
    draws = [{n: v[i] for n, v in values.items()} for i in range(num_draws)]
    return torch.stack([functional_call(net, draw, (x,)) for draw in draws])


NETWORKS = {
    "last layer": (
        lambda: nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)),
        ["2.weight", "2.bias"],
        (6, 3),
    ),
    "only its weight": (lambda: nn.Sequential(nn.Linear(3, 2)), ["0.weight"], (6, 3)),
    "only its bias": (lambda: nn.Sequential(nn.Linear(3, 2)), ["0.bias"], (6, 3)),
    "no bias": (lambda: nn.Sequential(nn.Linear(3, 2, bias=False)), ["0.weight"], (6, 3)),
    "words": (lambda: nn.Sequential(nn.Linear(3, 2)), ["0.weight", "0.bias"], (6, 4, 3)),
    "all layers": (
        lambda: nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)),
        "all",
        (6, 3),
    ),
    "behind recurrence": (Recurrent, ["head.weight", "head.bias"], (6, 4, 3)),
    "in front of a transformer": (
        lambda: nn.Sequential(
            nn.Linear(3, 4), nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        ),
        ["0.weight"],
        (6, 4, 3),
    ),
    "in front of attention": (Attending, ["first.weight"], (6, 4, 3)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_those_of_single_draws(name):
    make, stochastic, shape = NETWORKS[name]
    net = make().eval()
    random, drawn, values = draws_of(net, stochastic)
    x = torch.randn(shape)
    with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
        # Not as errors: an error would be taken for a layer's refusal.
        warnings.simplefilter("always")
        found = random.run(drawn, x)
    assert not caught
    torch.testing.assert_close(found, in_turn(net, values, x), atol=1e-6, rtol=1e-6)


def test_gradients_are_those_of_single_draws():
    net = nn.Sequential(nn.Linear(3, 2)).double()
    random, drawn, values = draws_of(net, ["0.weight", "0.bias"])
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    weights = {n: v.double().requires_grad_() for n, v in values.items()}
    drawn = {**drawn, **weights}
    leaves = [x, *weights.values()]
    found = torch.autograd.grad(random.run(drawn, x).square().sum(), leaves)
    expected = torch.autograd.grad(in_turn(net, weights, x).square().sum(), leaves)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["linear", "recurrent"])
def test_what_all_draws_share_runs_once(kind):
    """A hundred draws, by default, of many rows."""
    runs = []

    class Counted(nn.Identity):
        def forward(self, x):
            runs.append(x.shape)
            return x

    trunk = nn.Linear(3, 5) if kind == "linear" else Recurrent()
    width, x = (5, torch.randn(3000, 3)) if kind == "linear" else (2, torch.randn(3000, 4, 3))
    net = nn.Sequential(Counted(), trunk, nn.Tanh(), nn.Linear(width, 10))
    model = ibvi.SupervisedModel(
        ibvi.RandomModule(net, stochastic=["3.weight"]), ibvi.Categorical()
    )
    guide = ibvi.AutoMuPNormal(model)
    runs.clear()
    ibvi.predict(model, guide, x, num_samples=100)
    assert [shape[0] for shape in runs if shape[0] > 1] == [3000]
    assert len(runs) < 5  # a single row shows how large outputs are


def test_a_layer_that_cannot_is_tried_once():
    net = Attending().eval()
    random, drawn, values = draws_of(net, ["first.weight"])
    assert random.runner.runs_batched(values)
    with torch.no_grad():
        random.run(drawn, torch.randn(6, 4, 3))
    assert not random.runner.runs_batched(values)
