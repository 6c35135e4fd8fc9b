"""The closed-form last layer against dense linear algebra, quadrature and draws."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import poutine
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal
from scipy import stats
from torch import nn
from torch.func import functional_call, jacrev

import pyro_ibvi as ibvi
from pyro_ibvi.theory.divergences import gaussian_kl
from pyro_ibvi.theory.expectations import (
    Spread,
    categorical_log_prob_bound,
    expected_poisson_log_prob,
    linear_spread,
)

pytestmark = pytest.mark.usefixtures("double")

NUM_DATA, BATCH, NUM_FEATURES = 50, 10, 4
COVARIANCES = {
    "diagonal": ibvi.Diagonal(),
    "low rank": ibvi.LowRank(3),
    "full": ibvi.LowRank(None),
    "kronecker": ibvi.Kronecker(3, 2),
    "full kronecker": ibvi.Kronecker(None, None),
    "kronecker weight": {"*.bias": ibvi.Diagonal(), "*": ibvi.Kronecker(3, 2)},
    "kronecker bias": {"*.bias": ibvi.Kronecker(1, 2), "*": ibvi.LowRank(3)},
    "mixed": {"*.bias": ibvi.Diagonal(), "*": ibvi.LowRank(3)},
    "two low ranks": {"*.bias": ibvi.LowRank(1), "*": ibvi.LowRank(3)},
    "fixed bias": {"net.2.bias": None, "*": ibvi.LowRank(3)},
    "fixed weight": {"net.2.weight": None, "*": ibvi.Diagonal()},
}


def build(likelihood, *, num_outputs=2, covariance=None, stochastic="last", net=None):
    net = net or nn.Sequential(nn.Linear(NUM_FEATURES, 6), nn.Tanh(), nn.Linear(6, num_outputs))
    network = ibvi.RandomModule(net, stochastic=stochastic, prior=0.7)
    model = ibvi.SupervisedModel(network, likelihood, num_data=NUM_DATA)
    return model, ibvi.AutoMuPNormal(model, covariance=covariance or ibvi.LowRank(3))


def targets(likelihood, num_outputs=2):
    shape = (BATCH, num_outputs)
    return {
        ibvi.Normal: torch.randn(shape),
        ibvi.Poisson: torch.poisson(torch.ones(shape)),
        ibvi.Bernoulli: torch.randint(2, shape).double(),
        ibvi.Categorical: torch.randint(num_outputs, shape[:1]),
    }[type(likelihood)]


def dense_moments(model, guide, x):
    """Mean and variance of the outputs by the Jacobian and the dense covariance."""
    net, names = model.net.network, ["2.weight", "2.bias"]
    loc = {name: guide.loc(f"net.{name}").detach() for name in names}
    mean = functional_call(net, loc, (x,))
    jacobian = jacrev(lambda values: functional_call(net, values, (x,)))(loc)
    variance = torch.zeros_like(mean)
    random = [n for n in names if guide.scale(f"net.{n}").any()]
    flat = {n: jacobian[n].reshape(*mean.shape, -1) for n in random}
    try:
        groups = [(random, guide.covariance(*(f"net.{n}" for n in random)))]
    except ValueError:  # the two share no noise
        groups = [([n], guide.covariance(f"net.{n}")) for n in random]
    for group, covariance in groups:
        rows = torch.cat([flat[n] for n in group], -1)
        variance = variance + torch.einsum("nci,ij,ncj->nc", rows, covariance, rows)
    return mean.detach(), variance.detach()


def expectation_by_quadrature(mean, variance, log_prob):
    z = torch.linspace(-10, 10, 1201)
    weights = torch.exp(-z.square() / 2)
    values = log_prob(mean.unsqueeze(-1) + variance.sqrt().unsqueeze(-1) * z)
    return (values * weights).sum(-1) / weights.sum()


@pytest.mark.parametrize("covariance", COVARIANCES.values(), ids=COVARIANCES)
@pytest.mark.parametrize("likelihood", [ibvi.Normal(0.5), ibvi.Poisson(), ibvi.Bernoulli()])
def test_loss_equals_quadrature_over_the_dense_law(likelihood, covariance):
    model, guide = build(likelihood, covariance=covariance)
    with torch.no_grad():  # a full factor that is no longer diagonal
        for parameter in guide.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    x, y = torch.randn(BATCH, NUM_FEATURES), targets(likelihood)
    mean, variance = dense_moments(model, guide, x)
    assert variance.min() > 0.01

    def log_prob(f):
        return likelihood(f, f.dim()).log_prob(y.unsqueeze(-1))

    expected = -NUM_DATA / BATCH * expectation_by_quadrature(mean, variance, log_prob).sum()
    loss = ibvi.TraceClosedFormHead()
    assert loss.loss(model, guide, x, y) == pytest.approx(expected.item(), rel=1e-10)
    loss = ibvi.TraceClosedFormHead(reduction="mean", num_particles=3)
    value = loss.differentiable_loss(model, guide, x, y).item()
    assert value == pytest.approx(expected.item() / NUM_DATA, rel=1e-10)


def gradients(loss, model, guide, x, y, num_steps):
    """Gradients of a mean, a factor in each layer, one row a step."""
    names = ["0.weight", "2.weight"]
    parameters = [f(f"net.{n}") for n in names for f in (guide.loc, guide.factor)]
    rows = []
    for _ in range(num_steps):
        value = loss.differentiable_loss(model, guide, x, y)
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)]))
    sizes = [p.numel() for p in parameters]
    return torch.stack(rows).split(sizes, dim=1)


@pytest.mark.parametrize("covariance", [ibvi.Diagonal(), ibvi.LowRank(3)])
def test_gradient_is_that_of_draws_in_expectation_with_less_variance(covariance):
    num_steps = 600
    model, guide = build(ibvi.Normal(0.5), covariance=covariance, stochastic="all")
    x, y = torch.randn(BATCH, NUM_FEATURES), targets(ibvi.Normal())
    exact = gradients(ibvi.TraceClosedFormHead(reduction="mean"), model, guide, x, y, num_steps)
    drawn = gradients(
        ibvi.TraceExpectedLogLikelihood(reduction="mean"), model, guide, x, y, num_steps
    )
    for one, other in zip(exact, drawn, strict=True):
        direction = torch.randn(one.shape[1])
        a, b = one @ direction, other @ direction
        error = math.sqrt((a.var() + b.var()) / num_steps)
        assert abs(a.mean() - b.mean()) < 3 * error
    ratios = [o.var(0).sum() / e.var(0).sum() for e, o in zip(exact, drawn, strict=True)]
    assert min(ratios) > 2  # of every parameter; measured: 3 to 160
    assert max(ratios) > 10
    # The control: the factor's gradient is not zero by more than the same error.
    factor = drawn[3]
    error = (factor.var(0) / num_steps).sqrt()
    assert ((factor.mean(0) / error).abs() > 3).any()


def test_nothing_is_left_to_draw_if_only_the_last_layer_is_random():
    model, guide = build(ibvi.Normal(0.5))
    x, y = torch.randn(BATCH, NUM_FEATURES), targets(ibvi.Normal())
    loss = ibvi.TraceClosedFormHead()
    assert loss.loss(model, guide, x, y) == loss.loss(model, guide, x, y)


# -- class labels --------------------------------------------------------------------------------


def expected_log_prob(y, mean, factor):
    """By the trapezoidal rule over two noise variables, for one datum."""
    z = torch.linspace(-9, 9, 181)
    weights = torch.exp(-z.square() / 2)
    noise = torch.cartesian_prod(z, z)
    logits = mean + noise @ factor.mT
    values = logits.log_softmax(-1)[:, y]
    weights = torch.outer(weights, weights).flatten()
    return (values * weights).sum() / weights.sum()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    num_classes=st.integers(2, 12),
    size=st.floats(0.0, 6.0),
    offset=st.floats(-30.0, 30.0),
)
def test_the_bound_is_never_above_the_true_value(seed, num_classes, size, offset):
    generator = torch.Generator().manual_seed(seed)
    mean, factor, y = (
        3 * torch.randn(num_classes, generator=generator) + offset,
        size * torch.randn(num_classes, 2, generator=generator),
        int(torch.randint(num_classes, (), generator=generator)),
    )
    truth = expected_log_prob(y, mean, factor)
    spread = Spread(factor, torch.zeros(num_classes))
    label = torch.tensor(y)
    tilted = categorical_log_prob_bound(label, mean, spread)
    jensen = categorical_log_prob_bound(label, mean, spread, bound="jensen")
    rounding = 1e-9 * (1 + truth.abs() + jensen.abs())
    assert jensen <= tilted + rounding
    assert tilted <= truth + rounding


def test_the_bound_holds_for_independent_logits():
    mean, y = torch.tensor([0.3, -1.0]), torch.tensor(1)
    for scale in (0.1, 1.0, 4.0):
        truth = expected_log_prob(1, mean, scale * torch.eye(2))
        spread = Spread(torch.zeros(2, 0), torch.full((2,), scale**2))
        bound = categorical_log_prob_bound(y, mean, spread)
        assert bound <= truth
        assert bound > truth - 0.2 * scale**2
    exact = categorical_log_prob_bound(y, mean, Spread(torch.zeros(2, 0), torch.zeros(2)))
    assert exact.item() == pytest.approx(mean.log_softmax(-1)[1].item(), rel=1e-12)


def test_noise_that_all_logits_share_costs_nothing():
    mean, y = torch.randn(7, 5), torch.randint(5, (7,))
    spread = Spread(3.0 * torch.ones(7, 5, 1), torch.zeros(7, 5))
    bound = categorical_log_prob_bound(y, mean, spread)
    truth = mean.log_softmax(-1).gather(-1, y.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(bound, truth, rtol=1e-8, atol=1e-8)


def test_the_gradient_of_the_bound_is_that_of_its_minimum():
    factor = torch.randn(1, 4, 2)
    mean, y = torch.randn(1, 4), torch.tensor([2])

    def value(factor):
        spread = Spread(factor, torch.zeros(1, 4))
        return categorical_log_prob_bound(y, mean, spread).sum()

    assert torch.autograd.gradcheck(value, factor.requires_grad_(), atol=1e-4)


def test_a_classifier_trains_on_the_bound():
    model, guide = build(ibvi.Categorical(), num_outputs=3, stochastic="all")
    x = torch.randn(BATCH, NUM_FEATURES)
    y = x[:, :3].argmax(-1)
    optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": 0.05}, guide)
    svi = SVI(
        model,
        guide,
        optim,
        ibvi.TraceClosedFormHead(reduction="mean", categorical_bound="tilted"),
    )
    losses = [svi.step(x, y) for _ in range(150)]
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])
    plain = ibvi.TraceExpectedLogLikelihood(reduction="mean", num_particles=300)
    with torch.no_grad():
        assert plain.loss(model, guide, x, y) < sum(losses[-50:]) / 50


# -- where it goes -------------------------------------------------------------------------------


def test_kl_and_masks_and_scales_go_with_it():
    model, guide = build(ibvi.Normal(0.5), covariance=ibvi.Diagonal())
    x, y = torch.randn(BATCH, NUM_FEATURES), targets(ibvi.Normal())
    plain = ibvi.TraceClosedFormHead().loss(model, guide, x, y)
    sites = ["net.2.weight", "net.2.bias"]
    loc = torch.cat([guide.loc(s).flatten() for s in sites])
    scale = torch.cat([guide.scale(s).flatten() for s in sites])
    kl = gaussian_kl(loc, scale, torch.zeros_like(loc), torch.full_like(loc, 0.7)).item()
    elbo = ibvi.TraceClosedFormHead(divergence="kl", weight=0.3).loss(model, guide, x, y)
    assert elbo == pytest.approx(plain + 0.3 * kl, rel=1e-12)
    scaled = poutine.scale(model, 2.0)
    assert ibvi.TraceClosedFormHead().loss(scaled, guide, x, y) == pytest.approx(
        2 * plain, rel=1e-12
    )
    masked = poutine.mask(model, torch.arange(BATCH) < 3)
    kept = ibvi.TraceClosedFormHead().loss(model, guide, x[:3], y[:3])
    assert ibvi.TraceClosedFormHead().loss(masked, guide, x, y) == pytest.approx(
        kept * 3 / BATCH, rel=1e-12
    )


class Squeezed(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(NUM_FEATURES, 6), nn.Linear(6, 1)

    def forward(self, x):
        return self.head(self.body(x).tanh()).squeeze(-1)


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (Squeezed(), (BATCH,)),
        (nn.Linear(NUM_FEATURES, 1), (BATCH, 1)),
        (nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 1)), (BATCH, 1)),
        (nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Linear(2, 1, bias=False)), (BATCH, 2, 1)),
    ],
)
def test_networks_of_several_shapes(net, shape):
    model, guide = build(ibvi.Normal(0.5), net=net.double().eval())
    x, y = torch.randn(BATCH, NUM_FEATURES), torch.randn(shape)
    exact = ibvi.TraceClosedFormHead().loss(model.eval(), guide, x, y)
    plain = ibvi.TraceExpectedLogLikelihood()
    draws = torch.tensor([plain.loss(model, guide, x, y) for _ in range(400)])
    assert abs(draws.mean() - exact) < 3 * draws.std() / 20


def test_a_guide_of_plain_normals():
    model, _ = build(ibvi.Normal(0.5))

    def guide(x, y):
        pyro.sample("net.2.weight", dist.Normal(0.0, 1.0).expand([2, 6]).to_event(2))
        pyro.sample("net.2.bias", dist.Normal(torch.ones(2), 0.1).to_event(1))

    x, y = torch.randn(BATCH, NUM_FEATURES), torch.ones(BATCH, 2)
    h = model.net.network[:2](x)
    variance = h.square().sum(-1) + 0.01
    expected = (2 * (variance / (2 * 0.25) + math.log(0.5 * math.sqrt(2 * math.pi)))).sum()
    loss = ibvi.TraceClosedFormHead().loss(model, guide, x, y)
    assert loss == pytest.approx(NUM_DATA / BATCH * expected.item(), rel=1e-12)


def test_spread_of_a_diagonal_layer_by_hand():
    h, weight, bias = torch.randn(3, 2), torch.randn(4, 2), torch.randn(4)
    spread = linear_spread(h, weight, bias)
    expected = h.square() @ weight.square().mT + bias.square()
    torch.testing.assert_close(spread.variance(), expected)
    torch.testing.assert_close(spread.times(torch.ones(3, 4)), expected)


# -- sentences -----------------------------------------------------------------------------------


def evaluate(net=None, likelihood=None, guide=None, stochastic="last", covariance=None, **options):
    model, own = build(
        likelihood or ibvi.Normal(), net=net, stochastic=stochastic, covariance=covariance
    )
    x, y = torch.randn(BATCH, NUM_FEATURES), torch.ones(BATCH, 2)
    loss = ibvi.TraceClosedFormHead(**options)
    return loss.loss(model, (guide or (lambda model: own))(model), x, y)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(NUM_FEATURES, 2)

    def forward(self, x):
        self.head(x)
        return self.head(x)


HIDDEN, HEAD = nn.Linear(NUM_FEATURES, 6).double(), nn.Linear(6, 2).double()


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ({"likelihood": ibvi.Categorical()}, 'Pass categorical_bound="tilted" to train'),
        ({"likelihood": ibvi.HeteroscedasticNormal()}, "has no closed-form expectation"),
        ({"stochastic": "input"}, "is not random"),
        ({"net": nn.Sequential(nn.Conv1d(4, 2, 1))}, "ends in one nn.Linear"),
        ({"net": nn.Sequential(HIDDEN, HEAD, nn.ReLU())}, "changes the output of its last"),
        ({"net": nn.Sequential(HIDDEN, HEAD, nn.ReLU(inplace=True))}, "changes the output of its"),
        ({"net": Twice().double()}, "2 times"),
        ({"guide": AutoNormal}, "does not draw the last layer"),
        ({"covariance": {"*": None}}, "does not draw the last layer"),
    ],
)
def test_what_has_no_closed_form_is_refused(case, sentence):
    with pytest.raises(ValueError, match=sentence):
        evaluate(**case)


def test_other_sentences():
    with pytest.raises(ValueError, match='expected "tilted", "jensen" or None'):
        ibvi.TraceClosedFormHead(categorical_bound="bohning")
    with pytest.raises(ValueError, match='must be "tilted" or "jensen"'):
        categorical_log_prob_bound(
            torch.zeros(1), torch.zeros(1, 2), Spread(torch.zeros(1, 2, 0), torch.zeros(1, 2)),
            bound="bohning",
        )  # fmt: skip
    loss = ibvi.TraceClosedFormHead()
    for option in ({"kl_weight": 0.5}, {"vectorize_particles": True}):
        with pytest.raises(ValueError, match="its KL is not estimated by draws"):
            ibvi.TraceClosedFormHead(**option)
    loss.kl_weight = 0.5
    with pytest.raises(ValueError, match="its KL is not estimated by draws"):
        loss.loss(*build(ibvi.Normal()), torch.zeros(BATCH, NUM_FEATURES), torch.zeros(BATCH, 2))
    loss.kl_weight = 0.0
    model, guide = build(ibvi.Normal())
    with pytest.raises(TypeError, match="needs a SupervisedModel"):
        loss.loss(lambda x, y: None, guide, torch.zeros(1), torch.zeros(1))
    with pytest.raises(ValueError, match="The model observed nothing"):
        loss.loss(model, guide, torch.zeros(BATCH, NUM_FEATURES))

    def laplace(x, y):
        pyro.sample("net.2.weight", dist.Laplace(0.0, 1.0).expand([2, 6]).to_event(2))
        pyro.sample("net.2.bias", dist.Normal(torch.ones(2), 0.1).to_event(1))

    with pytest.raises(ValueError, match="from Laplace, and a closed-form last layer must be"):
        loss.loss(model, laplace, torch.zeros(BATCH, NUM_FEATURES), torch.zeros(BATCH, 2))


@pytest.mark.parametrize("count", [0.0, 31.0, 32.0, 1e3, 1e6])
def test_expectations_of_large_counts_are_those_by_quadrature(count):
    mean, variance = math.log(count + 1) + 0.01, 1e-3 / (count + 1)
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    laws = stats.poisson(np.exp(mean + variance**0.5 * nodes))
    expected = float(weights @ laws.logpmf(count) / weights.sum())
    for dtype, tolerance in ((torch.float32, 3e-2), (torch.float64, 1e-7)):
        numbers = (torch.tensor(number, dtype=dtype) for number in (count, mean, variance))
        found = expected_poisson_log_prob(*numbers).item()
        assert found == pytest.approx(expected, abs=tolerance)
