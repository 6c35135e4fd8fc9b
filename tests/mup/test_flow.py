"""Which layers data reach first and leave last, found without touching the network."""

import ast
import copy
import re
import threading
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pyro_ibvi import Normal, RandomModule, VariationalNetwork, roles
from pyro_ibvi.mup import find_roles
from tests.mup.test_roles import Backwards, Functional, Transformer, Transposed, TwoHeads

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def matrix_roles(net, **kwargs):
    weights = find_roles(net, **kwargs)
    return {n.removesuffix(".weight"): w.role for n, w in weights.items() if w.role != "bias"}


EXPECTED = {"head": "output", "hidden": "hidden", "stem": "input"}


class ByNumbers(Backwards):
    """Lets the data decide, by how many there are and how large."""

    def forward(self, x):
        h = self.stem(x)
        for _ in range(len(x)):
            h = self.hidden(h).tanh() if h.abs().mean() > 0 else h
        return self.head(h)


class WritesRows(Backwards):
    def forward(self, x):
        h, out = self.stem(x), torch.zeros(len(x), 8)
        for i, row in enumerate(h):
            out[i] = self.hidden(row)
        return self.head(out)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        return h * h

    @staticmethod
    def backward(ctx, grad):
        raise NotImplementedError


class OwnFunction(Backwards):
    def forward(self, x):
        return self.head(Square.apply(self.hidden(checkpoint(self.stem, x, use_reentrant=False))))


class NumPyLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x):
        return torch.from_numpy(np.tanh(self.inner(x).numpy()))


class HidesALayer(Backwards):
    """What a module makes by NumPy still comes from what went into it."""

    def __init__(self):
        super().__init__()
        self.hidden = NumPyLayer()

    def forward(self, x):
        return self.head(self.hidden(self.stem(x)))


@pytest.mark.parametrize(
    "kind", [Backwards, Functional, Transposed, ByNumbers, WritesRows, OwnFunction]
)
@pytest.mark.parametrize(
    "wrap", [lambda net: net, nn.DataParallel, lambda net: torch.compile(net, backend="eager")]
)
def test_a_recorded_pass_tells_the_order_of_the_data(kind, wrap):
    found = matrix_roles(wrap(kind()), example_input=X)
    assert {name.rpartition(".")[2]: role for name, role in found.items()} == EXPECTED


def test_a_module_hands_on_what_reached_it():
    found = matrix_roles(HidesALayer(), example_input=X)
    assert found == {"head": "output", "hidden.inner": "hidden", "stem": "input"}


def test_a_recorded_pass_with_several_inputs_and_heads():
    example = {"x": torch.randn(2, 3), "z": torch.randn(2, 5)}
    expected = {"a": "input", "b": "input", "mean": "output", "scale": "output"}
    assert matrix_roles(TwoHeads(), example_input=example) == expected
    assert matrix_roles(TwoHeads(), example_input=tuple(example.values())) == expected


def test_a_recorded_transformer_is_the_traced_one():
    net, tokens = Transformer(), torch.zeros(2, 5, dtype=torch.long)
    assert find_roles(net, example_input=tokens) == find_roles(net)


def test_a_table_that_is_read_out_too_is_found_in_a_recording():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.hidden = nn.Embedding(9, 8), nn.Linear(8, 8)

        def forward(self, x):
            h = self.hidden(self.table(x)).tanh() if len(x) else None
            return F.linear(h, self.table.weight)

    weights = find_roles(Tied(), example_input=torch.zeros(2, dtype=torch.long))
    assert weights["table.weight"].tied
    assert not weights["hidden.weight"].tied


class Stateful(nn.Module):
    """Counts its calls, keeps its last activation and a hidden state, and averages its input."""

    def __init__(self):
        super().__init__()
        self.memory, self.head = nn.GRU(3, 8), nn.Linear(8, 1)
        self.register_buffer("average", torch.zeros(3))
        self.state, self.calls, self.seen = None, 0, []

    def forward(self, x):
        h, self.state = self.memory(x, self.state)
        self.calls += 1
        self.seen.append(h)
        self.average = 0.9 * self.average + 0.1 * x.mean(0)
        return self.head(h)


def facts(net):
    return net.state, net.calls, list(net.seen), net.average.clone(), net.training


@pytest.mark.parametrize("example", [None, X])
@pytest.mark.parametrize("look", [find_roles, RandomModule, roles])
def test_looking_leaves_a_network_as_it_is(look, example):
    torch.manual_seed(0)
    net = Stateful()
    before, state = facts(net), copy.deepcopy(net.state_dict())
    random_state = torch.get_rng_state()
    result = look(net, example_input=example)
    for looked_at in [net, result.network] if look is RandomModule else [net]:
        assert facts(looked_at)[:3] == before[:3] == (None, 0, [])
        assert torch.equal(looked_at.average, before[3])
        assert looked_at.training
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    if look is find_roles:
        assert torch.equal(torch.get_rng_state(), random_state)


def test_an_example_that_does_not_fit_is_said_so():
    with pytest.raises(
        ValueError, match="The Backwards fails on example_input: RuntimeError: mat1"
    ):
        RandomModule(Backwards(), example_input=torch.zeros(2, 7))


def test_an_example_gives_lazy_parameters_their_shapes():
    net = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(1))
    random_net = RandomModule(net, example_input=X)
    assert random_net.roles["0.weight"].fans.fan_in == 3
    assert random_net(X).shape == (4, 1)
    assert net[0].has_uninitialized_params()


def test_half_a_word_of_the_user_replaces_half_the_guess():
    # The last layer registered is the stem; whoever names the input has said that it is none.
    with pytest.warns(UserWarning, match="ByNumbers cannot be traced"):
        found = matrix_roles(ByNumbers(), overrides={"stem": "input"})
    assert found["stem"] == "input"
    given = {"stem": "input", "head": "output"}
    assert matrix_roles(ByNumbers(), overrides=given) == EXPECTED


class Tied(nn.Module):
    """Reads out by its table, along a way that depends on the data."""

    def __init__(self):
        super().__init__()
        self.table, self.hidden, self.head = nn.Embedding(5, 8), nn.Linear(8, 8), nn.Linear(8, 5)
        self.head.weight = self.table.weight
        self.head.bias = None

    def forward(self, x):
        return self.head(self.hidden(self.table(x)).tanh() if len(x) > 1 else self.table(x))


@pytest.mark.parametrize(
    "net", [ByNumbers(), torch.compile(ByNumbers(), backend="eager"), nn.Sequential(Tied())]
)
def test_what_a_guess_tells_to_write_ends_it(net):
    with pytest.warns(UserWarning, match="cannot be traced") as caught:
        find_roles(net)
    (remedy,) = re.findall(r"roles=(\{.*\})\.$", str(caught[0].message))
    with warnings.catch_warnings(action="error"):
        find_roles(net, overrides=ast.literal_eval(remedy))


class Steps(nn.Module):
    """Euler's steps of an ODE: the layer that data reach first is fed by the last, too."""

    def __init__(self):
        super().__init__()
        self.stem, self.hidden, self.head = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        for _ in range(3):
            x = x + 0.1 * self.head(self.hidden(self.stem(x).tanh()).tanh())
        return x


@pytest.mark.parametrize("example", [None, X])
def test_a_loop_has_ends(example):
    assert matrix_roles(Steps(), example_input=example) == EXPECTED
    bnn = VariationalNetwork(Steps(), Normal(1.0), example_input=example)
    assert bnn.net.stochastic == ["stem.weight", "head.weight"]


def test_a_layer_inside_of_a_loop_is_no_end():
    class Refining(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.hidden = nn.Linear(3, 8), nn.Linear(8, 8)
            self.head = nn.Linear(8, 1)

        def forward(self, x):
            h = torch.zeros(4, 8)
            for _ in range(3):
                h = (self.hidden(h) + self.stem(x)).tanh()
            return self.head(h)

    assert matrix_roles(Refining()) == matrix_roles(Refining(), example_input=X) == EXPECTED


class StochasticDepth(Backwards):
    """Leaves layers out at random in training, where it has one more head."""

    def __init__(self):
        super().__init__()
        self.aside = nn.Linear(8, 2)

    def forward(self, x):
        h = self.stem(x)
        if not self.training or torch.rand(()) < 0.5:
            h = self.hidden(h).tanh()
        return (self.head(h), self.aside(h)) if self.training else self.head(h)


@pytest.mark.parametrize("example", [None, X])
def test_both_modes_count(example):
    expected = {**EXPECTED, "aside": "output"}
    for seed in range(4):
        torch.manual_seed(seed)
        assert matrix_roles(StochasticDepth(), example_input=example) == expected


def test_networks_run_while_another_thread_traces():
    # A symbolic trace replaces nn.Module.__call__ for the whole process.
    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            inside.set()
            assert done.wait(10)
            return self.layer(x)

    inside, done, found = threading.Event(), threading.Event(), []
    net = Backwards()
    expected = net(X)
    # The events cannot be copied, but need not be: they are globals of the test.
    thread = threading.Thread(target=lambda: found.append(matrix_roles(Slow())))
    thread.start()
    assert inside.wait(10)
    try:
        assert torch.equal(net(X), expected)
    finally:
        done.set()
        thread.join()
    assert [list(each) for each in found] == [["layer"]]
