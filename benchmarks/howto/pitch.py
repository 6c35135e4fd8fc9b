"""The table of the page on pitch, over five sets of sounds.

    python -m benchmarks.howto.pitch

runs the page's own code, which needs the package ``torchcrepe``, and writes ``pitch.json`` beside
this file: for each network nats per sound on tones and on noisier ones, and the areas under the
ROC curve by which its entropy (in the last row its mutual information) tells noise and chords.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.run import environment
from tests.pages import DOCS, run_page

NUM_SETS = 5
COLUMNS = ("tones", "more noise", "tells noise", "tells chords")


def run_set(page: dict[str, Any], seed: int) -> dict[str, list[float | None]]:
    """The page's numbers for one set of sounds."""
    torch.manual_seed(seed)
    data = page["make_data"](seed=seed)
    trained = [page[name](*data["train"]) for name in ("ordinary", "bayesian")]
    rows = page["report"](data, *trained)
    return {name: [None if math.isnan(v) else v for v in row] for name, row in rows.items()}


def main() -> None:
    """Runs all sets and writes the results."""
    torch.set_num_threads(1)
    page = run_page(DOCS / "howto" / "pitch.md")
    sets = [run_set(page, seed) for seed in range(NUM_SETS)]
    results = {
        **environment(torch.device("cpu")),
        "seeds": list(range(NUM_SETS)),
        "columns": COLUMNS,
        "rows": {name: [rows[name] for rows in sets] for name in sets[0]},
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    for name, values in results["rows"].items():
        cells = []
        for column in zip(*values, strict=True):
            if None in column:
                continue
            column = torch.tensor(column, dtype=torch.float64)
            cells.append(f"{column.mean():.3f} +- {column.std() / len(column) ** 0.5:.3f}")
        print(f"{name:<32}", *cells)


if __name__ == "__main__":
    main()
