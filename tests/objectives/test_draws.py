"""Several draws of the weights in a step: the same expectation, less variance, or a sentence."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn
from torch.nn import functional

from pyro_ibvi import (
    AutoMuPNormal,
    Categorical,
    Diagonal,
    LowRank,
    MaximalUpdate,
    Multiplicative,
    Normal,
    RandomModule,
    SupervisedModel,
    TraceExpectedLogLikelihood,
)
from pyro_ibvi.theory import expected_squared_loss

N, P = 12, 3
DRAWS = ["batch", "datum", 1, 4, 100]


def linear_pair(covariance, seed=0):
    torch.manual_seed(seed)
    net = RandomModule(nn.Linear(P, 1, bias=False))
    model = SupervisedModel(net, Normal(1.0), num_data=2 * N)
    return model, AutoMuPNormal(model, covariance=covariance)


def gradients(model, guide, draws, x, y, num_steps, reduction="mean"):
    """Gradient of mean and factor at each of many steps, and the losses."""
    loss = TraceExpectedLogLikelihood(reduction=reduction, draws=draws)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            loss.loss_and_grads(model, guide, x, y)
    parameters, losses, found = list(guide.parameters()), [], []
    for _ in range(num_steps):
        for parameter in parameters:
            parameter.grad = None
        losses.append(loss.loss_and_grads(model, guide, x, y))
        found.append(torch.cat([p.grad.flatten() for p in parameters]))
    return torch.tensor(losses), torch.stack(found)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("draws", DRAWS)
@pytest.mark.parametrize("covariance", [Multiplicative(0.5), LowRank(2)], ids=str)
def test_loss_and_gradient_have_the_expectation_of_the_closed_form(covariance, draws):
    model, guide = linear_pair(covariance)
    x, y = torch.randn(N, P), torch.randn(N, 1)
    loc, factor = (guide.loc("net.weight"), guide.factor("net.weight"))
    rows = guide.layers[0].covariance.rows(factor, None, loc)
    expected = expected_squared_loss(x, y[:, 0], loc.flatten(), rows).mean()
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(expected, [loc, factor])])
    constant = 0.5 * torch.log(torch.tensor(2 * torch.pi))
    torch.manual_seed(1)
    losses, found = gradients(model, guide, draws, x, y, 500)
    for values, truth in ((losses[:, None], expected.detach() + constant), (found, gradient)):
        error = values.std(0) / len(values) ** 0.5
        assert ((values.mean(0) - truth).abs() / error).max() < 4
    # A control that fails: the loss of the mean alone.
    at_mean = (x @ loc.flatten() - y[:, 0]).square().mean() / 2 + constant
    assert abs(losses.mean() - at_mean.detach()) > 10 * losses.std() / len(losses) ** 0.5


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("draws", DRAWS)
@pytest.mark.parametrize("covariance", [Multiplicative(0.3), Diagonal()], ids=str)
def test_positive_weights_have_the_expectation_of_log_normal_ones(covariance, draws):
    torch.manual_seed(0)
    prior = dist.LogNormal(0.5, 0.3).expand([1, P]).to_event(2)
    net = RandomModule(nn.Linear(P, 1, bias=False), prior={"weight": prior})
    model = SupervisedModel(net, Normal(1.0))
    guide = AutoMuPNormal(model, covariance=covariance)
    x, y = torch.randn(N, P), torch.randn(N, 1)
    loc = guide.loc("net.weight")
    is_relative = isinstance(covariance, Multiplicative)
    std = guide.factor("net.weight") * (loc.abs() if is_relative else 1.0)
    log_normal = dist.LogNormal(loc.flatten(), std.flatten())
    gap, spread = y[:, 0] - x @ log_normal.mean, x.square() @ log_normal.variance
    expected = 0.5 * (gap.square() + spread).mean() + 0.5 * math.log(2 * math.pi)
    losses, _ = gradients(model, guide, draws, x, y, 1000)
    error = losses.std() / len(losses) ** 0.5
    assert losses.mean().item() == pytest.approx(expected.item(), abs=4 * error.item())


@pytest.mark.parametrize(
    ("covariance", "draws", "most"),
    [
        (Multiplicative(0.5), "datum", 0.2),
        (Multiplicative(0.5), 4, 0.2),
        (LowRank(2), 4, 0.4),
        (LowRank(2), 12, 0.2),
    ],
    ids=str,
)
def test_the_variance_of_the_gradient_falls(covariance, draws, most):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(P, 16), nn.Tanh(), nn.Linear(16, 2))
    model = SupervisedModel(RandomModule(net, stochastic="all weights"), Categorical(), N)
    guide = AutoMuPNormal(model, covariance=covariance)
    # Data that are alike, whose gradients one draw moves together.
    x, y = 1 + 0.3 * torch.randn(N, P), torch.zeros(N, dtype=torch.long)
    variance = {}
    for option in ("batch", draws):
        torch.manual_seed(1)
        variance[option] = gradients(model, guide, option, x, y, 100)[1].var(0).sum()
    assert variance[draws] < most * variance["batch"]


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("num_data", [None, 50])
def test_scales_are_those_of_one_draw(reduction, num_data):
    net = RandomModule(nn.Linear(P, 2))
    model = SupervisedModel(net, Normal(1.0), num_data)
    guide = AutoMuPNormal(model, covariance={"*": None})
    x, y = torch.randn(N, P), torch.randn(N, 2)
    losses = [
        [loss.loss(model, guide, x, y) for _ in range(3)][-1]
        for loss in (TraceExpectedLogLikelihood(reduction=reduction, draws=d) for d in DRAWS)
    ]
    for loss in losses:
        assert loss == pytest.approx(losses[0], rel=1e-5)


class Recurrent(nn.Module):
    def __init__(self, batch_first=True):
        super().__init__()
        self.lstm, self.last = nn.LSTM(P, 5, batch_first=batch_first), nn.Linear(5, 2)

    def forward(self, x):
        steps = x[:, None].expand(-1, 4, -1) * torch.arange(1.0, 5.0)[:, None]
        if not self.lstm.batch_first:
            steps = steps.transpose(0, 1)
        hidden = self.lstm(steps)[0]
        return self.last(hidden[:, -1] if self.lstm.batch_first else hidden[-1])


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(P, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.inner(self.inner(self.first(x)).tanh()))


class Patches(nn.Module):
    """Rows of several patches of a datum, one after the other."""

    def __init__(self):
        super().__init__()
        self.embed, self.last = nn.Linear(1, 4), nn.Linear(4 * P, 2)

    def forward(self, x):
        return self.last(self.embed(x.reshape(-1, 1)).reshape(x.shape[0], -1))


class Functional(nn.Module):
    """A weight that its layer does not use itself."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(P, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(functional.linear(x, self.first.weight).tanh())


class TimeFirst(nn.Module):
    """As many steps as data, the steps in front."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(P, 4), nn.Linear(4, 2)

    def forward(self, x):
        steps = x[None] * torch.linspace(1.0, 2.0, N)[:, None, None]
        return self.last(self.first(steps).tanh().mean(0))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(1, 4), nn.Linear(4, 2)
        self.block = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0.2)

    def forward(self, x):
        return self.last(self.block(self.first(x[..., None])).mean(1))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(2, 4), nn.Linear(1, 4), nn.Linear(4, 2)

    def forward(self, a, b):
        return self.last((self.first(a) + self.second(b)).tanh())


def conv():
    return nn.Sequential(
        nn.Unflatten(1, (1, P)), nn.Conv1d(1, 4, 2), nn.ReLU(), nn.Conv1d(4, 4, 2, groups=2),
        nn.Flatten(), nn.Linear(4, 2),
    )  # fmt: skip


def with_norm_and_dropout():
    return nn.Sequential(
        nn.Linear(P, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2)
    )


# The layers of which each datum cannot have a draw.
NETWORKS = {
    "conv": (conv, set()),
    "recurrent": (Recurrent, {"lstm.weight_hh_l0"}),
    "time-first recurrent": (lambda: Recurrent(batch_first=False), {"lstm.weight_hh_l0"}),
    "twice": (Twice, set()),
    "patches": (Patches, set()),
    "norm and dropout": (with_norm_and_dropout, set()),
    "functional": (Functional, {"first.weight"}),
    "time first": (TimeFirst, {"first.weight"}),
    "two inputs": (TwoInputs, set()),
    "transformer": (
        Transformer,
        {"block.self_attn.in_proj_weight", "block.self_attn.out_proj.weight"},
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_which_layers_have_a_draw_for_each_datum(name):
    make, others = NETWORKS[name]
    torch.manual_seed(0)
    parametrization = MaximalUpdate(attention="1/sqrt(d)")
    net = RandomModule(make(), stochastic="all weights", parametrization=parametrization)
    model = SupervisedModel(net, Normal(1.0))
    guide = AutoMuPNormal(model, covariance=Multiplicative(0.5))
    x, y = torch.randn(N, P), torch.randn(N, 2)
    if name == "two inputs":
        x = (x[:, :2], x[:, 2:])
    buffers = {key: value.clone() for key, value in net.network.named_buffers()}
    loss = TraceExpectedLogLikelihood(draws="datum")
    loss.loss_and_grads(model, guide, x, y)
    state = torch.get_rng_state()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loss.loss_and_grads(model, guide, x, y)
    told = " ".join(str(w.message) for w in caught)
    assert {n for n in net.stochastic if f"'net.{n}'" in told} == others
    assert ("have one draw for a batch" in told) == bool(others)
    assert not torch.equal(state, torch.get_rng_state())
    for key, value in net.network.named_buffers():  # one update for each step
        if key.endswith("num_batches_tracked"):
            assert value == buffers[key] + 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss.loss_and_grads(model, guide, x, y)


@pytest.mark.usefixtures("double")
def test_each_datum_sees_its_own_draw_of_one_law():
    """Outputs of equal data are draws of the output under one draw of the weights each."""
    torch.manual_seed(0)
    model = SupervisedModel(RandomModule(conv(), stochastic="all weights"), Normal(1.0))
    guide = AutoMuPNormal(model, covariance=Multiplicative(0.5))
    x = torch.randn(1, P).expand(20_000, P)
    y = torch.zeros(len(x), 2)
    loss = TraceExpectedLogLikelihood(draws="datum")
    loss.loss_and_grads(model, guide, x[:4], y[:4])
    outputs = []
    model.net.network.register_forward_hook(lambda *args: outputs.append(args[-1]))
    loss.loss(model, guide, x, y)
    own = outputs[-1].detach()
    values = guide.draw(20_000)
    named = {n: values[f"net.{n}"] for n in model.net.stochastic}
    of_weights = model.run(named, x[:1])[:, 0].detach()
    for moment in (lambda o: o, torch.square, lambda o: o[:, :1] * o[:, 1:]):
        a, b = moment(own), moment(of_weights)
        error = ((a.var(0) + b.var(0)) / len(a)).sqrt()
        assert ((a.mean(0) - b.mean(0)).abs() / error).max() < 4


def test_a_first_batch_of_one_datum_is_no_proof():
    net = RandomModule(TimeFirst(), stochastic="all weights")
    model = SupervisedModel(net, Normal(1.0))
    guide = AutoMuPNormal(model, covariance=Multiplicative(0.5))
    x, y = torch.randn(N, P), torch.randn(N, 2)
    loss = TraceExpectedLogLikelihood(draws="datum")
    for _ in range(3):
        loss.loss_and_grads(model, guide, x[:1], y[:1])
    with pytest.warns(UserWarning, match=r"\['net.first.weight'\] have one draw"):
        loss.loss_and_grads(model, guide, x, y)


def test_a_batch_of_another_form_goes_with_one_draw():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(P, 4), nn.Linear(4, 2)

        def forward(self, x):
            rows = x if len(x) == N else x[:1]
            return self.last(self.first(rows).tanh()).expand(len(x), 2)

    roles = {"first": "input", "last": "output"}
    net = RandomModule(Sometimes(), stochastic="all weights", roles=roles)
    model = SupervisedModel(net, Normal(1.0))
    guide = AutoMuPNormal(model, covariance=Multiplicative(0.5))
    x, y = torch.randn(N, P), torch.randn(N, 2)
    loss = TraceExpectedLogLikelihood(draws="datum")
    for _ in range(2):
        loss.loss_and_grads(model, guide, x, y)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loss.loss_and_grads(model, guide, x[:5], y[:5])
    assert "['net.first.weight'] have one draw" in str(caught[0].message)
    assert "['net.last.weight'] have one draw" in str(caught[1].message)


def test_additive_noise_says_what_to_write():
    model, guide = linear_pair(LowRank(2))
    x, y = torch.randn(N, P), torch.randn(N, 1)
    loss = TraceExpectedLogLikelihood(draws="datum")
    loss.loss_and_grads(model, guide, x, y)
    with pytest.warns(UserWarning, match=r"\['net.weight'\] have one draw .* draws=8 draws all"):
        loss.loss_and_grads(model, guide, x, y)
    loss.loss_and_grads(model, guide, x, y)


def test_the_traced_route_says_once_that_it_has_one_draw():
    model, guide = linear_pair(Multiplicative(0.5))
    x, y = torch.randn(N, P), torch.randn(N, 1)
    told = r"draws='datum', which .* itself: this model and guide have one draw for a batch"
    vectorized = TraceExpectedLogLikelihood(2, draws="datum", vectorize_particles=True)
    with pytest.warns(UserWarning, match=told):
        vectorized.loss_and_grads(model, guide, x, y)
    vectorized.loss_and_grads(model, guide, x, y)
    loss = TraceExpectedLogLikelihood(draws="datum")
    for _ in range(2):
        loss.loss_and_grads(model, guide, x, y)
    with pytest.warns(UserWarning, match=told), poutine.scale(scale=2.0):
        loss.loss(model, guide, x, y)

    def hand_written(x, y):
        w = pyro.sample("w", pyro.distributions.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", pyro.distributions.Normal(w * x[:, 0], 1.0), obs=y[:, 0])

    loss = TraceExpectedLogLikelihood(draws=4)
    guide = AutoMuPNormal(hand_written)
    with pytest.warns(UserWarning, match=r"draws=4, .* have one draw .* draws=.batch. asks"):
        loss.loss_and_grads(hand_written, guide, x, y)


def test_particles_of_the_first_step_are_no_reason_to_tell():
    """Warnings are errors here; each datum of each particle has a draw from the second step on."""
    model, guide = linear_pair(Multiplicative(0.5))
    loss = TraceExpectedLogLikelihood(2, draws="datum")
    for _ in range(2):
        loss.loss_and_grads(model, guide, torch.randn(N, P), torch.randn(N, 1))
    assert loss.routes.knows(model, guide)


@pytest.mark.parametrize("draws", [0, -1, True, "all", 1.5, None])
def test_a_bad_number_of_draws(draws):
    with pytest.raises(ValueError, match=r"draws=.*: expected 'batch' .*, 'datum'"):
        TraceExpectedLogLikelihood(draws=draws)


@pytest.mark.parametrize("how", ["autocast", "autocast of small inputs", "small network"])
def test_a_draw_for_each_datum_is_had_in_half_precision(how):
    """Rounding is told from a layer that reads its input in another way: no warning."""
    for seed in range(6):
        torch.manual_seed(seed)
        layers = [nn.Linear(P, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 2)]
        net = nn.Sequential(*layers)
        x, y = torch.randn(64, P), torch.randint(0, 2, (64,))
        x = x if how == "autocast" else x.bfloat16()
        net = net.bfloat16() if how == "small network" else net
        net = RandomModule(net, stochastic="all weights")
        model = SupervisedModel(net, Categorical(), num_data=64)
        guide = AutoMuPNormal(model, covariance=Multiplicative(0.5))
        loss = TraceExpectedLogLikelihood(reduction="mean", draws="datum")
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how != "small network"):
            for _ in range(2):
                loss.loss_and_grads(model, guide, x, y)
        assert all(p.grad.isfinite().all() for p in guide.parameters())
