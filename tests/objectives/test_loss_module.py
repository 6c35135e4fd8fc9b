"""The loss as a module: what it holds, and that nothing else is wrapped for several devices."""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import pyro_ibvi as ibvi
from pyro_ibvi.objectives import LossModule

X, Y = torch.randn(6, 2), torch.randn(6, 1)


def make_pair():
    net = nn.Sequential(nn.Linear(2, 8, bias=False), nn.SiLU(), nn.Linear(8, 1, bias=False))
    model = ibvi.SupervisedModel(ibvi.RandomModule(net), ibvi.Normal(0.3), num_data=60)
    return model, ibvi.AutoMuPNormal(model, covariance=ibvi.Diagonal())


@pytest.fixture
def group():
    """A process group of this process alone."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("objective", "scale"),
    [
        (ibvi.TraceExpectedLogLikelihood(), 60.0),
        (ibvi.TraceExpectedLogLikelihood(reduction="mean"), 1.0),
        (ibvi.TraceMeanFieldExpectedLogLikelihood(), 60.0),
    ],
)
def test_its_call_is_the_loss(objective, scale):
    """Against the density of the targets by hand, at the first call and at later ones."""
    model, guide = make_pair()
    loss = objective(model, guide)
    assert isinstance(loss, LossModule)
    for _ in range(3):
        pyro.set_rng_seed(3)
        found = loss(X, Y)
        pyro.set_rng_seed(3)
        w = guide.rsample()
        hidden = nn.functional.silu(X @ w["net.0.weight"].T)
        mean = hidden @ w["net.2.weight"].T
        expected = -dist.Normal(mean, 0.3).log_prob(Y).mean() * scale
        torch.testing.assert_close(found, expected)


def test_it_has_the_parameters_of_both():
    model, guide = make_pair()
    found = set(ibvi.TraceExpectedLogLikelihood()(model, guide).parameters())
    trained = {p for p in found if p.requires_grad}
    assert trained == {p for p in guide.parameters() if p.requires_grad}
    assert found == {*model.parameters(), *guide.parameters()}


class Autoencoder(pyro.nn.PyroModule):
    """A model and a guide that are methods of one module."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(2, 1), nn.Linear(1, 2)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))


@pytest.mark.parametrize(
    "handle",
    [
        lambda part: part,
        lambda part: poutine.scale(part, scale=0.5),
        lambda part: poutine.block(poutine.reparam(part, config={}), hide=["nothing"]),
    ],
)
def test_it_has_the_parameters_of_modules_behind_methods_and_handlers(handle):
    both = Autoencoder()
    loss = ibvi.TraceExpectedLogLikelihood(kl_weight=0.5)(handle(both.model), handle(both.guide))
    loss(X).backward()
    assert set(loss.parameters()) == set(both.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in loss.parameters())
    model, guide = make_pair()
    behind = ibvi.TraceExpectedLogLikelihood()(handle(model), guide)
    assert set(behind.parameters()) == {*model.parameters(), *guide.parameters()}


def test_an_objective_without_such_a_loss_is_refused():
    with pytest.raises(TypeError, match=r"TraceGraphExpectedLogLikelihood adds.*train by SVI"):
        ibvi.TraceGraphExpectedLogLikelihood()(*make_pair())


def test_another_models_guide_is_refused():
    with pytest.raises(ValueError, match="guide was made for another SupervisedModel"):
        ibvi.TraceExpectedLogLikelihood()(make_pair()[0], make_pair()[1])


MATCH = r"(model|guide|net) is wrapped in \w+, or holds it.*DistributedDataParallel\(objective\("


@pytest.mark.parametrize("wrap", [DistributedDataParallel, nn.DataParallel])
@pytest.mark.parametrize("kl_weight", [0.0, 1.0])
def test_wrapped_parts_are_refused(group, wrap, kl_weight):
    """Whoever is given them: objective, guide, SVI's step, fit, predict."""
    model, guide = make_pair()
    objective = ibvi.TraceExpectedLogLikelihood(kl_weight=kl_weight)
    graph = ibvi.TraceGraphExpectedLogLikelihood()
    optim = pyro.optim.SGD({"lr": 1e-3})
    wrapped = wrap(guide)
    for attempt in (
        lambda: objective(model, wrapped),
        lambda: objective.differentiable_loss(model, wrapped, X, Y),
        lambda: objective.loss(model, wrapped, X, Y),
        lambda: SVI(model, wrapped, optim, objective).step(X, Y),
        lambda: SVI(model, wrapped, optim, graph).step(X, Y),
        lambda: ibvi.fit(SVI(model, wrapped, optim, objective), [(X, Y)], 1),
        lambda: ibvi.predict(model, wrapped, X),
        lambda: ibvi.AutoMuPNormal(wrapped),
        lambda: ibvi.SupervisedModel(wrapped, ibvi.Normal()),
    ):
        with pytest.raises(TypeError, match=MATCH):
            attempt()


def test_a_wrapped_model_is_refused(group):
    """One with trained parameters, which DistributedDataParallel takes."""
    net = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 1))
    random = ibvi.RandomModule(net, stochastic="last")
    model = ibvi.SupervisedModel(random, ibvi.Normal(0.3), num_data=60)
    guide = ibvi.AutoMuPNormal(model)
    wrapped = DistributedDataParallel(model)
    objective = ibvi.TraceExpectedLogLikelihood()
    for attempt in (
        lambda: objective(wrapped, guide),
        lambda: objective.loss_and_grads(wrapped, guide, X, Y),
        lambda: ibvi.AutoMuPNormal(wrapped),
        lambda: ibvi.predict(wrapped, guide, X),
        lambda: ibvi.TraceEnumExpectedLogLikelihood()(wrapped, guide),
    ):
        with pytest.raises(TypeError, match=MATCH):
            attempt()


def test_a_wrapped_network_in_a_model_of_ones_own_is_refused(group):
    """Its gradients would be averaged between processes, and the guide's not."""

    class Model(pyro.nn.PyroModule):
        def __init__(self, wrap):
            super().__init__()
            self.features = wrap(nn.Linear(2, 3))

        def forward(self, x, y=None):
            w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            with pyro.plate("data", len(x)):
                return pyro.sample("y", dist.Normal(self.features(x) @ w, 1.0), obs=y)

    objective = ibvi.TraceExpectedLogLikelihood()
    model = Model(DistributedDataParallel)
    with pytest.raises(TypeError, match=MATCH):
        objective.loss_and_grads(model, AutoNormal(model), X, Y[:, 0])
    model = Model(nn.DataParallel)  # all of it in one process: theirs to decide
    objective.loss_and_grads(model, AutoNormal(model), X, Y[:, 0])


def test_the_loss_may_be_wrapped(group):
    model, guide = make_pair()
    loss = ibvi.TraceExpectedLogLikelihood()(model, guide)
    gradients = []
    for module in (loss, DistributedDataParallel(loss)):
        pyro.set_rng_seed(0)
        module(X, Y).backward()
        gradients.append([p.grad.clone() for p in guide.parameters()])
        guide.zero_grad()
    torch.testing.assert_close(*gradients)


def test_copies_in_threads_are_refused():
    """What DataParallel asks of a module before it runs on several GPUs."""
    loss = ibvi.TraceExpectedLogLikelihood()(*make_pair())
    with pytest.raises(TypeError, match=r"runs copies of a module in threads.*use Distributed"):
        loss._replicate_for_data_parallel()


@pytest.mark.parametrize(
    "handle",
    [
        lambda fn: poutine.scale(fn, 2.0),
        lambda fn: poutine.block(poutine.scale(fn, 2.0), hide=["nothing"]),
        lambda fn: functools.partial(fn),
        lambda fn: fn.forward,
    ],
)
def test_a_handler_hides_no_wrapper(group, handle):
    model, guide = make_pair()
    objective = ibvi.TraceExpectedLogLikelihood()
    with pytest.raises(TypeError, match=MATCH):
        objective.loss_and_grads(model, handle(DistributedDataParallel(guide)), X, Y)
    objective.loss_and_grads(model, handle(guide), X, Y)


def test_a_compiled_loss_runs_as_it_is_and_the_network_in_it_compiled():
    torch.compiler.reset()  # it gives up on code that others have compiled often
    runs = []

    def backend(graph, _):
        runs.append(graph)
        return graph.forward

    torch.manual_seed(0)
    net = torch.compile(
        nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)), backend=backend
    )
    model = ibvi.SupervisedModel(ibvi.RandomModule(net), ibvi.Normal(0.1))
    guide = ibvi.AutoMuPNormal(model)
    loss = ibvi.TraceExpectedLogLikelihood()(model, guide)
    x, y = torch.randn(4, 3), torch.randn(4, 1)
    values = []
    for each in (loss, torch.compile(loss, backend="eager")):
        for _ in range(2):  # with traces, and without
            torch.manual_seed(1)
            values.append(each(x, y).item())
    assert values == pytest.approx(values[:1] * 4, rel=1e-5)
    assert runs


@pytest.mark.parametrize("name", ["model", "guide"])
def test_a_compiled_model_or_guide_hears_what_to_compile(name):
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    model = ibvi.SupervisedModel(ibvi.RandomModule(net), ibvi.Normal(0.1))
    pair = {"model": model, "guide": ibvi.AutoMuPNormal(model)}
    pair[name] = torch.compile(pair[name], backend="eager")
    with pytest.raises(TypeError, match=rf"The {name} is compiled .* compile the network alone"):
        ibvi.TraceExpectedLogLikelihood()(**pair)
