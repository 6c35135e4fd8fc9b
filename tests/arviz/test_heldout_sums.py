"""Held-out densities with the enumerated sites summed out, against exact ones."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_ibvi.arviz import compare_predictive, log_predictive_density
from tests.arviz.exact import (
    FRESH,
    LOCS,
    PROBS,
    draws_of,
    exact_mixture,
    mixture,
    plain_mixture,
    shared_guide,
)


def label_guide(how, *, expand=False):
    """A guide whose labels know the very datum."""
    mark = {"enumerate": how, "expand": expand}

    def guide(y, *args):
        shared_guide()
        with pyro.plate("data", len(y)):
            logits = dist.Normal(LOCS, 0.5).log_prob(y[:, None])
            pyro.sample("label", dist.Categorical(logits=3 * logits), infer=mark)

    return guide


def sequential_plate(y):
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    for i in pyro.plate("data", len(y)):
        mark = {"enumerate": "parallel"}
        label = pyro.sample(f"label_{i}", dist.Categorical(PROBS), infer=mark)
        pyro.sample(f"y_{i}", dist.Normal(LOCS[label] + shift, 0.5), obs=y[i])


def full_states(y, mark=None):
    """A label for each datum in each state, as a network that joins it to its inputs needs."""
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        label = pyro.sample("label", dist.Categorical(PROBS), infer=mark)
        inputs = torch.stack([LOCS[label], shift.expand(label.shape[:-1] + y.shape)])
        pyro.sample("y", dist.Normal(inputs.sum(0), 0.5), obs=y)


def marked_full_states(y):
    full_states(y, {"enumerate": "parallel", "expand": True})


def python_branches(y):
    """Only one state at a time: the model asks the state for its value."""
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    for i in pyro.plate("data", len(y)):
        mark = {"enumerate": "sequential"}
        label = pyro.sample(f"label_{i}", dist.Categorical(PROBS), infer=mark)
        loc = LOCS[0] if label.item() == 0 else LOCS[1]
        pyro.sample(f"y_{i}", dist.Normal(loc + shift, 0.5), obs=y[i])


MIXTURES = {
    "model, parallel": (mixture, shared_guide),
    "model, sequential": (lambda y: mixture(y, "sequential"), shared_guide),
    "guide, parallel": (plain_mixture, label_guide("parallel")),
    "guide, sequential": (plain_mixture, label_guide("sequential")),
    "both": (mixture, label_guide("parallel")),
    "model, expanded": (marked_full_states, shared_guide),
    "guide, expanded": (full_states, label_guide("parallel", expand=True)),
    "plate by plate": (sequential_plate, shared_guide),
    "plate by plate, branches": (python_branches, shared_guide),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_enumerated_labels_are_summed_out(name):
    model, guide = MIXTURES[name]
    fresh = FRESH[:3] if "branches" in name else FRESH  # two to the number of data runs
    found = log_predictive_density(model, guide, fresh, num_samples=50, seed=0)
    shift = draws_of(guide, "shift", 50, fresh)
    np.testing.assert_allclose(found.pointwise, exact_mixture(fresh, shift), rtol=1e-5)
    assert all(n.startswith("label") for n in found.summed)
    assert "summed out" in str(found)


START, STEP = torch.tensor([0.8, 0.2]), torch.tensor([[0.9, 0.1], [0.3, 0.7]])


def forward_algorithm(y, loc, mask=None):
    """Log-density of sequences ``(N, T)`` or ``(N, T, D)`` by the textbook recursion."""
    log_alpha = START.log().expand(len(y), 2)
    for t in range(y.shape[1]):
        if t:
            log_alpha = (log_alpha[:, :, None] + STEP.log()).logsumexp(1)
        emission = dist.Normal(loc, 1.0).log_prob(y[:, t, ..., None])
        emission = emission if emission.dim() == 2 else emission.sum(1)
        if mask is not None:
            emission = emission * mask[:, t, None]
        log_alpha = log_alpha + emission
    return log_alpha.logsumexp(1)


def hmm_plate(y, lengths):
    """Sequences of different lengths in a plate, times one after the other."""
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("sequence", len(y), dim=-1):
        x = 0
        for t in pyro.markov(range(y.shape[1])):
            with poutine.mask(mask=t < lengths):
                probs = START if t == 0 else STEP[x]
                mark = {"enumerate": "parallel"}
                x = pyro.sample(f"x_{t}", dist.Categorical(probs), infer=mark)
                pyro.sample(f"y_{t}", dist.Normal(loc[x], 1.0), obs=y[:, t])


def hmm_alone(y):
    """One sequence without any plate."""
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    x = 0
    for t in pyro.markov(range(len(y))):
        mark = {"enumerate": "parallel"}
        x = pyro.sample(f"x_{t}", dist.Categorical(START if t == 0 else STEP[x]), infer=mark)
        pyro.sample(f"y_{t}", dist.Normal(loc[x], 1.0), obs=y[t])


def hmm_tones(y):
    """Several observations at each time, in a plate of their own."""
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    tones = pyro.plate("tone", y.shape[-1], dim=-1)
    with pyro.plate("sequence", len(y), dim=-2):
        x = 0
        for t in pyro.markov(range(y.shape[1])):
            mark = {"enumerate": "parallel"}
            x = pyro.sample(f"x_{t}", dist.Categorical(START if t == 0 else STEP[x]), infer=mark)
            with tones:
                pyro.sample(f"y_{t}", dist.Normal(loc[x], 1.0), obs=y[:, t])


def hmm_guide(*args):
    pyro.sample("loc", dist.Normal(torch.tensor([-1.0, 1.0]), 0.1).to_event(1))


def averaged(log_probs):
    """Logarithm of the mean density over draws."""
    stacked = torch.stack(log_probs)
    return (stacked.logsumexp(0) - math.log(len(stacked))).numpy()


def test_states_of_a_markov_chain_are_summed_out():
    y, lengths = torch.randn(4, 3), torch.tensor([3, 2, 0, 1])
    locs = draws_of(hmm_guide, "loc", 20)
    found = log_predictive_density(hmm_plate, hmm_guide, y, lengths, num_samples=20, seed=0)
    mask = torch.arange(3) < lengths[:, None]
    expected = averaged([forward_algorithm(y, loc, mask) for loc in locs])
    np.testing.assert_allclose(found.pointwise[[0, 1, 3]], expected[[0, 1, 3]], rtol=1e-5)
    assert np.isnan(found.pointwise[2])
    assert found.num_data == 3

    found = log_predictive_density(hmm_alone, hmm_guide, y[0], num_samples=20, seed=0)
    expected = averaged([forward_algorithm(y[:1], loc) for loc in locs])
    np.testing.assert_allclose(found.pointwise, expected[0], rtol=1e-5)

    tones = torch.randn(3, 2, 4)
    found = log_predictive_density(hmm_tones, hmm_guide, tones, num_samples=20, seed=0)
    expected = averaged([forward_algorithm(tones, loc) for loc in locs])
    np.testing.assert_allclose(found.pointwise, expected, rtol=1e-5)


def test_one_time_of_a_markov_chain_alone():
    y, lengths = torch.randn(4, 3), torch.tensor([3, 3, 3, 3])
    locs = draws_of(hmm_guide, "loc", 10)
    found = log_predictive_density(
        hmm_plate, hmm_guide, y, lengths, num_samples=10, seed=0, site="y_1"
    )
    law = START @ STEP
    parts = [dist.Normal(loc, 1.0).log_prob(y[:, 1, None]) + law.log() for loc in locs]
    expected = averaged([part.logsumexp(-1) for part in parts])
    np.testing.assert_allclose(found.pointwise, expected, rtol=1e-5)


def test_a_comparison_no_longer_favors_more_latents():
    """Labels that change nothing leave the density as it is."""

    def plain(y):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(shift, 0.5), obs=y)

    def labeled(y):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            mark = {"enumerate": "parallel"}
            pyro.sample("label", dist.Categorical(torch.ones(4) / 4), infer=mark)
            pyro.sample("y", dist.Normal(shift, 0.5), obs=y)

    fits = {
        model.__name__: log_predictive_density(model, shared_guide, FRESH, num_samples=9, seed=0)
        for model in (plain, labeled)
    }
    assert compare_predictive(fits)["elpd_diff"].max() == pytest.approx(0.0, abs=1e-5)
