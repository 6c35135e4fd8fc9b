"""The options of the objectives, and what a step costs."""

import copy
import inspect
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_ibvi.objectives.annealing import KLAnnealing
from pyro_ibvi.objectives.expected_log_likelihood import TraceExpectedLogLikelihood
from pyro_ibvi.objectives.mixin import ExpectedLogLikelihood
from pyro_ibvi.objectives.variants import TraceMeanFieldExpectedLogLikelihood
from tests.objectives.zoo import (
    PAIRS,
    Case,
    X,
    built,
    line,
    loss_and_grads,
    make_case,
    no_value_checks,
)

pytestmark = pytest.mark.usefixtures("double")


def test_signatures_show_the_options():
    """Those of all objectives stand in two places, with the same defaults."""
    plain, common = (
        inspect.signature(kind).parameters
        for kind in (TraceExpectedLogLikelihood, TraceMeanFieldExpectedLogLikelihood)
    )
    assert {name: plain[name] for name in common} == dict(common)
    assert plain.keys() - common.keys() == {"draws", "penalty", "head"}
    assert inspect.signature(ExpectedLogLikelihood).parameters == common


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
    with pytest.raises(TypeError, match=r"penalty=DivergencePenalty\(\.\.\.\), got 0\.1"):
        TraceExpectedLogLikelihood(penalty=0.1)
    with pytest.raises(TypeError, match=r"head=ClosedFormHead\(\.\.\.\), got True"):
        TraceExpectedLogLikelihood(head=True)
    with pytest.raises(TypeError, match="keep_kl holds 3 of type int: expected site names"):
        TraceExpectedLogLikelihood(keep_kl=["w", 3])
    for other in ({"w": 0.5}, True):
        with pytest.raises(TypeError, match=r"whose KL counts in full; the weight of all others"):
            TraceExpectedLogLikelihood(keep_kl=other)


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
    case = built(line, X, X)
    loss = TraceExpectedLogLikelihood()
    values = {}
    for weight in (0.0, 0.5, 1.0, 0.0):
        loss.kl_weight = weight
        value = loss_and_grads(loss, case)[0]
        assert values.setdefault(weight, value) == value
    assert values[0.5] == pytest.approx((values[0.0] + values[1.0]) / 2)


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

    case = Case(line, guide, (X, X))
    loss_and_grads(TraceExpectedLogLikelihood(), case)
    with pytest.raises(ValueError, match="at site 'w':\nThis covariance has no density"):
        loss_and_grads(TraceExpectedLogLikelihood(kl_weight=0.1), case)


def test_svi_trains_and_evaluates():
    guide = AutoNormal(line)
    optimizer = pyro.optim.SGD({"lr": 0.05})
    svi = SVI(line, guide, optimizer, TraceExpectedLogLikelihood(reduction="mean"))
    for _ in range(200):
        svi.step(X, 2 * X)
    assert guide.median()["w"].item() == pytest.approx(2.0, abs=0.1)
    assert svi.evaluate_loss(X, 2 * X) < 1.2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_step_stays_on_its_device(reduction):
    x = X.cuda()
    guide = AutoNormal(line).cuda()
    with torch.device("cuda"):
        case = Case(line, guide, (x, 2 * x))
        loss = TraceExpectedLogLikelihood(reduction=reduction)
        guide(x, 2 * x)
        value, grads = loss_and_grads(loss, case)
    assert math.isfinite(value)
    assert all(grad.is_cuda for grad in grads.values())


def test_a_class_in_the_place_of_its_guide_hears_of_the_parentheses():
    with pytest.raises(TypeError, match=r"got the class AutoNormal: write AutoNormal\(model\)"):
        TraceExpectedLogLikelihood().loss_and_grads(lambda x: None, AutoNormal, torch.zeros(3))
