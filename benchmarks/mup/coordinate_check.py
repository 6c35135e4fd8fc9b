"""Coordinate check of an MLP over widths, optimizers, covariances and parametrizations.

    python benchmarks/mup/coordinate_check.py [--widths 64 128 256 512 1024] [--seeds 3]

MLP 64-h-h-10 (ReLU), all layers random, on the first 128 of scikit-learn's digits, all of them in
each step, no momentum; measured after 1 and 10 steps over 8 draws. The biases' prior is 0.1, so
that the logits of the first draws are small and the slopes can be told with few seeds. The result
goes to ``coordinate_check.json`` beside this file, a table of slopes to standard output.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import pyro
import torch
from sklearn.datasets import load_digits
from torch import nn

import pyro_ibvi as ibvi

HERE = Path(__file__).parent
OPTIMIZERS = {
    "SGD": (torch.optim.SGD, {"lr": 0.02}),
    "Adam": (torch.optim.Adam, {"lr": 0.01}),
    "AdamW": (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.01}),
}
CASES = {
    "MaximalUpdate, LowRank(10)": (ibvi.LowRank(10), ibvi.MaximalUpdate()),
    "MaximalUpdate, Diagonal, reference": (
        ibvi.Diagonal(),
        ibvi.MaximalUpdate(diagonal="reference"),
    ),
    "MaximalUpdate, Diagonal, maximal": (ibvi.Diagonal(), ibvi.MaximalUpdate(diagonal="maximal")),
    "Standard, LowRank(10)": (ibvi.LowRank(10), ibvi.Standard()),
}
# What the table shows, after 10 steps: layers 0, 2 and 4 are input, hidden and output.
COLUMNS = {
    "size, hidden": ("size", 10, "2"),
    "change, input": ("change", 10, "0"),
    "change, hidden": ("change", 10, "2"),
    "change, output": ("change", 10, "4"),
    "by loc, hidden": ("loc", 10, "2.weight"),
    "by S, input": ("factor", 10, "0.weight"),
    "by S, hidden": ("factor", 10, "2.weight"),
    "by S, output": ("factor", 10, "4.weight"),
}


def build(case: str, width: int) -> tuple[ibvi.SupervisedModel, ibvi.AutoMuPNormal]:
    covariance, parametrization = CASES[case]
    net = nn.Sequential(
        nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )
    random = ibvi.RandomModule(
        net, stochastic="all", prior={"*.bias": 0.1}, parametrization=parametrization
    )
    model = ibvi.SupervisedModel(random, ibvi.Categorical())
    return model, ibvi.AutoMuPNormal(model, covariance=covariance)


def summary(check: ibvi.CoordinateCheck) -> dict:
    """Slopes with their standard errors, and the values that they come from."""
    return {
        "slopes": {
            name: [round(check.slope(*key), 3), round(check.slope_error(*key), 3)]
            for name, key in COLUMNS.items()
        },
        "values": {
            "{}, step {}, {}".format(*key): [float(f"{v:.4g}") for v in check.mean(*key)]
            for key in check.rms
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256, 512, 1024])
    parser.add_argument("--seeds", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    digits = load_digits()
    x = (torch.tensor(digits.data, dtype=torch.float32)[:128] / 16 - 0.3) / 0.37
    data = x, torch.tensor(digits.target)[:128]
    start = time.perf_counter()
    results = {}
    for optimizer, (kind, arguments) in OPTIMIZERS.items():
        for case in CASES:
            check = ibvi.coordinate_check(
                lambda width, case=case: build(case, width),
                args.widths,
                data,
                optimizer=kind,
                optim_args=arguments,
                num_seeds=args.seeds,
            )
            results[f"{optimizer}, {case}"] = summary(check)
            slopes = results[f"{optimizer}, {case}"]["slopes"]
            print(optimizer, case, {k: v for k, (v, _) in slopes.items()}, flush=True)
    versions = {m.__name__: m.__version__ for m in (torch, pyro, ibvi)}
    output = {
        "settings": {
            "widths": args.widths,
            "seeds": args.seeds,
            "optimizers": {name: arguments for name, (_, arguments) in OPTIMIZERS.items()},
        },
        "versions": {**versions, "python": platform.python_version()},
        "hardware": f"{platform.machine()}, 1 thread",
        "seconds": round(time.perf_counter() - start),
        "cases": results,
    }
    (HERE / "coordinate_check.json").write_text(json.dumps(output, indent=1) + "\n")


if __name__ == "__main__":
    main()
