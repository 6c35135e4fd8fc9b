"""What the two factors of a Kronecker product change, over widths, by both rules."""

import pytest
import torch
from torch import nn

import pyro_ibvi as ibvi

WIDTHS = [64, 512]
RANK = 4


def build(width, rule="maximal", covariance=None):
    net = nn.Sequential(
        nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 5)
    )
    random = ibvi.RandomModule(
        net,
        stochastic="all",
        prior={"*.bias": 0.1},
        parametrization=ibvi.MaximalUpdate(kronecker=rule),
    )
    model = ibvi.SupervisedModel(random, ibvi.Categorical())
    return model, ibvi.AutoMuPNormal(model, covariance=covariance or ibvi.Kronecker(RANK, RANK))


def slopes(rule, optimizer, lr):
    """Slopes of what each factor of the hidden layer changed in the first step."""
    generator = torch.Generator().manual_seed(1)
    data = torch.randn(32, 8, generator=generator), torch.arange(32) % 5
    check = ibvi.coordinate_check(
        lambda width: build(width, rule),
        WIDTHS,
        data,
        optimizer=optimizer,
        optim_args={"lr": lr},
        steps=[1],
        num_seeds=8,
        num_draws=2,
    )
    # By name of the quantity; the layer's factor is seen through the weight and the bias.
    assert ("layer factor", 1, "2.bias") in check.rms
    assert ("factor", 1, "2.bias") in check.rms
    return {name: check.slope(name, 1, "2.weight") for name in ("loc", "factor", "layer factor")}


def test_factors_by_sgd():
    maximal = slopes("maximal", torch.optim.SGD, 0.02)
    reference = slopes("reference", torch.optim.SGD, 0.02)
    # S_out is flat. The gradient of S_in starts as a sum of random signs over the outputs.
    assert maximal["layer factor"] == pytest.approx(0, abs=0.3)
    assert maximal["factor"] == pytest.approx(-0.5, abs=0.3)
    # The rates of the two rules differ by 1/width and width, and so do the slopes.
    assert reference["layer factor"] == pytest.approx(maximal["layer factor"] - 1, abs=0.1)
    assert reference["factor"] == pytest.approx(maximal["factor"] + 1, abs=0.1)


def test_factors_by_adam():
    maximal = slopes("maximal", torch.optim.Adam, 0.01)
    reference = slopes("reference", torch.optim.Adam, 0.01)
    assert maximal["layer factor"] == pytest.approx(0, abs=0.2)
    assert maximal["factor"] == pytest.approx(0, abs=0.2)
    assert reference["layer factor"] == pytest.approx(-1, abs=0.2)
    assert reference["factor"] == pytest.approx(maximal["factor"], abs=0.1)


@torch.no_grad()
def spectral_norms(covariance):
    norms = []
    for width in (32, 512):
        _, guide = build(width, covariance=covariance)
        noise = guide.draw(8)["net.2.weight"] - guide.loc("net.2.weight")
        norms.append(torch.linalg.matrix_norm(noise, 2).mean().item())
    return norms


def test_noise_of_fixed_rank_grows_where_low_rank_noise_does_not():
    """Rank R and given marginals: a spectral norm of width^1/2, here a factor of 4."""
    small, large = spectral_norms(ibvi.Kronecker(RANK, RANK))
    assert large / small == pytest.approx(4, rel=0.3)
    small, large = spectral_norms(ibvi.LowRank(RANK))
    assert large / small == pytest.approx(1, rel=0.2)
