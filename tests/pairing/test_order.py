"""A guide in the model's place, and a model in its guide's, are told wherever both are taken."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal

import pyro_ibvi as ibvi

pytestmark = pytest.mark.usefixtures("double")

X, Y = torch.randn(6, 2, dtype=torch.double), torch.randn(6, dtype=torch.double)


def model(x, y=None):
    weight = pyro.sample("weight", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(x @ weight, 1.0), obs=y)


def step(first, second):
    loss = ibvi.TraceExpectedLogLikelihood()
    return SVI(first, second, pyro.optim.SGD({"lr": 1e-3}), loss).step(X, Y)


TAKE_BOTH = {
    "svi": step,
    "explain": lambda *pair: ibvi.explain(ibvi.TraceExpectedLogLikelihood(), *pair, X, Y),
    "to_arviz": lambda *pair: ibvi.to_arviz(*pair, X, Y, num_samples=2),
    "log_predictive_density": lambda *pair: ibvi.log_predictive_density(*pair, X, Y),
}


def two(model):
    return ibvi.AutoMuPMixture(model, num_components=2)


@pytest.mark.parametrize("name", TAKE_BOTH)
@pytest.mark.parametrize("make", [ibvi.AutoMuPNormal, two, AutoNormal])
def test_swapped(name, make):
    guide = make(model)
    guide(X, Y)
    with pytest.raises(TypeError, match=rf"got the guide {type(guide).__name__} in the model's"):
        TAKE_BOTH[name](guide, model)


@pytest.mark.parametrize("name", TAKE_BOTH)
def test_the_model_as_its_own_guide(name):
    with pytest.raises(TypeError, match="model itself was passed as its guide"):
        TAKE_BOTH[name](model, model)


def test_one_guide_may_learn_from_another():
    teacher, pupil = AutoNormal(model, init_scale=0.5), ibvi.AutoMuPNormal(model)
    teacher(X, Y), pupil(X, Y)
    loss = ibvi.TraceExpectedLogLikelihood(kl_weight=1)
    pair = pyro.poutine.block(teacher, expose=["weight"]), pupil
    assert isinstance(SVI(*pair, pyro.optim.SGD({"lr": 1e-3}), loss).step(X, Y), float)
