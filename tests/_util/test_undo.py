"""After a step that is refused everything but the random state is as before it."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal
from torch import nn

import pyro_ibvi as ibvi
from pyro_ibvi._util.undo import Undo
from pyro_ibvi.objectives.variants import TraceGraphExpectedLogLikelihood

X = torch.linspace(-1.0, 1.0, 6).unsqueeze(-1)
BAD = torch.where(X > 0.9, torch.nan, X)


class ByFunction:
    """A model that is a function: its network is found in no module, its scale in the store."""

    def __init__(self):
        self.net = net = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3))

        def model(x, y):
            scale = pyro.param("scale", torch.tensor(1.0))
            w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(net(x) @ w, scale.exp()), obs=y[:, 0])

        self.model, self.guide = model, AutoNormal(model)

    def state(self):
        params = dict(pyro.get_param_store().named_parameters())
        return params, dict(self.net.named_buffers())


class ByModule:
    """A network of ours."""

    def __init__(self):
        net = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
        random = ibvi.RandomModule(net, stochastic="last")
        self.model = ibvi.SupervisedModel(random, ibvi.Normal(1.0))
        self.guide = ibvi.AutoMuPNormal(self.model)

    def state(self):
        modules = nn.ModuleList([self.model, self.guide])
        return dict(modules.named_parameters()), dict(modules.named_buffers())


def snapshot(setting):
    params, buffers = setting.state()
    values = {f"value.{n}": p.detach().clone() for n, p in params.items()}
    gradients = {f"grad.{n}": p.grad for n, p in params.items()}
    gradients = {n: None if grad is None else grad.clone() for n, grad in gradients.items()}
    return values | gradients | {n: b.clone() for n, b in buffers.items()}


def assert_equal(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        if value is None:
            assert actual[name] is None, name
        else:
            assert torch.equal(actual[name], value), name


def by_step(svi, setting, batch):
    with pytest.raises(ValueError, match=r"Expected value argument|The target holds nan"):
        svi.step(*batch)


def by_fit(svi, setting, batch):
    errors = (FloatingPointError, ValueError)
    with pyro.validation_enabled(False), pytest.raises(errors, match=r"(loss is|holds) nan"):
        ibvi.fit(svi, [batch], 1, progress=False)


@pytest.mark.filterwarnings("ignore:Encountered NaN")
@pytest.mark.parametrize("num_good_steps", [0, 2])
@pytest.mark.parametrize("refused", [by_step, by_fit])
@pytest.mark.parametrize(
    "loss", [ibvi.TraceExpectedLogLikelihood, TraceGraphExpectedLogLikelihood]
)
@pytest.mark.parametrize("kind", [ByFunction, ByModule])
def test_a_refused_step_is_taken_back(kind, loss, refused, num_good_steps):
    setting = kind()
    setting.guide(X, X)
    pyro.param("scale", torch.tensor(1.0))
    svi = SVI(setting.model, setting.guide, pyro.optim.SGD({"lr": 0.01}), loss(num_particles=2))
    for _ in range(num_good_steps):
        svi.step(X, X)
    before = snapshot(setting)
    refused(svi, setting, (X, BAD))
    assert_equal(snapshot(setting), before)
    svi.step(X, X)
    after = snapshot(setting)
    assert all(v is None or v.isfinite().all() for v in after.values())
    assert not torch.equal(list(after.values())[-1], list(before.values())[-1])


def test_the_outermost_watch_takes_all_back():
    norm = nn.BatchNorm1d(1)
    outer, inner = Undo(norm), Undo(norm)
    before = norm.running_mean.clone()

    def fail():
        with outer.if_refused():
            with inner.if_refused():
                norm(X)
            assert not torch.equal(norm.running_mean, before)
            raise KeyError("after the inner one went well")

    with pytest.raises(KeyError, match="after the inner one"):
        fail()
    assert torch.equal(norm.running_mean, before)
    with inner.if_refused():  # nothing was left behind
        norm(X)
    assert not torch.equal(norm.running_mean, before)


def test_explain_leaves_statistics_alone():
    setting = ByFunction()
    setting.guide(X, X)
    before = snapshot(setting)
    ibvi.explain(ibvi.TraceExpectedLogLikelihood(), setting.model, setting.guide, X, X)
    assert_equal(snapshot(setting), before)


def store_a_newton_step():
    """Puts the minimum of (center - 3)^2 into Pyro's store as Newton's step computes it."""
    center = pyro.param("center", torch.zeros(1, 1)).detach_().requires_grad_()
    newton = pyro.optim.multi.Newton(trust_radii={"center": 10.0})
    updated = newton.get_step(((center - 3.0) ** 2).sum(), {"center": center})
    pyro.get_param_store()["center"] = updated["center"]
    assert not pyro.get_param_store()._params["center"].is_leaf


@pytest.mark.parametrize("accumulate", [None, 1, 2])
@pytest.mark.parametrize("kl_weight", [0.0, 1.0])
def test_what_a_newton_step_left_in_the_store_is_asked_for_no_gradient(kl_weight, accumulate):
    def model(x, y):
        center = pyro.get_param_store()["center"].detach().squeeze()
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(center + w * x[:, 0], 1.0), obs=y[:, 0])

    store_a_newton_step()
    guide = AutoNormal(model)
    guide(X, X)
    loss = ibvi.TraceExpectedLogLikelihood(kl_weight=kl_weight)
    svi = SVI(model, guide, pyro.optim.SGD({"lr": 0.01}), loss)
    before = guide.locs.w.item()
    if accumulate is None:  # warnings are errors
        svi.step(X, X)
    else:
        ibvi.fit(svi, [(X, X), (X, X)], 1, accumulate=accumulate, progress=False)
    assert guide.locs.w.item() != before
    assert pyro.param("center").item() == pytest.approx(3.0)
