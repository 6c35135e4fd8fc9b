"""The route without traces gives what traces give, and steps aside for whatever needs them."""

import copy
import gc
import pickle
import weakref

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from torch import nn

from pyro_ibvi import (
    AutoMuPNormal,
    Bernoulli,
    Categorical,
    Diagonal,
    HeteroscedasticNormal,
    Kronecker,
    LowRank,
    MuPOptim,
    Normal,
    Poisson,
    RandomModule,
    SupervisedModel,
    TraceExpectedLogLikelihood,
)
from pyro_ibvi.objectives import weights as elbo_mixin

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))


class ByTraces(TraceExpectedLogLikelihood):
    """The same objective; the direct route is not for subclasses."""


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.last = nn.Linear(3, 2)

    def forward(self, x):
        return self.last(self.second(self.first(x).tanh()))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.last = nn.LSTM(1, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x):
        return self.last(self.lstm(x.unsqueeze(-1))[0][:, -1])


def mlp(num_outputs=2):
    return nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Linear(16, num_outputs))


def with_norm_and_dropout():
    return nn.Sequential(
        nn.Linear(3, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2)
    )


def large():
    # Weights above the size from which memory is used again.
    return nn.Sequential(nn.Linear(3, 300), nn.Tanh(), nn.Linear(300, 300), nn.Linear(300, 2))


def make(make_net, likelihood=None, *, covariance=None, stochastic="all", loss, num_data=30):
    torch.manual_seed(1)
    likelihood = Normal(0.5, learn_scale=True) if likelihood is None else likelihood
    model = SupervisedModel(RandomModule(make_net(), stochastic=stochastic), likelihood, num_data)
    guide = AutoMuPNormal(model, covariance=covariance)
    optim = MuPOptim(torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9}, guide)
    return SVI(model, guide, optim, loss)


def targets(likelihood):
    generator = torch.Generator().manual_seed(1)
    if isinstance(likelihood, Categorical):
        return torch.randint(0, 2, (12,), generator=generator)
    if isinstance(likelihood, (Bernoulli, Poisson)):
        return torch.randint(0, 2, (12, 2), generator=generator)
    shape = (12, 1) if isinstance(likelihood, HeteroscedasticNormal) else (12, 2)
    return torch.randn(shape, generator=generator)


def train(svi, y, num_steps=4):
    torch.manual_seed(2)
    losses = [svi.step(X, y) for _ in range(num_steps)]
    losses.append(svi.evaluate_loss(X, y))
    state = {**svi.model.state_dict(), **svi.guide.state_dict()}
    return losses, state


def assert_same_run(make_svi, y):
    expected_losses, expected = train(make_svi(ByTraces), y)
    losses, state = train(make_svi(TraceExpectedLogLikelihood), y)
    assert losses == expected_losses
    assert state.keys() == expected.keys()
    for name, value in state.items():
        assert torch.equal(value, expected[name]), name


@pytest.fixture
def count_traces(monkeypatch):
    """Number of times that an objective traced a model."""
    calls = []
    run_traces = elbo_mixin.run_traces
    monkeypatch.setattr(
        elbo_mixin, "run_traces", lambda *args: calls.append(1) or run_traces(*args)
    )
    return calls


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("num_particles", [1, 3])
@pytest.mark.parametrize(
    "covariance",
    [
        Diagonal(),
        LowRank(4),
        LowRank(None),
        Kronecker(2, 3),
        {"input": None, "*.bias": Diagonal(), "*": None},
    ],
    ids=str,
)
def test_routes_agree_bit_for_bit(covariance, num_particles, reduction):
    def make_svi(objective):
        loss = objective(num_particles, reduction=reduction)
        return make(mlp, covariance=covariance, loss=loss)

    assert_same_run(make_svi, targets(None))


@pytest.mark.parametrize(
    "likelihood",
    [Normal(0.3), HeteroscedasticNormal(), Categorical(), Bernoulli(), Poisson()],
    ids=lambda likelihood: type(likelihood).__name__,
)
def test_routes_agree_for_every_likelihood(likelihood):
    assert_same_run(lambda objective: make(mlp, likelihood, loss=objective()), targets(likelihood))


@pytest.mark.parametrize("net", [Tied, Recurrent, with_norm_and_dropout, large])
@pytest.mark.parametrize("stochastic", ["all", "last"])
@pytest.mark.parametrize("covariance", [Diagonal(), LowRank(10), Kronecker(4, 4)], ids=str)
def test_routes_agree_for_every_network(net, stochastic, covariance):
    def make_svi(objective):
        return make(net, covariance=covariance, stochastic=stochastic, loss=objective())

    assert_same_run(make_svi, targets(None))


def test_only_the_first_step_is_traced(count_traces):
    svi = make(mlp, loss=TraceExpectedLogLikelihood())
    svi.step(X, targets(None))
    assert len(count_traces) == 1
    train(svi, targets(None))
    assert len(count_traces) == 1


@pytest.mark.parametrize("names", [("y",), ("x", "y")])
def test_data_may_go_by_name(count_traces, names):
    losses = []
    for given in ((), names):
        svi = make(mlp, loss=TraceExpectedLogLikelihood())
        data = {"x": X, "y": targets(None)}
        args = [value for name, value in data.items() if name not in given]
        kwargs = {name: data[name] for name in given}
        losses.append([svi.step(*args, **kwargs) for _ in range(3)])
    assert losses[0] == losses[1]
    assert len(count_traces) == 2


def test_loss_functions_go_directly_too(count_traces):
    svi = make(mlp, loss=None)
    loss_fn = TraceExpectedLogLikelihood()(svi.model, svi.guide)
    for _ in range(3):
        loss_fn(X, targets(None)).backward()
    assert len(count_traces) == 1


def test_stock_optimizers_see_every_parameter():
    svi = make(mlp, stochastic="last", loss=TraceExpectedLogLikelihood())
    parameters = {*svi.model.net.network[0].parameters(), *svi.guide.parameters()}
    svi.optim = pyro.optim.SGD({"lr": 1e-3})
    before = [p.detach().clone() for p in parameters]
    svi.step(X, targets(None))
    middle = [p.detach().clone() for p in parameters]
    svi.step(X, targets(None))
    for p, old, new in zip(parameters, before, middle, strict=True):
        assert not torch.equal(old, new)
        assert not torch.equal(new, p)


def test_handlers_have_their_say(count_traces):
    svi = make(mlp, loss=TraceExpectedLogLikelihood())
    y = targets(None)
    svi.step(X, y)

    def loss():
        torch.manual_seed(0)
        return svi.evaluate_loss(X, y)

    assert loss() == pytest.approx(loss())
    traced = len(count_traces)
    with poutine.scale(scale=2.0):
        scaled = loss()
    assert len(count_traces) == traced + 1
    assert scaled == pytest.approx(2 * loss())


def test_hooks_are_called():
    svi = make(mlp, loss=TraceExpectedLogLikelihood())
    svi.step(X, targets(None))
    calls = []
    svi.model.register_forward_hook(lambda *args: calls.append("model"))
    svi.step(X, targets(None))
    svi.guide.register_forward_pre_hook(lambda *args: calls.append("guide"))
    svi.step(X, targets(None))
    assert calls == ["model", "guide", "model"]


def test_subclasses_keep_their_methods():
    class Doubled(SupervisedModel):
        def forward(self, x, y=None):
            with poutine.scale(scale=2.0):
                return super().forward(x, y)

    class Shifted(AutoMuPNormal):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    class Noisy(Normal):
        def forward(self, output, num_batch_dims=1):
            return super().forward(output + 100, num_batch_dims)

    class Negated(RandomModule):
        def sample_parameters(self):
            return {name: -value for name, value in super().sample_parameters().items()}

    y = targets(None)
    torch.manual_seed(0)
    model = Doubled(RandomModule(mlp()), Normal(), 30)
    loss = TraceExpectedLogLikelihood()
    svi = SVI(model, AutoMuPNormal(model), pyro.optim.SGD({"lr": 1e-9}), loss)
    svi.step(X, y)
    torch.manual_seed(0)
    direct = svi.evaluate_loss(X, y)
    svi.loss = ByTraces().loss
    torch.manual_seed(0)
    assert direct == svi.evaluate_loss(X, y)

    for net_type, guide_type, likelihood in (
        (RandomModule, Shifted, Normal()),
        (RandomModule, AutoMuPNormal, Noisy()),
        (Negated, AutoMuPNormal, Normal()),
    ):
        model = SupervisedModel(net_type(mlp()), likelihood, 30)
        guide = guide_type(model)
        losses = []
        for objective in (TraceExpectedLogLikelihood(), ByTraces()):
            objective.loss_and_grads(model, guide, X, y)
            torch.manual_seed(0)
            losses.append(objective.loss(model, guide, X, y))
        assert losses[0] == losses[1]


def test_a_replaced_method_is_called():
    svi = make(mlp, loss=TraceExpectedLogLikelihood())
    svi.step(X, targets(None))
    calls, forward = [], svi.guide.forward
    svi.guide.forward = lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs)
    svi.step(X, targets(None))
    assert calls


def test_changed_options_and_models_count():
    y = targets(None)
    first = make(mlp, covariance=Diagonal(), loss=TraceExpectedLogLikelihood())
    second = make(mlp, covariance=Diagonal(), loss=first.loss_and_grads)
    loss = TraceExpectedLogLikelihood()
    for svi in (first, second):
        loss.loss_and_grads(svi.model, svi.guide, X, y)
        torch.manual_seed(0)
        expected = ByTraces().loss(svi.model, svi.guide, X, y)
        torch.manual_seed(0)
        assert loss.loss(svi.model, svi.guide, X, y) == expected
    loss.kl_weight = 0.5
    torch.manual_seed(0)
    tempered = loss.loss(second.model, second.guide, X, y)
    torch.manual_seed(0)
    assert tempered == ByTraces(kl_weight=0.5).loss(second.model, second.guide, X, y)
    assert tempered != expected


def test_missing_targets_and_bad_data_are_still_errors():
    svi = make(mlp, loss=TraceExpectedLogLikelihood())
    y = targets(None)
    svi.step(X, y)
    with pytest.raises(ValueError, match=r"target has shape \(12,\)"):
        svi.step(X, y[:, 0])
    with pytest.raises(ValueError, match=r"input holds nan at index \(0, 0\)"):
        svi.step(torch.where(torch.arange(3) == 0, torch.nan, X), y)
    with pytest.raises(ValueError, match="batch holds 36 data, but num_data=30"):
        svi.step(X.repeat(3, 1), y.repeat(3, 1))
    with pytest.raises(TypeError, match=r"x\.to\(torch\.float32\)"):
        svi.step(X.double(), y)


def test_the_objective_can_be_copied_and_pickled():
    svi = make(mlp, loss=None)
    loss = TraceExpectedLogLikelihood()
    loss.loss_and_grads(svi.model, svi.guide, X, targets(None))
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert other.loss(svi.model, svi.guide, X, targets(None)) > 0


@pytest.mark.parametrize("covariance", [Diagonal(), LowRank(2)], ids=str)
def test_memory_is_used_again_only_when_nobody_has_it(covariance):
    torch.manual_seed(0)
    model = SupervisedModel(RandomModule(nn.Linear(300, 300)), Normal(), 12)
    guide = AutoMuPNormal(model, covariance=covariance)
    loss_fn = TraceExpectedLogLikelihood()(model, guide)
    x, y = torch.randn(12, 300), torch.randn(12, 300)
    loss_fn(x, y).backward()
    kept = guide.rsample()["net.weight"]
    copied = kept.detach().clone()
    alias = guide.rsample()["net.weight"].detach()
    values = alias.clone()
    # Gradients of two losses add up, though the first graph lives on beside the second.
    parameters = list(guide.parameters())
    seeds = (1, 2)
    single = []
    for seed in seeds:
        torch.manual_seed(seed)
        single.append(torch.autograd.grad(loss_fn(x, y), parameters))
    losses = []
    for seed in seeds:
        torch.manual_seed(seed)
        losses.append(loss_fn(x, y))
    both = torch.autograd.grad(sum(losses), parameters)
    for a, b, ab in zip(*single, both, strict=True):
        torch.testing.assert_close(a + b, ab)
    assert torch.equal(kept, copied)
    assert torch.equal(alias, values)


@pytest.mark.parametrize("covariance", [Diagonal(), LowRank(2), Kronecker(2, 2)], ids=str)
def test_large_weights_are_drawn_for_many_particles_at_once(covariance):
    loss = TraceExpectedLogLikelihood(num_particles=3, vectorize_particles=True)
    svi = make(large, covariance=covariance, loss=loss)
    traced = poutine.trace(svi.guide)
    with pyro.plate("num_particles_vectorized", 3, dim=-2):
        site = traced.get_trace(X, targets(None)).nodes["net.2.weight"]
    draws = site["value"].reshape(3, 300, 300)
    assert not torch.equal(draws[0], draws[1])
    for _ in range(2):
        assert svi.step(X, targets(None)) > 0
    # The pathwise gradient of a sum over draws of w = loc + S z is the number of draws.
    loc = svi.guide.loc("net.2.weight")
    (gradient,) = torch.autograd.grad(draws.sum(), loc)
    assert torch.equal(gradient, torch.full_like(loc, 3.0))


@pytest.mark.parametrize("covariance", [Diagonal(), LowRank(2)], ids=str)
def test_large_weights_have_second_derivatives(covariance):
    torch.manual_seed(0)
    model = SupervisedModel(RandomModule(nn.Linear(300, 300)), Normal(), 12)
    guide = AutoMuPNormal(model, covariance=covariance)
    loss_fn = TraceExpectedLogLikelihood(reduction="mean")(model, guide)
    x, y = torch.randn(12, 300), torch.randn(12, 300)
    factor = guide.factor("net.weight")
    direction = torch.randn_like(factor)

    def gradient(create_graph):
        torch.manual_seed(3)
        loss = loss_fn(x, y)
        return torch.autograd.grad(loss, factor, create_graph=create_graph, retain_graph=True)[0]

    product = torch.autograd.grad(gradient(create_graph=True), factor, direction)[0]
    # The loss is quadratic in the factor, so one difference of gradients is exact.
    before = gradient(create_graph=False).clone()
    with torch.no_grad():
        factor += direction
    difference = gradient(create_graph=False) - before
    torch.testing.assert_close(product, difference, rtol=2e-3, atol=2e-3)


def test_one_objective_goes_directly_for_several_pairs(count_traces):
    loss = TraceExpectedLogLikelihood()
    pairs = [make(mlp, loss=None), make(mlp, covariance=Diagonal(), loss=None)]
    for _ in range(3):
        for svi in pairs:
            loss.loss_and_grads(svi.model, svi.guide, X, targets(None))
    assert len(count_traces) == len(pairs)


def test_an_objective_keeps_no_parameters_of_a_deleted_guide():
    loss = TraceExpectedLogLikelihood()
    svi = make(mlp, stochastic="last", loss=loss)
    for _ in range(3):
        svi.step(X, targets(None))
    parameters = [*svi.guide.parameters(), *svi.model.parameters()]
    gone = [weakref.ref(parameter) for parameter in parameters]
    del svi, parameters
    gc.collect()
    assert all(parameter() is None for parameter in gone)


def test_what_hands_on_a_guides_attributes_is_not_taken_for_it(count_traces):
    class Wrapped(nn.Module):
        def __init__(self, guide):
            super().__init__()
            self.guide = guide

        def __getattr__(self, name):
            return (
                getattr(super().__getattr__("guide"), name)
                if name != "guide"
                else super().__getattr__(name)
            )

        def forward(self, *args):
            calls.append(1)
            return self.guide(*args)

    svi, calls, loss = make(mlp, loss=None), [], TraceExpectedLogLikelihood()
    guide = Wrapped(svi.guide)
    assert guide.direct_route(svi.model) is not None
    for _ in range(3):
        loss.loss_and_grads(svi.model, guide, X, targets(None))
    assert len(calls) == len(count_traces) == 3


def test_any_guide_may_offer_a_route():
    class Known(nn.Module):
        """A point estimate of a mean that knows its likelihood."""

        def __init__(self):
            super().__init__()
            self.mean = nn.Parameter(torch.tensor(0.5))
            self.route = Route(self)

        def forward(self, y):
            pyro.sample("mean", dist.Delta(self.mean))

        def direct_route(self, model):
            return self.route if model is of_mean else None

    class Route:
        observed = "y"

        def __init__(self, guide):
            self.guide, self.calls = weakref.ref(guide), 0

        def is_open(self, args, kwargs):
            return True

        def log_likelihood(self, y):
            self.calls += 1
            return dist.Normal(self.guide().mean, 1.0).log_prob(y), 2.0

    def of_mean(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 2 * len(y), subsample_size=len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    guide, loss, y = Known(), TraceExpectedLogLikelihood(), torch.tensor([1.0, 2.0, 4.0])
    losses, gradients = [], []
    for _ in range(3):
        guide.mean.grad = None
        losses.append(loss.loss_and_grads(of_mean, guide, y))
        gradients.append(guide.mean.grad.item())
    assert guide.route.calls == 2
    expected = -2 * dist.Normal(0.5, 1.0).log_prob(y).sum().item()
    assert losses == pytest.approx([expected] * 3)
    assert gradients == pytest.approx([2 * (0.5 - y).sum().item()] * 3)
