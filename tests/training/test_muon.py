"""Muon with AdamW as one optimizer: its steps against torch's two, and its rates over widths."""

import math

import pyro
import pytest
import torch
from pyro.infer import SVI
from torch import nn

import pyro_ibvi as ibvi
from pyro_ibvi.training import MuonWithAdamW
from tests.optimizers import needs_muon

pytestmark = needs_muon
X, Y = torch.linspace(-1, 1, 16).reshape(8, 2), torch.linspace(0, 1, 8).reshape(8, 1)
LOSS = ibvi.TraceExpectedLogLikelihood(reduction="mean")


def make(width=16, rule=None, out=None):
    net = nn.Sequential(
        nn.Linear(2, width), nn.Tanh(), nn.Linear(width, out or width), nn.Tanh(),
        nn.Linear(out or width, 1),
    )  # fmt: skip
    random = ibvi.RandomModule(net, stochastic="all weights", parametrization=rule)
    model = ibvi.SupervisedModel(random, ibvi.Normal(1.0), num_data=16)
    return model, ibvi.AutoMuPNormal(model, covariance=ibvi.LowRank(4))


def groups_by_name(optim):
    return {name: group for group in optim.param_groups for name in group["param_names"]}


def test_only_the_means_of_hidden_matrices_learn_by_muon():
    _, guide = make()
    optim = ibvi.MuPOptim(torch.optim.Muon, {"lr": 0.02}, guide)
    kinds = {name: g["family"] for name, g in groups_by_name(optim.optimizer).items()}
    assert [name for name, kind in kinds.items() if kind == "muon"] == [
        "AutoMuPNormal.locs.net.2.weight"
    ]
    assert len(kinds) == 3 + 3 + 3  # means, factors, biases


def test_steps_are_those_of_torchs_two_optimizers():
    torch.manual_seed(0)
    matrix, vector = nn.Parameter(torch.randn(6, 3)), nn.Parameter(torch.randn(5))
    twins = [nn.Parameter(p.detach().clone()) for p in (matrix, vector)]
    optimizer = MuonWithAdamW(
        [{"params": [matrix], "family": "muon", "lr": 0.03}, {"params": [vector]}],
        lr=0.01,
        weight_decay=0.2,
        adamw={"betas": (0.8, 0.95), "eps": 1e-3},
    )
    torchs = [
        torch.optim.Muon([twins[0]], lr=0.03, weight_decay=0.2),
        torch.optim.AdamW([twins[1]], 0.01, (0.8, 0.95), 1e-3, weight_decay=0.2),
    ]
    for _ in range(5):
        for p, twin in zip((matrix, vector), twins, strict=True):
            p.grad = torch.randn_like(p)
            twin.grad = p.grad.clone()
        for one in (optimizer, *torchs):
            one.step()
    assert torch.equal(matrix, twins[0])
    assert torch.equal(vector, twins[1])


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_one_state_and_one_schedule():
    def run(num_steps, state=None):
        pyro.set_rng_seed(0)
        model, guide = make()
        optim = ibvi.MuPOptim(
            torch.optim.Muon,
            {"lr": 0.02, "adamw": {"lr": 0.01}},
            guide,
            scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5),
        )
        svi = SVI(model, guide, optim, LOSS)
        if state is not None:
            guide.load_state_dict(state["guide"])
            model.load_state_dict(state["model"])
            optim.set_state(state["optim"])
        for step in range(num_steps):
            torch.manual_seed(step + (0 if state is None else 2))
            svi.step(X, Y)
            optim.step_scheduler()
        parts = {"guide": guide, "model": model}
        return optim, {n: m.state_dict() for n, m in parts.items()} | {"optim": optim.get_state()}

    _, whole = run(4)
    _, half = run(2)
    optim, resumed = run(2, half)
    for name, value in whole["guide"].items():
        torch.testing.assert_close(resumed["guide"][name], value)
    by_name = groups_by_name(optim.optimizer)
    assert by_name["AutoMuPNormal.locs.net.2.weight"]["lr"] == pytest.approx(0.02 / 16)
    assert by_name["net.0.bias"]["lr"] == pytest.approx(0.01 / 16)


@pytest.mark.parametrize(("width", "out"), [(16, 16), (16, 64), (64, 16)])
def test_the_size_of_an_update(width, out):
    """sqrt(out/in) in the absolute table, and torch's own at the base, whatever torch adjusts."""
    expected = {
        None: math.sqrt(out / width),
        # At the base of 16 x 16 torch's own is 1; both sides grow by their ratios.
        "base": math.sqrt((out / 16) / (width / 16)),
    }
    net = nn.Sequential(
        nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1)
    )
    for base, size in expected.items():
        rule = ibvi.MaximalUpdate(base=None if base is None else net)
        _, guide = make(width, rule, out)
        optimizer = ibvi.MuPOptim(
            torch.optim.Muon, {"lr": 1.0, "weight_decay": 0.0, "momentum": 0.0}, guide
        ).optimizer
        loc = guide.loc("net.2.weight")
        before = loc.detach().clone()
        orthogonal = torch.linalg.qr(torch.randn(max(out, width), min(out, width)))[0]
        loc.grad = orthogonal if out >= width else orthogonal.mT.contiguous()
        optimizer.step()
        norm = torch.linalg.matrix_norm(before - loc.detach(), 2).item()
        assert norm == pytest.approx(size, rel=0.3)  # Newton-Schulz gives 0.7 to 1.2


def test_mistakes():
    _, guide = make()
    with pytest.raises(ValueError, match="write optimizer=MuonWithAdamW"):
        ibvi.mup_param_groups(guide, 0.1, optimizer=torch.optim.Muon)
    with pytest.raises(TypeError, match="MuonWithAdamW has no argument 'adjust_lr_fn'"):
        ibvi.MuPOptim(torch.optim.Muon, {"lr": 0.1, "adjust_lr_fn": "match_rms_adamw"}, guide)
    with pytest.raises(ValueError, match=r"Muon is for matrices, got parameters of the shapes"):
        MuonWithAdamW([{"params": [nn.Parameter(torch.zeros(3))], "family": "muon"}])
    _, tangent = make(rule=ibvi.NeuralTangent())
    with pytest.raises(ValueError, match="NeuralTangent has no rule for Muon"):
        ibvi.MuPOptim(torch.optim.Muon, {"lr": 0.1}, tangent).get_state()


def coordinates(family):
    """Slope of the change that the hidden mean makes alone in one step."""
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(16, 2, generator=generator), torch.randn(16, 1, generator=generator)
    check = ibvi.coordinate_check(
        make,
        [64, 256, 1024],
        data,
        optimizer=torch.optim.Muon if family == "muon" else MuonByAdamsRule,
        optim_args={"lr": 0.02, "weight_decay": 0.0},
        family=family,
        steps=[1],
        num_seeds=2,
        num_draws=2,
    )
    return check.slope("loc", 1, "2.weight"), check.slope("change", 1, "2")


class MuonByAdamsRule(MuonWithAdamW):
    """The known mistake: Adam's rates for what Muon updates."""

    def add_param_group(self, param_group):
        if any(n.endswith("locs.net.2.weight") for n in param_group["param_names"]):
            matrices = [p for p in param_group["params"] if p.dim() == 2]
            if len(matrices) == len(param_group["params"]):
                param_group["family"] = "muon"
        super().add_param_group(param_group)


def test_muons_rule_is_flat_and_adams_is_not():
    slope, change = coordinates("muon")
    assert abs(slope) < 0.1
    assert abs(change) < 0.15
    wrong, _ = coordinates("adam")
    assert wrong < -0.7
