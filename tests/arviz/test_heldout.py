"""Held-out densities against exact ones: what a fit knows of a datum must not enter its score."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from scipy import stats

import pyro_ibvi as ibvi
from pyro_ibvi.arviz import log_predictive_density
from tests.arviz.exact import (
    FRESH,
    LOCS,
    PROBS,
    S,
    draws_of,
    exact_mixture,
    plain_mixture,
    shared_guide,
    within,
)


def one_by_one(y):
    """A model that asks each label for its value, and cannot be run in all states at once."""
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        label = pyro.sample("label", dist.Categorical(PROBS))
        locs = torch.stack([LOCS[int(k)] for k in label])
        pyro.sample("y", dist.Normal(locs + shift, 0.5), obs=y)


def mixed_up(y):
    """A model that is wrong in all states at once, without a word."""
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        label = pyro.sample("label", dist.Categorical(PROBS))
        locs = LOCS[label] if label.dim() == 1 else LOCS[1 - label]
        pyro.sample("y", dist.Normal(locs + shift, 0.5), obs=y)


def knowing_guide(y):
    shared_guide()
    with pyro.plate("data", len(y)):
        logits = dist.Normal(LOCS, 0.5).log_prob(y[:, None])
        pyro.sample("label", dist.Categorical(logits=3 * logits))


def small_guide(y):
    """A guide with parameters for other rows, which fails before it says how it enumerates."""
    shared_guide()
    with pyro.plate("data", len(y)):
        logits = pyro.param("logits", torch.zeros(3, 2))
        pyro.sample("label", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})


@pytest.mark.parametrize("guide", [knowing_guide, small_guide])
def test_labels_that_nobody_marks_are_summed_out_where_the_model_allows(guide):
    found = log_predictive_density(plain_mixture, guide, FRESH, num_samples=20, seed=0)
    assert found.summed == ("label",)
    shift = draws_of(shared_guide if guide is small_guide else guide, "shift", 20, FRESH)
    np.testing.assert_allclose(found.pointwise, exact_mixture(FRESH, shift), rtol=1e-5)


def test_labels_that_cannot_be_summed_out_are_drawn_from_their_prior():
    guide = knowing_guide
    mixed = log_predictive_density(mixed_up, guide, FRESH, num_samples=1)
    assert mixed.averaged == ("label",)
    found = log_predictive_density(one_by_one, guide, FRESH, num_samples=S, seed=0)
    expected = exact_mixture(FRESH, draws_of(guide, "shift", S, FRESH))
    assert found.averaged == ("label",)
    assert within(found, expected)
    # given labels that have seen the data: the density of the nearer component alone
    given = dist.Normal(LOCS + 0.2, 0.5).log_prob(FRESH[:, None]).max(-1).values.numpy()
    assert not within(found, given)
    guided = log_predictive_density(
        one_by_one, guide, FRESH, num_samples=S, seed=0, local_draws="guide"
    )
    assert within(guided, expected)
    assert not within(guided, given)


LOADING, NOISE = torch.tensor([1.0, -0.5, 2.0]), 0.3


def codes(x, encode=None):
    """A linear decoder: the density of ``x`` is that of a normal in closed form."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        loc = mean + z * LOADING
        pyro.sample("x", dist.Normal(loc, NOISE).to_event(1), obs=x)


def encoder(x):
    """The exact posterior of the codes, a little wide: it has seen what is scored."""
    pyro.sample("mean", dist.Delta(torch.tensor(0.5)))
    precision = 1 + (LOADING**2).sum() / NOISE**2
    loc = ((x - 0.5) @ LOADING / NOISE**2 / precision)[:, None]
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 1.2 * precision**-0.5).to_event(1))


def exact_codes(x):
    cov = LOADING[:, None] * LOADING + NOISE**2 * torch.eye(3)
    return stats.multivariate_normal(0.5 * np.ones(3), cov.numpy()).logpdf(x.numpy())


@pytest.mark.parametrize(("draws", "num"), [("model", 2 * S), ("guide", S)])
def test_codes_of_an_encoder_are_integrated_out(draws, num):
    x = torch.tensor([[0.2, 0.9, -0.4], [1.4, 0.1, 2.5], [0.5, 0.5, 0.5]])
    found = log_predictive_density(codes, encoder, x, num_samples=num, seed=0, local_draws=draws)
    assert found.averaged == ("z",)
    assert found.given == ("mean",)
    assert within(found, exact_codes(x))


def test_codes_that_are_given_have_seen_the_datum():
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="draws 'z' from the data that are scored: it has seen"):
        log_predictive_density(codes, encoder, x, num_samples=2, local=())


def pixels(x):
    """The same decoder with a plate of pixels in place of an event dimension."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("pixel", 3, dim=-1):
            pyro.sample("x", dist.Normal(mean + z * LOADING, NOISE), obs=x)


def pixel_encoder(x):
    pyro.sample("mean", dist.Delta(torch.tensor(0.5)))
    precision = 1 + (LOADING**2).sum() / NOISE**2
    loc = ((x - 0.5) @ LOADING / NOISE**2 / precision)[:, None]
    with pyro.plate("data", len(x), dim=-2):
        pyro.sample("z", dist.Normal(loc, 1.2 * precision**-0.5))


@pytest.mark.parametrize(("draws", "num"), [("model", 2 * S), ("guide", S)])
def test_pixels_of_one_code_are_one_datum(draws, num):
    x = torch.tensor([[0.2, 0.9, -0.4], [1.4, 0.1, 2.5]])
    found = log_predictive_density(
        pixels, pixel_encoder, x, num_samples=num, seed=0, local_draws=draws
    )
    assert found.pointwise.shape == (2,)
    assert within(found, exact_codes(x))


@pytest.mark.parametrize("make", [AutoNormal, AutoMultivariateNormal, ibvi.AutoMuPNormal])
def test_fresh_data_of_another_size_than_the_training_rows(make):
    """One effect for each row of the training set, fitted to that row."""

    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(mean, 1.0))
            pyro.sample("y", dist.Normal(z, 0.5), obs=y)

    guide = make(model)
    guide(torch.zeros(30))
    low, high = (float(q) for q in guide.quantiles([0.5, 0.84134474])["mean"])
    for fresh in (torch.linspace(-1, 1, 5), torch.linspace(-1, 1, 30)):
        expected = stats.norm(low, ((high - low) ** 2 + 1.25) ** 0.5).logpdf(fresh.numpy())
        found = log_predictive_density(model, guide, fresh, num_samples=2 * S, seed=0)
        assert within(found, expected, most=4.0)  # of 30 data
        assert found.averaged == ("z",)


def test_a_mixture_of_codes_is_summed_and_averaged():
    """A label that is summed out, above a code that is drawn for each of its states."""

    def model(y):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            mark = {"enumerate": "parallel"}
            label = pyro.sample("label", dist.Categorical(PROBS), infer=mark)
            z = pyro.sample("z", dist.Normal(LOCS[label], 0.4))
            pyro.sample("y", dist.Normal(z + shift, 0.3), obs=y)

    def guide(y):
        shared_guide()
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(0.8 * y, 0.5))

    expected = exact_mixture(FRESH[1:], draws_of(guide, "shift", S, FRESH[1:]))
    for local_draws in ("model", "guide"):
        found = log_predictive_density(
            model, guide, FRESH[1:], num_samples=S, seed=0, local_draws=local_draws
        )
        assert found.summed == ("label",)
        assert found.averaged == ("z",)
        assert within(found, expected)


def test_two_sites_of_one_datum_are_scored_together():
    def model(a, b):
        with pyro.plate("data", len(a)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("a", dist.Normal(z, 0.5), obs=a)
            pyro.sample("b", dist.Normal(-z, 0.5), obs=b)

    def guide(a, b):
        with pyro.plate("data", len(a)):
            pyro.sample("z", dist.Normal((a - b) / 2.25, 0.4))

    a, b = torch.tensor([0.5, 1.0]), torch.tensor([-0.4, 0.3])
    joint = stats.multivariate_normal(np.zeros(2), [[1.25, -1.0], [-1.0, 1.25]])
    found = log_predictive_density(model, guide, a, b, num_samples=S, seed=0, local_draws="guide")
    assert within(found, joint.logpdf(torch.stack([a, b], -1).numpy()))
    alone = log_predictive_density(model, guide, a, b, num_samples=2 * S, seed=0, site="b")
    assert within(alone, stats.norm(0, 1.25**0.5).logpdf(b.numpy()))


def test_groups_that_the_fit_knows_are_given():
    """Effects of groups with several data each belong to no single datum."""

    def model(group, y):
        with pyro.plate("group", 3):
            effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(effect[group], 0.5), obs=y)

    def guide(group, y):
        with pyro.plate("group", 3):
            pyro.sample("effect", dist.Delta(torch.tensor([-1.0, 0.0, 2.0])))

    group, y = torch.tensor([0, 2]), torch.tensor([0.3, 1.0])
    found = log_predictive_density(model, guide, group, y, num_samples=1)
    expected = dist.Normal(torch.tensor([-1.0, 2.0]), 0.5).log_prob(y)
    np.testing.assert_allclose(found.pointwise, expected, rtol=1e-6)
    assert found.given == ("effect",)
    new = log_predictive_density(model, guide, group, y, num_samples=S, seed=0, local=["eff*"])
    assert new.averaged == ("effect",)
    assert within(new, stats.norm(0, 1.25**0.5).logpdf(y.numpy()))


def test_a_name_is_no_pattern_of_another():
    """A name that is a pattern too chooses the site that has it, and no other."""

    def model(y):
        shared = [pyro.sample(name, dist.Normal(0.0, 1.0)) for name in ("z[0]", "z0")]
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(sum(shared), 0.5), obs=y)

    def guide(y):
        for name in ("z[0]", "z0"):
            pyro.sample(name, dist.Normal(0.0, 0.1))

    found = log_predictive_density(model, guide, FRESH, num_samples=4, local=["z[0]"])
    assert (found.given, found.averaged) == (("z0",), ("z[0]",))
    found = log_predictive_density(model, guide, FRESH, num_samples=4, local=["z*"])
    assert found.averaged == ("z0", "z[0]")


def test_what_cannot_be_integrated_is_named():
    def improper(y):
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.ImproperUniform(dist.constraints.real, (), ()))
            pyro.sample("y", dist.Normal(z, 0.5), obs=y)

    def guide(y):
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(y, 1.0))

    with pytest.raises(ValueError, match="'z' belongs to single data, and its prior cannot be"):
        log_predictive_density(improper, guide, FRESH)

    def point(y):
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Delta(y))

    def proper(y):
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 0.5), obs=y)

    with pytest.raises(ValueError, match="'z' cannot be weighted: the guide has no density for"):
        log_predictive_density(proper, point, FRESH, local_draws="guide")
    with pytest.raises(ValueError, match=r"local names 'w'; the latent sites are \['z'\]"):
        log_predictive_density(proper, guide, FRESH, local=["w"])
    with pytest.raises(ValueError, match="local_draws must be 'model' or 'guide', got 'prior'"):
        log_predictive_density(proper, guide, FRESH, local_draws="prior")


def test_a_shared_site_that_has_seen_the_data_is_named():
    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, 0.5), obs=y)

    def guide(y):
        pyro.sample("mean", dist.Normal(y.mean(), 0.1))

    with pytest.raises(ValueError, match="draws 'mean', which all data share, from the data that"):
        log_predictive_density(model, guide, FRESH)


def test_a_guide_of_fixed_size_gives_what_it_draws_first():
    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(mean, 1.0))
            pyro.sample("y", dist.Normal(z, 0.5), obs=y)

    def guide(y, late=False):
        with pyro.plate("data", len(y)):
            if late:
                pyro.sample("z", dist.Normal(torch.zeros(30), 0.1))
        pyro.sample("mean", dist.Delta(torch.tensor(0.5)))
        with pyro.plate("data_", len(y)):
            if not late:
                pyro.sample("z", dist.Normal(torch.zeros(30), 0.1))

    found = log_predictive_density(model, guide, FRESH[1:], num_samples=2 * S, seed=0)
    assert within(found, stats.norm(0.5, 1.25**0.5).logpdf(FRESH[1:].numpy()))
    with pytest.raises(ValueError, match="fails on these data before it has drawn 'mean'"):
        log_predictive_density(model, lambda y: guide(y, late=True), FRESH)
