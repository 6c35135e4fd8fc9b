"""The largest stable rate against the second moment written out by hand."""

import numpy as np
import pytest
import torch

from pyro_ibvi.theory import (
    max_stable_multiplicative_rate,
    max_stable_rate,
    rank_rate_factor,
)


def second_moment_radius(rate, rank, num_draws, loc_rate_ratio):
    """Growth per step of the second moment of (error of the mean, S), without sampling.

    Three nodes of Gauss-Hermite quadrature a dimension integrate the fourth moments exactly.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    grid = np.stack(np.meshgrid(*[nodes] * (rank * num_draws), indexing="ij"), -1)
    mass = np.stack(np.meshgrid(*[weights] * (rank * num_draws), indexing="ij"), -1).prod(-1)
    z = grid.reshape(-1, num_draws, rank)
    phi = np.concatenate([np.ones((*z.shape[:2], 1)), z], -1)
    rates = rate * np.array([loc_rate_ratio, *[1.0] * rank])
    step = np.eye(rank + 1) - rates[:, None] * np.einsum("kmi,kmj->kij", phi, phi) / num_draws
    if loc_rate_ratio == 0:  # the mean is at its optimum and stays there
        step = step[:, 1:, 1:]
    size = step.shape[1]
    pairs = np.einsum("k,kij,kab->iajb", mass.ravel() / mass.sum(), step, step)
    return np.abs(np.linalg.eigvals(pairs.reshape(size**2, size**2))).max()


@pytest.mark.parametrize("loc_rate_ratio", [0.0, 1.0, 3.0])
@pytest.mark.parametrize(("rank", "num_draws"), [(1, 1), (3, 1), (6, 1), (2, 3), (1, 5)])
def test_the_stable_rate_is_where_the_second_moment_starts_to_grow(
    rank, num_draws, loc_rate_ratio
):
    curvature = 2.5
    bound = max_stable_rate(curvature, rank, num_draws, loc_rate_ratio=loc_rate_ratio)
    below, above = (
        second_moment_radius(factor * bound * curvature, rank, num_draws, loc_rate_ratio)
        for factor in (0.999, 1.001)
    )
    assert below < 1 < above


def test_rank_factor_is_the_share_of_the_classical_bound():
    for rank, num_draws in [(1, 1), (10, 1), (10, 4)]:
        expected = max_stable_rate(1.0, rank, num_draws) / 2
        assert rank_rate_factor(rank, num_draws) == pytest.approx(expected, rel=1e-14)


# Sentences


def multiplicative_radius(rate, X, s, draws):
    """Growth per step of the second moment under noise relative to the mean, by quadrature.

    Three nodes a dimension integrate the fourth moments exactly.
    """
    num_data, num_features = X.shape
    num_draws = 1 if draws == "batch" else num_data
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    shape = [num_draws * num_features]
    grid = np.stack(np.meshgrid(*[nodes] * shape[0], indexing="ij"), -1)
    mass = np.stack(np.meshgrid(*[weights] * shape[0], indexing="ij"), -1).prod(-1).ravel()
    scales = 1 + s * grid.reshape(-1, num_draws, num_features)
    seen = X * np.broadcast_to(scales, (len(mass), num_data, num_features))
    step = np.eye(num_features) - rate * np.einsum("kni,knj->kij", seen, seen) / num_data
    pairs = np.einsum("k,kij,kab->iajb", mass / mass.sum(), step, step)
    return np.abs(np.linalg.eigvals(pairs.reshape(num_features**2, -1))).max()


@pytest.mark.parametrize("draws", ["batch", "datum"])
@pytest.mark.parametrize("scale", [0.2, 0.5, 1.0])
def test_the_multiplicative_rate_is_where_the_second_moment_starts_to_grow(scale, draws):
    X = np.random.RandomState(0).randn(3, 2)
    s = scale * np.array([1.0, 0.3])
    bound = max_stable_multiplicative_rate(torch.tensor(X), torch.tensor(s), draws=draws)
    below, above = (multiplicative_radius(f * bound, X, s, draws) for f in (0.999, 1.001))
    assert below < 1 < above


def test_the_multiplicative_rate_where_it_has_a_closed_form():
    X = torch.randn(30, 4, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    X[:, 3] = 0  # a feature that no datum uses bounds nothing
    gram = X.T @ X / len(X)
    for draws in ("batch", "datum"):
        still = max_stable_multiplicative_rate(X, torch.zeros(4), draws=draws)
        assert still == pytest.approx(2 / torch.linalg.eigvalsh(gram)[-1].item(), rel=1e-6)
    one, v = X[:, :1], 0.7**2
    bound = max_stable_multiplicative_rate(one, torch.tensor([0.7]))
    expected = 2 / gram[0, 0].item() * (1 + v) / (1 + 6 * v + 3 * v**2)
    assert bound == pytest.approx(expected, rel=1e-6)
    # Noise averaged over many data leaves that of the expected loss.
    many, s = X.repeat(400, 1), torch.full((4,), 0.7)
    expected_loss = gram + v * gram.diagonal().diag()
    bound = max_stable_multiplicative_rate(many, s, draws="datum")
    assert bound == pytest.approx(2 / torch.linalg.eigvalsh(expected_loss)[-1].item(), rel=1e-3)
