"""The optimizer can be saved and restored at any time; clipping and schedules are global."""

import io

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import nn

import pyro_ibvi as ibvi
from pyro_ibvi import (
    AutoMuPNormal,
    Diagonal,
    LowRank,
    MuPOptim,
    Normal,
    RandomModule,
    SupervisedModel,
    TraceExpectedLogLikelihood,
)
from pyro_ibvi.training import optim, ratios
from tests.optimizers import MUON, needs_muon

X, Y = torch.linspace(-1, 1, 20).reshape(10, 2), torch.linspace(0, 1, 10).reshape(10, 1)
LOSS = TraceExpectedLogLikelihood(reduction="mean")
OPTIMIZERS = [
    (torch.optim.SGD, {"lr": 0.01, "momentum": 0.9}),
    (torch.optim.Adam, {"lr": 0.01}),
    (torch.optim.AdamW, {"lr": 0.01}),
]


def scheduled(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)


class Run:
    """A model, its guide and an optimizer that can be saved and restored."""

    def __init__(self, optimizer, args, seed=0, **kwargs):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
        random_net = RandomModule(net, stochastic="last")
        self.model = SupervisedModel(random_net, Normal(0.1, learn_scale=True), num_data=10)
        self.guide = AutoMuPNormal(self.model, covariance=LowRank(3))
        self.optim = MuPOptim(optimizer, args, self.guide, **kwargs)
        self.svi = SVI(self.model, self.guide, self.optim, LOSS)

    def steps(self, num_steps, seed):
        torch.manual_seed(seed)
        losses = []
        for _ in range(num_steps):
            losses.append(self.svi.step(X, Y))
            self.optim.step_scheduler()
        return losses

    def state(self):
        buffer = io.BytesIO()
        torch.save(
            [self.model.state_dict(), self.guide.state_dict(), self.optim.get_state()], buffer
        )
        buffer.seek(0)
        return torch.load(buffer, weights_only=True)

    def set_state(self, state):
        self.model.load_state_dict(state[0])
        self.guide.load_state_dict(state[1])
        self.optim.set_state(state[2])


@pytest.mark.parametrize(("optimizer", "args"), OPTIMIZERS)
@pytest.mark.parametrize("late", [False, True], ids=["before the first step", "after steps"])
def test_a_restored_run_continues_bit_for_bit(optimizer, args, late):
    run = Run(optimizer, args, scheduler=scheduled)
    run.steps(3, seed=1)
    state = run.state()
    expected = run.steps(4, seed=2)
    other = Run(optimizer, args, seed=5, scheduler=scheduled)
    if late:
        other.steps(2, seed=6)
    other.set_state(state)
    assert other.steps(4, seed=2) == expected
    assert other.optim.scheduler.last_epoch == run.optim.scheduler.last_epoch == 7
    # The negative control: without the optimizer's state it goes elsewhere.
    third = Run(optimizer, args, seed=5, scheduler=scheduled)
    third.model.load_state_dict(state[0])
    third.guide.load_state_dict(state[1])
    assert third.steps(4, seed=2) != expected


def test_state_before_the_first_step_and_on_disk(tmp_path):
    run = Run(*OPTIMIZERS[1])
    state = run.optim.get_state()
    assert state["optimizer"]["state"] == {}
    run.steps(2, seed=1)
    run.optim.save(str(tmp_path / "optim.pt"))
    other = Run(*OPTIMIZERS[1])
    other.optim.load(str(tmp_path / "optim.pt"))
    assert set(other.optim.get_state()["optimizer"]["state"]) == set(
        run.optim.get_state()["optimizer"]["state"]
    )
    run.optim.set_state(state)
    assert run.optim.get_state()["optimizer"]["state"] == {}


def test_a_state_is_a_copy():
    run = Run(*OPTIMIZERS[0])
    run.steps(2, seed=1)
    other = Run(*OPTIMIZERS[0])
    other.optim.set_state(run.optim.get_state())
    before = run.state()[2]["optimizer"]["state"][0]["momentum_buffer"].clone()
    other.steps(3, seed=2)
    after = run.optim.get_state()["optimizer"]["state"][0]["momentum_buffer"]
    torch.testing.assert_close(before, after, rtol=0, atol=0)


def test_the_state_of_another_model_is_refused():
    run = Run(*OPTIMIZERS[0])
    net = RandomModule(nn.Linear(2, 1), stochastic="all")
    other = AutoMuPNormal(SupervisedModel(net, Normal(0.1), num_data=10))
    optim = MuPOptim(torch.optim.SGD, {"lr": 0.1}, other)
    optim.set_state(run.optim.get_state())
    with pytest.raises(ValueError, match=r"state is for the parameters .* but the parameters are"):
        optim.optimizer  # noqa: B018
    with pytest.raises(TypeError, match=r"set_state needs what MuPOptim\.get_state\(\) gave"):
        run.optim.set_state({"state": {}, "param_groups": []})


def late_model(x, y, late=False):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    shift = pyro.param("shift", lambda: torch.zeros(1)) if late else 0.0
    with pyro.plate("data", 10):
        pyro.sample("obs", dist.Normal(x @ w + shift, 0.1), obs=y.squeeze(-1))


def make_late(scheduler=None):
    guide = AutoMuPNormal(late_model, covariance=Diagonal())
    guide.initialize(X, Y)
    args = {"lr": 0.1, "momentum": 0.9}
    optim = MuPOptim(torch.optim.SGD, args, guide, scheduler=scheduler)
    return optim, SVI(late_model, guide, optim, LOSS)


SCHEDULERS = {
    "step": scheduled,
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda epoch: 0.5 ** (epoch // 2)),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(
        o, [g["lr"] for g in o.param_groups], total_steps=10
    ),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_parameter_that_appears_later_joins_its_group_and_its_schedule(scheduler):
    optim, svi = make_late(SCHEDULERS[scheduler])
    for _ in range(3):
        svi.step(X, Y)
        optim.step_scheduler()
    svi.step(X, Y, late=True)
    *_, last = optim.optimizer.param_groups
    assert last["param_names"] == ["shift"]
    assert pyro.param("shift").item() != 0.0
    for _ in range(3):
        optim.step_scheduler()
    reference = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    schedule = SCHEDULERS[scheduler](reference)
    for _ in range(6):
        reference.step()
        schedule.step()
    assert last["lr"] == pytest.approx(reference.param_groups[0]["lr"])


def test_state_waits_for_a_parameter_that_appears_later():
    optim, svi = make_late()
    for _ in range(3):
        svi.step(X, Y, late=True)
    state = optim.get_state()
    state["optimizer"]["state"][2]["momentum_buffer"].fill_(1e6)
    pyro.clear_param_store()
    other, other_svi = make_late()
    assert len(other.optimizer.param_groups[-1]["params"]) == 0
    other.set_state(state)
    other_svi.step(X, Y)
    momentum = other.optimizer.state_dict()["state"][0]["momentum_buffer"].clone()
    assert len(other.optimizer.state) == 2
    other_svi.step(X, Y, late=True)
    assert len(other.optimizer.state) == 3
    # The late parameter's momentum came along; the others' was not set back.
    now = other.optimizer.state_dict()["state"]
    assert now[2]["momentum_buffer"].item() > 8e5
    assert now[0]["momentum_buffer"].abs().max() < 1e5
    assert not torch.equal(now[0]["momentum_buffer"], momentum)


def test_a_restored_optimizer_keeps_the_order_of_its_parameters():
    """In that order the norm of all gradients is rounded."""

    def model(x, y, names=()):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        shift = sum(pyro.param(name, lambda: torch.zeros(1)) for name in names)
        with pyro.plate("data", 10):
            pyro.sample("obs", dist.Normal(x @ w + shift, 0.1), obs=y.squeeze(-1))

    def make():
        guide = AutoMuPNormal(model, covariance=Diagonal())
        guide.initialize(X, Y)
        return MuPOptim(torch.optim.SGD, {"lr": 0.1}, guide)

    optim = make()
    svi = SVI(model, optim.guide, optim, LOSS)
    for names in ((), ("z",), ("a", "z")):
        svi.step(X, Y, names)
    state = optim.get_state()
    assert state["names"][-1] == ["z", "a"]
    store = dict(pyro.get_param_store().named_parameters())
    before = {name: parameter.detach().clone() for name, parameter in store.items()}
    other = make()
    other.set_state(state)
    other.register(store.values())
    assert other.get_state()["names"] == state["names"]
    assert all(torch.equal(store[name], before[name]) for name in store)  # no step was taken


def test_clipping_is_over_all_parameters_together():
    run = Run(torch.optim.SGD, {"lr": 1.0}, clip_norm=1e-3)
    parameters = [p for g in run.optim.optimizer.param_groups for p in g["params"]]
    rates = [g["lr"] for g in run.optim.optimizer.param_groups for _ in g["params"]]
    before = [p.detach().clone() for p in parameters]
    run.steps(1, seed=1)
    gradients = [(b - p.detach()) / r for b, p, r in zip(before, parameters, rates, strict=True)]
    norm = torch.cat([g.reshape(-1) for g in gradients]).norm().item()
    assert norm == pytest.approx(1e-3, rel=1e-2)


def test_plateau_scheduler_takes_the_loss():
    def plateau(optimizer):
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)

    run = Run(torch.optim.SGD, {"lr": 1.0}, scheduler=plateau)
    start = run.optim.optimizer.param_groups[0]["lr"]
    for _ in range(3):
        run.optim.step_scheduler(1.0)
    assert run.optim.optimizer.param_groups[0]["lr"] < start


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("make", [pyro.optim.Adam, pyro.optim.ClippedAdam])
def test_pyros_own_optimizers_train_the_guide(make, local):
    with pyro.settings.context(module_local_params=local):
        run = Run(*OPTIMIZERS[0])
        svi = SVI(run.model, run.guide, make({"lr": 0.02}), LOSS)
        modules = nn.ModuleList([run.model, run.guide])
        before = {n: p.detach().clone() for n, p in modules.named_parameters() if p.requires_grad}
        for _ in range(3):
            svi.step(X, Y)
        after = dict(modules.named_parameters())
        assert all(not torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize(("optimizer", "args"), OPTIMIZERS)
def test_fused_kernels_agree_with_the_plain_ones(optimizer, args):
    fused, plain = Run(optimizer, args), Run(optimizer, {**args, "foreach": False})
    assert fused.steps(5, seed=1) == pytest.approx(plain.steps(5, seed=1), rel=1e-5)
    assert all(group["fused"] for group in fused.optim.optimizer.param_groups)
    assert not any(group["fused"] for group in plain.optim.optimizer.param_groups)
    plain.optim.set_state(fused.optim.get_state())
    assert not any(group["fused"] for group in plain.optim.optimizer.param_groups)


@pytest.mark.parametrize(("optimizer", "args"), OPTIMIZERS)
def test_parameters_without_a_gradient_at_first_join_later(optimizer, args):
    parameters = {name: nn.Parameter(torch.ones(3)) for name in "ab"}

    def guide():
        """A guide of another library, whose parameters the optimizer meets at its steps."""

    optim = MuPOptim(optimizer, {**args, "lr": 0.1}, guide)
    for step in range(4):
        for name, parameter in parameters.items():
            if name == "a" or step >= 2:
                parameter.grad = torch.ones(3)
        optim(parameters.values())
    assert (parameters["a"] < parameters["b"]).all()
    assert (parameters["b"] < 1).all()


def test_sparse_gradients_take_the_plain_kernels():
    embedding = nn.Embedding(5, 2, sparse=True)
    optim = MuPOptim(torch.optim.SGD, {"lr": 0.1}, lambda: None)
    before = embedding.weight.detach().clone()
    for _ in range(2):
        embedding(torch.tensor([1])).sum().backward()
        optim([embedding.weight])
    assert torch.allclose(before[1] - embedding.weight[1], torch.tensor(0.2))
    assert torch.equal(before[2], embedding.weight[2])


@pytest.mark.parametrize("is_used", [True, False])
@pytest.mark.parametrize("lacks", ["all of it", "exp_avg_sq"])
def test_a_state_that_lacks_a_part_is_refused_and_changes_nothing(is_used, lacks):
    """Adam would begin anew for one parameter, or fail in the middle of a step."""
    run = Run(*OPTIMIZERS[1])
    run.steps(2, seed=1)
    state = run.optim.get_state()
    if lacks == "exp_avg_sq":
        del state["optimizer"]["state"][1][lacks]
    else:
        del state["optimizer"]["state"][1]
    other, twin = Run(*OPTIMIZERS[1]), Run(*OPTIMIZERS[1])
    if is_used:
        other.steps(2, seed=3)
        twin.steps(2, seed=3)
    with pytest.raises(
        ValueError, match=r"state is incomplete: of .* it holds \[.*, as get_state"
    ):
        other.optim.set_state(state)
    assert other.steps(3, seed=4) == twin.steps(3, seed=4)


@pytest.mark.parametrize(
    "optimizer", [torch.optim.SGD, torch.optim.AdamW, pytest.param(MUON, marks=needs_muon)]
)
@pytest.mark.parametrize("is_used", [True, False])
def test_a_state_of_another_width_or_optimizer_is_refused(optimizer, is_used):
    """torch's fused kernels would read and write beyond the end of a smaller state."""

    def make(width, kind=optimizer):
        net = torch.nn.Sequential(
            torch.nn.Linear(1, width), torch.nn.Linear(width, width), torch.nn.Linear(width, 1)
        )
        model = ibvi.SupervisedModel(ibvi.RandomModule(net), ibvi.Normal(), num_data=4)
        guide = ibvi.AutoMuPNormal(model)
        optim = ibvi.MuPOptim(kind, {"lr": 1e-3}, guide)
        svi = SVI(model, guide, optim, ibvi.TraceExpectedLogLikelihood(reduction="mean"))
        return svi, optim

    data = torch.ones(4, 1), torch.ones(4, 1)
    svi, optim = make(8)
    svi.step(*data)
    state = optim.get_state()

    def restore(width, kind=optimizer):
        other_svi, other = make(width, kind)
        if is_used:
            other_svi.step(*data)
        other.set_state(state)
        other_svi.step(*data)

    restore(8)
    with pytest.raises(ValueError, match=r"of another network: .* had the shape \(8, 1\) and has"):
        restore(64)
    with pytest.raises(ValueError, match=r"state is of the optimizer .*, but this one is Adamax"):
        restore(8, torch.optim.Adamax)


def test_ratios_of_the_rates_are_looked_at_once_a_step(monkeypatch):
    run, seen = Run(*OPTIMIZERS[0]), []
    for module in (optim, ratios):
        monkeypatch.setattr(module, "check_ratios", lambda *args: seen.append(args))
    for _ in range(3):
        run.svi.step(X, Y)
    assert len(seen) == 3
