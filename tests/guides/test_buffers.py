"""Large draws use memory again only when nobody has it, and have every derivative."""

import threading

import pyro
import pytest
import torch
from pyro import poutine
from torch import nn

from pyro_ibvi import (
    AutoMuPNormal,
    Diagonal,
    Kronecker,
    LowRank,
    Normal,
    RandomModule,
    SupervisedModel,
    TraceExpectedLogLikelihood,
)
from pyro_ibvi.guides.buffers import BufferPool
from tests.objectives.supervised import X, large, make, targets


@pytest.mark.parametrize("covariance", [Diagonal(), LowRank(2)], ids=str)
def test_memory_is_used_again_only_when_nobody_has_it(covariance):
    torch.manual_seed(0)
    model = SupervisedModel(RandomModule(nn.Linear(300, 300)), Normal(), 12)
    guide = AutoMuPNormal(model, covariance=covariance)
    loss_fn = TraceExpectedLogLikelihood()(model, guide)
    x, y = torch.randn(12, 300), torch.randn(12, 300)
    loss_fn(x, y).backward()
    kept = guide.rsample()["net.weight"]
    copied = kept.detach().clone()
    alias = guide.rsample()["net.weight"].detach()
    values = alias.clone()
    # Gradients of two losses add up, though the first graph lives on beside the second.
    parameters = list(guide.parameters())
    seeds = (1, 2)
    single = []
    for seed in seeds:
        torch.manual_seed(seed)
        single.append(torch.autograd.grad(loss_fn(x, y), parameters))
    losses = []
    for seed in seeds:
        torch.manual_seed(seed)
        losses.append(loss_fn(x, y))
    both = torch.autograd.grad(sum(losses), parameters)
    for a, b, ab in zip(*single, both, strict=True):
        torch.testing.assert_close(a + b, ab)
    assert torch.equal(kept, copied)
    assert torch.equal(alias, values)


@pytest.mark.parametrize("covariance", [Diagonal(), LowRank(2), Kronecker(2, 2)], ids=str)
def test_large_weights_are_drawn_for_many_particles_at_once(covariance):
    loss = TraceExpectedLogLikelihood(num_particles=3, vectorize_particles=True)
    svi = make(large, covariance=covariance, loss=loss)
    traced = poutine.trace(svi.guide)
    with pyro.plate("num_particles_vectorized", 3, dim=-2):
        site = traced.get_trace(X, targets(None)).nodes["net.2.weight"]
    draws = site["value"].reshape(3, 300, 300)
    assert not torch.equal(draws[0], draws[1])
    for _ in range(2):
        assert svi.step(X, targets(None)) > 0
    # The pathwise gradient of a sum over draws of w = loc + S z is the number of draws.
    loc = svi.guide.loc("net.2.weight")
    (gradient,) = torch.autograd.grad(draws.sum(), loc)
    assert torch.equal(gradient, torch.full_like(loc, 3.0))


@pytest.mark.parametrize("covariance", [Diagonal(), LowRank(2)], ids=str)
def test_large_weights_have_second_derivatives(covariance):
    torch.manual_seed(0)
    model = SupervisedModel(RandomModule(nn.Linear(300, 300)), Normal(), 12)
    guide = AutoMuPNormal(model, covariance=covariance)
    loss_fn = TraceExpectedLogLikelihood(reduction="mean")(model, guide)
    x, y = torch.randn(12, 300), torch.randn(12, 300)
    factor = guide.factor("net.weight")
    direction = torch.randn_like(factor)

    def gradient(create_graph):
        torch.manual_seed(3)
        loss = loss_fn(x, y)
        return torch.autograd.grad(loss, factor, create_graph=create_graph, retain_graph=True)[0]

    product = torch.autograd.grad(gradient(create_graph=True), factor, direction)[0]
    # The loss is quadratic in the factor, so one difference of gradients is exact.
    before = gradient(create_graph=False).clone()
    with torch.no_grad():
        factor += direction
    difference = gradient(create_graph=False) - before
    torch.testing.assert_close(product, difference, rtol=2e-3, atol=2e-3)


def test_threads_share_a_pool_and_no_memory():
    pool, like, taken = BufferPool(), torch.zeros(()), []
    barrier, shape = threading.Barrier(4), torch.Size((300, 300))

    def take(number):
        for _ in range(50):
            barrier.wait()
            tensor = pool.empty(shape, like).fill_(number)
            barrier.wait()
            taken.append(bool((tensor == number).all()))
            del tensor

    threads = [threading.Thread(target=take, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert taken == [True] * 200


def test_memory_is_let_go_when_training_pauses():
    model = SupervisedModel(RandomModule(nn.Linear(300, 300)), Normal(), 12)
    guide = AutoMuPNormal(model, covariance=Diagonal())
    loss_fn = TraceExpectedLogLikelihood()(model, guide)
    for pause in (guide.eval, lambda: guide.draw(1), guide.state_dict):
        loss_fn(torch.randn(12, 300), torch.randn(12, 300)).backward()
        assert guide._pool._storages
        pause()
        assert not guide._pool._storages
