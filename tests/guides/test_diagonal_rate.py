"""The limit of stability that decides how fast a diagonal factor learns."""

import math

import pytest
import torch
from torch import nn

import pyro_ibvi as ibvi

SIZE, NUM_RUNS = 64, 1500


def growth(rate_factor, rule):
    """E[V after a step] / V with its standard error, V the variance of a linear unit.

    The mean's step is ``rate_factor`` times the one that fits the datum exactly.
    """
    net = ibvi.RandomModule(
        nn.Linear(SIZE, 1, bias=False),
        stochastic="all",
        parametrization=ibvi.MaximalUpdate(base={"weight": (1, 1)}, diagonal=rule),
    )
    guide = ibvi.AutoMuPNormal(
        ibvi.SupervisedModel(net, ibvi.Normal(1.0)), covariance=ibvi.Diagonal()
    )
    x, y = torch.ones(1, SIZE), torch.zeros(1, 1)
    loss = ibvi.TraceExpectedLogLikelihood(reduction="mean")
    loc, factor = guide.loc("net.weight"), guide.factor("net.weight")
    start = torch.ones(1, SIZE) / math.sqrt(SIZE)
    groups = ibvi.mup_param_groups(guide, 1.0, optimizer=torch.optim.SGD)
    rate = {name: group["lr"] for group in groups for name in group["param_names"]}
    ratio = rate["AutoMuPNormal.factors.net.weight"] / rate["AutoMuPNormal.locs.net.weight"]
    values = []
    for _ in range(NUM_RUNS):
        with torch.no_grad():
            loc.zero_()
            factor.copy_(start)
        factor.grad = None
        loss.loss_and_grads(guide.model, guide, x, y)
        values.append((factor - rate_factor / SIZE * ratio * factor.grad).square().sum().item())
    values = torch.tensor(values)
    return values.mean().item(), values.std().item() / math.sqrt(NUM_RUNS)


@pytest.mark.parametrize("rate_factor", [1.0, 3.0])
def test_reference_rule_is_stable_where_the_mean_is(rate_factor):
    """The mean is stable for factors below 2."""
    rate = rate_factor / SIZE
    expected = 1 - 2 * rate + rate**2 * (SIZE + 2)
    mean, error = growth(rate_factor, "reference")
    assert mean == pytest.approx(expected, abs=4 * error)
    assert (expected < 1) == (rate_factor < 2)
    assert error < 0.02


def test_maximal_rule_is_not():
    mean, error = growth(1.0, "maximal")
    rate = math.sqrt(SIZE) / SIZE
    assert mean == pytest.approx(1 - 2 * rate + rate**2 * (SIZE + 2), abs=4 * error)
    assert mean > 1.5
