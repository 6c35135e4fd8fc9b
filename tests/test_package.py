"""What a newcomer meets first: the README, the import, the names."""

import re
import subprocess
import sys
from pathlib import Path

import pyro_ibvi as ibvi

ROOT = Path(__file__).parent.parent


def python_blocks(path):
    return re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL)


def test_readme_runs(capsys):
    blocks = python_blocks(ROOT / "README.md")
    assert len(blocks) == 4
    namespace = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    scores = ibvi.score(namespace["prediction"], namespace["y_test"])
    assert scores["accuracy"] > 0.9
    assert namespace["svi"].step(namespace["x"][:10], namespace["y"][:10]) > 0
    assert "accuracy" in capsys.readouterr().out


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


def test_public_names_are_there_and_documented():
    assert len(set(ibvi.__all__)) == len(ibvi.__all__)
    for name in ibvi.__all__:
        thing = getattr(ibvi, name)
        assert name == "__version__" or thing.__doc__, name
