"""Configuration of Sphinx: `make docs` builds the pages and runs the tutorials.

Two folders are written here, before Sphinx reads its sources, and neither is in git:
`tutorials/` holds a copy of each script in /tutorials, which MyST-NB executes, and `api/` one
page for each room of the package. A new tutorial or room needs no edit here.
"""

import ast
import importlib.util
import os
import re
import shutil
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
PACKAGE = ROOT / "pyro_ibvi"

# Modules that need an extra are documented without it.
OPTIONAL_DEPENDENCIES = ("lightning", "pytorch_lightning")


def fresh_folder(name: str) -> Path:
    """Empty the folder `name` beside this file."""
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def page(title: str, text: str, entries: list[str]) -> str:
    """Markdown of a page with a table of contents, which is left out when it would be empty."""
    toctree = "\n```{toctree}\n:maxdepth: 1\n\n" + "\n".join(entries) + "\n```\n"
    return f"# {title}\n\n{text}\n" + (toctree if entries else "")


def write_tutorials() -> None:
    """Copy the tutorials to where Sphinx finds them and list them on one page."""
    folder = fresh_folder("tutorials")
    scripts = sorted((ROOT / "tutorials").glob("[0-9]*.py"))
    for script in scripts:
        shutil.copy(script, folder)
    text = (
        "Each page is a script of the folder `tutorials/`, executed when these pages were built."
    )
    names = [script.stem for script in scripts]
    (folder / "index.md").write_text(page("Tutorials", text, names))


def summary(source: Path) -> str:
    """First line of a module's docstring, read without importing it, from rst to Markdown."""
    docstring = ast.get_docstring(ast.parse(source.read_text())) or ""
    line = docstring.partition("\n")[0].replace("|", r"\|")
    line = re.sub(r":math:`([^`]*)`", r"$\1$", line)
    return re.sub(r":[\w:]+:`~?([^`]*)`", r"`\1`", line)


def write_api() -> None:
    """Write a page for each room of the package and list them with their summaries."""
    folder = fresh_folder("api")
    rooms = [init.parent for init in sorted(PACKAGE.glob("[a-z]*/__init__.py"))]
    for room in rooms:
        name = f"pyro_ibvi.{room.name}"
        directive = f".. automodule:: {name}\n   :members:\n   :show-inheritance:"
        text = f"# {room.name}\n\n```{{eval-rst}}\n{directive}\n```\n"
        (folder / f"{room.name}.md").write_text(text)
    rows = [f"| [{r.name}]({r.name}.md) | {summary(r / '__init__.py')} |" for r in rooms]
    lines = ["| folder | holds |", "| --- | --- |", *rows] if rows else []
    text = (
        "What most programs need stands in the package itself: `import pyro_ibvi as ibvi`. The "
        "rest is reached through its folder, as in `pyro_ibvi.guides.Covariance`.\n\n"
    )
    names = [room.name for room in rooms]
    (folder / "index.md").write_text(page("Reference", text + "\n".join(lines), names))


write_tutorials()
write_api()

project = "pyro_ibvi"
author = "The pyro_ibvi developers"
copyright = author
version = release = next(
    node.value.value
    for node in ast.parse((PACKAGE / "_version.py").read_text()).body
    if isinstance(node, ast.Assign) and node.targets[0].id == "__version__"
)

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
source_suffix = {".md": "myst-nb", ".py": "myst-nb"}
exclude_patterns = ["_build", "conf.py"]

html_theme = "furo"
html_title = f"pyro_ibvi {release}"

napoleon_numpy_docstring = False
autodoc_member_order = "bysource"
autodoc_typehints = "both"
autodoc_typehints_format = "short"
autodoc_typehints_description_target = "documented"
autodoc_mock_imports = [
    name for name in OPTIONAL_DEPENDENCIES if importlib.util.find_spec(name) is None
]

myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 3

# The tutorials run on every build, away from the sources. An error in one, or a line on stderr (a
# warning, say), is a warning of Sphinx, which -W turns into failure; the traceback is shown.
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = "force"
nb_execution_timeout = 600
nb_execution_show_tb = True
nb_execution_in_temp = True
nb_merge_streams = True
nb_output_stderr = "warn"

# Not warnings of ours: ArviZ announces its next version once a day, tqdm misses a widget.
os.environ["PYTHONWARNINGS"] = "ignore::FutureWarning:arviz,ignore:IProgress not found"
os.environ["TQDM_DISABLE"] = "1"
