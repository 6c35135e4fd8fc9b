"""Draws in a step for numbers, by what a first batch shows."""

import copy

import pytest
import torch
from torch import nn

import pyro_ibvi as ibvi


class Own(nn.Module):
    """A network of a user's, of which its layers alone say nothing."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 8), *layers, nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x):
        return self.layers(x)


class Centered(Own):
    def forward(self, x):
        return super().forward(x - x.mean(0))


class Noisy(Own):
    def forward(self, x):
        return super().forward(nn.functional.dropout(x, 0.5, self.training))


class Counting(Own):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class Squeezed(nn.Module):
    """Outputs that have no batch where it is of one."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Linear(5, 1)

    def forward(self, x):
        return self.layers(x).squeeze()


class Joined(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 8), nn.Linear(3, 8)
        self.last = nn.Linear(8, 1)

    def forward(self, x, z):
        return self.last((self.first(x) + self.second(z)).tanh())


class Times(nn.Module):
    """A number at each time."""

    def __init__(self, num_features):
        super().__init__()
        self.rnn = nn.GRU(num_features, 16, batch_first=True)
        self.head = nn.Linear(16, 1)

    def forward(self, x):
        return self.head(self.rnn(x)[0]).squeeze(-1)


X, Y = torch.randn(40, 5), torch.randn(40, 1)


def after_fit(net, *data, **choices):
    bnn = ibvi.VariationalNetwork(net, ibvi.Normal(0.3), **choices)
    bnn.fit(*(data or (X, Y)), num_epochs=1, progress=False)
    return bnn.loss.draws


@pytest.mark.parametrize("layers", [(), (nn.Dropout(0.5),), (nn.LayerNorm(8),)])
def test_a_network_whose_data_run_alone_has_two(layers):
    assert after_fit(Own(*layers)) == 2


def test_a_network_of_time_or_of_several_inputs_has_two():
    times = torch.randn(40, 6, 5), torch.randn(40, 6)
    assert after_fit(Times(5), *times, covariance=ibvi.LowRank(2)) == 2
    assert after_fit(Times(5), *times) == "datum"  # of relative noise
    assert after_fit(Joined(), (X, torch.randn(40, 3)), Y) == 2
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=10)
    assert after_fit(Own(), loader) == 2


@pytest.mark.parametrize(
    ("net", "target"),
    [
        (Own(nn.BatchNorm1d(8)), Y),
        (Centered(), Y),  # data see one another
        (Noisy(), Y),  # so they might
        (Counting(), Y),  # what it keeps may be of the whole batch
        (Squeezed(), Y[:, 0]),
    ],
)
def test_a_batch_that_cannot_surely_be_cut_has_one(net, target):
    assert after_fit(net, X, target) == "batch"


def test_a_compiled_network_is_not_compiled_anew_for_parts():
    compiled = []

    def count(graph, inputs):
        compiled.append(graph)
        return graph.forward

    torch._dynamo.reset()
    assert after_fit(torch.compile(Own(), backend=count)) == "batch"
    assert len(compiled) <= 2  # of the whole batch, and its gradient


def test_what_is_chosen_stays():
    assert after_fit(Own(), draws="batch") == "batch"
    assert after_fit(Own(), loss=ibvi.TraceExpectedLogLikelihood(reduction="mean")) == "batch"
    bnn = ibvi.VariationalNetwork(Own(), ibvi.Bernoulli(), covariance=ibvi.LowRank(2))
    bnn.fit(X, (Y > 0).long(), num_epochs=1, progress=False)
    assert bnn.loss.draws == "batch"


def test_to_look_at_a_batch_leaves_nothing():
    torch.manual_seed(0)
    bnn = ibvi.VariationalNetwork(Counting(nn.BatchNorm1d(8)), ibvi.Normal(0.3))
    before = copy.deepcopy(bnn.net.network.state_dict())
    state = torch.get_rng_state()
    bnn.set_num_data(40, [(X, Y)])
    assert torch.equal(torch.get_rng_state(), state)
    after = bnn.net.network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert bnn.net.network.calls == 0


def test_a_class_learns_as_the_sequential_in_it_does():
    losses = []
    for is_own in (False, True):
        torch.manual_seed(0)
        own = Own()
        bnn = ibvi.VariationalNetwork(own if is_own else own.layers, ibvi.Normal(0.3))
        torch.manual_seed(1)
        losses.append(bnn.fit(X, Y, num_epochs=3, batch_size=20, progress=False).train_loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_recurrent_networks_fit_numbers_that_are_all_but_exact():
    """By one draw a step its noise in the gradient stays in what they predict."""
    torch.manual_seed(0)
    x = torch.randn(512, 20, 3)
    y, state = torch.zeros(512, 20), torch.zeros(512)
    for t in range(20):
        state = 0.7 * state + 0.5 * x[:, t, 0] * x[:, t, 1].tanh()
        y[:, t] = state
    y = y / y.std()
    rmse = {}
    for draws in ("batch", None):
        torch.manual_seed(1)
        bnn = ibvi.VariationalNetwork(Times(3), ibvi.Normal(0.3), draws=draws)
        bnn.fit(x[:400], y[:400], num_epochs=40, batch_size=50, progress=False)
        rmse[draws] = bnn.evaluate(x[400:], y[400:], seed=0)["rmse"]
    assert rmse[None] < 0.8 * rmse["batch"]
