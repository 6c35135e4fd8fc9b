"""Rates keep the ratios that muP gives them: schedules, containers, parameters that change."""

import copy
import functools
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.infer.autoguide import AutoGuideList, AutoNormal
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR

import pyro_ibvi as ibvi
from pyro_ibvi.training import MuonWithAdamW

X, Y = torch.linspace(-1, 1, 16).reshape(8, 2), torch.linspace(0, 1, 8).reshape(8, 1)
LOSS = ibvi.TraceExpectedLogLikelihood(reduction="mean")


def make(width=32, **kwargs):
    net = nn.Sequential(
        nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
    )
    model = ibvi.SupervisedModel(ibvi.RandomModule(net, **kwargs), ibvi.Normal(1.0), num_data=8)
    return model, ibvi.AutoMuPNormal(model, covariance=ibvi.LowRank(2))


def listed(optimizer, value):
    return [value * group["rate_factor"] for group in optimizer.param_groups]


KEEPING = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 4]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.3, total_iters=3),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=4),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.7),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.LinearLR(o, 0.1, total_iters=2), lr_scheduler.CosineAnnealingLR(o, 6)],
        milestones=[2],
    ),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(o, 0.1, total_iters=2), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, eps=0),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, listed(o, 1e-3), listed(o, 1e-2), 3),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, listed(o, 0.01), total_steps=12),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=6),
}
LOSING = {
    "OneCycleLR": (lambda o: lr_scheduler.OneCycleLR(o, 0.01, total_steps=12), "max_lr=[max_lr *"),
    "CyclicLR": (lambda o: lr_scheduler.CyclicLR(o, 1e-3, 1e-2, 3), "base_lr=[base_lr *"),
    "CosineAnnealingLR": (lambda o: lr_scheduler.CosineAnnealingLR(o, 50, 1e-6), "eta_min=0"),
    "CosineAnnealingWarmRestarts": (
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 50, eta_min=1e-6),
        "eta_min=0",
    ),
    "ReduceLROnPlateau": (
        lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, min_lr=1e-3),
        "min_lr=[min_lr *",
    ),
    "SWALR": (lambda o: SWALR(o, 0.05, anneal_epochs=3), "swa_lr=[swa_lr *"),
    "SequentialLR": (
        lambda o: lr_scheduler.SequentialLR(
            o,
            [
                lr_scheduler.LinearLR(o, 0.1, total_iters=2),
                lr_scheduler.CosineAnnealingLR(o, 6, eta_min=1e-4),
            ],
            milestones=[2],
        ),
        "eta_min=0",
    ),
}


def advance(schedule, num_steps=8):
    for step in range(num_steps):
        is_plateau = isinstance(schedule, lr_scheduler.ReduceLROnPlateau)
        schedule.step(*([float(step)] if is_plateau else []))


def global_rates(optimizer):
    return [group["lr"] / group["rate_factor"] for group in optimizer.param_groups]


def test_every_scheduler_of_torch_is_here():
    assert set(lr_scheduler.__all__) - {"LRScheduler"} == KEEPING.keys()


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("name", KEEPING)
def test_schedules_that_multiply_are_taken(name):
    _, guide = make()
    optim = ibvi.MuPOptim(
        torch.optim.SGD, {"lr": 0.01, "momentum": 0.9}, guide, scheduler=KEEPING[name]
    )
    seen = {0.01}
    for step in range(8):
        is_plateau = name == "ReduceLROnPlateau"
        optim.step_scheduler(*([float(step)] if is_plateau else []))
        rates = global_rates(optim.optimizer)
        assert max(rates) - min(rates) <= 1e-9 * max(rates)
        seen.add(round(rates[0], 12))
    assert len(seen) > 1


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("name", LOSING)
def test_schedules_that_set_rates_are_refused(name):
    make_schedule, line = LOSING[name]
    _, guide = make()

    def schedule_for_mup_optim():
        arguments = {"lr": 0.01, "momentum": 0.9}
        optim = ibvi.MuPOptim(torch.optim.SGD, arguments, guide, scheduler=make_schedule)
        advance(optim.scheduler)
        optim.step_scheduler(*([9.0] if name == "ReduceLROnPlateau" else []))

    with pytest.raises(ValueError, match="loses their ratios") as error:
        schedule_for_mup_optim()
    assert line in str(error.value)
    groups = ibvi.mup_param_groups(guide, 0.01, optimizer=torch.optim.SGD)
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    optimizer.step()
    advance(make_schedule(optimizer))
    with pytest.raises(ValueError, match=r"loses their ratios.*write a schedule that multipl"):
        optimizer.step()


def test_rates_set_by_hand_are_refused_and_multiplied_ones_are_not():
    model, guide = make()
    optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": 0.01}, guide)
    svi = SVI(model, guide, optim, LOSS)
    svi.step(X, Y)
    for group in optim.optimizer.param_groups:
        group["lr"] *= 0.5
    svi.step(X, Y)
    optim.set_state(optim.get_state())  # after which the groups are torch's own dictionaries
    for group in optim.optimizer.param_groups:
        group["lr"] = 0.001
    with pytest.raises(ValueError, match="loses their ratios"):
        svi.step(X, Y)


def test_an_optimizer_by_hand_survives_copies_and_state():
    _, guide = make()
    groups = ibvi.mup_param_groups(guide, 0.01, optimizer=torch.optim.AdamW)
    optimizer = torch.optim.AdamW(groups)
    optimizer.step()
    state = copy.deepcopy(optimizer).state_dict()
    optimizer.load_state_dict(state)
    optimizer.step()
    assert [g["lr"] for g in optimizer.param_groups] == [g["lr"] for g in state["param_groups"]]


@pytest.mark.parametrize(
    "change",
    [
        lambda o: o,
        lambda o: o.load_state_dict(copy.deepcopy(o.state_dict())) or o,
        copy.deepcopy,
        lambda o: pickle.loads(pickle.dumps(o)),
    ],
    ids=["as made", "state loaded", "copied", "pickled"],
)
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, MuonWithAdamW])
def test_an_optimizer_by_hand_is_watched_whatever_became_of_it(kind, change):
    _, guide = make()
    optimizer = change(kind(ibvi.mup_param_groups(guide, 0.01, optimizer=kind), lr=0.01))
    before = [group["lr"] for group in optimizer.param_groups]
    optimizer.step()
    optimizer.add_param_group({"params": [("own", nn.Parameter(torch.zeros(1)))], "lr": 3.0})
    optimizer.step()  # what the user adds has a rate of its own
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    with pytest.raises(ValueError, match="loses their ratios"):
        optimizer.step()
    for group, lr in zip(optimizer.param_groups, before, strict=False):
        group["lr"] = 0.1 * lr
    optimizer.step()


@pytest.mark.parametrize(
    ("made_for", "used"),
    [
        (torch.optim.SGD, torch.optim.AdamW),
        (torch.optim.Adam, torch.optim.SGD),
        (MuonWithAdamW, torch.optim.AdamW),
        (torch.optim.SGD, MuonWithAdamW),
    ],
)
def test_groups_for_another_kind_of_optimizer_are_refused(made_for, used):
    groups = ibvi.mup_param_groups(make()[1], 0.01, optimizer=made_for)
    optimizer = used(groups, lr=0.01)
    message = rf"family '(sgd|adam|muon)', and are in {used.__name__}: write .*={used.__name__}\)"
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())


def test_groups_of_a_family_that_the_user_names_go_anywhere():
    class Lion(torch.optim.SGD):
        """An optimizer of the user's, whose steps do not grow with the gradient."""

    groups = ibvi.mup_param_groups(make()[1], 0.01, optimizer=Lion, family="adam")
    Lion(groups).step()
    torch.optim.NAdam(ibvi.mup_param_groups(make()[1], 0.01, optimizer=torch.optim.Adam)).step()


def test_a_rate_that_is_no_number_is_refused():
    groups = ibvi.mup_param_groups(make()[1], 0.01, optimizer=torch.optim.SGD)
    optimizer = torch.optim.SGD(groups)
    optimizer.param_groups[0]["lr"] = float("nan")
    with pytest.raises(ValueError, match=r"global learning rate is \[nan, 0\.01, .* check what"):
        optimizer.step()


def test_a_compiled_step_is_watched():
    _, guide = make()
    schedule = lr_scheduler.StepLR
    optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": 0.01}, guide, scheduler=lambda o: schedule(o, 1))
    optimizer, _ = optim.make_torch()
    step = torch.compile(optimizer.step, backend="eager")
    step()
    optimizer.param_groups[0]["lr"] *= 2.0
    with pytest.raises(ValueError, match="loses their ratios"):
        step()


def test_other_optimizers_are_let_alone():
    make_and_watch = ibvi.mup_param_groups(make()[1], 0.01, optimizer=torch.optim.SGD)
    assert len(make_and_watch) > 1
    weights = [nn.Parameter(torch.ones(1)) for _ in range(2)]
    groups = [
        {"params": [weight], "lr": lr + 1.0, "family": "mine"} for lr, weight in enumerate(weights)
    ]
    optimizer = torch.optim.SGD(groups)
    for weight in weights:
        weight.grad = torch.ones(1)
    optimizer.step()
    assert [weight.item() for weight in weights] == [0.0, -1.0]


# -- every way to an optimizer -----------------------------------------------------------------


def rates_of(optim):
    return {
        name: group["lr"] / optim.lr
        for group in optim.optimizer.param_groups
        for name in group["param_names"]
    }


def hierarchy(net, x, y):
    noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0))
    mean = net(x)
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(mean.squeeze(-1), noise), obs=y.squeeze(-1))


class Hierarchy(pyro.nn.PyroModule):
    def __init__(self):
        super().__init__()
        net = nn.Sequential(nn.Linear(2, 32), nn.LayerNorm(32), nn.Tanh(), nn.Linear(32, 1))
        self.net = ibvi.RandomModule(net, stochastic="all weights")

    def forward(self, x, y):
        return hierarchy(self.net, x, y)


def test_a_list_of_guides_keeps_the_rates_of_ours():
    model = Hierarchy()
    guide = AutoGuideList(model)
    ours = ibvi.AutoMuPNormal(poutine.block(model, hide=["noise"]), covariance=ibvi.LowRank(2))
    guide.append(ours)
    guide.append(AutoNormal(poutine.block(model, expose=["noise"])))
    guide(X, Y)
    optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": 1e-4}, guide)
    SVI(model, guide, optim, ibvi.TraceExpectedLogLikelihood(reduction="mean")).step(X, Y)
    found = {name.partition("net.")[2] or name: rate for name, rate in rates_of(optim).items()}
    by_kind = {name: rate for name, rate in rates_of(optim).items() if ".locs.net" in name}
    assert sorted(by_kind.values()) == pytest.approx([1 / 32, 32 / 2])
    for bias in ("0.bias", "1.bias", "1.weight"):  # point estimates of the model
        assert found[bias] == 32.0
    assert [rate for name, rate in found.items() if "noise" in name] == [1.0, 1.0]
    grouped = [p for group in optim.optimizer.param_groups for p in group["params"]]
    everything = [*model.parameters(), *guide.parameters()]
    trained = {id(p) for p in everything if p.requires_grad}
    assert sorted(map(id, grouped)) == sorted(trained)


class Holder(pyro.nn.PyroModule):
    """A guide of the user's own around ours."""

    def __init__(self, guide):
        super().__init__()
        self.inner = guide

    def forward(self, *args):
        return self.inner(*args)


@pytest.mark.parametrize("way", ["module", "method", "partial"])
def test_other_holders_of_a_guide_keep_its_rates(way):
    model, guide = make()
    holder = {
        "module": lambda: Holder(guide),
        "method": lambda: guide.forward,
        "partial": lambda: functools.partial(guide),
    }[way]()
    optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": 1e-4}, holder)
    SVI(model, holder, optim, LOSS).step(X, Y)
    alone = ibvi.MuPOptim(torch.optim.SGD, {"lr": 1e-4}, guide)
    assert rates_of(optim) == pytest.approx(rates_of(alone))


def test_a_replaced_parameter_keeps_its_rate_and_leaves_no_trace():
    model, guide = make()
    net = model.net.network
    net[2].weight = nn.Parameter(net[2].weight.detach().clone())  # as sharding does, before ...
    optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": 1e-4, "momentum": 0.9}, guide)
    svi = SVI(model, guide, optim, LOSS)
    svi.step(X, Y)
    before = rates_of(optim)
    assert before["net.0.bias"] == 32.0
    assert before["net.2.weight"] == 1.0
    net[0].bias = nn.Parameter(net[0].bias.detach().clone())  # ... and after the optimizer
    svi.step(X, Y)
    assert rates_of(optim) == before
    grouped = [p for group in optim.optimizer.param_groups for p in group["params"]]
    assert any(p is net[0].bias for p in grouped)
    assert len(grouped) == len(before)


def test_a_parameter_that_is_trained_later_has_its_rate():
    model, guide = make()
    net = model.net.network
    net[0].bias.requires_grad_(False)
    optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": 1e-4}, guide, scheduler=KEEPING["StepLR"])
    svi = SVI(model, guide, optim, LOSS)
    svi.step(X, Y)
    assert "net.0.bias" not in rates_of(optim)
    net[0].bias.requires_grad_(True)
    before = net[0].bias.detach().clone()
    svi.step(X, Y)
    assert rates_of(optim)["net.0.bias"] == 32.0
    assert not torch.equal(net[0].bias, before)
    optim.step_scheduler()


def test_a_weight_between_fixed_sizes_has_no_width():
    class Skip(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.up, self.down, self.skip = (
                nn.Linear(4, width),
                nn.Linear(width, 3),
                nn.Linear(4, 3),
            )

        def forward(self, x):
            return self.down(self.up(x).tanh()) + self.skip(x)

    for width in (16, 64):
        for base in (None, 16):
            roles = ibvi.roles(
                ibvi.RandomModule(Skip(width), parametrization=ibvi.MaximalUpdate(base=base))
            )
            weight, bias = roles["skip.weight"], roles["skip.bias"]
            # With a base nothing changes; the absolute table divides by the four features.
            expected = 1.0 if base else 1 / 4
            assert (weight.rate("sgd"), weight.rate("adam")) == (expected, expected)
            assert weight.std() == 4**-0.5
            assert bias.rate("sgd") == roles["down.bias"].rate("sgd") == 1.0
            assert roles["up.bias"].rate("sgd") == (width if base is None else width / 16)
    single = ibvi.RandomModule(nn.Linear(4, 3), stochastic="last")
    assert single.stochastic == ["weight", "bias"]  # it is the last layer all the same
    assert single.prior_std("weight") == 4**-0.5
