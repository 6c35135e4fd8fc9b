"""The guide on hand-written Pyro models: supports, plates, subsampling, handlers, objectives."""

import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    SVI,
    Predictive,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoLowRankMultivariateNormal,
    AutoNormal,
    init_to_feasible,
    init_to_mean,
    init_to_median,
    init_to_sample,
    init_to_value,
)
from torch.distributions import biject_to

from pyro_ibvi import AutoMuPNormal, Diagonal, LowRank, MuPOptim, TraceExpectedLogLikelihood

DATA = torch.linspace(-1.0, 2.0, 8)


def hierarchy(data=DATA):
    mu = pyro.sample("mu", dist.Normal(1.0, 3.0))
    tau = pyro.sample("tau", dist.LogNormal(0.0, 0.5))
    with pyro.plate("groups", 2, dim=-2):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        with pyro.plate("data", 8, dim=-1):
            pyro.sample("obs", dist.Normal(theta, 1.0), obs=data.expand(2, 8))


SUPPORTS = {
    "normal": dist.Normal(1.0, 2.0).expand([3]).to_event(1),
    "lognormal": dist.LogNormal(0.5, 0.3),
    "halfcauchy": dist.HalfCauchy(1.0).expand([2]).to_event(1),
    "gamma": dist.Gamma(2.0, 1.0),
    "beta": dist.Beta(2.0, 3.0),
    "uniform": dist.Uniform(-2.0, 3.0),
    "dirichlet": dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])),
    "lkj": dist.LKJCholesky(3, 1.5),
    "wishart-like": dist.LogNormal(0.0, 1.0).expand([2, 2]).to_event(2),
    "mvn": dist.MultivariateNormal(torch.zeros(2), torch.tensor([[2.0, 0.5], [0.5, 1.0]])),
    "student": dist.StudentT(3.0, 0.0, 1.0),
    "masked": dist.Normal(0.0, 2.0).mask(False),
}


def one_site(name):
    def model():
        pyro.sample("x", SUPPORTS[name])

    return model


@pytest.mark.filterwarnings("ignore:The entries of the sites")
@pytest.mark.parametrize("name", SUPPORTS)
@pytest.mark.parametrize("covariance", [Diagonal(), None], ids=["diagonal", "point"])
def test_draws_are_in_the_support(name, covariance):
    guide = AutoMuPNormal(one_site(name), covariance={"x": covariance})
    trace = poutine.trace(guide).get_trace()
    value, fn = trace.nodes["x"]["value"], SUPPORTS[name]
    assert value.shape == fn.shape()
    assert fn.support.check(value).all()
    assert trace.nodes["x"]["fn"].event_shape == fn.event_shape
    trace.compute_log_prob()
    assert SVI(one_site(name), guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step() < 1e6
    for fixed in (guide.median()["x"], *guide.quantiles([0.1, 0.9])["x"]):
        assert fixed.shape == fn.shape()
        assert fn.support.check(fixed).all()


@pytest.mark.parametrize(
    "name", ["normal", "lognormal", "gamma", "beta", "uniform", "dirichlet", "lkj", "mvn"]
)
def test_starts_with_the_priors_deviation_in_unconstrained_space(name):
    guide, fn = AutoMuPNormal(one_site(name), covariance=Diagonal()), SUPPORTS[name]
    draws = biject_to(fn.support).inv(fn.sample((20_000,)))
    # 1000 draws behind the guide's own: 10 % is about 4 standard errors for a Gaussian.
    torch.testing.assert_close(guide.scale("x").detach(), draws.std(0), rtol=0.1, atol=0)


@pytest.mark.parametrize("name", ["normal", "lognormal", "mvn", "wishart-like"])
def test_where_a_formula_is_known_the_deviation_is_exact(name):
    expected = {"normal": 2.0, "lognormal": 0.3, "wishart-like": 1.0}.get(name)
    expected = torch.tensor([2.0, 1.0]).sqrt() if expected is None else torch.tensor(expected)
    scale = AutoMuPNormal(one_site(name), covariance=Diagonal()).scale("x").detach()
    torch.testing.assert_close(scale, expected.expand(scale.shape))


def test_heavy_tails_start_at_their_median_deviation():
    def model():
        pyro.sample("x", dist.Cauchy(0.0, 2.0).expand([50]).to_event(1))

    scale = AutoMuPNormal(model).scale("x").detach()
    # A Cauchy's median absolute deviation is its scale.
    torch.testing.assert_close(scale.mean(), torch.tensor(2 * 1.4826), rtol=0.05, atol=0)


def test_a_mixture_as_a_prior():
    """Of normals it has a mean and a deviation in closed form; of gammas it stays positive."""

    def model():
        share = dist.Categorical(torch.tensor([0.25, 0.75]))
        spike_and_slab = dist.Normal(torch.tensor([3.0, -1.0]), torch.tensor([0.5, 1.0]))
        x = pyro.sample("x", dist.MixtureSameFamily(share, spike_and_slab))
        several = dist.MixtureSameFamily(share, spike_and_slab).expand([4]).to_event(1)
        pyro.sample("several", several)
        gammas = dist.Gamma(torch.tensor([1.0, 5.0]), 1.0)
        scale = pyro.sample("scale", dist.MixtureSameFamily(share, gammas))
        pyro.sample("y", dist.Normal(x, scale), obs=torch.tensor(1.0))

    pyro.set_rng_seed(0)
    guide = AutoMuPNormal(model)
    mean = 0.25 * 3.0 - 0.75
    variance = 0.25 * (0.25 + 9.0) + 0.75 * (1.0 + 1.0) - mean**2
    torch.testing.assert_close(guide.scale("x").detach(), torch.tensor(variance**0.5))
    torch.testing.assert_close(guide.scale("several").detach(), torch.full((4,), variance**0.5))
    draws = guide.draw(500)
    assert (draws["scale"] > 0).all()
    loc, log_scale = guide.loc("x").detach(), draws["scale"].log().std()
    assert abs(draws["x"].mean() - loc) < 4 * (variance / 500) ** 0.5
    torch.testing.assert_close(log_scale, guide.scale("scale").detach(), rtol=0.15, atol=0)
    assert Trace_ELBO().loss(model, guide) < float("inf")


def test_a_support_without_a_map_is_named():
    def model():
        uniforms = dist.Uniform(torch.tensor([0.0, 5.0]), torch.tensor([1.0, 9.0]))
        pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), uniforms))

    with pytest.raises(ValueError, match=r"'x', of law MixtureSameFamily, has the suppor.*no unc"):
        AutoMuPNormal(model)


POINT = dist.Delta(torch.tensor(2.0))


@pytest.mark.parametrize("law", [POINT, POINT.mask(True).expand([])])
def test_a_point_mass_is_left_to_the_model(law):
    def model():
        known = pyro.sample("known", law)
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(known * w, 1.0), obs=torch.tensor(0.7))

    message = r"'known' is a Delta.*poutine.block\(model, hide=\['known'"
    with pytest.raises(ValueError, match=message):
        AutoMuPNormal(model)
    guide = AutoMuPNormal(poutine.block(model, hide=["known"]))
    loss = TraceExpectedLogLikelihood(num_particles=40000, vectorize_particles=True)
    with pytest.warns(UserWarning, match="in model but not guide"):
        actual = loss.loss(model, guide)
    square = (0.7 - 2.0 * guide.loc("w")).square() + (2.0 * guide.scale("w")).square()
    truth = 0.5 * square.item() + 0.5 * math.log(2 * math.pi)
    assert actual == pytest.approx(truth, rel=0.05)


def test_improper_priors_start_at_init_scale():
    def model():
        pyro.sample("x", dist.ImproperUniform(dist.constraints.positive, (), (3,)))

    with pytest.raises(ValueError, match=r"'x', of law Imp.*no start.*values=\{'x': \.\.\.\}"):
        AutoMuPNormal(model)
    start = init_to_value(values={"x": torch.ones(3)})
    with pytest.warns(UserWarning, match="The prior of 'x' cannot be sampled"):
        guide = AutoMuPNormal(model, init_loc_fn=start, init_scale=0.2)
    torch.testing.assert_close(guide.scale("x").detach(), torch.full((3,), 0.2))


@pytest.mark.parametrize(
    "init",
    [
        init_to_feasible,
        init_to_mean,
        init_to_median,
        init_to_sample,
        functools.partial(init_to_value, values={"tau": torch.tensor(0.7)}),
    ],
)
def test_locs_start_where_the_function_says(init):
    guide = AutoMuPNormal(hierarchy, init_loc_fn=init, covariance=Diagonal())
    guide.initialize(DATA)
    reference = AutoNormal(hierarchy, init_loc_fn=init)
    torch.manual_seed(3)
    reference(DATA)
    assert guide.loc("theta").shape == (2, 1)
    if init in (init_to_feasible, init_to_mean) or isinstance(init, functools.partial):
        torch.testing.assert_close(guide.loc("tau"), reference.locs.tau)


def train(guide, elbo, *, num_steps=800, model=hierarchy, lr=0.02, **kwargs):
    torch.manual_seed(1)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": lr}), elbo)
    for _ in range(num_steps):
        svi.step(DATA, **kwargs)


def conjugate(data):
    x = pyro.sample("x", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(data)):
        pyro.sample("obs", dist.Normal(x, 1.0), obs=data)


def enum_elbo(**arguments):
    return TraceEnum_ELBO(strict_enumeration_warning=False, **arguments)


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO, enum_elbo])
@pytest.mark.parametrize(
    "arguments", [{}, {"num_particles": 4}, {"num_particles": 4, "vectorize_particles": True}]
)
def test_the_elbos_find_the_conjugate_posterior(elbo, arguments):
    guide = AutoMuPNormal(conjugate, covariance=Diagonal())
    guide.initialize(DATA)
    num_steps = 200 if arguments else 400
    train(guide, elbo(**arguments), model=conjugate, num_steps=num_steps, lr=0.03)
    precision = 0.25 + len(DATA)
    assert guide.loc("x").item() == pytest.approx(DATA.sum().item() / precision, abs=0.1)
    assert guide.scale("x").item() == pytest.approx(precision**-0.5, abs=0.1)
    # The loss at the posterior is minus the evidence.
    with torch.no_grad():
        guide.loc("x").fill_(DATA.sum().item() / precision)
        guide.factor("x").fill_(-(precision**-0.5))
    cov = torch.eye(8) + 4.0 * torch.ones(8, 8)
    evidence = torch.distributions.MultivariateNormal(torch.zeros(8), cov).log_prob(DATA)
    losses = [elbo(**arguments).loss(conjugate, guide, DATA) for _ in range(50)]
    spread = 1e-3 if elbo is not TraceMeanField_ELBO else 0.4
    assert sum(losses) / 50 == pytest.approx(-evidence.item(), abs=spread)


def test_model_enumeration():
    def mixture(data):
        means = pyro.sample("means", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
        with pyro.plate("data", len(data)):
            which = pyro.sample("which", dist.Categorical(torch.ones(2)))
            pyro.sample("obs", dist.Normal(means[which], 0.3), obs=data)

    model = pyro.infer.config_enumerate(mixture, "parallel")
    data = torch.tensor([-1.0, -1.1, -0.9, 2.0, 2.1, 1.9])
    hidden = poutine.block(model, hide=["which"])
    start = init_to_value(values={"means": torch.tensor([-0.5, 0.5])})
    guide = AutoMuPNormal(hidden, covariance=Diagonal(), init_loc_fn=start, init_scale=0.1)
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), elbo)
    for _ in range(300):
        svi.step(data)
    torch.testing.assert_close(
        guide.median()["means"], torch.tensor([-1.0, 2.0]), rtol=0, atol=0.2
    )


def test_predictive():
    guide = AutoMuPNormal(hierarchy, covariance=Diagonal())
    guide.initialize(DATA)
    for parallel in (False, True):
        samples = Predictive(hierarchy, guide=guide, num_samples=7, parallel=parallel)(DATA)
        assert samples["theta"].shape == (7, 2, 1)
        assert samples["tau"].reshape(7).gt(0).all()


@pytest.mark.parametrize("shared", [False, True])
def test_handlers(shared):
    covariance = {"theta": Diagonal(), "*": LowRank(1) if shared else Diagonal()}
    guide = AutoMuPNormal(hierarchy, covariance=covariance)
    guide.initialize(DATA)
    trace = poutine.trace(guide).get_trace(DATA)
    assert {"mu", "tau", "theta"} <= set(trace.nodes)
    kinds = {n for n, s in trace.nodes.items() if s["type"] == "param"}
    assert kinds == {f"AutoMuPNormal.{k}.{s}" for k in ("locs", "factors") for s in guide.median()}
    mu = torch.tensor(3.0)
    assert poutine.condition(guide, {"mu": mu})(DATA)["mu"] is mu
    replayed = poutine.trace(poutine.replay(hierarchy, trace)).get_trace(DATA)
    assert replayed.nodes["theta"]["value"] is trace.nodes["theta"]["value"]
    blocked = poutine.trace(poutine.block(guide, hide_types=["param"])).get_trace(DATA)
    assert not [s for s in blocked.nodes.values() if s["type"] == "param"]
    name = "AutoMuPNormal.locs.mu"
    lifted = poutine.trace(poutine.lift(guide, {name: dist.Normal(5.0, 0.1)})).get_trace(DATA)
    assert lifted.nodes[name]["type"] == "sample"
    assert lifted.nodes[name]["value"].item() == pytest.approx(5.0, abs=1.0)
    masked = poutine.mask(guide, mask=False)
    poutine.trace(masked).get_trace(DATA).compute_log_prob()


def test_objective_without_divergence_on_a_hierarchy():
    guide = AutoMuPNormal(hierarchy, covariance=Diagonal())
    guide.initialize(DATA)
    with pytest.warns(UserWarning, match="tau"):
        train(guide, TraceExpectedLogLikelihood(), num_steps=400, lr=0.05)
    torch.testing.assert_close(
        guide.median()["theta"], DATA.mean().expand(2, 1), rtol=0, atol=0.15
    )


def test_roles_of_a_hand_written_network():
    from pyro_ibvi import WeightRole, mup_param_groups

    def model(x):
        hidden = pyro.sample("a", dist.Normal(0.0, 1.0).expand([4, 8]).to_event(2))
        out = pyro.sample("b", dist.Normal(0.0, 1.0).expand([8]).to_event(1))
        pyro.sample("c", dist.Normal(0.0, 1.0))
        pyro.sample("obs", dist.Normal((x @ hidden).tanh() @ out, 1.0).to_event(1), obs=x[:, 0])

    roles = {
        "a": WeightRole.of("input", fan_in=4, fan_out=8),
        "b": WeightRole.of("output", fan_in=8, fan_out=1),
    }
    guide = AutoMuPNormal(model, covariance=LowRank(2), roles=roles)
    guide.initialize(torch.randn(5, 4))
    groups = mup_param_groups(guide, 1.0, optimizer=torch.optim.SGD)
    rates = {n: g["lr"] for g in groups for n in g["param_names"]}
    assert rates == {
        "AutoMuPNormal.locs.a": 8 / 4,
        "AutoMuPNormal.factors.a": 8 / 4 / 2,
        "AutoMuPNormal.locs.b": 1 / 8,
        "AutoMuPNormal.factors.b": 1 / 16,
        "AutoMuPNormal.locs.c": 1.0,
        "AutoMuPNormal.factors.c": 1.0,
    }
    torch.testing.assert_close(guide.scale("a").detach(), torch.ones(4, 8))  # the prior stands
    optim = MuPOptim(torch.optim.SGD, {"lr": 1e-3}, guide)
    svi = SVI(model, guide, optim, TraceExpectedLogLikelihood())
    with pytest.warns(UserWarning, match="computed from the latent sites \\['c'\\]"):
        svi.step(torch.randn(5, 4))


@pytest.mark.parametrize("stock", [AutoNormal, AutoDiagonalNormal, AutoLowRankMultivariateNormal])
def test_what_pyros_guides_have_by_another_name_is_said(stock):
    guide, theirs = AutoMuPNormal(hierarchy), stock(hierarchy)
    guide.initialize()
    theirs()
    names = {"AutoNormal": ["scales"], "AutoDiagonalNormal": ["get_posterior", "latent_dim"]}
    for name in names.get(stock.__name__, ["cov_factor", "get_posterior"]):
        assert hasattr(theirs, name)
        assert not hasattr(guide, name)
        with pytest.raises(AttributeError, match=rf"no '{name}', since each site .*scale\(name\)"):
            getattr(guide, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = guide.nothing
    with pytest.raises(NotImplementedError, match=r"draw\(num_samples\) gives draws by site name"):
        guide.sample_latent()


def bounded():
    """A latent below a bound, one between two, one above, and a simplex."""
    below = dist.ImproperUniform(dist.constraints.less_than(3.0), (), (2,))
    pyro.sample("below", below, infer={})
    pyro.sample("between", dist.Uniform(-1.0, 2.0))
    pyro.sample("above", dist.Gamma(2.0, 1.0))
    probs = pyro.sample("probs", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("data", 4):
        pyro.sample("obs", dist.Categorical(probs), obs=torch.tensor([0, 1, 2, 2]))


def test_quantiles_are_those_of_draws_on_every_support():
    def start(site):
        starts = {"below": torch.tensor([1.0, -2.0])}
        return starts[site["name"]] if site["name"] in starts else init_to_median(site)

    probabilities = torch.tensor([0.1, 0.5, 0.9])
    with pytest.warns(UserWarning, match="prior of 'below' cannot be sampled"):
        guide = AutoMuPNormal(bounded, init_loc_fn=start)
    with pytest.warns(UserWarning, match=r"sites \['probs'\] depend on one another.*guide\.draw"):
        quantiles = guide.quantiles(probabilities)
    draws = guide.draw(20000)
    for name in ("below", "between", "above"):
        # The share of draws below a quantile is its probability, within four standard errors.
        share = (draws[name] < quantiles[name][:, None]).double().mean(1)
        expected = probabilities.double().reshape(-1, *(1,) * (share.dim() - 1))
        assert ((share - expected).abs() < 4 * (0.25 / 20000) ** 0.5).all(), name


def regression(x, y=None):
    weight = pyro.sample("weight", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(x @ weight, 1.0), obs=y)


@pytest.mark.parametrize("ask", [AutoMuPNormal.median, lambda guide: guide.quantiles([0.5])])
def test_a_loaded_guide_says_that_it_needs_the_models_arguments(ask):
    x, y = torch.randn(5, 2), torch.randn(5)
    guide, fresh = AutoMuPNormal(regression), AutoMuPNormal(regression)
    guide.initialize(x, y)
    fresh.load_state_dict(guide.state_dict())
    with pytest.raises(RuntimeError, match=r"not seen its model's arguments \(x, y=None\) yet"):
        ask(fresh)
    fresh.initialize(x, y)
    torch.testing.assert_close(fresh.median(), guide.median())
