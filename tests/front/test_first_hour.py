"""The page of the first hour: its scripts train, save, load elsewhere and print equal numbers."""

import ast
import gzip
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = ROOT / "docs" / "howto" / "scripts"
FASHION = Path(os.environ.get("PYRO_IBVI_DATA", ROOT / "data")) / "fashion-mnist"


def run(script, folder, *args, data=FASHION.parent):
    environment = {**os.environ, "PYRO_IBVI_DATA": str(data), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", str(script), *args]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def check(script, folder, **options):
    """Trains, loads in a new process, compares what is printed to the last digit."""
    trained = run(script, folder, **options)
    assert run(script, folder, "load", **options) == trained
    return ast.literal_eval(trained.splitlines()[0])


def test_a_table_of_numbers(tmp_path):
    scores = check(SCRIPTS / "tabular.py", tmp_path)
    assert scores["rmse"] < 0.85  # of standardized targets, whose own is 1
    assert scores["nll"] < 1.2


def write_digits(folder):
    """Files of Fashion-MNIST's format with scikit-learn's digits, three pixels for one."""
    digits = load_digits()
    whole = np.pad(digits.images.repeat(3, 1).repeat(3, 2), ((0, 0), (2, 2), (2, 2)))
    for name, rows in (("train", slice(0, 1500)), ("t10k", slice(1500, None))):
        images, labels = (whole[rows] * 15).astype("uint8"), digits.target[rows].astype("uint8")
        for kind, magic, array in (("images-idx3", 2051, images), ("labels-idx1", 2049, labels)):
            header = np.array([magic, *array.shape], dtype=">i4").tobytes()
            with gzip.open(folder / f"{name}-{kind}-ubyte.gz", "wb") as file:
                file.write(header + array.tobytes())


def test_images(tmp_path):
    """With a few of the images; where Fashion-MNIST is not there, with digits in its format."""
    data = FASHION.parent
    if not FASHION.is_dir():
        data = tmp_path
        (data / "fashion-mnist").mkdir()
        write_digits(data / "fashion-mnist")
    source = (SCRIPTS / "images.py").read_text()
    for whole, few in (
        ("x[50_000:], y[50_000:]", "x[1_300:1_500], y[1_300:1_500]"),
        ("50_000", "1_300"),
        ("num_epochs=20", "num_epochs=8"),
        ("evaluate(x_test, ", "evaluate(x_test[:290], "),
        ('idx1-ubyte.gz", 8),', 'idx1-ubyte.gz", 8)[:290],'),
    ):
        assert whole in source
        source = source.replace(whole, few)
    script = tmp_path / "images.py"
    script.write_text(source)
    scores = check(script, tmp_path, data=data)
    assert scores["accuracy"] > 0.4


@pytest.mark.parametrize("name", ["tabular.py", "images.py"])
def test_the_scripts_are_short(name):
    """At most 20 statements, imports aside, and all of them on the page."""
    source = (SCRIPTS / name).read_text()
    lines = [line for line in source.splitlines() if line.strip()]
    lines = [line for line in lines if not re.match(r"(import|from) ", line)]
    assert len(lines) <= 20
    assert f"scripts/{name}" in (SCRIPTS.parent / "first_hour.md").read_text()
