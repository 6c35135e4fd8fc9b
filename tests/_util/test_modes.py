"""Modes of modules: what trains, what its user fixed, and what is given back."""

import pytest
import torch
from torch import nn

import pyro_ibvi as ibvi
from pyro_ibvi._util.modes import module_mode


def modes(root):
    return {name: module.training for name, module in root.named_modules()}


def small():
    return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))


class FixedStatistics(nn.Module):
    """Keeps its norm layer fixed in the usual way, by a method of its own."""

    def __init__(self):
        super().__init__()
        self.body = small()
        self.calls = []

    def train(self, mode=True):
        super().train(mode)
        self.calls.append(mode)
        self.body[1].eval()
        return self


def test_the_modules_own_method_is_called():
    net = FixedStatistics()
    net.train()
    net.calls.clear()
    with module_mode(net, training=False):
        assert not any(modes(net).values())
        with module_mode(net, training=True):
            assert [n for n, training in modes(net).items() if not training] == ["body.1"]
    assert net.calls == [False, True]
    assert [n for n, training in modes(net).items() if not training] == ["body.1"]


def norm_alone(net):
    net[1].eval()
    return {"1"}


def norm_frozen_in_a_network_in_evaluation_mode(net):
    net[1].requires_grad_(False)
    net.eval()
    return {"1"}


def dropout_off(net):
    net[2].eval()
    return {"2"}


def network_in_evaluation_mode(net):
    net.eval()
    return set()


@pytest.mark.parametrize(
    "fix",
    [
        norm_alone,
        norm_frozen_in_a_network_in_evaluation_mode,
        dropout_off,
        network_in_evaluation_mode,
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_what_the_user_fixed_stays_in_evaluation_mode(fix, wrapped):
    net = small()
    fixed = fix(net)
    root = ibvi.SupervisedModel(ibvi.RandomModule(net), ibvi.Normal()) if wrapped else net
    prefix = "net.net." if wrapped else ""
    before = modes(root)
    with module_mode(root, training=True):
        still = {name for name, training in modes(root).items() if not training}
    assert still == {prefix + name for name in fixed}
    assert modes(root) == before


def test_a_part_that_does_not_train_stays_so():
    backbone, head = small(), nn.Linear(1, 1)
    net = nn.Sequential(backbone.eval(), head)
    with module_mode(net, training=True):
        assert modes(backbone) == dict.fromkeys(modes(backbone), False)
        assert head.training


def test_bound_methods_and_functions():
    net = small()
    x = torch.ones(3, 2)

    class Owner(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def model(self, x):
            return self.net(x)

    def function(x):
        return net(x)

    owner = Owner()
    with module_mode(owner.model, training=False):
        assert not net[1].training
    statistics = net[1].running_mean.clone()
    with module_mode(function, training=False):
        function(x)
        assert not net[2].training
    assert torch.equal(net[1].running_mean, statistics)
    assert all(modes(owner).values())
    net.eval()
    with pytest.raises(KeyError), module_mode(function, training=True):
        raise KeyError
    assert not any(modes(net).values())
