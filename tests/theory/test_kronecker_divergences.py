"""Distances between matrices with Kronecker products against those of the product itself."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from pyro_ibvi.theory import (
    gaussian_kl,
    kronecker_gaussian_kl,
    kronecker_wasserstein2_squared,
    wasserstein2_squared,
)

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


def product(loc, factors):
    """Mean and factor of the flattened matrix."""
    outputs, inputs = (f.diag() if f.dim() == 1 else f for f in factors)
    return loc.reshape(-1), torch.kron(outputs, inputs)


@pytest.mark.parametrize("ranks_b", RANKS)
@pytest.mark.parametrize("ranks_a", RANKS)
def test_wasserstein_is_that_of_the_product(ranks_a, ranks_b):
    a, b = matrix(ranks_a), matrix(ranks_b)
    value = kronecker_wasserstein2_squared(*a, *b)
    torch.testing.assert_close(value, wasserstein2_squared(*product(*a), *product(*b)))
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
        expected = wasserstein2_squared(*product(loc, near), *product(loc, factors))
        assert value.item() == pytest.approx(expected.item(), rel=1e-4)
        assert value > 0


@pytest.mark.parametrize("ranks", [(3, 4), (1, 2), (2, None)])
def test_gradient_of_the_wasserstein_distance(ranks):
    a, b = matrix(ranks), matrix((None, None))
    parameters = [a[0], *a[1]]
    for p in parameters:
        p.requires_grad_()
    grads = torch.autograd.grad(kronecker_wasserstein2_squared(*a, *b), parameters)
    expected = torch.autograd.grad(wasserstein2_squared(*product(*a), *product(*b)), parameters)
    torch.testing.assert_close(grads, expected)


@pytest.mark.parametrize("ranks_b", [(3, 4), (None, None), (5, 4)])
@pytest.mark.parametrize("ranks_a", [(3, 4), (None, None), (3, None), (3, 6)])
def test_kl_is_that_of_the_product(ranks_a, ranks_b):
    a, b = matrix(ranks_a), matrix(ranks_b)
    value = kronecker_gaussian_kl(*a, *b)
    torch.testing.assert_close(value, gaussian_kl(*product(*a), *product(*b)))
    laws = [MultivariateNormal(m, f @ f.mT) for m, f in (product(*a), product(*b))]
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
