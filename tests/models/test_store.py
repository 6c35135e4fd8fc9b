"""Pyro's optimizers and its store with parameters that live in their modules."""

import gc

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.params.param_store import ParamStoreDict
from torch import nn

import pyro_ibvi as ibvi
from pyro_ibvi.models.store import _NAMES, InformedStore

X = torch.linspace(-1, 1, 12)


def model(x, y):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    shift = pyro.param("shift", lambda: torch.zeros(()))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(slope * x + shift, 0.5), obs=y)


def trained(optim, num_steps=3):
    guide = ibvi.AutoMuPNormal(model)
    svi = SVI(model, guide, optim, ibvi.TraceExpectedLogLikelihood())
    for _ in range(num_steps):
        svi.step(X, 2 * X)
    return guide


def test_arguments_by_name():
    def arguments(name):
        return {"lr": 0.1 if "loc" in name else 0.01 if "factor" in name else 0.001}

    optim = pyro.optim.Adam(arguments)
    guide = trained(optim)
    rates = {p: o.param_groups[0]["lr"] for p, o in optim.optim_objs.items()}
    assert rates[guide.loc("slope")] == 0.1
    assert rates[guide.factor("slope")] == 0.01
    assert sorted(rates.values()) == [0.001, 0.01, 0.1]


def test_arguments_by_name_of_a_networks_parameters():
    net = ibvi.RandomModule(nn.Linear(2, 1), stochastic=["weight"])
    supervised = ibvi.SupervisedModel(net, ibvi.Normal(1.0, learn_scale=True), num_data=12)
    guide = ibvi.AutoMuPNormal(supervised)
    seen = []
    optim = pyro.optim.SGD(lambda name: seen.append(name) or {"lr": 1e-3})
    svi = SVI(supervised, guide, optim, ibvi.TraceExpectedLogLikelihood())
    svi.step(torch.randn(12, 2), torch.randn(12, 1))
    trace = pyro.poutine.trace(supervised, param_only=True).get_trace(torch.randn(12, 2))
    assert {"net.bias"} < set(seen)
    assert {name for name in trace.nodes if trace.nodes[name]["type"] == "param"} < set(seen)


def test_clipping_by_name():
    def clipping(module, name):
        return {"clip_value": 1e-3 if "loc" in name else 9e9}

    optim = pyro.optim.SGD({"lr": 1.0}, clipping)
    guide = ibvi.AutoMuPNormal(model)
    guide.initialize(X, 2 * X)
    before = guide.loc("slope").item()
    SVI(model, guide, optim, ibvi.TraceExpectedLogLikelihood()).step(X, 2 * X)
    assert abs(guide.loc("slope").item() - before) == pytest.approx(1e-3, rel=1e-3)


def test_the_state_of_pyros_optimizers_is_saved_and_restored_by_name():
    optim = pyro.optim.Adam({"lr": 0.1})
    guide = trained(optim)
    state = optim.get_state()
    assert sorted(state) == ["AutoMuPNormal.factors.slope", "AutoMuPNormal.locs.slope", "shift"]
    momentum = state["AutoMuPNormal.locs.slope"]["state"][0]["exp_avg"].clone()
    other = pyro.optim.Adam({"lr": 0.0})
    other.set_state(state)
    svi = SVI(model, guide, other, ibvi.TraceExpectedLogLikelihood())
    svi.step(X, torch.full((12,), torch.nan).nan_to_num())
    restored = other.optim_objs[guide.loc("slope")].state_dict()["state"][0]
    assert restored["step"] == 4
    assert restored["exp_avg"].item() != 0.1 * momentum.item()  # and not begun anew


@pytest.mark.parametrize("way", ["save", "get_state"])
def test_saving_the_store_says_what_it_does_not_hold(way, tmp_path):
    guide = trained(pyro.optim.Adam({"lr": 0.1}))
    store = pyro.get_param_store()
    arguments = [str(tmp_path / "fit.pt")] if way == "save" else []
    with pytest.warns(
        UserWarning, match=r"does not hold .*guide\.state_dict\(\) and model\.state"
    ):
        getattr(store, way)(*arguments)
    with store.scope():  # another store for a while, which nobody saves
        assert list(store) == []
    assert list(store) == ["shift"]
    assert guide.loc("slope") in _NAMES


def in_a_scope():
    with pyro.get_param_store().scope():
        trained(pyro.optim.Adam({"lr": 0.1}))


def with_local_parameters():
    class Slope(pyro.nn.PyroModule):
        def __init__(self):
            super().__init__()
            self.slope = pyro.nn.PyroSample(dist.Normal(0.0, 1.0))

        def forward(self, x, y):
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(self.slope * x, 0.5), obs=y)

    with pyro.settings.context(module_local_params=True):
        guide = ibvi.AutoMuPNormal(Slope())
        guide(X, 2 * X)


@pytest.mark.parametrize("use", [in_a_scope, with_local_parameters])
def test_a_scope_entered_before_the_first_guide_is_left_in_silence(use, monkeypatch):
    store = pyro.get_param_store()
    monkeypatch.setattr(store, "__class__", ParamStoreDict)  # as at the start of a process
    use()  # warnings are errors
    assert type(store) is InformedStore
    assert list(store) == []


def test_the_store_of_a_fit_by_pyros_own_guide_is_saved_in_silence(tmp_path):
    trained(pyro.optim.Adam({"lr": 0.1}))
    gc.collect()  # the guide is gone, and with it what the store did not hold
    pyro.clear_param_store()
    if len(_NAMES):  # other tests' guides, which something holds
        _NAMES.clear()
    guide = AutoNormal(model)
    SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step(X, 2 * X)
    store = pyro.get_param_store()
    store.save(str(tmp_path / "fit.pt"))
    names = sorted(store)
    store.clear()
    store.load(str(tmp_path / "fit.pt"))
    assert sorted(store) == names


def test_names_hold_no_guide_alive():
    guide = ibvi.AutoMuPNormal(model)
    guide(X, 2 * X)
    gc.collect()
    count = len(_NAMES)
    del guide
    gc.collect()
    assert len(_NAMES) <= count - 2
