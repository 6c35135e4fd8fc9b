"""How fast may a diagonal factor learn? Transfer and stability of both rules for ``Diagonal``.

    python -m benchmarks.mup.diagonal_rate [--optimizers SGD Adam]

Part 1, a linear unit with ``n`` inputs and single-draw SGD, in expectation: the largest stable
rate of ``S`` by the recursion of its second moment, against the closed form 2 / (n + 2), and
against simulation.

Part 2, digits of scikit-learn, MLP 64-h-h-10 (ReLU), all layers random, SGD with momentum 0.9
or Adam, batches of 100, 5 epochs: the expected training loss over the learning rate for both
rules and for a low-rank factor. The largest stable rate is the largest at which the loss ends
below 4 nats (it starts at about 3.2).

The result goes to ``diagonal_rate.json`` beside this file.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import pyro_ibvi as ibvi
from benchmarks.provenance import provenance

HERE = Path(__file__).parent
RULES = {
    "Diagonal, maximal": (
        ibvi.Diagonal(),
        ibvi.MaximalUpdate(diagonal="maximal", inputs="reference"),
    ),
    "Diagonal, reference": (
        ibvi.Diagonal(),
        ibvi.MaximalUpdate(diagonal="reference", inputs="reference"),
    ),
    "LowRank(10)": (ibvi.LowRank(10), ibvi.MaximalUpdate(inputs="reference")),
}
OPTIMIZERS = {"SGD": (torch.optim.SGD, {"momentum": 0.9}), "Adam": (torch.optim.Adam, {})}
RATES = [10 ** (k / 4) for k in range(-16, -3)]


def growth(size: int, rate: float, num_runs: int, steps: int) -> float:
    """Growth per step of E[sum_i s_i^2 x_i^2], x_i = 1, by simulation from one s each step."""
    s = torch.ones(num_runs, size, dtype=torch.float64) / math.sqrt(size)
    before = s.square().sum(-1).mean()
    for _ in range(steps):
        z = torch.randn_like(s)
        s = s - rate * (s * z).sum(-1, keepdim=True) * z
    return float((s.square().sum(-1).mean() / before) ** (1 / steps))


def linear_unit(sizes: list[int]) -> list[dict]:
    """Growth per step below, at and above the limit of stability."""
    result = []
    for n in sizes:
        limit = 2 / (n + 2)
        for factor in (0.5, 1.0, 1.5):
            rate = factor * limit
            formula = 1 - 2 * rate + rate**2 * (n + 2)
            simulated = growth(n, rate, num_runs=20_000, steps=1)
            result.append(
                {"n": n, "rate / limit": factor, "formula": formula, "simulated": simulated}
            )
    return result


def build(rule: str, width: int) -> tuple[ibvi.SupervisedModel, ibvi.AutoMuPNormal]:
    covariance, parametrization = RULES[rule]
    net = nn.Sequential(
        nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )
    random = ibvi.RandomModule(net, stochastic="all", parametrization=parametrization)
    model = ibvi.SupervisedModel(random, ibvi.Categorical())
    return model, ibvi.AutoMuPNormal(model, covariance=covariance)


def loader() -> torch.utils.data.DataLoader:
    digits = load_digits()
    x = (torch.tensor(digits.data, dtype=torch.float32)[:1200] / 16 - 0.3) / 0.37
    data = torch.utils.data.TensorDataset(x, torch.tensor(digits.target)[:1200])
    return torch.utils.data.DataLoader(data, batch_size=100, shuffle=True)


def run(rule: str, optimizer: type, optim_args: dict, args: argparse.Namespace) -> dict:
    """The grid of one rule and one optimizer."""
    start = time.perf_counter()
    result = ibvi.rate_transfer(
        lambda width: build(rule, width),
        args.widths,
        RATES,
        loader(),
        args.epochs,
        optimizer=optimizer,
        optim_args=optim_args,
        num_seeds=args.seeds,
        num_draws=4,
    )
    stable = [
        max((r for r, loss in zip(RATES, result.mean(width), strict=True) if loss < 4), default=0)
        for width in args.widths
    ]
    print(rule, optimizer.__name__, result, f"largest stable rates {stable}", sep="\n", flush=True)
    return {
        **result.to_dict(),
        "slope": result.slope(),
        "largest_stable_rates": stable,
        "seconds": round(time.perf_counter() - start),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--optimizers", nargs="+", default=list(OPTIMIZERS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    path = HERE / "diagonal_rate.json"
    results = json.loads(path.read_text()) if path.exists() else {"transfer": {}}
    results["linear_unit"] = linear_unit([16, 64, 256])
    for name in args.optimizers:
        for rule in RULES:
            results["transfer"][f"{name}, {rule}"] = run(rule, *OPTIMIZERS[name], args)
    results |= {
        "settings": {"epochs": args.epochs, "seeds": args.seeds, "batch_size": 100},
        **provenance(),
    }
    path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
