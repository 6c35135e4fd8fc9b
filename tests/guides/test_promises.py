"""What users of Pyro's autoguides count on: plates, subsampling, lists of guides, clear errors."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoNormal,
    init_to_feasible,
    init_to_sample,
)
from pyro.infer.reparam import LocScaleReparam, ProjectedNormalReparam
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn

from pyro_ibvi import (
    AutoMuPNormal,
    Categorical,
    Diagonal,
    LowRank,
    Multiplicative,
    RandomModule,
    SupervisedModel,
    TraceExpectedLogLikelihood,
    VariationalNetwork,
    WeightRole,
    mup_param_groups,
)

DATA = torch.arange(12.0).reshape(6, 2) / 6


def local_model(data, subsample_size=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 6, subsample_size=subsample_size) as rows:
        local = pyro.sample("local", dist.LogNormal(mu, 1.0).expand([2]).to_event(1))
        pyro.sample("obs", dist.Normal(local, 1.0).to_event(1), obs=data[rows])


def create_plates(data, subsample_size=None):
    return pyro.plate("data", 6, subsample_size=subsample_size, dim=-1)


@pytest.mark.parametrize("local_params", [False, True])
@pytest.mark.parametrize("plates", [None, create_plates])
def test_subsampled_local_latents(plates, local_params):
    pyro.settings.set(module_local_params=local_params)
    guide = AutoMuPNormal(local_model, covariance=Diagonal(), create_plates=plates)
    guide.initialize(DATA, 3)
    assert guide.loc("local").shape == guide.factor("local").shape == (6, 2)
    assert guide.median()["local"].shape == (6, 2)
    before = guide.loc("local").detach().clone()
    torch.manual_seed(4)
    trace = poutine.trace(guide).get_trace(DATA, 3)
    rows = trace.nodes["data"]["value"]
    assert trace.nodes["local"]["fn"].shape() == (3, 2)
    torch.testing.assert_close(trace.nodes["local"]["fn"].base_dist.loc.detach(), before[rows])
    assert trace.nodes["local"]["scale"] == 2.0
    svi = SVI(local_model, guide, pyro.optim.SGD({"lr": 0.1}), Trace_ELBO())
    torch.manual_seed(4)
    svi.step(DATA, 3)
    moved = (guide.loc("local") != before).any(-1).nonzero().squeeze(-1)
    assert set(moved.tolist()) == set(rows.tolist())
    assert AutoNormal(local_model)(DATA, 3)["local"].shape == guide(DATA, 3)["local"].shape


def test_plates_that_the_user_makes_hold_without_latents_in_them():
    # Two plates of the model share one subsample that the guide draws.
    def model(data):
        pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("a", 6, dim=-1):
            batch = pyro.subsample(data, event_dim=1)
            pyro.sample("obs", dist.Normal(0.0, 1.0).expand([2]).to_event(1), obs=batch)

    def plates(data):
        return [pyro.plate("a", 6, subsample_size=2, dim=-1)]

    guide = AutoMuPNormal(model, create_plates=plates)
    loss = SVI(model, guide, pyro.optim.SGD({"lr": 0.1}), Trace_ELBO()).step(DATA)
    assert loss < 1e3
    no_latent = AutoMuPNormal(poutine.block(model, hide=["mu"]), create_plates=plates)
    assert no_latent(DATA) == {}


@pytest.mark.parametrize("local_params", [False, True])
def test_guide_list(local_params):
    pyro.settings.set(module_local_params=local_params)

    def model(data):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", 6):
            x = pyro.sample("x", dist.Normal(mu, tau))
            pyro.sample("obs", dist.Normal(x, 1.0), obs=data[:, 0])

    guide = AutoGuideList(model)
    guide.append(AutoMuPNormal(poutine.block(model, expose=["mu"]), covariance=LowRank(1)))
    guide.append(AutoMuPNormal(poutine.block(model, hide=["mu", "obs"]), covariance=Diagonal()))
    assert set(guide(DATA)) == {"mu", "tau", "x"}
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    before = {name: p.detach().clone() for name, p in guide.named_parameters()}
    for _ in range(2):
        svi.step(DATA)
    assert len(before) == 6
    assert all(not torch.equal(p, before[name]) for name, p in guide.named_parameters())
    assert set(guide.median(DATA)) == set(guide.quantiles([0.5], DATA)) == {"mu", "tau", "x"}
    fresh = AutoGuideList(model)
    fresh.append(AutoMuPNormal(poutine.block(model, expose=["mu"]), covariance=LowRank(1)))
    fresh.append(AutoMuPNormal(poutine.block(model, hide=["mu", "obs"]), covariance=Diagonal()))
    fresh.load_state_dict(guide.state_dict())
    torch.testing.assert_close(fresh.median(DATA)["x"], guide.median(DATA)["x"])


@pytest.mark.parametrize("local_params", [False, True])
@pytest.mark.parametrize("vectorize", [False, True])
def test_the_module_interface_of_an_elbo(local_params, vectorize):
    pyro.settings.set(module_local_params=local_params)

    class Model(PyroModule):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(2))
            self.scale = PyroParam(torch.ones(2), constraint=dist.constraints.positive)
            self.z = PyroSample(lambda self: dist.Normal(self.loc, self.scale).to_event(1))

        def forward(self, data):
            loc, log_scale = self.z.unbind(-1)
            with pyro.plate("data"):
                pyro.sample("obs", dist.Cauchy(loc, log_scale.exp()), obs=data)

    model, data = Model(), DATA[:, 0]
    guide = AutoMuPNormal(model, covariance=Diagonal())
    guide(data)
    loss_fn = Trace_ELBO(num_particles=2, vectorize_particles=vectorize)(model, guide)
    names = {"model.loc", "model.scale_unconstrained", "guide.locs.z", "guide.factors.z"}
    assert {name for name, _ in loss_fn.named_parameters()} == names
    groups = mup_param_groups(guide, 0.01, optimizer=torch.optim.Adam)
    adam = torch.optim.Adam(groups)
    before = {name: p.detach().clone() for name, p in loss_fn.named_parameters()}
    for _ in range(2):
        adam.zero_grad()
        loss_fn(data).backward()
        adam.step()
    after = dict(loss_fn.named_parameters())
    assert all(not torch.equal(after[name], value) for name, value in before.items())


def test_guide_list_with_pyros_guides():
    def model(data):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        c = pyro.sample("c", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 6):
            pyro.sample("obs", dist.Normal(a + b + c, 1.0), obs=data[:, 0])

    guide = AutoGuideList(model)
    guide.append(AutoDelta(poutine.block(model, expose=["a"])))
    guide.append(AutoMuPNormal(poutine.block(model, expose=["b"])))
    guide.append(AutoDiagonalNormal(poutine.block(model, expose=["c"])))
    SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(DATA)
    assert set(guide.median(DATA)) == {"a", "b", "c"}


def test_a_reparametrized_model():
    def model(data):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        y = pyro.sample("y", dist.ProjectedNormal(torch.ones(3)))
        with pyro.plate("data", 6):
            x = pyro.sample("x", dist.Normal(mu, 2.0))
            pyro.sample("obs", dist.Normal(x + y.sum(), 1.0), obs=data[:, 0])

    config = {"x": LocScaleReparam(0.0), "y": ProjectedNormalReparam()}
    model = poutine.reparam(model, config)
    guide = AutoMuPNormal(model, covariance=Diagonal())
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    svi.step(DATA)
    assert set(guide.median()) == {"mu", "x_decentered", "y_normal"}
    assert Predictive(model, guide=guide, num_samples=3)(DATA)["x"].shape == (3, 6)


def test_the_mean_field_objective_has_the_closed_form_divergence():
    # Away from the prior; constrained sites by the transform that both laws share.
    def model():
        pyro.sample("x", dist.Normal(1.0, 2.0).expand([3]).to_event(1))
        with pyro.plate("rows", 2):
            pyro.sample("y", dist.LogNormal(0.5, 0.3))

    guide = AutoMuPNormal(model, covariance=Diagonal(), init_scale=0.5)
    expected = 0.0
    for name, loc, scale in (("x", 1.0, 2.0), ("y", 0.5, 0.3)):
        q = dist.Normal(guide.loc(name), guide.scale(name))
        expected += torch.distributions.kl_divergence(q, dist.Normal(loc, scale)).sum().item()
    assert TraceMeanField_ELBO().loss(model, guide) == pytest.approx(expected, rel=1e-4)
    particles = TraceMeanField_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    assert particles.loss(model, guide) == pytest.approx(expected, rel=1e-4)


def test_discrete_and_spherical_sites_have_pyros_own_help():
    def discrete():
        pyro.sample("x", dist.Bernoulli(0.5))

    def sphere():
        pyro.sample("y", dist.ProjectedNormal(torch.ones(2)))

    for start in (init_to_sample, init_to_feasible):
        with pytest.raises(ValueError, match=r"handle discrete sample site 'x'.*enumeration"):
            AutoMuPNormal(discrete, init_loc_fn=start)
    with pytest.raises(ValueError, match=r"spherical sample site 'y'.*ProjectedNormalReparam"):
        AutoMuPNormal(sphere)


def test_models_that_do_not_fit():
    def empty():
        pyro.sample("obs", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))

    def sequential():
        for i in pyro.plate("loop", 2):
            pyro.sample(f"x{i}", dist.Normal(0.0, 1.0))

    with pytest.raises(RuntimeError, match="no latent variables: there is nothing to infer"):
        AutoMuPNormal(empty)
    with pytest.raises(NotImplementedError, match="inside the sequential plate 'loop'"):
        AutoMuPNormal(sequential)


def supervised():
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))
    return SupervisedModel(RandomModule(net, stochastic="all"), Categorical())


@pytest.mark.parametrize(
    ("covariance", "error", "message"),
    [
        (LowRank, TypeError, r"Expected a covariance such as Diagonal\(\)"),
        ("diagonal", TypeError, "Expected a covariance such as"),
        (10, TypeError, "Expected a covariance such as"),
        ({"input": Diagonal}, TypeError, "Expected a covariance such as"),
        ({nn.Linear: Diagonal()}, TypeError, "names or patterns to covariances; got the key <cla"),
        ({1: Diagonal()}, TypeError, "got the key 1"),
        ({"inptu": Diagonal(), "*": None}, ValueError, "names 'inptu', which matches no site"),
        ({"input": Diagonal()}, ValueError, r"says nothing of the site 'net\.2\.weight'"),
        ({}, ValueError, r"says nothing of the site 'net\.0\.weight' \(role input\)"),
    ],
)
def test_a_bad_covariance(covariance, error, message):
    with pytest.raises(error, match=message):
        AutoMuPNormal(supervised(), covariance=covariance)


@pytest.mark.parametrize("name", ["input", "net.0.*", "net.0.weight"])
def test_a_covariance_of_what_is_not_random_says_how_it_becomes_so(name):
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))
    covariance = {name: Multiplicative(0.3), "output": Multiplicative(0.3)}
    with pytest.raises(ValueError, match=r"not random here: \['net\.0.*'linear\+inner weights'"):
        VariationalNetwork(net, Categorical(), covariance=covariance)
    options = {"covariance": covariance, "stochastic": "linear+inner weights"}
    assert VariationalNetwork(net, Categorical(), **options).net.stochastic == [
        "0.weight",
        "2.weight",
    ]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"init_scale": 0.0}, ValueError, r"init_scale must be positive and finite, got 0\.0"),
        ({"init_scale": -1.0}, ValueError, "init_scale must be positive and finite"),
        ({"init_scale": float("nan")}, ValueError, "init_scale must be positive and finite"),
        ({"init_scale": "1"}, ValueError, "init_scale must be positive and finite"),
        ({"init_loc_fn": 0.0}, TypeError, "init_loc_fn must be a function of a site"),
        ({"parametrization": "mup"}, TypeError, r"such as MaximalUpdate\(\), got 'mup'"),
        ({"roles": {"net.0.weight": "input"}}, TypeError, "must say its fans: WeightRole.of"),
        (
            {"roles": {"w": WeightRole.of("input", fan_in=1, fan_out=1)}},
            ValueError,
            r"roles names \['w'\], but the latent sites are",
        ),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        AutoMuPNormal(supervised(), **arguments)


def test_a_class_or_a_number_is_no_model():
    with pytest.raises(TypeError, match=r"is the class SupervisedModel: write SupervisedModel\("):
        AutoMuPNormal(SupervisedModel)
    with pytest.raises(TypeError, match="must be callable, got int"):
        AutoMuPNormal(3)


def test_a_plate_cannot_share_noise():
    with pytest.raises(ValueError, match=r"site 'local' is inside the plate 'data'.*Diagonal"):
        AutoMuPNormal(local_model, covariance={"local": LowRank(2), "*": Diagonal()})(DATA)
    guide = AutoMuPNormal(local_model, covariance=LowRank(2))
    guide.initialize(DATA)
    assert guide.factor("local").shape == (6, 2)  # one choice for all means networks


def test_called_first_without_targets():
    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(w * x, 1.0), obs=y)

    guide, x = AutoMuPNormal(model), torch.ones(3)
    with pytest.raises(ValueError, match=r"called first with y=None.*guide\.initialize\(\*args\)"):
        guide(x)
    for ask in (lambda: guide.draw(3), lambda: guide.loc("w"), lambda: guide.scale("w")):
        with pytest.raises(RuntimeError, match=r"no parameters yet: call guide\.initialize"):
            ask()
    guide.initialize(x, torch.zeros(3))
    assert set(guide(x)) == {"w"}
    with pytest.raises(ValueError, match="called first with y=None"):
        Predictive(model, guide=AutoMuPNormal(model), num_samples=2)(x)


def test_a_degenerate_covariance_answers_the_elbo_with_a_sentence():
    model = supervised()
    guide = AutoMuPNormal(model, covariance=LowRank(2))
    x, y = torch.zeros(5, 2), torch.zeros(5, dtype=torch.long)
    with pytest.raises(RuntimeError, match=r"rank 2 over \d+ weights is degenerate.*kl_weight=0"):
        Trace_ELBO().loss(model, guide, x, y)
    assert TraceExpectedLogLikelihood().loss(model, guide, x, y) > 0
