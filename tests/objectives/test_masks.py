"""Masked data may be anything, and other broken data are loud."""

import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal

from pyro_ibvi.objectives.expected_log_likelihood import TraceExpectedLogLikelihood
from tests.objectives.zoo import (
    PAIRS,
    Case,
    X,
    assert_same,
    built,
    line,
    loss_and_grads,
    no_value_checks,
)

pytestmark = pytest.mark.usefixtures("double")


def masked_by_poutine(x, y, keep):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)), poutine.mask(mask=keep):
        pyro.sample("y", dist.Normal(w * x, 1.0), obs=y)


def masked_distribution(x, y, keep):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(w * x, 1.0).mask(keep), obs=y)


def masked_inside_the_event(x, y, keep):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(w * x, 1.0).mask(keep).to_event(1), obs=y)


def masked_observation(x, y, keep):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(w * x, 1.0), obs=y, obs_mask=keep)


MASKED = [masked_by_poutine, masked_distribution, masked_inside_the_event, masked_observation]


@pytest.mark.parametrize("model", MASKED)
@pytest.mark.parametrize("estimator", ["trace", "graph", "mean_field"])
@pytest.mark.filterwarnings("ignore:The latent sites .* are missing data")
def test_masked_nan_is_harmless(model, estimator):
    keep = torch.tensor([True, False, True, False])
    y = torch.where(keep, X, torch.nan)
    loss = PAIRS[estimator][0]()
    case = built(model, X, X, keep)
    expected = loss_and_grads(loss, case)
    assert_same(loss_and_grads(loss, case._replace(args=(X, y, keep))), expected, exact=True)
    assert all(grad.isfinite().all() for grad in expected[1].values())


def test_masked_nan_breaks_the_gradient_without_care():
    keep = torch.tensor([True, False, True, False])
    case = built(masked_by_poutine, X, X, keep)
    case = case._replace(args=(X, torch.where(keep, X, torch.nan), keep))
    with pyro.validation_enabled(False):
        _, grads = loss_and_grads(Trace_ELBO(), case)  # and Pyro says nothing
    assert grads["AutoNormal.locs.w"].isnan()


def two(w):
    return torch.stack([w, -w], -1)


def mixture(components):
    return dist.MixtureSameFamily(dist.Categorical(torch.ones(4, 2)), components)


@pytest.mark.parametrize(
    ("fn", "bad"),
    [
        (lambda w: dist.Categorical(logits=torch.stack([w, -w, 0 * w], -1)), -100),
        (lambda w: dist.Bernoulli(logits=w), math.nan),
        (lambda w: dist.Poisson(w.exp()), math.nan),
        (lambda w: dist.Binomial(5, logits=w), -1.0),
        (lambda w: dist.Beta(w.exp(), 1.0), math.nan),
        (lambda w: dist.Gamma(w.exp(), 1.0), math.nan),
        (lambda w: dist.Uniform(-5 - w.exp(), 6.0), math.nan),
        (lambda w: dist.OneHotCategorical(logits=torch.stack([w, -w], -1)), math.nan),
        (lambda w: dist.Multinomial(4, logits=torch.stack([w, -w], -1)), math.nan),
        (lambda w: dist.DirichletMultinomial(torch.stack([w.exp()] * 3, -1), 4), math.nan),
        (lambda w: dist.DirichletMultinomial(torch.stack([w.exp()] * 4, -1), 4), math.nan),
        (lambda w: dist.Dirichlet(torch.stack([w.exp(), w.exp()], -1)), math.nan),
        (lambda w: dist.MultivariateNormal(w.unsqueeze(-1), torch.eye(1)), math.nan),
        (lambda w: mixture(dist.Normal(two(w), 1.0)), math.nan),
        (lambda w: mixture(dist.Gamma(two(w).exp(), 1.0)), math.nan),
        (lambda w: mixture(dist.Poisson(two(w).exp())), math.nan),
        (lambda w: mixture(dist.Dirichlet(two(two(w)).exp())), math.nan),
    ],
)
def test_masked_values_of_every_support_are_harmless(fn, bad):
    keep = torch.tensor([True, False, True, False])

    def model(y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 4), poutine.mask(mask=keep):
            pyro.sample("y", fn(w.expand(4)), obs=y)

    good = fn(torch.zeros(4)).sample()
    case = built(model, good)
    loss = TraceExpectedLogLikelihood()
    expected = loss_and_grads(loss, case)
    spoiled = good.clone()
    spoiled[~keep] = bad
    actual = loss_and_grads(loss, case._replace(args=(spoiled,)))
    assert_same(actual, expected, exact=True)
    assert all(grad.isfinite().all() for grad in actual[1].values())


@pytest.mark.parametrize("num_classes", [3, 4])
def test_masked_counts_whose_totals_differ_are_harmless(num_classes):
    keep, totals = torch.tensor([True, False, True, False]), torch.tensor([2.0, 5.0, 3.0, 4.0])
    counts = torch.zeros(4, num_classes)
    counts[:, 1] = totals

    def model(y):
        shift = pyro.sample("w", dist.Normal(0.0, 1.0)) * torch.arange(num_classes)
        with pyro.plate("data", 4), poutine.mask(mask=keep):
            law = dist.DirichletMultinomial(shift.exp().expand(4, -1), totals, is_sparse=False)
            pyro.sample("y", law, obs=y)

    case = built(model, counts)
    expected = loss_and_grads(TraceExpectedLogLikelihood(), case)
    spoiled = counts.masked_fill(~keep[:, None], math.nan)
    actual = loss_and_grads(TraceExpectedLogLikelihood(), case._replace(args=(spoiled,)))
    assert_same(actual, expected, exact=True)
    assert all(grad.isfinite().all() for grad in actual[1].values())


def test_nan_that_is_not_masked_is_loud():
    case = built(line, X, X)._replace(args=(X, X * torch.nan))
    with pytest.raises(ValueError, match=r"log_prob at site 'y'[\s\S]*Expected value argument"):
        loss_and_grads(TraceExpectedLogLikelihood(), case)
    with pyro.validation_enabled(False), pytest.warns(UserWarning, match="NaN: loss"):
        assert math.isnan(loss_and_grads(TraceExpectedLogLikelihood(), case)[0])
    with no_value_checks(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loss_and_grads(TraceExpectedLogLikelihood(), case)
    messages = [str(warning.message) for warning in caught]
    assert messages[0] == "Encountered NaN: log_prob_sum at site 'y'"
    assert messages[-1] == "Encountered NaN: loss"


def test_everything_masked_gives_zero():
    keep = torch.zeros(4, dtype=torch.bool)
    case = built(masked_by_poutine, X, X, keep)
    value, grads = loss_and_grads(TraceExpectedLogLikelihood(reduction="mean"), case)
    assert value == 0.0
    assert all((grad == 0).all() for grad in grads.values())


def test_every_mask_of_a_distribution_counts():
    a, b = torch.tensor([True, True, False, True]), torch.tensor([True, False, False, True])

    def model(x, y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 4), poutine.mask(mask=torch.tensor([True, True, True, False])):
            pyro.sample("y", dist.Normal(w * x, 1.0).mask(b).mask(True).mask(a), obs=y)

    case = built(model, X, X)
    seen = built(line, X[:1], X[:1])  # what a, b and the handler leave
    mean = loss_and_grads(TraceExpectedLogLikelihood(reduction="mean"), case)
    assert_same(mean, loss_and_grads(TraceExpectedLogLikelihood(), seen))


def test_an_event_that_a_mask_leaves_nothing_of_is_no_observation():
    """As the steps after the end of a sequence are in a batch of several."""
    lengths, seen = torch.tensor([2, 4, 3]), torch.arange(4) < torch.tensor([[2], [4], [3]])

    def model(y, cells):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("sequences", 3, dim=-1):
            for t in pyro.markov(range(4)):
                law = dist.Normal(w, 1.0).expand([3, 2]).mask(cells[:, t])
                pyro.sample(f"y_{t}", law.to_event(1), obs=y[:, t])

    y, guide = torch.randn(3, 4, 2), AutoNormal(model)
    for of_step in ([True, True], [True, False]):  # a step of which a part is missing is one
        cells = seen.unsqueeze(-1) & torch.tensor(of_step)
        guide(y, cells)
        case = Case(model, guide, (y, cells))
        total = loss_and_grads(TraceExpectedLogLikelihood(), case)
        mean = loss_and_grads(TraceExpectedLogLikelihood(reduction="mean"), case)
        assert_same(mean, total, factor=1 / lengths.sum().item())


def test_a_mask_below_a_transform_hides_no_jacobian():
    keep = torch.tensor([True, False, True, False])
    y, scale = X.exp(), torch.tensor(0.7)

    def model(y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        fn = dist.Normal(w, 1.0).expand([4]).mask(keep)
        steps = [dist.transforms.AffineTransform(0.0, scale), dist.transforms.ExpTransform()]
        with pyro.plate("data", 4):
            pyro.sample("y", dist.TransformedDistribution(fn, steps), obs=y)

    case = built(model, y)
    pyro.set_rng_seed(7)
    w = poutine.trace(case.guide).get_trace(y).nodes["w"]["value"].item()
    normal = torch.distributions.Normal(w, 1.0).log_prob(y.log() / scale)
    log_prob = normal[keep].sum() - (y * scale).log().sum()
    value, _ = loss_and_grads(TraceExpectedLogLikelihood(), case)
    assert value == pytest.approx(-log_prob.item(), rel=1e-12)


def one_number(y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(w, 1.0), obs=y)


@pytest.mark.parametrize("estimator", ["trace", "graph", "mean_field"])
@pytest.mark.parametrize("y", [1.5, np.float64(1.5), np.full(3, 1.5)])
def test_data_that_are_no_tensors_get_the_message_of_pyro(estimator, y):
    for options in ({}, {"kl_weight": 0.5}, {"reduction": "mean"}, {"kl_weight": 1.0}):
        case = built(one_number, torch.tensor(1.5))._replace(args=(y,))
        with pytest.raises(ValueError, match=r"log_prob at site 'y'[\s\S]*must be a Tensor"):
            loss_and_grads(PAIRS[estimator][0](**options), case)


@pytest.mark.parametrize("estimator", ["trace", "graph", "mean_field"])
def test_a_number_is_an_observation_without_validation(estimator):
    ours, pyros, options = PAIRS[estimator]
    case = built(one_number, torch.tensor(1.5))
    number = case._replace(args=(1.5,))
    with pyro.validation_enabled(False):
        full = loss_and_grads(pyros(**options), number)
        assert_same(loss_and_grads(ours(kl_weight=1.0), number), full, exact=True)
        assert_same(loss_and_grads(ours(kl_weight=1.0, reduction="mean"), number), full)
        for reduction in ("sum", "mean"):
            expected = loss_and_grads(ours(reduction=reduction), case)
            assert_same(loss_and_grads(ours(reduction=reduction), number), expected)
        masked = number._replace(model=poutine.mask(one_number, torch.tensor(False)))
        assert loss_and_grads(ours(reduction="mean"), masked)[0] == 0.0
