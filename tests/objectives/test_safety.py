"""Where the objective is loud, where it is silent, and what a step costs."""

import copy
import math
import pickle
import warnings
from contextlib import contextmanager

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoGuideList, AutoNormal
from torch.distributions import constraints
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_ibvi.diagnostics.objective_report import explain
from pyro_ibvi.objectives.annealing import KLAnnealing
from pyro_ibvi.objectives.expected_log_likelihood import TraceExpectedLogLikelihood
from pyro_ibvi.objectives.variants import (
    TraceEnumExpectedLogLikelihood,
    TraceMeanFieldExpectedLogLikelihood,
)
from tests.objectives.zoo import PAIRS, Case, assert_same, fresh_pyro, loss_and_grads, make_case

pytestmark = pytest.mark.usefixtures(fresh_pyro.__name__)
X = torch.linspace(-1.0, 1.0, 4, dtype=torch.float64)


def regression(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(w * x, 1.0), obs=y)


def built(model, *args, guide=AutoNormal):
    guide = guide(model)
    guide(*args)
    return Case(model, guide, args)


@contextmanager
def no_value_checks():
    """Pyro's validation without that of the distributions, which reads every value."""
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(True)


# -- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf, True, "1", None])
def test_kl_weight_must_be_a_finite_number(weight):
    sentence = r"kl_weight=.*: expected a (number, got|finite number of at least 0)"
    with pytest.raises((TypeError, ValueError), match=sentence):
        TraceExpectedLogLikelihood(kl_weight=weight)
    loss = TraceExpectedLogLikelihood()
    with pytest.raises((TypeError, ValueError), match=sentence):
        loss.kl_weight = weight
    assert loss.kl_weight == 0.0


def test_options_must_be_known():
    with pytest.raises(ValueError, match="reduction='batch': expected 'sum'"):
        TraceExpectedLogLikelihood(reduction="batch")
    with pytest.raises(ValueError, match="factors='keep': expected 'likelihood'"):
        TraceExpectedLogLikelihood(factors="keep")
    with pytest.raises(TypeError, match="keep_kl holds 3 of type int: expected site names"):
        TraceExpectedLogLikelihood(keep_kl=["w", 3])


@pytest.mark.parametrize("estimator", PAIRS)
def test_survives_pickle_and_copies(estimator):
    loss = PAIRS[estimator][0](kl_weight=0.2, keep_kl="w", reduction="mean")
    for other in (pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss)):
        assert (other.kl_weight, other.keep_kl, other.reduction) == (0.2, ("w",), "mean")


def test_annealing():
    schedule = KLAnnealing(2.0, 0.5, num_steps=10, delay=5, shape="cosine")
    assert [schedule(s) for s in (0, 5, 10, 15, 99)] == pytest.approx([2.0, 2.0, 1.25, 0.5, 0.5])
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    with pytest.raises(ValueError, match="stop=-1: expected a finite number of at least 0"):
        KLAnnealing(1.0, -1, num_steps=2)
    with pytest.raises(ValueError, match="num_steps=0, delay=0: expected at least 1 step"):
        KLAnnealing(1.0, 0.0, num_steps=0)
    with pytest.raises(ValueError, match="shape='step': expected 'linear' or 'cosine'"):
        KLAnnealing(1.0, 0.0, num_steps=2, shape="step")


def test_kl_weight_may_change_between_steps():
    case = built(regression, X, X)
    loss = TraceExpectedLogLikelihood()
    values = {}
    for weight in (0.0, 0.5, 1.0, 0.0):
        loss.kl_weight = weight
        value = loss_and_grads(loss, case)[0]
        assert values.setdefault(weight, value) == value
    assert values[0.5] == pytest.approx((values[0.0] + values[1.0]) / 2)


# -- what is not evaluated ---------------------------------------------------------------------


class NoDensity(dist.Normal):
    """A distribution that can only be drawn from."""

    def log_prob(self, value):
        raise AssertionError("a dropped density was evaluated")

    def expand(self, batch_shape, _instance=None):
        shape = torch.Size(batch_shape)
        return NoDensity(self.loc.expand(shape), self.scale.expand(shape))


def sampled_only(x, y):
    w = pyro.sample("w", NoDensity(torch.zeros(()), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(w * x, 1.0), obs=y)


def sampled_only_guide(x, y):
    z = pyro.sample("z", NoDensity(torch.zeros(()), 1.0), infer={"is_auxiliary": True})
    loc = pyro.param("loc", torch.tensor(0.3))
    pyro.sample("w", NoDensity(loc + 0.1 * z, 0.5))


@pytest.mark.parametrize("estimator", PAIRS)
@pytest.mark.parametrize("vectorized", [False, True])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_dropped_densities_are_never_evaluated(estimator, vectorized, reduction):
    ours, _, options = PAIRS[estimator]
    loss = ours(num_particles=2, vectorize_particles=vectorized, reduction=reduction, **options)
    case = Case(sampled_only, sampled_only_guide, (X, X))
    value, grads = loss_and_grads(loss, case)
    assert math.isfinite(value)
    assert grads["loc"].abs() > 0
    assert math.isfinite(loss.loss(*case[:2], *case.args))
    loss.kl_weight = 0.5
    with pytest.raises(AssertionError, match="a dropped density was evaluated"):
        loss_and_grads(loss, case)


class CountReads(TorchDispatchMode):
    """Counts the operations that wait for the device: item, bool, float, nonzero, equal."""

    READS = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "is_nonzero")

    def __enter__(self):
        self.reads = []
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.READS:
            self.reads.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("weight", [0.0, 0.5])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("name", ["regression", "nested", "scaled_and_masked", "discrete"])
@pytest.mark.filterwarnings("ignore:The expected log-likelihood cannot move")
@pytest.mark.filterwarnings("ignore:.*has one value per observation")
def test_a_step_reads_from_the_device_once(name, reduction, weight):
    case = make_case(name)
    loss = TraceExpectedLogLikelihood(num_particles=3, reduction=reduction, kl_weight=weight)
    with no_value_checks():
        loss_and_grads(loss, case)
        with CountReads() as ours:
            loss.loss_and_grads(case.model, case.guide, *case.args)
        assert ours.reads == ["_local_scalar_dense"]
        with CountReads() as theirs:
            Trace_ELBO(num_particles=3).loss_and_grads(case.model, case.guide, *case.args)
        assert len(theirs.reads) > 10  # the count does see Pyro's


# -- masked and broken data --------------------------------------------------------------------


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
@pytest.mark.filterwarnings("ignore:The expected log-likelihood cannot move")
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
        (lambda w: dist.Dirichlet(torch.stack([w.exp(), w.exp()], -1)), math.nan),
        (lambda w: dist.MultivariateNormal(w.unsqueeze(-1), torch.eye(1)), math.nan),
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


def test_nan_that_is_not_masked_is_loud():
    case = built(regression, X, X)._replace(args=(X, X * torch.nan))
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


# -- models that the objective does not suit ---------------------------------------------------


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


def test_a_model_without_observations():
    guide = AutoNormal(poutine.block(regression, hide=["y"]))
    mean = TraceExpectedLogLikelihood(reduction="mean", kl_weight=0.5)
    with pyro.validation_enabled(False):
        with pytest.raises(ValueError, match="The model observed nothing"):
            TraceExpectedLogLikelihood().loss(regression, guide, X, None)
        with pytest.raises(ValueError, match="reduction='mean' divides by the number of obs"):
            mean.loss(regression, guide, X, None)


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
    with pytest.raises(ValueError, match=message):
        TraceExpectedLogLikelihood(kl_weight=0.5).loss(vae, vae_guide, X, index)
    report = explain(TraceExpectedLogLikelihood(), vae, vae_guide, X, index)
    assert "'z' is local" in report.errors[0]
    assert "subsampled plate 'data'" in str(report)


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


# -- keep_kl -----------------------------------------------------------------------------------


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


def test_mean_field_needs_a_reparametrized_guide():
    case = make_case("discrete")
    loss = TraceMeanFieldExpectedLogLikelihood(keep_kl=["z", "loc"])
    with pytest.raises(NotImplementedError, match="'k' of type Bernoulli is not reparam"):
        loss_and_grads(loss, case)


def test_a_degenerate_guide_speaks_for_itself():
    class Degenerate(NoDensity):
        def log_prob(self, value):
            raise ValueError("This covariance has no density: use kl_weight=0.")

        def expand(self, batch_shape, _instance=None):
            return self

    def guide(x, y):
        pyro.sample("w", Degenerate(pyro.param("loc", torch.tensor(0.1)), 1.0))

    case = Case(regression, guide, (X, X))
    loss_and_grads(TraceExpectedLogLikelihood(), case)
    with pytest.raises(ValueError, match="at site 'w':\nThis covariance has no density"):
        loss_and_grads(TraceExpectedLogLikelihood(kl_weight=0.1), case)


def test_svi_trains_and_evaluates():
    guide = AutoNormal(regression)
    optimizer = pyro.optim.SGD({"lr": 0.05})
    svi = SVI(regression, guide, optimizer, TraceExpectedLogLikelihood(reduction="mean"))
    for _ in range(200):
        svi.step(X, 2 * X)
    assert guide.median()["w"].item() == pytest.approx(2.0, abs=0.1)
    assert svi.evaluate_loss(X, 2 * X) < 1.2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_step_stays_on_its_device(reduction):
    x = X.cuda()
    guide = AutoNormal(regression).cuda()
    with torch.device("cuda"):
        case = Case(regression, guide, (x, 2 * x))
        loss = TraceExpectedLogLikelihood(reduction=reduction)
        guide(x, 2 * x)
        value, grads = loss_and_grads(loss, case)
    assert math.isfinite(value)
    assert all(grad.is_cuda for grad in grads.values())
