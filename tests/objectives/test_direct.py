"""The route without traces gives what traces give, and steps aside for whatever needs them."""

import copy
import pickle

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI

from pyro_ibvi import (
    AutoMuPNormal,
    Bernoulli,
    Categorical,
    Diagonal,
    HeteroscedasticNormal,
    Kronecker,
    LowRank,
    Normal,
    Poisson,
    RandomModule,
    SupervisedModel,
    TraceExpectedLogLikelihood,
)
from tests.objectives.supervised import (
    ByTraces,
    Recurrent,
    Tied,
    X,
    large,
    make,
    mlp,
    targets,
    train,
    with_norm_and_dropout,
)


def assert_same_run(make_svi, y):
    expected_losses, expected = train(make_svi(ByTraces), y)
    losses, state = train(make_svi(TraceExpectedLogLikelihood), y)
    assert losses == expected_losses
    assert state.keys() == expected.keys()
    for name, value in state.items():
        assert torch.equal(value, expected[name]), name


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
