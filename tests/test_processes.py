"""Two processes against one: ``DistributedDataParallel``, FSDP2, and what a loop of one says."""

import ast
import contextlib
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import pyro_ibvi as ibvi
from pyro_ibvi.training import seed_process

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_gloo_available() or not hasattr(os, "fork"),
    reason="needs processes that meet by gloo",
)


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """What two processes printed, and their folder, see ``tests/together.py``."""
    folder = tmp_path_factory.mktemp("together")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    script = ROOT / "docs" / "howto" / "scripts" / "torchrun.py"
    program = [sys.executable, "-W", "error", str(ROOT / "tests" / "together.py")]
    done = subprocess.run(
        [*program, *free_ports(2), str(script)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), folder


@pytest.fixture
def found(output):
    return ast.literal_eval(output[0][0])


def free_ports(number):
    """Ports for processes to meet at."""
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(number)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [str(listener.getsockname()[1]) for listener in listeners]


@pytest.mark.parametrize("wrapper", ["DistributedDataParallel", "fully_shard"])
def test_two_processes_follow_one(found, wrapper):
    """With the same global batches and draws, whatever the covariance, optimizer, reduction."""
    cases = {key[1]: case for key, case in found.items() if key[0] == wrapper}
    assert len(cases) == 8
    for name, (distance, length, same_rates) in cases.items():
        assert distance < 1e-6, name
        assert length > 1e-2, name  # so that 1e-6 says something
        assert same_rates, name


def test_draws_differ_and_networks_do_not(found):
    draws, networks = found["own draws"]
    assert draws > 0.1
    assert networks == 0.0


def test_a_sharded_network_predicts_once_it_is_gathered(found):
    assert found["sharded prediction"] < 1e-6


def test_fit_says_that_it_is_alone(found):
    (message,) = found["fit"]
    assert message.startswith("This is process 0 of 2 of a process group, and fit trains a net")


def test_seeds_of_processes():
    """Alike for the same seed and rank, unlike for all others, sums of both included."""
    seeds = {seed_process(seed, rank) for seed in range(20) for rank in range(20)}
    assert len(seeds) == 400
    assert seed_process(5, 3) == seed_process(5, 3)
    draws = []
    for _ in range(2):
        seed_process(5, 3)
        draws.append((torch.rand(()).item(), random.random()))
    assert draws[0] == draws[1]
    assert seed_process(5) == 5  # without a process group
    for seed, rank, match in (
        (-1, 0, "seed must be a pos"),
        (0, -1, "rank must be"),
        (1.5, 0, "got 1.5"),
    ):
        with pytest.raises(ValueError, match=match):
            seed_process(seed, rank)


def test_the_script_for_torchrun(output):
    """Two processes train, and one writes a network that predicts as it printed."""
    lines, folder = output
    scores = ast.literal_eval(lines[1])
    assert scores["accuracy"] > 0.88
    x, y = load_digits(return_X_y=True)
    net = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 10))
    again = ibvi.load(folder / "digits.ibvi", net)
    assert again.evaluate(x[1200:] / 8 - 1, y[1200:], seed=0) == pytest.approx(scores, rel=1e-5)
    assert again.model.num_data == 1200
    assert len(lines) == 2  # process 0 alone speaks


def test_two_workers_of_lightning_one_of_which_is_killed():
    """They have one network, draws of their own and common scores; then an error, and no hang."""
    pytest.importorskip("lightning")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "lightning_workers.py")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.stdout, done.stderr
    found = ast.literal_eval(done.stdout.splitlines()[-1])
    assert found["networks"] == 0.0
    assert found["draws"] > 0.1
    assert found["num_data"] == 32
    assert found["steps"] == 2 * 4  # of two processes with 16 data each, 4 at a time
    for name in ("nll", "accuracy", "ece", "brier"):
        assert found["logged"][f"val_{name}"] == pytest.approx(found["expected"][name], rel=1e-4)
    assert done.returncode != 0
    assert "peer" in done.stderr  # gloo's word for who is gone
