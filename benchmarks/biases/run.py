"""Random, nearly fixed and point-estimated biases: a small convolutional network on digits.

    python -m benchmarks.biases.run --seeds 3

Scikit-learn's 8x8 digits, enlarged to 16x16, a LeNet-like network, a few epochs: what is measured
is how fast training gets anywhere. Writes ``results.json`` beside this file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import SVI
from sklearn.datasets import load_digits
from torch import nn

import pyro_ibvi as ibvi
from benchmarks.provenance import provenance

HERE = Path(__file__).parent
NUM_EPOCHS = 15
CHOICES: dict[str, dict[str, Any]] = {
    "random, standard deviation 1": {"stochastic": "input+output"},
    "random, standard deviation 0.1": {"stochastic": "input+output", "prior": {"*.bias": 0.1}},
    "point-estimated": {"stochastic": "input+output weights"},
}


def make_network() -> nn.Module:
    """A LeNet for images of 16x16."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


def run(options: dict[str, Any], rate: float, seed: int) -> dict[str, Any]:
    """Trains once; returns losses per epoch and scores."""
    pyro.set_rng_seed(seed)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    images = nn.functional.interpolate(images, scale_factor=2, mode="bilinear")
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order[:1200], order[1200:]
    model = ibvi.SupervisedModel(
        ibvi.RandomModule(make_network(), **options), ibvi.Categorical(), num_data=len(train)
    )
    guide = ibvi.AutoMuPNormal(model, covariance=ibvi.LowRank(100))
    optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": rate, "momentum": 0.9}, guide)
    svi = SVI(model, guide, optim, ibvi.TraceExpectedLogLikelihood(reduction="mean"))
    data = torch.utils.data.TensorDataset(images[train], labels[train])
    loader = torch.utils.data.DataLoader(
        data, batch_size=100, shuffle=True, generator=torch.Generator().manual_seed(seed)
    )
    try:
        losses = ibvi.fit(svi, loader, NUM_EPOCHS, progress=False).train_loss
    except FloatingPointError as error:
        return {"seed": seed, "diverged": str(error)}
    scores = ibvi.score(ibvi.predict(model, guide, images[test]), labels[test])
    return {"seed": seed, "train_loss": losses, "scores": scores}


def main() -> None:
    """Runs every choice at two learning rates and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    runs = {}
    for rate in (0.03, 0.1):
        for name, options in CHOICES.items():
            key = f"{name}, rate {rate}"
            runs[key] = [run(options, rate, seed) for seed in range(args.seeds)]
            print(key, [r.get("scores", "diverged") for r in runs[key]], flush=True)
    results = {
        **provenance(),
        "settings": {"epochs": NUM_EPOCHS, "batch_size": 100, "num_train": 1200},
        "runs": runs,
    }
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
