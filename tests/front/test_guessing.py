"""What is told where a training ends as it began."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

import pyro_ibvi as ibvi

X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
LABELS = (X[:, 0] > 0).long()


def trained(likelihood: Any, y: torch.Tensor, num_epochs: int = 10, **choices: Any) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    nn.init.zeros_(net[2].weight), nn.init.zeros_(net[2].bias)  # guesses
    bnn = ibvi.VariationalNetwork(net, likelihood, **choices)
    bnn.fit(X, y, num_epochs=num_epochs, progress=False)


STUCK: dict[str, Any] = {"lr": 1e-9}
BOTH = torch.stack([LABELS, 1 - LABELS], 1).float()


@pytest.mark.parametrize(
    ("likelihood", "y", "words"),
    [
        (ibvi.Categorical(), LABELS, r"0\.693.*among 2 classes is 0\.693.*torch\.optim\.Adam"),
        (ibvi.Bernoulli(), BOTH, r"1\.39, and that of guessing whether each label.*is 1\.39"),
    ],
)
def test_labels_that_were_not_learned_are_told(
    likelihood: Any, y: torch.Tensor, words: str
) -> None:
    with pytest.warns(UserWarning, match=f"learned nothing: after 10 epochs.*{words}"):
        trained(likelihood, y, **STUCK)


@pytest.mark.parametrize(
    ("likelihood", "y", "choices"),
    [
        (ibvi.Categorical(), LABELS, {}),
        (ibvi.Categorical(), LABELS, {"num_epochs": 9, **STUCK}),  # a few epochs tell nothing
        (ibvi.Categorical(weight=[5.0, 5.0]), LABELS, STUCK),  # other units
        (ibvi.Bernoulli(pos_weight=9.0), BOTH, STUCK),
        (ibvi.Normal(), BOTH, STUCK),
        *(
            (ibvi.Categorical(), LABELS, {"loss": loss, "covariance": ibvi.Diagonal(), **STUCK})
            for loss in (
                ibvi.TraceExpectedLogLikelihood(kl_weight=0.1, reduction="mean"),
                ibvi.TraceExpectedLogLikelihood(keep_kl=["net.*"], reduction="mean"),
                ibvi.TraceMeanFieldExpectedLogLikelihood(reduction="mean"),
                Trace_ELBO(),
            )
        ),
    ],
)
def test_what_was_learned_or_has_another_loss_is_not(
    likelihood: Any, y: torch.Tensor, choices: dict[str, Any]
) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The network has learned nothing")
        trained(likelihood, y, **choices)
