"""Models, guides and an independent route for the tests of the objectives.

The independent route to a KL-free objective is an effect handler: it masks every latent site, in
model and guide, out of an otherwise unchanged ELBO of Pyro.
"""

from contextlib import contextmanager
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal

from pyro_ibvi.objectives.expected_log_likelihood import TraceExpectedLogLikelihood
from pyro_ibvi.objectives.variants import (
    TraceEnumExpectedLogLikelihood,
    TraceGraphExpectedLogLikelihood,
    TraceMeanFieldExpectedLogLikelihood,
)

PAIRS = {
    "trace": (TraceExpectedLogLikelihood, Trace_ELBO, {}),
    "graph": (TraceGraphExpectedLogLikelihood, TraceGraph_ELBO, {}),
    "enum": (
        TraceEnumExpectedLogLikelihood,
        TraceEnum_ELBO,
        {"strict_enumeration_warning": False},
    ),
    "mean_field": (TraceMeanFieldExpectedLogLikelihood, TraceMeanField_ELBO, {}),
}


class MaskLatents(poutine.messenger.Messenger):
    """Masks every latent site but the ones that the model enumerates."""

    def __init__(self, enumerated=()):
        super().__init__()
        self.enumerated = enumerated

    def _pyro_sample(self, msg):
        hidden = msg["is_observed"] or type(msg["fn"]).__name__ == "_Subsample"
        if not hidden and msg["name"] not in self.enumerated:
            msg["mask"] = False


def loss_and_grads(loss, case, seed=7, handler=None):
    """Loss and gradients (by parameter name) of one step, from a given seed."""
    pyro.set_rng_seed(seed)
    with poutine.trace(param_only=True) as capture:
        if handler is None:
            value = loss.loss_and_grads(case.model, case.guide, *case.args)
        else:
            with handler:
                value = loss.loss_and_grads(case.model, case.guide, *case.args)
    grads = {}
    for name, site in capture.trace.nodes.items():
        param = site["value"].unconstrained()
        grads[name] = torch.zeros_like(param) if param.grad is None else param.grad
        param.grad = None
    return float(value), grads


def assert_same(actual, expected, *, exact=False, factor=1.0):
    """Compare two results of `loss_and_grads`, to machine precision or to the last digit."""
    tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-10, "atol": 1e-11}
    pairs = [(actual[0], expected[0] * factor)]
    pairs += [(actual[1][name], expected[1][name] * factor) for name in expected[1]]
    assert actual[1].keys() == expected[1].keys()
    for a, b in pairs:
        torch.testing.assert_close(a, b, **tolerance)


class Case(NamedTuple):
    """A model with its guide and data."""

    model: object
    guide: object
    args: tuple
    enumerated: tuple = ()


def data(*shape):
    generator = torch.Generator().manual_seed(len(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def regression(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    sigma = pyro.sample("sigma", dist.LogNormal(0.0, 0.5))
    pyro.deterministic("w_squared", w.square())
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal((x * w).sum(-1), sigma), obs=y)


def subsampled(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    # The plate's indices are fixed, so that both routes see the same minibatch.
    with pyro.plate("data", len(x), subsample=torch.tensor([1, 3, 4])) as i:
        pyro.sample("y", dist.StudentT(3.0, w * x[i], 1.0), obs=y[i])


def nested(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("rows", y.shape[0], dim=-2):
        a = pyro.sample("a", dist.Normal(mu, 1.0))
        with pyro.plate("columns", y.shape[1], dim=-1):
            b = pyro.sample("b", dist.Gamma(2.0, 2.0))
            pyro.sample("y", dist.Normal(a * b + mu, 0.7), obs=y)


def scaled_and_masked(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with poutine.scale(scale=2.5):
        v = pyro.sample("v", dist.Exponential(1.0))
        with pyro.plate("data", len(x)), poutine.mask(mask=x > 0):
            pyro.sample("y", dist.Normal(w * x, 0.1 + v), obs=y)


def with_factor(x, y):
    p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
    q = pyro.sample("q", dist.Beta(2.0, 2.0))
    pyro.factor("penalty", -(p.square().sum(-1) + q))
    with pyro.plate("data", len(x)):
        logits = torch.cat([p.log()[..., :2], q.unsqueeze(-1)], -1)
        pyro.sample("y", dist.Categorical(logits=logits), obs=(y > 0).long())


def partly_observed(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(w * x, 1.0), obs=y, obs_mask=y > 0)


def sequential(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    for i in pyro.plate("data", len(x)):
        pyro.sample(f"y_{i}", dist.Normal(w * x[i], 1.0), obs=y[i])


def discrete(x, y):
    k = pyro.sample("k", dist.Bernoulli(0.3))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
        loc = pyro.sample("loc", dist.Normal(k + z, 1.0))
        pyro.sample("y", dist.Normal(x * loc + k, 1.0), obs=y)


def discrete_guide(x, y):
    p = pyro.param("p", torch.tensor(0.4), constraint=dist.constraints.unit_interval)
    k = pyro.sample("k", dist.Bernoulli(p))
    logits = pyro.param("logits", 0.3 * torch.arange(3.0 * len(x)).reshape(len(x), 3).cos())
    loc = pyro.param("loc_loc", torch.linspace(-1.0, 1.0, len(x)))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(logits=logits))
        pyro.sample("loc", dist.Normal(loc + 0.1 * z + k, 0.5))


def enumerating_guide(x, y):
    return pyro.infer.config_enumerate(discrete_guide)(x, y)


def one_by_one(x, y):
    """Enumerates the global site sequentially and draws the local ones."""

    def first(site):
        return {"enumerate": "sequential"} if site["name"] == "k" else {}

    return poutine.infer_config(discrete_guide, config_fn=first)(x, y)


def mixture(y):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("components", 2):
        locs = pyro.sample("locs", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(y)):
        k = pyro.sample("k", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(locs[k], 1.0), obs=y)


def guided(model, *args, guide=AutoNormal):
    made = guide(model, init_scale=0.3) if guide in {AutoNormal, AutoDiagonalNormal} else guide
    pyro.set_rng_seed(1)
    if made is not guide:
        made(*args)
    return Case(model, made, args)


def make_case(name):
    """Build a fresh case: its parameters go into the store that is current."""
    x, y = data(6), data(6, 1)[:, 0]
    if name == "mixture":
        hidden = poutine.block(mixture, hide=["k"])
        guide = AutoNormal(hidden, init_scale=0.3)
        pyro.set_rng_seed(1)
        guide(y)
        return Case(mixture, guide, (y,), ("k",))
    cases = {
        "regression": lambda: guided(regression, data(6, 2), y),
        "flat_guide": lambda: guided(regression, data(6, 2), y, guide=AutoDiagonalNormal),
        "subsampled": lambda: guided(subsampled, x, y),
        "nested": lambda: guided(nested, data(3, 2)),
        "scaled_and_masked": lambda: guided(scaled_and_masked, x, y),
        "with_factor": lambda: guided(with_factor, x, y),
        "partly_observed": lambda: guided(partly_observed, x, y),
        "sequential": lambda: guided(sequential, x, y),
        "discrete": lambda: guided(discrete, x, y, guide=discrete_guide),
        "enumerating_in_turn": lambda: guided(discrete, x, y, guide=one_by_one),
        "enumerating_guide": lambda: guided(discrete, x, y, guide=enumerating_guide),
    }
    return cases[name]()


NAMES = [
    "regression",
    "flat_guide",
    "subsampled",
    "nested",
    "scaled_and_masked",
    "with_factor",
    "partly_observed",
    "sequential",
    "discrete",
    "enumerating_guide",
    "enumerating_in_turn",
    "mixture",
]


def supports(name, estimator, options=None):
    """Whether an estimator of Pyro's can run a case at all."""
    if options and options.get("vectorize_particles") and name in VECTORIZED_BY_HAND:
        return False
    return estimator in ESTIMATORS.get(name, PAIRS)


VECTORIZED_BY_HAND = {"sequential", "enumerating_guide", "enumerating_in_turn", "mixture"}
ESTIMATORS = {
    "discrete": {"trace", "graph", "enum"},
    "enumerating_guide": {"enum"},
    "enumerating_in_turn": {"enum"},
    "mixture": {"enum"},
}


X = torch.linspace(-1.0, 1.0, 4, dtype=torch.float64)


def line(x, y):
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
