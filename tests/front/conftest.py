"""Small networks and data, made alike in every process."""

import pytest
import torch
from torch import nn

import pyro_ibvi as ibvi


def make_net(width=16, num_inputs=2, num_outputs=1):
    return nn.Sequential(
        nn.Linear(num_inputs, width),
        nn.BatchNorm1d(width),
        nn.Tanh(),
        nn.Linear(width, num_outputs),
    )


@pytest.fixture
def data():
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(1))
    return x, x.sum(-1, keepdim=True).sin()


@pytest.fixture
def trained(data):
    torch.manual_seed(3)
    bnn = ibvi.VariationalNetwork(make_net(), ibvi.Normal(0.3, learn_scale=True))
    bnn.fit(*data, num_epochs=2, batch_size=10, progress=False)
    return bnn
