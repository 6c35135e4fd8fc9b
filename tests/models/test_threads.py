"""Two threads share a network and get what each would get alone."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from pyro_ibvi import (
    AutoMuPNormal,
    Diagonal,
    Normal,
    RandomModule,
    SupervisedModel,
    predict,
)
from pyro_ibvi.guides.buffers import BufferPool
from tests.models.test_networks import NETWORKS, build

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _switch_often():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def in_threads(function, arguments, num_threads=8):
    with ThreadPoolExecutor(num_threads) as pool:
        return list(pool.map(function, arguments))


class Meeting(nn.Module):
    """Lets no thread go on before both are in the middle of the network."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 1)
        self.meet = None

    def forward(self, x):
        h = self.first(x)
        self.meet()
        return self.last(h)


def test_a_network_that_two_threads_are_inside_of():
    net = RandomModule(Meeting(), stochastic="all", roles={"first": "input", "last": "output"})
    # A barrier cannot be copied, so it comes after the network became random.
    net.network.meet = threading.Barrier(2, timeout=10).wait
    draws = [{n: torch.randn_like(p) for n, p in net.network.named_parameters()} for _ in "ab"]

    def by_hand(draw):
        h = X @ draw["first.weight"].T + draw["first.bias"]
        return h @ draw["last.weight"].T + draw["last.bias"]

    outputs = in_threads(lambda draw: net.run(draw, X), draws, num_threads=2)
    for output, draw in zip(outputs, draws, strict=True):
        torch.testing.assert_close(output, by_hand(draw))


@pytest.mark.parametrize("kind", ["batch norm", "lstm", "transformer", "tied", "residual"])
def test_predictions_in_threads_are_those_alone(kind):
    make, x = NETWORKS[kind]
    model, guide = build(make())

    def outputs(seed):
        generator = torch.Generator().manual_seed(seed)
        return predict(model, guide, x, num_samples=3, generator=generator).outputs

    alone = [outputs(seed) for seed in range(16)]
    random_state = torch.get_rng_state()
    for one, other in zip(alone, in_threads(outputs, range(16)), strict=True):
        assert torch.equal(one, other)
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_large_mean_field_network_predicts_alike_in_threads():
    # Above the sizes from which noise is made by threads of its own, and memory used again.
    net = RandomModule(
        nn.Sequential(nn.Linear(3, 800), nn.Tanh(), nn.Linear(800, 800)), stochastic="all"
    )
    model = SupervisedModel(net, Normal(0.5), num_data=20)
    guide = AutoMuPNormal(model, covariance=Diagonal())

    def outputs(seed):
        generator = torch.Generator().manual_seed(seed)
        return predict(model, guide, X, num_samples=2, generator=generator).outputs

    alone = [outputs(seed) for seed in range(6)]
    for one, other in zip(alone, in_threads(outputs, range(6)), strict=True):
        assert torch.equal(one, other)


def test_no_two_threads_get_the_same_memory():
    pool, like = BufferPool(), torch.zeros(())

    def take(number):
        tensor = pool.empty(torch.Size((300, 300)), like).fill_(number)
        return all(bool((tensor == number).all()) for _ in range(20))

    assert all(in_threads(take, range(200)))
