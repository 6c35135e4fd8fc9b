"""What `TraceEnumExpectedLogLikelihood` says of enumerated sites, beside Bayes' rule by hand."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_ibvi as ibvi
from pyro_ibvi.objectives.variants import TraceEnumExpectedLogLikelihood

pytestmark = pytest.mark.usefixtures("double")

Y = torch.tensor([-1.0, 0.3, 1.0])
W = torch.tensor([-0.2, 0.1, 0.4])  # where the guide puts the latent whose prior k chooses

OPTIONS = [
    {},
    {"reduction": "mean"},
    {"kl_weight": 0.5},
    {"kl_weight": 0.5, "reduction": "mean"},
    {"keep_kl": ["w"]},
    {"factors": "drop"},
    {"kl_weight": 1},
]


def model(y):
    with pyro.plate("data", len(y)):
        k = pyro.sample("k", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        w = pyro.sample("w", dist.Normal(2.0 * k - 1.0, 0.8))
        pyro.factor("hint", 0.5 * k)
        pyro.sample("y", dist.Normal(w + k, 1.0), obs=y)
    return k


def guide(y):
    with pyro.plate("data", len(y)):
        pyro.sample("w", dist.Delta(pyro.param("loc", W.clone())))


def posterior():
    """The probability of k = 1 given w and y."""
    k = torch.tensor([[0.0], [1.0]])
    terms = dist.Bernoulli(0.3).log_prob(k) + dist.Normal(2 * k - 1, 0.8).log_prob(W)
    terms = terms + 0.5 * k + dist.Normal(W + k, 1.0).log_prob(Y)
    return terms.softmax(0)[1]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_marginals_of_enumerated_sites_are_those_of_the_model(options):
    loss = TraceEnumExpectedLogLikelihood(**options)
    actual = loss.compute_marginals(model, guide, Y)["k"].probs
    torch.testing.assert_close(actual, posterior())


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_draws_of_enumerated_sites_are_those_of_the_model(options):
    loss = TraceEnumExpectedLogLikelihood(**options)
    num_draws = 500
    draws = torch.stack([loss.sample_posterior(model, guide, Y) for _ in range(num_draws)])
    expected = posterior()
    error = (expected * (1 - expected) / num_draws).sqrt()
    assert ((draws.mean(0) - expected).abs() < 4 * error).all()


def test_marginals_ask_no_density_of_a_degenerate_guide():
    def mixture(y):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with pyro.plate("data", len(y)):
            k = pyro.sample("k", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
            pyro.sample("y", dist.Normal(loc[k.long()], 1.0), obs=y)

    without_k = pyro.poutine.block(mixture, hide=["k"])
    low_rank = ibvi.AutoMuPNormal(without_k, covariance=ibvi.LowRank(1))
    low_rank.initialize(Y)
    pyro.set_rng_seed(0)
    loss = TraceEnumExpectedLogLikelihood(max_plate_nesting=1)
    actual = loss.compute_marginals(mixture, low_rank, Y)["k"].probs
    pyro.set_rng_seed(0)
    loc = low_rank(Y)["loc"][:, None]
    terms = dist.Normal(loc, 1.0).log_prob(Y) + torch.tensor([[0.7], [0.3]]).log()
    torch.testing.assert_close(actual, terms.softmax(0)[1])
