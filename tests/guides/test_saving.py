"""States, copies and pickles leave the live guide intact; models of one process share nothing."""

import copy
import io
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive
from pyro.infer.autoguide import AutoGuideList
from torch import nn

from pyro_ibvi import (
    AutoMuPNormal,
    Categorical,
    Diagonal,
    Kronecker,
    LowRank,
    MuPOptim,
    RandomModule,
    SupervisedModel,
    TraceExpectedLogLikelihood,
    mup_param_groups,
    predict,
)

X, Y = torch.randn(8, 2, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 3


def build(covariance=None):
    net = nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 3))
    model = SupervisedModel(RandomModule(net, stochastic="input+output"), Categorical())
    return model, AutoMuPNormal(model, covariance=covariance or LowRank(3))


def hand_written(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
    with pyro.plate("data", 8):
        local = pyro.sample("local", dist.LogNormal(0.0, 1.0))
        logits = (x @ w) * local.unsqueeze(-1)
        pyro.sample("obs", dist.Categorical(logits=logits), obs=y)


def trained(num_steps=3, covariance=None):
    model, guide = build(covariance)
    optim = MuPOptim(torch.optim.SGD, {"lr": 0.01}, guide)
    svi = SVI(model, guide, optim, TraceExpectedLogLikelihood(reduction="mean"))
    for _ in range(num_steps):
        svi.step(X, Y)
    return model, guide, svi


def draw(guide, *args):
    torch.manual_seed(7)
    return {name: value.detach() for name, value in guide(*args).items()}


def assert_same(a, b):
    assert set(a) == set(b)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=0)


def saved(obj, **kwargs):
    buffer = io.BytesIO()
    torch.save(obj, buffer)
    buffer.seek(0)
    return torch.load(buffer, **kwargs)


@pytest.mark.parametrize("covariance", [LowRank(3), Kronecker(2, 3)], ids=str)
@pytest.mark.parametrize("assign", [False, True])
def test_state_into_a_guide_that_was_never_called(assign, covariance):
    _, guide, _ = trained(covariance=covariance)
    state = saved(guide.state_dict(), weights_only=True)
    torch.manual_seed(99)
    _, fresh = build(covariance)
    assert not torch.equal(fresh.loc("net.0.weight"), guide.loc("net.0.weight"))
    fresh.load_state_dict(state, assign=assign)
    assert_same(draw(fresh), draw(guide))


def test_state_into_a_guide_that_waits_for_its_arguments():
    guide = AutoMuPNormal(hand_written, covariance=Diagonal())
    guide.initialize(X, Y)
    state = saved(guide.state_dict(), weights_only=True)
    fresh = AutoMuPNormal(hand_written, covariance=Diagonal())
    fresh.load_state_dict(state)
    assert_same(fresh.state_dict(), guide.state_dict())  # not lost if saved again right away
    fresh.initialize(X, Y)
    assert_same(draw(fresh, X, Y), draw(guide, X, Y))
    assert_same(fresh.state_dict(), guide.state_dict())
    inside = nn.ModuleDict({"guide": AutoMuPNormal(hand_written, covariance=Diagonal())})
    inside.load_state_dict({f"guide.{name}": value for name, value in state.items()})
    inside["guide"].initialize(X, Y)
    assert_same(draw(inside["guide"], X, Y), draw(guide, X, Y))


def test_the_state_of_another_model_is_refused():
    _, guide, _ = trained()
    other = AutoMuPNormal(hand_written, covariance=Diagonal())
    other.load_state_dict(guide.state_dict())
    with pytest.raises(RuntimeError, match=r"(?s)Missing key.*locs\.w.*Unexpected key"):
        other.initialize(X, Y)
    _, fresh = build(Diagonal())
    with pytest.raises(RuntimeError, match="size mismatch for factors"):
        fresh.load_state_dict(guide.state_dict())


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda guide: pickle.loads(pickle.dumps(guide)),
    "torch.save": lambda guide: saved(guide, weights_only=False),
}


@pytest.mark.parametrize("covariance", [LowRank(3), Kronecker(2, 3)], ids=str)
@pytest.mark.parametrize("how", COPIES)
def test_copies_are_equal_and_independent(how, covariance):
    model, guide, svi = trained(covariance=covariance)
    before = draw(guide)
    other = COPIES[how](guide)
    assert_same(draw(other), before)
    assert_same(draw(guide), before)
    svi.step(X, Y)  # the live one still trains
    assert not torch.equal(draw(guide)["net.0.weight"], before["net.0.weight"])
    assert_same(draw(other), before)
    assert guide.model is model
    with torch.no_grad():
        other.loc("net.0.weight").fill_(3.0)
    assert not guide.loc("net.0.weight").eq(3.0).any()
    assert other.median().keys() == guide.median().keys()
    assert other.quantiles([0.5]).keys() == guide.quantiles([0.5]).keys()


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("local", [False, True])
def test_copies_of_a_guide_of_a_function(how, local):
    pyro.settings.set(module_local_params=local)
    guide = AutoMuPNormal(hand_written, covariance={"w": LowRank(2), "*": Diagonal()})
    guide(X, Y)
    other = COPIES[how](guide)
    assert_same(draw(other, X, Y), draw(guide, X, Y))


def test_a_copied_guide_trains_the_same_model():
    model, guide, _ = trained()
    other = copy.deepcopy(guide)
    assert other.model is model
    optim = MuPOptim(torch.optim.SGD, {"lr": 0.01}, other)
    before, live = draw(other), draw(guide)
    SVI(model, other, optim, TraceExpectedLogLikelihood()).step(X, Y)
    assert not torch.equal(draw(other)["net.0.weight"], before["net.0.weight"])
    assert_same(draw(guide), live)


def test_copied_together_they_belong_together():
    model, guide, _ = trained()
    new_model, new_guide = copy.deepcopy((model, guide))
    assert new_guide.model is new_model
    groups = mup_param_groups(new_guide, 0.1, optimizer=torch.optim.SGD)
    grouped = {id(p) for group in groups for p in group["params"]}
    assert grouped == {
        id(p) for m in (new_model, new_guide) for p in m.parameters() if p.requires_grad
    }


def test_an_unpickled_guide_says_that_it_lacks_its_model():
    _, guide, _ = trained()
    other = pickle.loads(pickle.dumps(guide))
    with pytest.raises(RuntimeError, match=r"unpickled, without its model.*load this one's state"):
        mup_param_groups(other, 0.1, optimizer=torch.optim.SGD)


@pytest.mark.parametrize("how", ["pickle", "torch.save"])
def test_no_data_in_what_is_saved(how):
    marker = 12345.678
    x = torch.full((20_000, 2), marker)
    y = torch.zeros(20_000, dtype=torch.long)

    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Categorical(logits=x @ w), obs=y)

    for guide, args in ((AutoMuPNormal(model), (x, y)), (build()[1], (x, y))):
        guide(*args)
        if how == "pickle":
            blob = pickle.dumps(guide)
        else:
            buffer = io.BytesIO()
            torch.save(guide, buffer)
            blob = buffer.getvalue()
        assert len(blob) < 40_000
        assert x[:1].numpy().tobytes() not in blob


def test_optimizer_state_loads_with_weights_only():
    _, _, svi = trained()
    state = saved(svi.optim.get_state(), weights_only=True)
    assert state["names"] == svi.optim.get_state()["names"]


@pytest.mark.parametrize("local", [False, True])
def test_two_models_in_one_process_are_independent(local):
    pyro.settings.set(module_local_params=local)
    first, first_guide, first_svi = trained()
    before = draw(first_guide), copy.deepcopy(first.state_dict())
    second, second_guide, second_svi = trained(num_steps=0)
    assert not torch.equal(
        second_guide.loc("net.0.weight"), first_guide.loc("net.0.weight")
    )  # the second is not handed the first one's parameters
    for _ in range(3):
        second_svi.step(X, Y)
    assert_same(draw(first_guide), before[0])
    assert_same(first.state_dict(), before[1])
    first_svi.step(X, Y)
    assert not torch.equal(draw(first_guide)["net.0.weight"], before[0]["net.0.weight"])
    one = predict(first, first_guide, X, num_samples=3).mean
    two = predict(second, second_guide, X, num_samples=3).mean
    assert not torch.equal(one, two)


@pytest.mark.parametrize("local", [False, True])
def test_the_global_store_is_never_read_or_written(local):
    pyro.settings.set(module_local_params=local)
    model, guide, _ = trained()
    Predictive(model, guide=guide, num_samples=2)(X)
    assert list(pyro.get_param_store().keys()) == []
    names = [n for n, s in poutine.trace(guide).get_trace().nodes.items() if s["type"] == "param"]
    for name in names:
        pyro.param(name, torch.tensor(3.0))  # what another program may have left there
    _, fresh = build()
    assert not fresh.loc("net.0.weight").eq(3.0).any()
    assert fresh()["net.0.weight"].shape == (4, 2)


def test_type_and_device_move_with_the_modules():
    model, guide, _ = trained()
    model.double(), guide.double()
    loss = TraceExpectedLogLikelihood().loss(model, guide, X.double(), Y)
    assert guide.loc("net.0.weight").dtype == torch.float64
    assert isinstance(loss, float)
    assert model.net(X.double()).dtype == torch.float64


def test_guide_and_model_copied_together_in_either_order():
    model, guide = build()
    for names in (("guide", "model"), ("model", "guide")):
        objects = {"model": model, "guide": guide}
        copies = dict(zip(names, copy.deepcopy([objects[n] for n in names]), strict=True))
        assert copies["guide"].model is copies["model"]
        own = {p for _, p, _ in copies["guide"].named_rates("sgd")}
        assert set(copies["model"].net.network.parameters()) & own
        assert not set(model.net.network.parameters()) & own
        predict(copies["model"], copies["guide"], X, num_samples=2)
    alone = copy.deepcopy(guide)
    assert alone.model is model
    assert copy.deepcopy(copy.deepcopy(guide)).model is model


def test_a_state_that_does_not_fit_is_refused_each_time():
    _, guide = build(LowRank(2))
    fresh = AutoMuPNormal(hand_written)
    fresh.load_state_dict(guide.state_dict())
    for _ in range(2):
        with pytest.raises(RuntimeError, match="Missing key"):
            fresh.initialize(X, Y)
    with pytest.raises(RuntimeError, match="Missing key"):
        fresh(X, Y)


def test_an_unpickled_guide_draws_and_says_what_it_lacks():
    _, guide = build()
    other = pickle.loads(pickle.dumps(guide))
    assert_same(draw(other), draw(guide))
    with pytest.raises(RuntimeError, match="unpickled, without its model: make a new guide"):
        _ = other.model
    with pytest.raises(RuntimeError, match="unpickled, without its model"):
        mup_param_groups(other, 0.1, optimizer=torch.optim.SGD)


def test_an_unpickled_list_of_guides_draws():
    guide = AutoGuideList(hand_written)
    guide.append(AutoMuPNormal(poutine.block(hand_written, expose=["w"])))
    guide.append(AutoMuPNormal(poutine.block(hand_written, expose=["local"])))
    guide(X, Y)
    drawn = draw(guide, X, Y)
    other = pickle.loads(pickle.dumps(guide))
    assert drawn.keys() == {"w", "local"}
    assert_same(draw(other, X, Y), drawn)


def test_draws_are_the_users():
    _, guide = build({"*": None})
    drawn = guide.draw(3)
    before = {name: value.clone() for name, value in drawn.items()}
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(1.0)
    assert_same(drawn, before)
