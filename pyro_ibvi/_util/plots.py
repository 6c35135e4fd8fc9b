"""Where pictures are drawn."""

from __future__ import annotations

from typing import Any


def axes_or_new(ax: Any) -> Any:
    """Axes of matplotlib, which is imported when a picture is wanted.

    Args:
        ax: Axes, or None.

    Returns:
        The axes, or those of a new figure.
    """
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots()[1]
