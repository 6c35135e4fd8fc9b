"""What an objective knows of direct routes is known of a pair, and goes with it."""

import gc
import weakref

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_ibvi import (
    Diagonal,
    TraceExpectedLogLikelihood,
)
from tests.objectives.supervised import X, make, mlp, targets


def test_one_objective_goes_directly_for_several_pairs(count_traces):
    loss = TraceExpectedLogLikelihood()
    pairs = [make(mlp, loss=None), make(mlp, covariance=Diagonal(), loss=None)]
    for _ in range(3):
        for svi in pairs:
            loss.loss_and_grads(svi.model, svi.guide, X, targets(None))
    assert len(count_traces) == len(pairs)


def test_an_objective_keeps_no_parameters_of_a_deleted_guide():
    loss = TraceExpectedLogLikelihood()
    svi = make(mlp, stochastic="last", loss=loss)
    for _ in range(3):
        svi.step(X, targets(None))
    parameters = [*svi.guide.parameters(), *svi.model.parameters()]
    gone = [weakref.ref(parameter) for parameter in parameters]
    del svi, parameters
    gc.collect()
    assert all(parameter() is None for parameter in gone)


def test_what_hands_on_a_guides_attributes_is_not_taken_for_it(count_traces):
    class Wrapped(nn.Module):
        def __init__(self, guide):
            super().__init__()
            self.guide = guide

        def __getattr__(self, name):
            return (
                getattr(super().__getattr__("guide"), name)
                if name != "guide"
                else super().__getattr__(name)
            )

        def forward(self, *args):
            calls.append(1)
            return self.guide(*args)

    svi, calls, loss = make(mlp, loss=None), [], TraceExpectedLogLikelihood()
    guide = Wrapped(svi.guide)
    assert guide.direct_route(svi.model) is not None
    for _ in range(3):
        loss.loss_and_grads(svi.model, guide, X, targets(None))
    assert len(calls) == len(count_traces) == 3


class Known(nn.Module):
    """A point estimate of a mean that knows its likelihood."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(0.5))
        self.route = Route(self)

    def forward(self, y):
        pyro.sample("mean", dist.Delta(self.mean))

    def direct_route(self, model):
        return self.route if model is of_mean else None


class Route:
    observed = "y"

    def __init__(self, guide):
        self.guide, self.calls = weakref.ref(guide), 0

    def is_open(self, args, kwargs):
        return True

    def log_likelihood(self, y):
        self.calls += 1
        return dist.Normal(self.guide().mean, 1.0).log_prob(y), 2.0, None


def of_mean(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 2 * len(y), subsample_size=len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def test_any_guide_may_offer_a_route():
    guide, loss, y = Known(), TraceExpectedLogLikelihood(), torch.tensor([1.0, 2.0, 4.0])
    losses, gradients = [], []
    for _ in range(3):
        guide.mean.grad = None
        losses.append(loss.loss_and_grads(of_mean, guide, y))
        gradients.append(guide.mean.grad.item())
    assert guide.route.calls == 2
    expected = -2 * dist.Normal(0.5, 1.0).log_prob(y).sum().item()
    assert losses == pytest.approx([expected] * 3)
    assert gradients == pytest.approx([2 * (0.5 - y).sum().item()] * 3)
