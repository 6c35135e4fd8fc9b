"""The objectives against an independent route, and against Pyro's own ELBOs at ``kl_weight=1``."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import (
    AutoHierarchicalNormalMessenger,
    AutoNormal,
    AutoNormalMessenger,
    AutoRegressiveMessenger,
)

from pyro_ibvi.objectives.expected_log_likelihood import TraceExpectedLogLikelihood
from tests.objectives.zoo import (
    NAMES,
    PAIRS,
    Case,
    MaskLatents,
    assert_same,
    loss_and_grads,
    make_case,
    supports,
)

pytestmark = [
    pytest.mark.usefixtures("double"),
    # What the models leave unmoved is the subject of another file.
    pytest.mark.filterwarnings("ignore:The expected log-likelihood cannot move"),
    pytest.mark.filterwarnings("ignore:The latent sites .* are missing data"),
    pytest.mark.filterwarnings("ignore:Found vars in model but not guide"),
    pytest.mark.filterwarnings("ignore:The guide has no sites"),
    pytest.mark.filterwarnings("ignore:.*has one value per observation"),
]
PARTICLES = [{}, {"num_particles": 3}, {"num_particles": 3, "vectorize_particles": True}]


COMBINATIONS = [
    pytest.param(name, estimator, options, id=f"{name}-{estimator}-{'-'.join(options) or 'one'}")
    for name in NAMES
    for estimator in PAIRS
    for options in PARTICLES
    if supports(name, estimator, options)
]


def pairs_of(names):
    return [
        (name, estimator) for name in names for estimator in PAIRS if supports(name, estimator)
    ]


def prepared(name, estimator, options):
    ours, theirs, extra = PAIRS[estimator]
    return make_case(name), ours, theirs, {**options, **extra}


@pytest.mark.parametrize(("name", "estimator", "options"), COMBINATIONS)
def test_agrees_with_masking_the_latents(name, estimator, options):
    case, ours, theirs, options = prepared(name, estimator, options)
    expected = loss_and_grads(theirs(**options), case, handler=MaskLatents(case.enumerated))
    assert_same(loss_and_grads(ours(**options), case), expected)
    full = loss_and_grads(theirs(**options), case)
    assert abs(full[0] - expected[0]) > 1e-3  # the route does drop something


@pytest.mark.parametrize(("name", "estimator", "options"), COMBINATIONS)
def test_is_the_elbo_at_kl_weight_1(name, estimator, options):
    case, ours, theirs, options = prepared(name, estimator, options)
    expected = loss_and_grads(theirs(**options), case)
    assert_same(loss_and_grads(ours(kl_weight=1, **options), case), expected, exact=True)


@pytest.mark.parametrize(
    ("name", "estimator"), pairs_of(["regression", "nested", "scaled_and_masked", "mixture"])
)
def test_is_linear_in_kl_weight(name, estimator):
    case, ours, _, options = prepared(name, estimator, {"num_particles": 2})
    none, some, full = (
        loss_and_grads(ours(kl_weight=w, **options), case) for w in (0.0, 0.25, 1.0)
    )
    mix = {key: 0.75 * none[1][key] + 0.25 * full[1][key] for key in full[1]}
    assert_same(some, (0.75 * none[0] + 0.25 * full[0], mix))


@pytest.mark.parametrize(("name", "estimator"), pairs_of(NAMES))
def test_keeping_every_kl_is_the_elbo(name, estimator):
    case, ours, theirs, options = prepared(name, estimator, {})
    kept = loss_and_grads(ours(keep_kl=lambda site: True, **options), case)
    assert_same(kept, loss_and_grads(theirs(**options), case))


@pytest.mark.parametrize("estimator", PAIRS)
@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    ("name", "count"),
    [("regression", 6), ("subsampled", 6), ("nested", 6), ("scaled_and_masked", 10)],
)
def test_mean_is_the_sum_per_scaled_observation(name, count, weight, estimator):
    case, ours, _, options = prepared(name, estimator, {"num_particles": 2})
    for extra in ({}, {"vectorize_particles": True}):
        total = loss_and_grads(ours(kl_weight=weight, **options, **extra), case)
        mean = loss_and_grads(ours(kl_weight=weight, reduction="mean", **options, **extra), case)
        assert_same(mean, total, factor=1 / count)


def test_mean_counts_with_tensors_of_scales_and_masks():
    def model(y):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)), poutine.scale(scale=torch.tensor(3.0)):
            pyro.sample("y", dist.Normal(loc, 1.0).mask(y > 0), obs=y)
            pyro.sample("z", dist.Normal(loc, 1.0).expand([4]), obs=y)

    guide, y = AutoNormal(model), torch.tensor([-1.0, 1.0, 2.0, 3.0])
    guide(y)
    case = Case(model, guide, (y,))
    total = loss_and_grads(TraceExpectedLogLikelihood(), case)
    mean = loss_and_grads(TraceExpectedLogLikelihood(reduction="mean"), case)
    assert_same(mean, total, factor=1 / (3 * 3 + 3 * 4))


def test_mean_of_a_mixture_does_not_count_its_enumerated_states():
    case, ours, _, options = prepared("mixture", "enum", {})
    total = loss_and_grads(ours(**options), case)
    mean = loss_and_grads(ours(reduction="mean", **options), case)
    assert_same(mean, total, factor=1 / 6)


@pytest.mark.parametrize(
    "guide_type", [AutoNormalMessenger, AutoRegressiveMessenger, AutoHierarchicalNormalMessenger]
)
@pytest.mark.parametrize("options", PARTICLES[:2])
def test_guide_messengers(guide_type, options):
    def model(x, y):
        s = pyro.sample("s", dist.LogNormal(0.0, 0.5))
        w = pyro.sample("w", dist.Normal(s, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(w * x, s), obs=y)

    x = torch.linspace(-1.0, 1.0, 5)
    guide = guide_type(model)
    guide(x, 2 * x)
    case = Case(model, guide, (x, 2 * x))
    expected = loss_and_grads(Trace_ELBO(**options), case, handler=MaskLatents())
    assert_same(loss_and_grads(TraceExpectedLogLikelihood(**options), case), expected)
    full = loss_and_grads(Trace_ELBO(**options), case)
    one = loss_and_grads(TraceExpectedLogLikelihood(kl_weight=1, **options), case)
    assert_same(one, full, exact=True)


@pytest.mark.parametrize("options", PARTICLES)
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_module_interface_and_svi_agree(options, weight):
    case = make_case("discrete")
    # With the number of plates given, no call spends random numbers on guessing it.
    loss = TraceExpectedLogLikelihood(kl_weight=weight, max_plate_nesting=1, **options)
    expected = loss_and_grads(loss, case)
    pyro.set_rng_seed(7)
    value = loss.differentiable_loss(case.model, case.guide, *case.args)
    value.backward()
    grads = {k: p.unconstrained().grad for k, p in pyro.get_param_store().items()}
    assert_same((value.item(), {k: grads[k] for k in expected[1]}), expected)
    pyro.set_rng_seed(7)
    assert loss.loss(case.model, case.guide, *case.args) == pytest.approx(expected[0], rel=1e-12)


def test_the_module_interface_trains():
    case = make_case("regression")
    loss = TraceExpectedLogLikelihood(reduction="mean")(case.model, case.guide)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.05)
    values = []
    for _ in range(30):
        optimizer.zero_grad()
        value = loss(*case.args)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert sum(values[-5:]) < sum(values[:5])


def random_model(choices):
    """A model of up to three latents whose structure is drawn at random."""
    priors = [
        dist.Normal(0.0, 1.0),
        dist.LogNormal(0.0, 0.5),
        dist.Beta(2.0, 3.0),
        dist.Gamma(2.0, 1.0),
    ]

    def model(y):
        total = torch.zeros(())
        rows, columns = (pyro.plate(n, s, dim=d) for n, s, d in (("r", 3, -2), ("c", 4, -1)))
        for i, (prior, place) in enumerate(choices["latents"]):
            fn = priors[prior]
            if place == "global":
                total = total + pyro.sample(f"z{i}", fn)
            else:
                with rows if place == "rows" else columns:
                    total = total + pyro.sample(f"z{i}", fn)
        if choices["factor"]:
            pyro.factor("factor", -0.5 * total.square().sum())
        size = torch.tensor([0, 2]) if choices["subsample"] else None
        batch = pyro.plate("batch", 3, subsample=size, dim=-2)
        values = y[size] if choices["subsample"] else y
        if total.dim() == 2 and total.shape[0] == 3 and choices["subsample"]:
            total = total[size]
        mask = values > 0 if choices["mask"] else torch.ones_like(values, dtype=torch.bool)
        with batch, columns, poutine.scale(scale=choices["scale"]), poutine.mask(mask=mask):
            pyro.sample("y", dist.Normal(total, 1.0), obs=values)

    return model


structures = st.fixed_dictionaries(
    {
        "latents": st.lists(
            st.tuples(st.integers(0, 3), st.sampled_from(["global", "rows", "columns"])),
            min_size=1,
            max_size=3,
        ),
        "factor": st.booleans(),
        "subsample": st.booleans(),
        "mask": st.booleans(),
        "scale": st.sampled_from([1.0, 0.2, 7.0]),
    }
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(choices=structures, particles=st.sampled_from([1, 2]), weight=st.floats(0.0, 2.0))
def test_random_models(choices, particles, weight):
    pyro.clear_param_store()
    model, y = random_model(choices), torch.linspace(-2.0, 3.0, 12).reshape(3, 4)
    guide = AutoNormal(model, init_scale=0.5)
    guide(y)
    case = Case(model, guide, (y,))
    for ours, theirs, extra in PAIRS.values():
        options = {"num_particles": particles, **extra}
        free = loss_and_grads(theirs(**options), case, handler=MaskLatents())
        full = loss_and_grads(theirs(**options), case)
        assert_same(loss_and_grads(ours(**options), case), free)
        assert_same(loss_and_grads(ours(kl_weight=1, **options), case), full, exact=True)
        mixed = {k: (1 - weight) * free[1][k] + weight * full[1][k] for k in full[1]}
        tempered = loss_and_grads(ours(kl_weight=weight, **options), case)
        assert_same(tempered, ((1 - weight) * free[0] + weight * full[0], mixed))


def test_subsample_indices_are_pyros():
    """The random stream is the same as on the other route: the same minibatch, the same draws."""

    def model(x, y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=2) as i:
            pyro.sample("y", dist.Normal(w * x[i], 1.0), obs=y[i])

    x = torch.linspace(-1.0, 1.0, 8)
    guide = AutoNormal(model)
    guide(x, 2 * x)
    case = Case(model, guide, (x, 2 * x))
    expected = loss_and_grads(Trace_ELBO(), case, handler=MaskLatents())
    assert_same(loss_and_grads(TraceExpectedLogLikelihood(), case), expected)
