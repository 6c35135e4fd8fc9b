"""Points chosen by a network and expected improvement, beside random ones, on Branin's function.

    python -m benchmarks.howto.branin

begins with ten random points and adds ten, each chosen with the network of the page on active
learning (here of two inputs) or at random, and writes the best value after each to
``branin.json`` beside this file. It needs BoTorch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from botorch.acquisition.logei import qLogExpectedImprovement
from botorch.optim import optimize_acqf
from torch import Tensor, nn

import pyro_ibvi as ibvi
from benchmarks.speed.run import environment
from pyro_ibvi.botorch import FunctionDraws

NUM_SEEDS, NUM_START, NUM_ADDED = 5, 10, 10
BOUNDS = torch.tensor([[-1.0, -1.0], [1.0, 1.0]], dtype=torch.double)


def branin(x: Tensor) -> Tensor:
    """Minus Branin's function on the square from -1 to 1; its largest value is -0.398."""
    a, b = 7.5 * x[:, :1] + 2.5, 7.5 * x[:, 1:] + 7.5
    curve = b - 5.1 / (4 * math.pi**2) * a**2 + 5 / math.pi * a - 6
    return -(curve**2 + 10 * (1 - 1 / (8 * math.pi)) * a.cos() + 10)


def train(x: Tensor, y: Tensor) -> ibvi.VariationalNetwork:
    """The page's network."""
    net = nn.Sequential(
        nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)
    )
    likelihood = ibvi.models.Standardized.of(ibvi.Normal(0.1), y)
    bnn = ibvi.VariationalNetwork(net, likelihood, optimizer=torch.optim.Adam, lr=0.03)
    bnn.fit(x.float(), y.float(), num_epochs=200)
    return bnn


def chosen(x: Tensor, y: Tensor) -> Tensor:
    """The point of largest expected improvement."""
    bnn = train(x, y)
    draws = FunctionDraws(bnn.model, bnn.guide, num_samples=64, generator=0)
    improvement = qLogExpectedImprovement(draws, best_f=y.max())
    point, _ = optimize_acqf(improvement, BOUNDS, q=1, num_restarts=4, raw_samples=64)
    return point


def random_point(x: Tensor, y: Tensor) -> Tensor:
    """A point that looks at nothing."""
    return 2 * torch.rand(1, 2, dtype=torch.double) - 1


def course(choose: Callable[[Tensor, Tensor], Tensor], seed: int) -> list[float]:
    """The best value after the first points and after each that is added."""
    torch.manual_seed(seed)
    x = 2 * torch.rand(NUM_START, 2, dtype=torch.double) - 1
    y = branin(x)
    best = [y.max().item()]
    for _ in range(NUM_ADDED):
        point = choose(x, y)
        x, y = torch.cat([x, point]), torch.cat([y, branin(point)])
        best.append(y.max().item())
    return best


def main() -> None:
    """Runs all seeds and writes the results."""
    torch.set_num_threads(1)
    courses = {
        name: [course(choose, seed) for seed in range(NUM_SEEDS)]
        for name, choose in (("network", chosen), ("random", random_point))
    }
    results = {**environment(torch.device("cpu")), "seeds": NUM_SEEDS, "best": courses}
    Path(__file__).with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    for name, rows in courses.items():
        print(name, [f"{row[0]:.2f} to {row[-1]:.2f}" for row in rows])


if __name__ == "__main__":
    main()
