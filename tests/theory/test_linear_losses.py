"""Expected losses of a Gaussian linear predictor against adaptive quadrature."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from pyro_ibvi.theory import (
    expected_exponential_loss,
    expected_logistic_loss,
    expected_squared_loss,
    predictor_moments,
)

LOSSES = [expected_squared_loss, expected_exponential_loss, expected_logistic_loss]


def single(margin, scale):
    """One datum whose predictor is N(margin, scale^2), with the label 1."""
    one = torch.ones(1, 1, dtype=torch.float64)
    moments = (torch.tensor([value], dtype=torch.float64) for value in (margin, scale))
    return one, one[0], *moments


def integrate(loss, margin, scale):
    """The expectation of loss(f) over f ~ N(margin, scale^2), to 13 digits."""

    def integrand(z):
        return loss(margin + scale * z) * np.exp(-z * z / 2) / np.sqrt(2 * np.pi)

    bends = [z for k in (-30, -5, 0, 5, 30) if abs(z := (k - margin) / scale) < 15]
    options = {"points": sorted(bends) or None, "limit": 2000, "epsabs": 1e-17}
    return quad(integrand, -15, 15, epsrel=1e-13, **options)[0]


def squared(f):
    return (1 - f) ** 2 / 2


def exponential(f):
    return np.exp(-f)


def logistic(f):
    return np.logaddexp(0, -f)


@pytest.mark.filterwarnings("ignore::scipy.integrate.IntegrationWarning")
@pytest.mark.parametrize("scale", [0.01, 0.5, 1.99, 2.01, 5.0, 30.0, 1000.0])
@pytest.mark.parametrize("margin", [-100.0, -6.0, -0.5, 0.0, 3.0, 8.0])
def test_logistic_loss_equals_adaptive_quadrature(margin, scale):
    value = expected_logistic_loss(*single(margin, scale)).item()
    assert value == pytest.approx(integrate(logistic, margin, scale), rel=1e-12, abs=1e-14)


def test_gauss_hermite_would_not_do():
    """Why the logistic loss has its own rule: 64 nodes miss the bend of the loss."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    hermite = (weights * logistic(0.5 + 10 * nodes)).sum() / np.sqrt(2 * np.pi)
    assert abs(hermite / integrate(logistic, 0.5, 10.0) - 1) > 1e-4


@settings(max_examples=40, deadline=None)
@given(margin=st.floats(-5, 5), scale=st.floats(0.01, 1.5))
def test_squared_and_exponential_loss_equal_adaptive_quadrature(margin, scale):
    arguments = single(margin, scale)
    for function, loss in (
        (expected_squared_loss, squared),
        (expected_exponential_loss, exponential),
    ):
        expected = integrate(loss, margin, scale)
        assert function(*arguments).item() == pytest.approx(expected, rel=1e-11)


def problem(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    X, loc, S = (
        torch.randn(*shape, dtype=dtype, generator=generator) for shape in ((7, 4), (4,), (4, 3))
    )
    return X, torch.tensor([1, -1, 1, 1, -1, -1, 1], dtype=dtype), loc, S


@pytest.mark.parametrize("function", LOSSES)
def test_expectation_equals_the_mean_over_draws(function):
    """In several dimensions, within four standard errors of 200,000 draws."""
    X, y, loc, S = problem()
    S = 0.3 * S
    draws = torch.randn(200_000, 3, dtype=X.dtype, generator=torch.Generator().manual_seed(1))
    f = (loc + draws @ S.mT) @ X.mT
    pointwise = {
        expected_squared_loss: (y - f).square() / 2,
        expected_exponential_loss: (-y * f).exp(),
        expected_logistic_loss: torch.nn.functional.softplus(-y * f),
    }[function]
    error = pointwise.mean(0) - function(X, y, loc, S)
    assert (error.abs() / (pointwise.std(0) / len(draws) ** 0.5)).max() < 4


def test_squared_loss_is_the_normal_log_likelihood_up_to_its_constant():
    X, y, loc, S = problem()
    noise_scale = torch.linspace(0.5, 2, len(y), dtype=y.dtype)
    loss = expected_squared_loss(X, y, loc, 0 * S, noise_scale=noise_scale)
    density = torch.distributions.Normal(X @ loc, noise_scale).log_prob(y)
    constant = (noise_scale * (2 * torch.pi) ** 0.5).log()
    torch.testing.assert_close(loss + constant, -density, rtol=1e-12, atol=0)


def test_moments_equal_the_dense_covariance():
    X, _, loc, S = problem()
    mean, variance = predictor_moments(X, loc, S)
    torch.testing.assert_close(mean, X @ loc)
    torch.testing.assert_close(variance, (X @ S @ S.mT @ X.mT).diagonal())
    diagonal = predictor_moments(X, loc, S[:, 0])
    torch.testing.assert_close(diagonal, predictor_moments(X, loc, S[:, 0].diag()))


@pytest.mark.parametrize("function", LOSSES)
@pytest.mark.parametrize("scale", [1.0, 5.0])  # both rules of the logistic loss
def test_gradients_equal_finite_differences(function, scale):
    X, y, loc, S = problem()
    S = (scale * S if function is expected_logistic_loss else S).requires_grad_()
    loc.requires_grad_()
    assert torch.autograd.gradcheck(lambda *q: function(X, y, *q), (loc, S), rtol=1e-6)


@pytest.mark.parametrize("function", LOSSES)
@pytest.mark.parametrize("shape", [(4,), (4, 3)])
def test_gradients_are_finite_without_variance(function, shape):
    X, y, loc, _ = problem()
    S = torch.zeros(shape, dtype=loc.dtype, requires_grad=True)
    loc.requires_grad_()
    function(X, y, loc, S).sum().backward()
    assert loc.grad.isfinite().all()
    assert (S.grad == 0).all()


@pytest.mark.parametrize("function", LOSSES)
def test_single_precision_agrees_with_double(function):
    single_loss = function(*problem(dtype=torch.float32))
    double_loss = function(*(t.float().double() for t in problem(dtype=torch.float32)))
    assert single_loss.dtype == torch.float32
    torch.testing.assert_close(single_loss.double(), double_loss, rtol=2e-5, atol=1e-6)


def test_what_does_not_fit_is_named():
    X, y, loc, S = problem()
    with pytest.raises(ValueError, match=r"factor has the shape \(3, 4\), and \(4,\) for a diag"):
        expected_squared_loss(X, y, loc, S.mT)
    with pytest.raises(ValueError, match=r"label 0.0, and -1 or 1 was expected"):
        expected_exponential_loss(X, (y + 1) / 2, loc, S)
    with pytest.raises(ValueError, match=r"label 2.0, and -1 or 1 was expected"):
        expected_logistic_loss(X, 2 * y.abs(), loc, S)
    with pytest.raises(ValueError, match="smallest noise_scale is -1 "):
        expected_squared_loss(X, y, loc, S, noise_scale=-1.0)
