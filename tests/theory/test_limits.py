"""The limits of linear models against gradient descent written out by hand, in float64."""

import sys

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_ibvi.theory import (
    classification_limit,
    max_margin_direction,
    max_stable_rate,
    mean_field_limit,
    null_space_projection,
    rank_rate_factor,
    regression_limit,
    wasserstein2_squared,
)
from tests.allocation import LargestAllocation

N, P, R = 5, 9, 3


def randn(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def matrix(singular_values, num_rows, num_columns, seed):
    """A matrix with these singular values in random directions."""
    left, _ = torch.linalg.qr(randn(num_rows, num_rows, seed=seed))
    right, _ = torch.linalg.qr(randn(num_columns, num_columns, seed=seed + 1))
    values = torch.tensor(singular_values, dtype=torch.float64)
    return left[:, : len(values)] * values @ right[:, : len(values)].mT


def problem(seed=0):
    X = matrix([2.0, 1.8, 1.6, 1.4, 1.2], N, P, seed)
    return X, randn(N, seed=seed + 2), randn(P, seed=seed + 3), randn(P, R, seed=seed + 4)


def descend(
    X, y, loc, S, *, steps, rate, rate_S=None, momentum=0.0, batch=None, draws=0, weights=None
):
    """Gradient descent on the expected squared loss, in closed form or with draws of z."""
    generator = torch.Generator().manual_seed(1)
    weights = torch.ones_like(y) if weights is None else weights
    velocity_loc, velocity_S = torch.zeros_like(loc), torch.zeros_like(S)
    for _ in range(steps):
        rows = (
            slice(None) if batch is None else torch.randperm(len(y), generator=generator)[:batch]
        )
        x, t, w = X[rows], y[rows], weights[rows, None]
        scaled = x * w / len(t)
        if draws:
            z = torch.randn(S.shape[1], draws, dtype=S.dtype, generator=generator)
            residual = x @ (loc[:, None] + S @ z) - t[:, None]
            grad_loc = scaled.mT @ residual.mean(-1)
            grad_S = scaled.mT @ (residual @ z.mT / draws)
        else:
            grad_loc = scaled.mT @ (x @ loc - t)
            grad_S = scaled.mT @ (x @ S)
        velocity_loc = momentum * velocity_loc + grad_loc
        velocity_S = momentum * velocity_S + grad_S
        loc = loc - rate * velocity_loc
        S = S - (rate_S or rate) * velocity_S
    return loc, S


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


def separable(kind):
    """Data whose support vectors are known; the span of the data is a random subspace."""
    signed = {
        # Orthogonal support vectors: every direction decays as 1/t.
        "orthogonal": [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1.5, 1.5, 2], [3, 2, 2]],
        # Two support vectors at 60 degrees: the multipliers are 2/3, the exponent is 1/3.
        "acute": [[1, 0, 0], [0.5, 0.75**0.5, 0], [1.5, 0.75**0.5, 0]],
        # The same and a third direction that only a far datum sees.
        "unspanned": [[1, 0, 0], [0, 1, 0], [1.5, 1.5, 1]],
    }[kind]
    signed = torch.tensor(signed, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(randn(6, 6, seed=100))
    y = torch.tensor([1.0, -1.0, 1.0, -1.0, -1.0], dtype=torch.float64)[: len(signed)]
    X = y[:, None] * signed @ rotation[:3]
    return X, y, 0.5 * randn(6, seed=101), 0.3 * randn(6, 4, seed=102)


def descend_exponential(X, y, loc, S, *, rate, marks):
    """Full-batch gradient descent on the mean expected exponential loss, kept at the marks."""
    A, m, S = (y[:, None] * X).numpy(), loc.numpy().copy(), S.numpy().copy()
    kept = []
    for step in range(1, marks[-1] + 1):
        a = A @ S
        e = np.exp(0.5 * (a * a).sum(1) - A @ m)
        e *= rate / len(e)
        m += e @ A
        S -= A.T @ (e[:, None] * a)
        if step in marks:
            kept.append((m.copy(), S.copy()))
    return kept


def slope(X, kept, marks):
    norms = [np.linalg.norm(X.numpy() @ S) for _, S in kept]
    return np.polyfit(np.log(marks), np.log(norms), 1)[0]


def cosine(a, b):
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


MARKS = (10_000, 20_000, 40_000, 80_000)


@pytest.mark.parametrize(("kind", "exponent"), [("orthogonal", 1.0), ("acute", 1 / 3)])
def test_gradient_descent_tends_to_the_max_margin_limit(kind, exponent):
    X, y, loc0, S0 = separable(kind)
    limit = classification_limit(X, y, loc0, S0)
    assert limit.decay_exponent == pytest.approx(exponent, rel=1e-9)
    kept = descend_exponential(X, y, loc0, S0, rate=0.1, marks=MARKS)
    loc, S = kept[-1]
    null = np.eye(6) - np.linalg.pinv(X.numpy(), rcond=1e-9) @ X.numpy()
    assert cosine(loc - null @ loc, limit.direction.numpy()) > 0.9999
    start = loc0.numpy() - null @ loc0.numpy()
    assert cosine(start, limit.direction.numpy()) < 0.9  # the control
    assert slope(X, kept, MARKS) == pytest.approx(-limit.decay_exponent, abs=0.05)
    np.testing.assert_allclose(null @ loc, limit.loc.numpy(), atol=1e-10)
    np.testing.assert_allclose(null @ S, limit.S.numpy(), atol=1e-10)
    assert np.linalg.norm(S - limit.S.numpy()) < 0.2 * (S0 - limit.S).norm().item()


def test_without_spanning_support_vectors_the_decay_stalls():
    X, y, loc0, S0 = separable("unspanned")
    with pytest.raises(ValueError, match="2 support vectors do not span the data of rank 3"):
        classification_limit(X, y, loc0, S0)
    limit = classification_limit(X, y, loc0, S0, require_span=False)
    assert limit.decay_exponent == 0
    assert limit.support.tolist() == [True, True, False]
    kept = descend_exponential(X, y, loc0, S0, rate=0.1, marks=MARKS)
    assert slope(X, kept, MARKS) == pytest.approx(0, abs=5e-3)
    assert np.linalg.norm(X.numpy() @ kept[-1][1]) > 0.1 * (X @ S0).norm().item()
    loc = kept[-1][0]
    seen = loc - limit.loc.numpy()
    assert cosine(seen, limit.direction.numpy()) > 0.98  # the mean's direction still converges


@pytest.mark.parametrize("seed", [4, 7, 9])  # support vectors span the data
def test_random_data_by_the_gradient_flow_in_the_logarithm_of_time(seed):
    """No symmetry: time exp(300) shows the direction, and the predicted exponent of each case."""
    X = randn(5, 8, seed=200 + seed)
    y = torch.sign(randn(5, seed=240 + seed))
    limit = classification_limit(X, y, randn(8, seed=220), randn(8, 2, seed=221))
    basis = null_space_projection(X).basis
    A = (y[:, None] * X @ basis).numpy()
    k = A.shape[1]

    def flow(tau, state):
        """State: the mean, and S times exp(exponent (tau + 10)) so that it stays visible."""
        m, scaled = state[:k], state[k:].reshape(k, 2)
        a = A @ scaled * np.exp(-limit.decay_exponent * (tau + 10))
        e = np.exp(np.minimum(tau + 0.5 * (a * a).sum(1) - A @ m, 50))
        change = limit.decay_exponent * scaled - A.T @ (e[:, None] * (A @ scaled))
        return np.concatenate([e @ A, change.ravel()])

    times = np.array([100.0, 150.0, 200.0, 250.0, 300.0])
    start = np.concatenate([np.zeros(k), 0.3 * randn(2 * k, seed=222).numpy()])
    solution = scipy.integrate.solve_ivp(
        flow, (-10, 300), start, t_eval=times, method="LSODA", rtol=1e-8, atol=1e-10
    )
    m, scaled = solution.y[:k], solution.y[k:].reshape(k, 2, -1)
    assert cosine(m[:, -1], (basis.mT @ limit.direction).numpy()) > 0.9999
    norms = np.linalg.norm(np.einsum("nk,krt->nrt", A, scaled), axis=(0, 1))
    norms *= np.exp(-limit.decay_exponent * (times + 10))
    rate = np.polyfit(times, np.log(norms), 1)[0]
    assert rate == pytest.approx(-limit.decay_exponent, rel=0.03)
    assert limit.decay_exponent < 1 + 1e-9


@pytest.mark.parametrize("shape", [(6, 10), (40, 4), (12, 5)])
def test_max_margin_vector_satisfies_the_optimality_conditions(shape):
    X, truth = randn(*shape, seed=300), randn(shape[1], seed=301)
    y = torch.sign(X @ truth)
    w = max_margin_direction(X, y)
    A = (y[:, None] * X).numpy()
    assert (A @ w.numpy()).min() == pytest.approx(1, abs=1e-11)
    tight = A @ w.numpy() < 1 + 1e-9
    assert 0 < tight.sum() <= shape[1]
    _, residual = scipy.optimize.nnls(A[tight].T, w.numpy())  # w in the cone of its support
    assert residual < 1e-10 * w.norm()


def test_max_margin_vector_equals_a_general_solver():
    X, y, _, _ = separable("acute")
    X, y = torch.cat([X, X + 0.3 * randn(*X.shape, seed=310)]), torch.cat([y, y])
    result = scipy.optimize.minimize(
        lambda w: w @ w,
        np.zeros(6),
        jac=lambda w: 2 * w,
        constraints={"type": "ineq", "fun": lambda w: y.numpy() * (X.numpy() @ w) - 1},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    np.testing.assert_allclose(max_margin_direction(X, y), result.x, atol=1e-6)


def test_rank_is_decided_at_the_precision_of_the_data():
    """Rounded to float32, data of rank 3 have six singular values; three are noise."""
    X, y, loc0, S0 = separable("orthogonal")
    exact = classification_limit(X, y, loc0, S0)
    rounded = classification_limit(*(t.float() for t in (X, y, loc0, S0)))
    assert rounded.decay_exponent == pytest.approx(exact.decay_exponent, rel=1e-5)
    for double, single in zip(exact[:3], rounded[:3], strict=True):
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-5)


def test_data_that_no_vector_separates_are_refused():
    X = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    with pytest.raises(ValueError, match="No vector through the origin separates"):
        max_margin_direction(X, torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match="append a column of ones"):
        max_margin_direction(torch.zeros(2, 2), torch.tensor([1.0, -1.0]))
    biased = torch.cat([X, torch.ones(2, 1)], -1)
    assert max_margin_direction(biased, torch.tensor([1.0, -1.0])).isfinite().all()


def test_without_scipy_the_solver_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match="pip install scipy"):
        max_margin_direction(torch.ones(1, 2), torch.ones(1))


# The rank rule


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


GOOD = {"X": torch.ones(3, 2), "y": torch.ones(3), "loc0": torch.ones(2), "S0": torch.ones(2, 2)}
BAD = {
    "data": ({"X": torch.ones(3)}, r"X has the shape \(3,\), and \(N, P\) was expected"),
    "type": ({"X": torch.ones(3, 2).int()}, r"type torch.int32.*Write X.double\(\)"),
    "NaN": ({"X": torch.tensor([[1.0, 2.0], [np.nan, 1.0]])}, "1 of the 2 rows of X hold a NaN"),
    "column": ({"y": torch.ones(3, 1)}, r"y has the shape \(3, 1\).*y.squeeze\(-1\)"),
    "target": ({"y": torch.tensor([1.0, np.inf, 1.0])}, "1 of the 3 entries of y"),
    "mean": ({"loc0": torch.ones(3)}, r"mean has the shape \(3,\), and \(2,\) was expected"),
    "diagonal": ({"S0": torch.ones(2)}, r"S0.diag\(\).*mean_field_limit"),
}


@pytest.mark.parametrize(("change", "sentence"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("function", [regression_limit, classification_limit])
def test_inputs_that_do_not_fit_are_named(function, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        function(**(GOOD | change))


@pytest.mark.parametrize(
    ("noise_scale", "sentence"),
    [
        (0.0, "smallest noise_scale is 0 .*positive finite"),
        (torch.ones(2), r"noise_scale has the shape \(2,\)"),
    ],
)
def test_noise_that_does_not_fit_is_named(noise_scale, sentence):
    with pytest.raises(ValueError, match=sentence):
        regression_limit(**GOOD, noise_scale=noise_scale)


@pytest.mark.parametrize(
    ("rates", "sentence"),
    [
        (torch.ones(3), r"rates has the shape \(3,\), and \(2,\) was expected"),
        (torch.tensor([0.0, 1.0]), "smallest of rates is 0 .*taken out of X"),
    ],
)
def test_rates_that_do_not_fit_are_named(rates, sentence):
    with pytest.raises(ValueError, match=sentence):
        regression_limit(**GOOD, rates=rates)


def test_other_sentences():
    with pytest.raises(ValueError, match=r"label 0.0, and -1 or 1 was expected.*2 \* y - 1"):
        max_margin_direction(torch.ones(2, 2), torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match=r"\(5,\), and \(2,\) was expected"):
        mean_field_limit(torch.ones(3, 2), torch.ones(5))
    with pytest.raises(ValueError, match=r"\(3,\), and \(2,\) or \(2, R\) was expected"):
        null_space_projection(torch.ones(3, 2))(torch.ones(3))
    with pytest.raises(ValueError, match="rank must be a positive whole number, got 0"):
        rank_rate_factor(0)
    with pytest.raises(ValueError, match=r"curvature=0\.0, and a positive finite"):
        max_stable_rate(0.0, 3)
    with pytest.raises(ValueError, match=r"loc_rate_ratio=-1\.0, and a finite"):
        max_stable_rate(1.0, 3, loc_rate_ratio=-1.0)
