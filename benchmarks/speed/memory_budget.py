"""Peak memory of predictions by 1,000 draws on 100,000 rows, against the budget that was given.

    python -m benchmarks.speed.memory_budget

Writes ``memory_budget.json`` beside this file. Each case runs in a process of its own; the peak is
its resident memory above what it was with network, guide and data loaded, looked at every 5 ms and
without the pages of files. The budget is for each call or batch. Linux only.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pyro_ibvi as ibvi
from benchmarks.resident_memory import resident

HERE = Path(__file__).parent
MB = 10**6


class Peak:
    """The most anonymous memory that is resident in a while, above that at its start."""

    def __enter__(self) -> Peak:
        self.num_bytes, self._start = 0, resident("RssAnon")
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._is_over.wait(0.005):
            self.num_bytes = max(self.num_bytes, resident("RssAnon") - self._start)


def measure(
    num_outputs: int, budget: str, *, streams: bool, num_rows: int, num_samples: int
) -> dict[str, Any]:
    """Peak memory of a prediction.

    Args:
        num_outputs: Outputs of the network: a class each, or one number.
        budget: What ``max_memory`` says.
        streams: Whether only means and variances are kept, of one batch after the other.
        num_rows: Number of inputs.
        num_samples: Number of draws.

    Returns:
        What was measured.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 64), nn.SiLU(), nn.Linear(64, num_outputs))
    likelihood = ibvi.Normal(0.1) if num_outputs == 1 else ibvi.Categorical()
    model = ibvi.SupervisedModel(ibvi.RandomModule(net), likelihood)
    guide = ibvi.AutoMuPNormal(model)
    x = torch.randn(num_rows, 20)
    ibvi.predict(model, guide, x[:2], num_samples=2)  # what torch loads at its first use
    start = time.perf_counter()
    options: dict[str, Any] = {"num_samples": num_samples, "generator": 0, "max_memory": budget}
    with Peak() as peak:
        if streams:
            parts = ibvi.prediction.predict_batches(
                model, guide, x, batch_size=num_rows // 50, **options
            )
            kept = [(part.mean, part.variance) for part, _ in parts]
            num_kept = sum(len(mean) for mean, _ in kept)
        else:
            num_kept = len(ibvi.predict(model, guide, x, **options).mean)
    assert num_kept == num_rows
    return {
        "outputs": num_outputs,
        "rows": num_rows,
        "draws": num_samples,
        "keeps": "moments of batches" if streams else "all draws",
        "budget_mb": ibvi.prediction.read_memory(budget) / MB,
        "peak_mb": round(peak.num_bytes / MB, 1),
        "seconds": round(time.perf_counter() - start, 1),
    }


def measure_alone(**case: Any) -> dict[str, Any]:
    """The same in a fresh process, whose allocator has no free memory of earlier work to give."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, **case).result()


def cases(*, quick: bool = False) -> list[dict[str, Any]]:
    """The cases: numbers, whose draws fit, and two classes, whose draws do not."""
    size = {"num_rows": 500 if quick else 100_000, "num_samples": 20 if quick else 1000}
    return [
        {"num_outputs": 1, "budget": "600 MB", "streams": False, **size},
        {"num_outputs": 2, "budget": "300 MB", "streams": True, **size},
    ]


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    found = []
    for case in cases():
        found.append(measure_alone(**case))
        print(found[-1], flush=True)
    about = {"threads": 1, "torch": torch.__version__, "machine": platform.machine()}
    (HERE / "memory_budget.json").write_text(
        json.dumps({**about, "cases": found}, indent=1) + "\n"
    )
