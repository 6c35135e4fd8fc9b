"""Relative noise on tables, by the number of data that there are for each feature.

    PYRO_IBVI_DATA=... python -m benchmarks.evidence.many_data

Classes by a network of two hidden layers, by SGD with a cosine schedule: an ordinary one, relative
noise behind the first layer alone, with noise on the features too, and as the recipe of
``VariationalNetwork`` has it. Classes of UCI's tables are the quarters of the target's training
values. Scored on their validation parts, or on data that the generator holds back. Each run is a
line of ``results/many_data.jsonl``; what is there already is not run again.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyro
import torch
from torch import nn

from .data import table_splits
from .first_layer import Problem, Split, clusters, made, network, relative, sweep, trained

#: Noise on features in units of a full share by their number, and noise behind the first layer.
NOISE: dict[str, tuple[float, float] | None] = {
    "ordinary network": None,
    "0.1": (0.0, 0.1),
    "0.2": (0.0, 0.2),
    "0.35": (0.0, 0.35),
    "0.35, features too": (1.0, 0.35),
    "recipe": None,
}


def quarters(name: str) -> Callable[[int], Split]:
    """Which quarter of its range a target is in."""

    def splits(seed: int) -> Split:
        table = list(table_splits(name, seed + 1))[seed]
        edges = np.quantile(table.y.numpy(), [0.25, 0.5, 0.75])
        y, y_valid = (
            torch.tensor(np.digitize(part.numpy()[:, 0], edges))
            for part in (table.y, table.y_valid)
        )
        return table.x, y, table.x_valid, y_valid

    return splits


def _large(splits: Callable[[int], Split], epochs: int) -> Problem:
    return Problem(splits, epochs, batch_size=64)


PROBLEMS = {
    "energy": _large(quarters("energy"), 100),
    "concrete": _large(quarters("concrete"), 100),
    "wine-quality-red": _large(quarters("wine-quality-red"), 60),
    "20 features, 3,000 data": _large(made(3000, clusters(5000, 20)), 30),
    "20 features, 8,000 data": _large(made(8000, clusters(10000, 20)), 20),
    "60 features, 30,000 data": _large(made(30000, clusters(32000, 60)), 12),
    "naval-propulsion-plant": _large(quarters("naval-propulsion-plant"), 20),
    "kin8nm": _large(quarters("kin8nm"), 20),
    "power-plant": _large(quarters("power-plant"), 20),
    "protein-tertiary-structure": _large(quarters("protein-tertiary-structure"), 15),
}


def ordinary(problem: Problem, net: nn.Module, data: Split) -> float:
    """Training without any noise, at the same rate."""
    x, y, x_valid, y_valid = data
    optimizer = torch.optim.SGD(net.parameters(), problem.lr, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, problem.epochs)
    for _ in range(problem.epochs):
        for rows in torch.randperm(len(x)).split(problem.batch_size):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
        scheduler.step()
    with torch.no_grad():
        return nn.functional.cross_entropy(net(x_valid), y_valid).item()


def run(problem: Problem, name: str, seed: int) -> dict[str, float]:
    """Negative log-likelihood of the data held out, and how many there are for each feature."""
    data = problem.splits(seed)
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    x, y = data[:2]
    net = network(x.shape[1], int(y.max()) + 1)
    noise = NOISE[name]
    if name == "ordinary network":
        nll = ordinary(problem, net, data)
    elif noise is None:
        nll = trained(problem, net, data, seed)
    else:
        on_features = noise[0] * 0.35 * min(1.0, x.shape[1] / 32)
        nll = trained(problem, net, data, seed, **relative(net, on_features, noise[1]))
    return {"nll": nll, "density": len(x) / x.shape[1]}


if __name__ == "__main__":
    sweep("many_data", "noise", PROBLEMS, NOISE, run)
