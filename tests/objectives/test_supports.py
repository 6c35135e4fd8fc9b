"""Latents whose support depends on other latents: in it, or refused as Pyro refuses them."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal

from pyro_ibvi.objectives.expected_log_likelihood import TraceExpectedLogLikelihood
from tests.objectives.zoo import PAIRS, Case, X, loss_and_grads, no_value_checks

pytestmark = pytest.mark.usefixtures("double")

LAWS = {
    "plain": lambda t1: dist.Uniform(t1, 1.0),
    "event": lambda t1: dist.Uniform(t1, 1.0).expand([3]).to_event(1),
    "pareto": lambda t1: dist.Pareto(t1, 2.0),
}


def ordered(law, y, mask=True):
    t1 = pyro.sample("t1", dist.Uniform(0.0, 1.0))
    with poutine.mask(mask=mask):
        t2 = pyro.sample("t2", law(t1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(t1 + t2.sum(-1) if t2.dim() else t1 + t2, 1.0), obs=y)


def drawn(second, shape=()):
    def guide(law, y, mask=True):
        low = pyro.param("low", torch.tensor(0.5))
        pyro.sample("t1", dist.Delta(low))
        pyro.sample("t2", dist.Delta(pyro.param("high", second * torch.ones(shape))).to_event())

    return guide


@pytest.mark.parametrize("estimator", ["trace", "graph", "enum"])
@pytest.mark.parametrize("name", LAWS)
def test_a_draw_outside_is_refused_where_pyro_refuses_it(estimator, name):
    ours, pyros, options = PAIRS[estimator]
    shape = (3,) if name == "event" else ()
    inside = Case(ordered, drawn(0.8, shape), (LAWS[name], X))
    loss_and_grads(pyros(**options), inside)
    loss_and_grads(ours(**options), inside)
    pyro.clear_param_store()
    outside = inside._replace(guide=drawn(0.2, shape))
    with pytest.raises(ValueError, match="within the support"):
        loss_and_grads(pyros(**options), outside)
    pyro.clear_param_store()
    with pytest.raises(ValueError, match=r"'t2' lies outside of its support.*u ~ Uniform\(0, 1\)"):
        loss_and_grads(ours(**options), outside)
    with no_value_checks():
        loss_and_grads(ours(**options), outside)
    masked = outside._replace(args=(*outside.args, torch.tensor(False)))
    loss_and_grads(ours(**options), masked)


def test_an_improper_law_is_not_checked_as_pyro_does_not_check_it():
    def law(t1):
        return dist.ImproperUniform(dist.constraints.greater_than(t1), (), ())

    case = Case(ordered, drawn(0.2), (law, X))
    for loss in (Trace_ELBO(), TraceExpectedLogLikelihood()):
        assert math.isfinite(loss_and_grads(loss, case)[0])


def test_the_remedy_of_the_message_stays_inside():
    def model(y):
        t1 = pyro.sample("t1", dist.Uniform(0.0, 1.0))
        u = pyro.sample("u", dist.Uniform(0.0, 1.0))
        t2 = pyro.deterministic("t2", t1 + (1 - t1) * u)
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(t2, 0.1), obs=y)

    guide = AutoNormal(model)
    svi = pyro.infer.SVI(model, guide, pyro.optim.SGD({"lr": 0.01}), TraceExpectedLogLikelihood())
    for _ in range(30):
        svi.step(X - 3.0)
    draw = poutine.trace(poutine.replay(model, poutine.trace(guide).get_trace(X))).get_trace(X)
    assert draw.nodes["t1"]["value"] < draw.nodes["t2"]["value"] < 1


def test_particles_are_checked_each_in_its_own_support():
    def model(y):
        t1 = pyro.sample("t1", dist.Uniform(0.0, 1.0))
        t2 = pyro.sample("t2", dist.Uniform(t1, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(t2, 1.0), obs=y)

    def guide(y):
        spread = pyro.param("spread", torch.tensor(0.2))
        t1 = pyro.sample("t1", dist.Uniform(0.5 - spread, 0.5 + spread))
        pyro.sample("t2", dist.Uniform(t1 + 0.1 * spread, t1 + spread))

    loss = TraceExpectedLogLikelihood(
        num_particles=50, vectorize_particles=True, max_plate_nesting=1
    )
    loss_and_grads(loss, Case(model, guide, (X,)))  # the supports overlap, the particles do not

    def crossing(y):
        t1 = pyro.sample("t1", dist.Uniform(0.5 - pyro.param("spread"), 0.7))
        pyro.sample("t2", dist.Normal(t1 + 0.1, 0.1))

    with pytest.raises(ValueError, match="'t2' lies outside of its support"):
        loss_and_grads(loss, Case(model, crossing, (X,)))
