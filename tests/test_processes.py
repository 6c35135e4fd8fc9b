"""Two processes against one: ``DistributedDataParallel``, FSDP2, and what a loop of one says."""

import ast
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pyro_ibvi.training import seed_process

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_gloo_available() or not hasattr(os, "fork"),
    reason="needs processes that meet by gloo",
)


@pytest.fixture(scope="module")
def found(free_port):
    """What two processes found, see ``tests/together.py``."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", str(ROOT / "tests" / "together.py"), str(free_port)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return ast.literal_eval(done.stdout)


@pytest.mark.parametrize("wrapper", ["DistributedDataParallel", "fully_shard"])
def test_two_processes_follow_one(found, wrapper):
    """With the same global batches and draws, whatever the covariance, optimizer, reduction."""
    cases = {key[1]: case for key, case in found.items() if key[0] == wrapper}
    assert len(cases) == 7
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
