"""Configuration of Sphinx: `make docs` builds the pages and runs the tutorials.

Two folders are written here, before Sphinx reads its sources, and neither is in git:
`tutorials/` holds a copy of each script in /tutorials, which MyST-NB executes, and `api/` one
page for each room of the package. A new tutorial or room needs no edit here.
"""

import ast
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import sys
from pathlib import Path

import jupytext

HERE = Path(__file__).parent
ROOT = HERE.parent
PACKAGE = ROOT / "pyro_ibvi"

sys.path[:0] = [str(HERE), str(ROOT)]
# Modules that need an extra are documented without it.
OPTIONAL_DEPENDENCIES = ("lightning", "pytorch_lightning", "botorch")
#: The package's folders and modules of their own, by name.
ROOMS = {
    f"pyro_ibvi.{init.parent.name if init.stem == '__init__' else init.stem}": init
    for init in (*sorted(PACKAGE.glob("[a-z]*/__init__.py")), *sorted(PACKAGE.glob("[a-z]*.py")))
}
#: What the reference has a place for.
DOCUMENTED: list[object] = []


def fresh_folder(name: str) -> Path:
    """Empty the folder `name` beside this file."""
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def page(title: str, text: str, entries: list[str]) -> str:
    """Markdown of a page with its entries in the navigation; the text lists them itself."""
    toctree = "\n```{toctree}\n:hidden:\n\n" + "\n".join(entries) + "\n```\n"
    return f"# {title}\n\n{text}\n" + toctree


def write_tutorials() -> None:
    """Copy the tutorials to where Sphinx finds them, as notebooks too, and list them on a page."""
    folder = fresh_folder("tutorials")
    notebooks = folder / "notebooks"
    notebooks.mkdir()
    rows = ["| tutorial | to take along |", "| --- | --- |"]
    scripts = sorted((ROOT / "tutorials").glob("[0-9]*.py"))
    for script in scripts:
        name, text = script.stem, script.read_text()
        jupytext.write(jupytext.reads(text, "py:percent"), notebooks / f"{name}.ipynb")
        (notebooks / script.name).write_text(text)
        rows.append(
            f"| []({script.name}) | {{download}}`script <notebooks/{script.name}>`, "
            f"{{download}}`notebook <notebooks/{name}.ipynb>` |"
        )
        shutil.copy(script, folder)
    text = (
        "Each page is a script of the folder `tutorials/`, executed when these pages were built. "
        "It can be run as it stands, and leaves its pictures in the folder `out`; as a notebook "
        "it opens in Jupyter. The extra `demo` has what they need ([](../howto/install.md)).\n"
    )
    names = [script.stem for script in scripts]
    listed = "\n".join([text, *rows])
    (folder / "index.md").write_text(page("Tutorials", listed, names))


def exported(source: Path) -> dict[str, list[str]]:
    """Names in `__all__` of a package, by the comment above them."""
    groups: dict[str, list[str]] = {}
    group = ""
    text = source.read_text().partition("__all__")[2].partition("]")[0]
    for line in text.splitlines():
        if comment := re.match(r"    # (.*)", line):
            group = comment[1]
        for name in re.findall(r'"(\w+)"', line):
            if name != "__version__":
                groups.setdefault(group, []).append(name)
    return groups


def summary(source: Path) -> str:
    """First line of a module's docstring, from rst to Markdown."""
    docstring = ast.get_docstring(ast.parse(source.read_text())) or ""
    line = docstring.partition("\n")[0].replace("|", r"\|")
    line = re.sub(r":math:`([^`]*)`", r"$\1$", line)
    return re.sub(r":[\w:]+:`~?([^`]*)`", r"`\1`", line)


def known_base(base: type) -> type:
    """A class, or what readers know of it: the first of its ancestors that is not internal."""
    return next(
        ancestor
        for ancestor in getattr(base, "__mro__", (base,))
        if ancestor in DOCUMENTED or not ancestor.__module__.startswith("pyro_ibvi")
    )


def inherited(thing: type) -> str:
    """Option that shows the members of ancestors that have no place of their own."""
    known = [base.__name__ for base in thing.__mro__[1:] if known_base(base) is base]
    return f"\n   :inherited-members: {', '.join(known)}"


def documented(module: str, names: list[str]) -> str:
    """Directives that document names of a module."""
    parts = []
    for name in names:
        thing = getattr(importlib.import_module(module), name)
        kind = "autoclass" if isinstance(thing, type) else "autofunction"
        kind = kind if callable(thing) else "autodata"
        options = f"\n   :members:{inherited(thing)}" if kind == "autoclass" else ""
        if getattr(thing, "__bases__", (object,)) not in ((object,), (tuple,)):
            options += "\n   :show-inheritance:"
        if hasattr(thing, "get_metadata_routing"):  # scikit-learn adds methods to its estimators
            added = [method for method in dir(thing) if method.endswith("_request")]
            arguments = [field.name for field in dataclasses.fields(thing)]
            options += f"\n   :exclude-members: {', '.join(added + arguments)}"
        parts.append(f".. {kind}:: {module}.{name}{options}")
    return "```{eval-rst}\n" + "\n\n".join(parts) + "\n```\n"


def write_api() -> None:
    """Write a page for each group of public names, and one for each room's further names."""
    folder = fresh_folder("api")
    top = exported(PACKAGE / "__init__.py")
    known = {name for names in top.values() for name in names}
    DOCUMENTED.extend(
        getattr(importlib.import_module(module), name)
        for module, init in {"pyro_ibvi": PACKAGE / "__init__.py", **ROOMS}.items()
        for names in exported(init).values()
        for name in names
    )
    pages, rows = [], ["| page | names |", "| --- | --- |"]
    for group, names in top.items():
        title = group[0].upper() + group[1:]
        stem = re.sub(r"\W+", "-", group.lower())
        (folder / f"{stem}.md").write_text(f"# {title}\n\n" + documented("pyro_ibvi", names))
        pages.append(stem)
        listed = ", ".join(f"{{py:obj}}`~pyro_ibvi.{name}`" for name in names)
        rows.append(f"| [{title}]({stem}.md) | {listed} |")
    rooms, more = [], ["| folder | holds |", "| --- | --- |"]
    for module, init in ROOMS.items():
        name = module.rpartition(".")[2]
        names = [n for group in exported(init).values() for n in group if n not in known]
        if not names:
            continue
        text = f"# `{module}`\n\n{summary(init)}\n\n" + documented(module, names)
        (folder / f"room-{name}.md").write_text(text)
        rooms.append(f"room-{name}")
        more.append(f"| [`{module}`](room-{name}.md) | {summary(init)} |")
    text = "\n".join(
        [
            "What most programs need stands at the top: `import pyro_ibvi as ibvi`.\n",
            *rows,
            "\nWhat is only returned, or serves those who extend the package, is reached through "
            "its folder.\n",
            *more,
        ]
    )
    (folder / "index.md").write_text(page("Reference", text, pages + rooms))


def copy_mathjax() -> None:
    """Copy MathJax from the package that ships it: formulas then need no internet."""
    script = next(
        file
        for file in importlib.metadata.files("django-static-mathjax") or ()
        if file.match("es5/tex-svg-full.js")
    )
    shutil.copy(script.locate(), fresh_folder("mathjax"))


import all_messages
import links

write_tutorials()
write_api()
copy_mathjax()
all_messages.write(HERE / "all-messages.md")

project = "pyro_ibvi"
author = "The pyro_ibvi developers"
copyright = author
version = release = next(
    node.value.value
    for node in ast.parse((PACKAGE / "_version.py").read_text()).body
    if isinstance(node, ast.Assign) and node.targets[0].id == "__version__"
)

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "myst-nb", ".py": "myst-nb"}
exclude_patterns = ["_build", "_static", "mathjax", "tutorials/notebooks", "*.py", "howto/scripts"]

html_theme = "furo"
html_title = f"pyro_ibvi {release}"
html_static_path = ["_static", "mathjax"]
html_css_files = ["pages.css"]
# Pages are read from a disk too, where a browser lets no script fetch a file: the index of the
# search is a script, and the results' summaries, which would be fetched, stay away.
html_show_search_summary = False
html_copy_source = False
# SVG, since it needs no fonts; the pages' own colors, dark ones too, are the text's.
mathjax_path = "tex-svg-full.js"
mathjax3_config = {
    "options": {"processHtmlClass": "tex2jax_process|mathjax_process|math|output_area"},
    "startup": {"typeset": True},
}

napoleon_numpy_docstring = False
autodoc_member_order = "bysource"
# Types stand beside each argument's text; in a signature they would fill half a phone's screen.
autodoc_typehints = "description"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
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


def show_known_bases(app, name, thing, options, bases):
    """Name as a class's bases what the reference or another project documents."""
    known = list(dict.fromkeys(known_base(base) for base in bases))
    bases[:] = [
        b for b in known if not any(b in getattr(o, "__mro__", ())[1:] for o in known)
    ] or [object]


def setup(app):
    app.connect("missing-reference", links.resolve)
    app.connect("autodoc-process-bases", show_known_bases)
