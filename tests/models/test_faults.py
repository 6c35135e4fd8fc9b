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
    (mlp, torch.zeros(6, 3).long(), TypeError, r"dtype torch\.int64 and .*pass x\.to\(torch\.fl"),
    (
        convolutional,
        torch.zeros(6, 1, 8, 8, dtype=torch.uint8),
        TypeError,
        r"dtype torch\.uint8 .*for images divided by 255",
    ),
    (convolutional, torch.zeros(6, 64), ValueError, r"expects \(batch, 1, height, width\)"),
    (convolutional, torch.zeros(6, 1, 9, 9), ValueError, r"A layer's input .*expects 72 features"),
    (
        lambda: nn.Sequential(nn.LSTM(3, 4, batch_first=True)),
        torch.zeros(6, 2, 5),
        ValueError,
        r"expects 3 features in the last dimension",
    ),
    (Words, torch.full((6, 2), 10), ValueError, r"up to 10, but .*rows from 0 to 9"),
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


@pytest.mark.parametrize("given", [[0.0] * 6, torch.zeros(6, 1).numpy()])
def test_targets_that_are_no_tensor(given):
    model = ibvi.SupervisedModel(ibvi.RandomModule(mlp()), ibvi.Normal())
    with pytest.raises(TypeError, match="Targets must be a tensor, got"):
        model(torch.zeros(6, 3), given)


def test_a_data_frame_hears_of_itself():
    pandas = pytest.importorskip("pandas")
    model = ibvi.SupervisedModel(ibvi.RandomModule(mlp()), ibvi.Normal())
    frame = pandas.DataFrame(torch.zeros(6, 3).numpy())
    with pytest.raises(TypeError, match=r"got DataFrame\..*torch\.as_tensor\(x\.to_numpy\(\)\)"):
        model(frame, torch.zeros(6, 1))
    with pytest.raises(TypeError, match=r"got Series; pass torch\.as_tensor\(y\.to_numpy\(\)\)"):
        model(torch.zeros(6, 3), frame[0])
