"""How much less noise a gradient has with a closed-form last layer, and what a step costs.

    python -m benchmarks.theory.closed_form_head

An MLP 64-100-100-C on the handwritten digits of scikit-learn (1797 images of 8 x 8), batches of
128, at the start and after 300 steps of training. The variance of a gradient is the sum over a
parameter's entries of their variances over 400 evaluations on one batch; a ratio of ``null`` means
that the closed form has none. Classification uses the
upper bound; regression has one-hot targets and noise of standard deviation 1. For the bound the
distance to the true loss is measured as well. The last part trains the last layer alone, with a
factor of rank 100, at several rates: with draws of it and in closed form, where the rank rule is
not needed. The result goes to ``closed_form_head.json`` beside this file.
"""

import json
import time
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import SVI
from sklearn.datasets import load_digits
from torch import nn

import pyro_ibvi as ibvi
from benchmarks.provenance import provenance

SEED, BATCH, WIDTH, EVALUATIONS, STEPS = 0, 128, 100, 400, 300


def data() -> tuple[torch.Tensor, torch.Tensor]:
    digits = load_digits()
    x = torch.as_tensor(digits.data, dtype=torch.float32) / 16
    return x, torch.as_tensor(digits.target)


def build(task: str, stochastic: str, covariance: Any, parametrization: Any = None) -> SVI:
    net = nn.Sequential(
        nn.Linear(64, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 10)
    )
    likelihood = ibvi.Normal(1.0) if task == "regression" else ibvi.Categorical()
    network = ibvi.RandomModule(
        net,
        stochastic=stochastic,
        parametrization=parametrization or ibvi.MaximalUpdate(base=WIDTH),
    )
    model = ibvi.SupervisedModel(network, likelihood, num_data=1797)
    guide = ibvi.AutoMuPNormal(model, covariance=covariance)
    lr = 0.0005 if task == "regression" else 0.02
    optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": lr, "momentum": 0.9}, guide)
    return SVI(model, guide, optim, closed())


def plain(num_particles: int = 1) -> ibvi.TraceExpectedLogLikelihood:
    return ibvi.TraceExpectedLogLikelihood(num_particles, reduction="mean")


def closed(bound: Any = "tilted") -> ibvi.TraceClosedFormHead:
    return ibvi.TraceClosedFormHead(reduction="mean", categorical_bound=bound)


def target(task: str, y: torch.Tensor) -> torch.Tensor:
    return nn.functional.one_hot(y, 10).float() if task == "regression" else y


def variances(svi: SVI, loss: Any, batch: tuple[torch.Tensor, ...]) -> dict[str, float]:
    """Variance of the gradient of each group of parameters."""
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in svi.guide.named_parameters():
        kind, _, site = name.partition(".")
        layer = "last layer" if site.startswith("net.4") else "first layer"
        groups.setdefault(f"{layer}, {'mean' if kind == 'locs' else 'factor'}", []).append(
            parameter
        )
    rows: dict[str, list[torch.Tensor]] = {name: [] for name in groups}
    for _ in range(EVALUATIONS):
        value = loss.differentiable_loss(svi.model, svi.guide, *batch)
        grads = torch.autograd.grad(value, [p for g in groups.values() for p in g])
        remaining = list(grads)
        for name, group in groups.items():
            mine, remaining = remaining[: len(group)], remaining[len(group) :]
            rows[name].append(torch.cat([g.flatten() for g in mine]))
    return {name: torch.stack(r).double().var(0).sum().item() for name, r in rows.items()}


def milliseconds(svi: SVI, losses: dict[str, Any], batch: tuple[torch.Tensor, ...]) -> dict:
    """Median time of a loss with its gradient, the contenders in turn."""
    times: dict[str, list[float]] = {name: [] for name in losses}
    for _ in range(40):
        for name, loss in losses.items():
            start = time.perf_counter()
            loss.differentiable_loss(svi.model, svi.guide, *batch).backward()
            times[name].append(time.perf_counter() - start)
            svi.guide.zero_grad()
    return {name: round(1e3 * sorted(t)[len(t) // 2], 2) for name, t in times.items()}


def compare(task: str, stochastic: str, covariance: Any) -> dict:
    pyro.set_rng_seed(SEED)
    x, y = data()
    svi = build(task, stochastic, covariance)
    report = {}
    for moment in ("start", f"after {STEPS} steps"):
        if moment != "start":
            for _ in range(STEPS):
                rows = torch.randperm(len(y))[:BATCH]
                svi.step(x[rows], target(task, y[rows]))
        batch = (x[:BATCH], target(task, y[:BATCH]))
        drawn, exact = (variances(svi, loss, batch) for loss in (plain(), closed()))
        assert all(value > 0 for value in drawn.values()), "training diverged"
        result: dict[str, Any] = {
            "variance ratio, draws over closed form": {
                name: drawn[name] / exact[name] if exact[name] > 1e-12 * drawn[name] else None
                for name in drawn
            }
        }
        losses = {"draws": plain(), "closed form": closed()}
        if task == "classification":
            losses = {"draws": plain(), "tilted": closed(), "jensen": closed("jensen")}
            result["loss, nats per datum"] = {
                name: mean_loss(svi, loss, batch) for name, loss in losses.items()
            }
        result["milliseconds"] = milliseconds(svi, losses, batch)
        report[moment] = result
    return report


@torch.no_grad()
def mean_loss(svi: SVI, loss: Any, batch: tuple[torch.Tensor, ...]) -> float:
    values = [loss.loss(svi.model, svi.guide, *batch) for _ in range(EVALUATIONS)]
    return sum(values) / len(values)


def rank_rule() -> dict:
    """Expected loss after training the last layer alone, with its factor of rank 100."""
    report = {}
    cases = {
        "draws, rate of the factor / rank": (plain(), 1.0),
        "draws, full rate": (plain(), 0.0),
        "closed form, rate of the factor / rank": (closed(), 1.0),
        "closed form, full rate": (closed(), 0.0),
    }
    x, y = data()
    for lr in (0.003, 0.01, 0.03, 0.1, 0.3):
        for name, (loss, exponent) in cases.items():
            pyro.set_rng_seed(SEED)
            rule = ibvi.MaximalUpdate(base=WIDTH, rank_exponent=exponent)
            svi = build("regression", "last", ibvi.LowRank(100), rule)
            optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": lr, "momentum": 0.9}, svi.guide)
            svi = SVI(svi.model, svi.guide, optim, loss)
            value = float("inf")
            for _ in range(STEPS):
                rows = torch.randperm(len(y))[:BATCH]
                if not svi.step(x[rows], target("regression", y[rows])) < 1e6:
                    break
            else:
                value = closed().loss(svi.model, svi.guide, x, target("regression", y))
            report.setdefault(f"rate {lr}", {})[name] = value if value < 1e6 else "diverged"
    return report


def main() -> None:
    torch.set_num_threads(1)
    cases = {
        "low rank 10, input and output": ("input+output", ibvi.LowRank(10)),
        "mean-field, input and output": ("input+output", ibvi.Diagonal()),
        "low rank 10, last layer": ("last", ibvi.LowRank(10)),
    }
    report: dict[str, Any] = {
        task: {name: compare(task, *case) for name, case in cases.items()}
        for task in ("regression", "classification")
    }
    report["loss of the last layer alone, nats per datum"] = rank_rule()
    report |= {
        "seed": SEED,
        **provenance(),
    }
    text = json.dumps(report, indent=2)
    Path(__file__).with_suffix(".json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
