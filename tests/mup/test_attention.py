"""What the logits of attention are divided by: the warning, and the scaled queries."""

import warnings

import pyro
import pytest
import torch
from pyro.infer import SVI
from torch import nn
from torch.nn import functional as F

from pyro_ibvi import (
    AutoMuPNormal,
    LowRank,
    MaximalUpdate,
    MuPOptim,
    NeuralTangent,
    Normal,
    RandomModule,
    Standard,
    SupervisedModel,
    TraceExpectedLogLikelihood,
)
from pyro_ibvi.diagnostics.probe import Probe

DIVIDED = "divided by the square root of the head size d, where the maximal update param"
X = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(2))


class Attention(nn.Module):
    """Attention between two layers, by torch's module."""

    def __init__(self, width=8, heads=2, **kwargs):
        super().__init__()
        self.embed, self.head = nn.Linear(4, width), nn.Linear(width, 1)
        self.attend = nn.MultiheadAttention(width, heads, batch_first=True, **kwargs)

    def forward(self, x):
        h = self.embed(x)
        return self.head(self.attend(h, h, h, need_weights=False)[0])


class OwnAttention(nn.Module):
    """The same in the network's own code."""

    def __init__(self, width=8, scale=None):
        super().__init__()
        self.qkv, self.head, self.scale = nn.Linear(4, 3 * width), nn.Linear(width, 1), scale

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.head(F.scaled_dot_product_attention(q, k, v, scale=self.scale))


def encoder(width=8, heads=2, dropout=0.0):
    layer = nn.TransformerEncoderLayer(width, heads, 16, batch_first=True, dropout=dropout)
    stack = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(nn.Linear(4, width), stack, nn.Linear(width, 1))


def shapes(net):
    return {name: tuple(p.shape) for name, p in net.named_parameters()}


@pytest.mark.parametrize(
    ("net", "parametrization", "place"),
    [
        (Attention(), None, r"modules \['attend'\]"),
        (nn.MultiheadAttention(8, 2), None, r"modules \[''\]"),
        (encoder(), None, r"\['1\.layers\.0\.self_attn', '1\.layers\.1\.self_attn'\]"),
        (Attention(), MaximalUpdate(base=4), r"modules \['attend'\]"),
        (Attention(), MaximalUpdate(base=Attention(4, 2)), r"modules \['attend'\]"),
        (Attention(), MaximalUpdate(base=shapes(Attention(4, 2))), r"modules \['attend'\]"),
        (OwnAttention(), None, "own calls of scaled_dot_product_attention"),
        (OwnAttention(), MaximalUpdate(attention="1/d"), r"write scale=1 / d in those calls"),
        (nn.Sequential(Attention(), OwnAttention()), None, r"\['0\.attend'\] and the network's"),
    ],
)
def test_one_warning_where_it_is_built(net, parametrization, place):
    with pytest.warns(UserWarning, match=DIVIDED) as caught:
        RandomModule(net, parametrization=parametrization, roles={"*": "hidden"}, stochastic="all")
    (warning,) = caught
    assert warning.filename == __file__
    with pytest.warns(UserWarning, match=place):
        RandomModule(net, parametrization=parametrization)


@pytest.mark.parametrize(
    ("net", "parametrization"),
    [
        (Attention(), Standard()),
        (encoder(), NeuralTangent()),
        (Attention(), MaximalUpdate(attention="1/sqrt(d)")),
        (OwnAttention(), MaximalUpdate(attention="1/sqrt(d)")),
        (OwnAttention(scale=1 / 8), None),
        (Attention(), MaximalUpdate(attention="1/d")),
        # As many heads more as the width has grown: their size is the base's.
        (Attention(8, 4), MaximalUpdate(base=Attention(4, 2))),
        (Attention(8, 2), MaximalUpdate(base=8)),
        (Attention(8, 2), MaximalUpdate(base=shapes(Attention(8, 2)))),
        (OwnAttention(), MaximalUpdate(base=OwnAttention())),
        (nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1)), None),
    ],
)
def test_no_warning(net, parametrization):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RandomModule(net, parametrization=parametrization)


def by_hand(values, x, divisor, heads):
    """Attention of one module, from its packed or separate projections."""
    weights = values.get("in_proj_weight")
    if weights is None:
        weights = torch.cat([values[f"{part}_proj_weight"] for part in "qkv"])
    projected = x @ weights.mT + values["in_proj_bias"]
    q, k, v = (
        part.unflatten(-1, (heads, -1)).transpose(-2, -3) for part in projected.chunk(3, -1)
    )
    mixed = (q @ k.mT / divisor).softmax(-1) @ v
    return mixed.transpose(-2, -3).flatten(-2) @ values["out_proj.weight"].mT


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("separate", [False, True], ids=["packed", "separate"])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    ("base", "divisor"),
    [(None, 8), (16, 8 / 8**0.5), (nn.MultiheadAttention(8, 4), 8 / 2**0.5), ("shapes", 8 / 2)],
)
def test_scaled_queries_divide_the_logits_by_the_head_size(base, divisor, separate, frozen):
    # Heads of size 8, of which base widths make heads of 8, 2 and 4.
    net = nn.MultiheadAttention(16, 2, batch_first=True)
    if separate:
        net._qkv_same_embed_dim, shape = False, (16, 16)
        net.register_parameter("in_proj_weight", None)
        for part in "qkv":
            setattr(net, f"{part}_proj_weight", nn.Parameter(torch.randn(shape)))
    if base == "shapes":
        base = {name: tuple(n // 2 for n in shape) for name, shape in shapes(net).items()}
    elif separate and isinstance(base, nn.Module):
        base = base_of_separate(base)
    net.requires_grad_(not frozen)
    rule = MaximalUpdate(base=base, attention="1/d")
    random_net = RandomModule(net, parametrization=rule, stochastic=["out_proj"])
    with torch.no_grad():
        values = {n: torch.randn_like(p) for n, p in net.named_parameters()}
        values["out_proj.bias"].zero_()
        if frozen:
            random_net.network.load_state_dict(values)
    x = torch.randn(3, 5, 16)
    given = {n: v for n, v in values.items() if not frozen or n.startswith("out_proj")}
    output, _ = random_net.run(given, x, x, x, need_weights=False)
    torch.testing.assert_close(output, by_hand(values, x, divisor, 2))
    # The negative control: the divisor of torch's own module.
    unscaled = by_hand(values, x, 8**0.5, 2)
    assert torch.allclose(output, unscaled) == (base == 16)


def base_of_separate(base):
    result = nn.MultiheadAttention(base.embed_dim, base.num_heads)
    result.register_parameter("in_proj_weight", None)
    for part in "qkv":
        setattr(result, f"{part}_proj_weight", nn.Parameter(torch.zeros(8, 8)))
    return result


@pytest.mark.usefixtures("double")
def test_the_fused_path_of_evaluation_scales_too():
    torch.manual_seed(0)
    net = encoder()
    x = X.double()
    scaled, kept = (
        RandomModule(net.train(), parametrization=MaximalUpdate(attention=attention))
        for attention in ("1/d", "1/sqrt(d)")
    )
    values = {name: 3 * p.detach() for name, p in net.named_parameters()}
    with torch.no_grad():
        training = scaled.run(values, x)
        torch.testing.assert_close(scaled.eval().run(values, x), training)
        assert not torch.allclose(kept.run(values, x), training, rtol=1e-3)


def test_draws_together_are_draws_one_by_one():
    net = RandomModule(
        Attention(), stochastic="all", parametrization=MaximalUpdate(attention="1/d")
    )
    values = {name: torch.randn(3, *p.shape) for name, p in net.network.named_parameters()}
    alone = [net.run({n: v[i] for n, v in values.items()}, X) for i in range(3)]
    torch.testing.assert_close(net.run(values, X), torch.stack(alone))


def test_the_coordinate_check_sees_the_scaled_queries():
    # Where nothing was trained no parameter has changed a layer's output.
    net = RandomModule(Attention(), parametrization=MaximalUpdate(attention="1/d"))
    model = SupervisedModel(net, Normal(1.0), num_data=3)
    guide = AutoMuPNormal(model, covariance=LowRank(2))
    measured = Probe(model, guide, X, num_draws=2, seed=0, blocks={}).measure(1)
    changes = {key: value for key, value in measured.items() if key[0] not in ("size", "spread")}
    assert changes
    assert max(changes.values()) < 1e-6


def change_of_logits(width, attention, optimizer, seed):
    """Root mean square of what five steps change in the logits of one head of all the width."""
    pyro.set_rng_seed(seed)
    rule = MaximalUpdate(attention=attention, inputs="reference")
    net = RandomModule(Attention(width, 1), parametrization=rule)
    model = SupervisedModel(net, Normal(0.5), num_data=3)
    guide = AutoMuPNormal(model, covariance=LowRank(2), init_scale=1e-3)
    objective = TraceExpectedLogLikelihood(reduction="mean")
    svi = SVI(model, guide, MuPOptim(optimizer, {"lr": 0.01}, guide), objective)

    def logits():
        means = {name.removeprefix("net."): value for name, value in guide.median().items()}
        point = {name: p for name, p in net.network.named_parameters() if p.requires_grad}
        values = net.network_values(point | means)
        h = X @ values["embed.weight"].mT + values["embed.bias"]
        projected = h @ values["attend.in_proj_weight"].mT + values["attend.in_proj_bias"]
        q, k, _ = projected.chunk(3, -1)
        return (q @ k.mT / width**0.5).detach()

    before = logits()
    for _ in range(5):
        svi.step(X, X.sum(-1, keepdim=True))
    return (logits() - before).square().mean().sqrt().item()


def growth_of_the_change(attention, optimizer):
    """The change at a head size of 512 over that at 32, each the mean over two seeds."""
    small, large = (
        sum(change_of_logits(width, attention, optimizer, seed) for seed in range(2))
        for width in (32, 512)
    )
    return large / small


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_with_scaled_queries_logits_move_alike_at_every_head_size(optimizer):
    scaled = growth_of_the_change("1/d", optimizer)
    assert 0.4 < scaled < 2.5
    # The negative control, torch's own divisor: by the square root of 16 more, if not faster.
    assert growth_of_the_change("1/sqrt(d)", optimizer) > 2.5 * scaled
