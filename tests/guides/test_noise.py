"""Noise for large tensors is standard normal, reproducible, and new at every call."""

import multiprocessing

import pytest
import torch

from pyro_ibvi.guides.noise import fill_normal

LARGE = 3 * 2**18 + 5


@pytest.fixture
def restore_threads():
    num_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(num_threads)


def noise(seed, shape=(LARGE,), dtype=torch.float32):
    torch.manual_seed(seed)
    return fill_normal(torch.empty(shape, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moments_are_those_of_a_standard_normal(dtype):
    z = noise(0, (1000, 1200), dtype).double()
    n = z.numel()
    for power, moment in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        values = z**power
        assert abs(values.mean() - moment) < 4 * values.std() / n**0.5
    # No entry follows another, within a piece and from one piece to the next.
    flat = z.flatten()
    for lag in (1, 2**18, 2 * 2**18):
        products = flat[lag:] * flat[:-lag]
        assert abs(products.mean()) < 4 * products.std() / len(products) ** 0.5


def test_the_seed_alone_decides(restore_threads):
    expected = noise(0)
    for num_threads in (1, 2, 5):
        torch.set_num_threads(num_threads)
        assert torch.equal(noise(0), expected)
    assert not torch.equal(noise(1), expected)
    again = fill_normal(torch.empty(LARGE))
    assert not torch.equal(again, noise(1))
    assert torch.equal(noise(0, (LARGE, 1)).flatten(), expected)


def test_small_tensors_are_torchs():
    torch.manual_seed(0)
    expected = torch.randn(1000)
    assert torch.equal(noise(0, (1000,)), expected)


def _in_child(queue):
    # Sums of large tensors wait for OpenMP's threads, which a fork leaves behind.
    queue.put(noise(0)[::1000].tolist())


def test_a_forked_process_makes_noise_too(restore_threads):
    torch.set_num_threads(2)
    expected = noise(0)[::1000].tolist()
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_in_child, args=(queue,))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert queue.get() == expected
