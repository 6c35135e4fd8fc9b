"""The estimators as they are by default, with one Gaussian and with a mixture of four.

    PYRO_IBVI_DATA=... python -m benchmarks.evidence.estimators yacht digits

Numbers are UCI's first five published splits, without a validation part, since the estimator holds
back its own. Classes are scikit-learn's sets, 30 % of each to test on, five times. Each run is a
line of ``results/estimators.jsonl``; what is there already is not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn import datasets
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split

from pyro_ibvi.estimators import IBVIClassifier, IBVIRegressor

from .data import UCI, Table, table_splits
from .run import HERE, versions

NUM_SPLITS = 5
NUM_COMPONENTS = (1, 4)
CLASSES = {
    "breast cancer": datasets.load_breast_cancer,
    "digits": datasets.load_digits,
    "iris": datasets.load_iris,
    "wine": datasets.load_wine,
}
Run = dict[str, Any]


def run_numbers(table: Table, num_components: int, split: int) -> Run:
    """Log-likelihood per datum and root mean squared error, in the target's own units."""
    x, y = torch.cat([table.x, table.x_valid]), torch.cat([table.y, table.y_valid])
    start = time.process_time()
    model = IBVIRegressor(num_components=num_components, random_state=split)
    model.fit(x.numpy(), y[:, 0].numpy())
    seconds = time.process_time() - start
    prediction = model.predictive(table.x_test.numpy())
    log_likelihood = prediction.log_prob(table.y_test).mean().item() - math.log(table.y_scale)
    rmse = (prediction.mean - table.y_test).square().mean().sqrt().item() * table.y_scale
    return {
        "seconds": seconds,
        "epochs": model.n_iter_,
        "log_likelihood": log_likelihood,
        "rmse": rmse,
    }


def run_classes(name: str, num_components: int, split: int) -> Run:
    """Log-likelihood per datum and error."""
    x, y = CLASSES[name](return_X_y=True)
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.3, random_state=split, stratify=y)
    start = time.process_time()
    model = IBVIClassifier(num_components=num_components, random_state=split).fit(x, y)
    seconds = time.process_time() - start
    probabilities = model.predict_proba(x_test)
    error = float(np.mean(probabilities.argmax(1) != y_test))
    log_likelihood = -float(log_loss(y_test, probabilities))
    return {
        "seconds": seconds,
        "epochs": model.n_iter_,
        "log_likelihood": log_likelihood,
        "error": error,
    }


def splits(name: str) -> Iterator[Table | str]:
    """What a run of each split is made from."""
    return table_splits(name, NUM_SPLITS) if name in UCI else iter([name] * NUM_SPLITS)


def main() -> None:
    """Runs some sets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="*", default=[*UCI, *CLASSES])
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = Path(os.environ.get("PYRO_IBVI_RESULTS", HERE / "results")) / "estimators.jsonl"
    done = set()
    if path.exists():
        records = map(json.loads, path.read_text().splitlines())
        done = {(r["data"], r["num_components"], r["split"]) for r in records}
    for name in args.sets:
        rows = itertools.product(enumerate(splits(name)), NUM_COMPONENTS)
        for (split, data), num_components in rows:
            if (name, num_components, split) in done:
                continue
            run = run_classes if isinstance(data, str) else run_numbers
            found = run(data, num_components, split)  # type: ignore[operator]
            key = {"data": name, "num_components": num_components, "split": split}
            with path.open("a") as file:
                file.write(json.dumps({**key, **found, "versions": versions()}) + "\n")
            print(key, {k: round(v, 3) for k, v in found.items()}, flush=True)


if __name__ == "__main__":
    main()
