"""Runs the Python of a page as it is printed, and holds its output to what the page shows."""

import contextlib
import doctest
import io
import re
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"

BLOCK = re.compile(r"^```python\n(.*?)^```$(?:\n+^```text\n(.*?)^```$)?", re.DOTALL | re.MULTILINE)


def blocks(text):
    """Python blocks of a page, each with the line it starts at and the output that follows it."""
    for match in BLOCK.finditer(text):
        yield text[: match.start(1)].count("\n"), match[1], match[2]


def run_page(path):
    """Runs a page's blocks in one namespace, which it returns.

    Where a block of text follows, it must be what the Python block printed; ``...`` stands for
    anything, and spaces count once.
    """
    namespace = {"__name__": path.stem}
    compare = doctest.OutputChecker().check_output
    for line, code, expected in blocks(path.read_text()):
        # So that a traceback points into the page.
        source = compile("\n" * line + code, str(path), "exec")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(source, namespace)
        if expected is not None:
            flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
            assert compare(expected, printed.getvalue(), flags), (
                f"{path.name}, line {line}: the page shows\n{expected}\nand its code prints\n"
                f"{printed.getvalue()}"
            )
    return namespace
