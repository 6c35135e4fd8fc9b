"""A run has a copy of the network's structure: what is shared, what is kept, what stays behind."""

import copy
import functools
import gc
import types
import warnings
import weakref

import pytest
import torch
from pyro.infer import SVI
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from pyro_ibvi import (
    AutoMuPNormal,
    Diagonal,
    LowRank,
    MuPOptim,
    Normal,
    RandomModule,
    SupervisedModel,
    TraceExpectedLogLikelihood,
    predict,
)

BATCH = 6
X = torch.randn(BATCH, 3, generator=torch.Generator().manual_seed(0))
Y = torch.ones(BATCH, 1)


def build(net, covariance=None, **kwargs):
    net = RandomModule(net, stochastic=kwargs.pop("stochastic", "all"), **kwargs)
    model = SupervisedModel(net, Normal(0.5), num_data=20)
    return model, AutoMuPNormal(model, covariance=covariance or LowRank(2))


def svi_of(model, guide, **kwargs):
    loss = TraceExpectedLogLikelihood(reduction="mean", **kwargs)
    return SVI(model, guide, MuPOptim(torch.optim.SGD, {"lr": 1e-3}, guide), loss)


def draw_of(model, seed=0):
    torch.manual_seed(seed)
    return {name: torch.randn_like(p) for name, p in model.net.network.named_parameters()}


# -- checkpointing --------------------------------------------------------------------------------


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 1)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())

    def run_block(self, h):
        return self.block(h)

    def forward(self, x):
        return self.last(self.run_block(self.first(x).tanh()))


class Forgetful(Plain):
    def __init__(self, how):
        super().__init__()
        self.how = how

    def run_block(self, h):
        if self.how == "in pieces":
            return checkpoint_sequential(self.block, 2, h, use_reentrant=False)
        if self.how == "a function":
            return checkpoint(lambda h: self.block(h), h, use_reentrant=False)
        return checkpoint(self.block, h, use_reentrant=self.how == "reentrant")


class Memory(nn.Module):
    def __init__(self, how=None):
        super().__init__()
        self.how, self.memory, self.last = how, nn.GRU(1, 5, batch_first=True), nn.Linear(5, 1)

    def forward(self, x):
        x = x.unsqueeze(-1)
        if self.how is None:
            return self.last(self.memory(x)[0][:, -1])
        h = checkpoint(self.memory, x, use_reentrant=False)[0]
        return self.last(h[:, -1])


def gradients(net, covariance, num_steps=2):
    torch.manual_seed(0)
    model, guide = build(net, covariance)
    loss = TraceExpectedLogLikelihood(reduction="mean")(model, guide)
    torch.manual_seed(1)
    for _ in range(num_steps):  # the second run must not change what the first has drawn
        total = loss(X, Y) + loss(X, Y)
        total.backward()
    named = [*guide.named_parameters(), *model.named_parameters()]
    return {name: p.grad for name, p in named if p.requires_grad}


@pytest.mark.parametrize("covariance", [LowRank(2), Diagonal()], ids=str)
@pytest.mark.parametrize("how", ["reentrant", "not reentrant", "in pieces", "a function", "gru"])
def test_checkpointed_gradients_are_those_without(how, covariance):
    plain, forgetful = (Memory(), Memory(how)) if how == "gru" else (Plain(), Forgetful(how))
    forgetful.load_state_dict(plain.state_dict())
    expected, found = gradients(plain, covariance), gradients(forgetful, covariance)
    assert any(name.startswith("factors.net") for name in expected)
    for name, gradient in expected.items():
        assert gradient.abs().sum() > 0
        torch.testing.assert_close(found[name], gradient, msg=name)


# -- state ----------------------------------------------------------------------------------------


class Forecaster(nn.Module):
    """Keeps its hidden state between batches, counts them, and averages its inputs."""

    def __init__(self, kind=nn.LSTM):
        super().__init__()
        self.memory, self.out = kind(1, 4, batch_first=True), nn.Linear(4, 1)
        self.register_buffer("average", torch.zeros(()))
        self.state, self.calls, self.log = None, 0, []

    def forward(self, x):
        h, state = self.memory(x.unsqueeze(-1), self.state)
        self.state = torch.utils._pytree.tree_map(torch.Tensor.detach, state)
        self.calls += 1
        self.log.append(float(x.mean()))
        self.average = 0.5 * self.average + 0.5 * x.mean()
        return self.out(h[:, -1])


def state_of(net):
    return net.state, net.calls, list(net.log), net.average.clone()


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_state_between_batches_is_what_torch_would_keep(kind):
    net = Forecaster(kind)
    model, _ = build(net, example_input=X)
    plain = copy.deepcopy(net)
    assert state_of(model.net.network)[:3] == (None, 0, [])
    for step in range(3):
        draw = draw_of(model, step)
        expected = functional_call(plain, draw, (X + step,))
        torch.testing.assert_close(model.run(draw, X + step), expected)
        torch.testing.assert_close(state_of(model.net.network), state_of(plain))
    assert state_of(net)[:3] == (None, 0, [])


def test_many_draws_start_at_the_same_state_and_leave_it_in_evaluation_mode():
    model, guide = build(Forecaster(), example_input=X)
    model.run(draw_of(model), X)
    before = copy.deepcopy(state_of(model.net.network))
    draws = {n: torch.randn(3, *p.shape) for n, p in model.net.network.named_parameters()}
    model.eval()
    outputs = model.run(draws, X)
    torch.testing.assert_close(state_of(model.net.network), before)
    for i, output in enumerate(outputs):
        alone = copy.deepcopy(model)
        torch.testing.assert_close(alone.run({n: v[i] for n, v in draws.items()}, X), output)
    model.train()
    predict(model, guide, X, num_samples=4)
    torch.testing.assert_close(state_of(model.net.network), before)
    # In training the last draw's state is kept.
    model.run(draws, X)
    last = {n: v[-1] for n, v in draws.items()}
    alone.net.network.state = before[0]
    alone.run(last, X)
    torch.testing.assert_close(model.net.network.state, alone.net.network.state)
    assert model.net.network.calls == before[1] + 1


class Keeps(nn.Module):
    """Keeps an activation, as a user does who wants to look at it, and one more by a hook."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 1)
        self.last, self.everything = None, {}
        self.a.register_forward_hook(self.note)

    def note(self, module, args, output):
        self.everything["a"] = output

    def forward(self, x):
        self.last = self.a(x).tanh()
        return self.b(self.last)


def histories():
    """All tensors with a graph that something in this process refers to."""
    gc.collect()
    tensors = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor)]
    return [t for t in tensors if t.grad_fn is not None]


def is_view_of_a_parameter(tensor):
    return tensor._base is not None and tensor._base.is_leaf


@pytest.mark.parametrize("make", [Keeps, Memory, Forecaster, lambda: nn.LSTM(3, 1)])
def test_nothing_of_a_step_stays_behind(make):
    net = make()
    net = nn.Sequential(net, First()) if isinstance(net, nn.LSTM) else net
    model, guide = build(net, example_input=X)
    before = histories()  # of other tests
    svi = svi_of(model, guide)
    svi.step(X, Y)
    svi.step(X, Y)
    others = {id(t) for t in before}
    assert all(id(t) in others or is_view_of_a_parameter(t) for t in histories())
    assert copy.deepcopy(model) is not model


class First(nn.Module):
    def forward(self, output):
        return output[0]


def test_a_kept_activation_is_there_to_be_looked_at():
    net = Keeps()
    net(X)  # it keeps a tensor with a history from now on, which deepcopy refuses
    model, _ = build(net)
    torch.testing.assert_close(model.net.network.last, net.last.detach())
    draw = draw_of(model)
    model.run(draw, X)
    h = torch.nn.functional.linear(X, draw["a.weight"], draw["a.bias"])
    torch.testing.assert_close(model.net.network.last, h.tanh())
    torch.testing.assert_close(model.net.network.everything["a"], h)
    assert not torch.equal(net.last, model.net.network.last)


@pytest.mark.parametrize("make", [Plain, Forecaster, Keeps])
def test_inference_mode(make):
    model, guide = build(make(), example_input=X)
    draws = {n: torch.randn(3, *p.shape) for n, p in model.net.network.named_parameters()}
    expected = copy.deepcopy(model.eval()).run(draws, X)
    with torch.inference_mode():
        torch.testing.assert_close(model.run(draws, X), expected)
        predict(model, guide, X, num_samples=2)
    model.train()
    assert torch.tensor([svi_of(model, guide).step(X, Y) for _ in range(2)]).isfinite().all()


class MakesItsOwn(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 1)

    def forward(self, x):
        if not hasattr(self, "shift"):
            self.shift = nn.Parameter(torch.zeros(()))
        return self.a(x) + self.shift


def test_parameters_made_by_the_forward_pass_are_refused():
    model, _ = build(MakesItsOwn(), roles={"a": "output"})
    with pytest.raises(RuntimeError, match=r"MakesItsOwn made the parameters \['shift'\] while"):
        model.run(draw_of(model), X)


# -- ways from one module to another --------------------------------------------------------------


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 1)

    def forward(self, x):
        return self.b(self.a(x).tanh())


class InAList(Base):
    def __init__(self):
        super().__init__()
        self.steps = [self.a, torch.tanh, self.b]
        self.named = {"inner": {"a": self.a}}

    def forward(self, x):
        assert self.named["inner"]["a"] is self.a
        for step in self.steps:
            x = step(x)
        return x


class Helper:
    def __init__(self, module):
        self.module = module

    def __call__(self, x):
        return self.module(x).tanh()


class ByAnObject(Base):
    def __init__(self):
        super().__init__()
        self.helper = Helper(self.a)

    def forward(self, x):
        return self.b(self.helper(x))


class ByAWeakReference(Base):
    def __init__(self):
        super().__init__()
        self.b.parent = weakref.ref(self)

    def forward(self, x):
        return self.b(self.b.parent().a(x).tanh())


def with_a_replaced_forward():
    net = Base()

    def forward(self, x):
        return self.b(self.a(x).tanh())

    net.forward = types.MethodType(forward, net)
    return net


def with_a_wrapped_forward():
    net = Base()
    inner = net.forward
    net.forward = functools.partial(lambda forward, x: forward(x), inner)
    return net


def with_a_closure():
    net = Base()
    a, b = net.a, net.b
    net.forward = lambda x: b(a(x).tanh())
    return net


def compiled_in_place():
    net = Base()
    net.compile(backend="eager")
    return net


def with_a_compiled_part():
    net = Base()
    net.a = torch.compile(net.a, backend="eager")
    return net


WAYS = [
    InAList, ByAnObject, ByAWeakReference, with_a_replaced_forward, with_a_wrapped_forward,
    with_a_closure, compiled_in_place, with_a_compiled_part,
]  # fmt: skip


@pytest.mark.parametrize("make", WAYS)
def test_no_way_leads_back_to_the_network(make):
    net = make()
    roles = {"a*": "input", "b*": "output"}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor")
        model, guide = build(net, roles=roles)
        before = copy.deepcopy(net.state_dict())
        draw = {n.replace("._orig_mod", ""): v for n, v in draw_of(model).items()}
        h = torch.nn.functional.linear(X, draw["a.weight"], draw["a.bias"]).tanh()
        expected = torch.nn.functional.linear(h, draw["b.weight"], draw["b.bias"])
        torch.testing.assert_close(model.run(draw_of(model), X), expected)
        svi = svi_of(model, guide)
        start = copy.deepcopy(guide.state_dict())
        svi.step(X, Y)
        moved = [n for n, v in guide.state_dict().items() if not torch.equal(v, start[n])]
        assert len(moved) == len(start)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_network_compiled_in_place_still_is():
    calls = []

    def backend(graph, inputs):
        calls.append(graph)
        return graph.forward

    net = Base()
    net.compile(backend=backend)
    model, _ = build(net)
    assert not calls
    for seed in range(4):
        model.run(draw_of(model, seed), X)
    assert len(calls) == 1  # every run has module objects of its own, and compiles no more


def test_hooks_see_the_drawn_weights():
    model, _ = build(Base())
    seen = []
    model.net.network.a.register_forward_hook(lambda module, args, out: seen.append(module.weight))
    draw = draw_of(model)
    model.run(draw, X)
    assert seen[0] is draw["a.weight"]


# -- layers' inputs -------------------------------------------------------------------------------


def test_a_layers_input_may_go_through_a_function():
    model, _ = build(Base())
    draw, noise = draw_of(model), torch.randn(BATCH, 8)
    maps = {"b": lambda h: h * noise}
    output = model.net.runner.run(draw, (X,), {}, input_maps=maps)
    h = torch.nn.functional.linear(X, draw["a.weight"], draw["a.bias"]).tanh() * noise
    torch.testing.assert_close(
        output, torch.nn.functional.linear(h, draw["b.weight"], draw["b.bias"])
    )
    assert not model.net.network.b._forward_pre_hooks
    torch.testing.assert_close(model.run(draw, X), functional_call(Base(), draw, (X,)))
