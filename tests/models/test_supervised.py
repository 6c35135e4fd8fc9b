"""The supervised model: its plate, its scale, and its words for bad data."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from torch import nn

from pyro_ibvi import (
    AutoMuPNormal,
    Bernoulli,
    Categorical,
    Diagonal,
    MuPOptim,
    Normal,
    RandomModule,
    SupervisedModel,
    TraceExpectedLogLikelihood,
)

X, Y = torch.randn(6, 3), torch.randn(6, 1)


def net(num_out=1):
    return RandomModule(
        nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, num_out)), stochastic="all"
    )


def model(num_data=None, likelihood=None, num_out=1):
    return SupervisedModel(net(num_out), likelihood or Normal(0.5), num_data=num_data)


def test_the_density_is_that_of_a_model_in_pyros_own_words():
    ours = model(num_data=60)

    def by_hand(x, y):
        sites = {
            name: pyro.sample(f"net.{name}", ours.net.prior(name))
            for name, p in ours.net.network.named_parameters()
        }
        output = torch.func.functional_call(ours.net.network, sites, (x,))
        with pyro.plate("data", 60, subsample_size=6):
            pyro.sample("obs", dist.Normal(output, 0.5).to_event(1), obs=y)

    trace = poutine.trace(ours).get_trace(X, Y)
    other = poutine.trace(poutine.replay(by_hand, trace)).get_trace(X, Y)
    torch.testing.assert_close(trace.log_prob_sum(), other.log_prob_sum())
    assert trace.nodes["obs"]["scale"] == 10.0
    assert trace.nodes["obs"]["fn"].batch_shape == (6,)
    stack = [frame.name for frame in trace.nodes["obs"]["cond_indep_stack"]]
    assert stack == ["data"]
    assert not trace.nodes["net.0.weight"]["cond_indep_stack"]


def test_without_targets_it_draws_them():
    assert model()(X).shape == (6, 1)
    labels = model(likelihood=Categorical(), num_out=4)(X)
    assert labels.shape == (6,)
    assert labels.dtype == torch.long
    prior = Predictive(model(), num_samples=5)(X)
    assert prior["obs"].shape == (5, 6, 1)
    assert prior["net.0.weight"].shape[0] == 5


@pytest.mark.parametrize("num_data", [np.int64(12), 12])
def test_sizes_come_in_any_integer_type(num_data):
    assert poutine.trace(model(num_data)).get_trace(X, Y).nodes["obs"]["scale"] == 2.0


def test_a_guide_needs_no_data():
    guide = AutoMuPNormal(model())
    assert set(guide.median()) == {"net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"}
    torch.manual_seed(0)
    before = guide()
    torch.manual_seed(0)
    after = guide(X)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("num_particles", [1, 4])
def test_the_elbo_is_pyros_own_estimate(num_particles):
    # One draw of vectorized particles equals the mean over the same draws one by one.
    ours = model()
    guide = AutoMuPNormal(ours, covariance=Diagonal())
    elbo = Trace_ELBO(num_particles=num_particles, vectorize_particles=True, max_plate_nesting=1)
    torch.manual_seed(3)
    plate = pyro.plate("particles", num_particles, dim=-2)
    draws = poutine.trace(guide if num_particles == 1 else plate(guide)).get_trace()
    torch.manual_seed(3)
    loss = elbo.loss(ours, guide, X, Y)
    expected = 0.0
    names = list(guide.median())
    for i in range(num_particles):
        values = {
            n: v if num_particles == 1 else v[i, 0]
            for n, v in ((name, draws.nodes[name]["value"]) for name in names)
        }
        q = sum(
            dist.Normal(guide.loc(n), guide.scale(n)).log_prob(v).sum() for n, v in values.items()
        )
        p = poutine.trace(poutine.condition(ours, values)).get_trace(X, Y).log_prob_sum()
        expected += (q - p).item() / num_particles
    assert loss == pytest.approx(expected, rel=1e-4)


def nan_at(tensor, index, value=math.nan):
    tensor = tensor.clone()
    tensor[index] = value
    return tensor


BAD_DATA = [
    (
        X,
        Y.squeeze(-1),
        ValueError,
        r"target has shape \(6,\).*expects \(6, 1\)\. Write y\.reshape",
    ),
    (X, Y[:4], ValueError, r"target has shape \(4, 1\), but for an output of shape \(6, 1\)"),
    (X, Y.double(), TypeError, r"target has dtype torch\.float64 and the network's output"),
    (
        X.double(),
        Y.double(),
        TypeError,
        r"input has dtype torch\.float64 and the network's weights",
    ),
    (X, Y.long(), TypeError, r"dtype torch\.int64, but the Normal likelihood expects a floating"),
    (nan_at(X, (2, 1)), Y, ValueError, r"input holds nan at index \(2, 1\) of shape \(6, 3\)"),
    (X, nan_at(Y, (4, 0)), ValueError, r"target holds nan at index \(4, 0\).*Remove or impute"),
    (X, nan_at(Y, (4, 0), -math.inf), ValueError, r"target holds -inf at index \(4, 0\)"),
    (
        X,
        ["a", "b"] * 3,
        TypeError,
        r"got list: write numpy\.unique\(y, return_inverse=True\)\[1\]",
    ),
    (X, "rows", TypeError, "Targets must be a tensor, an array or a data frame, got str"),
    (1.0, Y, TypeError, "Inputs must be a tensor, an array or a data frame.*got float"),
    (
        torch.tensor(1.0),
        Y,
        TypeError,
        "Inputs must be a tensor, an array or a data frame whose first dimension is the batch",
    ),
    (X[:0], Y[:0], ValueError, "The batch is empty: its inputs have a first dimension of size 0"),
]


@pytest.mark.parametrize(("x", "y", "error", "message"), BAD_DATA)
def test_bad_data(x, y, error, message):
    ours = model(num_data=60)
    guide = AutoMuPNormal(ours, covariance=Diagonal())
    svi = SVI(
        ours,
        guide,
        MuPOptim(torch.optim.SGD, {"lr": 0.1}, guide),
        TraceExpectedLogLikelihood(),
    )
    before = guide.loc("net.0.weight").detach().clone()
    with pytest.raises(error, match=message):
        svi.step(x, y)
    torch.testing.assert_close(guide.loc("net.0.weight").detach(), before, rtol=0, atol=0)


def test_more_data_than_there_are():
    with pytest.raises(
        ValueError, match="The batch holds 6 data, but num_data=5: num_data is the"
    ):
        model(num_data=5)(X, Y)


@pytest.mark.parametrize("num_data", [0, -1, 2.5, True, "10"])
def test_a_bad_size(num_data):
    with pytest.raises(ValueError, match="num_data must be a positive whole number, got"):
        model(num_data=num_data)


def test_wrong_pieces():
    linear = nn.Linear(3, 1)
    with pytest.raises(TypeError, match=r"RandomModule, got Linear: write RandomModule\(Linear"):
        SupervisedModel(linear, Normal())
    with pytest.raises(TypeError, match="needs a RandomModule, got function"):
        SupervisedModel(lambda x: x, Normal())
    with pytest.raises(TypeError, match=r"got the Normal class: write Normal\(\), with parenthes"):
        SupervisedModel(net(), Normal)
    with pytest.raises(TypeError, match=r"needs a RandomModule, got the class RandomModule"):
        SupervisedModel(RandomModule, Normal())


@pytest.mark.parametrize(
    ("likelihood", "message"),
    [
        ({"kind": Categorical()}, r"got the dict: for several .* MultiTask\(\{'kind': \("),
        (nn.CrossEntropyLoss(), r"got the CrossEntropyLoss: write Categorical\(\), of pyro_ibvi"),
        (nn.CrossEntropyLoss, r"got the CrossEntropyLoss: write Categorical\(\)"),
        (nn.functional.cross_entropy, r"got the cross_entropy: write Categorical\(\)"),
        ("cross_entropy", r"got 'cross_entropy': write Categorical\(\)"),
        ("Bernoulli", r"got 'Bernoulli': write Bernoulli\(\)"),
        (nn.BCEWithLogitsLoss(), r"got the .*: write Bernoulli\(\)"),
        (nn.MSELoss(), r"got the .*: write Normal\(0\.1\)"),
        (nn.GaussianNLLLoss(), r"got the .*: write HeteroscedasticNormal\(\)"),
        (nn.PoissonNLLLoss(), r"got the .*: write Poisson\(\)"),
        (nn.HuberLoss(), r"got the HuberLoss\.$"),
        (dist.Normal(0.0, 1.0), r"got the Normal of pyro\.distributions.*: write Normal\(0\.1\)"),
        (dist.Categorical, r"got the Categorical of pyro\.distr.*: write Categorical\(\)"),
        (None, r"got the NoneType\.$"),
    ],
)
def test_what_is_no_likelihood_hears_of_the_one_that_is_meant(likelihood, message):
    with pytest.raises(TypeError, match=r"such as Categorical\(\) or Normal\(\), " + message):
        SupervisedModel(net(), likelihood)


def test_an_output_without_a_batch():
    class Sum(nn.Linear):
        def forward(self, x):
            return super().forward(x).sum()

    ours = SupervisedModel(RandomModule(Sum(3, 1), stochastic="all"), Bernoulli())
    with pytest.raises(ValueError, match=r"output has shape \(\); its first dimension must be"):
        ours(X, torch.zeros(()))


def test_another_error_of_the_network_is_left_as_it_is():
    class Broken(nn.Linear):
        def forward(self, x):
            raise RuntimeError("out of luck")

    ours = SupervisedModel(RandomModule(Broken(3, 1), stochastic="all"), Normal())
    with pytest.raises(RuntimeError, match="out of luck"):
        ours(X, Y)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_everything_runs_on_a_gpu():
    ours = model(num_data=60).cuda()
    guide = AutoMuPNormal(ours, covariance=Diagonal())
    assert guide.loc("net.0.weight").is_cuda
    optim = MuPOptim(torch.optim.Adam, {"lr": 0.01}, guide)
    for vectorized in (False, True):
        elbo = TraceExpectedLogLikelihood(num_particles=2, vectorize_particles=vectorized)
        assert SVI(ours, guide, optim, elbo).step(X.cuda(), Y.cuda()) > 0
