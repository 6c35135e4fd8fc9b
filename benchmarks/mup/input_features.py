"""The largest stable rate of SGD over the number of input features.

    PYRO_IBVI_DATA=... python -m benchmarks.mup.input_features

A d-128-128-classes network with ReLU on 256 rows of standardized data with 4 (iris), 64 (digits),
784 (Fashion-MNIST) and 3,072 (CIFAR-10) features, all rows in each of 40 steps without momentum. A
power of two is stable if the loss at the end is finite and at most 1.2 times that at the start, a
draw's. With the first layer held still the others say what they bear; ``"normalized"`` divides the
rate of the first layer by the number of features, ``"reference"``, the rule of the paper's code,
does not.

The data directory holds ``fashion-mnist/*.gz`` and ``cifar10-jpeg/CIFAR-10-images.tar.gz`` (JPEG,
so not for comparison with published numbers).
"""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pyro.infer import SVI
from sklearn.datasets import load_digits, load_iris
from torch import Tensor, nn

import pyro_ibvi as ibvi
from benchmarks.evidence.data import raw_images
from benchmarks.provenance import provenance

FILE = Path(__file__).with_suffix(".json")
NUM_ROWS, WIDTH, NUM_STEPS, NUM_SEEDS = 256, 128, 40, 3
POWERS = range(-5, 7)


def cifar() -> tuple[Tensor, Tensor]:
    folder = Path(os.environ.get("PYRO_IBVI_DATA", "data")) / "cifar10-jpeg"
    images, labels, classes = [], [], {}
    with tarfile.open(folder / "CIFAR-10-images.tar.gz") as archive:
        for member in archive:
            parts = Path(member.name).parts
            if member.isfile() and "test" in parts and len(images) < 5000:
                stream = io.BytesIO(archive.extractfile(member).read())
                images.append(np.asarray(Image.open(stream), dtype=np.float32).reshape(-1))
                labels.append(classes.setdefault(parts[-2], len(classes)))
    return torch.tensor(np.stack(images)), torch.tensor(labels)


def data_sets() -> dict[str, tuple[Tensor, Tensor]]:
    """Rows by the name of the data, standardized by one mean and one deviation."""
    images, labels, _, _ = raw_images("fashion-mnist")
    fashion = torch.tensor(images[:NUM_ROWS]).flatten(1)
    found = {"CIFAR-10": cifar()}
    found["Fashion-MNIST"] = fashion, torch.tensor(labels[:NUM_ROWS])
    for name, load in (("digits", load_digits), ("iris", load_iris)):
        x, y = load(return_X_y=True)
        found[name] = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    result = {}
    for name, (x, y) in found.items():
        rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:NUM_ROWS]
        x, y = x[rows], y[rows]
        result[name] = (x - x.mean()) / x.std(), y
    return result


def is_stable(x: Tensor, y: Tensor, rule: str, rate: float, seed: int, *, held: bool) -> bool:
    torch.manual_seed(seed)
    num_classes = int(y.max()) + 1
    net = nn.Sequential(
        nn.Linear(x.shape[1], WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(),
        nn.Linear(WIDTH, num_classes),
    )  # fmt: skip
    if held:
        net[0].requires_grad_(False)
    parametrization = ibvi.MaximalUpdate(inputs=rule)
    random = ibvi.RandomModule(net, stochastic=["4.weight"], parametrization=parametrization)
    model = ibvi.SupervisedModel(random, ibvi.Categorical(), num_data=len(x))
    guide = ibvi.AutoMuPNormal(model, covariance=ibvi.LowRank(10))
    optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": rate}, guide)
    svi = SVI(model, guide, optim, ibvi.TraceExpectedLogLikelihood(reduction="mean"))
    losses = []
    for _ in range(NUM_STEPS):
        losses.append(svi.step(x, y))
        if not np.isfinite(losses[-1]) or losses[-1] > 10 * losses[0]:
            return False
    return bool(np.mean(losses[-5:]) < 1.2 * losses[0])


def largest(x: Tensor, y: Tensor, rule: str, *, held: bool) -> float:
    """The largest power of two up to which most seeds are stable."""
    stable = 0.0
    for power in POWERS:
        votes = [is_stable(x, y, rule, 2.0**power, s, held=held) for s in range(NUM_SEEDS)]
        if sum(votes) <= NUM_SEEDS / 2:
            break
        stable = 2.0**power
    return stable


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for name, (x, y) in data_sets().items():
        row = {"data": name, "features": x.shape[1]}
        row["others"] = largest(x, y, "normalized", held=True)
        for rule in ("normalized", "reference"):
            row[rule] = largest(x, y, rule, held=False)
        rows.append(row)
        print(row, flush=True)
    rows.sort(key=lambda row: row["features"])
    content = {"rows": rows, **provenance()}
    FILE.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
