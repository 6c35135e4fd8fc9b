"""The largest stable rate against the second moment written out by hand."""

import numpy as np
import pytest

from pyro_ibvi.theory import (
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
