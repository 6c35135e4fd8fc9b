"""Noise on what the first layer reads: how much, by number of features and of data.

    PYRO_IBVI_DATA=... python -m benchmarks.evidence.first_layer

Classification by networks of two hidden layers with relative noise of 0.35 behind the first layer
and a draw for each datum, by SGD with a cosine schedule. The first layer has none, some, or what
the recipe of ``VariationalNetwork`` gives it ("recipe"). Scored on data held out from
training: of scikit-learn's sets a part of what ``estimators`` trains on, of the digits some that
``benchmarks/digits`` tests on. Each run is a line of ``results/first_layer.jsonl``; what is there
already is not run again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import pyro
import torch
from sklearn import datasets
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import pyro_ibvi as ibvi

from .data import load_images
from .networks import mlp_784
from .records import Record, Records

Split = tuple[Tensor, Tensor, Tensor, Tensor]
SCALES: list[float | str] = [0.0, 0.1, 0.2, 0.35, "recipe"]
SEEDS = range(3)


@dataclass(frozen=True)
class Problem:
    """Data to train on and to score, by seed, and how long to train."""

    splits: Callable[[int], Split]
    epochs: int
    lr: float = 0.1
    batch_size: int = 32


def split(x: Any, y: Any, num_train: int | float, seed: int) -> Split:
    """Standardized by the training part."""
    x, x_valid, y, y_valid = train_test_split(x, y, train_size=num_train, random_state=seed)
    mean, std = x.mean(0), np.where(x.std(0) > 1e-6, x.std(0), 1.0)
    inputs = [torch.tensor((part - mean) / std, dtype=torch.float32) for part in (x, x_valid)]
    return inputs[0], torch.tensor(y), inputs[1], torch.tensor(y_valid)


def bundled(load: Callable[..., Any]) -> Callable[[int], Split]:
    """Half of one of scikit-learn's sets, scored on a fifth."""

    def splits(seed: int) -> Split:
        x, y = load(return_X_y=True)
        x, _, y, _ = train_test_split(x, y, train_size=0.7, random_state=seed, stratify=y)
        return split(x, y, 0.7, seed)

    return splits


def made(num_train: int, make: Callable[[int], tuple[Any, Any]]) -> Callable[[int], Split]:
    """Data from a generator, with 2,000 to score."""
    return lambda seed: split(*make(seed), num_train, seed)


def moons(seed: int) -> tuple[Any, Any]:
    """Two features that say all."""
    return datasets.make_moons(2600, noise=0.1, random_state=seed)


def clusters(num_data: int, num_features: int) -> Callable[[int], tuple[Any, Any]]:
    """Clusters of four classes; two of five features say something."""

    def make(seed: int) -> tuple[Any, Any]:
        return datasets.make_classification(
            num_data,
            num_features,
            n_informative=max(4, 2 * num_features // 5),
            n_redundant=num_features // 10,
            n_classes=4,
            n_clusters_per_class=2,
            flip_y=0.02,
            random_state=seed,
        )

    return make


@cache
def fashion() -> Split:
    """12,000 images and the validation images of the other benchmarks."""
    data = load_images(name="fashion-mnist", num_train=12000, num_valid=4000, ood="kmnist")
    return data.x, data.y, data.x_valid, data.y_valid


PROBLEMS: dict[str, Problem] = {
    "moons": Problem(made(600, moons), 40),
    "6 features": Problem(made(600, clusters(2600, 6)), 40),
    "wine": Problem(bundled(datasets.load_wine), 100),
    "20 features": Problem(made(600, clusters(2600, 20)), 40),
    "20 features, 8,000 data": Problem(made(8000, clusters(10000, 20)), 20, batch_size=64),
    "breast cancer": Problem(bundled(datasets.load_breast_cancer), 100),
    "60 features": Problem(made(600, clusters(2600, 60)), 40),
    "digits": Problem(bundled(datasets.load_digits), 40),
    "Fashion-MNIST": Problem(lambda seed: fashion(), 25, lr=0.05, batch_size=128),
}


def network(num_features: int, num_classes: int) -> nn.Sequential:
    """Two hidden layers of 128."""
    return nn.Sequential(
        *(nn.Linear(num_features, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()),
        nn.Linear(128, num_classes),
    )


def relative(net: nn.Module, on_features: float, behind: float) -> dict[str, Any]:
    """The choices of relative noise, on features and behind the first layer."""
    first = {"input": ibvi.Multiplicative(on_features, rate=0.0)} if on_features else {}
    noise = ibvi.Multiplicative(behind, rate=0.0)
    return {
        "stochastic": "linear+inner weights" if on_features else "inner weights",
        "covariance": {**first, "hidden": noise, "output": noise},
        "init_loc_fn": ibvi.init_to_network,
        "parametrization": ibvi.MaximalUpdate(base=net),
        "draws": "datum",
    }


def trained(problem: Problem, net: nn.Module, data: Split, seed: int, **choices: Any) -> float:
    """Negative log-likelihood of the data held out."""
    x, y, x_valid, y_valid = data
    bnn = ibvi.VariationalNetwork(
        net,
        ibvi.Categorical(),
        lr=problem.lr,
        scheduler=lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, problem.epochs),
        **choices,
    )
    bnn.fit(x, y, num_epochs=problem.epochs, batch_size=problem.batch_size, progress=False)
    return ibvi.score(bnn.predict(x_valid, seed=seed), y_valid)["nll"]


def run(problem: Problem, scale: float | str, seed: int) -> Record:
    """Negative log-likelihood of the data held out."""
    data = problem.splits(seed)
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    x, y = data[:2]
    net = network(x.shape[1], int(y.max()) + 1) if x.dim() == 2 else mlp_784()
    choices = {} if scale == "recipe" else relative(net, float(scale), 0.35)
    return {"nll": trained(problem, net, data, seed, **choices)}


def sweep(
    name: str,
    option: str,
    problems: dict[str, Problem],
    choices: Iterable[Any],
    run: Callable[[Problem, Any, int], Record],
) -> None:
    """Runs what is not there yet of all problems, choices and seeds.

    Args:
        name: Name of the file of records.
        option: What the choices are called there.
        problems: The problems by name.
        choices: The choices.
        run: Gives ``nll``, and what else is to be written, of a problem, a choice and a seed.
    """
    torch.set_num_threads(1)
    records = Records(name, ("data", option, "seed"))
    for (data, problem), choice in itertools.product(problems.items(), choices):
        values = []
        for seed in SEEDS:
            key = {"data": data, option: choice, "seed": seed}
            values.append(records.get(key, partial(run, problem, choice, seed))["nll"])
        print(f"{data} {choice}: {np.mean(values):.4f}", flush=True)


if __name__ == "__main__":
    sweep("first_layer", "scale", PROBLEMS, SCALES, run)
