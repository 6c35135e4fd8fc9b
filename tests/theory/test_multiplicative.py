"""Noise relative to the mean on a linear model: gradient descent by hand, and dense distances."""

import pytest
import torch

from pyro_ibvi.theory import (
    multiplicative_limit,
    multiplicative_wasserstein2_squared,
    wasserstein2_squared,
)
from pyro_ibvi.theory.multiplicative import blockwise_wasserstein2_squared
from tests.theory.linear import N, P, problem, randn


def descend(X, y, loc, s, *, steps, rate, rate_s=0.0, momentum=0.0, draws=None):
    """Gradient descent on the expected loss, by its gradient written out, or with draws."""
    generator = torch.Generator().manual_seed(0)
    squares, velocity = X.square().sum(0), torch.zeros_like(loc)
    for _ in range(steps):
        if draws is None:  # the variance of the predictor is the sum over independent weights
            gradient = X.mT @ (X @ loc - y) + squares * s.square() * loc
            gradient_s = squares * loc.square() * s
        else:
            z = torch.randn(*draws, P, dtype=X.dtype, generator=generator)
            residual = (X * (loc * (1 + s * z))).sum(-1) - y
            gradient = (residual[..., None] * X * (1 + s * z)).mean(0).sum(0)
            gradient_s = (residual[..., None] * X * loc * z).mean(0).sum(0)
        velocity = momentum * velocity + gradient
        loc, s = loc - rate * velocity, s - rate_s * gradient_s
    return loc, s


def scales(seed=9):
    return 0.3 + randn(P, seed=seed).abs()


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_gradient_descent_with_held_noise_reaches_the_limit(momentum):
    X, y, loc0, _ = problem()
    X[:, 2] = 0  # a feature that no datum uses keeps its start
    s = scales()
    limit = multiplicative_limit(X, y, loc0, s)
    loc, _ = descend(X, y, loc0, s, steps=1000, rate=0.1, momentum=momentum)
    assert (loc - limit).abs().max() < 1e-10
    assert limit[2].item() == pytest.approx(loc0[2].item(), abs=1e-12)
    # Controls: it neither interpolates nor depends on the start where features are used.
    assert (X @ limit - y).abs().max() > 0.1
    moved = multiplicative_limit(X, y, -loc0, s) - limit
    assert moved.abs().max().item() == pytest.approx(2 * loc0[2].abs().item())
    wrong = multiplicative_limit(X, y, loc0, s.square())
    assert (wrong - limit).abs().max() > 1e-2


def test_without_noise_it_is_the_interpolation_nearest_to_the_start():
    X, y, loc0, _ = problem()
    limit = multiplicative_limit(X, y, loc0, torch.zeros(P, dtype=X.dtype))
    expected = loc0 + torch.linalg.pinv(X) @ (y - X @ loc0)
    torch.testing.assert_close(limit, expected)
    partly = scales() * (torch.arange(P) < 2)
    loc, _ = descend(X, y, loc0, partly, steps=3000, rate=0.15)
    assert (loc - multiplicative_limit(X, y, loc0, partly)).abs().max() < 1e-8


def test_draws_per_datum_have_the_same_limit_on_average():
    X, y, loc0, _ = problem()
    s = scales() / 2
    limit = multiplicative_limit(X, y, loc0, s)
    for draws in ((1000, N), (1000, 1)):  # for each datum, or for the batch
        loc, _ = descend(X, y, loc0, s, steps=400, rate=0.1, draws=draws)
        assert (loc - limit).abs().max() < 0.05


def test_learned_noise_vanishes_where_features_are_used():
    X, y, loc0, _ = problem()
    X[:, 2] = 0
    s0 = scales() / 3
    loc, s = descend(X, y, loc0, s0, steps=10_000, rate=0.15, rate_s=0.15)
    used = torch.arange(P) != 2
    assert (s * loc)[used].abs().max() < 1e-6
    assert (X @ loc - y).abs().max() < 1e-6
    assert s[2] == s0[2]


def test_a_quantity_is_conserved_on_fitted_data():
    X = torch.diag(torch.tensor([1.0, 2.0], dtype=torch.float64))
    loc0 = torch.tensor([0.7, -0.5], dtype=torch.float64)
    s0 = torch.tensor([0.4, 0.9], dtype=torch.float64)
    rate, ratio = 1e-4, 0.3

    def conserved(loc, s):
        return ratio * loc.square() - s.square()

    # Targets that follow the fit leave the noise's own pull alone.
    loc, s = loc0.clone(), s0.clone()
    c = X.square().sum(0)
    for _ in range(5000):
        loc, s = loc - rate * c * s.square() * loc, s - ratio * rate * c * loc.square() * s
    torch.testing.assert_close(conserved(loc, s), conserved(loc0, s0), rtol=1e-3, atol=1e-3)
    assert (s / s0 - 1).abs().min() > 0.01


def test_distance_to_the_prior_is_that_of_the_dense_form():
    loc, other = randn(3, 4, seed=1), randn(3, 4, seed=2)
    s, scale = randn(4, seed=3), randn(3, 4, seed=4).abs() + 0.1
    directions, index = loc * s, torch.arange(4).expand(3, 4)
    rows = torch.zeros(12, 4, dtype=loc.dtype)
    rows[torch.arange(12), index.flatten()] = directions.flatten()
    expected = wasserstein2_squared(loc.flatten(), rows, other.flatten(), scale.flatten())
    found = multiplicative_wasserstein2_squared(
        loc.flatten(), directions.flatten(), index.flatten(), other.flatten(), scale.flatten()
    )
    torch.testing.assert_close(found, expected)


def test_distance_to_other_noise_on_the_same_inputs_is_that_of_the_dense_form():
    loc, other, directions, before = (randn(12, seed=seed) for seed in range(4))
    index = torch.arange(4).expand(3, 4).flatten()
    rows = torch.zeros(2, 12, 4, dtype=loc.dtype)
    rows[:, torch.arange(12), index] = torch.stack([directions, before])
    expected = wasserstein2_squared(loc, rows[0], other, rows[1])
    found = blockwise_wasserstein2_squared(loc, directions, index, other, before)
    torch.testing.assert_close(found, expected)


def test_the_distance_has_a_gradient_at_zero_noise():
    s = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    one = torch.ones(2, dtype=torch.float64)
    multiplicative_wasserstein2_squared(one, one * s, torch.tensor([0, 1]), one, one).backward()
    assert s.grad.isfinite().all()


def test_shapes_that_do_not_fit():
    X, y, loc0, _ = problem()
    with pytest.raises(ValueError, match=r"loc0 has the shape \(2,\), and \(9,\) was expected"):
        multiplicative_limit(X, y, loc0[:2], loc0)
    with pytest.raises(ValueError, match=r"s has the shape \(\), and \(9,\)"):
        multiplicative_limit(X, y, loc0, torch.tensor(1.0))
