"""Pictures of the results."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.speed.names import BY_HAND, DETERMINISTIC, INFERNO, MEAN_FIELD, OURS_SVI, PYRO

#: Who is drawn, each with its own color and marker in all pictures.
STYLES = {
    DETERMINISTIC: ("0.5", "."),
    BY_HAND: ("tab:green", "x"),
    OURS_SVI: ("tab:blue", "o"),
    INFERNO: ("tab:orange", "s"),
    PYRO: ("tab:red", "^"),
}


def draw(ax: Axes, times: dict[str, dict[str, dict[str, float]]], key: str = "ms") -> None:
    """Lines of all contenders over one axis, both logarithmic."""
    for who, (color, marker) in STYLES.items():
        points = [(float(v), row[who][key]) for v, row in times.items() if key in row.get(who, {})]
        if points:
            ax.plot(*zip(*points, strict=True), color=color, marker=marker, label=who)
    ax.set(xscale="log", yscale="log")
    ax.set_xticks([float(value) for value in times], list(times))
    ax.minorticks_off()


def widths(results: dict[str, Any], family: str) -> dict[str, dict[str, Any]]:
    """Steps of the MLPs by width."""
    times = {}
    for network, entry in results["steps"].items():
        name, _, width = network.partition(" ")
        if name == "MLP":
            rows = entry["families"]
            times[width] = {**rows[DETERMINISTIC], **rows.get(family, {})}
    return times


def plot_widths(results: dict[str, Any]) -> Figure:
    """Ratio to the deterministic step by width, mean-field and with rank 10 and 100."""
    families = (MEAN_FIELD, "rank 10", "rank 100")
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), sharey=True, layout="constrained")
    for ax, family in zip(axes, families, strict=True):
        draw(ax, widths(results, family), "ratio")
        ax.set(title=family, xlabel="width")
    axes[0].set_ylabel("step / deterministic step")
    axes[0].legend(fontsize="small")
    return figure


def plot_growth(results: dict[str, Any]) -> Figure:
    """Milliseconds along each axis."""
    panels = results["growth"]
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    for ax, (axis, entry) in zip(axes.flat, panels.items(), strict=True):
        draw(ax, entry["times"])
        ax.set_title(entry["fixed"], fontsize="small")
        ax.set(xlabel=axis, ylabel="ms")
    axes.flat[0].legend(fontsize="small")
    return figure
