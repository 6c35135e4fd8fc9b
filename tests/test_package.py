"""What a newcomer meets first: the README, the import, the names."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import pyro_ibvi as ibvi
from benchmarks.digits import run
from tests.pages import blocks, run_page

ROOT = Path(__file__).parent.parent


def test_readme_runs():
    assert len(list(blocks((ROOT / "README.md").read_text()))) == 5
    namespace = run_page(ROOT / "README.md")
    x, y = namespace["x"], namespace["y"]
    by_hand = ibvi.score(namespace["prediction"], y[1200:])
    in_one = namespace["bnn"].evaluate(x[1200:], y[1200:])
    for scores in (by_hand, in_one):
        assert scores["accuracy"] > 0.88
        assert scores["nll"] < 0.4
    assert namespace["svi"].step(x[:10], y[:10]) > 0


def test_the_table_in_the_readme_is_of_the_committed_runs():
    results = json.loads((ROOT / "benchmarks" / "digits" / "results.json").read_text())
    clean = [r["scores"]["clean"]["nll"] for r in results["runs"]["deterministic"]]
    row = next(r for r in run.table(results).splitlines() if "deterministic" in r)
    assert f"| {sum(clean) / len(clean):.3f} |" in row
    assert f"{run.MARKER}\n{run.table(results)}\n" in (ROOT / "README.md").read_text()


def test_import_is_silent():
    """Nothing is printed, and no global state of torch, Pyro, NumPy or logging changes."""
    code = """
import logging, warnings, numpy, torch, pyro, tqdm.auto
def state():
    return (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(),
            torch.random.get_rng_state().tolist(), dict(pyro.settings.get()),
            list(pyro.get_param_store()), numpy.get_printoptions(), numpy.geterr(),
            [str(f) for f in warnings.filters], logging.getLogger().level,
            list(logging.getLogger().handlers))
before = state()
import pyro_ibvi, sys
assert state() == before
loaded = {"arviz", "torchmetrics", "matplotlib", "sklearn", "lightning"} & set(sys.modules)
assert not loaded, loaded
"""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == run.stderr == ""


def test_a_torch_without_muon_serves_everything_else():
    """Muon came with torch 2.9, and the package is for 2.6 and later."""
    code = """
import torch
del torch.optim.Muon
import pyro_ibvi as ibvi
from pyro_ibvi.training import MuonWithAdamW
x = torch.linspace(-1, 1, 8).unsqueeze(-1)
bnn = ibvi.VariationalNetwork(torch.nn.Linear(1, 1), ibvi.Normal(0.1))
bnn.fit(x, x, num_epochs=1, progress=False)
make = (
    lambda: ibvi.VariationalNetwork(
        torch.nn.Linear(1, 1), ibvi.Normal(0.1), optimizer=MuonWithAdamW),
    lambda: ibvi.MuPOptim(MuonWithAdamW, {"lr": 0.1}, bnn.guide),
    lambda: MuonWithAdamW([torch.nn.Parameter(torch.zeros(2, 2))]),
)
for build in make:
    try:
        build()
    except RuntimeError as error:
        print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert len(lines) == 3
    assert all("has no Muon: install torch 2.9 or later" in line for line in lines)


def run_by_import(node):
    """What runs when a module is imported: of functions their decorators and defaults."""
    if isinstance(node, (ast.FunctionDef, ast.Lambda)):
        inner = [*node.args.defaults, *getattr(node, "decorator_list", [])]
    else:
        inner = list(ast.iter_child_nodes(node))
    yield node
    for child in inner:
        yield from run_by_import(child)


@pytest.mark.parametrize("source", ["torch.optim.Muon", "@mark(torch.optim.Muon)\ndef f(): ..."])
def test_a_name_at_import_is_seen(source):
    assert "torch.optim.Muon" in map(ast.unparse, run_by_import(ast.parse(source)))
    assert "torch.optim.Muon" not in map(
        ast.unparse, run_by_import(ast.parse("def f(): torch.optim.Muon"))
    )


def test_tests_collect_on_a_torch_without_muon():
    for path in sorted(ROOT.joinpath("tests").rglob("*.py")):
        tree = ast.parse(path.read_text())
        named = [node for node in run_by_import(tree) if isinstance(node, ast.Attribute)]
        assert "torch.optim.Muon" not in map(ast.unparse, named), path


def test_public_names_are_there_and_documented():
    assert len(set(ibvi.__all__)) == len(ibvi.__all__)
    for name in ibvi.__all__:
        thing = getattr(ibvi, name)
        assert name == "__version__" or thing.__doc__, name
