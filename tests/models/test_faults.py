"""What a person hears whose data do not fit the network, in training and in prediction."""

import pyro
import pytest
import torch
from torch import nn

import pyro_ibvi as ibvi


def mlp():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def convolutional():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 1))


def with_batch_norm():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.o = nn.Embedding(10, 4), nn.Linear(4, 1)

    def forward(self, x):
        return self.o(self.e(x).mean(1))


class Two(nn.Linear):
    def forward(self, a, b):
        return super().forward(a) + b


FAULTS = [
    (mlp, torch.zeros(6, 5), ValueError, r"\(6, 5\), but the layer '0' \(Linear\) expects 3 feat"),
    (mlp, torch.zeros(6, 3).double(), TypeError, r"weights torch\.float32: pass x\.to"),
    (mlp, torch.zeros(6, 3).cfloat(), TypeError, r"pass real and .*view_as_real\(x\)\.flatten"),
    (mlp, "rows", TypeError, "got a str, where its first layer takes a tensor"),
    (mlp, [(torch.zeros(6, 3),)], TypeError, "got a tuple, where .*DataLoader and predict_bat"),
    (convolutional, torch.zeros(6, 64), ValueError, r"expects \(batch, 1, height, width\)"),
    (convolutional, torch.zeros(6, 1, 9, 9), ValueError, r"A layer's input .*expects 72 features"),
    (
        lambda: nn.Sequential(nn.LSTM(3, 4, batch_first=True)),
        torch.zeros(6, 2, 5),
        ValueError,
        r"expects 3 features in the last dimension",
    ),
    (Words, torch.full((6, 2), 10), ValueError, r"up to 10, but .*rows from 0 to 9"),
    (Words, torch.zeros(6, 2).short(), TypeError, r"looks up whole numbers .*pass x\.long\(\)"),
    (Words, torch.zeros(6, 2), TypeError, r"takes whole numbers: pass x\.long\(\)"),
    (lambda: Two(3, 1), torch.zeros(6, 3), TypeError, r"takes \(a, b\), and got 1 input"),
    (
        lambda: Two(3, 1),
        {"a": torch.zeros(6, 3), "c": torch.zeros(6, 1)},
        TypeError,
        r"takes \(a, b\), and got \['a'",  # a batch's other entries may be labels
    ),
]


@pytest.mark.parametrize(("make", "x", "error", "message"), FAULTS)
def test_the_input_is_told(make, x, error, message):
    model = ibvi.SupervisedModel(ibvi.RandomModule(make(), stochastic="all"), ibvi.Normal())
    guide = ibvi.AutoMuPNormal(model)
    with pytest.raises(error, match=message) as training:
        pyro.infer.SVI(
            model, guide, pyro.optim.SGD({"lr": 0.1}), ibvi.TraceExpectedLogLikelihood()
        ).step(x, torch.zeros(6, 1))
    assert "Trace Shapes" not in str(training.value)
    guide = ibvi.AutoMuPNormal(model, covariance=ibvi.Multiplicative(0.1))
    objective = ibvi.TraceExpectedLogLikelihood(draws="datum")(model, guide)
    with pytest.raises(error, match=message):  # draws per datum have a way of their own
        objective(x, torch.zeros(6, 1))
    with pytest.raises(error, match=message):
        ibvi.predict(model, guide, x, num_samples=3)


def test_a_last_batch_of_one_under_batch_norm():
    model = ibvi.SupervisedModel(ibvi.RandomModule(with_batch_norm()), ibvi.Normal())
    with pytest.raises(ValueError, match=r"needs more than one datum in training.*drop_last=True"):
        model(torch.zeros(1, 3), torch.zeros(1, 1))


def test_shapes_of_sites_are_kept_from_the_message():
    model = ibvi.SupervisedModel(ibvi.RandomModule(mlp()), ibvi.Normal(), num_data=4)
    with pytest.raises(ValueError, match="not the number of its batches") as error:
        pyro.poutine.trace(model).get_trace(torch.zeros(6, 3), torch.zeros(6, 1))
    assert "Trace Shapes" not in str(error.value)


def trained_by(make, batches, draws):
    """What two steps make of a network on batches in some form."""
    torch.manual_seed(0)
    model = ibvi.SupervisedModel(
        ibvi.RandomModule(make(), stochastic="last weights"), ibvi.Normal(0.1)
    )
    guide = ibvi.AutoMuPNormal(model, covariance=ibvi.Multiplicative(0.1))
    optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": 0.01}, guide)
    loss = ibvi.TraceExpectedLogLikelihood(reduction="mean", draws=draws)
    svi = pyro.infer.SVI(model, guide, optim, loss)
    losses = [svi.step(*batch) for batch in batches]
    return losses, ibvi.predict(model, guide, batches[0][0], num_samples=3, generator=0).mean


@pytest.mark.parametrize("draws", ["batch", "datum"])
@pytest.mark.parametrize(
    ("make", "whole"),
    [
        (mlp, torch.tensor([[0, 1, 1], [1, 0, 2], [2, 1, 0], [1, 1, 1]])),
        (mlp, torch.tensor([[0, 1, 1], [1, 0, 1], [1, 1, 0], [0, 0, 1]]).bool()),
        (convolutional, torch.arange(4 * 64).reshape(4, 1, 8, 8).remainder(2).to(torch.uint8)),
    ],
)
def test_whole_numbers_are_real_ones_where_the_network_takes_those(make, whole, draws):
    y = torch.randn(4, 1, generator=torch.Generator().manual_seed(1))
    losses, mean = trained_by(make, [(whole, y)] * 2, draws)
    expected_losses, expected = trained_by(make, [(whole.float(), y)] * 2, draws)
    assert losses == expected_losses
    assert torch.equal(mean, expected)


class WordsAndCounts(Words):
    def __init__(self):
        super().__init__()
        self.scale = nn.Linear(2, 1)

    def forward(self, words, counts):
        return super().forward(words) * self.scale(counts)


def test_whole_numbers_stay_indices_where_the_network_looks_them_up():
    net = ibvi.RandomModule(WordsAndCounts(), stochastic=["o.weight"])
    model = ibvi.SupervisedModel(net, ibvi.Normal(0.1))
    guide = ibvi.AutoMuPNormal(model)
    words, counts = torch.randint(10, (5, 3)), torch.randint(7, (5, 2))
    mean = ibvi.predict(model, guide, (words, counts), num_samples=3, generator=0).mean
    expected = ibvi.predict(model, guide, (words, counts.float()), num_samples=3, generator=0)
    assert torch.equal(mean, expected.mean)


def test_images_of_bytes_are_taken_as_they_are_and_hear_of_255():
    model = ibvi.SupervisedModel(ibvi.RandomModule(convolutional()), ibvi.Normal(0.1))
    guide = ibvi.AutoMuPNormal(model)
    x = torch.randint(256, (4, 1, 8, 8), dtype=torch.uint8)
    with pytest.warns(UserWarning, match=r"bytes up to \d+, .*for images write x / 255"):
        mean = ibvi.predict(model, guide, x, num_samples=3, generator=0).mean
    again = ibvi.predict(model, guide, x.float(), num_samples=3, generator=0).mean
    assert torch.equal(mean, again)


@pytest.mark.parametrize("draws", ["batch", "datum"])
def test_arrays_and_data_frames_train_as_tensors_do(draws):
    pandas = pytest.importorskip("pandas")
    x, y = torch.randn(6, 3), torch.randn(6, 1)
    expected_losses, expected = trained_by(mlp, [(x, y)] * 2, draws)
    frame = pandas.DataFrame(x.numpy().astype(float))
    for batch in (
        (x.numpy(), y.numpy()),
        (x.double().numpy(), y.tolist()),
        (frame, pandas.DataFrame(y.numpy())),
        (frame.astype(object), y.numpy()),
        (frame.astype("Float64"), y),
        (x.tolist(), y),
    ):
        losses, mean = trained_by(mlp, [batch] * 2, draws)
        assert losses == expected_losses
        assert torch.equal(mean, expected)


def test_columns_that_are_no_numbers_are_named():
    pandas = pytest.importorskip("pandas")
    model = ibvi.SupervisedModel(ibvi.RandomModule(mlp()), ibvi.Normal())
    frame = pandas.DataFrame({"a": [1.0], "town": ["Ulm"], "day": pandas.to_datetime(["2020"])})
    with pytest.raises(TypeError, match=r"columns \['town', 'day'\]: .*get_dummies"):
        model(frame, torch.zeros(1, 1))
    with pytest.raises(TypeError, match=r"Series of the type .*return_inverse=True\)\[1\]"):
        model(torch.zeros(1, 3), frame["town"])


def test_weights_of_two_types():
    model = ibvi.SupervisedModel(ibvi.RandomModule(mlp()), ibvi.Normal())
    guide = ibvi.AutoMuPNormal(model)
    model.double()
    with pytest.raises(TypeError, match=r"several types.*model and guide together, model\.to\("):
        ibvi.predict(model, guide, torch.zeros(2, 3).double())


def test_weights_on_two_devices():
    model = ibvi.SupervisedModel(ibvi.RandomModule(mlp()), ibvi.Normal())
    guide = ibvi.AutoMuPNormal(model)
    model.to("meta")
    with pytest.raises(ValueError, match=r"devices, cpu and meta: .*guide\.to\(device\)\.$"):
        ibvi.TraceExpectedLogLikelihood().loss(model, guide, torch.zeros(2, 3), torch.zeros(2, 1))


class Failing(nn.Linear):
    """Fails in a way that is its own."""

    error = None

    def forward(self, x):
        if self.error is not None:
            raise self.error
        return super().forward(x).view(7, 3)


@pytest.mark.parametrize("error", [None, torch.OutOfMemoryError("of memory"), KeyError("own")])
def test_a_network_that_fails_by_itself(error):
    """Torch's words stay, without Pyro's list of sites, and errors with a name keep it."""
    net = Failing(3, 1)
    net.error = error
    model = ibvi.SupervisedModel(ibvi.RandomModule(net), ibvi.Normal(), num_data=6)
    guide = ibvi.AutoMuPNormal(model)
    x, y = torch.zeros(6, 3), torch.zeros(6, 1)
    match = r"^The network fails on inputs of the shape \(6, 3\): shape '\[7, 3\]' is .* 6$"
    kind = RuntimeError if error is None else type(error)
    objective = ibvi.TraceExpectedLogLikelihood()
    for call in (
        lambda: pyro.infer.SVI(model, guide, pyro.optim.SGD({"lr": 0.1}), objective).step(x, y),
        lambda: pyro.poutine.trace(model).get_trace(x, y),
        lambda: ibvi.predict(model, guide, x, num_samples=2),
    ):
        with pytest.raises(kind, match=match if error is None else "memory|own"):
            call()


@pytest.mark.parametrize(
    ("size", "is_standardized", "warns"),
    [(255.0, False, True), (255.0, True, False), (1.0, False, False)],
)
def test_inputs_that_nobody_scaled_are_told_unless_the_network_scales_them(
    size, is_standardized, warns, recwarn
):
    torch.manual_seed(0)
    x, y = size * torch.rand(40, 1, 8, 8), torch.randint(0, 3, (40,))
    layers = [nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3)]
    if is_standardized:
        layers.insert(0, nn.BatchNorm2d(1))
    bnn = ibvi.VariationalNetwork(nn.Sequential(*layers), ibvi.Categorical())
    bnn.fit(x, y, num_epochs=2, progress=False)
    told = [w for w in recwarn if "standardize the inputs" in str(w.message)]
    assert len(told) == warns


@pytest.mark.parametrize(("scale", "warns"), [(1.0, True), (300.0, False)])
def test_large_numbers_from_large_inputs_are_no_mistake(scale, warns, recwarn):
    torch.manual_seed(0)
    x = 100.0 * torch.randn(40, 3)
    net = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 1))
    model = ibvi.SupervisedModel(ibvi.RandomModule(net), ibvi.Normal(scale))
    model(x, scale * torch.randn(40, 1))
    assert any("standardize the inputs" in str(w.message) for w in recwarn) == warns


@pytest.mark.parametrize(("size", "warns"), [(500.0, True), (1.0, False)])
def test_large_inputs_are_told_whatever_units_the_targets_have(size, warns, recwarn):
    """Under ``Standardized`` the network makes numbers of size 1."""
    torch.manual_seed(0)
    x, y = size * torch.rand(40, 4), 400 + 300 * torch.randn(40, 1)
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
    likelihood = ibvi.models.Standardized.of(ibvi.Normal(0.5), y)
    ibvi.SupervisedModel(ibvi.RandomModule(net), likelihood)(x, y)
    assert any("standardize the inputs" in str(w.message) for w in recwarn) == warns


class OfMapping(nn.Linear):
    """A network with one argument, which is a mapping."""

    def forward(self, batch):
        return super().forward(batch["one"] + batch["two"])


def test_a_mapping_as_the_only_argument():
    x, y = {"one": torch.randn(6, 3), "two": torch.randn(6, 3)}, torch.randn(6, 1)
    bnn = ibvi.VariationalNetwork(OfMapping(3, 1), ibvi.Normal())
    message = (
        r"takes \(batch\), and got .*\['one', 'two'\].*fit\(\(x,\), y\) and predict\(\(x,\)\)"
    )
    with pytest.raises(TypeError, match=message):
        bnn.fit(x, y, num_epochs=1, progress=False)
    bnn.fit((x,), y, num_epochs=1, progress=False)  # what it says works
    found = bnn.predict((x,), num_samples=4, seed=1)
    plain = ibvi.VariationalNetwork(nn.Linear(3, 1), ibvi.Normal())
    plain.guide.load_state_dict(bnn.guide.state_dict())
    plain.model.load_state_dict(bnn.model.state_dict())
    expected = plain.predict(x["one"] + x["two"], num_samples=4, seed=1)
    torch.testing.assert_close(found.outputs, expected.outputs)
    with pytest.raises(
        ValueError, match=r"takes the mapping as a whole, .*: predict\(\(x,\)\)\.$"
    ):
        bnn.predict(x)


class OfShortName(nn.Linear):
    """A network that takes a mapping, which torch says other words of."""

    def forward(self, batch):
        return super().forward(batch["x"])


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")  # torch, of the name
@pytest.mark.parametrize(("kind", "name"), [(OfMapping, "one"), (OfShortName, "x")])
def test_batches_with_a_mapping_for_the_only_argument(kind, name):
    x, y = torch.randn(6, 3), torch.randn(6, 1)
    bnn = ibvi.VariationalNetwork(kind(3, 1), ibvi.Normal())
    with pytest.raises(ValueError, match=r"looks up names .* in a loader batches \(\(x,\), y\)"):
        bnn.fit([{name: x, "y": y}], num_epochs=1, progress=False)
    bnn.fit([(({name: x, "two": x},), y)], num_epochs=1, progress=False)
