"""The defaults for class labels by batches of few data.

    python -m benchmarks.evidence.small_batches

Each network as ``VariationalNetwork`` makes it with nothing chosen, with the rate that batches of
128 have by default, and by Adam as an ordinary network. Negative log-likelihood of data held out.
Each run is a line of ``results/small_batches.jsonl``; what is there already is not run again.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial

import torch
from sklearn.datasets import load_wine, make_classification
from torch import Tensor, nn

import pyro_ibvi as ibvi

from .other_targets import (
    LARGE_RATE,
    NUM_SEEDS,
    ORDINARY,
    Recurrent,
    Situation,
    classes_of_sequences,
    digits,
    images,
    mlp,
    run,
)
from .records import Records

BATCH_SIZES = (4, 16, 32, 64)
NUM_EPOCHS = 20


def standardized(x: Tensor) -> Tensor:
    """Features of mean 0 and variance 1, and 0 where there is one value."""
    return (x - x.mean(0)) / x.std(0).clamp_min(1e-6)


def standardized_digits() -> tuple[Tensor, Tensor]:
    """Digits each pixel of which is standardized, rare ones among them, which become large."""
    x, y = digits()
    return standardized(x), y


def wine() -> tuple[Tensor, Tensor]:
    """Thirteen features of wines, of three kinds."""
    x, y = load_wine(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return standardized(torch.tensor(x, dtype=torch.float32))[order], torch.tensor(y)[order]


def noisy_labels() -> tuple[Tensor, Tensor]:
    """Twenty features and four classes, 30 % of the labels at random."""
    x, y = make_classification(3000, 20, n_informative=10, n_classes=4, flip_y=0.3, random_state=0)
    return standardized(torch.tensor(x, dtype=torch.float32)), torch.tensor(y)


def of_features(num_features: int, num_classes: int) -> nn.Module:
    """Two hidden layers of 64."""
    hidden = [nn.Linear(num_features, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(64, num_classes))


def convolutional() -> nn.Module:
    """Two convolutions and two linear layers."""
    hidden = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()]
    hidden += [nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*hidden, nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10))


def recurrent() -> nn.Module:
    """A GRU, read at the last time."""
    return Recurrent(nn.GRU, last=True, num_outputs=3)


_of_labels = partial(
    Situation, make_likelihood=ibvi.Categorical, before=LARGE_RATE, num_epochs=NUM_EPOCHS
)
SITUATIONS = {
    "digits, standardized pixels": _of_labels(standardized_digits, 1200, partial(mlp, 10)),
    "wine": _of_labels(wine, 120, partial(of_features, 13, 3)),
    "labels of which 30 % are random": _of_labels(noisy_labels, 1000, partial(of_features, 20, 4)),
    "images of digits, convolutions": _of_labels(images, 1200, convolutional),
    "last time, GRU": _of_labels(partial(classes_of_sequences, "last"), 700, recurrent),
}


def main() -> None:
    """Runs all situations."""
    torch.set_num_threads(1)
    records = Records("small_batches", ("data", "batch_size", "contender", "seed"))
    runs = itertools.product(
        range(NUM_SEEDS), SITUATIONS, BATCH_SIZES, ("default", "before", ORDINARY)
    )
    for seed, name, batch_size, contender in runs:
        key = {"data": name, "batch_size": batch_size, "contender": contender, "seed": seed}
        situation = replace(SITUATIONS[name], batch_size=batch_size)
        print(key, round(records.get(key, partial(run, situation, contender, seed))["nll"], 4))


if __name__ == "__main__":
    main()
