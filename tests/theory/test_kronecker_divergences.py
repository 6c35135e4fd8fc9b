"""Distances between matrices with Kronecker products against dense covariances."""

import math

import mpmath
import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from pyro_ibvi.theory import kronecker_gaussian_kl, kronecker_wasserstein2_squared

pytestmark = pytest.mark.usefixtures("double")

NUM_OUTPUTS, NUM_INPUTS = 3, 4
#: Ranks of the two factors; None is a diagonal.
RANKS = [(3, 4), (1, 2), (2, 4), (None, None), (3, None), (None, 2), (5, 6)]


def matrix(ranks):
    """Mean and factors of a Gaussian matrix."""
    sizes = (NUM_OUTPUTS, NUM_INPUTS)
    factors = [
        torch.randn(size) if rank is None else torch.randn(size, rank)
        for size, rank in zip(sizes, ranks, strict=True)
    ]
    return torch.randn(sizes), tuple(factors)


def dense(loc, factors):
    """Mean and covariance of the flattened matrix, entry by entry: E[W_ij W_kl] = A_ik B_jl."""
    outputs, inputs = (f.diag() if f.dim() == 1 else f for f in factors)
    a, b = outputs @ outputs.mT, inputs @ inputs.mT
    return loc.reshape(-1), torch.einsum("ik,jl->ijkl", a, b).reshape(loc.numel(), -1)


def exact_covariance(factors):
    """Covariance of the flattened matrix, from the factors' digits as they are."""
    factors = [mpmath.matrix((f.diag() if f.dim() == 1 else f).tolist()) for f in factors]
    a, b = (f * f.T for f in factors)
    pairs = [(i, j) for i in range(a.rows) for j in range(b.rows)]
    return mpmath.matrix([[a[i, k] * b[j, m] for k, m in pairs] for i, j in pairs])


def root(covariance):
    """Symmetric root of a positive semi-definite matrix."""
    values, vectors = mpmath.eigsy((covariance + covariance.T) / 2)
    return vectors * mpmath.diag([mpmath.sqrt(max(v, 0)) for v in values]) * vectors.T


def bures(a, b):
    """Squared 2-Wasserstein distance, |m_a - m_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2)."""
    with mpmath.workdps(40):
        cov_a, cov_b = exact_covariance(a[1]), exact_covariance(b[1])
        inner = root(cov_a)
        cross = root(inner * cov_b * inner)
        trace = sum(cov_a[i, i] + cov_b[i, i] - 2 * cross[i, i] for i in range(cov_a.rows))
        return float(trace + (a[0] - b[0]).square().sum().item())


@pytest.mark.parametrize("ranks_b", RANKS)
@pytest.mark.parametrize("ranks_a", RANKS)
def test_wasserstein_is_that_of_the_product(ranks_a, ranks_b):
    a, b = matrix(ranks_a), matrix(ranks_b)
    value = kronecker_wasserstein2_squared(*a, *b)
    assert value.item() == pytest.approx(bures(a, b), rel=1e-9)
    swapped = kronecker_wasserstein2_squared(b[0], b[1], a[0], a[1])
    torch.testing.assert_close(value, swapped)
    no_mean = kronecker_wasserstein2_squared(b[0], a[1], b[0], b[1])
    shift = (a[0] - b[0]).square().sum()
    torch.testing.assert_close(value - no_mean, shift)


def test_wasserstein_keeps_its_digits_near_equality():
    loc, factors = matrix((3, 4))
    change = torch.randn_like(factors[0]), torch.randn_like(factors[1])
    for size in (1e-5, 1e-7, 1e-9):
        near = tuple(f + size * d for f, d in zip(factors, change, strict=True))
        value = kronecker_wasserstein2_squared(loc, near, loc, factors)
        assert value.item() == pytest.approx(bures((loc, near), (loc, factors)), rel=1e-4)
        assert value > 0


@pytest.mark.parametrize("ranks", [(3, 4), (1, 2), (2, None)])
def test_gradient_of_the_wasserstein_distance(ranks):
    a, b = matrix(ranks), matrix((None, None))
    parameters = [a[0], *a[1]]
    directions = [torch.randn_like(p) for p in parameters]
    for p in parameters:
        p.requires_grad_()
    grads = torch.autograd.grad(kronecker_wasserstein2_squared(*a, *b), parameters)
    slope = sum((g * d).sum() for g, d in zip(grads, directions, strict=True)).item()

    def along(step):
        loc, *factors = (
            p.detach() + step * d for p, d in zip(parameters, directions, strict=True)
        )
        return bures((loc, tuple(factors)), b)

    assert slope == pytest.approx((along(1e-5) - along(-1e-5)) / 2e-5, rel=1e-6)


@pytest.mark.parametrize("ranks_b", [(3, 4), (None, None), (5, 4)])
@pytest.mark.parametrize("ranks_a", [(3, 4), (None, None), (3, None), (3, 6)])
def test_kl_is_that_of_the_product(ranks_a, ranks_b):
    a, b = matrix(ranks_a), matrix(ranks_b)
    value = kronecker_gaussian_kl(*a, *b)
    laws = [MultivariateNormal(*dense(*x)) for x in (a, b)]
    torch.testing.assert_close(value, kl_divergence(*laws))


def test_kl_of_a_vanished_scale_is_infinite():
    loc, (outputs, inputs) = matrix((None, None))
    outputs[1] = 0.0
    value = kronecker_gaussian_kl(loc, (outputs, inputs), *matrix((None, None)))
    assert value.item() == math.inf


def test_errors():
    loc, factors = matrix((2, 4))
    with pytest.raises(
        ValueError, match=r"the first Gaussian have the shapes \[\(3, 2\), \(4, 4\)"
    ):
        kronecker_gaussian_kl(loc, factors, loc, factors)
    with pytest.raises(ValueError, match=r"the second Gaussian has the shape \(4, 3\)"):
        kronecker_wasserstein2_squared(loc, factors, loc.mT, factors)
    with pytest.raises(ValueError, match=r"shape \(12,\) and its factors have \(3, 4\) rows"):
        kronecker_wasserstein2_squared(loc.flatten(), factors, loc, factors)
