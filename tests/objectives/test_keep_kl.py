"""Which latents keep their KL divergence in full."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoGuideList

from pyro_ibvi.objectives.expected_log_likelihood import TraceExpectedLogLikelihood
from tests.objectives.zoo import Case, X, built, fresh_pyro, loss_and_grads

pytestmark = pytest.mark.usefixtures(fresh_pyro.__name__)


def two_latents(x, y):
    a = pyro.sample("a", dist.LogNormal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(a * x + b, 1.0), obs=y)


@pytest.mark.parametrize("keep", ["a", ["a"], ["a*"], lambda site: site["name"] == "a"])
def test_keep_kl_keeps_the_whole_kl_of_a_site(keep):
    case = built(two_latents, X, X)
    loss, _ = loss_and_grads(TraceExpectedLogLikelihood(keep_kl=keep), case)
    free, _ = loss_and_grads(TraceExpectedLogLikelihood(), case)
    pyro.set_rng_seed(7)
    guide_trace = poutine.trace(case.guide).get_trace(*case.args)
    guide_trace.compute_log_prob()
    nodes = guide_trace.nodes
    kl = nodes["a_unconstrained"]["log_prob_sum"] + nodes["a"]["log_prob_sum"]
    kl = kl - dist.LogNormal(0.0, 1.0).log_prob(nodes["a"]["value"])
    assert loss == pytest.approx(free + kl.item(), rel=1e-12)
    assert abs(kl.item()) > 1e-3


def test_keep_kl_may_change_between_steps():
    case = built(two_latents, X, X)
    loss = TraceExpectedLogLikelihood()
    free = loss_and_grads(loss, case)[0]
    loss.keep_kl = ["a"]
    kept = loss_and_grads(TraceExpectedLogLikelihood(keep_kl="a"), case)[0]
    assert loss_and_grads(loss, case)[0] == kept != free
    loss.keep_kl = "c"
    with pytest.raises(ValueError, match="keep_kl names 'c'"):
        loss_and_grads(loss, case)


def test_keep_kl_must_fit_a_site():
    case = built(two_latents, X, X)
    with pytest.raises(ValueError, match=r"keep_kl names 'c', which fits no latent.*'a'"):
        loss_and_grads(TraceExpectedLogLikelihood(keep_kl=["a", "c"]), case)


def test_keep_kl_of_a_flat_guide_needs_its_auxiliary_site():
    case = built(two_latents, X, X, guide=AutoDiagonalNormal)
    half = TraceExpectedLogLikelihood(keep_kl="a")
    with torch.no_grad():
        half.loss(case.model, case.guide, *case.args)  # nothing can be seen without a graph
    with pytest.raises(ValueError, match=r"computes from the auxiliary site.*Name them too"):
        loss_and_grads(half, case)
    keep = ["a", "b", "_AutoDiagonalNormal_latent"]
    kept = loss_and_grads(TraceExpectedLogLikelihood(keep_kl=keep), case)
    assert kept[0] == pytest.approx(loss_and_grads(Trace_ELBO(), case)[0], rel=1e-12)


def test_keep_kl_beside_a_flat_guide():
    guide = AutoGuideList(two_latents)
    guide.append(AutoDelta(poutine.block(two_latents, hide=["b"])))
    guide.append(AutoDiagonalNormal(poutine.block(two_latents, hide=["a"])))
    guide(X, X)
    case = Case(two_latents, guide, (X, X))
    free = loss_and_grads(TraceExpectedLogLikelihood(), case)[0]
    kept = loss_and_grads(TraceExpectedLogLikelihood(keep_kl="a"), case)[0]
    prior = dist.LogNormal(0.0, 1.0).log_prob(guide.median()["a"]).item()
    assert kept == pytest.approx(free - prior, rel=1e-12)
