"""What makes relative noise work: one choice at a time, on validation images.

    PYRO_IBVI_DATA=... python -m benchmarks.evidence.relative_noise

LeNet-5 on 12,000 images of Fashion-MNIST, 25 epochs, one seed, a draw for each datum. Each line of
``VARIANTS`` differs from ``RECIPE`` by what it names; the recipe of ``VariationalNetwork`` has the
scale that the grid of ``tasks/lenet5_fashion_12k.toml`` chose. Each run is a line
of ``results/relative_noise.jsonl``; what is there already is not run again.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pyro
import torch

import pyro_ibvi as ibvi

from . import scores
from .contenders import Task, train_svi
from .data import load_images
from .implicit_bias import make_svi
from .records import Records
from .run import GRID_SEED, probabilities

RECIPE: dict[str, Any] = {
    "scale": 0.5,
    "rate of s": 0.0,
    "layers": "dense weights",
    "start": "network",
    "rates": "absolute table",
    "lr": 0.1,
}
ALL_LINEAR, LAST_TWO = ["7.weight", "9.weight", "11.weight"], ["9.weight", "11.weight"]
STANDARD = {"rates": "of ordinary training", "lr": 0.05}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"lr": 0.02},
    {"lr": 0.05},
    {"lr": 0.05, "rate of s": 0.1},
    {"scale": 0.7},
    {"layers": ["3.weight", *ALL_LINEAR]},
    STANDARD,
    {**STANDARD, "rate of s": 0.1},
    {**STANDARD, "lr": 0.1},
    {**STANDARD, "scale": 0.35},
    {**STANDARD, "scale": 0.7},
    {**STANDARD, "scale": 0.35, "layers": ["3.weight", *ALL_LINEAR]},
    {**STANDARD, "lr": 0.02},
    {**STANDARD, "layers": LAST_TWO},
    {**STANDARD, "layers": LAST_TWO, "rate of s": 0.1},
    {**STANDARD, "layers": LAST_TWO, "start": "prior"},
]


def run(task: Task, choices: dict[str, Any]) -> dict[str, Any]:
    """Trains one variant; returns the validation loss after each epoch and what is left of s."""
    pyro.set_rng_seed(GRID_SEED)
    settings = {
        "covariance": "relative",
        "scale": choices["scale"],
        "rate": choices["rate of s"],
        "stochastic": choices["layers"],
        "start": choices["start"],
        "draws": "datum",
        "lr": choices["lr"],
    }
    svi, optim = make_svi(
        net=task.build(),
        base=None if choices["rates"] == "absolute table" else task.build(),
        likelihood=ibvi.Categorical(),
        num_data=len(task.data.x),
        settings=settings,
        optimizer=torch.optim.SGD,
        schedule=task.cosine,
        momentum=0.9,
    )
    course = []
    for draw, _ in train_svi(task, svi, optim.step_scheduler, GRID_SEED):
        with torch.random.fork_rng():
            p, _ = probabilities(draw, task.data.x_valid, 8)
        course.append(scores.nll(p, task.data.y_valid))
    names = svi.model.net.stochastic
    kept = {name: svi.guide.factor(f"net.{name}").abs().mean().item() for name in names}
    return {"valid_nll": course, "s": kept}


def main() -> None:
    """Runs what is not there yet."""
    torch.set_num_threads(1)
    task = Task(load_images("fashion-mnist", 12000, 4000, "kmnist"), "lenet5", 25, 128)
    records = Records("relative_noise", ("choices", "seed"))
    for variant in VARIANTS:
        choices = {**RECIPE, **variant}
        key = {"choices": choices, "seed": GRID_SEED}
        record = records.get(key, partial(run, task, choices))
        print(variant, f"{record['valid_nll'][-1]:.3f}", flush=True)


if __name__ == "__main__":
    main()
