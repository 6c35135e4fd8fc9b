"""What to write of a parameter of a layer that is not known."""

import re

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from pyro_ibvi import MaximalUpdate, RandomModule, WeightRole, roles
from pyro_ibvi.mup.roles import find_roles


@pytest.mark.parametrize("shape", [(), (8,), (1, 1, 8)])
def test_an_unknown_vector_is_shown_as_one(shape):
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.shift = nn.Linear(3, 8), nn.Parameter(torch.zeros(shape))

        def forward(self, x):
            return self.layer(x) + self.shift

    with pytest.raises(ValueError, match="if it is added to data") as error:
        find_roles(Shifted())
    shown = re.search(r"roles=(\{.*?\)\})", str(error.value))[1]
    weights = find_roles(Shifted(), overrides=eval(shown, {"WeightRole": WeightRole}))
    size = Shifted().shift.numel()
    assert weights["shift"] == WeightRole.of("bias", fan_in=1, fan_out=size, layer="shift")


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
