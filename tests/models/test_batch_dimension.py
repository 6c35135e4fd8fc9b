"""One datum without its batch dimension is told from a batch, whatever the network is."""

import pyro
import pytest
import torch
from torch import nn

import pyro_ibvi as ibvi


class Flattening(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 2)

    def forward(self, x):
        return self.layer(x.flatten(1))


class Gray(nn.Module):
    """Gives images the dimension of their only channel."""

    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(1, 4, 3), nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.conv(x.unsqueeze(1)).mean((-2, -1)))


class Waves(nn.Module):
    """Makes features of one number for each datum."""

    def __init__(self):
        super().__init__()
        self.layer, self.out = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.layer(torch.sin(x.unsqueeze(-1) * torch.arange(1.0, 5.0))).tanh())


def mlp():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))


def pooled():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )


def everywhere():
    """Makes no error of its own out of a missing batch dimension."""
    return nn.Sequential(nn.Conv1d(3, 4, 1), nn.Tanh(), nn.Conv1d(4, 2, 1))


def flat():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))


def words():
    return nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(20, 2))


def make(net):
    torch.manual_seed(0)
    model = ibvi.SupervisedModel(ibvi.RandomModule(net, stochastic="all"), ibvi.Normal())
    return model, ibvi.AutoMuPNormal(model)


CERTAIN = r"one datum without its batch dimension: pass x\.unsqueeze\(0\)"
FAILED = r"does not run on .*, and runs on \(1, .* pass x\.unsqueeze\(0\)"
ONE = [
    (lambda: nn.Linear(4, 2), (4,), CERTAIN),
    (mlp, (4,), CERTAIN),
    (pooled, (3, 8, 8), CERTAIN),
    (everywhere, (3, 5), CERTAIN),
    (flat, (8, 8), FAILED),
    (Flattening, (64,), FAILED),
    (Flattening, (8, 8), FAILED),
    (words, (5,), FAILED),
]


@pytest.mark.filterwarnings("ignore:The forward pass of")
@pytest.mark.parametrize(("make_net", "shape", "message"), ONE)
def test_one_datum_hears_of_its_batch_dimension(make_net, shape, message):
    model, guide = make(make_net())
    x = torch.ones(shape, dtype=torch.long if make_net is words else torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calls = [lambda: ibvi.predict(model, guide, x, num_samples=3)]
    if message is CERTAIN:  # else the rows are not where they seem, which is said
        calls.append(lambda: ibvi.predict(model, guide, x, num_samples=3, batch_size=1))
    svi = pyro.infer.SVI(
        model, guide, pyro.optim.SGD({"lr": 0.1}), ibvi.TraceExpectedLogLikelihood()
    )
    calls.append(lambda: svi.step(x, torch.zeros(2)))
    relative = ibvi.AutoMuPNormal(model, covariance=ibvi.Multiplicative(0.1))
    objective = ibvi.TraceExpectedLogLikelihood(draws="datum")(model, relative)
    calls.append(lambda: objective(x, torch.zeros(2)))
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert ibvi.predict(model, guide, x.unsqueeze(0), num_samples=3).mean.shape[0] == 1


@pytest.mark.filterwarnings("ignore:The forward pass of")
@pytest.mark.parametrize(("net", "shape"), [(Gray, (1, 8, 8)), (Waves, (4,))])
def test_a_batch_of_the_same_shape_is_one(net, shape):
    """As many data as the layer behind has features, which it does not get."""
    model, guide = make(net())
    x = torch.randn(shape)
    means = ibvi.predict(model, guide, x, num_samples=3, generator=0).mean
    assert means.shape == (shape[0], 2)
    twice = ibvi.predict(model, guide, torch.cat([x, x]), num_samples=3, generator=0).mean
    torch.testing.assert_close(twice[: shape[0]], means)


class Joined(nn.Module):
    """Takes an image and a row of a table."""

    def __init__(self):
        super().__init__()
        self.conv, self.layer, self.out = nn.Conv2d(1, 4, 3), nn.Linear(3, 4), nn.Linear(8, 2)

    def forward(self, image, row):
        pooled = self.conv(image).relu().mean((-2, -1))
        return self.out(torch.cat([pooled, self.layer(row).relu()], -1))


class Conditioned(nn.Module):
    """Takes a batch, and a context that is the same for all of it."""

    def __init__(self):
        super().__init__()
        self.context, self.layer, self.out = nn.Linear(3, 8), nn.Linear(2, 8), nn.Linear(8, 1)

    def forward(self, context, x):
        return self.out((self.layer(x) + self.context(context)).tanh())


@pytest.mark.parametrize(
    "pack", [tuple, lambda parts: dict(zip(["image", "row"], parts, strict=True))]
)
def test_one_datum_of_several_inputs(pack):
    model, guide = make(Joined())
    parts = [torch.randn(1, 8, 8), torch.randn(3)]
    message = r"has shape \(1, 8, 8\), one datum .*: pass each input as x\.unsqueeze\(0\)"
    with pytest.raises(ValueError, match=message):
        ibvi.predict(model, guide, pack(parts), num_samples=3)
    whole = pack([part.unsqueeze(0) for part in parts])
    assert ibvi.predict(model, guide, whole, num_samples=3).mean.shape == (1, 2)


def test_an_input_for_all_data_stays_one():
    model, guide = make(Conditioned())
    x = (torch.randn(3), torch.randn(50, 2))
    assert ibvi.predict(model, guide, x, num_samples=3).mean.shape == (50, 1)


def test_what_fails_for_another_reason_says_that():
    model, guide = make(mlp())
    for x, message in (
        (torch.zeros(6, 3), "expects 4 features in the last dimension, got 3"),
        (torch.zeros(6, 4).double(), r"pass x\.to\(torch\.float32\)"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            ibvi.predict(model, guide, x, num_samples=3)
    with pytest.raises(ValueError, match=r"needs more than one datum in training"):
        model(torch.zeros(1, 4), torch.zeros(1, 2))
    model, guide = make(nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)))
    with pytest.raises(ValueError, match=r"expects 1 features .*, got 7: pass x\.unsqueeze\(-1\)"):
        ibvi.predict(model, guide, torch.zeros(7), num_samples=3)


class OverTime(nn.Module):
    """A layer over times, and the place of data and times where it reads and is read."""

    def __init__(self, layer, before=lambda x: x, after=lambda h: h[:, -1]):
        super().__init__()
        self.layer, self.out = layer, nn.Linear(8, 1)
        self.before, self.after = before, after

    def forward(self, x):
        x = self.before(x)
        hidden = self.layer(x, x, x) if isinstance(self.layer, ATTENTION) else self.layer(x)
        return self.out(self.after(hidden[0] if isinstance(hidden, tuple) else hidden))


ATTENTION = nn.MultiheadAttention
TIME_FIRST = {
    "GRU": lambda **options: nn.GRU(8, 8, **options),
    "MultiheadAttention": lambda **options: ATTENTION(8, 2, **options),
    "TransformerEncoderLayer": lambda **options: nn.TransformerEncoderLayer(
        8, 2, 16, dropout=0.0, **options
    ),
}


def swap(x):
    return x.transpose(0, 1)


def as_model(net, **choices):
    random = ibvi.RandomModule(net, stochastic=["out.weight"], parametrization=ibvi.Standard())
    return ibvi.SupervisedModel(random, ibvi.Normal(), num_data=6, **choices)


@pytest.mark.parametrize("kind", TIME_FIRST)
def test_data_in_the_place_of_times_are_told(kind):
    x, model = torch.randn(6, 5, 8), as_model(OverTime(TIME_FIRST[kind]()))
    with pytest.warns(UserWarning, match=rf"Write {kind}\(\.\.\., batch_first=True\)"):
        outputs = model.run({}, x)
    with torch.no_grad():  # what the warning says: a datum's output goes with the other data
        assert not torch.allclose(outputs[-1:], model.run({}, x[-1:]))


@pytest.mark.parametrize("kind", TIME_FIRST)
@pytest.mark.parametrize(
    ("first", "before", "after"),
    [(True, lambda x: x, lambda h: h[:, -1]), (False, swap, lambda h: h[-1])],
    ids=["batch_first", "transposed"],
)
def test_data_in_their_own_place_are_taken_as_they_are(kind, first, before, after):
    x = torch.randn(6, 5, 8)
    model = as_model(OverTime(TIME_FIRST[kind](batch_first=first), before, after))
    assert torch.allclose(model.run({}, x)[:1], model.run({}, x[:1]), atol=1e-6)


def test_inputs_with_times_in_front_are_taken_as_they_are():
    model = as_model(OverTime(nn.GRU(8, 8), after=lambda h: h[-1]))
    assert model.run({}, torch.randn(5, 6, 8)).shape == (6, 1)
