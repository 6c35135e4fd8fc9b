"""The coordinate check over depths: against plain torch, and exponents derived by hand."""

import pytest
import torch
from torch import nn

import pyro_ibvi as ibvi

GENERATOR = torch.Generator().manual_seed(5)
# Targets so far away that the gradient of the loss hardly depends on the first output.
DATA = torch.randn(16, 4, generator=GENERATOR), torch.full((16, 1), 10.0)
DEPTHS = [2, 16]
WIDTH = 16


class Branch(nn.Module):
    def __init__(self, multiplier):
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.multiplier = multiplier

    def forward(self, x):
        return x + self.multiplier * self.down(self.up(x).tanh())


def residual(depth, power):
    trunk = nn.Sequential(*(Branch((2 / depth) ** power) for _ in range(depth)))
    return nn.Sequential(nn.Linear(4, WIDTH), trunk, nn.Linear(WIDTH, 1))


def make_pair(net, rule, stochastic="all weights"):
    random = ibvi.RandomModule(net, stochastic=stochastic, parametrization=rule)
    model = ibvi.SupervisedModel(random, ibvi.Normal(1.0), num_data=16)
    return model, ibvi.AutoMuPNormal(model, covariance=ibvi.LowRank(2))


def check_over_depths(power, rule, optimizer, lr):
    return ibvi.coordinate_check(
        lambda depth: make_pair(residual(depth, power), rule),
        DEPTHS,
        DATA,
        axis="depth",
        optimizer=optimizer,
        optim_args={"lr": lr},
        steps=[1],
        num_seeds=6,
        num_draws=4,
    )


def test_what_all_blocks_changed_together_against_plain_torch():
    """Point estimates of the blocks, before and after one step by hand-kept parameters."""
    nets = {}

    def build(depth):
        net = residual(depth, 1.0)
        model, guide = make_pair(net, ibvi.Standard(), stochastic="last")
        points = model.net.network
        nets[depth] = points, {n: p.detach().clone() for n, p in points.named_parameters()}
        return model, guide

    check = ibvi.coordinate_check(
        build, [2, 3], DATA, axis="depth", steps=[1], num_seeds=1, num_draws=2
    )
    assert check.axis == "depth"
    for place, depth in enumerate((2, 3)):
        net, start = nets[depth]
        now = dict(net.named_parameters())
        mixed = {n: now[n] if n.startswith("1.") else start[n] for n in now}

        def trunk(weights, net=net):
            """Output of the last block, written out."""
            x = DATA[0] @ weights["0.weight"].mT + weights["0.bias"]
            for i, block in enumerate(net[1]):
                w, prefix = weights, f"1.{i}."
                h = (x @ w[prefix + "up.weight"].mT + w[prefix + "up.bias"]).tanh()
                h = h @ w[prefix + "down.weight"].mT + w[prefix + "down.bias"]
                x = x + block.multiplier * h
            return x.detach()

        change = (trunk(mixed) - trunk(start)).square().mean().sqrt().item()
        assert check.mean("loc", 1, "1.*")[place] == pytest.approx(change, rel=1e-4)
        everything = (trunk(now) - trunk(start)).square().mean().sqrt().item()
        assert check.mean("change", 1, "1.*")[place] == pytest.approx(everything, rel=1e-4)
        assert everything != pytest.approx(change, rel=1e-2)
    assert ("loc", 1, "1.*.up.weight") in check.rms
    assert ("size", 0, "1.*.up") in check.rms
    assert not any(".0." in name for _, _, name in check.rms)
    assert set(check.to_dict()) == {"depths", "records"}


# A step of one block adds m dW to the trunk and L blocks add up, with m the multiplier, whose
# power of the depth is -p. The gradient has the factor m: dW is rate * m by SGD, rate by Adam.
# The noise of blocks is independent, so L factors add up as the square root of L.
@pytest.mark.parametrize(
    ("optimizer", "lr", "power", "branches", "loc", "factor"),
    [
        (torch.optim.SGD, 0.01, 1.0, "1/depth", 0.0, -0.5),
        (torch.optim.Adam, 1e-4, 0.5, "1/sqrt(depth)", 0.0, -0.5),
        (torch.optim.SGD, 0.01, 1.0, None, -1.0, -1.5),
        (torch.optim.Adam, 1e-4, 0.5, None, 0.5, 0.0),
    ],
    ids=["SGD", "Adam", "SGD, standard", "Adam, standard"],
)
def test_exponents_of_the_trunk(optimizer, lr, power, branches, loc, factor):
    rule = ibvi.Standard()
    if branches is not None:
        rule = ibvi.MaximalUpdate(base=residual(2, power), branches=branches)
    check = check_over_depths(power, rule, optimizer, lr)
    assert check.slope("size", 0, "1.*") == pytest.approx(0.0, abs=0.2)
    assert check.slope("loc", 1, "1.*") == pytest.approx(loc, abs=0.25)
    assert check.slope("factor", 1, "1.*") == pytest.approx(factor, abs=0.3)
    # A block's own layer: the trunk's change without the sum over blocks and the multiplier.
    own = check.slope("loc", 1, "1.*.down.weight")
    assert own == pytest.approx(loc - 1 + power, abs=0.25)
    assert check.slope("factor", 1, "1.*.down.weight") == pytest.approx(own, abs=0.3)


def test_networks_without_depth():
    def plain(depth):
        layers = [nn.Linear(4, 4) for _ in range(depth)]
        return make_pair(nn.Sequential(*layers, nn.Linear(4, 1)), ibvi.Standard())

    with pytest.raises(ValueError, match=r"build\(2\) made a network without blocks that repeat"):
        ibvi.coordinate_check(plain, [2, 4], DATA, axis="depth")
    with pytest.raises(ValueError, match=r"axis must be 'width' or 'depth', got 'length'"):
        ibvi.coordinate_check(plain, [2, 4], DATA, axis="length")
    with pytest.raises(ValueError, match=r"depths must be at least 2 different .* got \[2\]"):
        ibvi.coordinate_check(plain, [2], DATA, axis="depth")
