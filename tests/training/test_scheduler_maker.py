"""What may stand for a scheduler, and what is said of the rest."""

import pyro
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import pyro_ibvi as ibvi


def make(scheduler):
    net = ibvi.RandomModule(nn.Linear(3, 2))
    guide = ibvi.AutoMuPNormal(ibvi.SupervisedModel(net, ibvi.Categorical()))
    return ibvi.MuPOptim(torch.optim.SGD, {"lr": 0.1}, guide, scheduler=scheduler)


@pytest.mark.parametrize(
    ("scheduler", "arguments"),
    [
        (lr_scheduler.CosineAnnealingLR, r"T_max=\.\.\."),
        (lr_scheduler.StepLR, r"step_size=\.\.\."),
        (lr_scheduler.CyclicLR, r"base_lr=\.\.\., max_lr=\.\.\."),
    ],
)
def test_a_class_that_needs_more_than_the_optimizer(scheduler, arguments):
    name = scheduler.__name__
    with pytest.raises(TypeError, match=rf"lambda optimizer: {name}\(optimizer, {arguments}\)"):
        make(scheduler)


def test_a_class_that_needs_nothing_more_is_taken():
    assert isinstance(make(lr_scheduler.ConstantLR).scheduler, lr_scheduler.ConstantLR)


def test_a_scheduler_of_pyros():
    arguments = {"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.1}, "gamma": 0.9}
    with pytest.raises(TypeError, match=r"or a function .* got PyroLRScheduler"):
        make(pyro.optim.ExponentialLR(arguments))


def test_a_function_that_returns_nothing():
    with pytest.raises(TypeError, match=r"made None: let it return a torch scheduler"):
        make(lambda optimizer: None).scheduler  # noqa: B018
