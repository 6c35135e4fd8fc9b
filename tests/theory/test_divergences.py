"""Distances between Gaussians against dense linear algebra, torch.distributions and autograd."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import MultivariateNormal, kl_divergence

from pyro_ibvi.theory.divergences import (
    covariance_factor,
    gaussian_kl,
    wasserstein2_squared,
    wasserstein2_squared_commuting,
)
from tests.allocation import LargestAllocation

P = 6
SHAPES = [(P,), (P, 1), (P, 3), (P, P), (P, P + 4)]


def gaussian(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    loc = torch.randn(P, dtype=torch.float64, generator=generator)
    return loc, torch.randn(shape, dtype=torch.float64, generator=generator)


def dense(factor):
    factor = factor.diag() if factor.ndim == 1 else factor
    return factor @ factor.mT


def dense_wasserstein2_squared(loc_a, factor_a, loc_b, factor_b):
    """The textbook formula, with scipy's matrix square root."""
    cov_a, cov_b = dense(factor_a).numpy(), dense(factor_b).numpy()
    # A degenerate matrix defeats sqrtm, so the root of the inner product is by eigenvalues.
    values, vectors = np.linalg.eigh(cov_a)
    root_a = vectors * np.sqrt(values.clip(0)) @ vectors.T
    inner = root_a @ cov_b @ root_a
    if min(map(np.linalg.matrix_rank, (cov_a, cov_b))) == P:
        cross = np.trace(scipy.linalg.sqrtm(inner)).real
    else:
        cross = np.sqrt(np.linalg.eigvalsh(inner).clip(0)).sum()
    shift = (loc_a - loc_b).square().sum().item()
    return shift + np.trace(cov_a) + np.trace(cov_b) - 2 * cross


@pytest.mark.parametrize("shape_a", SHAPES)
@pytest.mark.parametrize("shape_b", SHAPES)
def test_wasserstein_equals_the_dense_formula(shape_a, shape_b):
    a, b = gaussian(shape_a, 1), gaussian(shape_b, 2)
    expected = dense_wasserstein2_squared(*a, *b)
    # The roots of a degenerate dense matrix are accurate to sqrt(eps) only.
    full = all(len(s) == 1 or s[1] >= P for s in (shape_a, shape_b))
    tolerance = 1e-10 if full else 1e-6
    assert wasserstein2_squared(*a, *b).item() == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("rank_a", [1, 3, 5])
@pytest.mark.parametrize("rank_b", [2, 5])
def test_low_rank_equals_the_dense_formula_to_ten_digits(rank_a, rank_b):
    """In 60 digits the dense formula of a degenerate pair can be trusted to 1e-10."""
    mpmath = pytest.importorskip("mpmath")
    (loc_a, factor_a), (loc_b, factor_b) = gaussian((P, rank_a), 3), gaussian((P, rank_b), 4)
    with mpmath.workdps(60):
        cov_a, cov_b = (
            mpmath.matrix(f.tolist()) * mpmath.matrix(f.tolist()).T for f in (factor_a, factor_b)
        )
        values, vectors = mpmath.eigsy(cov_a)
        roots = [mpmath.sqrt(max(value, 0)) for value in values]
        root = vectors * mpmath.diag(roots) * vectors.T
        inner = mpmath.eigsy(root * cov_b * root, eigvals_only=True)
        cross = sum(mpmath.sqrt(max(value, 0)) for value in inner)
        trace = sum(cov_a[i, i] + cov_b[i, i] for i in range(P))
        expected = float(trace - 2 * cross) + (loc_a - loc_b).square().sum().item()
    value = wasserstein2_squared(loc_a, factor_a, loc_b, factor_b).item()
    assert value == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("shape_a", SHAPES)
@pytest.mark.parametrize("shape_b", SHAPES)
def test_wasserstein_gradient_equals_finite_differences(shape_a, shape_b):
    inputs = [t.requires_grad_() for t in (*gaussian(shape_a, 5), *gaussian(shape_b, 6))]
    assert torch.autograd.gradcheck(wasserstein2_squared, inputs, eps=1e-6, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_at_the_start_is_zero(shape):
    """The prior is where training starts: equal factors, and here equal singular values too."""
    loc = torch.zeros(P, dtype=torch.float64)
    factor = torch.eye(P, dtype=torch.float64)[:, : shape[-1]].contiguous()
    start = (torch.ones(P, dtype=torch.float64) if len(shape) == 1 else factor).requires_grad_()
    value = wasserstein2_squared(loc, start, loc, start.detach().clone())
    (gradient,) = torch.autograd.grad(value, start)
    assert value.item() == pytest.approx(0, abs=1e-28)
    assert gradient.abs().max() < 1e-14


@pytest.mark.parametrize("shape_b", SHAPES)
@pytest.mark.parametrize("shape_a", SHAPES)
def test_gradient_at_a_vanished_factor_is_finite_and_leads_back(shape_a, shape_b):
    (loc, factor_b), zero = gaussian(shape_b, 7), torch.zeros(shape_a, dtype=torch.float64)
    zero.requires_grad_()
    value = wasserstein2_squared(loc, zero, loc, factor_b)
    (gradient,) = torch.autograd.grad(value, zero)
    assert torch.isfinite(gradient).all()
    step = wasserstein2_squared(loc, zero.detach() - 1e-3 * gradient, loc, factor_b)
    assert step < value


def test_a_second_derivative_is_refused():
    (loc_a, factor_a), (loc_b, factor_b) = gaussian((P, 2), 8), gaussian((P, 3), 9)
    factor_a.requires_grad_()
    value = wasserstein2_squared(loc_a, factor_a, loc_b, factor_b)
    with pytest.raises(RuntimeError, match="first derivative only"):
        torch.autograd.grad(value, factor_a, create_graph=True)


def test_small_distances_keep_their_digits_in_single_precision():
    """The formula with the nuclear norm cancels; the residual does not."""
    generator = torch.Generator().manual_seed(0)
    loc = torch.zeros(2000)
    start = torch.randn(2000, 20, generator=generator)
    moved = start + 1e-4 * torch.randn(2000, 20, generator=generator)
    expected = wasserstein2_squared(*(t.double() for t in (loc, moved, loc, start)))
    assert wasserstein2_squared(loc, moved, loc, start).item() == pytest.approx(
        expected.item(), rel=1e-3
    )
    nuclear = torch.linalg.svdvals(moved.mT @ start).sum()
    cancelled = moved.square().sum() + start.square().sum() - 2 * nuclear
    assert abs(cancelled - expected) > expected  # the control: not one digit is right


def test_extra_memory_does_not_grow_with_the_factors(monkeypatch):
    """The same at P = 1e6, R = 100: benchmarks/theory/wasserstein_memory.py."""
    monkeypatch.setattr("pyro_ibvi.theory.divergences._CHUNK_NUMBERS", 1000)
    loc = torch.zeros(20_000)
    factor_a, factor_b = torch.randn(20_000, 10), torch.randn(20_000, 12)
    with LargestAllocation(loc, factor_a, factor_b) as record:
        wasserstein2_squared(loc, factor_a, loc, factor_b)
    assert record.numbers == len(loc)  # the difference of the means
    with LargestAllocation(loc, factor_a, factor_b) as control:
        (factor_a.square().sum() + factor_b.square().sum()).sqrt()
    assert control.numbers == factor_b.numel()


def test_chunks_do_not_change_the_result(monkeypatch):
    a, b = gaussian((P, 3), 10), gaussian((P, 4), 11)
    whole = wasserstein2_squared(*a, *b)
    monkeypatch.setattr("pyro_ibvi.theory.divergences._CHUNK_NUMBERS", 8)
    torch.testing.assert_close(wasserstein2_squared(*a, *b), whole, rtol=1e-14, atol=0)


@settings(max_examples=60, deadline=None)
@given(
    ranks=st.tuples(*[st.integers(1, 6)] * 3),
    seed=st.integers(0, 2**31),
    scale=st.floats(1e-3, 1e3),
)
def test_wasserstein_is_a_metric(ranks, seed, scale):
    a, b, c = (gaussian((P, rank), seed + i) for i, rank in enumerate(ranks))
    a = (a[0], scale * a[1])

    def distance(p, q):
        return wasserstein2_squared(*p, *q).sqrt().item()

    assert distance(a, b) == pytest.approx(distance(b, a), rel=1e-12)
    assert distance(a, c) <= distance(a, b) + distance(b, c) + 1e-12
    # Only the law matters: a rotation of z is the same Gaussian.
    rotation, _ = torch.linalg.qr(gaussian((P, P), seed)[1][: ranks[0], : ranks[0]])
    assert distance((a[0], a[1] @ rotation), a) == pytest.approx(0, abs=1e-12 * (1 + scale))
    # Two draws made with one z are a coupling, and no coupling is nearer than the distance.
    columns = min(ranks[0], ranks[1])
    coupled = (a[1][:, :columns] - b[1][:, :columns]).square().sum()
    coupled += a[1][:, columns:].square().sum() + b[1][:, columns:].square().sum()
    assert distance(a, b) ** 2 <= ((a[0] - b[0]).square().sum() + coupled) * (1 + 1e-12)


def test_commuting_shortcut_equals_the_general_distance():
    generator = torch.Generator().manual_seed(12)
    basis, _ = torch.linalg.qr(torch.randn(P, P, dtype=torch.float64, generator=generator))
    eigenvalues = torch.rand(2, P, dtype=torch.float64, generator=generator)
    eigenvalues[1, 0] = 0  # degenerate covariances are allowed
    cov_a, cov_b = ((basis * values) @ basis.mT for values in eigenvalues)
    loc = torch.zeros(P, dtype=torch.float64)
    general = wasserstein2_squared(loc, covariance_factor(cov_a), loc, covariance_factor(cov_b))
    short = wasserstein2_squared_commuting(loc, cov_a, loc + 1, cov_b)
    assert short.item() == pytest.approx(general.item() + P, rel=1e-7)
    exact = (eigenvalues[0].sqrt() - eigenvalues[1].sqrt()).square().sum().item() + P
    assert short.item() == pytest.approx(exact, rel=1e-7)


def test_covariances_that_do_not_commute_are_refused():
    (loc_a, factor_a), (loc_b, factor_b) = gaussian((P, P), 13), gaussian((P, P), 14)
    with pytest.raises(ValueError, match=r"do not commute.*Use wasserstein2_squared"):
        wasserstein2_squared_commuting(loc_a, dense(factor_a), loc_b, dense(factor_b))


@pytest.mark.parametrize("matrix", [[[1.0, 2.0], [2.0, 1.0]], [[1.0, 0.5], [0.0, 1.0]]])
def test_a_matrix_that_is_no_covariance_is_refused(matrix):
    with pytest.raises(ValueError, match="symmetric and positive semi-definite"):
        covariance_factor(torch.tensor(matrix))


def test_a_covariance_that_is_not_square_is_refused():
    with pytest.raises(ValueError, match=r"shape \(P, P\), and this one \(2, 3\)"):
        covariance_factor(torch.ones(2, 3))


FULL = [(P,), (P, P), (P, P + 4)]


@pytest.mark.parametrize("shape_a", FULL)
@pytest.mark.parametrize("shape_b", FULL)
def test_kl_equals_torch_distributions(shape_a, shape_b):
    (loc_a, factor_a), (loc_b, factor_b) = gaussian(shape_a, 15), gaussian(shape_b, 16)
    expected = kl_divergence(
        MultivariateNormal(loc_a, dense(factor_a)), MultivariateNormal(loc_b, dense(factor_b))
    )
    value = gaussian_kl(loc_a, factor_a, loc_b, factor_b)
    assert value.item() == pytest.approx(expected.item(), rel=1e-9)
    swapped = gaussian_kl(loc_b, factor_b, loc_a, factor_a)
    assert swapped.item() != pytest.approx(expected.item(), rel=1e-2)  # the control


@pytest.mark.parametrize("shape_a", FULL)
@pytest.mark.parametrize("shape_b", FULL)
def test_kl_gradient_equals_finite_differences(shape_a, shape_b):
    inputs = [t.requires_grad_() for t in (*gaussian(shape_a, 17), *gaussian(shape_b, 18))]
    assert torch.autograd.gradcheck(gaussian_kl, inputs, eps=1e-6, rtol=1e-4)


@pytest.mark.parametrize("shape", FULL)
def test_kl_of_a_gaussian_from_itself_is_zero(shape):
    pair = gaussian(shape, 19)
    assert gaussian_kl(*pair, *pair).item() == pytest.approx(0, abs=1e-9)


def test_kl_grows_without_bound_where_wasserstein_stays_finite():
    loc, prior = torch.zeros(2), torch.ones(2)
    shrunk = [torch.tensor([1.0, scale]) for scale in (1e-2, 1e-4, 0.0)]
    divergences = [gaussian_kl(loc, factor, loc, prior).item() for factor in shrunk]
    assert divergences[0] == pytest.approx(math.log(1e2) - 0.5, rel=1e-3)
    assert divergences[1] == pytest.approx(math.log(1e4) - 0.5, rel=1e-3)
    assert divergences[2] == math.inf
    assert gaussian_kl(loc, prior, loc, shrunk[2]).item() == math.inf
    assert wasserstein2_squared(loc, shrunk[2], loc, prior).item() == 1.0


@pytest.mark.parametrize("order", [1, -1])
def test_kl_of_a_low_rank_gaussian_is_refused(order):
    pairs = [gaussian((P, 2), 20), gaussian((P,), 21)][::order]
    with pytest.raises(ValueError, match=r"rank at most 2 in 6 dimensions.*wasserstein2_squared"):
        gaussian_kl(*pairs[0], *pairs[1])


@pytest.mark.parametrize("function", [wasserstein2_squared, gaussian_kl])
@pytest.mark.parametrize(
    ("shapes", "sentence"),
    [
        (((P, 1), (P,), (P,), (P,)), r"mean of the first Gaussian has the shape \(6, 1\)"),
        (((P,), (P,), (P,), (2, P)), r"factor of the second .* \(2, 6\), and \(6,\) or \(6, R\)"),
        (((P,), (P, 2, 3), (P,), (P,)), r"factor of the first .* \(6, 2, 3\)"),
        (((P,), (P,), (2,), (2,)), "first Gaussian has 6 dimensions and the second 2"),
    ],
)
def test_shapes_that_do_not_fit_are_named(function, shapes, sentence):
    with pytest.raises(ValueError, match=sentence):
        function(*(torch.ones(shape) for shape in shapes))
