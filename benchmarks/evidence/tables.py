"""Trains the contenders on UCI's tables with a learned noise scale and writes their scores.

    PYRO_IBVI_DATA=... python -m benchmarks.evidence.tables yacht energy concrete

Two hidden layers of 50, Adam with a cosine schedule, the published splits, of each training part
a tenth for validation. A contender's settings are chosen from its grid by the mean validation
log-likelihood of the first two splits; all splits are then scored once on their test parts. Each
run is a line of ``results/uci.jsonl``; what is there already is not run again.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal, init_to_sample
from torch import Tensor, nn

import pyro_ibvi as ibvi
from pyro_ibvi.estimators.regressor import noise_at_start

from .data import UCI, Table, table_splits
from .implicit_bias import make_svi
from .networks import mlp_50
from .records import Record, Records
from .run import grid

NUM_DRAWS = 200
NUM_SPLITS = {"protein-tertiary-structure": 5}
#: Steps of training: many epochs of a small table, fewer of a large one.
MIN_STEPS, MIN_EPOCHS, MAX_EPOCHS, BATCH_SIZE = 8_000, 40, 400, 64

Settings = dict[str, Any]
#: Draws of the mean, shape ``(K, N, 1)``, and the noise scale of each, ``(K, 1, 1)`` or a number.
Draw = Callable[[Tensor], tuple[Tensor, Tensor]]


def num_epochs(table: Table) -> int:
    """How long a table is trained."""
    steps = math.ceil(len(table.x) / BATCH_SIZE)
    return min(MAX_EPOCHS, max(MIN_EPOCHS, round(MIN_STEPS / steps)))


def train_network(table: Table, net: nn.Module, lr: float) -> Tensor:
    """Trains a network and the logarithm of the noise scale by Adam; returns the scale."""
    log_scale = nn.Parameter(torch.tensor(-1.0))
    optimizer = torch.optim.Adam([*net.parameters(), log_scale], lr)
    epochs = num_epochs(table)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    net.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(table.x)).split(BATCH_SIZE):
            optimizer.zero_grad()
            noise = torch.distributions.Normal(net(table.x[rows]), log_scale.exp())
            (-noise.log_prob(table.y[rows]).mean()).backward()
            optimizer.step()
        scheduler.step()
    return log_scale.detach().exp()


def deterministic(table: Table, settings: Settings) -> Draw:
    """Ordinary training."""
    net = mlp_50(table.x.shape[1])
    scale = train_network(table, net, settings["lr"])
    return lambda x: (net(x)[None], scale)


def dropout(table: Table, settings: Settings) -> Draw:
    """Monte Carlo dropout in front of the hidden and the last layer."""
    base = mlp_50(table.x.shape[1])
    drop = settings["p"]
    net = nn.Sequential(*base[:2], nn.Dropout(drop), *base[2:4], nn.Dropout(drop), base[4])
    scale = train_network(table, net, settings["lr"])
    return lambda x: (torch.stack([net(x) for _ in range(NUM_DRAWS)]), scale)


def ensemble(table: Table, settings: Settings) -> Draw:
    """Five networks."""
    draws = [deterministic(table, settings) for _ in range(5)]

    def draw(x: Tensor) -> tuple[Tensor, Tensor]:
        means, scales = zip(*[d(x) for d in draws], strict=True)
        return torch.cat(means), torch.stack(scales).reshape(-1, 1, 1)

    return draw


def _likelihood() -> ibvi.Normal:
    return ibvi.Normal(math.exp(-1), learn_scale=True)


def _train_svi(table: Table, svi: SVI, step_scheduler: Callable[[], None] | None) -> Draw:
    epochs = num_epochs(table)
    for _ in range(epochs):
        for rows in torch.randperm(len(table.x)).split(BATCH_SIZE):
            svi.step(table.x[rows], table.y[rows])
        if step_scheduler is not None:
            step_scheduler()

    def draw(x: Tensor) -> tuple[Tensor, Tensor]:
        outputs = ibvi.predict(svi.model, svi.guide, x, num_samples=NUM_DRAWS).outputs
        return outputs, svi.model.likelihood(outputs).stddev.reshape(-1)[0]

    return draw


def elbo(table: Table, settings: Settings) -> Draw:
    """Mean-field VI with Pyro's own guide, all weights random."""
    pyro.clear_param_store()
    net = ibvi.RandomModule(mlp_50(table.x.shape[1]), stochastic="all")
    model = ibvi.SupervisedModel(net, _likelihood(), num_data=len(table.x))
    guide = AutoNormal(model, init_loc_fn=init_to_sample, init_scale=settings["init_scale"])
    guide(table.x[:2], table.y[:2])
    epochs = num_epochs(table)
    optimizer = pyro.optim.CosineAnnealingLR(
        {
            "optimizer": torch.optim.Adam,
            "optim_args": {"lr": settings["lr"]},
            "T_max": epochs,
        }
    )
    return _train_svi(table, SVI(model, guide, optimizer, Trace_ELBO()), optimizer.step)


def implicit_bias(table: Table, settings: Settings) -> Draw:
    """Implicit-bias VI with a covariance and the layers that are random."""
    num_features, epochs = table.x.shape[1], num_epochs(table)
    if settings.get("init_scale") == "by data":  # as the regressor has it
        settings = {**settings, "init_scale": noise_at_start(len(table.x))}
    svi, optim = make_svi(
        base=mlp_50(num_features) if settings["covariance"] == "relative" else None,
        net=mlp_50(num_features),
        likelihood=_likelihood(),
        num_data=len(table.x),
        settings=settings,
        optimizer=torch.optim.Adam,
        schedule=lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, epochs),
    )
    return _train_svi(table, svi, optim.step_scheduler)


CONTENDERS: dict[str, tuple[Callable[[Table, Settings], Draw], Settings]] = {
    "deterministic": (deterministic, {"lr": [0.001, 0.003, 0.01]}),
    "MC dropout": (dropout, {"lr": [0.003, 0.01, 0.03], "p": [0.005, 0.01, 0.05, 0.1]}),
    "ensemble of 5": (ensemble, {"lr": [0.001, 0.003, 0.01]}),
    "ELBO, stock Pyro": (elbo, {"lr": [0.003, 0.01], "init_scale": [0.01, 0.1]}),
    "paper's recipe, rank 10": (
        implicit_bias,
        {"covariance": "low rank", "rank": 10, "lr": [0.003, 0.01, 0.03, 0.1]},
    ),
    "rank 10, two draws a step": (  # the default for numbers
        implicit_bias,
        {"covariance": "low rank", "rank": 10, "draws": 2, "lr": [0.01, 0.03, 0.1, 0.3]},
    ),
    "rank 10, two draws, a tenth of the noise": (
        implicit_bias,
        {
            "covariance": "low rank",
            "rank": 10,
            "init_scale": 0.1,
            "draws": 2,
            "lr": [0.01, 0.03, 0.1],
        },
    ),
    "four components, two draws a step": (
        implicit_bias,
        {
            "covariance": "low rank",
            "rank": 10,
            "mixture": 4,
            "draws": 2,
            "lr": [0.01, 0.03, 0.1, 0.3],
        },
    ),
    "four components, less noise for more data": (  # the regressor's default
        implicit_bias,
        {
            "covariance": "low rank",
            "rank": 10,
            "mixture": 4,
            "init_scale": "by data",
            "draws": 2,
            "lr": [0.03, 0.1, 0.3],
        },
    ),
    "paper's recipe, rank 100": (
        implicit_bias,
        {"covariance": "low rank", "rank": 100, "lr": [0.003, 0.01, 0.03]},
    ),
    "mean-field": (
        implicit_bias,
        {"covariance": "diagonal", "stochastic": "all weights", "lr": [0.003, 0.01, 0.03]},
    ),
    "relative noise, per datum": (
        implicit_bias,
        {
            "covariance": "relative",
            "stochastic": [["2.weight", "4.weight"]],
            "scale": [0.03, 0.1, 0.2, 0.35],  # as wide as that of dropout
            "rate": [0.0],
            "draws": "datum",
            "lr": [0.003, 0.01],
        },
    ),
    "four components with relative noise": (
        implicit_bias,
        {
            "covariance": "relative",
            "stochastic": [["2.weight", "4.weight"]],
            "scale": [0.03, 0.1, 0.2, 0.35],
            "rate": [0.0],
            "draws": "datum",
            "mixture": 4,
            "lr": [0.003, 0.01, 0.03],
        },
    ),
}


def score(draw: Draw, x: Tensor, y: Tensor, y_scale: float) -> dict[str, float]:
    """Root mean squared error and log-likelihood per datum, in the target's own units."""
    with torch.no_grad():
        means, scale = draw(x)
    noise = torch.distributions.Normal(means, scale)
    log_prob = (noise.log_prob(y).logsumexp(0) - math.log(len(means))).mean().item()
    rmse = (means.mean(0) - y).square().mean().sqrt().item()
    return {"log_likelihood": log_prob - math.log(y_scale), "rmse": rmse * y_scale}


def run(contender: str, settings: Settings, split: int, table: Table) -> Record:
    """Trains a contender on a split and scores it."""
    pyro.set_rng_seed(split)
    start = time.process_time()
    try:
        draw = CONTENDERS[contender][0](table, settings)
        return {
            "seconds": time.process_time() - start,
            "valid": score(draw, table.x_valid, table.y_valid, table.y_scale),
            "test": score(draw, table.x_test, table.y_test, table.y_scale),
        }
    except (FloatingPointError, ValueError) as error:
        bad = {"log_likelihood": float("-inf"), "rmse": float("inf")}
        return {"seconds": 0.0, "valid": bad, "test": bad, "failed": str(error)[:200]}


def scored(
    records: Records, data: str, contender: str, tables: list[Table]
) -> tuple[Settings, list[Record]]:
    """The settings that the first two splits choose, and the runs of all splits."""

    def get(settings: Settings, split: int) -> Record:
        key = {"data": data, "contender": contender, "settings": settings, "split": split}
        return records.get(key, lambda: run(contender, settings, split, tables[split]))

    def valid(settings: Settings) -> float:
        rows = [get(settings, split)["valid"]["log_likelihood"] for split in (0, 1)]
        return float(np.nanmean(rows))

    settings = list(grid(CONTENDERS[contender][1]))
    best = settings[0] if len(settings) == 1 else max(settings, key=valid)
    return best, [get(best, split) for split in range(len(tables))]


def main() -> None:
    """Runs some tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", default=list(UCI))
    parser.add_argument("--contenders", nargs="*", default=list(CONTENDERS))
    parser.add_argument("--splits", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(1)
    records = Records("uci", ("data", "contender", "settings", "split"))
    for data, contender in itertools.product(args.tables, args.contenders):
        tables = list(table_splits(data, min(args.splits, NUM_SPLITS.get(data, 20))))
        best, rows = scored(records, data, contender, tables)
        for name in ("log_likelihood", "rmse"):
            values = np.array([row["test"][name] for row in rows])
            error = values.std(ddof=1) / len(values) ** 0.5
            print(
                f"{data} {contender} {best} {name} {values.mean():.3f} +- {error:.3f}", flush=True
            )


if __name__ == "__main__":
    main()
