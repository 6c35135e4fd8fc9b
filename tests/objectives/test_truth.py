"""The objectives against closed forms: conjugate Gaussians, discrete sums, mixtures."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.testing.rejection_gamma import RejectionGamma
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal

from pyro_ibvi.diagnostics.objective_report import explain
from pyro_ibvi.objectives.expected_log_likelihood import TraceExpectedLogLikelihood
from pyro_ibvi.objectives.variants import (
    TraceEnumExpectedLogLikelihood,
    TraceGraphExpectedLogLikelihood,
)
from tests.objectives.zoo import Case, loss_and_grads

pytestmark = [
    pytest.mark.usefixtures("double"),
    # Most models here have one value per observation, so that their truth is known.
    pytest.mark.filterwarnings("ignore:Each of the latent sites .* has one value"),
]


REPLICAS, STEPS = 100, 40


def estimates(loss, model, guide, args):
    """Mean and standard error of the loss and of each gradient, over independent estimates.

    Models and guides hold `REPLICAS` copies of the problem in a plate, each with parameters of its
    own: one step gives that many estimates, and their averages over `STEPS` steps an error.
    """

    def replicated(fn):
        def wrapped(*args):
            with pyro.plate("replicas", REPLICAS, dim=-2):
                fn(*args)

        return wrapped

    case = Case(replicated(model), replicated(guide), args)
    rows = []
    for seed in range(STEPS):
        value, grads = loss_and_grads(loss, case, seed=seed)
        parts = [torch.tensor([value / REPLICAS])]
        parts += [grad.mean(0) for name, grad in grads.items() if "baseline" not in name]
        rows.append(torch.cat(parts))
    rows = torch.stack(rows)
    return rows.mean(0), rows.std(0) / math.sqrt(STEPS)


def replicas(*values):
    """Initial value of a parameter, one row per replica."""
    return torch.tensor(values).expand(REPLICAS, len(values)).clone()


def is_within_three_errors(estimate, truth):
    mean, error = estimate
    return bool(((mean - torch.as_tensor(truth)).abs() <= 3 * error + 1e-12).all())


X = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)
Y = torch.tensor([0.3, 1.0, -0.7], dtype=torch.float64)


def conjugate(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(w * x, 1.0), obs=y)


def gaussian_guide(x, y):
    loc = pyro.param("loc", replicas(0.8))
    scale = pyro.param("scale", replicas(0.6))
    pyro.sample("w", dist.Normal(loc, scale))


def conjugate_truth():
    loc = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    loss = 0.5 * ((Y - loc * X).square() + (scale * X).square() + math.log(2 * math.pi)).sum()
    return torch.stack([loss.detach(), *torch.autograd.grad(loss, (loc, scale))])


def test_conjugate_gaussian_away_from_the_prior():
    truth = conjugate_truth()
    args = (conjugate, gaussian_guide, (X, Y))
    assert is_within_three_errors(estimates(TraceExpectedLogLikelihood(), *args), truth)
    # The same comparison notices the ELBO, whose KL is not stationary away from the prior.
    assert not is_within_three_errors(estimates(Trace_ELBO(), *args), truth)


def bernoulli_model(y):
    k = pyro.sample("k", dist.Bernoulli(0.9))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Bernoulli(0.1))
        pyro.sample("y", dist.Normal(z - k, 1.0), obs=y)


def bernoulli_guide(y):
    k_logit = pyro.param("k_logit", replicas(0.4))
    z_logits = pyro.param("z_logits", replicas(0.7, -0.3, 0.2))
    pyro.sample("k", dist.Bernoulli(logits=k_logit))
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Bernoulli(logits=z_logits))


def bernoulli_truth():
    k_logit = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    z_logits = torch.tensor([0.7, -0.3, 0.2], dtype=torch.float64, requires_grad=True)
    loss = 0.0
    for k in (0.0, 1.0):
        for z in (0.0, 1.0):
            prob = (k_logit.sigmoid() if k else 1 - k_logit.sigmoid()) * (
                z_logits.sigmoid() if z else 1 - z_logits.sigmoid()
            )
            loss = loss - (prob * torch.distributions.Normal(z - k, 1.0).log_prob(Y)).sum()
    grads = torch.autograd.grad(loss, (k_logit, z_logits))
    return torch.cat([loss.detach().reshape(1), *(g.reshape(-1) for g in grads)])


@pytest.mark.parametrize(
    "loss",
    [
        TraceExpectedLogLikelihood(),
        TraceExpectedLogLikelihood(num_particles=2),
        TraceGraphExpectedLogLikelihood(),
    ],
)
def test_score_function_gradient_is_unbiased(loss):
    truth = bernoulli_truth()
    args = (bernoulli_model, bernoulli_guide, (Y,))
    assert is_within_three_errors(estimates(loss, *args), truth)


def test_the_score_function_comparison_can_fail():
    args = (bernoulli_model, bernoulli_guide, (Y,))
    assert not is_within_three_errors(estimates(Trace_ELBO(), *args), bernoulli_truth())


def test_enumerated_guide_gives_the_exact_gradient():
    guide = pyro.infer.config_enumerate(bernoulli_guide)
    mean, _ = estimates(TraceEnumExpectedLogLikelihood(), bernoulli_model, guide, (Y,))
    torch.testing.assert_close(mean, bernoulli_truth(), rtol=1e-12, atol=1e-12)


def test_baselines_leave_the_gradient_and_lower_its_variance():
    def guide(y):
        k_logit = pyro.param("k_logit", replicas(0.4))
        infer = {"baseline": {"use_decaying_avg_baseline": True}}
        pyro.sample("k", dist.Bernoulli(logits=k_logit), infer=infer)

    def model(y):
        k = pyro.sample("k", dist.Bernoulli(0.9))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(10.0 - k, 1.0), obs=y)

    def plain_guide(y):
        pyro.sample("k", dist.Bernoulli(logits=pyro.param("k_logit", replicas(0.4))))

    k_logit = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    values = [-dist.Normal(10.0 - k, 1.0).log_prob(Y).sum() for k in (0.0, 1.0)]
    truth = k_logit.sigmoid() * values[1] + (1 - k_logit.sigmoid()) * values[0]
    (slope,) = torch.autograd.grad(truth, k_logit)
    mean, error = estimates(TraceGraphExpectedLogLikelihood(), model, guide, (Y,))
    _, plain_error = estimates(TraceGraphExpectedLogLikelihood(), model, plain_guide, (Y,))
    assert abs(mean[1] - slope) <= 3 * error[1]
    assert error[1] < 0.5 * plain_error[1]


def test_partly_reparametrized_guide():
    """A rejection sampler: a part of the gradient is pathwise, the rest a score function."""

    def model(y):
        rate = pyro.sample("rate", dist.Gamma(2.0, 3.0))
        pyro.sample("y", dist.Poisson(rate), obs=y)

    def guide(y):
        a = pyro.param("a", replicas(2.5))
        pyro.sample("rate", RejectionGamma(a, pyro.param("b", replicas(1.5))))

    y = torch.tensor(7.0)
    a = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
    b = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    truth = -(y * (torch.digamma(a) - b.log()) - a / b - torch.lgamma(y + 1))
    truth = torch.stack([truth.detach(), *torch.autograd.grad(truth, (a, b))])
    args = (model, guide, (y,))
    assert is_within_three_errors(estimates(TraceExpectedLogLikelihood(), *args), truth)
    assert not is_within_three_errors(estimates(Trace_ELBO(), *args), truth)


def test_auxiliary_discrete_draws_of_the_guide():
    """A discrete auxiliary site moves a latent: its score function sees the likelihood."""

    def model(x, y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(w * x, 1.0), obs=y)

    def guide(x, y):
        logit = pyro.param("logit", replicas(0.5))
        k = pyro.sample("k", dist.Bernoulli(logits=logit), infer={"is_auxiliary": True})
        pyro.sample("w", dist.Delta(2.0 * k - 0.5))

    logit = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    losses = [-dist.Normal(w * X, 1.0).log_prob(Y).sum() for w in (-0.5, 1.5)]
    loss = (1 - logit.sigmoid()) * losses[0] + logit.sigmoid() * losses[1]
    truth = torch.stack([loss.detach(), *torch.autograd.grad(loss, logit)])
    estimate = estimates(TraceExpectedLogLikelihood(), model, guide, (X, Y))
    assert is_within_three_errors(estimate, truth)


def test_mixture_of_networks_equals_the_exact_density():
    """-log p(y | w) with the component summed out, averaged over the very draws of the guide."""
    net = torch.nn.Sequential(torch.nn.Linear(1, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    net.double()
    x, y = X.unsqueeze(-1), Y

    def run(w):
        hidden = torch.tanh(x * w[..., :3] + w[..., 3:6])
        return hidden @ w[..., 6:].reshape(3, 2)

    def model(y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([12]).to_event(1))
        pi = pyro.sample("pi", dist.Dirichlet(torch.ones(2)))
        means = run(w)
        with pyro.plate("data", len(y)):
            k = pyro.sample("k", dist.Categorical(pi), infer={"enumerate": "parallel"})
            mean = means[torch.arange(len(y)), k]
            pyro.sample("y", dist.Normal(mean, 0.5), obs=y)

    guide = AutoNormal(poutine.block(model, hide=["k"]), init_scale=0.5)
    guide(y)
    loss = TraceEnumExpectedLogLikelihood(num_particles=5, max_plate_nesting=1)
    pyro.set_rng_seed(3)
    actual = loss.loss(model, guide, y)
    pyro.set_rng_seed(3)
    expected = 0.0
    for _ in range(5):
        draw = guide(y)
        log_prob = dist.Normal(run(draw["w"]), 0.5).log_prob(y.unsqueeze(-1)) + draw["pi"].log()
        expected -= log_prob.logsumexp(-1).sum().item() / 5
    assert actual == pytest.approx(expected, rel=1e-12)


def test_drop_factors():
    def model(y, factor):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        if factor:
            pyro.factor("penalty", -w.square())
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(w, 1.0), obs=y)

    def guide(y, factor):
        loc = pyro.param("loc", torch.tensor(0.8))
        pyro.sample("w", dist.Normal(loc, 1.0))

    def step(factor, **options):
        case = Case(model, guide, (Y, factor))
        return loss_and_grads(TraceExpectedLogLikelihood(**options), case)[0]

    pyro.set_rng_seed(7)
    w = dist.Normal(0.8, 1.0)().item()
    without = step(False)
    assert step(True) == pytest.approx(without + w**2)
    assert step(True, factors="drop") == pytest.approx(without)
    tempered = step(True, factors="drop", kl_weight=0.5) - step(False, kl_weight=0.5)
    assert tempered == pytest.approx(0.5 * w**2)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_a_prior_that_depends_on_an_enumerated_site_is_raised_to_the_weight(weight):
    def model(y):
        k = pyro.sample("k", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        w = pyro.sample("w", dist.Normal(2.0 * k, 0.5))
        pyro.sample("y", dist.Normal(w + k, 1.0), obs=y)

    def guide(y):
        pyro.sample("w", dist.Normal(pyro.param("loc", torch.tensor(0.4)), 1.0))

    pyro.set_rng_seed(0)
    w = dist.Normal(0.4, 1.0)()
    log_q = dist.Normal(0.4, 1.0).log_prob(w)
    k = torch.tensor([0.0, 1.0])
    terms = dist.Bernoulli(0.3).log_prob(k) + dist.Normal(w + k, 1.0).log_prob(Y[1])
    terms = terms + weight * dist.Normal(2 * k, 0.5).log_prob(w)
    loss = TraceEnumExpectedLogLikelihood(kl_weight=weight, max_plate_nesting=0)
    pyro.set_rng_seed(0)
    actual = loss.loss(model, guide, Y[1])
    assert actual == pytest.approx((weight * log_q - terms.logsumexp(0)).item(), rel=1e-12)


def test_observed_sites_of_the_guide_are_latent_terms():
    def guide(x, y):
        loc = pyro.param("loc", torch.tensor(0.3))
        pyro.sample("w", dist.Normal(loc, 1.0))
        infer = {"is_auxiliary": True}
        pyro.sample("hint", dist.Normal(loc, 0.5), obs=torch.tensor(1.0), infer=infer)
        pyro.factor("jacobian", 2.0 * loc, has_rsample=True)

    case = Case(conjugate, guide, (X, Y))
    free, _ = loss_and_grads(TraceExpectedLogLikelihood(), case)
    full, _ = loss_and_grads(Trace_ELBO(), case)
    half, _ = loss_and_grads(TraceExpectedLogLikelihood(kl_weight=0.5), case)
    pyro.set_rng_seed(7)
    w = dist.Normal(0.3, 1.0)()
    log_q = dist.Normal(0.3, 1.0).log_prob(w) + dist.Normal(0.3, 0.5).log_prob(torch.tensor(1.0))
    kl = log_q + 0.6 - dist.Normal(0.0, 1.0).log_prob(w)
    assert full - free == pytest.approx(kl.item(), rel=1e-10)
    assert half - free == pytest.approx(0.5 * kl.item(), rel=1e-10)


@pytest.mark.filterwarnings("ignore:The expected log-likelihood cannot move the parameters")
@pytest.mark.parametrize("weight", [0.0, 0.5])
@pytest.mark.parametrize(
    "loss",
    [
        TraceExpectedLogLikelihood,
        TraceGraphExpectedLogLikelihood,
        TraceEnumExpectedLogLikelihood,
    ],
)
def test_what_a_guide_observes_has_the_gradient_of_its_density_and_no_score_function(loss, weight):
    hints = torch.tensor([1.0, 0.0, 1.0])

    def guide(x, y):
        logit = pyro.param("logit", torch.tensor(0.3))
        pyro.sample("w", dist.Normal(0.3, 1.0))
        infer = {"is_auxiliary": True}
        law = dist.Bernoulli(logits=logit).expand([3]).to_event(1)
        pyro.sample("hint", law, obs=hints, infer=infer)

    options = {"strict_enumeration_warning": False, "max_plate_nesting": 1}
    objective = loss(kl_weight=weight, **options)
    _, grads = loss_and_grads(objective, Case(conjugate, guide, (X, Y)))
    # The loss has weight * log q(hints), whose derivative is that of the log-density.
    expected = weight * (hints - torch.tensor(0.3).sigmoid()).sum()
    assert grads["logit"].item() == pytest.approx(expected.item(), rel=1e-10)
    assert "score function" not in str(explain(objective, conjugate, guide, X, Y))
