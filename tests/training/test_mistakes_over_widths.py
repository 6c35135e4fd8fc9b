"""Coordinate checks in which the deliberate mistakes fail: epsilon, decay, one rate for all."""

import pyro
import pytest
import torch
from pyro.infer import SVI
from torch import nn

import pyro_ibvi as ibvi

GENERATOR = torch.Generator().manual_seed(0)
DATA = torch.randn(16, 4, generator=GENERATOR), torch.randn(16, 1, generator=GENERATOR)


class UnscaledEpsilon(ibvi.MaximalUpdate):
    """The mistake: one epsilon for gradients of every size."""

    def epsilon(self, role, fans, *, side=None):
        return 1.0


def build(width, rule):
    net = nn.Sequential(
        nn.Linear(4, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
    )
    random = ibvi.RandomModule(net, stochastic="all weights", parametrization=rule)
    model = ibvi.SupervisedModel(random, ibvi.Normal(1.0), num_data=16)
    return model, ibvi.AutoMuPNormal(model, covariance=ibvi.LowRank(2))


def slopes(rule, optimizer, steps=2, **optim_args):
    check = ibvi.coordinate_check(
        lambda width: build(width, rule),
        [64, 256, 1024],
        DATA,
        optimizer=optimizer,
        optim_args=optim_args,
        steps=[steps],
        num_seeds=2,
        num_draws=2,
    )
    return {
        (kind, name): check.slope(kind, steps, name)
        for kind in ("loc", "factor")
        for name in ("0.weight", "2.weight")
    }


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.RMSprop])
def test_epsilon_is_a_length_that_shrinks_with_the_gradients(optimizer):
    # So large that it counts: at width 64 about the size of the gradients.
    right = slopes(ibvi.MaximalUpdate(), optimizer, lr=0.02, eps=0.5)
    assert max(map(abs, right.values())) < 0.2, right
    wrong = slopes(UnscaledEpsilon(), optimizer, lr=0.02, eps=0.5 / 64)
    assert max(wrong.values()) < -0.4, wrong


def test_one_rate_for_all_is_not_flat():
    wrong = slopes(ibvi.Standard(), torch.optim.Adam, lr=1e-4)
    assert wrong["loc", "2.weight"] > 0.7
    frozen = slopes(ibvi.Standard(), torch.optim.SGD, lr=1e-2)
    assert frozen["loc", "0.weight"] < -0.3


def shrinkage(width, optimizer, decay_of, args):
    """What five steps take off the hidden mean by decay alone, as a fraction."""
    pyro.set_rng_seed(0)
    _, guide = build(width, ibvi.MaximalUpdate(base=64))
    optim = ibvi.MuPOptim(optimizer, {"lr": 0.02, "weight_decay": 0.1, **args}, guide).optimizer
    decay_of(optim)
    loc = guide.loc("net.2.weight")
    before = loc.detach().clone()
    for _ in range(5):
        loc.grad = torch.zeros_like(loc)
        optim.step()
    return 1 - (loc.norm() / before.norm()).item()


def unscaled(optim):
    for group in optim.param_groups:
        group["weight_decay"] = 0.1


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.NAdam])
def test_decay_that_is_not_rescaled_fades_with_the_width(optimizer):
    args = {"decoupled_weight_decay": True} if optimizer is torch.optim.NAdam else {}
    kept = [shrinkage(width, optimizer, lambda o: None, args) for width in (64, 1024)]
    assert kept == pytest.approx([1 - 0.998**5] * 2, rel=1e-2)
    narrow, wide = (shrinkage(width, optimizer, unscaled, args) for width in (64, 1024))
    assert wide < narrow / 10


def spread_after(decayed, num_steps=300):
    """Spread of the read-out's noise after training, relative to its start."""
    pyro.set_rng_seed(0)
    model, guide = build(16, ibvi.MaximalUpdate(base=16))
    start = guide.scale("net.4.weight").detach().norm().item()
    # AdamW at its usual rate, with a decay that makes 300 steps of what 10,000 are by default.
    arguments = {"lr": 1e-3, "weight_decay": 0.33 * 2}
    optim = ibvi.MuPOptim(torch.optim.AdamW, arguments, guide, decayed=decayed)
    loss = ibvi.TraceExpectedLogLikelihood(reduction="mean")
    svi = SVI(model, guide, optim, loss)
    for _ in range(num_steps):
        svi.step(*DATA)
    return guide.scale("net.4.weight").detach().norm().item() / start


def test_decay_would_take_the_spread_with_it():
    kept, lost = spread_after("weights"), spread_after("all")
    assert lost < kept - 0.1, (kept, lost)
