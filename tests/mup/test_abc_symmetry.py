"""Two styles of one parametrization, with and without multipliers, follow the same trajectory.

With ``(init, multiplier, rate) -> (A t, B / t, C / t^2)`` for SGD and ``(A t, B / t, C / t)`` for
Adam nothing changes in a network's outputs (Tensor Programs V), and the same holds
for the factor of the covariance, which is trained as the mean is.
"""

import math

import pytest
import torch
from pyro.infer import SVI
from torch import nn
from torch.nn import functional as F

from pyro_ibvi import (
    AutoMuPNormal,
    Diagonal,
    LowRank,
    MaximalUpdate,
    MuPOptim,
    NeuralTangent,
    Normal,
    RandomModule,
    SupervisedModel,
    TraceExpectedLogLikelihood,
)

WIDTH, NUM_STEPS = 24, 20
OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    "adam": (torch.optim.Adam, {"lr": 0.02, "eps": 0.0}),
}
pytestmark = pytest.mark.usefixtures("double")


class Multiplied(nn.Linear):
    """A linear layer whose weight has a multiplier in the forward pass."""

    def __init__(self, num_in, num_out, multiplier):
        super().__init__(num_in, num_out)
        self.multiplier = multiplier

    def forward(self, x):
        return F.linear(x, self.multiplier * self.weight, self.bias)


class Table:
    """A parametrization by a table: role -> (std, SGD rate, Adam rate), of the widths."""

    base = None

    def __init__(self, table):
        self.table = table

    def _row(self, role, fans):
        # The number of outputs is no width, and so the output's bias learns at the global rate.
        fixed = role == "bias" and fans.base_width_out is not None
        return self.table[role](fans.width_in, 1 if fixed else fans.width_out)

    def std(self, role, fans):
        return self._row(role, fans)[0]

    def rate(self, role, fans, family):
        return self._row(role, fans)[1 if family == "sgd" else 2]

    def factor_rate(self, role, fans, family, *, rank):
        return self.rate(role, fans, family) / (rank or 1)

    def epsilon(self, role, fans, *, side=None):
        return 1.0


def unit(n_in, n_out):
    return 1.0, 1.0, 1.0


# The styles with multipliers, by hand. Neural tangent: (1, fan_in^-1/2, 1) for every matrix.
# Maximal, Table 8: the read-out alone has a multiplier, 1 / fan_in, and learns at the rate fan_in
# (SGD) or 1 (Adam); the other rows are those without multipliers.
TANGENT = dict.fromkeys(("input", "hidden", "output", "bias"), unit)
TABLE_8 = {
    "input": lambda n_in, n_out: (n_in**-0.5, n_out, 1.0),
    "hidden": lambda n_in, n_out: (n_in**-0.5, 1.0, 1.0 / n_in),
    "output": lambda n_in, n_out: (1.0, n_in, 1.0),
    "bias": lambda n_in, n_out: (1.0, n_out, 1.0),
}
SIZES = [(3, WIDTH), (WIDTH, WIDTH), (WIDTH, 2)]
STYLES = {
    "neural tangent": (NeuralTangent(), TANGENT, [n_in**-0.5 for n_in, _ in SIZES]),
    "maximal": (MaximalUpdate(inputs="reference"), TABLE_8, [1.0, 1.0, 1.0 / WIDTH]),
}


def build(multipliers, parametrization, covariance):
    first, second, third = (
        Multiplied(*size, multiplier) for size, multiplier in zip(SIZES, multipliers, strict=True)
    )
    net = nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), third)
    net = RandomModule(net, stochastic="all", parametrization=parametrization)
    model = SupervisedModel(net, Normal(0.5), num_data=8)
    return model, AutoMuPNormal(model, covariance=covariance)


def multiplied(guide, multipliers):
    """Means and factors of all sites, times the multipliers of their layers."""
    result = {}
    for i, multiplier in enumerate(multipliers):
        for own, factor in (("weight", multiplier), ("bias", 1.0)):
            name = f"net.{2 * i}.{own}"
            result[f"loc {name}"] = factor * guide.loc(name).detach()
            result[f"S {name}"] = factor * guide.factor(name).detach()
    return result


def train(model, guide, family, num_steps=NUM_STEPS):
    optimizer, options = OPTIMIZERS[family]
    svi = SVI(
        model,
        guide,
        MuPOptim(optimizer, options, guide),
        TraceExpectedLogLikelihood(reduction="mean"),
    )
    torch.manual_seed(1)
    x, y = torch.randn(8, 3), torch.randn(8, 2)
    return [svi.step(x, y) for _ in range(num_steps)]


def both_trained(style, family, covariance, wrong=1.0):
    """Ends of the style without multipliers and of that with them, and their losses.

    The hidden weight's rate in the style with multipliers is ``wrong`` times the right one.
    """
    rule, table, multipliers = STYLES[style]
    hidden = table["hidden"]
    table = table | {
        "hidden": lambda *widths: (hidden(*widths)[0], *(wrong * r for r in hidden(*widths)[1:]))
    }
    model, guide = build([1.0] * 3, rule, covariance)
    other_model, other_guide = build(multipliers, Table(table), covariance)
    # The same start, up to the multipliers.
    with torch.no_grad():
        for i, multiplier in enumerate(multipliers):
            for own, factor in (("weight", multiplier), ("bias", 1.0)):
                name = f"net.{2 * i}.{own}"
                other_guide.loc(name).copy_(guide.loc(name) / factor)
                other_guide.factor(name).copy_(guide.factor(name) / factor)
    start = multiplied(guide, [1.0] * 3)
    losses, other_losses = train(model, guide, family), train(other_model, other_guide, family)
    ends = multiplied(guide, [1.0] * 3), multiplied(other_guide, multipliers)
    return start, ends, losses, other_losses


def largest_difference(first, second):
    return max(((first[k] - second[k]).norm() / first[k].norm()).item() for k in first)


@pytest.mark.parametrize("covariance", [LowRank(3), Diagonal()], ids=str)
@pytest.mark.parametrize("family", OPTIMIZERS)
@pytest.mark.parametrize("style", STYLES)
def test_multipliers_move_into_scales_and_rates(style, family, covariance):
    start, (end, other_end), losses, other_losses = both_trained(style, family, covariance)
    assert largest_difference(end, other_end) < 1e-6
    assert losses == pytest.approx(other_losses, rel=1e-6)
    # Every mean and factor has moved, so that rates were compared.
    assert all((start[k] - end[k]).norm() > 1e-4 * start[k].norm() for k in start)


@pytest.mark.parametrize("family", OPTIMIZERS)
@pytest.mark.parametrize("style", STYLES)
def test_a_wrong_exponent_leaves_the_trajectory(style, family):
    # Half a power of the width too much on one of the rates.
    _, (end, other_end), losses, other_losses = both_trained(
        style, family, LowRank(3), wrong=math.sqrt(WIDTH)
    )
    assert largest_difference(end, other_end) > 1e-3
    assert losses != pytest.approx(other_losses, rel=1e-3)


@pytest.mark.parametrize("style", STYLES)
def test_both_styles_start_alike(style):
    rule, table, multipliers = STYLES[style]
    ends = []
    for factors, parametrization in ((multipliers, Table(table)), ([1.0] * 3, rule)):
        _, guide = build(factors, parametrization, Diagonal())
        ends.append({k: v for k, v in multiplied(guide, factors).items() if k.startswith("S")})
    assert largest_difference(*ends) < 1e-12
