"""Networks that vmap cannot run take their draws one after the other, with the same numbers."""

import copy
import gc
import warnings
import weakref

import pytest
import torch
from torch import nn
from torch.func import functional_call

from pyro_ibvi import TraceExpectedLogLikelihood, WeightRole, predict
from pyro_ibvi.models import running
from tests.models.test_running import Base, X, Y, build, svi_of


class WritesIntoZeros(Base):
    def forward(self, x):
        h, out = self.a(x).tanh(), torch.zeros(len(x), 8)
        for i in range(8):
            out[:, i] = h[:, 7 - i]
        return self.b(out)


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.GRUCell(1, 4), nn.Linear(4, 1)

    def forward(self, x):
        h = torch.zeros(len(x), 4)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t : t + 1], h)
        return self.out(h)


class Tripled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        return 3 * h

    @staticmethod
    def backward(ctx, grad):
        return 3 * grad


class OwnFunction(Base):
    def forward(self, x):
        return self.b(Tripled.apply(self.a(x)).tanh())


class EarlyExit(Base):
    def __init__(self):
        super().__init__()
        self.exit = nn.Linear(8, 1)

    def forward(self, x):
        h = self.a(x).tanh()
        early = self.exit(h)
        return early if early.mean() > 0 else self.b(h)


class Routed(Base):
    """Sends each datum to one of two experts."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])

    def forward(self, x):
        h = self.a(x).tanh()
        first = (h.sum(1) > 0).nonzero().squeeze(1)
        second = (h.sum(1) <= 0).nonzero().squeeze(1)
        out = torch.zeros_like(h).index_add(0, first, self.experts[0](h[first]))
        return self.b(out.index_add(0, second, self.experts[1](h[second])))


class RunningMean(Base):
    """Whitens by a mean that it updates in every mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        h = self.a(x)
        self.count += 1
        self.mean.mul_(0.9).add_(0.1 * h.detach().mean(0))
        return self.b((h - self.mean).tanh())


class ReadsNumbers(Base):
    def forward(self, x):
        h = self.a(x)
        return self.b(h / max(h.abs().max().item(), 1.0))


class Spectral(nn.Sequential):
    def __init__(self):
        layer = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 8))
        super().__init__(layer, nn.Tanh(), nn.Linear(8, 1))


class OldSpectral(nn.Sequential):
    def __init__(self):
        with warnings.catch_warnings(action="ignore"):
            layer = nn.utils.spectral_norm(nn.Linear(3, 8))
        super().__init__(layer, nn.Tanh(), nn.Linear(8, 1))


KINDS = [
    WritesIntoZeros, Cell, OwnFunction, EarlyExit, Routed, RunningMean, ReadsNumbers, Spectral,
    OldSpectral,
]  # fmt: skip


def make(kind):
    torch.manual_seed(0)
    original = WeightRole.of("input", fan_in=3, fan_out=8)
    roles = {"0.parametrizations.weight.original": original} if kind is Spectral else None
    return build(kind(), example_input=X, roles=roles)


def draws_of(model, num_draws):
    torch.manual_seed(3)
    parameters = model.net.network.named_parameters()
    return {name: torch.randn(num_draws, *p.shape) for name, p in parameters}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_draws_in_turn_are_those_of_torch(kind, training):
    model, _ = make(kind)
    model.train(training)
    plain, draws = copy.deepcopy(model.net.network), draws_of(model, 4)
    for p in plain.parameters():
        p.requires_grad_(False)
    outputs = model.run(draws, X)
    buffers = {name: b.clone() for name, b in plain.named_buffers()}
    for i, output in enumerate(outputs):
        if not training:  # every draw starts at the network's state
            plain.load_state_dict({**plain.state_dict(), **buffers})
        expected = functional_call(plain, {n: v[i] for n, v in draws.items()}, (X,))
        torch.testing.assert_close(output, expected)
    found = dict(model.net.network.named_buffers())
    for name, buffer in plain.named_buffers() if training else buffers.items():
        torch.testing.assert_close(found[name], buffer)


# The first draw may take an early exit, past layers of which the objective then warns.
@pytest.mark.filterwarnings("ignore:Nothing in this step was computed")
@pytest.mark.parametrize("kind", KINDS)
def test_prediction_by_default_is_that_of_single_draws(kind):
    model, guide = make(kind)
    svi_of(model, guide).step(X, Y)

    def outputs(chunk_size):
        generator = torch.Generator().manual_seed(0)
        options = {"num_samples": 5, "generator": generator, "chunk_size": chunk_size}
        return predict(model, guide, X, **options).outputs

    torch.testing.assert_close(outputs(5), outputs(None))
    assert outputs(1).shape == (5, 6, 1)


# The first draw may take an early exit, past layers of which the objective then warns.
@pytest.mark.filterwarnings("ignore:Nothing in this step was computed")
@pytest.mark.parametrize("kind", KINDS)
def test_vectorized_particles(kind):
    model, guide = make(kind)
    svi = svi_of(model, guide, num_particles=3, vectorize_particles=True)
    losses = [svi.step(X, Y) for _ in range(2)]
    assert torch.tensor(losses).isfinite().all()
    assert all(p.isfinite().all() for p in guide.parameters())


def test_vmap_is_tried_once(monkeypatch):
    calls = []
    together = running._run_together
    monkeypatch.setattr(running, "_run_together", lambda *args: calls.append(1) or together(*args))
    model, guide = make(WritesIntoZeros)
    for _ in range(3):
        predict(model, guide, X, num_samples=2)
    assert len(calls) == 1
    assert model.net.runner._refused == {False}
    model, guide = build(Base())
    for _ in range(3):
        predict(model, guide, X, num_samples=2)
    assert len(calls) == 4


def test_operations_that_vmap_runs_draw_by_draw_are_no_news_for_the_user():
    net = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
    model, guide = build(nn.Sequential(net, nn.Tanh(), nn.Linear(4, 1)))
    with pytest.warns(UserWarning, match="performance drop"):  # by vmap alone
        torch.vmap(lambda v, g: torch._weight_norm(v, g))(torch.ones(2, 3, 4), torch.ones(2, 3, 1))
    with warnings.catch_warnings(action="error"):
        predict(model, guide, X, num_samples=3)
    assert not model.net.runner._refused
    with pytest.warns(UserWarning, match="performance drop"):  # which still tells of it
        torch.vmap(lambda v, g: torch._weight_norm(v, g))(torch.ones(2, 3, 4), torch.ones(2, 3, 1))


def test_a_failed_try_leaves_no_trace():
    class Counts(EarlyExit):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.drop, self.seen = nn.Dropout(0.5), []

        def forward(self, x):
            self.calls += 1
            self.seen.append(self.calls.clone())
            return super().forward(self.drop(x))

    model, _ = build(Counts(), example_input=X)
    tried, told = copy.deepcopy(model), copy.deepcopy(model)
    told.net.runner._refused.add(True)
    outputs = []
    for each in (tried, told):
        torch.manual_seed(0)
        outputs.append(each.run(draws_of(model, 3), X))
        assert each.net.network.calls == 3
        assert [float(t) for t in each.net.network.seen] == [3.0]
    torch.testing.assert_close(*outputs)


def test_an_error_of_vmap_keeps_no_tensor_alive():
    seen = []

    class Remembers(ReadsNumbers):
        def forward(self, x):
            h = torch.ones(1000)
            seen.append(weakref.ref(h))
            return super().forward(x) + 0 * h.sum()

    class Watches(Remembers):
        def forward(self, x):
            alive.append(sum(each() is not None for each in seen))
            return super().forward(x)

    alive = []
    model, _ = build(Watches(), example_input=X)
    seen.clear()
    alive.clear()
    gc.collect()
    gc.disable()
    try:
        model.run(draws_of(model, 3), X)
    finally:
        gc.enable()
    assert model.net.runner._refused
    assert alive == [0, 0, 0, 0], "neither in the draws that follow"
    assert not [each for each in seen if each() is not None], "nor afterwards"


SHORT = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("error", SHORT)
def test_a_lack_of_memory_is_not_remembered(error):
    class Large(Base):
        def forward(self, x):
            if torch._C._are_functorch_transforms_active():
                tries.append(1)
                if len(tries) == 1:
                    raise error
            return super().forward(x)

    tries = []
    model, _ = build(Large())
    draws = draws_of(model, 3)
    outputs = [model.run(draws, X) for _ in range(2)]
    torch.testing.assert_close(*outputs)
    assert len(tries) == 2
    assert not model.net.runner._refused


def test_a_failed_try_gives_the_numbers_of_cuda_devices_back(monkeypatch):
    model, _ = build(ReadsNumbers(), example_input=X)
    put_back, state = [], torch.arange(16, dtype=torch.uint8)
    for name, value in {
        "is_initialized": lambda: True,
        "is_available": lambda: True,
        "is_current_stream_capturing": lambda: False,
        "device_count": lambda: 1,
        "get_rng_state_all": lambda: [state],
        "set_rng_state": lambda each, device: put_back.append((each, device)),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    model.run(draws_of(model, 3), X)
    assert put_back == [(state, 0)]


def test_an_error_of_the_networks_own_is_told_in_its_own_words():
    model, _ = build(Base())
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        model.net.run(draws_of(model, 3), torch.zeros(2, 4))
    assert not model.net.runner._refused


def test_a_hint_where_it_is_slow(monkeypatch):
    model, guide = make(ReadsNumbers)
    monkeypatch.setattr(running, "_SLOW", 0.0)
    with pytest.warns(UserWarning, match=r"ReadsNumbers took .* s for 3 draws .* \(vmap.*item"):
        predict(model, guide, X, num_samples=3, chunk_size=3)
    predict(model, guide, X, num_samples=3, chunk_size=3)  # once


def test_dropout_differs_between_vectorized_particles_of_a_network_that_runs_at_once():
    net = nn.Sequential(nn.Linear(3, 50), nn.Dropout(0.5), nn.Linear(50, 1))
    model, guide = build(net)
    loss = TraceExpectedLogLikelihood(num_particles=4, vectorize_particles=True)
    assert loss.loss(model, guide, X, Y) > 0
    assert model.net.runner.runs_batched(model.net.stochastic)
