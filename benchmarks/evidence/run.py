"""Trains the contenders of a task and writes their scores.

    PYRO_IBVI_DATA=... python -m benchmarks.evidence.run lenet5_fashion_12k

Each contender's settings are chosen from its grid on one seed by the negative log-likelihood of
the validation images, at the last epoch and at the best one; the chosen settings are then trained
on the seeds of the task and scored on the test images once. Each run is a line of
``results/TASK.jsonl``; what is there already is not run again.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import time
import tomllib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from . import scores
from .contenders import CONTENDERS, Draw, Settings, Task
from .data import LabelledData, load_images
from .records import HERE, Record, Records
from .series import load_series

GRID_SEED = 1000
PROTOCOLS = ("last", "best")
LOADERS: dict[str, Callable[..., LabelledData]] = {"images": load_images, "series": load_series}


def grid(options: dict[str, Any]) -> Iterator[Settings]:
    """Every combination of the lists among a contender's options."""
    names = [name for name in options if name not in ("kind", "grid_seeds")]
    lists = [options[n] if isinstance(options[n], list) else [options[n]] for n in names]
    for values in itertools.product(*lists):
        yield dict(zip(names, values, strict=True))


def probabilities(draw: Draw, x: Tensor, num_draws: int) -> tuple[Tensor, Tensor]:
    """Mean class probabilities, and the mean entropy of a draw."""
    p = draw(x, num_draws).float().softmax(-1)
    return p.mean(0), scores.entropy(p).mean(0)


def evaluate(draw: Draw, data: LabelledData, num_draws: int) -> dict[str, Any]:
    """All scores, with the temperature that the validation images choose and without."""
    p_valid, _ = probabilities(draw, data.x_valid, num_draws)
    temperature = scores.find_temperature(p_valid, data.y_valid)
    p, noise = probabilities(draw, data.x_test, num_draws)
    strange, strange_noise = probabilities(draw, data.ood, num_draws)
    shifted = [probabilities(draw, x, num_draws // 2 or 1)[0] for x in data.corrupted.values()]
    usual = slice(len(strange))
    mutual = scores.entropy(p)[usual] - noise[usual]
    result: dict[str, Any] = {
        "temperature": temperature,
        "test": scores.classification(p, data.y_test),
        "test_tempered": scores.classification(scores.tempered(p, temperature), data.y_test),
        "ood_entropy": scores.detection(scores.entropy(strange), scores.entropy(p)[usual]),
        "ood_mutual": scores.detection(scores.entropy(strange) - strange_noise, mutual),
        "mutual_information": mutual.mean().item(),
    }
    for name, values in (
        ("corrupted", shifted),
        ("corrupted_tempered", [scores.tempered(q, temperature) for q in shifted]),
    ):
        rows = [scores.classification(q, data.y_corrupted) for q in values]
        result[name] = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
        result[f"{name}_nll"] = {
            key: row["nll"] for key, row in zip(data.corrupted, rows, strict=True)
        }
    return result


def train(
    task: Task, kind: str, settings: Settings, seed: int, *, test: bool, num_draws: int
) -> dict[str, Any]:
    """One run: the course of validation, and test scores at its last and best epoch."""
    pyro.set_rng_seed(seed)
    course: list[float] = []
    kept: tuple[Draw, list[Any], list[Any]] | None = None
    seconds, start = 0.0, time.process_time()
    for draw, holders in CONTENDERS[kind](task, settings, seed):
        seconds += time.process_time() - start
        with torch.random.fork_rng():
            p, _ = probabilities(draw, task.data.x_valid, min(8, num_draws))
        course.append(scores.nll(p, task.data.y_valid))
        if not np.isfinite(course[-1]):
            break
        if test and course[-1] <= min(course):
            kept = draw, holders, copy.deepcopy([holder.state_dict() for holder in holders])
        start = time.process_time()
    result: dict[str, Any] = {"valid_nll": course, "seconds": seconds}
    if test and kept is not None:
        result["last"] = result["best"] = evaluate(draw, task.data, num_draws)
        if (best := int(np.argmin(course)) + 1) < len(course):
            draw, holders, states = kept
            for holder, state in zip(holders, states, strict=True):
                holder.load_state_dict(state)
            result["best"] = {"epoch": best, **evaluate(draw, task.data, num_draws)}
    return result


class Runs:
    """The runs of a task."""

    def __init__(self, task: Task, name: str, num_draws: int) -> None:
        self.task, self.num_draws = task, num_draws
        self.records = Records(name, ("contender", "settings", "seed"))

    def get(
        self, contender: str, kind: str, settings: Settings, seed: int, *, test: bool
    ) -> Record:
        """A run, from the file or new."""
        run = {"contender": contender, "settings": settings, "seed": seed}
        if (done := self.records.find(run)) is not None:
            return done
        try:
            result = train(self.task, kind, settings, seed, test=test, num_draws=self.num_draws)
        except (FloatingPointError, ValueError) as error:
            result = {"valid_nll": [float("inf")], "seconds": 0.0, "failed": str(error)[:200]}
        record = self.records.add({**run, **result})
        last = record["valid_nll"][-1]
        text = f"{contender} {settings} seed {seed}: valid {last:.3f} {record['seconds']:.0f} s"
        if "last" in record:
            scored = record["last"]
            text += (
                f" | test {100 * scored['test']['error']:.2f} {scored['test']['nll']:.3f} "
                f"{scored['test']['ece']:.3f} T {scored['test_tempered']['nll']:.3f} corrupted "
                f"{scored['corrupted']['nll']:.3f} {scored['corrupted_tempered']['nll']:.3f} "
                f"ood {scored['ood_entropy']['auroc']:.3f} {scored['ood_mutual']['auroc']:.3f}"
            )
        print(text, flush=True)
        return record


def choose(
    runs: Runs, name: str, kind: str, options: dict[str, Any], seeds: list[int]
) -> dict[str, Settings]:
    """The settings of least validation loss, on average over some seeds, for each protocol."""
    settings = list(grid(options))
    if len(settings) == 1:
        return dict.fromkeys(PROTOCOLS, settings[0])

    def loss(course: list[float], protocol: str) -> float:
        finite = [v if np.isfinite(v) else float("inf") for v in course]
        return finite[-1] if protocol == "last" else min(finite)

    courses = [
        [runs.get(name, kind, s, seed, test=False)["valid_nll"] for seed in seeds]
        for s in settings
    ]
    means = {
        p: [np.mean([loss(c, p) for c in of_seeds]) for of_seeds in courses] for p in PROTOCOLS
    }
    return {p: settings[int(np.argmin(means[p]))] for p in PROTOCOLS}


def main() -> None:
    """Runs a task."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", help="name of a file in tasks/")
    parser.add_argument("--contenders", nargs="*", help="some of them; by default all")
    parser.add_argument("--seeds", type=int, help="the first few of the task's")
    parser.add_argument("--grid-only", action="store_true", help="validation alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = tomllib.loads((HERE / "tasks" / f"{args.task}.toml").read_text())
    data = LOADERS[config["data"].pop("kind", "images")](**config["data"])
    task = Task(data, **config["training"])
    runs = Runs(task, args.task, config["num_draws"])
    chosen: dict[str, dict[str, Settings]] = {}
    for name, options in config["contenders"].items():
        options = copy.deepcopy(options)
        kind, source = options.pop("kind"), options.pop("like", name)
        if args.contenders and name not in args.contenders:
            continue
        searched = config["contenders"][source]  # another's rate, where this one consists of it
        seeds = searched.get("grid_seeds", config.get("grid_seeds", [GRID_SEED]))
        chosen[name] = choose(runs, source, searched["kind"], searched, seeds)
        if source != name:
            chosen[name] = {p: {**settings, **options} for p, settings in chosen[name].items()}
        if args.grid_only:
            continue
        for settings in {json.dumps(s, sort_keys=True) for s in chosen[name].values()}:
            for seed in config["seeds"][: args.seeds]:
                runs.get(name, kind, json.loads(settings), seed, test=True)


if __name__ == "__main__":
    main()
