"""A step with a draw of the weights for each datum, beside ordinary training and MC dropout.

    python -m benchmarks.speed.per_datum

measures steps and peak memory on one thread and writes ``per_datum.json`` beside this file. Steps
take turns, and their time is the thread's own processor time, which other programs on the machine
change less than they change the clock's. Memory is that of a process for each contender.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import SVI
from torch import Tensor, nn

import pyro_ibvi as ibvi
from benchmarks.evidence.networks import conv6
from benchmarks.speed.contenders import MOMENTUM, NUM_DATA, Trainer, deterministic, torch_trainer
from benchmarks.speed.memory import NUM_STEPS, ROOT, Peak
from benchmarks.speed.names import DETERMINISTIC
from benchmarks.speed.networks import Network, all_networks, mlp
from benchmarks.speed.run import environment
from benchmarks.speed.timing import in_turn, summary

RESULTS = Path(__file__).parent / "per_datum.json"
DEVICE = torch.device("cpu")
STD = 0.4
WITHOUT, PER_BATCH = "SVI without noise", "noise learned, a draw per batch"
DEFAULT = "default for class labels"
#: Networks by name with the rounds of their steps, and those whose memory is measured.
ROUNDS = {"MLP 256": 200, "MLP 1024": 40, "MLP 2048": 15}
ROUNDS |= {"LeNet-5": 60, "conv6 with GroupNorm": 12, "ResNet-18": 5}
MEMORY = ("MLP 2048", "LeNet-5")


def networks() -> dict[str, Network]:
    """The networks, among them a small one with GroupNorm."""
    return {**all_networks(), "conv6 with GroupNorm": Network(conv6, (3, 32, 32), 64, 12)}


def before_linear(net: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> nn.Sequential:
    """A sequential network with a module before its linear layers."""
    layers: list[nn.Module] = []
    for layer in net.children():
        layers += [make(layer), layer] if isinstance(layer, nn.Linear) else [layer]
    return nn.Sequential(*layers)


class RelativeNoise(nn.Module):
    """Multiplies by ``1 + s z``, a draw for each datum, as one would write it in torch.

    Args:
        size: Number of units.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((size,), STD))

    def forward(self, x: Tensor) -> Tensor:
        """Inputs with noise."""
        return x * torch.addcmul(self.scale.new_ones(()), self.scale, torch.randn_like(x))


def with_module(
    make: Callable[[nn.Linear], nn.Module],
) -> Callable[[Network, Tensor, Tensor], Trainer]:
    """Ordinary training with a module before each linear layer, one that reads the data too."""

    def make_trainer(network: Network, x: Tensor, y: Tensor) -> Trainer:
        net = before_linear(network.build(), make)
        optimizer = torch.optim.SGD(net.parameters(), 1e-3, momentum=MOMENTUM)
        return torch_trainer(optimizer, lambda: nn.functional.cross_entropy(net(x), y))

    return make_trainer


def ours(
    covariance: ibvi.guides.Covariance | None, draws: int | str
) -> Callable[[Network, Tensor, Tensor], Trainer]:
    """This package through ``SVI``, with noise on the weights of all linear layers."""

    def make(network: Network, x: Tensor, y: Tensor) -> Trainer:
        net = ibvi.RandomModule(network.build(), stochastic=[nn.Linear])
        model = ibvi.SupervisedModel(net, ibvi.Categorical(), NUM_DATA)
        spec = {"*.bias": None, "*": covariance}
        guide = ibvi.AutoMuPNormal(model, covariance=spec)
        optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": 1e-4, "momentum": MOMENTUM}, guide)
        loss = ibvi.TraceExpectedLogLikelihood(reduction="mean", draws=draws)  # type: ignore[arg-type]
        svi = SVI(model, guide, optim, loss)

        def parameters() -> list[Tensor]:
            return [p for group in optim.optimizer.param_groups for p in group["params"]]

        return Trainer(lambda: float(svi.step(x, y)), parameters)

    return make


def default(network: Network, x: Tensor, y: Tensor) -> Trainer:
    """What :class:`~pyro_ibvi.VariationalNetwork` takes for class labels."""
    bnn = ibvi.VariationalNetwork(network.build(), ibvi.Categorical(), lr=1e-3)
    bnn.model.num_data = NUM_DATA

    def parameters() -> list[Tensor]:
        return [p for group in bnn.optim.optimizer.param_groups for p in group["params"]]

    return Trainer(lambda: float(bnn.svi.step(x, y)), parameters)


CONTENDERS = {
    DETERMINISTIC: deterministic,
    "MC dropout": with_module(lambda layer: nn.Dropout(0.2)),
    "noise by hand, a draw per datum": with_module(lambda layer: RelativeNoise(layer.in_features)),
    WITHOUT: ours(None, "batch"),
    "noise held, a draw per datum": ours(ibvi.Multiplicative(STD, rate=0), "datum"),
    "noise learned, a draw per datum": ours(ibvi.Multiplicative(STD), "datum"),
    PER_BATCH: ours(ibvi.Multiplicative(STD), "batch"),
    DEFAULT: default,
}


def trainers(network: Network, who: list[str]) -> dict[str, Trainer]:
    """The contenders on a network and one batch."""
    torch.manual_seed(0)
    x, y = network.data(network.batch, DEVICE)
    return {name: CONTENDERS[name](network, x, y) for name in who}


def measure_steps(name: str, rounds: int) -> dict[str, Any]:
    """Times of a step and their ratios to the ordinary one, by contender."""
    calls = {who: t.step for who, t in trainers(networks()[name], list(CONTENDERS)).items()}
    times = in_turn(calls, rounds, DEVICE, clock=time.thread_time)
    return {who: summary(own, ratio=times[DETERMINISTIC]) for who, own in times.items()}


def peak_here(name: str, who: str) -> int:
    """Peak memory of later steps in this process."""
    trainers(mlp((8, 8), rounds=1), [who])[who].step()  # libraries load what they load
    peak = Peak(DEVICE)
    (trainer,) = trainers(networks()[name], [who]).values()
    trainer.step()
    peak.restart()
    for _ in range(NUM_STEPS):
        trainer.step()
    return peak.bytes()


def measure_memory(name: str) -> dict[str, int]:
    """Peaks in bytes by contender, each of a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.speed.per_datum", "--peak", name]
    return {
        who: int(subprocess.check_output([*command, who], cwd=ROOT, text=True))
        for who in CONTENDERS
        if who not in (WITHOUT, PER_BATCH)  # nothing that the others do not keep
    }


def main() -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peak", nargs=2, metavar=("NETWORK", "CONTENDER"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="two rounds, to see that it runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pyro.enable_validation(True)  # as a user has it
    warnings.simplefilter("ignore")
    if options.peak:
        print(peak_here(*options.peak))
        return
    start = time.perf_counter()
    results: dict[str, Any] = {**environment(DEVICE), "seed": 0, "quick": options.quick}
    results |= {"steps": {}, "memory": {}}
    for name, rounds in ROUNDS.items():
        found = measure_steps(name, 2 if options.quick else rounds)
        results["minutes"] = round((time.perf_counter() - start) / 60, 1)
        results["steps"][name] = {"batch": networks()[name].batch, "rows": found}
        print(name, {who: round(row["ratio"], 2) for who, row in found.items()}, flush=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n")  # what is there, if one fails
    for name in MEMORY[: 1 if options.quick else None]:
        results["memory"][name] = measure_memory(name)
        results["minutes"] = round((time.perf_counter() - start) / 60, 1)
        print(name, results["memory"][name], flush=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
