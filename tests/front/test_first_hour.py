"""The page of the first hour: its scripts train, save, load elsewhere and print equal numbers."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = ROOT / "docs" / "howto" / "scripts"
FASHION = Path(os.environ.get("PYRO_IBVI_DATA", ROOT / "data")) / "fashion-mnist"


def run(script, folder, *args):
    environment = {**os.environ, "PYRO_IBVI_DATA": str(FASHION.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", str(script), *args]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def check(script, folder):
    """Trains, loads in a new process, compares what is printed to the last digit."""
    trained = run(script, folder)
    assert run(script, folder, "load") == trained
    return ast.literal_eval(trained.splitlines()[0])


def test_a_table_of_numbers(tmp_path):
    scores = check(SCRIPTS / "tabular.py", tmp_path)
    assert scores["rmse"] < 0.85  # of standardized targets, whose own is 1
    assert scores["nll"] < 1.2


@pytest.mark.skipif(not FASHION.is_dir(), reason="needs the files of Fashion-MNIST")
def test_images(tmp_path):
    """With a few of the images and epochs."""
    source = (SCRIPTS / "images.py").read_text()
    for whole, few in (
        ("x[50_000:], y[50_000:]", "x[2_000:2_300], y[2_000:2_300]"),
        ("50_000", "2_000"),
        ("num_epochs=20", "num_epochs=5"),
        ("evaluate(x_test, ", "evaluate(x_test[:300], "),
        ('idx1-ubyte.gz", 8),', 'idx1-ubyte.gz", 8)[:300],'),
    ):
        assert whole in source
        source = source.replace(whole, few)
    script = tmp_path / "images.py"
    script.write_text(source)
    scores = check(script, tmp_path)
    assert scores["accuracy"] > 0.4


@pytest.mark.parametrize("name", ["tabular.py", "images.py"])
def test_the_scripts_are_short(name):
    """At most 20 statements, imports aside, and all of them on the page."""
    source = (SCRIPTS / name).read_text()
    lines = [line for line in source.splitlines() if line.strip()]
    lines = [line for line in lines if not re.match(r"(import|from) ", line)]
    assert len(lines) <= 20
    assert f"scripts/{name}" in (SCRIPTS.parent / "first_hour.md").read_text()
