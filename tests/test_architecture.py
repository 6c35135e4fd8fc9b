"""The rooms of the package and the directions in which they know one another."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pyro_ibvi"

#: What each room may import of the package, besides itself. `Protocol`s stand in for the rest.
ALLOWED = {
    "_util": set(),
    "theory": {"_util"},
    "mup": {"_util", "theory"},
    "pairing": {"_util"},
    "models": {"_util", "theory", "mup", "pairing"},
    "guides": {"_util", "theory", "mup", "pairing", "models"},
    "objectives": {"_util", "theory", "mup", "pairing", "models"},
    "training": {"_util", "theory", "mup", "pairing"},
    "prediction": {"_util", "theory", "mup", "pairing", "models", "guides"},
    "front": {
        "_util",
        "mup",
        "pairing",
        "models",
        "guides",
        "objectives",
        "training",
        "prediction",
    },
}
#: These look at what the rooms below made; what leads to another library stands at the edge.
TOP = {"diagnostics", "arviz"}
EDGE = {"estimators", "lightning", "botorch"}
NO_PYRO = {"theory", "mup"}


def imports(source):
    """Dotted names that a source imports, with what it takes from them."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def violations(room, source):
    """Imports that a room must not have, as sentences."""
    for name in imports(source):
        top, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        if top == "pyro" and room in NO_PYRO:
            yield f"{room} imports Pyro: {name}"
        if top != "pyro_ibvi" or target in {room, "_version"} or room == "__init__":
            continue
        if target in EDGE:
            yield f"{room} imports {target}, which stands at the edge: {name}"
        elif (target in TOP and room not in EDGE) or (
            room in ALLOWED and target not in ALLOWED[room]
        ):
            yield f"{room} imports {target}: {name}"


def test_rooms_import_only_what_stands_below_them():
    found = [
        f"{path.relative_to(PACKAGE)}: {sentence}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for sentence in violations(room_of(path), path.read_text())
    ]
    assert not found, "\n".join(found)
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms - EDGE == ALLOWED.keys() | TOP, "a new room must say what it may import"


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("theory", "import pyro.distributions as dist"),
        ("mup", "from pyro import poutine"),
        ("pairing", "from pyro_ibvi.models import SupervisedModel"),
        ("models", "from pyro_ibvi.guides.normal import AutoMuPNormal"),
        ("guides", "from pyro_ibvi.objectives import TraceExpectedLogLikelihood"),
        ("objectives", "from pyro_ibvi.guides import AutoMuPNormal"),
        ("objectives", "def f():\n    from pyro_ibvi.prediction import predict"),
        ("training", "from pyro_ibvi.models import SupervisedModel"),
        ("prediction", "from pyro_ibvi import training"),
        ("guides", "from pyro_ibvi.arviz import to_arviz"),
        ("diagnostics", "from pyro_ibvi.lightning import IBVIModule"),
        ("training", "import pyro_ibvi.models.supervised"),
    ],
)
def test_a_forbidden_import_is_found(room, line):
    assert len(list(violations(room, line))) == 1


def module_graph():
    graph = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if parts[-1] != "__init__":
            graph[".".join(parts)] = set(imports(path.read_text()))
    return {
        name: {other for other in graph if any(f"{n}.".startswith(f"{other}.") for n in names)}
        for name, names in graph.items()
    }


def circles(graph):
    """Modules that reach themselves, once those that import nothing more are taken away."""
    graph = {name: set(targets) for name, targets in graph.items()}
    while ends := [name for name, targets in graph.items() if not targets]:
        graph = {n: t - set(ends) for n, t in graph.items() if n not in ends}
    return sorted(graph)


def test_no_import_circle():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["a", "b", "c"]  # a test of the test
    assert circles(module_graph()) == []


def test_import_brings_in_no_optional_package():
    code = "import sys, pyro_ibvi\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    optional = {"arviz", "arviz_base", "lightning", "sklearn", "botorch", "matplotlib", "pandas"}
    assert optional.isdisjoint(run.stdout.split())
