"""Any network as a Pyro model of its weights."""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.autoname import scope
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule
from torch import nn

from pyro_ibvi import (
    AutoMuPNormal,
    Diagonal,
    LowRank,
    MaximalUpdate,
    Normal,
    RandomModule,
    Standard,
    SupervisedModel,
    TraceExpectedLogLikelihood,
)


def mlp():
    return nn.Sequential(
        nn.Linear(2, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)
    )


def trace_of(net, *args):
    return poutine.trace(net).get_trace(*args)


def sites(trace):
    return [n for n, s in trace.nodes.items() if s["type"] == "sample"]


def params(trace):
    return [n for n, s in trace.nodes.items() if s["type"] == "param"]


def test_the_users_network_stays_as_it_is():
    net = mlp()
    before = copy.deepcopy(net.state_dict())
    keys = set(net.__dict__)
    random_net = RandomModule(net, stochastic="all")
    guide = AutoMuPNormal(SupervisedModel(random_net, Normal(), num_data=3))
    x, y = torch.zeros(3, 2), torch.zeros(3, 1)
    svi = SVI(guide.model, guide, pyro.optim.SGD({"lr": 0.1}), TraceExpectedLogLikelihood())
    svi.step(x, y)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert set(net.__dict__) == keys
    assert type(net) is nn.Sequential


@pytest.mark.parametrize(
    ("stochastic", "expected"),
    [
        ("all", {"0.weight", "0.bias", "3.weight", "3.bias", "5.weight", "5.bias"}),
        ("input+output", {"0.weight", "0.bias", "5.weight", "5.bias"}),
        ("input+output weights", {"0.weight", "5.weight"}),
        ("input", {"0.weight", "0.bias"}),
        ("last", {"5.weight", "5.bias"}),
        (["0.*", "3.bias"], {"0.weight", "0.bias", "3.bias"}),
        (["3"], {"3.weight", "3.bias"}),
        ("5.weight", {"5.weight"}),
        (nn.LayerNorm, {"1.weight", "1.bias"}),
        ([nn.LayerNorm, "5.bias"], {"1.weight", "1.bias", "5.bias"}),
        (lambda name: name.endswith("weight"), {"0.weight", "1.weight", "3.weight", "5.weight"}),
    ],
)
def test_choice_of_stochastic_parameters(stochastic, expected):
    net = RandomModule(mlp(), stochastic=stochastic)
    trace = trace_of(net, torch.zeros(3, 2))
    assert set(sites(trace)) == set(net.stochastic) == expected
    everything = {name for name, _ in mlp().named_parameters()}
    assert set(params(trace)) == everything - expected


@pytest.mark.parametrize(
    ("stochastic", "error", "message"),
    [
        ("first", ValueError, r"stochastic names 'first', which matches no parameter; choose"),
        ([], ValueError, r"stochastic=\[\] chooses none of the parameters"),
        (nn.Conv2d, ValueError, "stochastic names <class .*Conv2d'>, which matches no parameter"),
        (3, TypeError, "stochastic must be one of .*; got 3"),
        ([3], TypeError, r"stochastic must be one of .*; got \[3\]"),
        (None, TypeError, "stochastic must be one of .*; got None"),
        (nn.Linear(2, 3), TypeError, r"names or types of layers, .*; got Linear\(in_features=2"),
        (lambda name: False, ValueError, r"nothing to infer. Name those .*=\['0\.weight'\]"),
    ],
)
def test_a_bad_choice(stochastic, error, message):
    with pytest.raises(error, match=message):
        RandomModule(mlp(), stochastic=stochastic)
    with pytest.raises(ValueError, match="The network has no parameters, so there is nothing to"):
        RandomModule(nn.ReLU())


def test_the_state_of_the_plain_network_is_loaded_before_it_is_wrapped():
    random_net, other = RandomModule(mlp()), RandomModule(mlp())
    with pytest.raises(
        ValueError, match=r"before it is wrapped, net\.load_state_dict\(state\), and"
    ):
        random_net.load_state_dict(mlp().state_dict())
    random_net.load_state_dict(other.state_dict())
    for name, value in random_net.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


def test_frozen_parameters_stay_frozen():
    net = mlp()
    net[0].requires_grad_(False)
    random_net = RandomModule(net, stochastic="last")
    trace = trace_of(random_net, torch.zeros(3, 2))
    assert set(params(trace)) == {"1.weight", "1.bias", "3.weight", "3.bias"}
    # Made random although frozen, if the user says so by name.
    assert RandomModule(net, stochastic="0").stochastic == ["0.weight", "0.bias"]
    with pytest.raises(ValueError, match=r"random by name alone, and \['0.weight', '0.bias'\]"):
        RandomModule(net, stochastic="input")
    assert "0.weight" not in RandomModule(net, stochastic=nn.Linear).stochastic


def test_output_is_the_networks_with_the_drawn_weights():
    net, x = mlp(), torch.randn(3, 2)
    random_net = RandomModule(net, stochastic="input+output")
    trace = trace_of(random_net, x)
    drawn = {name: trace.nodes[name]["value"] for name in sites(trace)}
    expected = torch.func.functional_call(net, drawn, (x,))
    torch.testing.assert_close(trace.nodes["_RETURN"]["value"], expected)
    assert not torch.allclose(random_net(x), random_net(x))


def test_tied_weights_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.read = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
            self.read.weight = self.embed.weight

        def forward(self, x):
            return self.read(self.embed(x))

    x = torch.arange(3)
    net = RandomModule(Tied(), stochastic="all", parametrization=Standard())
    trace = trace_of(net, x)
    assert sites(trace) == ["embed.weight"]
    weight = trace.nodes["embed.weight"]["value"]
    torch.testing.assert_close(trace.nodes["_RETURN"]["value"], weight[x] @ weight.mT)
    draws = {"embed.weight": torch.randn(5, 7, 4)}
    expected = torch.stack([w[x] @ w.mT for w in draws["embed.weight"]])
    torch.testing.assert_close(net.run(draws, x), expected)


def test_priors_by_name():
    laplace = dist.Laplace(0.0, 1.0).expand([1]).to_event(1)
    net = RandomModule(mlp(), stochastic="all", prior={"5.bias": laplace, "0.*": 2, "*": 0.5})
    assert [net.prior_std(name) for name in net.stochastic[:4]] == [2.0, 2.0, 0.5, 0.5]
    assert isinstance(
        trace_of(net, torch.zeros(1, 2)).nodes["5.bias"]["fn"].base_dist, dist.Laplace
    )
    assert net.prior_std("1.weight") != net.prior_std("1.weight")  # NaN: it is not stochastic
    assert RandomModule(mlp(), stochastic="all", prior=0.5).prior_std("3.weight") == 0.5


@pytest.mark.parametrize(
    ("prior", "error", "message"),
    [
        (0.0, ValueError, r"standard deviation of '0\.weight' must be positive and finite, got 0"),
        (-1.0, ValueError, "must be positive and finite, got -1"),
        (float("nan"), ValueError, "must be positive and finite, got nan"),
        (True, ValueError, "must be a standard deviation or a Pyro distribution, got True"),
        ("1", ValueError, "must be a standard deviation or a Pyro distribution, got '1'"),
        (dist.Normal, ValueError, "must be a standard deviation or a Pyro distribution"),
        (
            {"9.weight": 1.0},
            ValueError,
            r"prior names '9\.weight', which matches none of the sites",
        ),
        ({"1.weight": 1.0}, ValueError, r"prior names '1\.weight', which matches none"),
        (
            {"0.weight": dist.Normal(0.0, 1.0)},
            ValueError,
            r"event shape \(\), expected \(\) and \(8, 2\): write dist\.Normal\(",
        ),
        ({0: 1.0}, TypeError, "prior goes from names or patterns to priors; got the key 0"),
    ],
)
def test_a_bad_prior(prior, error, message):
    with pytest.raises(error, match=message):
        RandomModule(mlp(), stochastic="all", prior=prior)


def test_not_a_network():
    with pytest.raises(TypeError, match=r"RandomModule needs a torch\.nn\.Module, got function"):
        RandomModule(lambda x: x, stochastic="all")
    with pytest.raises(TypeError, match="RandomModule needs an object, got the class Linear"):
        RandomModule(nn.Linear, stochastic="all")
    with pytest.raises(TypeError, match="parametrization must be an object such as MaximalUpdate"):
        RandomModule(mlp(), stochastic="all", parametrization=MaximalUpdate)


class Nested(PyroModule):
    """A user's model that holds two networks whose layers have the same names."""

    def __init__(self):
        super().__init__()
        self.mean = RandomModule(mlp(), stochastic="all")
        self.noise = RandomModule(nn.Sequential(nn.Linear(2, 1)), stochastic="all")

    def forward(self, x, y=None):
        mean, scale = self.mean(x), nn.functional.softplus(self.noise(x)) + 0.1
        with pyro.plate("data", len(x)):
            return pyro.sample("obs", dist.Normal(mean, scale).to_event(1), obs=y)


def two_networks():
    first = RandomModule(mlp(), stochastic="input+output", name="a")
    second = RandomModule(mlp(), stochastic="input+output", name="b")

    def model(x, y=None):
        output = first(x) * second(x)
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(output, 0.1).to_event(1), obs=y)

    return model


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("make", [Nested, two_networks])
def test_two_networks_in_one_model(make, local):
    pyro.settings.set(module_local_params=local)
    model, x, y = make(), torch.randn(5, 2), torch.randn(5, 1)
    guide = AutoMuPNormal(model, covariance=LowRank(1))
    guide.initialize(x, y)
    names = list(guide.median())
    prefixes = ("mean", "noise") if make is Nested else ("a", "b")
    one, two = (f"{prefix}.0.weight" for prefix in prefixes)
    assert {one, two} <= set(names)
    svi = SVI(model, guide, pyro.optim.SGD({"lr": 1e-4}), TraceExpectedLogLikelihood())
    svi.step(x, y)
    # Layers of the same name in different networks have noise of their own.
    draws = guide.draw(400)
    noise = [
        ((draws[n] - guide.loc(n)) / guide.factor(n).squeeze(-1)).detach().reshape(400, -1)[:, 0]
        for n in (one, two)
    ]
    assert abs(torch.corrcoef(torch.stack(noise))[0, 1]) < 4 / 20
    with pytest.raises(ValueError, match="are independent: they share no layer"):
        guide.covariance(one, two)


def test_two_networks_in_one_model_without_names_collide_in_pyros_words():
    first, second = (RandomModule(mlp(), stochastic="all") for _ in range(2))
    with pytest.raises(RuntimeError, match=r"Multiple sample sites named '0\.weight'"):
        trace_of(lambda x: first(x) + second(x), torch.zeros(3, 2))


def test_draws_of_one_network_in_two_scopes_are_independent():
    net = RandomModule(nn.Linear(2, 1), stochastic="all")

    def model(x, y=None):
        with scope(prefix="a"):
            first = net(x)
        with scope(prefix="b"):
            second = net(x)
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(first * second, 0.1).to_event(1), obs=y)

    guide = AutoMuPNormal(model, covariance=LowRank(1))
    guide.initialize(torch.randn(5, 2), torch.randn(5, 1))
    draws = guide.draw(400)
    values = torch.stack(
        [draws[f"{s}/{n}"].flatten(1)[:, 0] for s in "ab" for n in net.stochastic]
    )
    correlation = torch.corrcoef(values).abs()
    assert (correlation[:2, 2:] < 4 / 20).all()
    assert correlation[0, 1] > 0.99  # a weight and its bias share their noise
    assert correlation[2, 3] > 0.99


class Compared(PyroModule):
    """A user's model that runs one network on two inputs, the second time inside of a plate."""

    def __init__(self):
        super().__init__()
        self.net = RandomModule(mlp(), stochastic="all")

    def forward(self, one, other, y=None):
        first = self.net(one)
        with pyro.plate("data", len(one)):
            law = dist.Normal(first - self.net(other), 0.1).to_event(1)
            return pyro.sample("obs", law, obs=y)


@pytest.mark.parametrize("local", [False, True])
def test_calls_in_one_run_of_a_pyro_module_share_a_draw(local):
    pyro.settings.set(module_local_params=local)
    model, (one, other), y = Compared(), torch.randn(2, 5, 2), torch.randn(5, 1)
    for run in (trace_of(model, one, other, y), trace_of(model, one, other, y)):
        weights = {n.removeprefix("net."): run.nodes[n]["value"] for n in sites(run) if "net" in n}
        net = model.net.network
        first, second = (torch.func.functional_call(net, weights, (x,)) for x in (one, other))
        torch.testing.assert_close(run.nodes["obs"]["fn"].mean, first - second)
    # Nothing is kept for the next run.
    runs = [trace_of(model, one, other, y).nodes["net.0.weight"]["value"] for _ in range(2)]
    assert not torch.equal(*runs)
    guide = AutoMuPNormal(model, covariance=LowRank(1))
    svi = SVI(model, guide, pyro.optim.SGD({"lr": 1e-4}), TraceExpectedLogLikelihood())
    assert isinstance(svi.step(one, other, y), float)


def test_a_second_draw_in_a_function_says_how_to_share_one():
    net, x = RandomModule(mlp(), stochastic="all"), torch.randn(5, 2)
    with pytest.raises(ValueError, match=r"draws '0\.weight' a second time .* net\.run\(weights"):
        trace_of(lambda x: net(x) - net(-x), x)

    def shared(x):
        weights = net.sample_parameters()
        return net.run(weights, x) - net.run(weights, x)

    assert (trace_of(shared, x).nodes["_RETURN"]["value"] == 0).all()


@pytest.mark.parametrize("vectorized", [False, True])
def test_particles_through_a_nested_model(vectorized):
    model, x, y = Nested(), torch.randn(5, 2), torch.randn(5, 1)
    guide = AutoMuPNormal(model, covariance=Diagonal())
    guide.initialize(x, y)
    elbo = Trace_ELBO(num_particles=3, vectorize_particles=vectorized)
    assert isinstance(SVI(model, guide, pyro.optim.SGD({"lr": 1e-4}), elbo).step(x, y), float)
    assert guide.loc("mean.0.weight").grad is not None


def test_weights_are_not_drawn_for_each_datum():
    net, x = RandomModule(mlp(), stochastic="all"), torch.randn(5, 2)

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(net(x), 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"inside of the plate 'data', where each of the 5 data"):
        model(x)
    with pyro.plate("members", 3, dim=-1):  # an ensemble
        assert net(x).shape == (3, 5, 1)


def test_a_network_on_what_a_plate_draws_runs_between_two_uses_of_the_plate():
    net = RandomModule(mlp(), stochastic="all")

    def model(x):
        data = pyro.plate("data", 20, subsample_size=len(x))
        with data:
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        out = net(z)
        with data:
            pyro.sample("obs", dist.Normal(out, 1.0).to_event(1), obs=x)

    trace = poutine.trace(model).get_trace(torch.randn(5, 1))
    trace.compute_log_prob()
    assert trace.nodes["0.weight"]["scale"] == 1.0
    assert trace.nodes["z"]["log_prob"].shape == trace.nodes["obs"]["log_prob"].shape == (5,)
    assert trace.nodes["z"]["scale"] == trace.nodes["obs"]["scale"] == 4.0
