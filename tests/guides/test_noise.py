"""Noise for large tensors is standard normal, reproducible, and new at every call."""

import multiprocessing
import os

import pytest
import torch

from pyro_ibvi.guides.noise import _executor, fill_normal, normal_rows

LARGE = 3 * 2**18 + 5


@pytest.fixture
def restore_threads():
    num_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(num_threads)


def noise(seed, shape=(LARGE,), dtype=torch.float32):
    torch.manual_seed(seed)
    return fill_normal(torch.empty(shape, dtype=dtype))


def test_rows_of_one_batch_have_their_own_law_and_share_nothing_in_one_place():
    torch.manual_seed(0)
    num_rows, size, num_times = 130, 64, 2000
    rows = torch.stack(
        [normal_rows(num_rows, size, torch.empty(())).values() for _ in range(num_times)]
    )
    assert rows.shape == (num_times, num_rows, size)
    assert len(rows[0].abs().unique()) <= 17 * size  # an eighth of them is drawn
    for row in (0, 20, 50, 129):
        own = rows[:, row]
        assert (own.mean(0).abs() * num_times**0.5).max() < 4.5
        covariance = own.mT @ own / num_times
        error = (1 + torch.eye(size)) ** 0.5 / num_times**0.5
        assert ((covariance - torch.eye(size)).abs() / error).max() < 5
        assert (own.pow(4).mean() - 3).abs() < 0.05
    for a, b in ((0, 1), (0, 2), (1, 7), (24, 31), (0, 17)):
        same_place = (rows[:, a] * rows[:, b]).mean(0)
        assert (same_place.abs() * num_times**0.5).max() < 4.5


@pytest.mark.parametrize("num_rows", [8, 128, 130])
def test_one_plus_scaled_rows_have_the_gradient_of_the_plain_formula(num_rows):
    torch.manual_seed(0)
    rows = normal_rows(num_rows, 80, torch.empty((), dtype=torch.float64))
    factor = torch.rand(80, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(num_rows, 80, dtype=torch.float64)
    actual = rows.one_plus(factor)
    expected = 1 + factor * rows.values()
    torch.testing.assert_close(actual, expected, rtol=1e-14, atol=1e-15)
    (gradient,) = torch.autograd.grad((weights * actual).sum(), factor)
    torch.testing.assert_close(gradient, (weights * rows.values()).sum(0), rtol=1e-12, atol=1e-14)


def test_few_or_short_rows_are_drawn_one_by_one():
    for num_rows, size in ((8, 64), (100_000, 4)):
        rows = normal_rows(num_rows, size, torch.empty((), dtype=torch.float64)).values()
        assert rows.shape == (num_rows, size)
        assert len(rows.abs().unique()) == num_rows * size


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


def test_a_system_without_fork_makes_noise_too(restore_threads, monkeypatch):
    torch.set_num_threads(2)
    expected = noise(0)
    monkeypatch.delattr(os, "register_at_fork")
    _executor.cache_clear()
    assert torch.equal(noise(0), expected)


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
