"""Data of the hierarchical model."""

import pytest
import torch

from tests.arviz.pairs import J, N


@pytest.fixture
def data():
    x, group = torch.randn(N, 2), torch.arange(N) % J
    return x, group, torch.randn(N)
