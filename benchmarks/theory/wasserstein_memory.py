"""Time and peak memory of the 2-Wasserstein distance between large low-rank Gaussians.

    python benchmarks/theory/wasserstein_memory.py [--size 1000000] [--rank 100]

Each case runs in a process of its own, since the peak of a process never falls. The peak counts
everything in it: the interpreter, torch, both factors and, where asked for, a gradient. The
result goes to ``wasserstein_memory.json`` beside this file.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

from pyro_ibvi.theory.divergences import wasserstein2_squared

SEED = 0
CASES = {
    "import only": {},
    "low rank, float32, value": {"dtype": "float32"},
    "low rank, float32, value and gradient of one factor": {"dtype": "float32", "grad": True},
    "low rank, float64, value": {"dtype": "float64"},
    "diagonal and low rank, float32, value": {"dtype": "float32", "diagonal": True},
}


def measure(size: int, rank: int, case: dict) -> dict:
    """Runs one case here and returns its value, seconds and peak memory."""
    result = {}
    if case:
        dtype = getattr(torch, case["dtype"])
        generator = torch.Generator().manual_seed(SEED)
        loc = torch.zeros(size, dtype=dtype)
        shape = (size,) if case.get("diagonal") else (size, rank)
        factor_a = torch.randn(shape, generator=generator, dtype=dtype)
        factor_b = torch.randn(size, rank, generator=generator, dtype=dtype)
        factor_a.requires_grad_(case.get("grad", False))
        start = time.perf_counter()
        value = wasserstein2_squared(loc, factor_a, loc, factor_b)
        if factor_a.requires_grad:
            value.backward()
        seconds = time.perf_counter() - start
        result = {"value": value.item(), "seconds": round(seconds, 2)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    unit = 1 if sys.platform == "darwin" else 1024
    return result | {"peak_gb": round(peak * unit / 1e9, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--rank", type=int, default=100)
    parser.add_argument("--case", choices=CASES, help="run this one and print it")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(arguments.size, arguments.rank, CASES[arguments.case])))
        return
    size, rank = str(arguments.size), str(arguments.rank)
    results = {}
    for name in CASES:
        command = [sys.executable, __file__, "--size", size, "--rank", rank, "--case", name]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        results[name] = json.loads(output)
        print(f"{name}: {results[name]}")
    report = {
        "P": arguments.size,
        "R": arguments.rank,
        "seed": SEED,
        "results": results,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "hardware": {
            "machine": platform.machine(),
            "processor": platform.processor(),
            "system": platform.system(),
            "threads": torch.get_num_threads(),
        },
    }
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
