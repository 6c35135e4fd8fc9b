"""Plain modules to serve: they predict what the model predicts, in whatever runs them."""

import io
import warnings

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_ibvi as ibvi
from pyro_ibvi.models import Likelihood
from pyro_ibvi.prediction import frozen_draws, mean_network, moments


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3)
    )


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.read = nn.Linear(2, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 1)

    def forward(self, x):
        x = self.read(x)
        return self.out(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.LSTM(2, 8, batch_first=True)
        self.out = nn.Linear(8, 1)

    def forward(self, x):
        return self.out(self.body(x)[0][:, -1])


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.out = nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.b(torch.tanh(self.a(x))))


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(2, 3)

    def forward(self, x):
        return {"logits": self.out(x), "aside": x}


class Gamma(Likelihood):
    """A distribution that checks its parameters, as those of a user's own likelihood do."""

    def forward(self, output, num_batch_dims=1):
        law = dist.Gamma(2.0, output.exp())
        return law.to_event(len(law.batch_shape) - num_batch_dims)


MUP = ibvi.MaximalUpdate(attention="1/d")
PAIRS = {
    "convolutional": (convolutional, ibvi.Categorical, {}, (5, 1, 6, 6)),
    "learned noise": (
        lambda: nn.Linear(2, 1),
        lambda: ibvi.Normal(0.3, learn_scale=True),
        {},
        (5, 2),
    ),
    "attention": (
        Attention,
        ibvi.Normal,
        {"stochastic": "all", "parametrization": MUP},
        (5, 3, 2),
    ),
    "recurrent": (Recurrent, ibvi.Normal, {"stochastic": "all"}, (5, 3, 2)),
    "tied": (Tied, ibvi.HeteroscedasticNormal, {"stochastic": "all"}, (5, 4)),
    "several outputs": (Named, ibvi.Categorical, {}, (5, 2)),
    "counts": (lambda: nn.Linear(2, 1), ibvi.Poisson, {}, (5, 2)),
    "own likelihood": (lambda: nn.Linear(2, 1), Gamma, {}, (5, 2)),
    "binary": (lambda: nn.Linear(2, 1), ibvi.Bernoulli, {}, (5, 2)),
}


def make(kind):
    net, likelihood, choices, shape = PAIRS[kind]
    model = ibvi.SupervisedModel(ibvi.RandomModule(net(), **choices), likelihood())
    guide = ibvi.AutoMuPNormal(model, covariance=ibvi.LowRank(3))
    with torch.no_grad():
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.add_(0.5)
    return model, guide, torch.randn(shape)


@pytest.mark.parametrize("kind", PAIRS)
def test_frozen_draws_are_the_draws_of_predict(kind):
    model, guide, x = make(kind)
    expected = ibvi.predict(model, guide, x, num_samples=5, generator=seeded())
    served = frozen_draws(model, guide, num_samples=5, generator=seeded())
    for network, output in zip(served.networks, expected.outputs, strict=True):
        torch.testing.assert_close(model.picker(network(x)), output, rtol=1e-6, atol=1e-6)
    mean, variance = served(x)
    torch.testing.assert_close(mean, expected.mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(variance, expected.variance, rtol=1e-6, atol=1e-6)


# torch says this of any recurrent layer that it exports
@pytest.mark.filterwarnings("ignore:The tensor attributes .*_flat_weights:UserWarning")
@pytest.mark.parametrize("kind", PAIRS)
def test_the_exported_program_and_the_trace_give_the_same(kind):
    model, guide, x = make(kind)
    served = frozen_draws(model, guide, num_samples=3)
    expected = served(x)
    program = torch.export.export(served, (x,))
    torch.testing.assert_close(program.module()(x), expected, rtol=1e-6, atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of its tracer
        traced = torch.jit.trace(served, (x,))
        file = io.BytesIO()
        torch.jit.save(traced, file)
        again = torch.jit.load(io.BytesIO(file.getvalue()))
    torch.testing.assert_close(again(x), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["convolutional", "learned noise", "counts", "binary"])
def test_an_export_serves_any_number_of_rows(kind, monkeypatch):
    monkeypatch.setattr(moments, "MAX_NUMBERS", 20)  # predictions cut their rows into parts
    model, guide, x = make(kind)
    served = frozen_draws(model, guide, num_samples=3, generator=seeded())
    many = torch.randn(40, *x.shape[1:])
    expected = ibvi.predict(model, guide, many, num_samples=3, generator=seeded())
    rows = {0: torch.export.Dim("rows")}
    program = torch.export.export(served, (x,), dynamic_shapes={"args": (rows,)}).module()
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        traces = [torch.jit.trace(served, (part,)) for part in (x, many)]
    for run in (program, *traces):
        for num_rows in (40, 2):
            mean, variance = run(many[:num_rows])
            torch.testing.assert_close(mean, expected.mean[:num_rows], rtol=1e-6, atol=1e-6)
            wanted = expected.variance[:num_rows]
            torch.testing.assert_close(variance, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", PAIRS)
def test_the_mean_network_has_the_means_and_shares_nothing(kind):
    model, guide, x = make(kind)
    plain = mean_network(model, guide)
    assert type(plain) is type(model.net.network)
    assert not plain.training
    values = model.net.with_draws(guide.median())
    model.eval()
    torch.testing.assert_close(model.picker(plain(x)), model.run(values, x), rtol=1e-6, atol=1e-6)
    before = model.picker(plain(x))
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers(), *guide.parameters()):
            tensor.zero_()
    assert torch.equal(model.picker(plain(x)), before)


def test_what_is_not_random_is_there_once():
    net = nn.Sequential(nn.Linear(4, 50), nn.BatchNorm1d(50), nn.Linear(50, 50), nn.Linear(50, 1))
    model = ibvi.SupervisedModel(ibvi.RandomModule(net, stochastic="last"), ibvi.Normal())
    served = frozen_draws(model, ibvi.AutoMuPNormal(model), num_samples=10)
    size = sum(parameter.numel() for parameter in served.parameters())
    own = sum(parameter.numel() for parameter in net[3].parameters())
    assert size == sum(parameter.numel() for parameter in net.parameters()) + 9 * own
    first, second = served.networks[:2]
    assert first[2].weight is second[2].weight
    assert not torch.equal(first[3].weight, second[3].weight)


def test_bad_input():
    model, guide, _ = make("counts")
    other = ibvi.AutoMuPNormal(
        ibvi.SupervisedModel(ibvi.RandomModule(nn.Linear(2, 1)), ibvi.Poisson())
    )
    for export in (mean_network, frozen_draws):
        with pytest.raises(ValueError, match="guide was made for another SupervisedModel"):
            export(model, other)
        with pytest.raises(TypeError, match="got Linear and AutoMuPNormal"):
            export(nn.Linear(2, 1), guide)
    with pytest.raises(ValueError, match="num_samples must be a positive whole number"):
        frozen_draws(model, guide, num_samples=0)
