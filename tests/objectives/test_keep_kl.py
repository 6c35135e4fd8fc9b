"""Which latents keep their KL divergence in full."""

import ast
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoGuideList, AutoStructured

from pyro_ibvi.objectives.expected_log_likelihood import TraceExpectedLogLikelihood
from tests.objectives.zoo import Case, X, assert_same, built, loss_and_grads

pytestmark = pytest.mark.usefixtures("double")


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


@pytest.mark.parametrize("kept", [["b"], ["a", "b"]])
def test_the_whole_kl_under_a_structured_guide(kept):
    normal, linear = {"a": "normal", "b": "normal"}, {"b": {"a": "linear"}}
    guide = AutoStructured(two_latents, conditionals=normal, dependencies=linear)
    guide(X, X)
    with torch.no_grad():
        for value in guide.parameters():
            value.uniform_(0.2, 0.9)
    case = Case(two_latents, guide, (X, X))
    loss, _ = loss_and_grads(TraceExpectedLogLikelihood(keep_kl=kept), case)
    free, _ = loss_and_grads(TraceExpectedLogLikelihood(), case)
    pyro.set_rng_seed(7)
    nodes = poutine.trace(guide).get_trace(X, X).nodes
    scales = {name: getattr(guide.scales, name) for name in kept}
    # A latent is its shift given the other, plus a standard normal draw times its scale.
    noise = {name: nodes[f"{name}_aux"]["value"] for name in kept}
    log_q = sum(dist.Normal(0.0, 1.0).log_prob(noise[n]) - scales[n].log() for n in kept)
    log_q = log_q - (nodes["a"]["value"].log() if "a" in kept else 0.0)
    priors = {"a": dist.LogNormal(0.0, 1.0), "b": dist.Normal(0.0, 1.0)}
    log_p = sum(priors[name].log_prob(nodes[name]["value"]) for name in kept)
    assert loss - free == pytest.approx((log_q - log_p).item(), rel=1e-10)


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


def test_all_latents_are_kept_also_where_there_are_none():
    def no_latent(x):
        center = pyro.param("center", torch.tensor(0.3))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(center, 1.0), obs=x)

    loss = TraceExpectedLogLikelihood(keep_kl="*").loss(no_latent, lambda x: None, X)
    assert loss == pytest.approx(-dist.Normal(0.3, 1.0).log_prob(X).sum().item(), rel=1e-12)
    with pytest.raises(ValueError, match="fits no latent site"):
        TraceExpectedLogLikelihood(keep_kl="encoder.*").loss(no_latent, lambda x: None, X)


def test_keep_kl_of_a_flat_guide_needs_its_auxiliary_site():
    case = built(two_latents, X, X, guide=AutoDiagonalNormal)
    half = TraceExpectedLogLikelihood(keep_kl="a")
    with torch.no_grad():
        half.loss(case.model, case.guide, *case.args)  # nothing can be seen without a graph
    with pytest.raises(ValueError, match=r"from the auxiliary site.*Name them too"):
        loss_and_grads(half, case)
    keep = ["a", "b", "_AutoDiagonalNormal_latent"]
    kept = loss_and_grads(TraceExpectedLogLikelihood(keep_kl=keep), case)
    assert kept[0] == pytest.approx(loss_and_grads(Trace_ELBO(), case)[0], rel=1e-12)
    assert_same(loss_and_grads(TraceExpectedLogLikelihood(keep_kl="*"), case), kept)


@pytest.mark.parametrize(
    "half",
    [
        ["a"],
        ["a", "b"],
        ["_AutoDiagonalNormal_latent"],
        ["a", "_AutoDiagonalNormal_latent"],
        lambda site: site["name"] == "b",
    ],
)
def test_the_remedy_for_a_flat_guide_is_the_whole_kl(half):
    """An entropy that is kept without each prior against it has no minimum."""
    case = built(two_latents, X, X, guide=AutoDiagonalNormal)
    with pytest.raises(ValueError, match="keeps a part of a KL") as refusal:
        loss_and_grads(TraceExpectedLogLikelihood(keep_kl=half), case)
    remedy = re.search(r"Name them too, keep_kl=(\[.*?\])", str(refusal.value)).group(1)
    names = ast.literal_eval(remedy)
    assert set(names) == {"a", "b", "_AutoDiagonalNormal_latent"}
    assert callable(half) or names[: len(half)] == half
    kept = loss_and_grads(TraceExpectedLogLikelihood(keep_kl=names), case)
    elbo = loss_and_grads(Trace_ELBO(), case)
    assert_same(kept, elbo)


def test_an_auxiliary_site_alone_is_no_kl():
    case = built(two_latents, X, X)
    with pytest.raises(ValueError, match=r"Name them too, keep_kl=\['a_unconstrained', 'a'\]"):
        loss_and_grads(TraceExpectedLogLikelihood(keep_kl="a_unconstrained"), case)


def normal_latents(x, y):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(a * x + b, 1.0), obs=y)


def one_after_the_other(x, y):
    loc = pyro.param("loc", torch.tensor([0.3, -0.2]))
    first = pyro.sample("first", dist.Normal(loc[0], 0.5), infer={"is_auxiliary": True})
    law = dist.Normal(loc[1] + first, 0.2)
    second = pyro.sample("second", law, infer={"is_auxiliary": True})
    pyro.sample("a", dist.Delta(first))
    pyro.sample("b", dist.Delta(second))


def test_a_latent_is_kept_without_those_that_are_drawn_given_it():
    case = Case(normal_latents, one_after_the_other, (X, X))
    free = loss_and_grads(TraceExpectedLogLikelihood(), case)[0]
    kept = loss_and_grads(TraceExpectedLogLikelihood(keep_kl=["a", "first"]), case)[0]
    draw = poutine.trace(one_after_the_other)
    pyro.set_rng_seed(7)
    a = draw.get_trace(X, X).nodes["a"]["value"].detach()
    kl = dist.Normal(0.3, 0.5).log_prob(a) - dist.Normal(0.0, 1.0).log_prob(a)
    assert kept == pytest.approx(free + kl.item(), rel=1e-12)
    whole = r"keep_kl=\['b', 'a', 'first', 'second'\]"
    with pytest.raises(ValueError, match=f"Name them too, {whole}"):
        loss_and_grads(TraceExpectedLogLikelihood(keep_kl="b"), case)
    with pytest.raises(
        ValueError, match=r"Name them too, keep_kl=\['b', 'first', 'second', 'a'\]"
    ):
        loss_and_grads(TraceExpectedLogLikelihood(keep_kl=["b", "first", "second"]), case)


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


def labelled(x, label):
    loc = pyro.param("decoder", torch.tensor(0.7))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(loc * z, 1.0), obs=x)


@pytest.mark.parametrize("has_rsample", [True, False])
def test_a_loss_in_the_guide_is_told_and_may_be_kept(has_rsample):
    """As semi-supervised autoencoders have it, whose classifier is a part of the guide."""
    label = (X > 0).to(X.dtype)

    def classified(x, label):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(pyro.param("encoder", torch.tensor(0.5)) * x, 1.0))
            logits = pyro.param("classifier", torch.tensor(0.3)) * z
            log_prob = dist.Bernoulli(logits=logits).log_prob(label)
            pyro.factor("labels", -2.0 * log_prob, has_rsample=has_rsample)

    case = Case(labelled, classified, (X, label))
    with pytest.warns(UserWarning, match=r"keep_kl=\['labels'\]"):
        free, free_grads = loss_and_grads(TraceExpectedLogLikelihood(allow_local=True), case)
    loss = TraceExpectedLogLikelihood(keep_kl="labels", allow_local=True)
    kept, grads = loss_and_grads(loss, case)
    pyro.set_rng_seed(7)
    z = poutine.trace(classified).get_trace(X, label).nodes["z"]["value"].detach()
    log_prob = dist.Bernoulli(logits=0.3 * z).log_prob(label)
    assert kept == pytest.approx(free - 2.0 * log_prob.sum().item(), rel=1e-12)
    gradient = -2.0 * ((label - torch.sigmoid(0.3 * z)) * z).sum().item()
    whole = loss_and_grads(TraceExpectedLogLikelihood(keep_kl="*"), case)
    elbo = loss_and_grads(Trace_ELBO(), case)
    assert whole[0] == pytest.approx(elbo[0], rel=1e-12)
    if has_rsample:  # else a score function is added
        assert grads["classifier"].item() == pytest.approx(gradient, rel=1e-12)
        assert free_grads["classifier"].item() == 0.0
        assert_same(whole, elbo)
