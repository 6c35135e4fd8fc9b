"""Two threads share a network and get what each would get alone."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from pyro_ibvi import (
    AutoMuPNormal,
    Diagonal,
    MuPOptim,
    Normal,
    RandomModule,
    SupervisedModel,
    TraceExpectedLogLikelihood,
    fit,
    mup_param_groups,
    predict,
)
from pyro_ibvi.guides.buffers import BufferPool
from tests.models.test_networks import NETWORKS, build

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
Y = torch.ones(6, 1)


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


def make(seed):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 300), nn.BatchNorm1d(300), nn.Tanh(), nn.Linear(300, 1))
    model = SupervisedModel(RandomModule(net, stochastic="all"), Normal(0.5), num_data=20)
    guide = AutoMuPNormal(model, covariance={"input": None, "*": None})  # draws nothing at random
    return model, guide


def train_by_fit(model, guide):
    optim = MuPOptim(torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9}, guide)
    loss = TraceExpectedLogLikelihood(reduction="mean")
    fit(SVI(model, guide, optim, loss), [(X, Y)] * 5, num_epochs=3, progress=False)


def train_by_torch(model, guide):
    loss = TraceExpectedLogLikelihood(reduction="mean")(model, guide)
    groups = mup_param_groups(guide, lr=1e-3, optimizer=torch.optim.SGD)
    optimizer = torch.optim.SGD(groups, lr=1e-3)
    for _ in range(15):
        optimizer.zero_grad()
        loss(X, Y).backward()
        optimizer.step()


@pytest.mark.parametrize("train", [train_by_fit, train_by_torch])
def test_two_models_train_in_two_threads(train):
    def trained(pair):
        train(*pair)
        return {**pair[0].state_dict(), **pair[1].state_dict()}

    alone = [trained(make(seed)) for seed in (1, 2)]
    together = in_threads(trained, [make(seed) for seed in (1, 2)], num_threads=2)
    for one, other in zip(alone, together, strict=True):
        assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_two_threads_train_and_validate_by_pyros_elbo():
    """Each has names of its own, since Pyro's store is the same for both."""

    def trained(name):
        def model(x, y):
            slope = pyro.sample(f"{name}.slope", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
            with pyro.plate(f"{name}.data", len(x)):
                pyro.sample(f"{name}.y", dist.Normal(x @ slope, 1.0), obs=y.squeeze(-1))

        def guide(x, y):
            loc = pyro.param(f"{name}.loc", torch.zeros(3))
            pyro.sample(f"{name}.slope", dist.Delta(loc).to_event(1))

        svi = SVI(model, guide, pyro.optim.SGD({"lr": 1e-2}), Trace_ELBO())
        batches = [(X, Y * len(name))] * 5
        history = fit(svi, batches, 10, valid_loader=batches, progress=False)
        return history.to_dict(), pyro.param(f"{name}.loc").tolist()

    alone = [trained(name) for name in ("one", "other")]
    pyro.clear_param_store()
    assert in_threads(trained, ("one", "other"), num_threads=2) == alone


def test_predictions_while_another_model_trains():
    model, _ = make(3)
    guide = AutoMuPNormal(model, covariance=Diagonal())

    def outputs(seed):
        generator = torch.Generator().manual_seed(seed)
        return predict(model, guide, X, num_samples=2, generator=generator).outputs

    alone = [outputs(seed) for seed in range(8)]
    thread = threading.Thread(target=train_by_fit, args=make(1))
    thread.start()
    found = in_threads(outputs, range(8), num_threads=2)
    thread.join()
    assert all(torch.equal(*pair) for pair in zip(alone, found, strict=True))


def test_two_threads_in_pyros_own_step_are_told_to_take_turns():
    inside, done = threading.Event(), threading.Event()

    def waiting_loss(model, guide, *args):
        inside.set()
        assert done.wait(10)
        return 0.0

    model, guide = make(1)
    optim = MuPOptim(torch.optim.SGD, {"lr": 1e-3}, guide)
    nothing = pyro.optim.SGD({"lr": 0.0})
    other = SVI(model, guide, nothing, loss=waiting_loss, loss_and_grads=waiting_loss)
    svi = SVI(model, guide, optim, TraceExpectedLogLikelihood())
    thread = threading.Thread(target=other.step, args=(X, Y))
    thread.start()
    assert inside.wait(10)
    try:
        with pytest.raises(RuntimeError, match=r"Two threads are in SVI\.step .*pyro_ibvi\.fit"):
            svi.step(X, Y)
    finally:
        done.set()
        thread.join()
    svi.step(X, Y)
