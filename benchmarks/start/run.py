"""How many steps a hand-written model needs from several starts of the guide.

A Bayesian regression of 170 data: a level with prior Normal(0, 10), three slopes, a noise scale.
Counted are steps of Adam until the loss is within 3 nats of the best that AutoNormal reaches.

    python -m benchmarks.start.run

writes ``results.json`` beside this file, from which the page *Differences from Pyro's autoguides*
makes its table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal, init_to_median, init_to_sample
from torch import Tensor

import pyro_ibvi as ibvi
from benchmarks.speed.run import environment

RESULTS = Path(__file__).parent / "results.json"
Data = tuple[Tensor, Tensor]
NEAR = 3.0


def regression(x: Tensor, y: Tensor) -> None:
    level = pyro.sample("level", dist.Normal(0.0, 10.0))
    slopes = [pyro.sample(f"slope_{i}", dist.Normal(0.0, 1.0)) for i in range(3)]
    sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
    loc = level + slopes[0] * x[:, 0] + slopes[1] * x[:, 1] + slopes[2] * x[:, 0] * x[:, 1]
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(loc, sigma), obs=y)


def make_data() -> Data:
    torch.manual_seed(0)
    x = torch.stack([torch.rand(170).round(), 3 * torch.rand(170)], -1)
    loc = 9.2 - 1.9 * x[:, 0] - 0.2 * x[:, 1] + 0.4 * x[:, 0] * x[:, 1]
    return x, loc + 0.9 * torch.randn(170)


@torch.no_grad()
def exact_loss(guide: Any, data: Data) -> float:
    elbo = Trace_ELBO(num_particles=200, vectorize_particles=True, max_plate_nesting=1)
    return float(elbo.loss(regression, guide, *data))


def train(
    guide: Any, data: Data, num_steps: int, optim: Any, target: float | None = None
) -> int | None:
    """Number of steps until the loss is below a target, or None."""
    svi = SVI(regression, guide, optim, Trace_ELBO())
    for step in range(1, num_steps + 1):
        svi.step(*data)
        if target is not None and step % 100 == 0 and exact_loss(guide, data) < target:
            return step
    return None


def starts() -> Iterator[tuple[str, Callable[[], Any]]]:
    yield "AutoNormal", lambda: AutoNormal(regression)
    for name, init in (("init_to_sample", init_to_sample), ("init_to_median", init_to_median())):
        for scale in (1.0, 0.1, 0.01):
            yield (
                f"AutoMuPNormal, {name}, init_scale={scale}",
                lambda init=init, scale=scale: ibvi.AutoMuPNormal(
                    regression, init_loc_fn=init, init_scale=scale
                ),
            )


def run(num_steps: int = 6000, num_seeds: int = 2) -> dict[str, list[int | None]]:
    """Steps for each start and seed."""
    data = make_data()
    pyro.set_rng_seed(0)
    best = AutoNormal(regression)
    train(best, data, num_steps // 2, pyro.optim.ClippedAdam({"lr": 0.03, "lrd": 0.999}))
    target = exact_loss(best, data) + NEAR
    results: dict[str, list[int | None]] = {}
    for name, make in starts():
        results[name] = []
        for seed in range(num_seeds):
            pyro.clear_param_store()
            pyro.set_rng_seed(seed)
            optim = pyro.optim.Adam({"lr": 0.03})
            results[name].append(train(make(), data, num_steps, optim, target))
    return results


def main() -> None:
    """Counts, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that it runs")
    smoke = parser.parse_args().smoke
    torch.set_num_threads(1)
    settings = {"num_steps": 100 if smoke else 6000, "num_seeds": 1 if smoke else 2}
    results = {**environment(torch.device("cpu")), **settings, "near": NEAR}
    results["steps"] = run(**settings)
    for name, steps in results["steps"].items():
        print(f"{name:50} {steps}")
    if not smoke:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
