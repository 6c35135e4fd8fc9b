"""Embeddings that are read-out matrices too."""

import warnings

import pytest
import torch
from pyro.infer import SVI
from torch import nn
from torch.nn import functional as F

from pyro_ibvi import (
    AutoMuPNormal,
    Categorical,
    LowRank,
    MaximalUpdate,
    MuPOptim,
    NeuralTangent,
    RandomModule,
    Standard,
    SupervisedModel,
    TraceExpectedLogLikelihood,
    roles,
)
from pyro_ibvi.mup.parametrization import Fans
from pyro_ibvi.mup.roles import find_roles

TOKENS = 11


class Tied(nn.Module):
    """Embedding, hidden layer and read-out by one tensor; ``first`` is the layer that names it."""

    def __init__(self, width=8, first="embed", divisor=1.0):
        super().__init__()
        layers = {"embed": nn.Embedding(TOKENS, width), "read": nn.Linear(width, TOKENS)}
        for name in (first, "embed", "read"):
            if not hasattr(self, name):
                self.add_module(name, layers[name])
        self.hidden = nn.Linear(width, width)
        self.read.weight, self.divisor = self.embed.weight, divisor

    def forward(self, x):
        return self.read(self.hidden(self.embed(x)).tanh()) / self.divisor


class Called(nn.Module):
    """The same by a call with the embedding's weight."""

    def __init__(self, width=8, multiply=F.linear):
        super().__init__()
        self.embed, self.hidden = nn.Embedding(TOKENS, width), nn.Linear(width, width)
        self.multiply = multiply

    def forward(self, x):
        return self.multiply(self.hidden(self.embed(x)).tanh(), self.embed.weight)


class Untied(nn.Module):
    """Looks its tables up by calls, one of them at fixed places, and has a read-out of its own."""

    def __init__(self):
        super().__init__()
        self.embed, self.read = nn.Embedding(TOKENS, 8), nn.Linear(8, TOKENS)
        self.places = nn.Embedding(3, 8)
        self.register_buffer("positions", torch.arange(3))

    def forward(self, x):
        places = F.embedding(self.positions, self.places.weight)
        return self.read(F.embedding(x, self.embed.weight) + 2 * places)


class Placed(nn.Module):
    """Joins a table of places, whole or in part, to what it makes of each step."""

    def __init__(self, join):
        super().__init__()
        self.embed, self.places = nn.Linear(3, 8), nn.Embedding(5, 8)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.read, self.join = nn.Linear(8, 2), join

    def forward(self, x):
        h = self.attend(*3 * [self.embed(x)], need_weights=False)[0]
        return self.read(self.join(h, self.places.weight, x, self.attend).mean(-2))


JOINS = {
    "+": lambda h, w, *_: h + w,
    "+ from the right": lambda h, w, *_: w.unsqueeze(0) + h,
    "in place": lambda h, w, *_: h.add_(w),
    "part": lambda h, w, *_: torch.add(h, w[:5]),
    "part by the data's size": lambda h, w, *_: h + w[: h.size(1)],
    "part at a fixed index": lambda h, w, *_: h + w[torch.arange(5)],
    "rows that data pick": lambda h, w, x, _: h + w[(x[..., 0] > 0).long()],
    "rows by index_select": lambda h, w, *_: h + w.index_select(0, torch.arange(5)),
    "as large as the data": lambda h, w, *_: h + w.expand_as(h),
    "of the data's type": lambda h, w, *_: h + w.to(h.dtype),
    "method": lambda h, w, *_: h.sub(w[None]),
    "beside": lambda h, w, *_: torch.cat([h, w.expand(h.shape[0], -1, -1)], -2),
    "factors": lambda h, w, *_: h * w,
    "queries": lambda h, w, _, attend: attend(w.expand(h.shape[0], -1, -1), h, h)[0],
}

NETWORKS = {
    "embedding first": (Tied(), "embed.weight"),
    "read-out first": (Tied(first="read"), "read.weight"),
    "call": (Called(), "embed.weight"),
    "product": (Called(multiply=lambda h, w: h @ w.t()), "embed.weight"),
    "part": (Called(multiply=lambda h, w: F.linear(h, w[: h.size(0)])), "embed.weight"),
    "sum": (Called(multiply=lambda h, w: torch.einsum("bi,oi->bo", h, w)), "embed.weight"),
    "nested": (nn.Sequential(Tied(first="read")), "0.read.weight"),
    "compiled": (torch.compile(Tied(), backend="eager"), "_orig_mod.embed.weight"),
}


@pytest.mark.parametrize("x", [None, torch.arange(4)], ids=["traced", "recorded"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_tied_weight_is_an_embedding_wherever_it_stands(kind, x):
    net, name = NETWORKS[kind]
    weights = find_roles(net, example_input=x)
    assert {n for n, w in weights.items() if w.tied} == {name}
    weight = weights[name]
    # One-hot inputs see one row; the width is the embedding's, whichever layer names the tensor.
    assert (weight.role, weight.layer_role, weight.fans) == ("input", "input", Fans(1, 1, 8))
    hidden = next(w for n, w in weights.items() if n.endswith("hidden.weight"))
    assert hidden.role == "hidden"


@pytest.mark.parametrize("net", [Untied(), nn.Embedding(TOKENS, 8), nn.Linear(8, 8)])
def test_other_weights_are_not_tied(net):
    assert not any(weight.tied for weight in find_roles(net).values())


@pytest.mark.parametrize("x", [None, torch.randn(4, 5, 3)], ids=["traced", "recorded"])
@pytest.mark.parametrize("how", JOINS)
def test_a_table_that_is_joined_to_data_is_not_tied(how, x):
    weights = find_roles(Placed(JOINS[how]), example_input=x)
    assert not any(weight.tied for weight in weights.values())
    assert weights["embed.weight"].role == "input"
    assert weights["read.weight"].role == "output"


@pytest.mark.parametrize("first", ["embed", "read"])
def test_base_widths_are_the_tables(first):
    net, base = Tied(32, first), Tied(8, first)
    shapes = {name: tuple(p.shape) for name, p in base.named_parameters()}
    for given in (8, base, shapes):
        fans = find_roles(net, base=given)[f"{first}.weight"].fans
        assert (fans.width_out, fans.base_width_in, fans.base_width_out) == (32, 1, 8)


def test_scale_and_rates_are_those_of_both_rows_of_the_table():
    # Table 8, by hand: embedding and read-out start at 1 and learn at the width's rate (SGD) or
    # at 1 (Adam); what tells them apart is the read-out's multiplier.
    with pytest.warns(UserWarning, match="read-out matrices too"):
        weight = roles(Tied(32))["embed.weight"]
    assert (weight.std(), weight.rate("sgd"), weight.rate("adam")) == (1.0, 32.0, 1.0)


@pytest.mark.parametrize(
    ("net", "parametrization", "message"),
    [
        (
            Tied(),
            None,
            r"\['embed.weight'\] are .*\(8 here\): .*roles=\{\"embed.weight\": \"input",
        ),
        (Tied(first="read"), None, r"\['read.weight'\] are read-out matrices too"),
        (Tied(32), MaximalUpdate(base=8), r"over that of the base \(4 here\)"),
        (Called(), None, r"\['embed.weight'\]"),
    ],
)
def test_a_warning_says_what_the_network_must_do(net, parametrization, message):
    with pytest.warns(UserWarning, match=message) as caught:
        RandomModule(net, stochastic="all", parametrization=parametrization)
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize(
    "arguments",
    [
        {"roles": {"embed.weight": "input"}},
        {"roles": {"embed": "input"}},
        {"parametrization": Standard()},
        {"parametrization": NeuralTangent()},
        {"parametrization": MaximalUpdate(base=8)},  # nothing has grown
    ],
)
def test_no_warning_where_the_user_knows(arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = RandomModule(Tied(), stochastic="all", **arguments)
    table = str(roles(net))
    assert "embed.weight   input (tied)  1" in table
    notes = [line for line in table.splitlines() if "must divide its logits by 8" in line]
    assert len(notes) == ("roles" in arguments)


def change_of_logits(width, divisor, optimizer, lr):
    """Root mean square of what three steps change in the logits of the mean."""
    torch.manual_seed(width)
    net = RandomModule(
        Tied(width, divisor=divisor), stochastic=["hidden"], roles={"embed": "input"}
    )
    model = SupervisedModel(net, Categorical(), num_data=TOKENS)
    guide = AutoMuPNormal(model, covariance=LowRank(2), init_scale=1e-3)
    x = torch.arange(TOKENS)
    svi = SVI(
        model,
        guide,
        MuPOptim(optimizer, {"lr": lr}, guide),
        TraceExpectedLogLikelihood(reduction="mean"),
    )

    def logits():
        point = {k: v for k, v in net.network.named_parameters() if v.requires_grad}
        means = {k.removeprefix("net."): v for k, v in guide.median().items()}
        return net.run(point | means, x).detach().clone()

    before = logits()
    for _ in range(3):
        svi.step(x, (x + 1) % TOKENS)
    return (logits() - before).square().mean().sqrt().item()


@pytest.mark.parametrize(("optimizer", "lr"), [(torch.optim.SGD, 0.1), (torch.optim.Adam, 0.1)])
def test_with_divided_logits_training_does_not_depend_on_the_width(optimizer, lr):
    small, large = (change_of_logits(width, width, optimizer, lr) for width in (64, 1024))
    assert 0.7 < large / small < 1.4
    # The negative control: without the division the logits' change grows with the width.
    small, large = (change_of_logits(width, 1.0, optimizer, lr) for width in (64, 1024))
    assert large / small > 3
