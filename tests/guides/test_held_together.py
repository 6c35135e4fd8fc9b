"""A guide that is held by the module that holds its model, and modules behind handlers."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuideList
from pyro.nn import PyroModule, PyroSample

from pyro_ibvi import (
    AutoMuPMixture,
    AutoMuPNormal,
    TraceExpectedLogLikelihood,
    mup_param_groups,
)

X, Y = torch.randn(5, 2), torch.randn(5)


class Regression(PyroModule):
    """A regression that knows its own guide and loss."""

    def __init__(self, make_guide, loss):
        super().__init__()
        self.weight = PyroSample(dist.Normal(torch.zeros(2), 1.0).to_event(1))
        self.offset = PyroSample(dist.Normal(torch.zeros(5), 1.0).to_event(1))
        self.guide = make_guide(self.model)
        self.loss = loss

    def model(self, x, y=None):
        mean = x @ self.weight + self.offset
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    def forward(self, x, y):
        return self.loss.differentiable_loss(self.model, self.guide, x, y)


@pytest.mark.parametrize("make_guide", [AutoMuPNormal, AutoMuPMixture])
def test_a_model_that_shares_its_guides_module_is_looked_at_each_time(make_guide):
    held = Regression(make_guide, None)
    draws = held.guide(X, Y)  # a call of one module draws each of its samples once
    assert set(draws) == {"weight", "offset"}
    assert all(set(own.median()) == set(draws) for own in held.guide.components)


def test_the_first_step_is_of_the_guides_draws():
    loss = TraceExpectedLogLikelihood(allow_local=True)
    held = Regression(lambda model: AutoMuPNormal(model, covariance={"*": None}), loss)
    first = held(X, Y)
    weight, offset = held.guide.median().values()
    by_hand = -dist.Normal(X @ weight + offset, 1.0).log_prob(Y).sum()
    torch.testing.assert_close(first, by_hand)


class Shifted(PyroModule):
    """A regression with a network beside its latent, which may hold its guide."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(2, 1)

    def forward(self, x, y):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(self.net(x).squeeze(-1) + x @ weight, 1.0), obs=y)

    def model(self, x, y):
        return self(x, y)


@pytest.mark.parametrize("holds_guide", [False, True])
@pytest.mark.parametrize("make_guide", [AutoMuPNormal, AutoMuPMixture])
@pytest.mark.parametrize(
    "shown",
    [
        lambda held: held.model,
        lambda held: poutine.block(held.model, expose=["weight"]),
        lambda held: poutine.scale(poutine.block(held, expose=["weight"]), scale=1.0),
    ],
)
def test_a_network_behind_handlers_is_trained_and_the_guide_but_once(
    shown, make_guide, holds_guide
):
    held = Shifted()
    guide = make_guide(shown(held))
    guide.initialize(X, Y)
    own = [*guide.parameters(), *held.parameters()]
    if holds_guide:
        held.guide = guide
    groups = mup_param_groups(guide, 0.1, optimizer=torch.optim.SGD)
    found = [parameter for group in groups for parameter in group["params"]]
    assert sorted(map(id, found)) == sorted(map(id, own))


def test_what_a_block_hides_of_a_function_is_trained_as_well():
    net = torch.nn.Linear(2, 1)

    def model(x, y):
        pyro.module("net", net)
        offset = pyro.param("offset", torch.tensor(0.0))
        first, second = (pyro.sample(name, dist.Normal(0.0, 1.0)) for name in ("first", "second"))
        with pyro.plate("data", len(x)):
            mean = net(x).squeeze(-1) + offset + first + second
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    part = AutoMuPNormal(poutine.block(model, expose=["first"]))
    both = AutoGuideList(model)
    both.append(AutoMuPNormal(poutine.block(model, expose=["first"])))
    both.append(AutoMuPNormal(poutine.block(model, expose=["second"])))
    for guide in (part, both):
        guide(X, Y)
        groups = mup_param_groups(guide, 0.1, optimizer=torch.optim.SGD)
        found = [id(parameter) for group in groups for parameter in group["params"]]
        offset = pyro.get_param_store()._params["offset"]
        assert sorted(found) == sorted(map(id, (*guide.parameters(), *net.parameters(), offset)))
