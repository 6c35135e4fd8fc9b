"""What to write of a parameter of a layer that is not known."""

import re

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from pyro_ibvi import MaximalUpdate, RandomModule, WeightRole, roles
from pyro_ibvi.mup.roles import find_roles
from tests.mup.test_roles import Unknown


class Vision(nn.Module):
    """A transformer of patches, with a class token, positions, factors and a temperature."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(1, 16, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, 16))
        self.position = nn.Parameter(torch.zeros(1, 17, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 1)
        self.scale, self.temperature = nn.Parameter(torch.ones(16)), nn.Parameter(torch.ones(()))
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        h = self.patches(x).flatten(2).transpose(1, 2)
        h = torch.cat([self.token.expand(h.shape[0], -1, -1), h], 1)
        h = self.layers(h + self.position[:, : h.shape[1]]) * self.scale
        return self.head(h[:, 0]) / self.temperature


class Queries(nn.Module):
    """Attention of learned queries, and a recurrent layer with a learned state."""

    def __init__(self):
        super().__init__()
        self.query, self.state = nn.Parameter(torch.ones(4, 8)), nn.Parameter(torch.ones(1, 1, 8))
        self.rnn = nn.GRU(3, 8, batch_first=True)
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 1)

    def forward(self, x):
        h, _ = self.rnn(x, self.state.expand(-1, x.size(0), -1).contiguous())
        query = self.query.unsqueeze(0).expand(x.size(0), -1, -1)
        return self.head(self.attention(query, h, h)[0].mean(1))


class Rows(nn.Module):
    """Rows that the data pick, and a shift of the network's own."""

    def __init__(self):
        super().__init__()
        self.rows, self.shift = nn.Parameter(torch.randn(5, 8)), nn.Parameter(torch.zeros(1, 8))
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        return self.head(torch.relu(self.rows[x.long()[:, 0]] - self.shift))


@pytest.mark.parametrize("is_recorded", [False, True])
@pytest.mark.parametrize(
    ("net", "x", "expected"),
    [
        (
            Vision(),
            torch.zeros(2, 1, 16, 16),
            {
                "token": ("bias", 16),
                "position": ("bias", 16),
                "scale": ("gain", 16),
                "temperature": ("gain", 1),
            },
        ),
        (Queries(), torch.zeros(2, 5, 3), {"query": ("bias", 8), "state": ("bias", 8)}),
        (Rows(), torch.zeros(2, 1), {"rows": ("bias", 8), "shift": ("bias", 8)}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_is_added_or_multiplies_number_by_number_is_seen(net, x, expected, is_recorded):
    found = find_roles(net, example_input=x if is_recorded else None)
    for name, (role, size) in expected.items():
        assert found[name] == WeightRole.of(role, fan_in=1, fan_out=size, layer=name)


class Pooling(nn.Module):
    """A matrix of one row, written as factors that are summed, in one way or another."""

    def __init__(self, pool):
        super().__init__()
        self.layer, self.weight = nn.Linear(3, 8), nn.Parameter(torch.ones(8))
        self.pool = pool

    def forward(self, x):
        return self.pool(self.layer(x), self.weight)


@pytest.mark.parametrize(
    "pool",
    [
        lambda h, w: (h * w).sum(-1),
        lambda h, w: (h + h * w).unsqueeze(1).mean(-1),
        lambda h, w: h @ w,
        lambda h, w: torch.einsum("bi,i->b", h + w, w),
        lambda h, w: h + w + (w * h).relu().sum(-1, keepdim=True),
        lambda h, w: h**w,
    ],
)
@pytest.mark.parametrize("is_recorded", [False, True])
def test_what_is_or_may_be_a_matrix_is_asked_for(pool, is_recorded):
    example = torch.ones(2, 3) if is_recorded else None
    with pytest.raises(ValueError, match=r"fan_in=8, fan_out=1\) if these are summed") as error:
        find_roles(Pooling(pool), example_input=example)
    shown = re.search(r"WeightRole.of\(.*?\)", str(error.value))[0]
    role = eval(shown, {"WeightRole": WeightRole})
    assert find_roles(Pooling(pool), overrides={"weight": role})["weight"].fans.fan_in == 8
    found = find_roles(Pooling(pool), overrides={"weight": "gain"})["weight"]
    assert found == WeightRole.of("gain", fan_in=1, fan_out=8, layer="weight")


def test_a_pass_that_cannot_be_traced_is_asked_for():
    class Untraced(Vision):
        def forward(self, x):
            return super().forward(x) if x.mean() > -1 else x

    with (
        pytest.warns(UserWarning, match="cannot be traced"),
        pytest.raises(ValueError, match="Or pass example_input=x, a batch of inputs"),
    ):
        find_roles(Untraced())
    found = find_roles(Untraced(), example_input=torch.zeros(2, 1, 16, 16))
    assert found["position"].role == "bias"


class Own(nn.Module):
    """Linear layers in the network's own code, with positions, factors and a stack of matrices."""

    def __init__(self, width):
        super().__init__()
        self.first = nn.Parameter(torch.randn(3, width))
        self.turned = nn.Parameter(torch.randn(2 * width, width))
        self.stack = nn.Parameter(torch.randn(4, 2 * width, width))
        self.last = nn.Parameter(torch.randn(width, 2))
        self.places = nn.Parameter(torch.zeros(1, 16, width))
        self.sizes = nn.Parameter(torch.ones(width, 1))

    def roles(self):
        width, of = len(self.sizes), WeightRole.of
        return {
            "first": of("input", fan_in=3, fan_out=width, inputs_first=True),
            "turned": of("hidden", fan_in=width, fan_out=2 * width),
            "stack": of("hidden", fan_in=2 * width, fan_out=width, inputs_first=True),
            "last": of("output", fan_in=width, fan_out=2, inputs_first=True),
            "places": of("bias", fan_in=1, fan_out=width),
            "sizes": of("gain", fan_in=1, fan_out=width),
        }


def torchs(width):
    """The same by layers of torch."""
    return nn.ModuleDict(
        {
            "first": nn.Linear(3, width),
            "turned": nn.Linear(width, 2 * width),
            "stack": nn.Linear(2 * width, width),
            "last": nn.Linear(width, 2),
        }
    )


@pytest.mark.parametrize("base", [4, 8, 32])
def test_given_roles_grow_from_a_base_as_those_of_torchs_layers(base):
    rule = MaximalUpdate(base=torchs(base))
    ends = {"first": "input", "last": "output"}
    known = roles(RandomModule(torchs(16), roles=ends, parametrization=rule))
    rule, own = MaximalUpdate(base=Own(base)), Own(16)
    given = roles(RandomModule(own, roles=own.roles(), stochastic="all", parametrization=rule))
    for name in ("first", "turned", "stack", "last"):
        for ask in (lambda w: w.rate("sgd"), lambda w: w.rate("adam"), lambda w: w.epsilon()):
            assert ask(given[name]) == ask(known[f"{name}.weight"]), name
        assert given[name].std() == pytest.approx(known[f"{name}.weight"].std())
    for name in ("places", "sizes"):
        assert given[name].rate("sgd") == known["first.bias"].rate("sgd") == 16 / base
        assert given[name].rate("adam") == known["first.bias"].rate("adam") == 1


class LowRankLinear(nn.Linear):
    def __init__(self, width_in, width_out):
        super().__init__(width_in, width_out)
        self.down = nn.Parameter(torch.randn(2, width_in))
        self.up = nn.Parameter(torch.zeros(width_out, 2))


class ScaledConv(nn.Conv2d):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))


class NormedGRU(nn.GRU):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.size = nn.Parameter(torch.ones(()))


@pytest.mark.parametrize(
    ("layer", "unknown"),
    [
        (LowRankLinear(3, 8), "down"),
        (ScaledConv(3, 8, 3), "gain"),
        (NormedGRU(3, 8, 2), "size"),
    ],
)
def test_what_a_layer_has_besides_torchs_own_is_not_taken_for_it(layer, unknown):
    with pytest.raises(ValueError, match=rf"'{unknown}' of shape .* whose role is not known"):
        find_roles(layer)


@pytest.mark.parametrize(
    "layer",
    [
        nn.LSTM(3, 4, 2, bidirectional=True, proj_size=2),
        nn.GRUCell(3, 4),
        nn.MultiheadAttention(8, 2, kdim=3, vdim=4, add_bias_kv=True),
        nn.utils.spectral_norm(nn.Linear(3, 4)),
        nn.utils.parametrizations.weight_norm(nn.GRU(3, 4), "weight_hh_l0"),
        prune.identity(nn.Conv1d(3, 4, 2), "bias"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_torchs_own_are_known(layer):
    assert find_roles(layer).keys() == dict(layer.named_parameters()).keys()


def test_fans_that_are_turned_are_refused():
    net = nn.Sequential(Unknown(), nn.Linear(4, 1))
    for fan_in, fan_out, first in ((3, 4, False), (4, 3, True)):
        role = WeightRole.of("input", fan_in=fan_in, fan_out=fan_out, inputs_first=first)
        with pytest.raises(ValueError, match=rf"turn the fans, or write inputs_first={not first}"):
            find_roles(net, overrides={"0.matrix": role})
    for side in (3, 5):  # a bias has no sides, and a stack of matrices has a shape of its own
        role = WeightRole.of("bias" if side == 3 else "hidden", fan_in=side, fan_out=4)
        assert find_roles(net, overrides={"0.matrix": role})["0.matrix"].role == role.role
