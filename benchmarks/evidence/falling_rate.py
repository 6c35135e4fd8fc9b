"""The rate of numbers: constant, and one that falls to 0 by the last epoch.

    PYRO_IBVI_DATA=... python -m benchmarks.evidence.falling_rate

``VariationalNetwork`` with its defaults, two hidden layers of 50 and a learned noise scale, for
some hundred and some thousand steps on UCI's tables. Scored on their test parts. Each run is a
line of ``results/falling_rate.jsonl``; what is there already is not run again.
"""

from __future__ import annotations

import itertools
import math
from functools import partial

import pyro
import torch

import pyro_ibvi as ibvi

from .data import Table, table_splits
from .networks import mlp_50
from .records import Record, Records
from .tables import BATCH_SIZE

TABLES = (
    "yacht",
    "energy",
    "concrete",
    "wine-quality-red",
    "kin8nm",
    "power-plant",
    "naval-propulsion-plant",
)
SCHEDULERS = ("constant", "cosine")
NUM_STEPS = (400, 4_000)
NUM_SPLITS = 3


def run(table: Table, scheduler: str, num_steps: int, split: int) -> Record:
    """Log-likelihood per datum, in the target's own units."""
    pyro.set_rng_seed(split)
    net = mlp_50(table.x.shape[1])
    likelihood = ibvi.Normal(math.exp(-1), learn_scale=True)
    bnn = ibvi.VariationalNetwork(net, likelihood, scheduler=scheduler)
    num_epochs = max(1, round(num_steps * BATCH_SIZE / len(table.x)))
    bnn.fit(table.x, table.y, num_epochs=num_epochs, batch_size=BATCH_SIZE, progress=False)
    log_prob = bnn.predict(table.x_test, seed=split).log_prob(table.y_test).mean().item()
    return {"log_likelihood": log_prob - math.log(table.y_scale), "epochs": num_epochs}


def main() -> None:
    """Runs all tables."""
    torch.set_num_threads(1)
    records = Records("falling_rate", ("data", "scheduler", "num_steps", "split"))
    for name, split in itertools.product(TABLES, range(NUM_SPLITS)):
        table = list(table_splits(name, split + 1))[split]
        for scheduler, num_steps in itertools.product(SCHEDULERS, NUM_STEPS):
            key = {"data": name, "scheduler": scheduler, "num_steps": num_steps, "split": split}
            found = records.get(key, partial(run, table, scheduler, num_steps, split))
            print(key, round(found["log_likelihood"], 3), flush=True)


if __name__ == "__main__":
    main()
