"""Coordinate check of three networks over widths, optimizers, covariances and parametrizations.

    python -m benchmarks.mup.coordinate_check [--networks MLP conv] [--optimizers SGD]

Networks of width ``h`` on scikit-learn's digits (8x8), with all layers random:

MLP          64-h-h-10, ReLU
conv         3x3 convolution 1-h with stride 2, 3x3 convolution h-h, mean over positions, h-10
transformer  the rows as 8 tokens, with their position one-hot; 16-h, one pre-norm block with h/16
             heads of size 16 and a feedforward layer of width h, mean over tokens, h-10

All data are in each step; no momentum; measured after 1 and 10 steps over 3 draws. Two choices
make the exponents visible at the narrow end. The biases' prior is 0.1, and the data are the digits
0 to 3, while the networks have ten outputs. With all ten digits in equal parts the mean of the
gradient over data vanishes at infinite width, and what the first steps of a narrow network do is
mostly to undo its first logits, which fall with the width as they should; one setup shows that.

Narrow networks have more seeds than wide ones. A low-rank factor of the convolution at width 4096
would have 1.5 billion entries, so the convolution and, for time, the transformer end at 1024; one
setup with a factor of rank 2 goes on to 2048.

The result goes to ``coordinate_check.json`` beside this file after every case; cases that are
there already with the same settings are left as they are.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import pyro_ibvi as ibvi
from benchmarks.provenance import provenance

FILE = Path(__file__).with_suffix(".json")
OPTIMIZERS = {
    "SGD": (torch.optim.SGD, {}),
    "Adam": (torch.optim.Adam, {}),
    "AdamW": (torch.optim.AdamW, {"weight_decay": 0.01}),
}
CASES = {
    "MaximalUpdate, LowRank(10)": (ibvi.LowRank(10), ibvi.MaximalUpdate(inputs="reference")),
    "MaximalUpdate, Diagonal, reference": (
        ibvi.Diagonal(),
        ibvi.MaximalUpdate(diagonal="reference", inputs="reference"),
    ),
    "MaximalUpdate, Diagonal, maximal": (
        ibvi.Diagonal(),
        ibvi.MaximalUpdate(diagonal="maximal", inputs="reference"),
    ),
    "Standard, LowRank(10)": (ibvi.LowRank(10), ibvi.Standard()),
}
HEAD_SIZE = 16
NUM_DRAWS = 3
QUANTITIES = ("size", "change", "loc", "factor")


class Block(nn.Module):
    """A pre-norm transformer block with heads of constant size, so that muP needs no option."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_attention, self.norm_feedforward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out, self.up, self.down = (
            nn.Linear(width, width) for _ in range(6)
        )

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        h = self.norm_attention(x)
        query, key, value = (
            layer(h).unflatten(-1, (-1, HEAD_SIZE)).transpose(-2, -3)
            for layer in (self.query, self.key, self.value)
        )
        weights = (query @ key.mT / HEAD_SIZE**0.5).softmax(-1)
        x = x + self.out((weights @ value).transpose(-2, -3).flatten(-2))
        return x + self.down(self.up(self.norm_feedforward(x)).relu())


class MeanOverTokens(nn.Module):
    """Mean over the second dimension."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return x.mean(1)


def mlp(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )


def conv(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 10),
    )


def transformer(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(16, width), Block(width), MeanOverTokens(), nn.Linear(width, 10)
    )


def as_tokens(x: Tensor) -> Tensor:
    positions = torch.eye(8).expand(len(x), 8, 8)
    return torch.cat([x.reshape(-1, 8, 8), positions], -1)


@dataclass(frozen=True)
class Setup:
    """A kind of network, what it is given, and how it is measured."""

    net: Callable[[int], nn.Module]
    inputs: Callable[[Tensor], Tensor]
    seeds: dict[int, int]  # by width
    rates: dict[str, float]  # by optimizer, those that are measured
    num_data: int
    num_digits: int = 4  # that the data show
    cases: dict[str, tuple] = field(default_factory=lambda: CASES)


NETWORKS = {
    "MLP": Setup(
        mlp,
        lambda x: x,
        {64: 16, 256: 8, 1024: 4, 4096: 4},
        {"SGD": 0.005, "Adam": 0.002, "AdamW": 0.002},
        num_data=32,
    ),
    "conv": Setup(
        conv,
        lambda x: x.reshape(-1, 1, 8, 8),
        {64: 16, 256: 8, 1024: 4},
        {"SGD": 0.03, "Adam": 0.003, "AdamW": 0.003},
        num_data=16,
    ),
    "transformer": Setup(
        transformer,
        as_tokens,
        {64: 24, 256: 12, 1024: 6},
        {"SGD": 0.005, "Adam": 0.002, "AdamW": 0.002},
        num_data=16,
    ),
    "transformer, ten digits": Setup(
        transformer,
        as_tokens,
        {64: 24, 256: 12, 1024: 6},
        {"SGD": 0.005},
        num_data=20,
        num_digits=10,
        cases={"MaximalUpdate, LowRank(10)": CASES["MaximalUpdate, LowRank(10)"]},
    ),
    "transformer, wider": Setup(
        transformer,
        as_tokens,
        {128: 18, 512: 12, 2048: 6},
        {"Adam": 0.002},
        num_data=16,
        cases={
            "MaximalUpdate, LowRank(2)": (ibvi.LowRank(2), ibvi.MaximalUpdate(inputs="reference"))
        },
    ),
}


def build(setup: Setup, case: str, width: int) -> tuple[ibvi.SupervisedModel, ibvi.AutoMuPNormal]:
    covariance, parametrization = setup.cases[case]
    random = ibvi.RandomModule(
        setup.net(width),
        stochastic="all",
        prior={"*.bias": 0.1},
        parametrization=parametrization,
    )
    model = ibvi.SupervisedModel(random, ibvi.Categorical())
    return model, ibvi.AutoMuPNormal(model, covariance=covariance)


def load_data(setup: Setup) -> tuple[Tensor, Tensor]:
    digits = load_digits()
    chosen = (digits.target < setup.num_digits).nonzero()[0][: setup.num_data]
    x = (torch.tensor(digits.data[chosen], dtype=torch.float32) / 16 - 0.3) / 0.37
    return setup.inputs(x), torch.tensor(digits.target[chosen])


def settings(network: str, case: str, optimizer: str) -> dict:
    """What a case's numbers depend on, and by which it is known to have been done."""
    setup = NETWORKS[network]
    seeds = setup.seeds
    if case.startswith("Standard"):  # fails clearly without wide networks and many seeds
        seeds = {64: 3, 128: 3, 256: 3}
    return {
        "network": network,
        "case": case,
        "optimizer": optimizer,
        "optim_args": {"lr": setup.rates[optimizer], **OPTIMIZERS[optimizer][1]},
        "widths": list(seeds),
        "seeds": list(seeds.values()),
        "num_data": setup.num_data,
        "num_digits": setup.num_digits,
        "num_draws": NUM_DRAWS,
    }


def measure(network: str, case: str, optimizer: str) -> ibvi.diagnostics.CoordinateCheck:
    setup, chosen = NETWORKS[network], settings(network, case, optimizer)
    return ibvi.coordinate_check(
        lambda width: build(setup, case, width),
        chosen["widths"],
        load_data(setup),
        optimizer=OPTIMIZERS[optimizer][0],
        optim_args=chosen["optim_args"],
        num_seeds=chosen["seeds"],
        num_draws=NUM_DRAWS,
    )


def slope_and_error(check: ibvi.diagnostics.CoordinateCheck, key: tuple[str, int, str]) -> list:
    numbers = check.slope(*key), check.slope_error(*key)
    return [round(number, 4) if math.isfinite(number) else None for number in numbers]


def records(check: ibvi.diagnostics.CoordinateCheck) -> list[dict]:
    """Slopes with their standard errors, and the values that they come from."""
    upper = ibvi.diagnostics.CoordinateCheck(
        check.sizes[1:], {k: v[1:] for k, v in check.rms.items()}
    )
    return [
        {
            "quantity": key[0],
            "step": key[1],
            "name": key[2],
            "slope": slope_and_error(check, key),
            "upper_slope": slope_and_error(upper, key),
            "values": [float(f"{v:.4g}") for v in check.mean(*key)],
        }
        for key in check.rms
        if key[0] in QUANTITIES and not key[2].endswith(".bias")
    ]


def write(results: list[dict], file: Path = FILE) -> None:
    """One line a record, so that the file can be read and its changes seen."""
    lines = []
    for result in results:
        rows = ",\n".join(f"  {json.dumps(record)}" for record in result["records"])
        rest = {name: value for name, value in result.items() if name != "records"}
        lines.append(f'{json.dumps(rest)[:-1]}, "records": [\n{rows}]}}')
    head = json.dumps(provenance())[:-1]
    file.write_text(f'{head},\n"results": [\n' + ",\n".join(lines) + "]}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--optimizers", nargs="+", default=list(OPTIMIZERS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = json.loads(FILE.read_text())["results"] if FILE.exists() else []
    runs = [
        (network, case, optimizer)
        for optimizer, network in product(args.optimizers, args.networks)
        if optimizer in NETWORKS[network].rates
        for case in NETWORKS[network].cases
    ]
    for network, case, optimizer in runs:
        chosen = settings(network, case, optimizer)
        if any(result["settings"] == chosen for result in results):
            continue
        start = time.perf_counter()
        rows = records(measure(network, case, optimizer))
        seconds = round(time.perf_counter() - start)
        names = ("network", "case", "optimizer")
        results = [r for r in results if any(r["settings"][n] != chosen[n] for n in names)]
        results.append({"settings": chosen, "seconds": seconds, "records": rows})
        write(results)
        print(f"{network}, {case}, {optimizer}: {seconds} s", flush=True)


if __name__ == "__main__":
    main()
