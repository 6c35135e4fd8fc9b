"""What predict takes: batches that lie elsewhere, loaders, arrays, seeds; and what it says."""

import copy
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from pyro.infer import SVI
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, Dataset, TensorDataset

import pyro_ibvi as ibvi
from pyro_ibvi.prediction import predict_batches
from tests.layouts import Bags, Graphs, Packed, TimeFirst

#: Roles are not the subject here.
pytestmark = pytest.mark.filterwarnings("ignore:The forward pass of")


def make(net=None, likelihood=None, **options):
    torch.manual_seed(0)
    net = net or nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    model = ibvi.SupervisedModel(
        ibvi.RandomModule(net), likelihood or ibvi.Normal(0.5), num_data=50, **options
    )
    return model, ibvi.AutoMuPNormal(model)


LAYOUTS = [
    (Graphs, (torch.randn(12, 3), torch.arange(12) // 4), 3, 4),
    (TimeFirst, torch.randn(20, 4, 3), 4, 4),  # four steps of four sequences agree by chance
    (Bags, (torch.randint(0, 30, (50,)), torch.tensor([0, 10, 25])), 3, 10),
]


@pytest.mark.parametrize(("kind", "x", "size", "batch_size"), LAYOUTS)
def test_batches_that_lie_elsewhere_are_not_cut(kind, x, size, batch_size):
    model, guide = make(kind())
    assert ibvi.predict(model, guide, x, num_samples=3).mean.shape == (size, 1)
    rows = len(x[0] if isinstance(x, tuple) else x)
    with pytest.raises(ValueError, match=rf"batch_size={batch_size} cuts .* of size {rows}, but"):
        ibvi.predict(model, guide, x, num_samples=3, batch_size=batch_size)
    (whole, _), (again, y) = predict_batches(
        model, guide, [(x, None), (x, "target")], num_samples=3, generator=0
    )
    assert torch.equal(whole.outputs, again.outputs)
    assert y == "target"


def test_packed_sequences():
    model, guide = make(Packed())
    x = pack_sequence([torch.randn(n, 3) for n in (6, 4, 2)])
    assert ibvi.predict(model, guide, x, num_samples=3).mean.shape == (3, 1)


X = torch.randn(10, 3)


def outputs(model, guide, x, **options):
    return ibvi.predict(model, guide, x, num_samples=5, generator=1, **options).outputs


def test_a_seed_is_a_number_or_a_generator():
    model, guide = make()
    whole = outputs(model, guide, X)
    assert torch.equal(outputs(model, guide, X), whole)
    assert torch.allclose(outputs(model, guide, X, batch_size=4), whole, atol=1e-6)
    first = ibvi.predict(model, guide, X, generator=torch.Generator().manual_seed(3)).outputs
    again = ibvi.predict(model, guide, X, generator=torch.Generator().manual_seed(3)).outputs
    assert torch.equal(first, again)
    assert torch.equal(
        ibvi.predict(model, guide, X, generator=np.int64(3)).outputs,
        ibvi.predict(model, guide, X, generator=3).outputs,
    )
    for bad in ("0", 1.0, True):
        with pytest.raises(TypeError, match=r"generator must be a seed or a torch\.Generator"):
            ibvi.predict(model, guide, X, generator=bad)


def test_arrays_and_data_frames_predict_as_tensors_do():
    pandas = pytest.importorskip("pandas")
    model, guide = make()
    expected = outputs(model, guide, X)
    array = X.numpy().astype(np.float64)
    for x in (array, pandas.DataFrame(array), X.tolist(), X.numpy()[:, ::-1][:, ::-1]):
        assert torch.equal(outputs(model, guide, x), expected)
    prediction = ibvi.predict(model, guide, X, num_samples=5, generator=1)
    y = torch.randn(10, 2)
    for given in (y.numpy().astype(np.float64), pandas.DataFrame(y.numpy()), y.tolist()):
        assert torch.equal(prediction.log_prob(given), prediction.log_prob(y))
    with pytest.raises(TypeError, match="Expected numbers, got DataFrame of the type object"):
        outputs(model, guide, pandas.DataFrame({"a": ["x"], "b": [1], "c": [2]}))


def test_loaders_predict_as_the_whole_does():
    model, guide = make()
    y = torch.randn(10, 2)
    expected = outputs(model, guide, X)
    loader = DataLoader(TensorDataset(X, y), batch_size=4)
    torch.testing.assert_close(outputs(model, guide, loader), expected)
    mappings = DataLoader([{"input": x, "labels": t} for x, t in zip(X, y, strict=True)], 5)
    torch.testing.assert_close(outputs(model, guide, mappings), expected)
    torch.testing.assert_close(outputs(model, guide, {"input": X, "labels": y}), expected)
    with pytest.raises(ValueError, match=r"The loader shuffles.*shuffle=False"):
        outputs(model, guide, DataLoader(TensorDataset(X, y), batch_size=4, shuffle=True))
    with pytest.raises(ValueError, match="The loader is empty"):
        outputs(model, guide, DataLoader(TensorDataset(X[:0], y[:0])))


class Rows(Dataset):
    """Data one by one, in one of the forms that a data set may give them."""

    def __init__(self, form):
        self.form, self.y = form, torch.randn(10, 2, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return 10

    def __getitem__(self, i):
        x, y = X[i], self.y[i]
        return {"pair": (x, y), "mapping": {"input": x, "labels": y}, "inputs": x}[self.form]


@pytest.mark.parametrize("form", ["pair", "mapping", "inputs"])
def test_data_sets_predict_as_the_whole_does(form):
    model, guide = make()
    data = Rows(form)
    expected = outputs(model, guide, X)
    torch.testing.assert_close(outputs(model, guide, data), expected)
    torch.testing.assert_close(outputs(model, guide, data, batch_size=4), expected)
    options = {"num_samples": 5, "generator": 1}
    parts = list(predict_batches(model, guide, data, batch_size=4, **options))
    assert [len(part.mean) for part, _ in parts] == [4, 4, 2]
    if form != "inputs":
        whole = ibvi.evaluate(model, guide, [(X, data.y)], foreign=[-X], **options)
        foreign = TensorDataset(-X)
        assert ibvi.evaluate(model, guide, data, foreign=foreign, **options) == pytest.approx(
            whole
        )


def test_what_gives_no_batches_is_told():
    model, guide = make()
    y = torch.randn(10, 2)
    for pair in ((X, y), (X.numpy(), y.numpy())):
        with pytest.raises(TypeError, match=r"got a tuple of 2 tensors .*: write \[\(x, y\)\]"):
            ibvi.evaluate(model, guide, pair)
    for nothing in ("rows", 3):
        with pytest.raises(TypeError, match=f"Batches are expected, got {nothing!r}"):
            list(predict_batches(model, guide, nothing))
    with pytest.raises(TypeError, match=r"evaluate takes \(model, guide, data, .* got 4 by posit"):
        ibvi.evaluate(model, guide, X, y)


def test_a_prediction_does_not_move_with_training():
    model, guide = make(likelihood=ibvi.Normal(0.5, learn_scale=True))
    optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": 0.05}, guide)
    svi = SVI(model, guide, optim, ibvi.TraceExpectedLogLikelihood(reduction="mean"))
    y = torch.randn(10, 2)
    prediction = ibvi.predict(model, guide, X, num_samples=5)
    before = [prediction.log_prob(y), prediction.variance.clone(), copy.deepcopy(prediction).mean]
    for _ in range(5):
        svi.step(X, y)
    assert torch.equal(prediction.log_prob(y), before[0])
    assert torch.equal(prediction.variance, before[1])
    assert torch.equal(prediction.mean, before[2])
    moved = ibvi.Prediction(prediction.outputs, model.likelihood)
    assert not torch.allclose(moved.variance, prediction.variance)
    assert not list(filter(lambda p: p.requires_grad, prediction.likelihood.parameters()))


def test_gradients_with_respect_to_inputs():
    """The mean of a linear model has the mean weight as its gradient."""
    model, guide = make(nn.Linear(3, 1))
    x = X.clone().requires_grad_()
    prediction = ibvi.predict(model, guide, x, num_samples=7, generator=0, differentiable=True)
    (gradient,) = torch.autograd.grad(prediction.mean.sum(), x)
    with torch.random.fork_rng():
        draws = ibvi.predict(model, guide, torch.eye(3), num_samples=7, generator=0).outputs
        zero = ibvi.predict(model, guide, torch.zeros(1, 3), num_samples=7, generator=0).outputs
    weight = (draws - zero).mean(0).squeeze(-1)
    torch.testing.assert_close(gradient, weight.expand(10, 3), rtol=1e-4, atol=1e-5)
    assert not ibvi.predict(model, guide, x, num_samples=3).mean.requires_grad


def test_loaders_have_no_gradients_to_give():
    model, guide = make()
    data = TensorDataset(torch.zeros(4, 3))
    for x in (data, DataLoader(data, 2)):
        with pytest.raises(ValueError, match=r"differentiable=True is .* given as tensors"):
            ibvi.predict(model, guide, x, differentiable=True)


def test_eight_threads_predict_as_one_does():
    net = nn.Sequential(
        nn.Linear(3, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 2)
    )
    model, guide = make(net)
    expected = [
        ibvi.predict(model, guide, X, num_samples=6, generator=i).outputs for i in range(8)
    ]
    with ThreadPoolExecutor(8) as pool:
        jobs = [
            pool.submit(ibvi.predict, model, guide, X, num_samples=6, generator=i % 8)
            for i in range(64)
        ]
        results = [job.result().outputs for job in jobs]
    for i, result in enumerate(results):
        assert torch.equal(result, expected[i % 8])
    assert all(module.training for module in net.modules())


def test_what_cannot_be_predicted_is_told():
    model, guide = make()
    bad = X.clone()
    bad[4, 1] = math.nan
    with pytest.raises(ValueError, match=r"The input holds nan at index \(4, 1\)"):
        ibvi.predict(model, guide, bad)
    with pytest.raises(ValueError, match=r"nothing to predict.*first dimension of size 0"):
        ibvi.predict(model, guide, X[:0])
    with pytest.raises(
        ValueError, match=r"one datum without its batch dimension: pass x\.unsqueeze"
    ):
        ibvi.predict(model, guide, X[0])
    with pytest.raises(
        ValueError, match=r"shape \(10, 2\), but the layer '0' \(Linear\) expects 3"
    ):
        ibvi.predict(model, guide, X[:, :2])


def test_pairs_that_do_not_belong_together():
    model, guide = make()
    other, _ = make()
    with pytest.raises(ValueError, match="made for another"):
        ibvi.predict(other, guide, X)
    with pytest.raises(TypeError, match="The model itself was passed as its guide"):
        ibvi.predict(model, model, X)
    with pytest.raises(TypeError, match=r"got Tensor: write predict\(model, guide, x\)"):
        ibvi.predict(model, X, guide)
    with pytest.raises(TypeError, match=r"model comes first, got the guide AutoMuPNormal"):
        ibvi.predict(guide, model, X)
    bnn = ibvi.VariationalNetwork(nn.Linear(3, 2), ibvi.Normal())
    for pair, which in (((bnn, bnn.guide), "model"), ((bnn.model, bnn), "guide")):
        with pytest.raises(TypeError, match=f"The {which} is a VariationalNetwork, which holds"):
            ibvi.predict(*pair, X)


def test_low_precision_counts_in_float32():
    model, _ = make(likelihood=ibvi.Categorical())
    model.bfloat16()
    guide = ibvi.AutoMuPNormal(model)
    prediction = ibvi.predict(model, guide, X.bfloat16(), num_samples=5)
    assert prediction.outputs.dtype == torch.float32
    sure = ibvi.Prediction(torch.tensor([[[8.0, 0.0]]]).bfloat16(), ibvi.Categorical())
    assert sure.log_prob(torch.tensor([0])).item() == pytest.approx(
        -math.log1p(math.exp(-8)), 1e-3
    )
