"""Pyro's reparametrizers under the objectives, beside the same models written by hand."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, reparam
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.initialization import init_to_sample

from pyro_ibvi import AutoMuPNormal
from pyro_ibvi.diagnostics.objective_report import explain
from pyro_ibvi.objectives.expected_log_likelihood import TraceExpectedLogLikelihood
from tests.objectives.test_sites import LATENTS, PERMUTE, STABLE, Y, _latent
from tests.objectives.zoo import Case, assert_same, loss_and_grads

pytestmark = [
    pytest.mark.usefixtures("double"),
    pytest.mark.filterwarnings("ignore:At pyro.sample.*does not commute"),
    pytest.mark.filterwarnings("ignore:Found auxiliary vars in the model"),
]
NAMES = [name for name in LATENTS if name != "auto"]


def _stable(values):
    stable = dist.Stable(STABLE.stability, STABLE.skew, STABLE.scale)
    x = dist.stable._standard_stable(
        stable.stability, stable.skew, values["x_uniform"], values["x_exponential"], coords="S0"
    )
    return stable.loc + stable.scale * x


def _gumbel_softmax(values):
    gumbel = -(-values["x_uniform"].log()).log()
    return (gumbel / 0.5).softmax(-1)


def _cosine(values):
    n = torch.arange(4)
    basis = (math.pi * (n[:, None] + 0.5) * n / 4).cos() * math.sqrt(0.5)
    basis[:, 0] = 0.5
    return basis.to(values["x_dct"]) @ values["x_dct"]


#: The value of x by hand, from the draws that take its place.
BY_HAND = {
    "loc-scale": lambda v: v["x_decentered"],
    "transform": lambda v: v["x_base"].exp(),
    "split": lambda v: torch.cat([v["x_split_0"], v["x_split_1"]]),
    "discrete-cosine": _cosine,
    "unit-jacobian": lambda v: v["x_transformed"][PERMUTE.inv_permutation],
    "latent-stable": _stable,
    "minimal": _stable,
    "projected-normal": lambda v: v["x_normal"] / v["x_normal"].norm(),
    "gumbel-softmax": _gumbel_softmax,
}


def _case(name):
    fn, wrap = LATENTS[name]
    model = wrap(_latent(fn))
    if name == "conjugate":
        return Case(model, lambda y: None, (Y,))
    guide = AutoNormal(model, init_scale=0.3)
    guide(Y)
    return Case(model, guide, (Y,))


@pytest.mark.parametrize("name", NAMES)
def test_only_the_data_are_likelihood(name):
    case = _case(name)
    pyro.set_rng_seed(7)
    guide_trace = poutine.trace(case.guide).get_trace(Y)
    nodes = poutine.trace(poutine.replay(case.model, guide_trace)).get_trace(Y).nodes
    x = nodes["x"]["value"]
    if name in BY_HAND:
        draws = {n: site["value"] for n, site in nodes.items() if site["type"] == "sample"}
        torch.testing.assert_close(x, BY_HAND[name](draws))
    expected = -dist.Normal(x.sum(), 1.0).log_prob(Y).sum().item()
    for with_grad in (True, False):
        with torch.set_grad_enabled(with_grad):
            loss = TraceExpectedLogLikelihood()
            mean = TraceExpectedLogLikelihood(reduction="mean")
            for objective, size in ((loss, 1), (mean, len(Y))):
                pyro.set_rng_seed(7)
                value = objective.loss(case.model, case.guide, Y)
                assert value == pytest.approx(expected / size, rel=1e-5)


@pytest.mark.parametrize("weight", [0.3, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_priors_that_stand_at_computed_sites_have_the_weight_of_the_kl(name, weight):
    case = _case(name)
    if name == "neutra":  # its density has a shape that Pyro's validation refuses
        pyro.enable_validation(False)
    free = loss_and_grads(TraceExpectedLogLikelihood(), case)
    full = loss_and_grads(Trace_ELBO(), case)
    ours = loss_and_grads(TraceExpectedLogLikelihood(kl_weight=weight), case)
    assert ours[0] == pytest.approx((1 - weight) * free[0] + weight * full[0], rel=1e-5)
    for key, gradient in ours[1].items():
        expected = (1 - weight) * free[1][key] + weight * full[1][key]
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)
    if weight == 1.0:
        assert_same(ours, full, exact=True)


def hierarchy(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    with pyro.plate("field", len(y)):
        effect = pyro.sample("effect", dist.Normal(mean, spread))
        pyro.sample("y", dist.Normal(effect, 0.5), obs=y)


def hierarchy_by_hand(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    with pyro.plate("field", len(y)):
        unit = pyro.sample("effect_decentered", dist.Normal(0.0, 1.0))
        effect = pyro.deterministic("effect", mean + spread * unit)
        pyro.sample("y", dist.Normal(effect, 0.5), obs=y)


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_decentered_hierarchy_is_the_one_by_hand(weight, reduction):
    results = []
    config = {"effect": reparam.LocScaleReparam(0.0)}
    for model in (hierarchy_by_hand, poutine.reparam(hierarchy, config=config)):
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        guide = AutoMuPNormal(model, init_loc_fn=init_to_sample)
        guide.initialize(Y)
        loss = TraceExpectedLogLikelihood(kl_weight=weight, reduction=reduction, allow_local=True)
        results.append(loss_and_grads(loss, Case(model, guide, (Y,))))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-12)
    for (name, gradient), (other, expected) in zip(
        sorted(results[0][1].items()), sorted(results[1][1].items()), strict=True
    ):
        assert name == other
        torch.testing.assert_close(gradient, expected)


def test_a_learned_centering_trains_with_the_objective():
    model = poutine.reparam(hierarchy, config={"effect": reparam.LocScaleReparam()})
    guide = AutoMuPNormal(model)
    guide.initialize(Y)
    loss = TraceExpectedLogLikelihood(allow_local=True)
    _, gradients = loss_and_grads(loss, Case(model, guide, (Y,)))
    assert gradients["effect_centered"].abs().max() > 0


def test_keeping_a_kl_that_is_spread_over_sites_takes_them_all():
    fn, _ = LATENTS["split"]
    model = poutine.reparam(_latent(fn), config={"x": reparam.SplitReparam([1, 3], -1)})
    guide = AutoNormal(model)
    guide(Y)
    case = Case(model, guide, (Y,))
    full = loss_and_grads(Trace_ELBO(), case)
    kept = loss_and_grads(TraceExpectedLogLikelihood(keep_kl=["x", "x_split_*"]), case)
    assert_same(kept, full)
    for half in (["x"], ["x_split_*"], ["x", "x_split_0"]):
        loss = TraceExpectedLogLikelihood(keep_kl=half)
        with pytest.raises(ValueError, match=r"'x_split_1'\] while the prior stands at 'x'"):
            loss_and_grads(loss, case)


def test_a_computed_site_without_a_density_cannot_be_kept():
    model = poutine.reparam(hierarchy, config={"effect": reparam.LocScaleReparam(0.0)})
    guide = AutoNormal(model)
    guide(Y)
    loss = TraceExpectedLogLikelihood(keep_kl=["effect"])
    message = r"names 'effect', whose value the model computes.*'effect_decentered'"
    with pytest.raises(ValueError, match=message):
        loss_and_grads(loss, Case(model, guide, (Y,)))


def test_the_report_names_computed_sites():
    model = poutine.reparam(hierarchy, config={"effect": reparam.LocScaleReparam(0.0)})
    guide = AutoNormal(model)
    guide(Y)
    report = explain(TraceExpectedLogLikelihood(allow_local=True), model, guide, Y)
    (row,) = [site for site in report.sites if site.name == "effect"]
    assert (row.kind, row.weight, row.why) == ("deterministic", 0.0, "computed from other sites")
    assert report.unmoved == ()
