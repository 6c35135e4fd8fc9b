"""Where the objective is loud, and where it is silent."""

import ast
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal, init_to_feasible
from torch.distributions import constraints

from pyro_ibvi import AutoMuPNormal
from pyro_ibvi.diagnostics.objective_report import explain
from pyro_ibvi.objectives.expected_log_likelihood import TraceExpectedLogLikelihood
from pyro_ibvi.objectives.variants import (
    TraceEnumExpectedLogLikelihood,
)
from tests.objectives.zoo import (
    PAIRS,
    Case,
    X,
    assert_same,
    built,
    line,
    loss_and_grads,
    make_case,
)

pytestmark = pytest.mark.usefixtures("double")


def test_a_guide_built_without_targets():
    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(w * x, 1.0), obs=y)

    guide = AutoNormal(model)
    guide(X)
    with pytest.raises(ValueError, match=r"guide draws \['y'\], which the model observes"):
        TraceExpectedLogLikelihood().loss(model, guide, X, X)
    assert (
        "guide draws ['y']" in explain(TraceExpectedLogLikelihood(), model, guide, X, X).errors[0]
    )


def test_a_guide_of_the_model_before_it_was_conditioned():
    def model():
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(X)):
            pyro.sample("y", dist.Normal(w * X, 1.0))

    conditioned = pyro.condition(model, data={"y": X})
    remedy = r"guide of what is trained: model = pyro\.condition\(model, data=\.\.\.\)"
    with pytest.raises(ValueError, match=remedy):
        TraceExpectedLogLikelihood().loss(conditioned, AutoNormal(model))
    assert TraceExpectedLogLikelihood().loss(conditioned, AutoNormal(conditioned)) > 0


def test_a_start_at_wide_priors_that_overflows_names_the_start_that_does_not():
    counts = torch.tensor([0.0, 2.0, 1.0, 3.0])

    def model():
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 400.0).to_event(1))
        with pyro.plate("data", 4):
            pyro.sample("y", dist.Poisson((w[0] + w[1] * X[:4]).exp()), obs=counts)

    def train(guide, num_steps):
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), TraceExpectedLogLikelihood())
        for _ in range(num_steps):
            svi.step()

    pyro.set_rng_seed(0)
    message = r"draws of \['w'\] are not finite.*init_scale=0\.1, init_loc_fn=init_to_feasible"
    with pytest.raises(ValueError, match=message):
        train(AutoMuPNormal(model), 100)
    narrow = AutoMuPNormal(model, init_scale=1e-3, init_loc_fn=init_to_feasible)
    train(narrow, 500)
    rate = (narrow.loc("w")[0] + narrow.loc("w")[1] * X[:4]).exp()
    # At the maximum of the likelihood the residuals are orthogonal to the inputs.
    torch.testing.assert_close((rate - counts).sum(), torch.zeros(()), atol=0.1, rtol=0.0)


def test_a_model_without_observations():
    guide = AutoNormal(poutine.block(line, hide=["y"]))
    mean = TraceExpectedLogLikelihood(reduction="mean", kl_weight=0.5)
    with pyro.validation_enabled(False):
        with pytest.raises(ValueError, match="The model observed nothing"):
            TraceExpectedLogLikelihood().loss(line, guide, X, None)
        with pytest.raises(ValueError, match="reduction='mean' divides by the number of obs"):
            mean.loss(line, guide, X, None)


def vae(x, subsample=None):
    decoder = pyro.param("decoder", torch.tensor(0.5))
    size = 20 if subsample is not None else len(x)
    with pyro.plate("data", size, subsample=subsample):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(decoder * z, 1.0), obs=x)


def vae_guide(x, subsample=None):
    encoder = pyro.param("encoder", torch.tensor(0.2))
    size = 20 if subsample is not None else len(x)
    with pyro.plate("data", size, subsample=subsample):
        pyro.sample("z", dist.Normal(encoder * x, 0.5))


def test_a_local_latent_is_refused():
    index = torch.arange(4)
    step = TraceExpectedLogLikelihood().loss
    message = r"'z' is local: it lies in the subsampled plate 'data' \(4 of 20\).*keep_kl=\['z'\]"
    with pytest.raises(ValueError, match=message):
        step(vae, vae_guide, X, index)
    weighted = TraceExpectedLogLikelihood(kl_weight=0.5)
    weighted.loss(vae, vae_guide, X, index)  # its KL is there, for half its worth
    weighted.kl_weight = 0.0
    with pytest.raises(ValueError, match=message):
        weighted.loss(vae, vae_guide, X, index)
    report = explain(TraceExpectedLogLikelihood(), vae, vae_guide, X, index)
    assert "'z' is local" in report.errors[0]
    assert "subsampled plate 'data'" in str(report)


def test_all_local_latents_are_named_at_once():
    """A loop has many, and one error for each would come in turn."""

    def model(x, size):
        with pyro.plate("data", len(x), size) as rows:
            steps = [pyro.sample(f"z[{t}]", dist.Normal(0.0, 1.0)) for t in range(6)]
            shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(sum(steps) + shift, 1.0), obs=x[rows])

    guide = AutoNormal(model, create_plates=lambda x, size: pyro.plate("data", len(x), size))
    guide(X, 2)
    with pytest.raises(ValueError, match=r"'z\[0\]' is local") as refusal:
        TraceExpectedLogLikelihood().loss(model, guide, X, 2)
    keep = ast.literal_eval(re.search(r"keep_kl=(\[.*?\]), or", str(refusal.value)).group(1))
    assert keep == ["z[[]*]", "shift"]
    case = Case(model, guide, (X, 2))
    kept = loss_and_grads(TraceExpectedLogLikelihood(keep_kl=keep), case)
    assert_same(kept, loss_and_grads(Trace_ELBO(), case))


@pytest.mark.parametrize("num_rows", [4, 20])
def test_the_sites_to_keep_are_named_with_the_draw_that_they_share(num_rows):
    class Grouped(EasyGuide):
        def guide(self, x, subsample):
            self.map_estimate("level")
            local = self.group(match="loc|spread")
            with self.plate("data", 20, subsample=subsample):
                loc = pyro.param("mean", torch.zeros(20, *local.event_shape), event_dim=1)
                local.sample("both", dist.Normal(loc, 1.0).to_event(1))

    def model(x, subsample):
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 20, subsample=subsample):
            loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
            spread = pyro.sample("spread", dist.LogNormal(0.0, 1.0))
            pyro.sample("x", dist.Normal(level + loc, spread), obs=x)

    args = torch.ones(num_rows), torch.arange(num_rows)
    guide, loss = Grouped(model), TraceExpectedLogLikelihood()
    is_part = num_rows < 20
    text = "has one value per observation|it lies in the subsampled plate"
    said = (
        pytest.raises(ValueError, match=text) if is_part else pytest.warns(UserWarning, match=text)
    )
    with said as caught:
        loss.loss_and_grads(model, guide, *args)
    text = str(caught.value if is_part else caught[0].message)
    keep = ast.literal_eval(re.search(r"keep_kl=(\[.*?\])", text).group(1))
    assert keep == ["loc", "spread", "both"]
    pyro.set_rng_seed(0)
    kept = TraceExpectedLogLikelihood(keep_kl=keep).loss(model, guide, *args)
    pyro.set_rng_seed(0)
    full = Trace_ELBO().loss(model, guide, *args)
    level = poutine.trace(guide).get_trace(*args).nodes["level"]["value"]
    prior = dist.Normal(0.0, 1.0).log_prob(level)
    assert kept == pytest.approx((full + prior).item(), rel=1e-10)


def test_a_local_latent_is_accepted_on_request():
    index = torch.arange(4)
    case = Case(vae, vae_guide, (X, index))
    full = loss_and_grads(Trace_ELBO(), case)
    kept = loss_and_grads(TraceExpectedLogLikelihood(keep_kl=["z"]), case)
    assert_same(kept, full)
    one = loss_and_grads(TraceExpectedLogLikelihood(kl_weight=1), case)
    assert_same(one, full, exact=True)
    free = loss_and_grads(TraceExpectedLogLikelihood(allow_local=True), case)
    assert free[0] < full[0]


def test_a_local_latent_without_subsampling_is_warned_of():
    loss = TraceExpectedLogLikelihood()
    with pytest.warns(UserWarning, match=r"\['z'\] has one value.*keep_kl=\['z'\]"):
        loss_and_grads(loss, Case(vae, vae_guide, (X,)))
    loss_and_grads(loss, Case(vae, vae_guide, (X,)))  # and only once
    loss_and_grads(TraceExpectedLogLikelihood(keep_kl="z"), Case(vae, vae_guide, (X,)))
    assert explain(TraceExpectedLogLikelihood(), vae, vae_guide, X).local == ("z",)


def centered(y):
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    slab = pyro.param("slab", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("groups", y.shape[0], dim=-2):
        theta = pyro.sample("theta", dist.Normal(0.0, tau * slab))
        with pyro.plate("data", y.shape[1], dim=-1):
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)


def non_centered(y):
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    with pyro.plate("groups", y.shape[0], dim=-2):
        eps = pyro.sample("eps", dist.Normal(0.0, 1.0))
        with pyro.plate("data", y.shape[1], dim=-1):
            pyro.sample("y", dist.Normal(tau * eps, 1.0), obs=y)


@pytest.mark.parametrize("estimator", PAIRS)
def test_a_centered_hierarchy_is_warned_of_once(estimator):
    ours, _, options = PAIRS[estimator]
    case = built(centered, torch.randn(2, 3))
    loss = ours(**options)
    message = (
        r"latent sites \['tau'\] and the parameters \['slab', 'AutoNormal.locs.tau'.*"
        r"keep_kl=\['tau', 'theta'\]"
    )
    with pytest.warns(UserWarning, match=message) as caught:
        _, grads = loss_and_grads(loss, case)
    assert len(caught) == 1
    assert grads["AutoNormal.locs.tau"] == 0
    loss_and_grads(loss, case)
    kept = ours(keep_kl=["tau", "theta"], **options)
    _, grads = loss_and_grads(kept, case)
    assert grads["AutoNormal.locs.tau"] != 0
    assert grads["slab"] != 0


@pytest.mark.parametrize("estimator", PAIRS)
def test_models_that_suit_the_objective_are_silent(estimator):
    ours, _, options = PAIRS[estimator]
    case = built(non_centered, torch.randn(2, 3))
    loss = ours(**options)
    loss_and_grads(loss, case)
    loss.loss(case.model, case.guide, *case.args)
    assert explain(TraceExpectedLogLikelihood(), *case[:2], *case.args).unmoved == ()


def test_the_first_step_disturbs_nothing():
    """The report reads what the step has computed: same draws, same parameters."""
    case = built(centered, torch.randn(2, 3))
    names = set(pyro.get_param_store().keys())
    loss = TraceExpectedLogLikelihood()
    with pytest.warns(UserWarning, match="cannot move"):
        first = loss_and_grads(loss, case)
    state = torch.get_rng_state()
    assert_same(loss_and_grads(loss, case), first, exact=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert set(pyro.get_param_store().keys()) == names


def test_check_leaves_the_random_state():
    case = built(centered, torch.randn(2, 3))
    state = torch.get_rng_state()
    report = explain(TraceExpectedLogLikelihood(), *case[:2], *case.args)
    assert torch.equal(torch.get_rng_state(), state)
    assert report.unmoved[0] == "tau"
    assert "reaches no term that is kept" in repr(report)
    kept = explain(TraceExpectedLogLikelihood(keep_kl="t*"), *case[:2], *case.args)
    assert kept.unmoved == ()
    assert "kept by keep_kl" in str(kept)


def test_check_of_an_enumerated_model():
    case = make_case("mixture")
    report = explain(TraceEnumExpectedLogLikelihood(), *case[:2], *case.args)
    assert report.unmoved == ()
    assert "summed out: a part of the likelihood" in str(report)
