"""What 100 draws of the last layer cost beside one pass of the whole network.

The layers in front are the same for all draws, so they should run once.

    python -m benchmarks.speed.last_layer

Writes ``last_layer.json`` beside this file.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import pyro_ibvi as ibvi
from benchmarks.speed import timing
from benchmarks.speed.networks import make_resnet18, mlp

HERE = Path(__file__).parent
CPU = torch.device("cpu")


def networks(*, quick: bool = False) -> dict[str, tuple[Callable[[], nn.Module], Tensor]]:
    """Networks and inputs: an MLP of 784-1024-1024-10, and a ResNet-18."""
    if quick:
        return {"MLP": (mlp((8, 8), rounds=1).build, torch.randn(10, 64))}

    def build() -> nn.Module:
        layers = (nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU())
        return nn.Sequential(*layers, nn.Linear(1024, 10))

    return {
        "MLP 784-1024-1024-10": (build, torch.randn(1000, 784)),
        "ResNet-18": (make_resnet18, torch.randn(16, 3, 32, 32)),
    }


def measure(
    build: Callable[[], nn.Module], x: Tensor, *, rounds: int, num_draws: int = 100
) -> dict[str, float]:
    """Milliseconds of one pass and of a prediction, in turn, and the median of their ratios."""
    torch.manual_seed(0)
    network = build().eval()
    net = ibvi.RandomModule(network, stochastic="last")
    model = ibvi.SupervisedModel(net, ibvi.Categorical())
    guide = ibvi.AutoMuPNormal(model)

    def one_pass() -> None:
        with torch.no_grad():
            network(x)

    calls: dict[str, Callable[[], object]] = {
        "one_pass_ms": one_pass,
        "prediction_ms": lambda: ibvi.predict(model, guide, x, num_samples=num_draws, generator=0),
    }
    times = timing.in_turn(calls, rounds, CPU, warmup=1)
    pairs = zip(times["prediction_ms"], times["one_pass_ms"], strict=True)
    return {
        **{name: statistics.median(values) for name, values in times.items()},
        "ratio": statistics.median(a / b for a, b in pairs),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    torch.set_num_threads(1)
    rounds = parser.parse_args().rounds
    found = {name: measure(*case, rounds=rounds) for name, case in networks().items()}
    about = {"draws": 100, "threads": 1, "torch": torch.__version__, "machine": platform.machine()}
    text = json.dumps({**about, "networks": found}, indent=1)
    (HERE / "last_layer.json").write_text(text + "\n")
    print(text)
