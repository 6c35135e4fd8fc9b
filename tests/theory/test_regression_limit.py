"""The limit of linear regression against gradient descent written out by hand, in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_ibvi.theory import (
    mean_field_limit,
    null_space_projection,
    regression_limit,
    wasserstein2_squared,
)
from tests.allocation import LargestAllocation
from tests.theory.linear import N, P, R, descend, matrix, problem, randn

VARIANTS = {
    "gradient descent": {"steps": 300, "rate": 1.0},
    "unequal rates": {"steps": 900, "rate": 1.0, "rate_S": 0.2},
    "momentum": {"steps": 600, "rate": 0.5, "momentum": 0.9},
    "stochastic": {"steps": 1500, "rate": 0.4, "batch": 2},
    "single draws": {"steps": 1500, "rate": 0.25, "draws": 1},
    "stochastic, momentum, single draws": {
        "steps": 4000,
        "rate": 0.02,
        "momentum": 0.9,
        "batch": 2,
        "draws": 1,
    },
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_of_gradient_descent_reaches_the_limit(variant):
    X, y, loc0, S0 = problem()
    limit = regression_limit(X, y, loc0, S0)
    loc, S = descend(X, y, loc0, S0, **variant)
    assert (loc - limit.loc).abs().max() < 1e-10
    assert (S - limit.S).abs().max() < 1e-10
    # The control: the limit is far from the start and from the solution of least norm.
    assert (limit.S - S0).abs().max() > 0.1
    assert (limit.loc - torch.linalg.pinv(X) @ y).abs().max() > 0.1


def test_adam_fits_the_data_and_ends_elsewhere():
    """The theorem's assumption is needed: Adam's steps leave the span of the data."""
    X, y, loc0, S0 = problem()
    limit = regression_limit(X, y, loc0, S0)
    loc, S = loc0.clone().requires_grad_(), S0.clone().requires_grad_()
    optimizer = torch.optim.Adam([loc, S], lr=0.05)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.995)
    for _ in range(3000):
        optimizer.zero_grad()
        loss = ((X @ loc - y).square() + (X @ S).square().sum(-1)).mean() / 2
        loss.backward()
        optimizer.step()
        schedule.step()
    assert loss < 1e-12
    assert wasserstein2_squared(loc, S, limit.loc, limit.S) > 0.1
    prior = (loc0, S0)
    assert wasserstein2_squared(loc, S, *prior) > 1.05 * wasserstein2_squared(*limit, *prior)


def test_limit_equals_the_formula_with_dense_pseudo_inverses():
    X, y, loc0, S0 = problem(seed=10)
    inverse = np.linalg.pinv(X.numpy())
    loc, S = (t.numpy() for t in regression_limit(X, y, loc0, S0))
    np.testing.assert_allclose(loc, loc0.numpy() + inverse @ (y - X @ loc0).numpy(), rtol=1e-12)
    np.testing.assert_allclose(S, (np.eye(P) - inverse @ X.numpy()) @ S0.numpy(), atol=1e-13)


def test_data_of_deficient_rank():
    X = matrix([2.0, 1.5, 1.0], 7, P, seed=20)
    y, loc0, S0 = X @ randn(P, seed=22), randn(P, seed=23), randn(P, R, seed=24)
    limit = regression_limit(X, y, loc0, S0)
    loc, S = descend(X, y, loc0, S0, steps=1500, rate=0.3, draws=1, batch=4)
    torch.testing.assert_close((loc, S), tuple(limit), rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", [(7, 9, 3), (20, 4, 4), (20, 6, 4)])
def test_without_an_exact_fit_the_mean_is_weighted_least_squares(shape):
    """Inconsistent targets: rank below the number of data, with more or fewer features."""
    num_data, num_features, rank = shape
    X = matrix(np.linspace(2, 1, rank), num_data, num_features, seed=30)
    y, loc0 = randn(num_data, seed=32), randn(num_features, seed=33)
    S0 = randn(num_features, R, seed=34)
    noise_scale = 0.5 + torch.rand(num_data, generator=torch.Generator().manual_seed(35)).double()
    limit = regression_limit(X, y, loc0, S0, noise_scale=noise_scale)
    weights = noise_scale**-2
    rate = num_data / (4 * weights.max()).item()
    loc, S = descend(X, y, loc0, S0, steps=3000, rate=rate, weights=weights)
    torch.testing.assert_close((loc, S), tuple(limit), rtol=0, atol=1e-10)
    unweighted = regression_limit(X, y, loc0, S0)
    assert (unweighted.loc - loc).abs().max() > 1e-3  # the control: weights matter here
    if rank == num_features:
        assert limit.S.abs().max() < 1e-13


def test_with_an_exact_fit_the_noise_does_not_matter():
    X, y, loc0, S0 = problem(seed=40)
    noise_scale = torch.logspace(-6, 6, N, dtype=torch.float64)
    limit = regression_limit(X, y, loc0, S0, noise_scale=noise_scale)
    torch.testing.assert_close(limit, regression_limit(X, y, loc0, S0), rtol=1e-9, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(sizes=st.tuples(*[st.integers(1, 8)] * 3), columns=st.integers(1, 5), seed=st.integers(0))
def test_limit_satisfies_the_conditions_that_define_it(sizes, columns, seed):
    """Any shape and rank: stationary, and moved within the span of the data only."""
    num_data, num_features, _ = sizes
    seed %= 2**30
    values = np.linspace(2, 1, min(sizes))
    X = matrix(values, num_data, num_features, seed)
    y, loc0 = randn(num_data, seed=seed + 2), randn(num_features, seed=seed + 3)
    S0 = randn(num_features, columns, seed=seed + 4)
    weights = randn(num_data, seed=seed + 5).abs() + 0.5
    loc, S = regression_limit(X, y, loc0, S0, noise_scale=1 / weights)
    inverse = torch.linalg.pinv(X, rtol=1e-9)
    assert (X.mT @ (weights.square() * (X @ loc - y))).abs().max() < 1e-10
    assert (X @ S).abs().max() < 1e-12
    for moved in (loc - loc0, S - S0):
        torch.testing.assert_close(inverse @ (X @ moved), moved, rtol=0, atol=1e-11)


def test_rates_for_each_feature_change_what_is_near():
    X, y, loc0, S0 = problem(seed=45)
    rates = torch.logspace(-0.5, 0.5, P, dtype=torch.float64)
    limit = regression_limit(X, y, loc0, S0, rates=rates)
    loc, S = loc0, S0
    for _ in range(3000):
        loc, S = (
            loc - 0.5 * rates * (X.mT @ (X @ loc - y)) / N,
            S - 0.1 * rates[:, None] * (X.mT @ (X @ S)) / N,
        )
    torch.testing.assert_close((loc, S), tuple(limit), rtol=0, atol=1e-10)
    assert (regression_limit(X, y, loc0, S0).loc - loc).abs().max() > 1e-2  # the control

    def distance(loc, S):  # in the coordinates in which the rates are equal
        root = rates.sqrt()
        return wasserstein2_squared(loc / root, S / root[:, None], loc0 / root, S0 / root[:, None])

    assert distance(*limit) < distance(*regression_limit(X, y, loc0, S0))


def test_no_feasible_perturbation_is_nearer_to_the_prior():
    """Theorem 1's second half, on 1,000 other minimisers of the expected loss."""
    X, y, loc0, S0 = problem(seed=50)
    limit = regression_limit(X, y, loc0, S0)
    null = torch.eye(P, dtype=torch.float64) - torch.linalg.pinv(X) @ X
    nearest = wasserstein2_squared(*limit, loc0, S0)
    distances = []
    for i in range(1000):
        size = 10.0 ** (-3 + 4 * i / 999)
        loc = limit.loc + size * null @ randn(P, seed=1000 + i)
        S = limit.S + size * null @ randn(P, R, seed=3000 + i)
        assert ((X @ loc - y).square() + (X @ S).square().sum(-1)).max() < 1e-20
        distances.append(wasserstein2_squared(loc, S, loc0, S0))
    assert min(distances) > nearest
    # The control: without the constraint, a small step to the prior is nearer.
    toward = (limit.loc + 1e-2 * (loc0 - limit.loc), limit.S + 1e-2 * (S0 - limit.S))
    assert wasserstein2_squared(*toward, loc0, S0) < nearest


def test_an_ensemble_of_prior_draws_has_the_law_of_the_limit():
    """Each member is a prior draw trained alone; none knows of the others or of S."""
    members = 10_000
    X, y, loc0, S0 = problem(seed=60)
    limit = regression_limit(X, y, loc0, S0)
    z = randn(members, R, seed=65)
    w = loc0 + z @ S0.mT
    for _ in range(300):
        w = w - (w @ X.mT - y) @ X / N
    torch.testing.assert_close(w, limit.loc + z @ limit.S.mT, rtol=0, atol=1e-10)
    # Mean and covariance over the members, within four standard errors in each entry.
    covariance = limit.S @ limit.S.mT
    variance = covariance.diagonal()
    error = (w.mean(0) - limit.loc).abs() / (variance / members).sqrt()
    assert error.max() < 4
    spread = (variance[:, None] * variance + covariance.square()) / members
    error = (w.mT.cov() - covariance).abs() / spread.sqrt()
    assert error.max() < 4
    prior_error = (w.mT.cov() - S0 @ S0.mT).abs() / spread.sqrt()
    assert prior_error.max() > 40  # the control: the law has changed


def test_a_diagonal_shrinks_wherever_a_datum_looks():
    X, y, loc0, _ = problem(seed=70)
    X[:, 4] = 0
    scale0 = randn(P, seed=72)
    scale = scale0.clone()
    for _ in range(20_000):
        scale = scale - X.square().mean(0) * scale
    limit = mean_field_limit(X, scale0)
    torch.testing.assert_close(scale, limit, rtol=0, atol=1e-10)
    assert limit.nonzero().flatten().tolist() == [4]
    free = regression_limit(X, y, loc0, scale0.diag())
    assert free.S[:4].norm() > 0.5  # a full factor keeps the null space instead


def test_large_models_never_need_a_square_matrix():
    size = 20_000
    shapes = ((3, size), (3,), (size,), (size, 4))
    X, y, loc0, S0 = (randn(*shape, seed=80 + i) for i, shape in enumerate(shapes))
    with LargestAllocation(X, S0) as record:
        limit = regression_limit(X, y, loc0, S0)
    assert record.numbers <= 4 * size
    assert (X @ limit.S).abs().max() < 1e-12
    assert (X @ limit.loc - y).abs().max() < 1e-11


def test_null_space_projection_equals_the_dense_one():
    X = matrix([2.0, 1e-3], 4, P, seed=90)
    project = null_space_projection(X)
    dense = np.eye(P) - np.linalg.pinv(X.numpy(), rcond=1e-9) @ X.numpy()
    np.testing.assert_allclose(project(torch.eye(P).double()).numpy(), dense, atol=1e-12)
    assert project.basis.shape == (P, 2)
    vector = randn(P, seed=92)
    np.testing.assert_allclose(project(vector), dense @ vector.numpy(), atol=1e-12)


# Theorem 2
