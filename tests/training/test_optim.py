"""Groups and rates against an independent transcription of the tables; state at any time."""

import inspect
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn

from pyro_ibvi import (
    AutoMuPNormal,
    Diagonal,
    Kronecker,
    LowRank,
    MaximalUpdate,
    MuPOptim,
    Normal,
    RandomModule,
    Standard,
    SupervisedModel,
    TraceExpectedLogLikelihood,
    mup_param_groups,
)
from tests.optimizers import MUON

X, Y = torch.linspace(-1, 1, 20).reshape(10, 2), torch.linspace(0, 1, 10).reshape(10, 1)


def mlp(width=16):
    return nn.Sequential(
        nn.Linear(2, width),
        nn.LayerNorm(width),
        nn.Tanh(),
        nn.Linear(width, width),
        nn.Tanh(),
        nn.Linear(width, 1),
    )


def make(covariance=None, *, net=None, stochastic="all", learn_scale=False, **kwargs):
    random_net = RandomModule(net or mlp(), stochastic=stochastic, **kwargs)
    model = SupervisedModel(random_net, Normal(0.1, learn_scale=learn_scale), num_data=10)
    return model, AutoMuPNormal(model, covariance=covariance or LowRank(4))


def rates(groups):
    return {
        name: group["lr"]
        for group in groups
        for name in group["param_names"]
        if len(group["params"])
    }


# By hand: width 16, two inputs, one output. name -> (SGD rate, Adam rate) of the mean.
MEAN = {
    "0.weight": (16.0 / 2, 1 / 2),
    "0.bias": (16.0, 1.0),
    "1.weight": (16.0, 1.0),
    "1.bias": (16.0, 1.0),
    "3.weight": (1.0, 1 / 16),
    "3.bias": (16.0, 1.0),
    "5.weight": (1 / 16, 1 / 16),
    "5.bias": (1.0, 1.0),
}
# The rank of each layer's full factor: its weights and biases together.
NUM_WEIGHTS = {"0": 2 * 16 + 16, "1": 16 + 16, "3": 16 * 16 + 16, "5": 16 + 1}


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("covariance", [LowRank(4), LowRank(None), Diagonal()], ids=str)
@pytest.mark.parametrize("gains", [False, True])
def test_rates_are_the_tables(optimizer, covariance, gains):
    _, guide = make(covariance, stochastic=["*"] if gains else "all")
    column = 0 if optimizer is torch.optim.SGD else 1
    expected = {}
    for name, mean in MEAN.items():
        rate = 0.1 * mean[column]
        layer = name.partition(".")[0]
        if layer == "1" and not gains:
            expected[f"net.{name}"] = rate
            continue
        expected[f"AutoMuPNormal.locs.net.{name}"] = rate
        rank = {Diagonal(): 1, LowRank(4): 4, LowRank(None): NUM_WEIGHTS[layer]}[covariance]
        expected[f"AutoMuPNormal.factors.net.{name}"] = rate / rank
    actual = rates(mup_param_groups(guide, 0.1, optimizer=optimizer))
    assert actual == pytest.approx(expected)
    # The negative control: the other optimizer's column.
    gain = "AutoMuPNormal.locs.net.1.weight" if gains else "net.1.weight"
    wrong = {**expected, gain: 0.1 * MEAN["1.weight"][1 - column]}
    assert actual != pytest.approx(wrong)


@pytest.mark.parametrize("stochastic", ["all", "input+output", "last"])
@pytest.mark.parametrize(
    "covariance", [LowRank(2), Kronecker(2, 3), {"0.*": None, "*": Diagonal()}], ids=str
)
def test_every_trainable_tensor_is_in_exactly_one_group(stochastic, covariance):
    if isinstance(covariance, dict) and stochastic == "last":
        covariance = Diagonal()
    elif isinstance(covariance, dict):
        covariance = {"net.0.*": None, "*": Diagonal()}
    model, guide = make(covariance, stochastic=stochastic, learn_scale=True)
    optim = MuPOptim(torch.optim.SGD, {"lr": 0.1}, guide)
    for groups in (
        mup_param_groups(guide, 0.1, optimizer=torch.optim.SGD),
        optim.optimizer.param_groups,
    ):
        grouped = [id(p) for group in groups for p in group["params"]]
        trainable = [
            id(p) for module in (model, guide) for p in module.parameters() if p.requires_grad
        ]
        assert sorted(grouped) == sorted(trainable)
        assert all(len(group["params"]) == len(group["param_names"]) for group in groups)


def test_every_tensor_moves_norm_gains_and_noise_included():
    model, guide = make(stochastic="input+output", learn_scale=True)
    optim = MuPOptim(torch.optim.SGD, {"lr": 1e-3}, guide)
    svi = SVI(model, guide, optim, TraceExpectedLogLikelihood(reduction="mean"))
    modules = nn.ModuleList([model, guide])
    before = {n: p.detach().clone() for n, p in modules.named_parameters() if p.requires_grad}
    for _ in range(3):
        svi.step(X, Y)
    after = dict(modules.named_parameters())
    stuck = [name for name, value in before.items() if torch.equal(value, after[name])]
    assert not stuck
    assert len(before) == 2 * 4 + 4 + 1


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize(
    "base", [16, mlp(), {n: tuple(p.shape) for n, p in mlp().named_parameters()}], ids=type
)
def test_at_the_base_rates_are_the_standard_ones(optimizer, base):
    _, at_base = make(parametrization=MaximalUpdate(base=base))
    _, standard = make(parametrization=Standard())
    assert rates(mup_param_groups(at_base, 0.1, optimizer=optimizer)) == pytest.approx(
        rates(mup_param_groups(standard, 0.1, optimizer=optimizer))
    )
    _, wide = make(net=mlp(64), parametrization=MaximalUpdate(base=base))
    wide_rates = rates(mup_param_groups(wide, 0.1, optimizer=optimizer))
    grown = 0.1 if optimizer is torch.optim.SGD else 0.1 / 4
    assert wide_rates["AutoMuPNormal.locs.net.3.weight"] == pytest.approx(grown)
    assert wide_rates["AutoMuPNormal.locs.net.5.weight"] == pytest.approx(0.1 / 4)


@pytest.mark.parametrize("decay", [0.3, None])
def test_adamw_keeps_the_product_of_rate_and_decay(decay):
    _, guide = make()
    args = {"lr": 0.1} if decay is None else {"lr": 0.1, "weight_decay": decay}
    groups = MuPOptim(torch.optim.AdamW, args, guide).optimizer.param_groups
    expected = 0.1 * (0.01 if decay is None else decay)  # torch's default
    for group in groups:
        product = group["lr"] * group["weight_decay"]
        for name in group["param_names"]:
            is_decayed = ".locs." in name and name.endswith("weight")
            assert product == pytest.approx(expected if is_decayed else 0), name
    assert len({group["lr"] for group in groups}) > 1


def decays(groups):
    return {name: group["weight_decay"] for group in groups for name in group["param_names"]}


def test_decay_follows_the_rate_from_the_base():
    _, guide = make(Diagonal(), parametrization=MaximalUpdate(base=16))
    at_base = decays(mup_param_groups(guide, 0.1, optimizer=torch.optim.AdamW, weight_decay=0.3))
    assert {at_base[f"AutoMuPNormal.locs.net.{i}.weight"] for i in (0, 3, 5)} == {0.3}
    _, wide = make(net=mlp(64), parametrization=MaximalUpdate(base=16))
    groups = mup_param_groups(wide, 0.1, optimizer=torch.optim.AdamW, weight_decay=0.3)
    (hidden,) = (g for g in groups if "AutoMuPNormal.locs.net.3.weight" in g["param_names"])
    assert (hidden["lr"], hidden["weight_decay"]) == pytest.approx((0.1 / 4, 0.3 * 4))


DECAYING = {
    "SGD": (torch.optim.SGD, {}),
    "Adam": (torch.optim.Adam, {}),
    "Adam, decoupled": (torch.optim.Adam, {"decoupled_weight_decay": True}),
    "NAdam, decoupled": (torch.optim.NAdam, {"decoupled_weight_decay": True}),
    "AdamW": (torch.optim.AdamW, {}),
    "Muon": (MUON, {}),
}


def one_step_of_decay(optimizer, args, width, decayed="weights"):
    """What a step without gradient takes off each parameter, as a fraction, by the step itself."""
    pyro.set_rng_seed(0)
    _, guide = make(net=mlp(width))
    args = {"lr": 1e-3, "weight_decay": 0.5, **args}
    optim = MuPOptim(optimizer, args, guide, decayed=decayed).optimizer
    before, after = {}, {}
    for group in optim.param_groups:
        for name, p in zip(group["param_names"], group["params"], strict=True):
            p.grad = torch.zeros_like(p)
            before[name] = p.detach().clone()
    optim.step()
    for group in optim.param_groups:
        after |= dict(zip(group["param_names"], group["params"], strict=True))
    return {
        name: ((value - after[name]).norm() / value.norm()).item()
        for name, value in before.items()
        if value.norm() > 0
    }


@pytest.mark.parametrize("kind", DECAYING)
def test_decay_takes_the_same_part_of_a_weight_at_each_width_and_nothing_else(kind):
    optimizer, args = DECAYING[kind]
    if optimizer is None or not set(args) <= set(inspect.signature(optimizer).parameters):
        pytest.skip("torch has it not yet")
    small, large = (one_step_of_decay(optimizer, args, width) for width in (16, 64))
    for taken in (small, large):
        for name, part in taken.items():
            is_weight = "locs." in name and name.endswith("weight") and ".1." not in name
            # In Adam's gradient decay has no length of its own, which is another matter.
            if kind != "Adam":
                assert part == pytest.approx(5e-4 if is_weight else 0.0, rel=1e-3), name
            assert (part > 0) == is_weight, name


def test_decay_of_everything_is_to_be_asked_for():
    taken = one_step_of_decay(torch.optim.AdamW, {}, 16, decayed="all")
    assert all(part == pytest.approx(5e-4, rel=1e-2) for part in taken.values())
    assert any(".factors." in name for name in taken)
    _, guide = make()
    with pytest.raises(ValueError, match="decayed must be 'weights' or 'all', got 'S'"):
        mup_param_groups(guide, 0.1, optimizer=torch.optim.SGD, decayed="S")


def test_an_optimizer_made_by_hand_fits_its_own_decay_and_epsilon_to_the_groups():
    """Arguments of the constructor, which the groups cannot know beforehand."""
    _, guide = make(net=mlp(64), parametrization=MaximalUpdate(base=16))
    groups = mup_param_groups(guide, 0.1, optimizer=torch.optim.AdamW)
    optimizer = torch.optim.AdamW(groups, weight_decay=0.3, eps=1e-4)
    by_name = {n: g for g in optimizer.param_groups for n in g["param_names"]}
    hidden = by_name["AutoMuPNormal.locs.net.3.weight"]
    assert hidden["weight_decay"] == pytest.approx(0.3 * 4)
    assert hidden["eps"] == pytest.approx(1e-4 / 4)  # gradients of hidden weights are 1/4
    assert by_name["AutoMuPNormal.locs.net.0.weight"]["eps"] == pytest.approx(1e-4 / 4)
    assert by_name["AutoMuPNormal.locs.net.5.weight"]["eps"] == pytest.approx(1e-4)
    assert by_name["AutoMuPNormal.factors.net.3.weight"]["eps"] == pytest.approx(1e-4 / 4)
    assert by_name["AutoMuPNormal.factors.net.3.weight"]["weight_decay"] == 0


def test_one_step_is_the_gradient_times_the_rate():
    model, guide = make(learn_scale=True)
    modules = nn.ModuleList([model, guide])
    loss_fn = TraceExpectedLogLikelihood(reduction="mean")
    torch.manual_seed(1)
    loss_fn.loss_and_grads(model, guide, X, Y)
    # The rates by hand: the mean's of the table, a fourth of it for a factor of rank 4.
    by_hand = {"0.likelihood.log_scale": 1.0}
    for name, (sgd, _) in MEAN.items():
        point_estimate = name.startswith("1.")
        by_hand |= (
            {f"0.net.net.{name}": sgd}
            if point_estimate
            else {f"1.locs.net.{name}": sgd, f"1.factors.net.{name}": sgd / 4}
        )
    expected = {
        name: (p - 0.01 * by_hand[name] * p.grad).detach().clone()
        for name, p in modules.named_parameters()
        if p.grad is not None
    }
    assert expected.keys() == by_hand.keys()
    modules.zero_grad()
    torch.manual_seed(1)
    SVI(model, guide, MuPOptim(torch.optim.SGD, {"lr": 0.01}, guide), loss_fn).step(X, Y)
    after = dict(modules.named_parameters())
    for name, value in expected.items():
        torch.testing.assert_close(after[name].detach(), value)


@pytest.mark.parametrize(
    ("optimizer", "family"), [(torch.optim.NAdam, "adam"), (torch.optim.RMSprop, "adam")]
)
def test_known_families(optimizer, family):
    _, guide = make()
    given = rates(mup_param_groups(guide, 0.1, optimizer=torch.optim.Adagrad, family=family))
    assert rates(mup_param_groups(guide, 0.1, optimizer=optimizer)) == given


def test_a_guide_of_pyros_has_one_rate():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("obs", dist.Normal(x, 1.0), obs=torch.tensor(1.0))

    guide = AutoNormal(model)
    optim = MuPOptim(torch.optim.Adam, {"lr": 0.05}, guide)
    with pytest.raises(RuntimeError, match="no parameters to optimize yet: take a step through"):
        optim.get_state()
    svi = SVI(model, guide, optim, Trace_ELBO())
    for _ in range(200):
        svi.step()
    assert guide.median()["x"].item() == pytest.approx(0.5, abs=0.15)
    assert optim.optimizer.param_groups[0]["param_names"] == [
        "guide.locs.x_unconstrained",
        "guide.scales.x_unconstrained",
    ]


@pytest.mark.parametrize("lr", [-0.1, 0.0, math.nan, math.inf, "0.1", None, True])
def test_a_bad_rate(lr):
    _, guide = make()
    with pytest.raises(ValueError, match="learning rate must be a positive finite number, got lr"):
        MuPOptim(torch.optim.SGD, {"lr": lr}, guide)
    with pytest.raises(ValueError, match="learning rate must be a positive finite number, got lr"):
        mup_param_groups(guide, lr, optimizer=torch.optim.SGD)


class Lion(torch.optim.Optimizer):
    """An optimizer of somebody else."""

    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})


REFUSED = {
    torch.optim.LBFGS: "LBFGS: it searches along a line",
    torch.optim.Adafactor: "Adafactor: it scales each step by the size of the parameter",
    torch.optim.Rprop: r"Rprop: it takes steps .*use torch\.optim\.Adam\.",
    torch.optim.Adadelta: "Adadelta: it finds the scale of its steps by itself",
    torch.optim.ASGD: "ASGD: it lets its rates fall by a rule of its own",
}


@pytest.mark.parametrize("optimizer", REFUSED, ids=lambda o: o.__name__)
@pytest.mark.parametrize("family", [None, "adam"])
def test_optimizers_that_no_rate_fits(optimizer, family):
    _, guide = make()
    with pytest.raises(ValueError, match=f"muP learning rates are not for {REFUSED[optimizer]}"):
        MuPOptim(optimizer, {"lr": 0.1}, guide, family=family)


def test_mistaken_optimizers_and_guides():
    model, guide = make()
    with pytest.raises(TypeError, match=r"got the string 'adamw': write torch\.optim\.AdamW"):
        MuPOptim("adamw", {"lr": 0.1}, guide)
    with pytest.raises(TypeError, match=r"got Adam of pyro\.optim.*: write torch\.optim\.Adam"):
        MuPOptim(pyro.optim.Adam, {"lr": 0.1}, guide, family="adam")
    for clipped in (pyro.optim.ClippedAdam, pyro.optim.clipped_adam.ClippedAdam):
        with pytest.raises(TypeError, match=r"write torch\.optim\.Adam with clip_norm=10\.0"):
            MuPOptim(clipped, {"lr": 0.1}, guide)
    with pytest.raises(TypeError, match="SGD has no argument 'momentun': did you mean 'momentum'"):
        MuPOptim(torch.optim.SGD, {"lr": 0.1, "momentun": 0.9}, guide)
    with pytest.raises(TypeError, match="Adam has no argument 'momentum': it has lr, betas"):
        MuPOptim(torch.optim.Adam, {"lr": 0.1, "momentum": 0.9}, guide)
    with pytest.raises(
        TypeError, match=r"got the model SupervisedModel: write MuPOptim\(\.\.\., g"
    ):
        MuPOptim(torch.optim.SGD, {"lr": 0.1}, model)
    with pytest.raises(TypeError, match="got the network Sequential"):
        MuPOptim(torch.optim.SGD, {"lr": 0.1}, mlp())
    other_model, other_guide = make()
    optim = MuPOptim(torch.optim.SGD, {"lr": 0.1}, other_guide)
    loss = TraceExpectedLogLikelihood(reduction="mean")
    with pytest.raises(ValueError, match="it is the guide of another model"):
        SVI(model, guide, optim, loss).step(X, Y)
    assert SVI(other_model, other_guide, optim, loss).step(X, Y) > 0
    # A function tells nothing of what it is; what is trained does.
    optim = MuPOptim(torch.optim.SGD, {"lr": 0.1}, lambda x, y=None: model(x, y))
    with pytest.raises(ValueError, match=r"given <lambda>, which does not know the learning rat"):
        SVI(model, guide, optim, loss).step(X, Y)
    with pytest.raises(TypeError, match=r"must be 'cosine', which .* got 'linear'"):
        MuPOptim(torch.optim.SGD, {"lr": 0.1}, guide, scheduler="linear")


def test_bad_arguments():
    model, guide = make()
    with pytest.raises(TypeError, match=r"optim_args must be a dictionary such as \{\"lr\": 0.05"):
        MuPOptim(torch.optim.SGD, lambda name: {"lr": 0.1}, guide)
    with pytest.raises(ValueError, match="optim_args needs the global learning rate"):
        MuPOptim(torch.optim.SGD, {}, guide)
    with pytest.raises(ValueError, match="clip_norm must be positive and finite, got -1"):
        MuPOptim(torch.optim.SGD, {"lr": 0.1}, guide, clip_norm=-1)
    with pytest.raises(ValueError, match="clip_norm must be positive and finite, got '1'"):
        MuPOptim(torch.optim.SGD, {"lr": 0.1}, guide, clip_norm="1")
    with pytest.raises(ValueError, match=r'Lion steps in proportion.*pass family="sgd"'):
        MuPOptim(Lion, {"lr": 0.1}, guide)
    with pytest.raises(ValueError, match="family must be 'sgd', 'adam' or 'muon', got 'lion'"):
        MuPOptim(Lion, {"lr": 0.1}, guide, family="lion")
    with pytest.raises(ValueError, match=r"family='adam' is not how SGD steps, .*: leave it out"):
        MuPOptim(torch.optim.SGD, {"lr": 0.1}, guide, family="adam")
    with pytest.raises(TypeError, match=r"class of a torch optimizer, such as torch\.optim\.SGD"):
        MuPOptim(torch.optim.SGD(guide.parameters(), lr=0.1), {"lr": 0.1}, guide)
    with pytest.raises(TypeError, match="Expected the class of a torch optimizer"):
        MuPOptim(pyro.optim.Adam({"lr": 0.1}), {"lr": 0.1}, guide)
    with pytest.raises(TypeError, match="The guide must be an object"):
        MuPOptim(torch.optim.SGD, {"lr": 0.1}, AutoMuPNormal)
    with pytest.raises(TypeError, match="needs an AutoMuPNormal guide, got AutoNormal"):
        mup_param_groups(AutoNormal(model), 0.1, optimizer=torch.optim.SGD)
    fresh = AutoMuPNormal(lambda x: pyro.sample("x", dist.Normal(0.0, 1.0)))
    with pytest.raises(RuntimeError, match=r"no parameters yet: call guide\.initialize\(\*args\)"):
        mup_param_groups(fresh, 0.1, optimizer=torch.optim.SGD)
