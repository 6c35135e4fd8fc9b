"""Time of a training step against ordinary training, all contenders in turn.

    python benchmarks/speed/run.py --threads 2

An MLP 64-h-h-h-10, batch 128, momentum SGD (stock Pyro: Adam). The contenders take one step each,
round after round, so that a drifting machine slows all alike; medians of the times and of the
ratios within a round go to ``results.json`` beside this file.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn

import pyro_ibvi as ibvi

HERE = Path(__file__).parent
BATCH = 128
Step = Callable[[], object]


def make_network(width: int) -> nn.Module:
    """The network of every contender."""
    return nn.Sequential(
        nn.Linear(64, width),
        nn.SiLU(),
        nn.Linear(width, width),
        nn.SiLU(),
        nn.Linear(width, width),
        nn.SiLU(),
        nn.Linear(width, 10),
    )


def deterministic(width: int, x: torch.Tensor, y: torch.Tensor) -> Step:
    """Ordinary training with one torch optimizer."""
    network = make_network(width)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)

    def step() -> float:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def implicit_bias(stochastic: str, covariance: ibvi.Covariance) -> Callable[..., Step]:
    """This package, through SVI."""

    def make(width: int, x: torch.Tensor, y: torch.Tensor) -> Step:
        net = ibvi.RandomModule(make_network(width), stochastic=stochastic)
        model = ibvi.SupervisedModel(net, ibvi.Categorical(), num_data=10 * BATCH)
        guide = ibvi.AutoMuPNormal(model, covariance=covariance)
        optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": 1e-6, "momentum": 0.9}, guide)
        svi = SVI(model, guide, optim, ibvi.TraceExpectedLogLikelihood(reduction="mean"))
        return lambda: svi.step(x, y)

    return make


def stock_pyro(width: int, x: torch.Tensor, y: torch.Tensor) -> Step:
    """AutoNormal, Trace_ELBO and Pyro's Adam."""
    net = ibvi.RandomModule(make_network(width), stochastic="all")
    model = ibvi.SupervisedModel(net, ibvi.Categorical(), num_data=10 * BATCH)
    svi = SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 1e-5}), Trace_ELBO())
    return lambda: svi.step(x, y)


CONTENDERS: dict[str, Callable[..., Step]] = {
    "deterministic": deterministic,
    "IBVI, mean-field everywhere": implicit_bias("all", ibvi.Diagonal()),
    "IBVI, rank 10, input and output": implicit_bias("input+output", ibvi.LowRank(10)),
    "IBVI, rank 100, input and output": implicit_bias("input+output", ibvi.LowRank(100)),
    "stock Pyro": stock_pyro,
}


def measure(width: int, num_rounds: int) -> dict[str, dict[str, float]]:
    """Median milliseconds and median ratio to the deterministic step of the same round."""
    x, y = torch.randn(BATCH, 64), torch.randint(0, 10, (BATCH,))
    pyro.clear_param_store()
    steps = {name: make(width, x, y) for name, make in CONTENDERS.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(num_rounds + 5):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if i >= 5:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {
        name: {
            "ms": statistics.median(values),
            "ratio": statistics.median(
                value / base for value, base in zip(values, times["deterministic"], strict=True)
            ),
        }
        for name, values in times.items()
    }


def main() -> None:
    """Measures every width and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 256, 1024, 2048])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pyro.set_rng_seed(0)
    widths = {}
    for width in args.widths:
        widths[str(width)] = measure(width, max(20, min(300, 100_000 // width)))
        print(width, {k: round(v["ratio"], 2) for k, v in widths[str(width)].items()}, flush=True)
    results = {
        "versions": {
            "python": platform.python_version(),
            **{m.__name__: m.__version__ for m in (torch, pyro, ibvi)},
        },
        "hardware": f"{platform.machine()}, {args.threads} threads",
        "seed": 0,
        "batch": BATCH,
        "widths": widths,
    }
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
