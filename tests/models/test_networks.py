"""Norm layers, dropout, recurrent, attention, convolutional and compiled networks."""

import pytest
import torch
from pyro.infer import SVI, Predictive
from torch import nn

from pyro_ibvi import (
    AutoMuPNormal,
    Categorical,
    Kronecker,
    LowRank,
    MaximalUpdate,
    MuPOptim,
    Normal,
    RandomModule,
    SupervisedModel,
    TraceExpectedLogLikelihood,
    predict,
)

BATCH = 6


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.rnn, self.head = kind(3, 5, batch_first=True), nn.Linear(5, 1)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.attend = nn.Linear(3, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        h = self.embed(x)
        return self.head(h + self.attend(h, h, h, need_weights=False)[0]).mean(1)


def transformer():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.1)
    encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
    return nn.Sequential(nn.Embedding(9, 8), encoder, nn.Flatten(), nn.Linear(32, 1))


def conv(norm=lambda width: nn.GroupNorm(2, width)):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), norm(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(36, 1)
    )


def autoencoder(convolution=nn.Conv1d, transposed=nn.ConvTranspose1d, num_pixels=10):
    return nn.Sequential(
        convolution(1, 4, 3, padding=1),
        nn.ReLU(),
        transposed(4, 2, 2, stride=2),
        nn.Flatten(),
        nn.Linear(2 * num_pixels, 1),
    )


def volumes():
    return nn.Sequential(
        nn.Conv3d(1, 4, 2), nn.BatchNorm3d(4), nn.ReLU(), nn.Flatten(), nn.Linear(32, 1)
    )


class Residual(nn.Module):
    """Two blocks with batch norm around a shortcut, one of them with a convolution on it."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 1)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
            for _ in range(2)
        )
        self.shortcut = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        h = self.stem(x)
        h = h + self.branches[0](h)
        h = self.shortcut(h) + self.branches[1](h)
        return self.head(h.mean((-2, -1)))


class Tied(nn.Module):
    """A sequence's mean score by an embedding that is the read-out too."""

    def __init__(self):
        super().__init__()
        self.embed, self.hidden = nn.Embedding(9, 8), nn.Linear(8, 8)
        self.read = nn.Linear(8, 9)
        self.read.weight = self.embed.weight

    def forward(self, x):
        h = self.hidden(self.embed(x)).tanh().mean(1)
        return (self.read(h) / 8).logsumexp(-1, keepdim=True)


def mlp():
    return nn.Sequential(
        nn.Linear(3, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Flatten(),
        nn.Linear(32, 1),
    )  # fmt: skip


SEQUENCES = torch.randn(BATCH, 4, 3, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(BATCH, 1, 5, 5, generator=torch.Generator().manual_seed(1))
VOLUMES = torch.randn(BATCH, 1, 3, 3, 3, generator=torch.Generator().manual_seed(2))
TOKENS = torch.arange(BATCH * 4).reshape(BATCH, 4) % 9
NETWORKS = {
    "conv": (conv, IMAGES),
    "batch norm": (lambda: conv(nn.BatchNorm2d), IMAGES),
    "instance norm": (lambda: conv(nn.InstanceNorm2d), IMAGES),
    "transposed": (autoencoder, torch.randn(BATCH, 1, 5)),
    "transposed 2d": (lambda: autoencoder(nn.Conv2d, nn.ConvTranspose2d, 100), IMAGES),
    "transposed 3d": (lambda: autoencoder(nn.Conv3d, nn.ConvTranspose3d, 216), VOLUMES),
    "linear": (mlp, SEQUENCES),
    "conv3d": (volumes, VOLUMES),
    "residual": (Residual, IMAGES),
    "tied": (Tied, TOKENS),
    "rnn": (lambda: Recurrent(nn.RNN), SEQUENCES),
    "lstm": (lambda: Recurrent(nn.LSTM), SEQUENCES),
    "gru": (lambda: Recurrent(nn.GRU), SEQUENCES),
    "attention": (Attention, SEQUENCES),
    "transformer": (transformer, TOKENS),
    "compiled": (lambda: torch.compile(conv(), backend="eager"), IMAGES),
    "compiled, batch norm": (lambda: torch.compile(conv(nn.BatchNorm2d), backend="eager"), IMAGES),
}

NORMS_AFTER_THE_BIAS = ("batch norm", "instance norm", "conv3d", "compiled, batch norm")


def build(net, stochastic="all", covariance=None):
    net = RandomModule(
        net,
        stochastic=stochastic,
        parametrization=MaximalUpdate(attention="1/d"),
        roles={"embed": "input"} if isinstance(net, Tied) else None,
    )
    model = SupervisedModel(net, Normal(0.5), num_data=20)
    return model, AutoMuPNormal(model, covariance=covariance or LowRank(2))


@pytest.mark.parametrize("covariance", [LowRank(2), Kronecker(2, 3)], ids=str)
@pytest.mark.parametrize("particles", [1, 3, -3], ids=["one", "loop", "vectorized"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_step_moves_every_tensor_that_trains(kind, particles, covariance):
    make, x = NETWORKS[kind]
    model, guide = build(make(), "input+output", covariance)
    optim = MuPOptim(torch.optim.SGD, {"lr": 1e-3}, guide)
    elbo = TraceExpectedLogLikelihood(
        reduction="mean", num_particles=abs(particles), vectorize_particles=particles < 0
    )
    svi = SVI(model, guide, optim, elbo)
    modules = nn.ModuleList([model, guide])
    before = {n: p.detach().clone() for n, p in modules.named_parameters() if p.requires_grad}
    for _ in range(2):
        assert svi.step(x, torch.ones(BATCH, 1)) > 0
    after = dict(modules.named_parameters())
    assert len(before) > len(model.net.stochastic)  # the point estimates too
    stuck = {name for name, value in before.items() if torch.equal(after[name], value)}
    # A bias in front of batch or instance norm has no effect.
    assert all(kind in NORMS_AFTER_THE_BIAS and n.endswith(".0.bias") for n in stuck), stuck


@pytest.mark.parametrize("kind", NETWORKS)
def test_everything_that_trains_is_random_or_a_point_estimate(kind):
    # Every parameter of the network is there once: the tied one under its first name.
    net = NETWORKS[kind][0]()
    model, guide = build(net, stochastic="input+output")
    random = set(model.net.stochastic)
    trained = {n for n, p in model.net.network.named_parameters() if p.requires_grad}
    names = [name for name, _ in net.named_parameters()]
    assert sorted(random | trained) == sorted(names)
    assert not random & trained
    assert {name.removeprefix("net.") for name in guide.median()} == random


@pytest.mark.parametrize("kind", NETWORKS)
def test_vectorized_draws_are_those_of_a_loop(kind):
    make, x = NETWORKS[kind]
    model, guide = build(make())
    model.eval()
    draws = guide.draw(3)
    values = {name.removeprefix("net."): value for name, value in draws.items()}
    with torch.no_grad():
        for name, value in model.net.sample_parameters().items():
            values.setdefault(name, value)
        together = model.run(values, x)
        for i in range(3):
            shared = {n: v[i] if f"net.{n}" in draws else v for n, v in values.items()}
            torch.testing.assert_close(together[i], model.run(shared, x), rtol=1e-4, atol=1e-5)
        plates = {n: v.unsqueeze(1) if f"net.{n}" in draws else v for n, v in values.items()}
        torch.testing.assert_close(model.run(plates, x), together, rtol=1e-4, atol=1e-5)
        deeper = {n: v[:, None, None] if f"net.{n}" in draws else v for n, v in values.items()}
        assert model.run(deeper, x).shape == (3, 1, *together.shape[1:])


@pytest.mark.parametrize("kind", NETWORKS)
def test_prediction_in_evaluation_mode(kind):
    make, x = NETWORKS[kind]
    model, guide = build(make())
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    one, two = (
        predict(model, guide, x, num_samples=4, generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    )
    torch.testing.assert_close(one.outputs, two.outputs)  # no dropout
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    assert model.training


def norm_statistics(model):
    return {name: value.clone() for name, value in model.named_buffers()}


@pytest.mark.parametrize("vectorized", [False, True])
def test_batch_norm_statistics_follow_the_mode(vectorized):
    torch.manual_seed(5)
    model, guide = build(conv(nn.BatchNorm2d))
    before = norm_statistics(model)
    elbo = TraceExpectedLogLikelihood(
        num_particles=3, vectorize_particles=vectorized, max_plate_nesting=1 + vectorized
    )
    y = torch.ones(BATCH, 1)
    model.eval()
    elbo.loss(model, guide, IMAGES, y)
    assert all(torch.equal(v, before[n]) for n, v in norm_statistics(model).items())
    model.train()
    elbo.loss(model, guide, IMAGES, y)
    after = norm_statistics(model)
    tracked = next(name for name in after if name.endswith("num_batches_tracked"))
    assert after[tracked] == before[tracked] + 3  # one update for each draw
    mean = next(name for name in after if name.endswith("running_mean"))
    assert after[mean].shape == before[mean].shape
    assert not torch.equal(after[mean], before[mean])


@pytest.mark.parametrize("vectorized", [False, True])
def test_dropout_follows_the_mode_and_differs_between_draws(vectorized):
    net = nn.Sequential(nn.Linear(3, 1), nn.Dropout(0.5))
    model, _ = build(net)
    x = torch.ones(50, 3)
    values = {"0.weight": torch.ones(1, 3), "0.bias": torch.zeros(1)}
    if vectorized:
        values = {name: value.expand(4, *value.shape) for name, value in values.items()}
    outputs = model.run(values, x)
    assert set(outputs.unique().tolist()) == {0.0, 6.0}
    if vectorized:
        assert not torch.equal(outputs[0], outputs[1])
    model.eval()
    assert set(model.run(values, x).unique().tolist()) == {3.0}


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(2, 8), nn.Linear(3, 8), nn.Linear(8, 4)

    def forward(self, left, right, *, sign=1.0):
        return self.head((self.a(left) + sign * self.b(right)).tanh())


@pytest.mark.parametrize("how", ["tuple", "mapping"])
def test_networks_with_many_inputs(how):
    left, right = torch.randn(BATCH, 2), torch.randn(BATCH, 3)
    x = (left, right) if how == "tuple" else {"left": left, "right": right, "sign": -1.0}
    model = SupervisedModel(RandomModule(Two(), stochastic="all"), Categorical(), num_data=20)
    guide = AutoMuPNormal(model, covariance=LowRank(2))
    assert model.net.roles["b.weight"].role == "input"
    elbo = TraceExpectedLogLikelihood(num_particles=2, vectorize_particles=True)
    svi = SVI(model, guide, MuPOptim(torch.optim.Adam, {"lr": 0.01}, guide), elbo)
    assert svi.step(x, torch.zeros(BATCH, dtype=torch.long)) > 0
    assert predict(model, guide, x, num_samples=3, batch_size=4).mean.shape == (BATCH, 4)


@pytest.mark.parametrize("parallel", [False, True])
def test_pyros_predictive(parallel):
    model, guide = build(conv())
    samples = Predictive(model, guide=guide, num_samples=3, parallel=parallel)(IMAGES)
    assert samples["obs"].shape == (3, BATCH, 1)


def test_a_compiled_network_is_the_network():
    net = conv().eval()
    plain, compiled = build(net)[0], build(torch.compile(net, backend="eager"))[0]
    values = {n: torch.randn_like(p) for n, p in net.named_parameters()}
    renamed = {f"_orig_mod.{name}": value for name, value in values.items()}
    torch.testing.assert_close(compiled.run(renamed, IMAGES), plain.run(values, IMAGES))
    assert [w.role for w in compiled.net.roles.values()] == [
        w.role for w in plain.net.roles.values()
    ]
