"""Batches that are cut into parts, a draw for each, and those that must not be."""

import pytest
import torch
from torch import nn

from pyro_ibvi import (
    AutoMuPNormal,
    LowRank,
    Normal,
    RandomModule,
    SupervisedModel,
    TraceExpectedLogLikelihood,
)
from pyro_ibvi._util.errors import DataError
from tests.layouts import TimeFirst


class Sums(nn.Module):
    """Running sums over the first dimension, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x):
        return self.linear(x.cumsum(0))


@pytest.mark.parametrize(
    ("net", "shape"), [(Sums(), (6, 8, 1)), (TimeFirst(), (8, 1))], ids=["sums", "recurrent"]
)
def test_a_batch_whose_parts_are_other_batches_is_not_cut(net, shape):
    torch.manual_seed(0)
    x, y = torch.randn(6, 8, 3), torch.randn(shape)
    model = SupervisedModel(RandomModule(net, stochastic="last"), Normal(1.0))
    guide = AutoMuPNormal(model, covariance=LowRank(2))
    loss = TraceExpectedLogLikelihood(draws=2)
    loss.loss_and_grads(model, guide, x, y)  # the first step has one draw
    with pytest.raises(DataError, match=r"draws=2 cuts the batch .* Write draws='batch'"):
        loss.loss_and_grads(model, guide, x, y)
    whole = TraceExpectedLogLikelihood(draws="batch")
    for _ in range(2):
        whole.loss_and_grads(model, guide, x, y)


def test_dropout_is_no_reason_not_to_cut():
    net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    model = SupervisedModel(RandomModule(net), Normal(1.0))
    guide = AutoMuPNormal(model, covariance=LowRank(2))
    loss = TraceExpectedLogLikelihood(draws=2)
    for _ in range(2):
        loss.loss_and_grads(model, guide, torch.randn(7, 3), torch.randn(7, 1))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_networks_in_any_precision_are_cut(dtype, autocast):
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1)).to(dtype)
    model = SupervisedModel(RandomModule(net), Normal(1.0))
    guide = AutoMuPNormal(model, covariance=LowRank(2))
    loss = TraceExpectedLogLikelihood(draws=2)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for _ in range(2):
            loss.loss_and_grads(model, guide, torch.randn(7, 3, dtype=dtype), torch.randn(7, 1))
