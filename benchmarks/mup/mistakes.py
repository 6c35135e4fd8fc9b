"""Coordinate checks by the default rules, over width and depth, and of deliberate mistakes.

    python -m benchmarks.mup.mistakes

Networks are those of ``coordinate_check.py``, all weights random with a factor of rank 2, on the
digits 0 to 3 of scikit-learn; over depth a residual network of width 64 whose pre-norm branches
are multiplied by the base's depth over its own, or by the root of that. The mistakes are those
that a check must find:

standard    one rate for all
epsilon     Adam's epsilon, as large as the gradients, not scaled with them
decay       a large decay, of which the rate's factor is not taken out
Adam's rule the hidden rates of Adam for Muon's orthogonal updates
branches    a deeper network that does not multiply its branches

The result goes to ``mistakes.json`` beside this file after every case; cases that are there
already with the same settings are left as they are, others are dropped.
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pyro_ibvi as ibvi
from benchmarks.mup.coordinate_check import (
    NETWORKS,
    load_data,
    mlp,
    slope_and_error,
    transformer,
    write,
)

FILE = Path(__file__).with_suffix(".json")
STEPS = (1, 5)
NUM_DRAWS = 3
BASE_DEPTH = 2
DEPTH_WIDTH = 64
LARGE_DECAY = 10.0
NARROWEST = 128


class UnscaledEpsilon(ibvi.MaximalUpdate):
    """The mistake: one epsilon for gradients of every size."""

    def epsilon(self, role: Any, fans: Any, *, side: Any = None) -> float:  # noqa: D102
        return 1.0


class AdamsRule(ibvi.MaximalUpdate):
    """The mistake: Muon's orthogonal updates made smaller as Adam's are."""

    def rate(self, role: Any, fans: Any, family: Any) -> float:  # noqa: D102
        return super().rate(role, fans, "adam" if family == "muon" else family)


class UnscaledDecay(torch.optim.AdamW):
    """The mistake: one decay for groups of every rate."""

    def step(self, closure: Any = None) -> Any:  # noqa: D102
        for group in self.param_groups:
            if group["weight_decay"]:
                group["weight_decay"] = LARGE_DECAY * NARROWEST  # right at that width
        return super().step(closure)


class Branch(nn.Module):
    """A pre-norm residual block."""

    def __init__(self, width: int, multiplier: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)
        self.multiplier = multiplier

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return x + self.multiplier * self.down(self.up(self.norm(x)).relu())


def residual(depth: int, power: float = 1.0) -> nn.Module:
    multiplier = (BASE_DEPTH / depth) ** power
    blocks = [Branch(DEPTH_WIDTH, multiplier) for _ in range(depth)]
    return nn.Sequential(
        nn.Linear(64, DEPTH_WIDTH), nn.Sequential(*blocks), nn.Linear(DEPTH_WIDTH, 10)
    )


@dataclass(frozen=True)
class Case:
    """A network with what it learns by. The rule is a mistake where one is named."""

    network: str
    optimizer: str
    optim_args: dict[str, float]
    mistake: str = ""
    rule: ibvi.mup.Parametrization = field(default_factory=ibvi.MaximalUpdate)
    kind: type[torch.optim.Optimizer] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What the numbers depend on, by which a case is known to have been done."""
        names = ("network", "optimizer", "optim_args", "mistake")
        sizes, seeds = SIZES[self.network]
        return {**{n: getattr(self, n) for n in names}, "sizes": sizes, "seeds": seeds}


SIZES = {
    "MLP": ([NARROWEST, 512, 2048], [6, 3, 3]),
    "transformer": ([128, 512, 2048], [4, 2, 2]),
    "residual": ([2, 8, 32], [16, 16, 16]),
    "residual, by the root": ([2, 8, 32], [16, 16, 16]),
    "residual, deeper": ([8, 32, 128], [16, 16, 16]),
}
#: Of the base's depth over a network's, by which branches are multiplied.
POWERS = {"residual, by the root": 0.5}
SGD, ADAMW, MUON = {"lr": 0.02}, {"lr": 0.01, "weight_decay": 0.0}, {"lr": 0.02}
DECAY = {"lr": 0.01, "weight_decay": LARGE_DECAY}
EPSILON = {"lr": 0.02, "eps": 0.1, "weight_decay": 0.0}
DEPTH = ibvi.MaximalUpdate(base=residual(BASE_DEPTH), branches="1/depth")
ROOT = ibvi.MaximalUpdate(base=residual(BASE_DEPTH), branches="1/sqrt(depth)")
DEPTH_ADAM = {"lr": 3e-4, "weight_decay": 0.0}
CASES = [
    Case("residual", "SGD", SGD, rule=DEPTH),
    Case("residual, by the root", "SGD", SGD, rule=ROOT),
    Case("residual, by the root", "AdamW", DEPTH_ADAM, rule=ROOT),
    Case("residual, deeper", "SGD", SGD, rule=DEPTH),
    Case("residual, deeper", "AdamW", DEPTH_ADAM, rule=DEPTH),
    Case("MLP", "SGD", SGD),
    Case("MLP", "AdamW", ADAMW),
    Case("MLP", "AdamW, large epsilon", EPSILON),
    Case("MLP", "AdamW, large decay", DECAY),
    Case("MLP", "Muon", MUON),
    Case("MLP", "SGD", SGD, "standard", ibvi.Standard()),
    Case("MLP", "AdamW", {**ADAMW, "lr": 1e-4}, "standard", ibvi.Standard()),
    Case("MLP", "AdamW, large epsilon", {**EPSILON, "eps": 0.1 / NARROWEST}, "epsilon",
         UnscaledEpsilon()),
    Case("MLP", "AdamW, large decay", DECAY, "decay", kind=UnscaledDecay),
    Case("MLP", "Muon", {**MUON, "weight_decay": 0.0}, "Adam's rule", AdamsRule()),
    Case("residual", "AdamW", DEPTH_ADAM, rule=DEPTH),
    Case("residual", "SGD", SGD, "standard", ibvi.Standard()),
    Case("residual", "AdamW", DEPTH_ADAM, "branches", ibvi.Standard()),
    Case("transformer", "SGD", SGD),
    Case("transformer", "AdamW", ADAMW),
    Case("transformer", "AdamW", {**ADAMW, "lr": 1e-4}, "standard", ibvi.Standard()),
]  # fmt: skip


def measure(case: Case) -> ibvi.diagnostics.CoordinateCheck:
    over_depth = case.network.startswith("residual")

    def build(size: int) -> tuple[ibvi.SupervisedModel, ibvi.AutoMuPNormal]:
        nets = {"MLP": mlp, "transformer": transformer}
        if over_depth:
            net = residual(size, POWERS.get(case.network, 1.0) * (case.mistake != "branches"))
        else:
            net = nets[case.network](size)
        random = ibvi.RandomModule(
            net, stochastic="all", prior={"*.bias": 0.1}, parametrization=case.rule
        )
        model = ibvi.SupervisedModel(random, ibvi.Categorical())
        return model, ibvi.AutoMuPNormal(model, covariance=ibvi.LowRank(2))

    sizes, seeds = SIZES[case.network]
    kinds = {"SGD": torch.optim.SGD, "AdamW": torch.optim.AdamW, "Muon": torch.optim.Muon}
    return ibvi.coordinate_check(
        build,
        sizes,
        load_data(NETWORKS["MLP" if over_depth else case.network]),
        axis="depth" if over_depth else "width",
        optimizer=case.kind or kinds[case.optimizer.partition(",")[0]],
        optim_args=dict(case.optim_args),
        family="adam" if case.kind else None,
        steps=STEPS,
        num_seeds=seeds,
        num_draws=NUM_DRAWS,
    )


def records(check: ibvi.diagnostics.CoordinateCheck) -> list[dict[str, Any]]:
    return [
        {
            "quantity": key[0],
            "step": key[1],
            "name": key[2],
            "slope": slope_and_error(check, key),
            "values": [float(f"{v:.4g}") for v in check.mean(*key)],
        }
        for key in check.rms
        if key[0] in ("size", "change", "loc", "factor") and not key[2].endswith(".bias")
    ]


def main() -> None:
    torch.set_num_threads(1)
    results = json.loads(FILE.read_text())["results"] if FILE.exists() else []
    results = [r for r in results if any(r["settings"] == case.settings for case in CASES)]
    for case in CASES:
        if any(result["settings"] == case.settings for result in results):
            continue
        start = time.perf_counter()
        rows = records(measure(case))
        seconds = round(time.perf_counter() - start)
        results.append({"settings": case.settings, "seconds": seconds, "records": rows})
        write(results, FILE)
        print(case.settings, seconds, flush=True)


if __name__ == "__main__":
    main()
