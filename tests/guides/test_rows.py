"""The guide uses the rows and the masks of the batch at hand, whoever chose them."""

import pickle

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.forecast import Forecaster, ForecastingModel
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoGuideList, AutoNormal
from torch import nn

from pyro_ibvi import AutoMuPMixture, AutoMuPNormal, TraceExpectedLogLikelihood

NUM = 12
TRUTH = torch.linspace(-3.0, 3.0, NUM)


def by_caller(rows, y):
    with pyro.plate("data", NUM, subsample=rows, dim=-1):
        effect = pyro.sample("effect", dist.Normal(0.0, 5.0))
        pyro.sample("y", dist.Normal(effect, 0.1), obs=y[rows])


def events(rows, y):
    with pyro.plate("data", NUM, subsample=rows, dim=-1):
        effect = pyro.sample("effect", dist.Normal(torch.zeros(2), 5.0).to_event(1))
        pyro.sample("y", dist.Normal(effect.sum(-1), 0.1), obs=y[rows])


def left_dimension(rows, y):
    with pyro.plate("data", NUM, subsample=rows, dim=-2), pyro.plate("pair", 2, dim=-1):
        effect = pyro.sample("effect", dist.Normal(0.0, 5.0))
        pyro.sample("y", dist.Normal(effect, 0.1), obs=y[rows].unsqueeze(-1).expand(-1, 2))


def positive(rows, y):
    with pyro.plate("data", NUM, subsample=rows, dim=-1):
        effect = pyro.sample("effect", dist.LogNormal(0.0, 2.0))
        pyro.sample("y", dist.Normal(effect.log(), 0.1), obs=y[rows])


BATCHES = {
    "even": lambda: torch.randperm(NUM).split(4),
    "smaller last": lambda: torch.randperm(NUM).split(5),
    "all at once": lambda: [torch.randperm(NUM)],
    "with repetition": lambda: torch.randint(NUM, (2, NUM + 3)).unbind(),
    "lists": lambda: [rows.tolist() for rows in torch.randperm(NUM).split(4)],
}


@pytest.mark.parametrize(
    ("model", "batches"),
    [
        *((by_caller, batches) for batches in BATCHES),
        *((model, "with repetition") for model in (events, left_dimension, positive)),
    ],
)
def test_each_row_learns_from_its_own_data(model, batches):
    guide = AutoMuPNormal(model, init_scale=0.1)
    loss = TraceExpectedLogLikelihood(allow_local=True)
    for lr in (0.3, 0.03):
        svi = SVI(model, guide, pyro.optim.Adam({"lr": lr}), loss)
        for _ in range(90 if batches == "all at once" else 30):
            for rows in BATCHES[batches]():
                svi.step(rows, TRUTH)
    loc = guide.loc("effect")
    if model is events:
        loc = loc.sum(-1)
    expected = TRUTH.unsqueeze(-1) if model is left_dimension else TRUTH
    assert (loc - expected).abs().max() < 0.5


def test_one_step_moves_the_rows_of_its_batch_alone():
    guide = AutoMuPNormal(by_caller)
    guide.initialize(torch.arange(4), TRUTH)
    before = guide.loc("effect").detach().clone()
    svi = SVI(by_caller, guide, pyro.optim.SGD({"lr": 0.01}), Trace_ELBO())
    svi.step(torch.tensor([7, 2, 11]), TRUTH)
    moved = (guide.loc("effect") != before).nonzero().flatten().tolist()
    assert moved == [2, 7, 11]


@pytest.mark.parametrize(
    "shown",
    [
        lambda model: poutine.block(model, expose=["effect"]),
        lambda model: poutine.block(model, hide_fn=lambda site: site["name"] != "effect"),
        lambda model: poutine.block(poutine.scale(model, scale=2.0), hide=["data", "y"]),
        lambda model: poutine.reparam(poutine.block(model, expose=["effect"]), config={}),
    ],
)
def test_rows_are_seen_behind_what_hides_a_plate(shown):
    guide = AutoMuPNormal(shown(by_caller))
    rows = torch.tensor([7, 2, 11])
    guide.initialize(rows, TRUTH)
    before = guide.loc("effect").detach().clone()
    SVI(by_caller, guide, pyro.optim.SGD({"lr": 0.01}), Trace_ELBO()).step(rows, TRUTH)
    assert (guide.loc("effect") != before).nonzero().flatten().tolist() == [2, 7, 11]
    guides = AutoGuideList(by_caller)
    guides.append(AutoMuPNormal(shown(by_caller)))
    with pytest.raises(ValueError, match=r"rows of the plate 'data'.*to AutoGuideList"):
        guides(rows, TRUTH)


def test_rows_drawn_by_pyro_may_become_fewer():
    def model(y):
        with pyro.plate("data", NUM, subsample_size=len(y), dim=-1):
            effect = pyro.sample("effect", dist.Normal(0.0, 5.0))
            pyro.sample("y", dist.Normal(effect, 0.1), obs=y)

    guide = AutoMuPNormal(model)
    loss = TraceExpectedLogLikelihood(allow_local=True)
    for size in (5, 5, 2):
        loss.loss(model, guide, TRUTH[:size])


class Box:
    """A batch of a class of the user's own."""

    def __init__(self, y):
        self.y = y

    def __len__(self):
        return len(self.y)


def share(part):
    return NUM if part is None else round(part * NUM)


@pytest.mark.parametrize(
    ("size_of", "arguments"),
    [
        (len, [TRUTH[:size].numpy() for size in (5, 2)]),
        (len, [Box(TRUTH[:size]) for size in (5, 2)]),
        (int, [np.int64(5), np.int64(2)]),
        (share, [0.5, 0.25]),
        (share, [None, 0.5]),
    ],
)
def test_the_size_of_a_plate_follows_arguments_of_any_kind(size_of, arguments):
    def model(batch):
        with pyro.plate("data", NUM, subsample_size=size_of(batch), dim=-1) as rows:
            effect = pyro.sample("effect", dist.Normal(0.0, 5.0))
            pyro.sample("y", dist.Normal(effect, 0.1), obs=TRUTH[rows])

    guide = AutoMuPNormal(model)
    for batch in (*arguments, *arguments):
        assert len(guide(batch)["effect"]) == size_of(batch)


def test_a_model_is_not_looked_at_again_for_batches_of_the_same_shape():
    num_runs = 0

    def model(y, scale=0.1):
        nonlocal num_runs
        num_runs += 1
        with pyro.plate("data", NUM, subsample_size=len(y), dim=-1) as rows:
            effect = pyro.sample("effect", dist.Normal(0.0, 5.0))
            pyro.sample("y", dist.Normal(effect, scale), obs=TRUTH[rows])

    guide = AutoMuPNormal(model)
    guide.initialize(TRUTH[:5].numpy(), scale=0.1)
    guide(TRUTH[:5].numpy(), scale=0.1)
    num_runs = 0
    guide(TRUTH[5:10].numpy(), scale=0.1)
    assert num_runs == 0


def test_a_batch_of_no_known_rows_is_refused():
    def model(y):
        with pyro.plate("data", len(y), dim=-1):
            effect = pyro.sample("effect", dist.Normal(0.0, 5.0))
            pyro.sample("y", dist.Normal(effect, 0.1), obs=y)

    guide = AutoMuPNormal(model)
    guide(TRUTH[:5])
    guide(TRUTH[5:10])
    message = r"'data' has 2 elements now and had 5.*\['effect'\].*subsample=rows"
    with pytest.raises(ValueError, match=message):
        guide(TRUTH[:2])


def test_rows_that_are_no_indices_are_refused_where_a_row_has_parameters():
    def model(x, y):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("data", NUM, subsample=x, dim=-1):  # takes the length of anything
            effect = pyro.sample("effect", dist.Normal(0.0, 5.0)) if LOCAL else 0.0
            pyro.sample("y", dist.Normal(slope * x[:, 0] + effect, 0.1), obs=y)

    x = torch.randn(5, 2)
    LOCAL = True
    guide = AutoMuPNormal(model)
    guide.initialize(x, TRUTH[:5])
    message = r"'data' was given subsample= of shape \(5, 2\).*\['effect'\].*subsample=rows"
    with pytest.raises(ValueError, match=message):
        guide(x, TRUTH[:5])
    LOCAL = False
    assert AutoMuPNormal(model)(x, TRUTH[:5]).keys() == {"slope"}


def test_forecasts_go_on_from_the_steps_that_the_guide_knows():
    class Walk(ForecastingModel):
        def model(self, zero_data, covariates):
            with self.time_plate:
                step = pyro.sample("step", dist.Normal(0.0, 1.0))
            self.predict(dist.Normal(0.0, 0.1), step.cumsum(-1).unsqueeze(-1))

    walk, past = Walk(), TRUTH[:8, None]
    guide = AutoMuPNormal(walk, init_scale=1e-6)
    forecaster = Forecaster(walk, past, torch.zeros(8, 0), guide=guide, num_steps=1, log_every=0)
    forecast = forecaster(past, torch.zeros(10, 0), num_samples=2000)
    assert forecast.shape == (2000, 2, 1)
    # A random walk from where the guide's steps end, whose variance grows by one a step.
    variance = forecast.var(0).squeeze(-1)
    torch.testing.assert_close(variance, torch.tensor([1.0, 2.0]) + 0.01, rtol=0.12, atol=0.0)
    error = (2.01 / 2000) ** 0.5
    mean = forecast.mean(0).squeeze(-1)
    expected = guide.loc("step").sum().expand(2)
    torch.testing.assert_close(mean, expected, rtol=0.0, atol=4 * error)
    with pytest.raises(ValueError, match=r"has 10 elements now and had 8"):  # data, not forecasts
        guide(TRUTH[:10, None], torch.zeros(10, 0))
    with pytest.raises(ValueError, match=r"has 6 elements now and had 8"):
        forecaster(past[:4], torch.zeros(6, 0), num_samples=2)


def test_forecasts_of_a_list_of_guides():
    class Drift(ForecastingModel):
        def model(self, zero_data, covariates):
            drift = pyro.sample("drift", dist.Normal(0.0, 1.0))
            with self.time_plate:
                step = pyro.sample("step", dist.Normal(0.0, 0.1))
            self.predict(dist.Normal(0.0, 0.1), (step + drift).cumsum(-1).unsqueeze(-1))

    model, past = Drift(), TRUTH[:8, None]
    guide = AutoGuideList(model)
    for name in ("drift", "step"):  # what hides the other site hides the plate as well
        guide.append(AutoMuPNormal(poutine.block(model, expose=[name]), init_scale=1e-6))
    forecaster = Forecaster(model, past, torch.zeros(8, 0), guide=guide, num_steps=1, log_every=0)
    forecast = forecaster(past, torch.zeros(10, 0), num_samples=2000).squeeze(-1)
    expected = guide[1].loc("step").sum() + guide[0].loc("drift") * torch.tensor([9.0, 10.0])
    torch.testing.assert_close(forecast.mean(0), expected.detach(), rtol=0.0, atol=0.02)
    variance = torch.tensor([0.02, 0.03])
    torch.testing.assert_close(forecast.var(0), variance, rtol=0.12, atol=0.0)


def test_a_caller_that_goes_on_by_itself_has_the_elements_that_the_guide_knows():
    def walk(y, num_steps):
        with pyro.plate("steps", num_steps):
            step = pyro.sample("step", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(step.cumsum(-1)[: len(y)], 0.1).to_event(1), obs=y)

    guide = AutoMuPNormal(walk)
    guide.initialize(TRUTH[:8], 8)
    with pytest.raises(ValueError, match=r"has 10 elements now and had 8.*guide.create_plates"):
        guide(TRUTH[:8], 10)
    guide.create_plates = lambda *args: pyro.plate("steps", 8, dim=-1)
    assert guide(TRUTH[:8], 10)["step"].shape == (8,)


def test_other_guides_are_refused_or_told_the_rows():
    rows = torch.tensor([3, 1, 4])
    loss = TraceExpectedLogLikelihood(allow_local=True)
    stock = AutoNormal(by_caller)
    with pytest.raises(ValueError, match=r"'data', subsample=\[3, 1, 4\].*create_plates="):
        loss.loss(by_caller, stock, rows, TRUTH)

    def plates(rows, y):
        return pyro.plate("data", NUM, subsample=rows, dim=-1)

    for kind in (AutoNormal, AutoMuPNormal):
        loss.loss(by_caller, kind(by_caller, create_plates=plates), rows, TRUTH)
    guides = AutoGuideList(by_caller)
    guides.append(AutoMuPNormal(by_caller))
    with pytest.raises(ValueError, match=r"rows of the plate 'data'.*to AutoGuideList"):
        guides(rows, TRUTH)
    guides = AutoGuideList(by_caller, create_plates=plates)
    guides.append(AutoMuPNormal(by_caller))
    loss.loss(by_caller, guides, rows, TRUTH)


def test_particles_have_the_same_rows():
    def model(rows, y):
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        with pyro.plate("data", NUM, subsample=rows, dim=-1):
            effect = pyro.sample("effect", dist.Normal(level, 5.0))
            pyro.sample("y", dist.Normal(effect, 0.1), obs=y[rows])

    guide = AutoMuPNormal(model, init_scale=1e-6)
    rows = torch.tensor([3, 1, 4])
    losses = [
        Trace_ELBO(num_particles=3, vectorize_particles=vectorized).loss(model, guide, rows, TRUTH)
        for vectorized in (False, True)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def imputed(x, observed):
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(level, 1.0), obs=x, obs_mask=observed)


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_copies_of_observed_values_stay_where_they_are(weight):
    observed = torch.tensor([True, False, True, False])
    guide = AutoMuPNormal(imputed)
    guide.initialize(TRUTH[:4], observed)
    before = guide.factor("x_unobserved").detach().clone()
    loss = TraceExpectedLogLikelihood(kl_weight=weight)
    svi = SVI(imputed, guide, pyro.optim.SGD({"lr": 0.1}), loss)
    svi.step(TRUTH[:4], observed)
    assert torch.equal(guide.factor("x_unobserved") != before, ~observed)
    svi.step(TRUTH[:4], ~observed)  # another batch has other gaps
    assert (guide.factor("x_unobserved") != before).all()


def test_looking_leaves_no_trace():
    norm = nn.BatchNorm1d(1)
    num_runs = []

    def model(rows, y):
        num_runs.append(1)
        norm(y[rows].unsqueeze(-1))
        by_caller(rows, y)

    guide = AutoMuPNormal(model)
    statistics = norm.running_mean.clone()
    for new in (guide, AutoMuPMixture(model)):
        new.initialize(torch.arange(4), TRUTH)
        assert torch.equal(norm.running_mean, statistics)
    runs = len(num_runs)
    state = torch.get_rng_state()
    guide._plates.open(guide.model, (torch.arange(3), TRUTH), {}, {})
    assert len(num_runs) == runs + 1
    assert torch.equal(norm.running_mean, statistics)
    assert torch.equal(torch.get_rng_state(), state)
    guide(torch.arange(3), TRUTH)
    assert len(pickle.dumps(guide)) < len(pickle.dumps(TRUTH.repeat(1000)))


def test_batches_of_the_same_shapes_are_looked_at_once():
    num_runs = []

    def model(y):
        num_runs.append(1)
        with pyro.plate("group", 3, dim=-1):
            effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(effect, 1.0), obs=y)

    guide = AutoMuPNormal(model)
    for _ in range(5):
        guide(TRUTH[:3])
    assert len(num_runs) == 2  # the prototype and one look


def test_new_rows_are_predicted_with_their_latents_from_the_prior():
    def model(x, y=None):
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            effect = pyro.sample("effect", dist.Normal(0.0, 2.0))
            pyro.sample("y", dist.Normal(level + effect, 0.5), obs=y)

    guide = AutoMuPNormal(model)
    guide.initialize(TRUTH[:5], TRUTH[:5])
    new = torch.zeros(2)
    with pytest.raises(ValueError, match=r"guide\.draw\(num_samples\) without \['effect'\]"):
        guide(new)
    draws = guide.draw(20000)
    del draws["effect"]
    y = Predictive(model, draws, return_sites=["y"], parallel=True)(new)["y"]
    variance = guide.scale("level").square().item() + 4.0 + 0.25
    assert y.var(0).mean().item() == pytest.approx(variance, rel=0.05)
    assert y.mean().item() == pytest.approx(guide.loc("level").item(), abs=0.1)
