"""A step with a draw of the weights for each datum, beside ordinary training and MC dropout.

    python -m benchmarks.speed.per_datum [--rounds 100] [NETWORK ...]

Contenders take turns within a round, so a machine that drifts slows all alike. Printed are the
median milliseconds of a step and the median, over rounds, of its ratio to ordinary training.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from pyro.infer import SVI
from torch import Tensor, nn

import pyro_ibvi as ibvi
from benchmarks.speed.contenders import MOMENTUM, NUM_DATA, Trainer, deterministic, torch_trainer
from benchmarks.speed.networks import Network, all_networks
from benchmarks.speed.timing import in_turn, summary

BASE = "deterministic"


def dropout(network: Network, x: Tensor, y: Tensor) -> Trainer:
    """Ordinary training with dropout before every layer but the first."""
    net = with_dropout(network.build(), 0.2)
    optimizer = torch.optim.SGD(net.parameters(), 1e-3, momentum=MOMENTUM)
    return torch_trainer(optimizer, lambda: nn.functional.cross_entropy(net(x), y))


def with_dropout(net: nn.Module, p: float) -> nn.Sequential:
    """A sequential network with dropout before its linear layers, the first excepted."""
    layers: list[nn.Module] = []
    for i, layer in enumerate(net.children()):
        layers += [nn.Dropout(p), layer] if i and isinstance(layer, nn.Linear) else [layer]
    return nn.Sequential(*layers)


def ours(
    covariance: ibvi.guides.Covariance | None, draws: int | str, stochastic: object = nn.Linear
) -> Callable[[Network, Tensor, Tensor], Trainer]:
    """This package through ``SVI``, with noise on the weights of some layers."""

    def make(network: Network, x: Tensor, y: Tensor) -> Trainer:
        chosen = "last" if covariance is None else stochastic
        net = ibvi.RandomModule(network.build(), stochastic=chosen)  # type: ignore[arg-type]
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


CONTENDERS = {
    BASE: deterministic,
    "MC dropout": dropout,
    "SVI without noise": ours(None, "batch"),
    "noise held, a draw per datum": ours(ibvi.Multiplicative(0.4, rate=0), "datum"),
    "noise learned, a draw per datum": ours(ibvi.Multiplicative(0.4), "datum"),
    "noise learned, a draw per batch": ours(ibvi.Multiplicative(0.4), "batch"),
}


def main() -> None:
    """Prints a table for each network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=["MLP 256", "LeNet-5"])
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args()
    device = torch.device("cpu")
    for name in options.networks:
        network = all_networks()[name]
        torch.manual_seed(0)
        x, y = network.data(network.batch, device)
        trainers = {who: make(network, x, y) for who, make in CONTENDERS.items()}
        times = in_turn({who: t.step for who, t in trainers.items()}, options.rounds, device)
        print(f"\n{name}, batch {network.batch}, {torch.get_num_threads()} threads")
        for who, own in times.items():
            row = summary(own, ratio=times[BASE])
            print(f"  {who:34s} {row['ms']:8.3f} ms  {row['ratio']:5.2f}  best {min(own):8.3f}")


if __name__ == "__main__":
    main()
