"""Roles of weights in the networks that people have."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pyro_ibvi import (
    AutoMuPNormal,
    Normal,
    RandomModule,
    SupervisedModel,
    WeightRole,
    roles,
)
from pyro_ibvi.mup.parametrization import Fans
from pyro_ibvi.mup.roles import find_roles


def roles_of(net, **kwargs):
    return {name: weight.role for name, weight in find_roles(net, **kwargs).items()}


def fans_of(net, name, **kwargs):
    fans = find_roles(net, **kwargs)[name].fans
    return fans.fan_in, fans.width_in, fans.width_out


class Backwards(nn.Module):
    """Registered in the order opposite to the flow of data."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 2)
        self.hidden = nn.Linear(8, 8)
        self.stem = nn.Linear(3, 8)

    def forward(self, x):
        return self.head(self.hidden(self.stem(x).tanh()).tanh())


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(5, 8)
        self.mean, self.scale = nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, x, z):
        h = self.a(x) + self.b(z)
        return torch.cat([self.mean(h), self.scale(h)], -1)


class Branches(Backwards):
    """Control flow that no symbolic trace follows."""

    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x


class Functional(Backwards):
    """Calls its layers' weights, not the layers."""

    def forward(self, x):
        h = F.linear(x, self.stem.weight, self.stem.bias).tanh()
        return self.head(F.linear(h, self.hidden.weight, self.hidden.bias))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 2)
        self.tokens, self.places = nn.Embedding(11, 8), nn.Embedding(5, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x):
        h = self.tokens(x) + self.places(torch.arange(5))
        return self.head(self.encoder(h).mean(1))


class Transposed(Backwards):
    """Makes matrices of its layers' weights before it multiplies by them."""

    def forward(self, x):
        h = (x @ self.stem.weight.t() + self.stem.bias).tanh()
        weight = self.hidden.weight - self.hidden.weight.mean()
        return self.head(F.linear(h, weight, self.hidden.bias).tanh())


@pytest.mark.parametrize(
    ("net", "prefix"),
    [
        (Backwards(), ""),
        (nn.Sequential(Backwards(), nn.ReLU()), "0."),
        (Functional(), ""),
        (Transposed(), ""),
    ],
    ids=["backwards", "nested", "functional", "transposed"],
)
def test_order_is_that_of_the_data(net, prefix):
    assert roles_of(net) == {
        f"{prefix}head.weight": "output",
        f"{prefix}head.bias": "bias",
        f"{prefix}hidden.weight": "hidden",
        f"{prefix}hidden.bias": "bias",
        f"{prefix}stem.weight": "input",
        f"{prefix}stem.bias": "bias",
    }


def test_where_the_flow_cannot_be_traced_order_is_that_of_registration():
    sentence = (
        "Branches cannot be traced .*order .* registered .*'head' is taken for the input layer "
        "and 'stem' for the output layer.*example_input=x.*roles="
    )
    with pytest.warns(UserWarning, match=sentence):
        roles = roles_of(Branches())
    assert roles["head.weight"] == "input"
    assert roles["stem.weight"] == "output"
    mended = roles_of(Branches(), overrides={"head": "output", "stem": "input"})
    assert mended == roles_of(Backwards())


def test_many_inputs_and_outputs():
    roles = roles_of(TwoHeads())
    assert roles["a.weight"] == roles["b.weight"] == "input"
    assert roles["mean.weight"] == roles["scale.weight"] == "output"


def test_a_transformer():
    weights = find_roles(Transformer())
    assert weights["tokens.weight"].role == weights["places.weight"].role == "input"
    assert weights["head.weight"].role == "output"
    matrices = {n for n, w in weights.items() if w.role == "hidden"}
    assert matrices == {
        f"encoder.layers.{i}.{part}.weight".replace("in_proj.weight", "in_proj_weight")
        for i in range(2)
        for part in ("self_attn.in_proj", "self_attn.out_proj", "linear1", "linear2")
    }
    attention = weights["encoder.layers.0.self_attn.in_proj_weight"]
    assert attention.fans == Fans(8, 8, 8, depth=2)
    assert weights["encoder.layers.0.self_attn.in_proj_bias"].role == "bias"
    assert weights["encoder.layers.0.norm1.weight"].role == "gain"
    assert weights["tokens.weight"].fans == Fans(1, 1, 8)


def test_a_residual_network_with_norms():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.shortcut = nn.Conv2d(4, 4, 1)
            self.norm, self.conv = nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            return self.shortcut(x) + self.conv(self.norm(x).relu())

    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    roles = roles_of(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), Block(), Block(), head))
    assert roles.pop("0.weight") == "input"
    assert roles.pop("4.2.weight") == "output"
    assert roles["1.weight"] == roles["2.norm.weight"] == "gain"
    assert roles["2.conv.weight"] == roles["3.shortcut.weight"] == "hidden"


# By hand: (fan_in, width_in, width_out) of the weight.
LAYERS = {
    "linear": (nn.Linear(3, 5), (3, 3, 5)),
    "conv1d": (nn.Conv1d(4, 6, 3), (12, 4, 6)),
    "conv2d": (nn.Conv2d(4, 6, (3, 5)), (60, 4, 6)),
    "conv3d": (nn.Conv3d(4, 6, 2), (32, 4, 6)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (18, 2, 6)),
    "transposed": (nn.ConvTranspose2d(4, 6, 4, stride=2), (16, 4, 6)),
    "bilinear": (nn.Bilinear(3, 4, 5), (12, 12, 5)),
    "embedding": (nn.Embedding(10, 4), (1, 1, 4)),
    "bag": (nn.EmbeddingBag(10, 4), (1, 1, 4)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_fans(kind):
    layer, expected = LAYERS[kind]
    assert fans_of(layer, "weight") == expected


@pytest.mark.parametrize("kind", [k for k in LAYERS if "bed" not in k and k != "bag"])
def test_fan_in_is_the_number_of_terms_of_an_output(kind):
    # Unit weights and inputs: an output in the middle is the number of terms that it sums.
    layer, (fan_in, *_) = LAYERS[kind]
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(float(parameter.dim() > 1))
        num_space = layer.weight.dim() - 2 if hasattr(layer, "kernel_size") else 0
        width = getattr(layer, "in_channels", getattr(layer, "in_features", None))
        if kind == "bilinear":
            output = layer(torch.ones(1, 3), torch.ones(1, 4))
        else:
            output = layer(torch.ones(1, width, *(9,) * num_space))
    middle = output[(0, 0, *(size // 2 for size in output.shape[2:]))]
    assert middle.item() == fan_in


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_layers(kind):
    net = nn.Sequential(kind(3, 4, num_layers=2, bidirectional=True), nn.Linear(8, 1))
    weights = find_roles(net, overrides={"0": "input"})
    assert weights["0.weight_ih_l0"].role == weights["0.weight_ih_l0_reverse"].role == "input"
    assert weights["0.weight_hh_l0"].role == "input"  # the user's word counts for all of it
    weights = find_roles(nn.Sequential(kind(3, 4, num_layers=2), nn.Identity(), nn.Linear(4, 1)))
    assert weights["0.weight_ih_l0"].role == "input"
    assert weights["0.weight_hh_l0"].role == weights["0.weight_ih_l1"].role == "hidden"
    assert weights["0.weight_hh_l0"].layer_role == "input"
    assert weights["0.bias_hh_l1"].role == "bias"
    assert weights["0.weight_ih_l0"].fans == Fans(3, 3, 4)
    assert weights["0.weight_ih_l1"].fans == Fans(4, 4, 4)
    cell = {nn.RNN: nn.RNNCell, nn.LSTM: nn.LSTMCell, nn.GRU: nn.GRUCell}[kind]
    assert fans_of(cell(3, 4), "weight_ih") == (3, 3, 4)
    assert fans_of(cell(3, 4), "weight_hh") == (4, 4, 4)


BASES = {
    "linear": (nn.Linear(32, 64), nn.Linear(8, 16), (8, 16)),
    "conv": (nn.Conv2d(32, 64, 3), nn.Conv2d(8, 16, 3), (8, 16)),
    "transposed": (nn.ConvTranspose2d(32, 64, 3), nn.ConvTranspose2d(8, 16, 3), (8, 16)),
    "grouped": (nn.Conv2d(32, 64, 3, groups=4), nn.Conv2d(8, 16, 3, groups=4), (2, 16)),
    "embedding": (nn.Embedding(10, 64), nn.Embedding(10, 16), (1, 16)),
    "bilinear": (nn.Bilinear(32, 2, 64), nn.Bilinear(8, 2, 16), (16, 16)),
    "norm": (nn.LayerNorm(64), nn.LayerNorm(16), (1, 16)),
}


@pytest.mark.parametrize("kind", BASES)
def test_a_base_module_or_its_shapes_give_the_base_widths(kind):
    net, base, expected = BASES[kind]
    shapes = {name: tuple(p.shape) for name, p in base.named_parameters()}
    for given in (base, shapes):
        fans = find_roles(net, base=given)["weight"].fans
        assert (fans.base_width_in, fans.base_width_out) == expected


def test_a_base_width_stands_for_every_width_but_data_and_classes():
    net = nn.Sequential(
        nn.Linear(3, 64), nn.LayerNorm(64), nn.PReLU(), nn.Linear(64, 64), nn.Linear(64, 5)
    )
    weights = find_roles(net, base=16)

    def base_widths(name):
        return weights[name].fans.base_width_in, weights[name].fans.base_width_out

    assert base_widths("0.weight") == (3, 16)
    assert base_widths("1.weight") == (1, 16)
    assert base_widths("3.weight") == (16, 16)
    assert base_widths("4.weight") == (16, 5)
    assert base_widths("4.bias")[1] == 5
    assert base_widths("2.weight")[1] == 1  # one gain for all channels is no width


def test_overrides():
    net = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    assert roles_of(net, overrides={"1": "output"})["1.weight"] == "output"
    assert roles_of(net, overrides={"*.weight": "hidden"})["0.weight"] == "hidden"
    weights = find_roles(net, overrides={"1.weight": WeightRole.of("input", fan_in=2, fan_out=4)})
    assert weights["1.weight"].fans == Fans(2, 2, 4)
    assert weights["1.weight"].layer == weights["1.bias"].layer == "1"


class Unknown(nn.Module):
    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.zeros(3, 4))

    def forward(self, x):
        return x @ self.matrix


def test_a_parametrized_weight_has_the_role_of_the_weight():
    """Torch has two forms of each; what is known of a layer holds for both."""
    new, old = (
        nn.Sequential(
            weight_norm(nn.Linear(3, 8)),
            nn.Tanh(),
            weight_norm(nn.Linear(8, 8, bias=False)),
            nn.Tanh(),
            spectral_norm(nn.Linear(8, 2)),
        )
        for weight_norm, spectral_norm in (
            (nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm),
            (quietly(nn.utils.weight_norm), quietly(nn.utils.spectral_norm)),
        )
    )
    made = {".weight_g": "0", ".weight_v": "1", ".weight_orig": ""}
    for options in ({}, {"base": 4}, {"example_input": torch.zeros(2, 3)}):
        found = find_roles(new, **options)
        for name, weight in find_roles(old, **options).items():
            for ending, number in made.items():
                name = name.replace(ending, f".parametrizations.weight.original{number}")
            assert found.pop(name) == weight
        assert not found
    random = RandomModule(new, roles={"2": "output"}, stochastic=nn.Linear)
    assert random.roles["2.parametrizations.weight.original1"].role == "output"
    assert len(random.stochastic) == 7


def quietly(function):
    def call(layer):
        with warnings.catch_warnings(action="ignore"):  # the older forms are deprecated
            return function(layer)

    return call


def test_an_unknown_layer_is_an_error_that_shows_what_to_write():
    message = (
        r"'0\.matrix' of shape \(3, 4\) belongs to a Unknown, a kind of layer whose role is not "
        r'known\..*roles=\{"0\.matrix": "bias"\}.*WeightRole\.of\("hidden"'
    )
    net = nn.Sequential(Unknown(), nn.Linear(4, 1))
    with pytest.raises(ValueError, match=message):
        RandomModule(net, stochastic="all")
    with pytest.raises(ValueError, match=r"The role of a matrix, .* does not say how wide it is"):
        RandomModule(net, stochastic="all", roles={"0.*": "input"})
    roles = {"0.matrix": WeightRole.of("input", fan_in=3, fan_out=4, inputs_first=True)}
    assert RandomModule(net, stochastic="all", roles=roles)(torch.ones(2, 3)).shape == (2, 1)


def test_unknown_layers_are_named_all_at_once():
    net = nn.Sequential(Unknown(), Unknown(), nn.Linear(4, 1))
    with pytest.raises(ValueError, match=r"same goes for '1\.matrix' \(3, 4\)\.$"):
        find_roles(net)
    with pytest.raises(ValueError, match=r"'1\.matrix' of shape .* a matrix of a layer\.$"):
        find_roles(
            net,
            overrides={"0.matrix": WeightRole.of("input", fan_in=3, fan_out=4, inputs_first=True)},
        )


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"nope": "input"}, ValueError, r"roles names \['nope'\], which match no parameter"),
        ({"0": "first"}, ValueError, r"Expected a role among .* got 'first'"),
        ({0: "input"}, TypeError, "from names or patterns to roles; got the key 0"),
        (["0"], TypeError, r"roles must be a mapping such as \{\"0\": \"input\"\}, got list"),
    ],
)
def test_bad_overrides(overrides, error, message):
    with pytest.raises(error, match=message):
        find_roles(nn.Sequential(nn.Linear(3, 4)), overrides=overrides)


def test_bad_fans_and_bases():
    with pytest.raises(ValueError, match="Fans must be positive, got fan_in=0, fan_out=4"):
        WeightRole.of("hidden", fan_in=0, fan_out=4)
    with pytest.raises(ValueError, match="Expected a role among"):
        WeightRole.of("middle", fan_in=1, fan_out=4)
    net = nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(ValueError, match=r"The base has no shape for \['0\.weight', '0\.bias'\]"):
        find_roles(net, base=nn.Linear(3, 4))
    with pytest.raises(
        ValueError, match=r"base shape \(3,\) of '0\.weight' does not fit \(4, 3\)"
    ):
        find_roles(net, base={"0.weight": (3,), "0.bias": (4,)})
    with pytest.raises(TypeError, match="base must be a width, a network, a mapping"):
        find_roles(net, base="small")


def test_a_lazy_network():
    net = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, 1))
    with pytest.raises(ValueError, match=r"\['0\.weight', '0\.bias'\] have no shape yet: run"):
        RandomModule(net, stochastic="all")
    net(torch.zeros(2, 3))
    assert RandomModule(net, stochastic="all")(torch.zeros(2, 3)).shape == (2, 1)


def test_the_report_prints_every_weight():
    net = RandomModule(Backwards(), stochastic="all")
    report = roles(net)
    table = str(report).splitlines()
    assert len(table) == 1 + len(report) == 1 + 6
    assert table[0].split()[:2] == ["parameter", "role"]
    assert table[5].split() == ["stem.weight", "input", "3", "8", "0.5774", "2.667", "0.3333"]


def test_the_report_finds_networks_in_models_and_guides():
    net = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 1))
    model = SupervisedModel(RandomModule(net, stochastic="last"), Normal(1.0))
    names = ["net." + name for name, _ in net.named_parameters()]
    for thing in (model, AutoMuPNormal(model)):
        assert list(roles(thing)) == names
        assert roles(thing).stochastic == ("net.2.weight", "net.2.bias")
    assert roles(model)["net.1.weight"].weight.role == "gain"
    assert list(roles(net)) == [name for name, _ in net.named_parameters()]
    with pytest.raises(TypeError, match=r"got function: pass the RandomModule itself"):
        roles(lambda x: x)
