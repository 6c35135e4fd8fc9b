"""Covariances against dense linear algebra in the layer's own layout."""

import pytest
import torch
from torch import nn

from pyro_ibvi import (
    AutoMuPNormal,
    Diagonal,
    Kronecker,
    LowRank,
    Normal,
    RandomModule,
    SupervisedModel,
)

NUM_DRAWS = 100_000
KRONECKERS = [Kronecker(2, 1), Kronecker(None, 2), Kronecker(None, None)]
COVARIANCES = [Diagonal(), LowRank(1), LowRank(3), LowRank(None), *KRONECKERS]
LAYERS = {
    "linear": lambda: nn.Linear(3, 2),
    "conv": lambda: nn.Conv2d(2, 2, kernel_size=(1, 2)),
    "wide conv": lambda: nn.Conv2d(1, 3, kernel_size=(2, 1)),
    "grouped": lambda: nn.Conv1d(4, 2, kernel_size=2, groups=2),
}


def make_guide(layer, covariance, stochastic="all"):
    net = RandomModule(LAYERS[layer](), stochastic=stochastic)
    guide = AutoMuPNormal(SupervisedModel(net, Normal()), covariance=covariance)
    with torch.no_grad():  # away from the start, whose covariance may be diagonal
        for name, parameter in guide.named_parameters():
            if not name.startswith("locs."):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return guide


def dense_of(guide, names):
    """The covariance of sites in the guide's own layout."""
    if guide.layers[0].covariance.shares_noise:
        return guide.covariance(*names)
    return torch.block_diag(*(guide.covariance(name) for name in names))


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
    dense = dense_of(guide, names)
    draws = flat_draws(guide)
    assert standard_errors(draws, dense) < BOUND
    loc = torch.cat([guide.loc(name).reshape(-1) for name in names])
    error = (draws.mean(0) - loc).abs() / (dense.diagonal() / NUM_DRAWS).sqrt()
    assert error.max() < BOUND
    scale = torch.cat([guide.scale(name).reshape(-1) for name in names])
    torch.testing.assert_close(scale, dense.diagonal().sqrt())


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("layer", ["linear", "wide conv"])
@pytest.mark.parametrize("covariance", COVARIANCES, ids=str)
def test_covariance_of_draws_with_a_fixed_bias(layer, covariance):
    guide = make_guide(layer, covariance, stochastic=["weight"])
    draws = guide.draw(NUM_DRAWS)["net.weight"].flatten(1)
    assert standard_errors(draws, dense_of(guide, ["net.weight"])) < BOUND


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("covariance", KRONECKERS, ids=str)
def test_a_wrongly_ordered_kronecker_product_fails(layer, covariance):
    guide = make_guide(layer, covariance)
    outputs = guide.layer_factor("net.weight")
    parts = [guide.factor(name) for name in ("net.weight", "net.bias")]
    inputs = torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])
    of_outputs, of_inputs = outputs @ outputs.mT, inputs @ inputs.mT
    draws = guide.draw(NUM_DRAWS)
    matrix = torch.cat([v.reshape(NUM_DRAWS, len(outputs), -1) for v in draws.values()], dim=-1)
    assert standard_errors(matrix.flatten(1), torch.kron(of_outputs, of_inputs)) < BOUND
    # Swapped factors are the column-major order.
    swapped = torch.kron(of_inputs, of_outputs)
    assert standard_errors(matrix.flatten(1), swapped) > 10 * BOUND
    assert standard_errors(matrix.mT.flatten(1), swapped) < BOUND
    # The layout of the guide, with a weight and a bias each by itself, is another one still.
    assert standard_errors(flat_draws(guide), torch.kron(of_outputs, of_inputs)) > 10 * BOUND


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("layer", ["linear", "conv", "grouped"])  # more than one input
@pytest.mark.parametrize("covariance", [LowRank(1), LowRank(3), LowRank(None)], ids=str)
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
    if isinstance(covariance, Kronecker):  # products of one number a row and one a column
        scales = [torch.tensor([1.0, 2.0, 0.5, 1.5]).unsqueeze(-1) * scales[0][:1]]
        scales.append(0.7 * scales[0][:, 0])
    factors, layer_factor = (
        covariance.init_factors(scales),
        covariance.init_layer_factor(scales),
    )
    for factor, scale in zip(factors, scales, strict=True):
        torch.testing.assert_close(covariance.scale(factor, layer_factor), scale)
    dense = covariance.dense(factors, layer_factor)
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
def test_rows_are_a_root_of_the_dense_form(covariance):
    scales = [torch.ones(3, 2, 2), torch.ones(3)]
    factors = [f + 0.3 * torch.randn_like(f) for f in covariance.init_factors(scales)]
    layer_factor = covariance.init_layer_factor(scales)
    rows = torch.cat([covariance.rows(factor, layer_factor) for factor in factors])
    product = rows.square().diag() if rows.dim() == 1 else rows @ rows.mT
    torch.testing.assert_close(product, covariance.dense(factors, layer_factor))


@pytest.mark.parametrize("covariance", COVARIANCES[:4], ids=str)
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


@pytest.mark.parametrize("covariance", KRONECKERS, ids=str)
def test_draw_of_a_kronecker_product(covariance):
    loc, scales = torch.randn(2, 3, 2), [torch.ones(2, 3, 2)]
    (factor,), outputs = covariance.init_factors(scales), covariance.init_layer_factor(scales)
    noise = torch.randn(5, 1, outputs.shape[-1], factor.shape[-1])
    batched = covariance.draw(loc, factor, outputs @ noise)
    assert batched.shape == (5, 1, 2, 3, 2)
    expected = loc + torch.einsum("or,nbri,jki->nbojk", outputs, noise, factor)
    torch.testing.assert_close(batched, expected)
    alone = covariance.draw(loc, factor, outputs @ noise[3, 0])
    torch.testing.assert_close(alone, expected[3, 0])


@pytest.mark.parametrize("rank", [0, -2, 1.5, True, "3"])
def test_a_bad_rank(rank):
    with pytest.raises(ValueError, match="LowRank needs a whole number of columns, at least 1"):
        LowRank(rank)
    for ranks in ((rank, 2), (2, rank)):
        with pytest.raises(
            ValueError, match="Kronecker needs a whole number of columns, at least"
        ):
            Kronecker(*ranks)
