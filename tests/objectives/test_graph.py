"""The form with a graph of costs, where priors have no pathwise gradient and the guide has one."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceGraph_ELBO
from pyro.infer.autoguide import AutoNormal
from torch.distributions import constraints

from pyro_ibvi import TraceGraphExpectedLogLikelihood
from tests.objectives.zoo import (
    Case,
    MaskLatents,
    assert_same,
    data,
    loss_and_grads,
)

pytestmark = pytest.mark.usefixtures("double")


def correlated(y):
    k = pyro.sample("k", dist.Bernoulli(0.5))
    tril = pyro.sample("tril", dist.LKJCholesky(3, 1.0))  # has no rsample
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.MultivariateNormal(k * torch.ones(3), scale_tril=tril), obs=y)


def correlated_guide(y):
    p = pyro.param("p", torch.tensor(0.3), constraint=constraints.unit_interval)
    pyro.sample("k", dist.Bernoulli(p))
    AutoNormal(poutine.block(correlated, hide=["k"]))(y)


@pytest.mark.parametrize("keep_kl", [(), ("k",), ("tril",), ("k", "tril")])
def test_a_prior_without_rsample_under_a_reparametrized_guide(keep_kl):
    class Masked(MaskLatents):
        def _pyro_sample(self, msg):
            if msg["name"].removesuffix("_unconstrained") not in keep_kl:
                super()._pyro_sample(msg)

    case = Case(correlated, correlated_guide, (data(5, 3),))
    loss = TraceGraphExpectedLogLikelihood(keep_kl=keep_kl, max_plate_nesting=1)
    stock = TraceGraph_ELBO(max_plate_nesting=1)
    assert_same(loss_and_grads(loss, case), loss_and_grads(stock, case, handler=Masked()))


def test_a_point_estimate_under_an_improper_prior():
    def model(y):
        x = pyro.sample("x", dist.ImproperUniform(constraints.real, (), ()))
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    def guide(y):
        pyro.sample("x", dist.Delta(pyro.param("point", torch.tensor(0.5))))

    case = Case(model, guide, (torch.tensor(3.0),))
    _, grads = loss_and_grads(TraceGraphExpectedLogLikelihood(), case)
    torch.testing.assert_close(grads["point"], torch.tensor(0.5 - 3.0))


def test_a_discrete_latent_that_the_guide_lacks_is_drawn_from_its_prior():
    def model(y):
        k = pyro.sample("k", dist.Bernoulli(0.5))
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x + k, 1.0), obs=y)

    guide = AutoNormal(poutine.block(model, hide=["k"]))
    guide(torch.tensor(1.0))
    case = Case(model, guide, (torch.tensor(1.0),))
    with pytest.warns(UserWarning, match="in model but not guide: {'k'}"):
        ours = loss_and_grads(TraceGraphExpectedLogLikelihood(), case)
    with pytest.warns(UserWarning, match="in model but not guide: {'k'}"):
        stock = loss_and_grads(Trace_ELBO(), case, handler=MaskLatents())
    assert_same(ours, stock)
