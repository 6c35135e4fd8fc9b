"""What labels by a transformer get where a user says nothing of it."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

import pyro_ibvi as ibvi
from pyro_ibvi.mup.parametrization import MaximalUpdate
from tests.front.test_recipe import make_convnet


class OwnAttention(nn.Module):
    """A block of attention as people write it, behind embeddings and a norm of its own."""

    class RMSNorm(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x / x.pow(2).mean(-1, keepdim=True).sqrt()

    class CausalSelfAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(8, 24)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = self.qkv(x).chunk(3, -1)
            return (q @ k.mT / 8**0.5).softmax(-1) @ v

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(3, 8), self.RMSNorm()
        self.attention, self.head = self.CausalSelfAttention(), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        return self.head((h + self.attention(self.norm(h))).mean(1))


class OfWords(nn.Module):
    """Embeddings and one more layer, with a norm or without."""

    def __init__(self, norm: type[nn.Module]) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.rest = nn.Sequential(nn.Linear(8, 8), norm(8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rest(self.words(x).mean(1))


def transformer() -> nn.Module:
    layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)
    return nn.Sequential(nn.Linear(3, 8), layers, nn.Linear(8, 3))


@pytest.mark.parametrize(
    ("make", "optimizer"),
    [
        (transformer, torch.optim.Adam),
        (OwnAttention, torch.optim.Adam),
        (lambda: OfWords(nn.LayerNorm), torch.optim.Adam),
        (lambda: OfWords(nn.Identity), torch.optim.SGD),
        (lambda: OfWords(nn.BatchNorm1d), torch.optim.SGD),
        (make_convnet, torch.optim.SGD),
    ],
)
def test_labels_by_transformers_get_adam(make: Any, optimizer: Any) -> None:
    """They get what numbers by them get: slow positions, logits as torch has them, no warning."""
    with warnings.catch_warnings(action="error"):
        bnn = ibvi.VariationalNetwork(make(), ibvi.Categorical())
    assert bnn.optim.pt_optim_constructor is optimizer
    rates = MaximalUpdate(vectors=0.03, attention="1/sqrt(d)")
    assert (bnn.net.parametrization == rates) == (optimizer is torch.optim.Adam)
    given = ibvi.VariationalNetwork(make(), ibvi.Categorical(), optimizer=torch.optim.SGD)
    assert given.net.parametrization.base is not None  # those of ordinary training
