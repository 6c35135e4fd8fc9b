"""How the scale of relative noise, and what a step changes of it, follow the width."""

import math

import pytest
import torch
from torch import nn

import pyro_ibvi as ibvi

WIDTHS = [64, 512]


def build(width, rule="maximal"):
    net = nn.Sequential(
        nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 5)
    )
    random = ibvi.RandomModule(
        net,
        stochastic="all weights",
        parametrization=ibvi.MaximalUpdate(multiplicative=rule),
    )
    model = ibvi.SupervisedModel(random, ibvi.Categorical())
    return model, ibvi.AutoMuPNormal(model, covariance=ibvi.Multiplicative(0.5, rate=1.0))


def slopes(rule, optimizer, lr):
    """Slopes of what each layer's scales changed in the first step."""
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
        num_draws=4,
    )
    return [check.slope("factor", 1, f"{layer}.weight") for layer in (0, 2, 4)]


def test_the_noise_of_hidden_units_is_flat_and_that_of_outputs_falls():
    rms = {}
    for width in WIDTHS:
        torch.manual_seed(0)
        _, guide = build(width)
        hidden, deviation = torch.randn(64, width), {}
        for name in ("net.2.weight", "net.4.weight"):
            noise = hidden @ (guide.draw(20)[name] - guide.loc(name)).mT
            deviation[name] = noise.square().mean().sqrt().item()
        rms[width] = deviation
    growth = [math.log(rms[512][n] / rms[64][n]) / math.log(8) for n in rms[64]]
    assert growth == pytest.approx([0.0, -0.5], abs=0.1)


@pytest.mark.parametrize(
    ("optimizer", "lr"), [(torch.optim.SGD, 0.02), (torch.optim.Adam, 0.01)], ids=["sgd", "adam"]
)
def test_what_a_step_changes(optimizer, lr):
    maximal, reference = (slopes(rule, optimizer, lr) for rule in ("maximal", "reference"))
    # By the rule of a gain the change of hidden units is flat.
    assert maximal[1] == pytest.approx(0.0, abs=0.35)
    # The rules differ by the width, or by nothing for the network's own inputs by SGD.
    falls = [0.0, 1.0, 1.0] if optimizer is torch.optim.SGD else [1.0, 1.0, 1.0]
    for own, other, fall in zip(reference, maximal, falls, strict=True):
        assert own == pytest.approx(other - fall, abs=0.1)
