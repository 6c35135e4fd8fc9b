"""The demonstration: trains on real data, and leaves a report, pictures and a posterior file.

python -m benchmarks.demo.run --out out
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks.demo import curve, digits, posterior, report


def run(out: Path, *, smoke: bool = False) -> Path:
    """Runs it.

    Args:
        out: Folder for what it makes.
        smoke: Whether to train for a few steps only, to see that it runs.

    Returns:
        The report.
    """
    out.mkdir(parents=True, exist_ok=True)
    num_epochs, num_steps, num_draws = (2, 5, 20) if smoke else (40, 600, 1000)
    seconds: dict[str, float] = {}
    torch.manual_seed(0)
    data = digits.read()
    with _timed("the digits as usual", seconds):
        network = digits.train_as_usual(data, num_epochs)
    with _timed("the digits as a distribution", seconds):
        bnn = digits.train_distribution(data, num_epochs)
    with _timed("three fits of the curve", seconds):
        fits = curve.run(num_steps)
    with _timed("predictions, pictures and the posterior file", seconds):
        predictions = digits.predict(data, network, bnn)
        digits.draw_reliability(data, predictions, out / "reliability.png")
        digits.draw_doubted(data, predictions["clean"][digits.DISTRIBUTION], out / "doubted.png")
        curve.draw(fits, out / "curve.png")
        bnn.save(out / "network.ibvi")
        posterior.write(out / "posterior.nc", data, bnn, num_draws)
    report.write(out / "report.md", data, predictions, fits, seconds, num_epochs)
    return out / "report.md"


@contextmanager
def _timed(part: str, seconds: dict[str, float]) -> Iterator[None]:
    print(f"{part} ...", flush=True)
    start = time.perf_counter()
    yield
    seconds[part] = time.perf_counter() - start


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the report")
    # The layers are small: on more threads the cores would wait for one another.
    torch.set_num_threads(1)
    run(parser.parse_args().out, smoke="PYRO_IBVI_SMOKE" in os.environ)
