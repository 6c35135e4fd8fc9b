"""The limit of linear classification against gradient descent and flow, in float64."""

import sys

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import torch

from pyro_ibvi.theory import (
    classification_limit,
    max_margin_direction,
    null_space_projection,
)
from tests.theory.linear import randn


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
