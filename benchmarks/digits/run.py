"""Deterministic training, stock Pyro and IBVI on scikit-learn's digits, over seeds.

    python -m benchmarks.digits.run --seeds 5

Writes ``results.json`` beside this file, and the table in README.md between its markers.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyro
import scipy.ndimage
import sklearn
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import pyro_ibvi as ibvi
from benchmarks.provenance import provenance

HERE = Path(__file__).parent
README = HERE.parent.parent / "README.md"
MARKER = "<!-- digits-table -->"
BATCH_SIZE = 100
NUM_EPOCHS = 60
NUM_TEST = 597

Predictions = dict[str, ibvi.Prediction]


def make_network() -> nn.Module:
    """A 64-128-128-10 network."""
    return nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )


class Data:
    """Images, standardized, and shifted test sets."""

    def __init__(self) -> None:
        digits = load_digits()
        images = (torch.tensor(digits.data, dtype=torch.float32) / 16 - 0.3) / 0.37
        self.x, x_test, self.y, self.y_test = train_test_split(
            images,
            torch.tensor(digits.target),
            test_size=NUM_TEST,
            random_state=0,
            stratify=digits.target,
        )
        turned = scipy.ndimage.rotate(
            x_test.reshape(-1, 8, 8), 30, axes=(1, 2), reshape=False, order=1, mode="nearest"
        )
        noise = torch.randn(x_test.shape, generator=torch.Generator().manual_seed(0))
        self.tests = {
            "clean": x_test,
            "noise": x_test + noise,
            "rotation": torch.tensor(turned).reshape(-1, 64),
        }

    def loader(self, seed: int) -> torch.utils.data.DataLoader:
        """Batches in an order that the seed decides."""
        return torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(self.x, self.y),
            batch_size=BATCH_SIZE,
            shuffle=True,
            generator=torch.Generator().manual_seed(seed),
        )


def cosine(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """The schedule of all runs by SGD."""
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, NUM_EPOCHS)


def train(network: nn.Module, data: Data, seed: int, lr: float) -> None:
    """Ordinary training."""
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9)
    scheduler = cosine(optimizer)
    loader = data.loader(seed)
    for _ in range(NUM_EPOCHS):
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x), y).backward()
            optimizer.step()
        scheduler.step()


def several(network: nn.Module, x: torch.Tensor, num_draws: int) -> ibvi.Prediction:
    """The prediction of some draws of a network."""
    with torch.no_grad():
        outputs = torch.stack([network(x) for _ in range(num_draws)])
    return ibvi.Prediction(outputs, ibvi.Categorical())


def deterministic(data: Data, seed: int) -> Predictions:
    """An ordinary network."""
    network = make_network()
    train(network, data, seed, lr=0.1)
    return {name: several(network, x, 1) for name, x in data.tests.items()}


def dropout(data: Data, seed: int, p: float, lr: float) -> Predictions:
    """Monte Carlo dropout in front of the second and the last layer."""
    base = make_network()
    network = nn.Sequential(*base[:2], nn.Dropout(p), *base[2:4], nn.Dropout(p), base[4])
    train(network, data, seed, lr)
    return {name: several(network, x, 100) for name, x in data.tests.items()}


def stock_pyro(data: Data, seed: int, init_scale: float = 0.1) -> Predictions:
    """AutoNormal and Trace_ELBO, with standard normal priors on all weights."""
    net = ibvi.RandomModule(make_network(), stochastic="all", prior=1.0)
    model = ibvi.SupervisedModel(net, ibvi.Categorical(), num_data=len(data.x))
    guide = AutoNormal(model, init_scale=init_scale)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    ibvi.fit(svi, data.loader(seed), NUM_EPOCHS, progress=False)
    return {name: ibvi.predict(model, guide, x) for name, x in data.tests.items()}


def implicit_bias(data: Data, seed: int, rank: int, lr: float) -> Predictions:
    """The paper's recipe."""
    net = ibvi.RandomModule(make_network())
    model = ibvi.SupervisedModel(net, ibvi.Categorical(), num_data=len(data.x))
    guide = ibvi.AutoMuPNormal(model, covariance=ibvi.LowRank(rank))
    arguments = {"lr": lr, "momentum": 0.9}
    optim = ibvi.MuPOptim(torch.optim.SGD, arguments, guide, scheduler=cosine)
    loss = ibvi.TraceExpectedLogLikelihood(reduction="mean")
    ibvi.fit(SVI(model, guide, optim, loss), data.loader(seed), NUM_EPOCHS, progress=False)
    return {name: ibvi.predict(model, guide, x) for name, x in data.tests.items()}


def default(data: Data, seed: int, lr: float, num_components: int = 1) -> Predictions:
    """What ``VariationalNetwork`` makes of itself: relative noise, a draw for each datum."""
    bnn = ibvi.VariationalNetwork(
        make_network(),
        ibvi.Categorical(),
        lr=lr,
        scheduler=cosine,
        num_components=num_components,
    )
    bnn.fit(data.loader(seed), num_epochs=NUM_EPOCHS, progress=False)
    return {name: bnn.predict(x) for name, x in data.tests.items()}


#: The rates of all by SGD, and dropout's probability out of 0.1, 0.2 and 0.35, have the best
#: likelihood of 200 of the training images, trained on the others, out of 0.03, 0.1, 0.17, 0.3 and
#: 1: with seed 100 for the paper's recipe, with 100, 101 and 102 for the rest.
METHODS: dict[str, Callable[[Data, int], Predictions]] = {
    "deterministic": deterministic,
    "MC dropout": lambda data, seed: dropout(data, seed, 0.2, lr=0.17),
    "ELBO, stock Pyro": stock_pyro,
    "ELBO, initial scale 0.01": lambda data, seed: stock_pyro(data, seed, init_scale=0.01),
    "IBVI, rank 10": lambda data, seed: implicit_bias(data, seed, 10, lr=0.1),
    "IBVI, rank 100": lambda data, seed: implicit_bias(data, seed, 100, lr=0.17),
    "IBVI, relative noise": lambda data, seed: default(data, seed, lr=0.17),
    "IBVI, four components": lambda data, seed: default(data, seed, 1.0, num_components=4),
}


def run(method: Callable[[Data, int], Predictions], data: Data, seed: int) -> dict:
    """Scores of one run on each test set."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    start = time.perf_counter()
    scores = {k: ibvi.score(p, data.y_test) for k, p in method(data, seed).items()}
    return {"seed": seed, "seconds": time.perf_counter() - start, "scores": scores}


def mean(runs: list[dict], test: str, score: str) -> float:
    """Mean of a score over seeds."""
    return float(np.mean([run["scores"][test][score] for run in runs]))


def table(results: dict) -> str:
    """The results as Markdown: accuracy on clean images, and the likelihood on all."""
    tests = {"clean": "NLL", "noise": "NLL with noise", "rotation": "NLL turned by 30°"}
    header = ["", "accuracy", *tests.values()]
    lines = [header, ["---"] + ["---:"] * (len(header) - 1)]
    for name, runs in results["runs"].items():
        nll = [f"{mean(runs, test, 'nll'):.3f}" for test in tests]
        lines.append([name, f"{100 * mean(runs, 'clean', 'accuracy'):.1f} %", *nll])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_table(results: dict) -> None:
    """Puts the table into the README, after its marker."""
    head, _, tail = README.read_text().partition(MARKER)
    rest = tail.lstrip("\n")
    while rest.startswith("|"):
        rest = rest.partition("\n")[2]
    README.write_text(f"{head}{MARKER}\n{table(results)}\n\n{rest.lstrip()}")


def main() -> None:
    """Runs every method and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--table-only", action="store_true", help="from results that are there")
    parser.add_argument("--only", nargs="*", default=METHODS, help="run these, keep the others")
    args = parser.parse_args()
    path = HERE / "results.json"
    if not args.table_only:
        torch.set_num_threads(1)
        data = Data()
        runs = {name: [] for name in METHODS}
        if path.exists():
            runs |= json.loads(path.read_text())["runs"]
        for name in args.only:
            runs[name] = [run(METHODS[name], data, seed) for seed in range(args.seeds)]
            print(name, {t: round(mean(runs[name], t, "nll"), 4) for t in data.tests})
        results = {
            **provenance(sklearn),
            "settings": {"epochs": NUM_EPOCHS, "batch_size": BATCH_SIZE, "num_samples": 100},
            "runs": runs,
        }
        path.write_text(json.dumps(results, indent=1) + "\n")
    results = json.loads(path.read_text())
    write_table(results)
    print(table(results))


if __name__ == "__main__":
    main()
