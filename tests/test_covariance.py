"""Covariances against dense linear algebra in the layer's own layout."""

import pytest
import torch
from torch import nn

from pyro_ibvi import AutoMuPNormal, Diagonal, LowRank, Normal, RandomModule, SupervisedModel

NUM_DRAWS = 100_000
COVARIANCES = [Diagonal(), LowRank(1), LowRank(3), LowRank(None)]
LAYERS = {
    "linear": lambda: nn.Linear(3, 2),
    "conv": lambda: nn.Conv2d(2, 2, kernel_size=(1, 2)),
    "grouped": lambda: nn.Conv1d(4, 2, kernel_size=2, groups=2),
}


def make_guide(layer, covariance, **kwargs):
    net = RandomModule(LAYERS[layer](), stochastic="all")
    guide = AutoMuPNormal(SupervisedModel(net, Normal()), covariance=covariance, **kwargs)
    with torch.no_grad():  # away from the start, whose covariance may be diagonal
        for name in ("net.weight", "net.bias"):
            guide.factor(name).add_(0.3 * torch.randn_like(guide.factor(name)))
    return guide


def standard_errors(draws, dense):
    """Largest deviation of the empirical covariance from a dense one, in standard errors."""
    centered = draws - draws.mean(0)
    empirical = centered.mT @ centered / (len(draws) - 1)
    variance = dense.diagonal()
    error = ((variance.outer(variance) + dense.square()) / len(draws)).sqrt()
    return ((empirical - dense).abs() / error).max().item()


def flat_draws(guide, weight_first=True):
    draws = guide.draw(NUM_DRAWS)
    parts = [draws["net.weight"].flatten(1), draws["net.bias"]]
    return torch.cat(parts if weight_first else parts[::-1], dim=1)


# The largest of up to 120 deviations: 4.2 standard errors is the 3 of a single one.
BOUND = 4.2


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("covariance", COVARIANCES, ids=str)
def test_covariance_of_draws_is_the_dense_form(layer, covariance):
    guide = make_guide(layer, covariance)
    names = ("net.weight", "net.bias")
    if covariance.shares_noise:
        dense = guide.covariance(*names)
    else:
        dense = torch.block_diag(*(guide.covariance(name) for name in names))
    draws = flat_draws(guide)
    assert standard_errors(draws, dense) < BOUND
    loc = torch.cat([guide.loc(name).reshape(-1) for name in names])
    error = (draws.mean(0) - loc).abs() / (dense.diagonal() / NUM_DRAWS).sqrt()
    assert error.max() < BOUND
    scale = torch.cat([guide.scale(name).reshape(-1) for name in names])
    torch.testing.assert_close(scale, dense.diagonal().sqrt())


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("covariance", COVARIANCES[1:], ids=str)
def test_a_wrongly_ordered_layout_fails(layer, covariance):
    guide = make_guide(layer, covariance)
    dense = guide.covariance("net.weight", "net.bias")
    assert standard_errors(flat_draws(guide, weight_first=False), dense) > 10 * BOUND
    weight = guide.factor("net.weight")
    turned = weight.transpose(0, 1).reshape(-1, weight.shape[-1])
    wrong = torch.cat([turned, guide.factor("net.bias")])
    assert standard_errors(flat_draws(guide), wrong @ wrong.mT) > 10 * BOUND


@pytest.mark.usefixtures("double")
def test_order_of_names_is_the_order_of_the_matrix():
    guide = make_guide("linear", LowRank(2))
    dense = guide.covariance("net.bias", "net.weight")
    assert standard_errors(flat_draws(guide, weight_first=False), dense) < BOUND


@pytest.mark.parametrize("covariance", COVARIANCES, ids=str)
def test_marginals_start_at_the_scales(covariance):
    scales = [torch.rand(4, 3) + 0.1, torch.rand(4) + 0.1]
    factors = covariance.init_factors(scales)
    for factor, scale in zip(factors, scales, strict=True):
        torch.testing.assert_close(covariance.scale(factor), scale)
    dense = covariance.dense(factors)
    torch.testing.assert_close(
        dense.diagonal(), torch.cat([s.reshape(-1) for s in scales]).square()
    )


def test_a_full_factor_starts_at_the_prior_itself():
    scales = [torch.rand(2, 3), torch.rand(2)]
    expected = torch.cat([s.reshape(-1) for s in scales]).square().diag()
    for covariance in (LowRank(None), LowRank(8), LowRank(100)):
        torch.testing.assert_close(covariance.dense(covariance.init_factors(scales)), expected)


def test_a_rank_above_the_size_is_reduced():
    (factor,) = LowRank(100).init_factors([torch.ones(3)])
    assert LowRank(100).noise_rank(factor) == 3


@pytest.mark.parametrize("covariance", COVARIANCES, ids=str)
def test_draw_is_affine_in_the_noise(covariance):
    loc = torch.randn(2, 3)
    (factor,) = covariance.init_factors([torch.ones(2, 3)])
    noise = torch.randn(5, 1, *covariance.noise_shape(factor))
    batched = covariance.draw(loc, factor, noise)
    assert batched.shape == (5, 1, 2, 3)
    for one, z in zip(batched, noise, strict=True):
        product = factor * z[0] if not covariance.shares_noise else factor @ z[0]
        torch.testing.assert_close(one[0], loc + product)
        torch.testing.assert_close(covariance.draw(loc, factor, z[0]), loc + product)


@pytest.mark.parametrize("rank", [0, -2, 1.5, True, "3"])
def test_a_bad_rank(rank):
    with pytest.raises(ValueError, match="LowRank needs a whole number of columns, at least 1"):
        LowRank(rank)
