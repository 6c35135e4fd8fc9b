"""Latents of single data that no plate shows are told, and those that data share are not."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal

import pyro_ibvi as ibvi

pytestmark = pytest.mark.usefixtures("double")

N = 12


def messages(model, **options):
    loss = ibvi.TraceExpectedLogLikelihood(**options)
    svi = SVI(model, AutoNormal(model), pyro.optim.SGD({"lr": 1e-3}), loss)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        svi.step()
    return [str(warning.message) for warning in caught]


def shifted(latent, *, to_event=0):
    """A model of N numbers, of a common shift and of what a latent adds."""

    def model():
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        law = dist.Normal(shift + latent(), 0.1).to_event(to_event)
        if to_event:
            return pyro.sample("y", law, obs=torch.randn(N))
        with pyro.plate("data", N):
            return pyro.sample("y", law, obs=torch.randn(N))

    return model


def event():
    return pyro.sample("z", dist.Normal(torch.zeros(N), 1.0).to_event(1))


def several():
    return pyro.sample("z", dist.Normal(torch.zeros(N, 3), 1.0).to_event(2)).sum(-1)


def other_plate():
    with pyro.plate("other", N):
        return pyro.sample("z", dist.Normal(0.0, 1.0))


def matrix():
    """Scores and loadings of a factor model, whose data are rows."""
    loadings = pyro.sample("loadings", dist.Normal(torch.zeros(2, 5), 1.0).to_event(2))
    scores = pyro.sample("z", dist.Normal(torch.zeros(N, 2), 1.0).to_event(2))
    pyro.sample("y", dist.Normal(scores @ loadings, 0.1).to_event(2), obs=torch.randn(N, 5))


def every_number():
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    z = pyro.sample("z", dist.Normal(torch.zeros(N, 5), 1.0).to_event(2))
    with pyro.plate("rows", N, dim=-2), pyro.plate("columns", 5, dim=-1):
        pyro.sample("y", dist.Normal(shift + z, 0.1), obs=torch.randn(N, 5))


def some_rows(latent, subsample=None):
    def model():
        shift, z = pyro.sample("shift", dist.Normal(0.0, 1.0)), latent()
        with pyro.plate("data", N, subsample_size=4, subsample=subsample) as rows:
            law = dist.Normal(shift + z[rows], 0.1)
            pyro.sample("y", law.to_event(z.dim() - 1), obs=torch.randn(4, *z.shape[1:]))

    return model


def vectors():
    return pyro.sample("z", dist.Normal(torch.zeros(N, 3), 1.0).to_event(2))


LOCAL = {
    "an event": shifted(event),
    "several numbers each": shifted(several),
    "a plate of its own": shifted(other_plate),
    "data without a plate": shifted(event, to_event=1),
    "every number of a matrix": every_number,
    "some rows of an event": some_rows(event),
    "some rows of a matrix": some_rows(vectors),
    "some rows of a plate": some_rows(other_plate),
    "rows that the model chose": some_rows(vectors, [7, 2, 3, 9]),
}


def panel(*, plates):
    """Effects of each unit on several variables, which few of its data share."""
    x, y = torch.randn(N, 5, 3), torch.randn(N, 5)

    def with_plates():
        with pyro.plate("units", N, dim=-2):
            effects = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            with pyro.plate("times", 5, dim=-1):
                pyro.sample("y", dist.Normal((x * effects).sum(-1), 0.1), obs=y)

    def model():
        effects = pyro.sample("z", dist.Normal(torch.zeros(N, 3), 1.0).to_event(2))
        pyro.sample("y", dist.Normal((x * effects[:, None]).sum(-1), 0.1).to_event(2), obs=y)

    return with_plates if plates else model


@pytest.mark.parametrize("model", [matrix, panel(plates=False)])
def test_rows_of_a_matrix_may_be_data_or_groups(model):
    (said,) = messages(model)
    assert said.startswith("Each row of the latent sites ['z'] reaches one row of an observed")
    assert "by plates, of groups and of data in them" in said
    assert messages(model, keep_kl=["z"]) == []
    assert messages(model, allow_local=True) == []


def weighed():
    return torch.randn(N, N) @ event()


def effects(*, design):
    """Effects of rows and of columns, or a network whose data are rows."""

    def model():
        if design:
            inner = pyro.sample("inner", dist.Normal(torch.zeros(3, N), 1.0).to_event(2))
            outer = pyro.sample("outer", dist.Normal(torch.zeros(N, 5), 1.0).to_event(2))
            mean = torch.randn(N, 3) @ inner @ outer
        else:
            rows = pyro.sample("rows", dist.Normal(torch.zeros(N), 1.0).to_event(1))
            columns = pyro.sample("columns", dist.Normal(torch.zeros(5), 1.0).to_event(1))
            mean = rows[:, None] + columns
        pyro.sample("y", dist.Normal(mean, 0.1).to_event(2), obs=torch.randn(N, 5))

    return model


def batch_for_rows():
    """A network as wide as data are many, whose plate is given the batch and not its rows."""
    first = pyro.sample("first", dist.Normal(torch.zeros(3, N), 1.0).to_event(2))
    last = pyro.sample("last", dist.Normal(torch.zeros(N, 2), 1.0).to_event(2))
    logits = torch.randn(4, 3) @ first @ last
    with pyro.plate("data", N, subsample=logits):
        pyro.sample("y", dist.Categorical(logits=logits), obs=torch.tensor([0, 1, 0, 1]))


SHARED = {
    "as many weights as data": shifted(weighed),
    "a walk": shifted(lambda: event().cumsum(-1)),
    "weights, data without a plate": shifted(weighed, to_event=1),
    "effects of groups": effects(design=False),
    "a network as wide as data are many": effects(design=True),
    "weights, some rows": some_rows(weighed),
    "weights, a batch in the place of its rows": batch_for_rows,
    "effects of units in plates": panel(plates=True),
}


def states(num_steps, law):
    """A series whose states are sites of their own."""

    def model():
        shift, state = pyro.sample("shift", dist.Normal(0.0, 1.0)), torch.tensor(0.0)
        for t in pyro.markov(range(num_steps)):
            state = law(f"z_{t}", state)
            pyro.sample(f"y_{t}", dist.Normal(shift + state, 0.1), obs=torch.tensor(t / 9))

    return model


def centered(name, state):
    return pyro.sample(name, dist.Normal(state, 1.0))


def steps(name, state):
    return state + pyro.sample(name, dist.Normal(0.0, 1.0))


def test_states_of_a_loop_are_told():
    (said,) = messages(states(3, centered))
    assert said.startswith("Each of the latent sites ['z_0', 'z_1', 'z_2'] has one value")
    (said,) = messages(states(N, centered))
    assert "keep_kl=['z_*']" in said
    assert messages(states(N, centered), keep_kl=["z_*"]) == []
    assert messages(states(N, centered), allow_local=True) == []


def tasks():
    """Three regressions, each with coefficients of its own."""
    for k in range(3):
        w = pyro.sample(f"w_{k}", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        law = dist.Normal(torch.randn(N, 2) @ w, 0.1).to_event(1)
        pyro.sample(f"y_{k}", law, obs=torch.randn(N))


def line():
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    for t in range(N):
        pyro.sample(f"y_{t}", dist.Normal(slope * t, 0.1), obs=torch.tensor(1.0))


def switching(*, local):
    """A hidden Markov model of two means; with a latent of its own for each time, or without."""

    def model():
        probs = pyro.sample("probs", dist.Dirichlet(torch.ones(2, 2)).to_event(1))
        mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        k = 0
        for t in pyro.markov(range(4)):
            k = pyro.sample(f"k_{t}", dist.Categorical(probs[k]), infer={"enumerate": "parallel"})
            noise = pyro.sample(f"z_{t}", dist.Normal(0.0, 1.0)) if local else 0.0
            pyro.sample(f"y_{t}", dist.Normal(mean[k] + noise, 0.1), obs=torch.tensor(t / 9))

    return model


@pytest.mark.parametrize("num_steps", [4, 40])
def test_states_are_told_by_few_gradients(num_steps, monkeypatch):
    """Among latents that several terms see; 40 is more than one digit of a number can tell."""

    def model():
        noise = [pyro.sample(f"e_{t}", dist.Normal(0.0, 1.0)) for t in range(num_steps)]
        for t in range(num_steps):
            z = pyro.sample(f"z_{t}", dist.Normal(0.0, 1.0))
            mean = z + noise[t] - noise[(3 * t + 1) % num_steps]
            pyro.sample(f"y_{t}", dist.Normal(mean, 0.1), obs=torch.tensor(t / 9))

    calls, grad = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: calls.append(a) or grad(*a, **k))
    (said,) = messages(model)
    names = ["z_*"] if num_steps > 4 else [f"z_{t}" for t in range(num_steps)]
    assert said.startswith(f"Each of the latent sites {names} has one value")
    assert len(calls) <= 3


@pytest.mark.parametrize("local", [False, True])
def test_enumerated_values_are_no_data(local):
    model = switching(local=local)
    hidden = pyro.poutine.block(model, hide_fn=lambda site: site["name"].startswith("k_"))
    loss = ibvi.TraceEnumExpectedLogLikelihood(max_plate_nesting=0)
    svi = SVI(model, AutoNormal(hidden), pyro.optim.SGD({"lr": 1e-3}), loss)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        svi.step()
    said = [str(warning.message) for warning in caught]
    assert len(said) == local
    assert all("latent sites ['z_0', 'z_1', 'z_2', 'z_3']" in each for each in said)


@pytest.mark.parametrize("model", [states(N, steps), states(2, centered), tasks, line])
def test_latents_of_several_sites_or_of_many_numbers_are_not(model):
    assert messages(model) == []


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", LOCAL)
def test_a_latent_of_each_datum_is_told(name, reduction):
    (said,) = messages(LOCAL[name], reduction=reduction)
    assert said.startswith("Each of the latent sites ['z'] has one value per observation")
    assert messages(LOCAL[name], reduction=reduction, keep_kl=["z"]) == []
    assert messages(LOCAL[name], reduction=reduction, allow_local=True) == []


@pytest.mark.parametrize("name", SHARED)
def test_a_latent_that_data_share_is_not(name):
    assert messages(SHARED[name]) == []


def one_number():
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(w, 1.0), obs=torch.tensor(0.7))


def test_vectorized_particles_are_no_data():
    particles = {"num_particles": N, "vectorize_particles": True, "max_plate_nesting": 1}
    assert messages(one_number, **particles) == []
    assert messages(shifted(lambda: 0.0), **particles) == []
    (said,) = messages(LOCAL["a plate of its own"], **particles)
    assert said.startswith("Each of the latent sites ['z'] has one value per observation")


def test_the_look_leaves_the_step_as_it_is():
    def gradients(**options):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        loss = ibvi.TraceExpectedLogLikelihood(**options)
        guide = AutoNormal(LOCAL["an event"])
        with warnings.catch_warnings(action="ignore"):
            loss.loss_and_grads(guide.model, guide)
        return [p.unconstrained().grad for _, p in sorted(pyro.get_param_store().items())]

    for one, other in zip(gradients(), gradients(allow_local=True), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
