"""An exact name is itself, wherever names are chosen; patterns come after."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_ibvi import (
    AutoMuPNormal,
    Diagonal,
    LowRank,
    Normal,
    RandomModule,
    SupervisedModel,
    TraceExpectedLogLikelihood,
)
from pyro_ibvi._util.names import as_patterns, assigned, chosen, chosen_by_any

NAMES = ["effect[0]", "effect[1]", "effect0", "scale", "a*b", "aab"]


def test_a_choice_means_a_name_first():
    assert chosen("effect[0]", NAMES) == ["effect[0]"]
    assert chosen("effect[0]", NAMES[1:]) == ["effect0"]
    assert chosen("a*b", NAMES) == ["a*b"]
    assert chosen("effect*", NAMES) == NAMES[:3]
    assert chosen("nothing", NAMES) == []
    assert chosen_by_any(["a*b", "effect[1]"], NAMES) == {"a*b", "effect[1]"}


def test_a_pattern_in_the_place_of_names_fits_them():
    loop = [f"local[{t}].z" for t in range(12)]
    (pattern,) = as_patterns(loop)
    assert chosen(pattern, [*loop, "local.z", "local[1].w"]) == loop
    assert as_patterns(["a", *loop[:4]]) == ["a", *loop[:4]]


def test_what_counts_is_the_name_then_an_alias_then_the_first_pattern():
    names = ["0.weight", "0.bias", "1.weight", "w"]
    choices = ["*.weight", "0", "0.bias", "*"]
    assert assigned(choices, names, lambda name: [name.rpartition(".")[0]]) == {
        "0.weight": "0",
        "0.bias": "0.bias",
        "1.weight": "*.weight",
        "w": "*",
    }
    assert assigned(["effect[0]", "*"], NAMES)["effect0"] == "*"


def brackets(y):
    total = sum(pyro.sample(name, dist.Normal(0.0, 1.0)) for name in NAMES[:3])
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(total, 1.0), obs=y)


@pytest.mark.parametrize("order", [1, -1])
def test_a_covariance_goes_to_the_site_that_is_named(order):
    choice = dict([("*", None), ("effect[1]", Diagonal())][::order])
    guide = AutoMuPNormal(brackets, covariance=choice)
    guide.initialize(torch.zeros(3))
    assert [layer.name for layer in guide.layers if layer.covariance] == ["effect[1]"]


def test_a_covariance_goes_by_name_before_role_before_pattern():
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    model = SupervisedModel(RandomModule(net, stochastic="all"), Normal(1.0))
    guide = AutoMuPNormal(
        model, covariance={"net.*": None, "output": LowRank(2), "net.2.bias": Diagonal()}
    )
    found = {s.name: layer.covariance for layer in guide.layers for s in layer.sites}
    assert found == {
        "net.0.weight": None,
        "net.0.bias": None,
        "net.2.weight": LowRank(2),
        "net.2.bias": Diagonal(),
    }


class Named(nn.Module):
    """A network whose layers are named as patterns of one another."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleDict({"a[0]": nn.Linear(2, 2), "a0": nn.Linear(2, 2)})

    def forward(self, x):
        return self.layers["a0"](self.layers["a[0]"](x).tanh())


@pytest.mark.filterwarnings("ignore:.*(order|data flow)")
def test_networks_are_chosen_by_name():
    parameter = "layers.a[0].weight"
    assert RandomModule(Named(), stochastic=[parameter]).stochastic == [parameter]
    layer = RandomModule(Named(), stochastic=["layers.a[0]"])
    assert layer.stochastic == [parameter, "layers.a[0].bias"]
    net = RandomModule(Named(), prior={"*": 1.0, parameter: 3.0})
    with pyro.poutine.trace() as trace:
        net.sample_parameters()
    sites = {n: s["fn"] for n, s in trace.trace.nodes.items() if s["type"] == "sample"}
    assert {n for n, fn in sites.items() if (fn.stddev == 3.0).all()} == {parameter}
    roles = RandomModule(Named(), roles={"*": "hidden", "layers.a[0]": "input"}).roles
    assert roles[parameter].role == "input"
    assert roles["layers.a0.weight"].role == "hidden"


def test_keep_kl_keeps_the_site_that_is_named():
    y = torch.linspace(-1.0, 1.0, 4)

    def loss(keep_kl):
        pyro.set_rng_seed(0)
        guide = AutoMuPNormal(brackets)
        guide.initialize(y)
        objective = TraceExpectedLogLikelihood(keep_kl=keep_kl)
        return objective.loss(brackets, guide, y)

    named = loss(["effect[0]"])
    assert named == loss(lambda site: site["name"] == "effect[0]")
    assert named != loss(lambda site: site["name"] == "effect0")
