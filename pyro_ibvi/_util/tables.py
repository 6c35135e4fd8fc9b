"""Tables as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def table_lines(rows: Sequence[Sequence[Any]], *, rule: bool = False) -> list[str]:
    r"""Lines of a table whose columns are aligned at their left.

    Args:
        rows: The rows, the header first. Floating point numbers are shown by four digits.
        rule: Whether a line is drawn under the header.

    Returns:
        The lines.

    Example:
        >>> print("\n".join(table_lines([("name", "rate"), ("loc", 0.25)])))
        name  rate
        loc   0.25
    """
    cells = [[f"{c:.4g}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]] if rule else lines
