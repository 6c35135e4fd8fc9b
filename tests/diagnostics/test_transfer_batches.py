"""The loss that rates are compared by is that of the data, however they come in batches."""

import pytest
import torch
from torch import nn

import pyro_ibvi as ibvi
from tests.diagnostics.test_transfer import build, loader


def test_a_short_batch_counts_by_its_data():
    x = torch.randn(9, 2)
    y = torch.cat([torch.zeros(8, 1), torch.full((1, 1), 30.0)])
    data = torch.utils.data.TensorDataset(x, y)

    def losses(batch_size):
        valid = torch.utils.data.DataLoader(data, batch_size=batch_size)
        return ibvi.rate_transfer(
            build, [8, 16], [1e-9, 2e-9], loader(), 1, valid_loader=valid, num_draws=200
        ).losses[8, 1e-9][0]

    # One far target among nine: 50 nats each, and not the 225 of a mean over two batches.
    assert losses(8) == pytest.approx(losses(9), rel=0.03)
    assert losses(9) < 75


class Mean(nn.Module):
    """Takes time in front, as recurrent layers do, and gives a number for each datum."""

    def __init__(self, width):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1))

    def forward(self, x):
        return self.net(x.mean(0))


def test_data_count_where_time_comes_first():
    def build_recurrent(width):
        model = ibvi.SupervisedModel(ibvi.RandomModule(Mean(width)), ibvi.Normal())
        return model, ibvi.AutoMuPNormal(model, covariance=ibvi.LowRank(2))

    x, y = torch.randn(5, 9, 2), torch.cat([torch.zeros(8, 1), torch.full((1, 1), 30.0)])
    batches = [(x[:, :8], y[:8]), (x[:, 8:], y[8:])]
    short, whole = (
        ibvi.rate_transfer(
            build_recurrent, [8, 16], [1e-9, 2e-9], [(x, y)], 1, valid_loader=valid, num_draws=200
        ).losses[8, 1e-9][0]
        for valid in (batches, [(x, y)])
    )
    assert short == pytest.approx(whole, rel=0.03)
    assert whole < 75
