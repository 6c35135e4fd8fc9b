"""Depth: rates against the rule derived by hand, and a coordinate check over it."""

import math
from collections import OrderedDict

import pytest
import torch
from pyro.infer import SVI
from torch import nn

import pyro_ibvi as ibvi
from pyro_ibvi.mup import Fans, find_roles


class Branch(nn.Module):
    def __init__(self, width, multiplier):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)
        self.multiplier = multiplier

    def forward(self, x):
        return x + self.multiplier * self.down(self.up(self.norm(x)).relu())


def residual(depth, width=32, power=1.0, base_depth=2):
    blocks = [Branch(width, (base_depth / depth) ** power) for _ in range(depth)]
    return nn.Sequential(nn.Linear(4, width), nn.Sequential(*blocks), nn.Linear(width, 1))


# By hand: a step on one branch adds m * dW, over L = depth branches, with m the multiplier, and
# the gradient has the factor m. Relative to the base, a = L / L_base, m = a^-p. SGD's dW is
# rate * m, so rate * m^2 * a = 1; Adam's is rate, so rate * m * a = 1; epsilon is as the gradient.
RULES = {"1/depth": (1.0, 8.0, 1.0, 1 / 8), "1/sqrt(depth)": (0.5, 1.0, 8**-0.5, 8**-0.5)}


@pytest.mark.parametrize("branches", RULES)
@pytest.mark.parametrize("as_shapes", [False, True])
def test_rates_and_epsilon(branches, as_shapes):
    power, sgd, adam, epsilon = RULES[branches]
    base = residual(2)
    if as_shapes:
        base = {name: tuple(p.shape) for name, p in base.named_parameters()}
    rule = ibvi.MaximalUpdate(base=base, branches=branches)
    net = ibvi.RandomModule(residual(16, power=power), stochastic="all", parametrization=rule)
    weights = ibvi.roles(net)
    for name in ("1.0.up.weight", "1.15.down.weight", "1.7.up.bias", "1.3.norm.weight"):
        weight = weights[name]
        assert (weight.weight.fans.depth, weight.weight.fans.base_depth) == (16, 2)
        assert weight.rate("sgd") == pytest.approx(sgd)
        assert weight.rate("adam") == pytest.approx(adam)
        assert weight.epsilon() == pytest.approx(epsilon)
        assert weight.factor_rate("sgd", rank=4) == pytest.approx(sgd / 4)
        assert weight.std() == (32**-0.5 if name.endswith("weight") and "norm" not in name else 1)
    for name in ("0.weight", "2.weight", "0.bias"):
        assert weights[name].rate("sgd") == weights[name].rate("adam") == 1.0


def test_at_the_base_depth_nothing_changes():
    rule = ibvi.MaximalUpdate(base=residual(2), branches="1/depth")
    for weight in ibvi.roles(ibvi.RandomModule(residual(2), parametrization=rule)).values():
        assert (weight.rate("sgd"), weight.rate("adam"), weight.epsilon()) == (1.0, 1.0, 1.0)


def test_layers_that_follow_one_another_are_no_blocks():
    layers = [nn.Linear(8, 8) for _ in range(5)]
    roles = find_roles(nn.Sequential(*layers))
    assert {weight.fans.depth for weight in roles.values()} == {1}


def test_a_deeper_network_without_the_multiplier_is_told_once():
    rule = ibvi.MaximalUpdate(base=residual(2))
    with pytest.warns(
        UserWarning, match=r"a block 8 times and the base 2 times: .*x \+ 0\.25 \* b"
    ):
        ibvi.RandomModule(residual(8), parametrization=rule)
    with pytest.raises(ValueError, match=r"branches must be '1/depth', '1/sqrt\(depth\)' or None"):
        ibvi.MaximalUpdate(branches="depth")


def test_depth_enters_where_the_base_is_known():
    fans = Fans(8, 8, 8, depth=4)
    assert ibvi.MaximalUpdate(branches="1/depth").rate("hidden", fans, "sgd") == 4.0
    assert ibvi.MaximalUpdate(base=8, branches="1/depth").rate("hidden", fans, "sgd") == 1.0


def change_of_the_output(depth, rule, optimizer, lr, seed):
    """Of the trunk in front of the read-out, by one step of the branches alone."""
    torch.manual_seed(seed)
    x, y = torch.randn(16, 4), torch.randn(16, 1)
    net = ibvi.RandomModule(residual(depth, 64), stochastic="last", parametrization=rule)
    model = ibvi.SupervisedModel(net, ibvi.Normal(1.0), num_data=16)
    guide = ibvi.AutoMuPNormal(model, covariance=ibvi.LowRank(2))
    optim = ibvi.MuPOptim(optimizer, {"lr": lr}, guide)
    for group in optim.optimizer.param_groups:  # only the blocks' parameters move
        for i, name in enumerate(group["param_names"]):
            if "net.1." not in name:
                group["params"][i].requires_grad_(False)
    seen = []
    handle = net.network[1].register_forward_hook(lambda m, a, out: seen.append(out.detach()))
    svi = SVI(model, guide, optim, ibvi.TraceExpectedLogLikelihood(reduction="mean"))
    for _ in range(2):
        svi.step(x, y)
    handle.remove()
    return (seen[-1] - seen[0]).square().mean().sqrt().item()


@pytest.mark.parametrize(("optimizer", "lr"), [(torch.optim.SGD, 0.01), (torch.optim.Adam, 1e-4)])
def test_a_step_changes_the_trunk_as_much_at_every_depth(optimizer, lr):
    base = residual(2, 64)

    def slope(branches):
        rule = ibvi.MaximalUpdate(base=base, branches=branches)
        small, large = (
            sum(change_of_the_output(depth, rule, optimizer, lr, seed) for seed in range(4))
            for depth in (4, 32)
        )
        return math.log(large / small) / math.log(8)

    assert abs(slope("1/depth")) < 0.25
    # The negative control: the rates for a multiplier that the network does not have.
    assert abs(slope("1/sqrt(depth)")) > 0.4


def test_blocks_of_different_sizes_are_no_repetition(recwarn):
    """A network that widens from block to block, with itself as its base."""
    sizes = [(4, 4), (4, 8), (8, 16)]
    blocks = [nn.Sequential(nn.Linear(n, m), nn.ReLU(), nn.Linear(m, m)) for n, m in sizes]
    net = nn.Sequential(nn.Linear(3, 4), nn.Sequential(*blocks), nn.Linear(16, 2))
    ibvi.roles(ibvi.RandomModule(net, parametrization=ibvi.MaximalUpdate(base=net)))
    assert not [w for w in recwarn if "repeats a block" in str(w.message)]


class Step(nn.Module):
    def __init__(self, shared):
        super().__init__()
        self.shared, self.own = shared, nn.Linear(8, 8)

    def forward(self, x):
        return x + self.own(self.shared(x).relu())


def sharing(depth):
    """Blocks with a layer that is one for all of them."""
    shared = nn.Linear(8, 8)
    return nn.Sequential(
        nn.Linear(4, 8), nn.Sequential(*[Step(shared) for _ in range(depth)]), nn.Linear(8, 1)
    )


def naming(depth):
    """Blocks that have names, as those of torchvision's transformers."""
    blocks = OrderedDict((f"block_{i}", Step(nn.Linear(8, 8))) for i in range(depth))
    return nn.Sequential(nn.Linear(4, 8), nn.Sequential(blocks), nn.Linear(8, 1))


@pytest.mark.parametrize(
    "shapes_of",
    [lambda net: net, lambda net: {n: tuple(p.shape) for n, p in net.named_parameters()}],
)
@pytest.mark.parametrize("build", [sharing, naming])
def test_blocks_are_counted_as_in_the_base(build, shapes_of):
    net = build(3)
    for depth in (3, 2):
        fans = [w.fans for w in find_roles(net, base=shapes_of(build(depth))).values()]
        assert {(f.depth, f.base_depth) for f in fans} == {(1, None), (3, depth)}
