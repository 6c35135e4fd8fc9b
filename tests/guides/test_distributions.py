"""The law of a guide's site against torch's own distributions."""

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from pyro_ibvi import Diagonal, LowRank
from pyro_ibvi.guides.distributions import FactorNormal, SharedNoise

pytestmark = pytest.mark.usefixtures("double")


def layer(covariance, shapes=((2, 3), (2,))):
    """Means, factors and covariance matrix of a layer away from its start."""
    factors = covariance.init_factors([torch.ones(shape) for shape in shapes])
    factors = [factor + 0.5 * torch.randn_like(factor) for factor in factors]
    return [torch.randn(shape) for shape in shapes], factors, covariance.dense(factors)


def draw_layer(covariance, locs, factors, sample_shape=()):
    """The layer's laws, each given the sites before it, with their draws."""
    shared, previous, laws = SharedNoise(), [], []
    for loc, factor in zip(locs, factors, strict=True):
        law = FactorNormal(
            loc,
            factor,
            covariance,
            event_dim=loc.dim(),
            shared=shared,
            previous=tuple(previous),
        )
        value = law.rsample(torch.Size(sample_shape))
        previous.append((loc, factor, value))
        laws.append((law, value))
    return laws


def flatten(values, num_batch):
    return torch.cat([value.flatten(num_batch) for value in values], dim=-1)


@pytest.mark.parametrize("covariance", [Diagonal(), LowRank(None)], ids=str)
@pytest.mark.parametrize("sample_shape", [(), (4,), (4, 1)])
def test_densities_of_a_layer_sum_to_the_joint_density(covariance, sample_shape):
    locs, factors, dense = layer(covariance)
    laws = draw_layer(covariance, locs, factors, sample_shape)
    total = sum(law.log_prob(value) for law, value in laws)
    joint = torch.distributions.MultivariateNormal(flatten(locs, 0), dense)
    values = flatten([value for _, value in laws], len(sample_shape))
    assert total.shape == sample_shape
    torch.testing.assert_close(total, joint.log_prob(values))
    # Without what was drawn before it is the product of the marginals: the joint density of a
    # diagonal, whose sites are independent, and of no other.
    alone = sum(
        FactorNormal(law.loc, law.factor, covariance, event_dim=law.event_dim).log_prob(value)
        for law, value in laws
    )
    assert torch.allclose(alone, total) == (covariance == Diagonal())


@pytest.mark.parametrize("covariance", [Diagonal(), LowRank(2), LowRank(None)], ids=str)
def test_moments(covariance):
    (loc,), (factor,), dense = layer(covariance, [(2, 3)])
    law = FactorNormal(loc, factor, covariance, event_dim=2)
    torch.testing.assert_close(law.mean, loc)
    torch.testing.assert_close(law.variance.reshape(-1), dense.diagonal())
    assert law.support.event_dim == 2
    draws = law.expand([1000]).rsample()
    assert draws.shape == (1000, 2, 3)
    assert law.expand([7]).mean.shape == (7, 2, 3)
    assert law.expand([7]).variance.shape == (7, 2, 3)


def test_the_sign_of_the_factor_does_not_matter_to_the_law():
    loc, factor = torch.zeros(3), torch.tensor([-2.0, 1.0, -0.5])
    law = FactorNormal(loc, factor, Diagonal(), event_dim=1)
    expected = Independent(Normal(loc, factor.abs()), 1)
    value = torch.randn(3)
    torch.testing.assert_close(law.log_prob(value), expected.log_prob(value))


@pytest.mark.parametrize("covariance", [LowRank(1), LowRank(3)], ids=str)
def test_a_degenerate_covariance_has_no_density(covariance):
    locs, factors, _ = layer(covariance)
    (law, value), _ = draw_layer(covariance, locs, factors)
    with pytest.raises(RuntimeError, match=r"rank \d over \d weights is degenerate.*kl_weight=0"):
        law.log_prob(value)


def test_a_rank_that_suffices_for_the_weight_but_not_for_the_layer():
    covariance = LowRank(6)
    locs, factors, _ = layer(covariance)
    (weight, value), (bias, bias_value) = draw_layer(covariance, locs, factors)
    assert weight.log_prob(value).isfinite()
    with pytest.raises(RuntimeError, match="rank 6 over 8 weights is degenerate"):
        bias.log_prob(bias_value)


@pytest.mark.parametrize("batch_shape", [(), (4,)])
@pytest.mark.parametrize("event_dim", [0, 1])
def test_kl_to_independent_gaussians_is_torchs(batch_shape, event_dim):
    shape = batch_shape + (3,) * event_dim
    loc, factor = torch.randn(shape), torch.randn(shape)
    law = FactorNormal(loc, factor, Diagonal(), event_dim=event_dim)
    prior = dist.Normal(0.3, 2.0).expand(shape).to_event(event_dim)
    expected = kl_divergence(dist.Normal(loc, factor.abs()).to_event(event_dim), prior)
    torch.testing.assert_close(kl_divergence(law, prior), expected)


def test_kl_of_an_expanded_law_has_its_batch_shape():
    # Vectorized particles: one divergence per particle, else the sum over them would be wrong.
    law = FactorNormal(torch.zeros(3), torch.ones(3), Diagonal(), event_dim=1).expand([5, 1])
    prior = dist.Normal(0.0, 2.0).expand([3]).to_event(1)
    assert kl_divergence(law, prior).shape == (5, 1)
    assert kl_divergence(law, prior.expand([5, 1])).shape == (5, 1)


def test_kl_without_a_closed_form_is_left_to_monte_carlo():
    law = FactorNormal(torch.zeros(3), torch.eye(3), LowRank(None), event_dim=1)
    with pytest.raises(
        NotImplementedError, match=r"with LowRank\(rank=None\) from Normal is known"
    ):
        kl_divergence(law, dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    diagonal = FactorNormal(torch.zeros(3), torch.ones(3), Diagonal(), event_dim=1)
    with pytest.raises(NotImplementedError, match=r"with Diagonal\(\) from StudentT is known"):
        kl_divergence(diagonal, dist.StudentT(3.0).expand([3]).to_event(1))


@pytest.mark.parametrize("sample_shape", [(), (4,), (4, 1)])
def test_shared_noise_makes_the_layer_jointly_gaussian(sample_shape):
    # One noise variable: weight and bias lie on one line.
    covariance = LowRank(1)
    locs, factors, _ = layer(covariance)
    (_, weight), (_, bias) = draw_layer(covariance, locs, factors, sample_shape)
    of_weight = (weight - locs[0]) / factors[0].squeeze(-1)
    of_bias = (bias - locs[1]) / factors[1].squeeze(-1)
    torch.testing.assert_close(of_weight[..., 0, 0], of_bias[..., 0])


@pytest.mark.parametrize("covariance", [Diagonal(), LowRank(2)], ids=str)
def test_gradient_of_a_draw(covariance):
    # E[c . w + w' A w / 2] of w = loc + S z has gradients c + A loc and A S in closed form.
    (loc,), (factor,), _ = layer(covariance, [(3,)])
    loc.requires_grad_(), factor.requires_grad_()
    c, matrix = torch.randn(3), torch.randn(3, 3)
    matrix = matrix + matrix.mT
    num_draws = 200_000
    w = FactorNormal(loc, factor, covariance, event_dim=1).rsample((num_draws,))
    (w @ c + 0.5 * (w @ matrix * w).sum(-1)).mean().backward()
    torch.testing.assert_close(loc.grad, c + matrix @ loc.detach(), rtol=0, atol=0.05)
    s = factor.detach()
    expected = matrix.diagonal() * s if covariance == Diagonal() else matrix @ s
    torch.testing.assert_close(factor.grad, expected, rtol=0, atol=0.08)
    assert (factor.grad - 0.9 * expected).abs().max() > 0.08  # the tolerance can fail


def test_a_law_cannot_be_drawn_in_plates_that_its_parameters_contradict():
    law = FactorNormal(torch.zeros(4), torch.ones(4), Diagonal(), event_dim=0)
    assert law.expand([3, 4]).rsample().shape == (3, 4)
    with pytest.raises(ValueError, match=r"batch shape \(4,\) cannot be drawn in plates of shape"):
        law.expand([4, 5]).rsample()
