"""Both theorems by ``SVI.step``: the limit of training is the one that the theory computes.

`test_implicit_bias.py` has Theorem 1 for full batches with momentum; here are the variants it
holds for besides, those it needs a change for, and Theorem 2.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import nn

import pyro_ibvi as ibvi
from pyro_ibvi.theory import (
    classification_limit,
    expected_exponential_loss,
    null_space_projection,
    regression_limit,
    wasserstein2_squared,
)

pytestmark = pytest.mark.usefixtures("double")

NUM_DATA, NUM_FEATURES = 5, 9
SITE = "net.weight"


def matrix(singular_values, num_rows=NUM_DATA, num_columns=NUM_FEATURES):
    """Data with these singular values in random directions."""
    left, _ = torch.linalg.qr(torch.randn(num_rows, num_rows))
    right, _ = torch.linalg.qr(torch.randn(num_columns, num_columns))
    values = torch.as_tensor(singular_values)
    return left[:, : len(values)] * values @ right[:, : len(values)].mT


WELL_CONDITIONED = [2.0, 1.8, 1.6, 1.4, 1.2]


def build(covariance, loss, *, lr, momentum=0.0, optimizer=torch.optim.SGD, parametrization=None):
    """SVI of a linear model of one output, and the start of its guide."""
    net = ibvi.RandomModule(
        nn.Linear(NUM_FEATURES, 1, bias=False),
        parametrization=parametrization or ibvi.Standard(),
        prior=1.0,
    )
    model = ibvi.SupervisedModel(net, ibvi.Normal(1.0), num_data=NUM_DATA)
    guide = ibvi.AutoMuPNormal(model, covariance=covariance)
    options = {"lr": lr} | ({"momentum": momentum} if momentum else {})
    svi = SVI(model, guide, ibvi.MuPOptim(optimizer, options, guide), loss)
    return svi, law(guide)


def law(guide):
    return guide.loc(SITE)[0].detach().clone(), guide.factor(SITE)[0].detach().clone()


def draws(num_particles=1):
    return ibvi.TraceExpectedLogLikelihood(num_particles, reduction="mean")


def expectation():
    return ibvi.TraceClosedFormHead(reduction="mean")


# At the base width rates are those of Standard(), but for the rank, which closed forms need not
# know of.
RANKLESS = ibvi.MaximalUpdate(base=NUM_FEATURES, rank_exponent=0.0)

# One entry: covariance, objective, optimizer's options, data in a step, number of steps.
VARIANTS = {
    "GD": (ibvi.LowRank(None), expectation(), {"lr": 1.0, "parametrization": RANKLESS}, 5, 120),
    "GD, low rank": (ibvi.LowRank(3), expectation(), {"lr": 2.0}, 5, 180),
    "GD, momentum": (ibvi.LowRank(3), expectation(), {"lr": 1.0, "momentum": 0.8}, 5, 350),
    "SGD": (ibvi.LowRank(3), expectation(), {"lr": 0.9}, 2, 500),
    "SGD, momentum": (ibvi.LowRank(3), expectation(), {"lr": 0.3, "momentum": 0.8}, 2, 600),
    "single draws": (ibvi.LowRank(3), draws(), {"lr": 0.9}, 5, 700),
    "SGD, single draws": (ibvi.LowRank(2), draws(), {"lr": 0.4}, 2, 1600),
    "SGD, momentum, single draws": (
        ibvi.LowRank(2), draws(), {"lr": 0.1, "momentum": 0.8}, 2, 1800
    ),
    "four draws": (ibvi.LowRank(3), draws(4), {"lr": 1.2}, 5, 300),
}  # fmt: skip


def train(svi, x, y, num_steps, batch=NUM_DATA):
    for _ in range(num_steps):
        rows = torch.randperm(len(y))[:batch]
        svi.step(x[rows], y[rows])
    return law(svi.guide)


def largest_error(end, limit):
    return max((a - b).abs().max().item() for a, b in zip(end, limit, strict=True))


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_reaches_the_limit(variant):
    covariance, loss, options, batch, num_steps = variant
    x, y = matrix(WELL_CONDITIONED), torch.randn(NUM_DATA, 1)
    svi, start = build(covariance, loss, **options)
    end = train(svi, x, y, num_steps, batch)
    assert largest_error(end, regression_limit(x, y[:, 0], *start)) < 1e-10
    assert largest_error(start, end) > 0.1


def test_data_of_deficient_rank():
    x = matrix(WELL_CONDITIONED[:3])
    y = x @ torch.randn(NUM_FEATURES, 1)
    svi, start = build(ibvi.LowRank(4), draws(), lr=0.6)
    end = train(svi, x, y, 1200)
    assert largest_error(end, regression_limit(x, y[:, 0], *start)) < 1e-10
    # Three directions are lost, not five.
    kept = null_space_projection(x)(start[1]).square().sum()
    assert end[1].square().sum().item() == pytest.approx(kept.item(), rel=1e-10)


def test_rates_of_a_weight_and_a_bias_set_the_metric():
    # Under muP the bias learns at the global rate and the weight at 1 / fan_in of it. The two
    # share their noise, so they are one linear model with a rate for each feature.
    network = ibvi.RandomModule(nn.Linear(NUM_FEATURES, 1), stochastic="all", prior=1.0)
    model = ibvi.SupervisedModel(network, ibvi.Normal(1.0), num_data=NUM_DATA)
    guide = ibvi.AutoMuPNormal(model, covariance=ibvi.LowRank(3))
    sites = [SITE, "net.bias"]

    def joint():
        loc = torch.cat([guide.loc(s).detach().flatten() for s in sites])
        return loc, torch.cat([guide.factor(s).detach().reshape(-1, 3) for s in sites])

    x, y = matrix([s * 1.5 for s in WELL_CONDITIONED]), torch.randn(NUM_DATA, 1)
    start = joint()
    optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": 1.0, "momentum": 0.9}, guide)
    svi = SVI(model, guide, optim, expectation())
    for _ in range(900):
        svi.step(x, y)
    features = torch.cat([x, torch.ones(NUM_DATA, 1)], -1)
    rates = torch.cat([torch.full((NUM_FEATURES,), 1 / NUM_FEATURES), torch.ones(1)])
    assert largest_error(joint(), regression_limit(features, y[:, 0], *start, rates=rates)) < 1e-10
    assert largest_error(joint(), regression_limit(features, y[:, 0], *start)) > 1e-2


def test_layers_with_noise_of_their_own():
    # The means of two layers together have the limit of Theorem 1, in the metric of their rates.
    # Their factors do not: no noise is shared that could cancel between the layers, so each
    # keeps variance in the null space of its own inputs only.
    roles = {
        "one": ibvi.WeightRole.of("input", fan_in=6, fan_out=2),
        "two": ibvi.WeightRole.of("output", fan_in=2, fan_out=1),
    }

    def model(x, y):
        one = pyro.sample("one", dist.Normal(0.0, 1.0).expand([6]).to_event(1))
        two = pyro.sample("two", dist.Normal(0.0, 1.0).expand([6]).to_event(1))
        with pyro.plate("data", 4):
            pyro.sample("obs", dist.Normal(x[:, :6] @ one + x[:, 6:] @ two, 1.0), obs=y)

    values = [2.0, 1.8, 1.6, 1.4]
    x, y = torch.cat([matrix(values, 4, 6), matrix(values, 4, 6)], -1), torch.randn(4)
    rule = ibvi.MaximalUpdate(inputs="reference")
    guide = ibvi.AutoMuPNormal(
        model, covariance=ibvi.LowRank(3), roles=roles, parametrization=rule
    )
    guide.initialize(x, y)
    start = {s: (guide.loc(s).detach().clone(), guide.factor(s).detach().clone()) for s in roles}
    optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": 0.06, "momentum": 0.8}, guide)
    svi = SVI(model, guide, optim, draws())
    for _ in range(1300):
        svi.step(x, y)
    rates = torch.tensor([2.0, 0.5]).repeat_interleave(6)
    loc0 = torch.cat([loc for loc, _ in start.values()])
    limit = regression_limit(x, y, loc0, torch.eye(12), rates=rates)
    loc = torch.cat([guide.loc(site).detach() for site in roles])
    torch.testing.assert_close(loc, limit.loc, rtol=0, atol=1e-10)
    for site, part in zip(roles, x.split(6, dim=1), strict=True):
        expected = null_space_projection(part)(start[site][1])
        torch.testing.assert_close(guide.factor(site).detach(), expected, rtol=0, atol=1e-10)


def test_adam_fits_the_data_and_ends_elsewhere():
    x, y = matrix(WELL_CONDITIONED), torch.randn(NUM_DATA, 1)
    svi, start = build(ibvi.LowRank(3), expectation(), lr=0.02, optimizer=torch.optim.Adam)
    end = train(svi, x, y, 1100)
    limit = regression_limit(x, y[:, 0], *start)
    assert (x @ end[0] - y[:, 0]).abs().max() < 1e-6
    assert (x @ end[1]).abs().max() < 1e-6
    distances = [wasserstein2_squared(*end, *other).sqrt().item() for other in (limit, start)]
    shortest = wasserstein2_squared(*limit, *start).sqrt().item()
    project = null_space_projection(x)
    moved = (project(end[1] - start[1]).norm() / project(start[1]).norm()).item()
    assert distances[0] > 0.5
    assert distances[1] > 1.02 * shortest
    assert moved > 0.2


# -- classification ------------------------------------------------------------------------------


def separable(kind):
    if kind == "orthogonal":  # with another datum that is no support vector
        x = torch.tensor([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [1.5, 1.5, 0.0]])
        return x, torch.tensor([1.0, -1.0, 1.0])
    x = torch.tensor([[1.0, 0.0, 0.0], [-0.5, -(0.75**0.5), 0.0], [1.5, 0.75**0.5, 0.0]])
    return x, torch.tensor([1.0, -1.0, 1.0])


@pytest.mark.parametrize(("kind", "exponent"), [("orthogonal", 1.0), ("60 degrees", 1 / 3)])
def test_exponential_loss_tends_to_the_max_margin_limit(kind, exponent):
    # A count of zero under a Poisson likelihood with the inputs -y x has the log-probability
    # -exp(-y x'w), so that the closed-form last layer is the expected exponential loss exactly.
    x, y = separable(kind)
    network = ibvi.RandomModule(
        nn.Linear(3, 1, bias=False),
        parametrization=ibvi.MaximalUpdate(base=3, rank_exponent=0.0),
        prior=0.3,
    )
    model = ibvi.SupervisedModel(network, ibvi.Poisson(), num_data=3)
    guide = ibvi.AutoMuPNormal(model, covariance=ibvi.LowRank(None))
    optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": 1.0}, guide)
    svi = SVI(model, guide, optim, expectation())
    start = law(guide)
    limit = classification_limit(x, y, *start)
    assert limit.decay_exponent == pytest.approx(exponent, abs=1e-6)
    # The rate grows as the loss falls, so that the logarithm of time goes on at an even pace.
    inputs, zeros = -y[:, None] * x, torch.zeros(3, 1)
    expected = expected_exponential_loss(x, y, *start).mean().item()
    assert svi.evaluate_loss(inputs, zeros) == pytest.approx(expected, rel=1e-12)
    time, times, seen = 0.0, [], []
    for _ in range(700):
        rate = 0.1 / svi.evaluate_loss(inputs, zeros)
        for group in optim.optimizer.param_groups:  # all of factor 1
            group["lr"] = rate
        time += rate
        svi.step(inputs, zeros)
        times.append(math.log(time))
        seen.append((x @ law(guide)[1]).norm().log().item())
    loc, factor = law(guide)
    assert torch.cosine_similarity(loc - limit.loc, limit.direction, 0) > 0.9999
    half = len(times) // 2
    slope = (seen[-1] - seen[half]) / (times[-1] - times[half])
    assert slope == pytest.approx(-exponent, abs=0.05 * exponent)
    project = null_space_projection(x)
    assert (project(factor) - limit.S).abs().max() < 1e-10
    assert (project(loc) - limit.loc).abs().max() < 1e-10
    # The size of the mean is right to the order of 1 / log t only.
    assert (loc @ limit.direction / limit.direction.norm() ** 2 / times[-1]).item() == (
        pytest.approx(1.0, abs=0.2)
    )


def growth_of_the_second_moment(rate, rank, num_particles, rule, num_steps=800):
    """Mean of ``|S|^2`` after a step over that before, with its standard error.

    The data see one direction, the mean fits them, and each step starts anew.
    """
    x, y = torch.tensor([[1.5, 0.0, 0.0, 0.0, 0.0]]), torch.zeros(1, 1)
    model = ibvi.SupervisedModel(
        ibvi.RandomModule(nn.Linear(5, 1, bias=False), parametrization=rule, prior=1.0),
        ibvi.Normal(1.0),
        num_data=1,
    )
    guide = ibvi.AutoMuPNormal(model, covariance=ibvi.LowRank(rank))
    loss = ibvi.TraceExpectedLogLikelihood(
        num_particles, vectorize_particles=True, max_plate_nesting=1, reduction="mean"
    )
    svi = SVI(model, guide, ibvi.MuPOptim(torch.optim.SGD, {"lr": rate}, guide), loss)
    loc, factor = guide.loc(SITE), guide.factor(SITE)
    start = factor.detach().clone()
    ratios = []
    for _ in range(num_steps):
        with torch.no_grad():
            loc.zero_()
            factor.copy_(start)
        svi.step(x, y)
        ratios.append(factor[0, 0].detach().square().sum() / start[0, 0].square().sum())
    ratios = torch.stack(ratios)
    return ratios.mean().item(), (ratios.std() / num_steps**0.5).item()


@pytest.mark.parametrize(("rank", "num_particles"), [(4, 1), (3, 4)])
def test_the_rate_for_many_draws_is_the_limit_of_stability(rank, num_particles):
    curvature = 1.5**2
    rule = ibvi.MaximalUpdate(base=5, num_particles=num_particles)
    for share in (0.5, 1.5):
        rate = share * 2 / curvature
        growth, error = growth_of_the_second_moment(rate, rank, num_particles, rule)
        factor = num_particles / (rank + 1 + num_particles)
        assert abs(growth - (1 - 4 * factor * share * (1 - share))) < 4 * error
        assert (growth < 1 - 4 * error) if share < 1 else (growth > 1 + 4 * error)


def test_without_a_factor_for_the_rank_the_same_rate_is_unstable():
    growth, error = growth_of_the_second_moment(0.7 * 2 / 1.5**2, 4, 1, RANKLESS)
    assert growth > 1 + 4 * error
