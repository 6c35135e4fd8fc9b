"""Pictures and tables that the pages make of committed results."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
#: Okabe and Ito's colors, which those who see fewer colors can tell apart, by kind of training.
COLORS = {
    "deterministic": "#999999",
    "MC dropout": "#009E73",
    "ELBO": "#E69F00",
    "IBVI": "#0072B2",
}
TEST_SETS = {"clean": "clean", "noise": "with noise", "rotation": "turned by 30°"}


def digits():
    """Mean and standard error over seeds: method, test set, score."""
    runs = json.loads((BENCHMARKS / "digits" / "results.json").read_text())["runs"]
    return {
        method: {
            name: {
                score: moments([run["scores"][name][score] for run in seeds]) for score in found
            }
            for name, found in seeds[0]["scores"].items()
        }
        for method, seeds in runs.items()
    }


def moments(values):
    """Mean and standard error."""
    mean = sum(values) / len(values)
    spread = sum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1)
    return mean, (spread / len(values)) ** 0.5


def digits_picture():
    """Bars of the negative log-likelihood of each method on each test set."""
    found = digits()
    figure, axes = plt.subplots(1, len(TEST_SETS), figsize=(6.4, 2.4), layout="constrained")
    for axis, (name, title) in zip(axes, TEST_SETS.items(), strict=True):
        for method, scores in found.items():
            mean, error = scores[name]["nll"]
            color = COLORS[method.partition(",")[0]]
            axis.barh(method.replace("initial ", ""), mean, xerr=error, color=color)
        axis.invert_yaxis()
        axis.set_title(title)
        axis.xaxis.set_major_locator(MaxNLocator(3))
        if axis is not axes[0]:
            axis.set_yticklabels([])
    axes[1].set_xlabel("negative log-likelihood, nats per image")
    return figure


def digits_table(score, form):
    """A table of one score: a row for each method, a column for each test set."""
    lines = [f"| | {' | '.join(TEST_SETS.values())} |", "| --- |" + " ---: |" * len(TEST_SETS)]
    for method, scores in digits().items():
        cells = (form(*scores[name][score]) for name in TEST_SETS)
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)
