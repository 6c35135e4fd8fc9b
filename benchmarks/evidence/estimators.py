"""The estimators as they are by default, with one Gaussian and with a mixture of four.

    PYRO_IBVI_DATA=... python -m benchmarks.evidence.estimators yacht digits

Numbers are UCI's first five published splits, without a validation part, since the estimator holds
back its own. Classes are scikit-learn's sets, 30 % of each to test on, five times. Each run is a
line of ``results/estimators.jsonl``; what is there already is not run again.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn import datasets
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split

from pyro_ibvi.estimators import IBVIClassifier, IBVIRegressor

from .data import UCI, Table, table_splits
from .records import Record, Records

NUM_SPLITS = 5
NUM_COMPONENTS = (1, 4)
CLASSES = {
    "breast cancer": datasets.load_breast_cancer,
    "digits": datasets.load_digits,
    "iris": datasets.load_iris,
    "wine": datasets.load_wine,
}


def fit(model: IBVIRegressor | IBVIClassifier, x: Any, y: Any) -> Record:
    """Trains an estimator, and says how long."""
    start = time.process_time()
    model.fit(x, y)
    return {"seconds": time.process_time() - start, "epochs": model.n_iter_}


def run_numbers(table: Table, split: int, num_components: int) -> Record:
    """Log-likelihood per datum and root mean squared error, in the target's own units."""
    x, y = torch.cat([table.x, table.x_valid]), torch.cat([table.y, table.y_valid])
    model = IBVIRegressor(num_components=num_components, random_state=split)
    course = fit(model, x.numpy(), y[:, 0].numpy())
    prediction = model.predictive(table.x_test.numpy())
    log_likelihood = prediction.log_prob(table.y_test).mean().item() - math.log(table.y_scale)
    rmse = (prediction.mean - table.y_test).square().mean().sqrt().item() * table.y_scale
    return {**course, "log_likelihood": log_likelihood, "rmse": rmse}


def run_classes(name: str, split: int, num_components: int) -> Record:
    """Log-likelihood per datum and error."""
    x, y = CLASSES[name](return_X_y=True)
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.3, random_state=split, stratify=y)
    model = IBVIClassifier(num_components=num_components, random_state=split)
    course = fit(model, x, y)
    probabilities = model.predict_proba(x_test)
    error = float(np.mean(probabilities.argmax(1) != y_test))
    return {**course, "log_likelihood": -float(log_loss(y_test, probabilities)), "error": error}


def runs(name: str) -> list[Callable[[int], Record]]:
    """For each split a function of the number of components."""
    if name in CLASSES:
        return [partial(run_classes, name, split) for split in range(NUM_SPLITS)]
    tables = table_splits(name, NUM_SPLITS)
    return [partial(run_numbers, table, split) for split, table in enumerate(tables)]


def main() -> None:
    """Runs some sets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="*", default=[*UCI, *CLASSES])
    args = parser.parse_args()
    torch.set_num_threads(1)
    records = Records("estimators", ("data", "num_components", "split"))
    for name in args.sets:
        for (split, run), num_components in itertools.product(
            enumerate(runs(name)), NUM_COMPONENTS
        ):
            key = {"data": name, "num_components": num_components, "split": split}
            found = records.get(key, partial(run, num_components))
            print(key, f"{found['log_likelihood']:.3f}", flush=True)


if __name__ == "__main__":
    main()
