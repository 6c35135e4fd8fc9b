"""What an objective learns of one pair of model and guide does not reach another."""

import copy
import gc
import pickle
import warnings
import weakref

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule

from pyro_ibvi import AutoMuPNormal, Normal, RandomModule, SupervisedModel
from pyro_ibvi.objectives.expected_log_likelihood import TraceExpectedLogLikelihood
from pyro_ibvi.objectives.known import Pairs
from pyro_ibvi.objectives.variants import TraceEnumExpectedLogLikelihood
from tests.objectives.zoo import PAIRS, Case, X, built, line, loss_and_grads

pytestmark = pytest.mark.usefixtures("double")


def hierarchy(name):
    """A model whose hyperparameter no likelihood sees."""

    def model(y):
        tau = pyro.sample(f"tau_{name}", dist.HalfNormal(1.0))
        theta = pyro.sample(f"theta_{name}", dist.Normal(0.0, tau))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    return model


def messages(function):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function()
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("estimator", PAIRS)
def test_each_pair_gets_its_warnings_once(estimator):
    ours, _, options = PAIRS[estimator]
    loss = ours(**options)
    for name in ("first", "second"):
        case = built(hierarchy(name), X)
        (message,) = messages(lambda case=case: loss_and_grads(loss, case))
        assert f"latent sites ['tau_{name}']" in message
        assert messages(lambda case=case: loss_and_grads(loss, case)) == []


def mixture(dim):
    """A mixture in one plate or two, whose label is summed out."""

    def model(y):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("outer", 1, dim=dim), pyro.plate("data", len(y), dim=-1):
            k = pyro.sample("k", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            pyro.sample("y", dist.Normal(loc + k, 1.0), obs=y)

    return model


@pytest.mark.parametrize("kl_weight", [0.0, 1.0])
def test_plates_of_one_model_do_not_reach_another(kl_weight):
    cases = {}
    for dim in (-2, -3):
        model = mixture(dim)
        guide = AutoNormal(pyro.poutine.block(model, hide=["k"]))
        cases[dim] = Case(model, guide, (X,))
    shared = TraceEnumExpectedLogLikelihood(kl_weight=kl_weight)
    for dim in (-2, -3, -2):
        alone = TraceEnumExpectedLogLikelihood(kl_weight=kl_weight)
        for loss in (alone, shared):  # counts the plates, for which it draws
            loss_and_grads(loss, cases[dim])
        expected = loss_and_grads(alone, cases[dim])[0]
        assert loss_and_grads(shared, cases[dim])[0] == expected


def test_a_bound_that_was_given_stands_for_all():
    loss = TraceEnumExpectedLogLikelihood(max_plate_nesting=3)
    model = mixture(-2)
    case = Case(model, AutoNormal(pyro.poutine.block(model, hide=["k"])), (X,))
    theirs = TraceEnum_ELBO(max_plate_nesting=3)
    assert loss.max_plate_nesting == theirs.max_plate_nesting == 3
    loss_and_grads(loss, case)
    assert loss.max_plate_nesting == 3


@pytest.mark.parametrize("make", [AutoNormal, AutoMuPNormal])
@pytest.mark.parametrize("estimator", PAIRS)
def test_nothing_keeps_a_deleted_guide_alive(make, estimator):
    ours, _, options = PAIRS[estimator]
    loss = ours(**options)
    net = RandomModule(torch.nn.Linear(1, 1))
    model = SupervisedModel(net, Normal(1.0))
    guide = make(model)
    args = (X.unsqueeze(-1), X.unsqueeze(-1))
    guide(*args)
    for _ in range(2):
        loss.loss_and_grads(model, guide, *args)
    parameter = weakref.ref(next(guide.parameters()))
    guide_reference = weakref.ref(guide)
    pyro.clear_param_store()
    del guide
    gc.collect()
    assert guide_reference() is None
    assert parameter() is None
    assert len(loss._pairs) == 0


def test_bound_methods_are_pairs_of_their_objects():
    class Both(PyroModule):
        def model(self, y):
            hierarchy("bound")(y)

        def guide(self, y):
            tau = pyro.param("tau", torch.tensor(1.0))
            pyro.sample("tau_bound", dist.LogNormal(tau, 0.1))
            pyro.sample("theta_bound", dist.Normal(0.0, 1.0))

    both, loss = Both(), TraceExpectedLogLikelihood()
    svi = SVI(both.model, both.guide, pyro.optim.SGD({"lr": 0.0}), loss)
    assert len(messages(lambda: svi.step(X))) == 1
    assert messages(lambda: loss.loss_and_grads(both.model, both.guide, X)) == []
    assert len(loss._pairs) == 1


def test_a_verdict_is_given_anew_when_the_sites_change():
    def model(y, *, deep):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        if deep:
            tau = pyro.sample("tau", dist.HalfNormal(1.0))
            w = w + 0 * pyro.sample("theta", dist.Normal(0.0, tau)).detach()
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(w, 1.0), obs=y)

    def guide(y, *, deep):
        pyro.sample("w", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))
        if deep:
            pyro.sample("tau", dist.LogNormal(pyro.param("tau_loc", torch.tensor(0.0)), 1.0))
            pyro.sample("theta", dist.Normal(0.0, 1.0))

    loss = TraceExpectedLogLikelihood()

    def step(deep):
        return messages(lambda: loss.loss_and_grads(model, guide, X, deep=deep))

    assert step(False) == []
    (message,) = step(True)
    assert "latent sites ['tau'] and the parameters ['tau_loc']" in message
    assert step(False) == step(True) == []


def test_what_is_known_stays_out_of_files_and_copies():
    loss, case = TraceExpectedLogLikelihood(), built(line, X, X)
    loss_and_grads(loss, case)
    assert len(loss._pairs) == 1
    assert len(pickle.loads(pickle.dumps(loss))._pairs) == len(copy.deepcopy(loss)._pairs) == 0


def test_of_what_cannot_be_referred_to_nothing_is_remembered():
    class Slotted:
        __slots__ = ()

        def __call__(self):
            pass

    pairs = Pairs()
    assert pairs.of(Slotted(), line) is not pairs.of(Slotted(), line)
    assert len(pairs) == 0
    assert pairs.of(built, line) is pairs.of(built, line)


@pytest.mark.parametrize("estimator", PAIRS)
def test_a_guide_of_another_model_is_refused_at_the_first_step(estimator):
    """One with the same network is that of another likelihood, and passes."""
    ours, _, options = PAIRS[estimator]

    def make(net=None):
        net = RandomModule(torch.nn.Linear(1, 1), stochastic="all") if net is None else net
        return SupervisedModel(net, Normal(0.5), num_data=4)

    model, other = make(), make()
    guide = AutoMuPNormal(model)
    sibling = make(model.net)
    data = torch.ones(4, 1), torch.ones(4, 1)
    loss = ours(**options)
    assert isinstance(loss.loss_and_grads(sibling, guide, *data), float)
    with pytest.raises(ValueError, match="guide was made for another SupervisedModel"):
        loss.loss_and_grads(other, guide, *data)
