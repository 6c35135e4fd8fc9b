"""Peak memory of an export of predictions from a network with a million random weights.

Run: ``python -m benchmarks.arviz.memory [--smoke]``; writes ``memory.json`` beside this file.
The peak is the process's resident memory above what it was with the network, the guide, the data
and ArviZ loaded. Linux only: it resets the kernel's high-water mark.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import arviz
import pyro
import torch

import pyro_ibvi as ibvi
from benchmarks.provenance import provenance
from benchmarks.resident_memory import resident, restart_peak
from pyro_ibvi.arviz import to_arviz

MIB = 2**20

PREDICTIONS = ["posterior_predictive", "log_likelihood", "observed_data"]


def measure(
    covariance: ibvi.guides.Covariance,
    groups: list[str] | None,
    width: int = 64,
    num_data: int = 100,
    num_samples: int = 5,
) -> dict:
    pyro.set_rng_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(64, width),
        torch.nn.SiLU(),
        torch.nn.Linear(width, width),
        torch.nn.SiLU(),
        torch.nn.Linear(width, 10),
    )
    model = ibvi.SupervisedModel(ibvi.RandomModule(net), ibvi.Categorical(), num_data=num_data)
    guide = ibvi.AutoMuPNormal(model, covariance=covariance)
    x, y = torch.randn(num_data, 64), torch.randint(10, (num_data,))
    before = restart_peak()
    data = to_arviz(model, guide, x, y, num_samples=num_samples, seed=0, groups=groups)
    peak = resident("VmHWM") - before
    size = data["posterior_predictive"].nbytes + data["log_likelihood"].nbytes
    return {
        "covariance": repr(covariance),
        "groups": "all" if groups is None else ", ".join(groups),
        "num_weights": sum(p.numel() for p in net.parameters()),
        "num_data": num_data,
        "num_samples": num_samples,
        "exported_mib": round(size / MIB, 1),
        "peak_above_network_mib": round(peak / MIB, 1),
    }


def warm_up() -> None:
    torch.set_num_threads(1)
    measure(ibvi.Diagonal(), None)  # on a small network: libraries load what they load


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--smoke", action="store_true", help="a small network, nothing written")
    smoke = parser.parse_args().smoke
    sizes = () if smoke else (963, 1000, 200)
    cases = [(c, g) for c in (ibvi.Diagonal(), ibvi.LowRank(10)) for g in (PREDICTIONS, None)]
    context = multiprocessing.get_context("spawn")
    # a process of its own for each, so that none finds memory that another has left
    with ProcessPoolExecutor(1, context, warm_up, max_tasks_per_child=1) as pool:
        rows = [pool.submit(measure, *case, *sizes).result() for case in cases]
    result = {
        "rows": rows,
        "seed": 0,
        **provenance(arviz),
    }
    print(json.dumps(result, indent=2))
    if not smoke:
        path = Path(__file__).with_name("memory.json")
        path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
