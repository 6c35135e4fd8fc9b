"""The start has the prior's standard deviation in unconstrained space, whatever its size."""

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import init_to_median, init_to_sample, init_to_value

import pyro_ibvi as ibvi
from pyro_ibvi import AutoMuPNormal, Diagonal, TraceExpectedLogLikelihood
from pyro_ibvi.guides import start


def start_of(prior):
    def model():
        pyro.sample("x", prior)

    torch.manual_seed(0)
    return AutoMuPNormal(model, covariance=Diagonal()).scale("x")


def test_a_large_prior_of_one_distribution_is_estimated_as_one():
    scale = start_of(dist.HalfNormal(1.0).expand([1000, 2000]).to_event(2))
    # log |z| of a standard normal z has the standard deviation pi / sqrt(8).
    torch.testing.assert_close(
        scale, torch.full((1000, 2000), math.pi / 8**0.5), rtol=0.1, atol=0.0
    )


def test_a_large_prior_of_one_distribution_in_memory_of_its_own():
    scale = start_of(dist.HalfNormal(torch.full((2000, 500), 0.3)).to_event(2))
    assert scale.unique().numel() == 1
    assert scale[0, 0].item() == pytest.approx(math.pi / 8**0.5, rel=0.1)


def test_distributions_of_one_prior_are_told_apart():
    concentration = torch.tensor([0.5, 2.0, 8.0])[:, None].expand(3, 100_000)
    scale = start_of(dist.Gamma(concentration, 1.0).to_event(2))
    # The logarithm of a Gamma variable has the variance trigamma(concentration).
    expected = torch.polygamma(1, concentration).sqrt()
    torch.testing.assert_close(scale, expected, rtol=0.1, atol=0.0)


def test_very_many_different_distributions_are_estimated_with_the_stated_error(monkeypatch):
    monkeypatch.setattr(start, "_MAX_DRAWN_ENTRIES", 10**6)
    concentration = torch.linspace(1.0, 4.0, 40_000)
    scale = start_of(dist.Gamma(concentration, 1.0).to_event(1)).detach()
    ratio = scale / torch.polygamma(1, concentration).sqrt()
    assert ratio.min() > 0.4
    # A little above that of Gaussian draws, since log-Gamma variables have heavier tails.
    assert ratio.std() == pytest.approx((2 * 30) ** -0.5, rel=0.3)


def test_simplices_and_bounded_supports_are_estimated_per_distribution():
    scale = start_of(dist.Dirichlet(torch.full((4, 50, 3), 2.0)).to_event(2))
    assert scale.shape == (4, 50, 2)
    assert (scale[0, 0] == scale).all()
    scale = start_of(dist.Uniform(torch.zeros(7), torch.arange(1.0, 8.0)).to_event(1))
    # The logit of a uniform variable has the standard deviation pi / sqrt(3).
    torch.testing.assert_close(scale, torch.full((7,), math.pi / 3**0.5), rtol=0.1, atol=0.0)


def test_a_factor_that_fills_memory_is_told_of_before_it_does(monkeypatch):
    monkeypatch.setattr("pyro_ibvi.guides.start._LARGE", 4 * 40 * 8 * 5)
    net = torch.nn.Sequential(torch.nn.Embedding(40, 8), torch.nn.Linear(8, 2))
    model = ibvi.SupervisedModel(
        ibvi.RandomModule(net, stochastic="input weights"), ibvi.Categorical()
    )
    with pytest.warns(UserWarning, match=r"'net\.0\.weight' has 5 numbers .* 320 weights"):
        ibvi.AutoMuPNormal(model, covariance=ibvi.LowRank(5))
    ibvi.AutoMuPNormal(model, covariance=ibvi.LowRank(4))
    ibvi.AutoMuPNormal(model, covariance=ibvi.Diagonal())


@pytest.mark.parametrize(
    ("concentration", "init_loc_fn"),
    [
        (0.1, init_to_sample),
        *itertools.product([0.02, 1e-3, 1e-12], [init_to_sample, init_to_median]),
    ],
)
def test_a_prior_beyond_what_numbers_hold_is_left_for_a_start_inside(concentration, init_loc_fn):
    y = torch.tensor([-3.0, 1.0, 2.0, 0.5])

    def model():
        priors = dist.Gamma(torch.tensor([concentration, 2.0]), 1.0)
        precision, _ = pyro.sample("precision", priors.to_event(1))
        with pyro.plate("data", 4):
            pyro.sample("y", dist.Normal(0.0, precision**-0.5), obs=y)

    pyro.set_rng_seed(0)
    with pytest.warns(UserWarning, match=r"'precision'\] reach over more orders of magnitude"):
        guide = AutoMuPNormal(model, covariance=Diagonal(), init_loc_fn=init_loc_fn)
    assert guide.loc("precision")[0] == 0.0
    assert guide.scale("precision")[0] == 1.0
    # The other is where its prior is: log Gamma(2) has the variance trigamma(2).
    spread = torch.special.polygamma(1, torch.tensor(2.0)).sqrt()
    torch.testing.assert_close(guide.scale("precision")[1].detach(), spread, rtol=0.1, atol=0.0)
    assert guide.loc("precision")[1] != 0.0
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), TraceExpectedLogLikelihood())
    for _ in range(800):
        svi.step()
    best = 1 / y.square().mean()  # maximum likelihood, where the objective goes without a KL
    assert guide.median()["precision"][0].item() == pytest.approx(best.item(), rel=0.15)


@pytest.mark.parametrize("value", [5e-4, 1e-12])
def test_a_start_that_is_given_stands_whatever_the_prior(value):
    def model():
        pyro.sample("rate", dist.Gamma(1e-3, 1e-3))

    start_at = init_to_value(values={"rate": value})
    with pytest.warns(UserWarning, match=r"'rate'\] reach over"):
        guide = AutoMuPNormal(model, covariance=Diagonal(), init_loc_fn=start_at)
    assert guide.median()["rate"].item() == pytest.approx(value)


def test_the_median_of_a_wide_prior_stands_where_it_is_near():
    def model():
        pyro.sample("rate", dist.LogNormal(-5.0, 6.0))

    pyro.set_rng_seed(0)
    with pytest.warns(UserWarning, match=r"'rate'\] reach over"):
        guide = AutoMuPNormal(model, init_loc_fn=init_to_median(num_samples=10_000))
    assert guide.loc("rate").item() == pytest.approx(-5.0, abs=0.5)


@pytest.mark.parametrize(
    "prior", [dist.LogNormal(0.0, 10.0), dist.InverseGamma(0.1, 0.1), dist.Beta(0.1, 0.1)]
)
def test_what_depends_on_a_prior_too_wide_starts_as_if_it_were_at_its_start(prior):
    def model():
        spread = pyro.sample("spread", prior)
        pyro.sample("effect", dist.Normal(torch.zeros(200), spread).to_event(1))

    pyro.set_rng_seed(0)
    with pytest.warns(UserWarning, match=r"'spread'\] reach over"):
        guide = AutoMuPNormal(model, covariance=Diagonal())
    middle = torch.distributions.biject_to(prior.support)(torch.tensor(0.0))
    torch.testing.assert_close(guide.median()["spread"], middle)
    torch.testing.assert_close(guide.scale("effect").detach(), middle.expand(200))
    assert guide.loc("effect").std().item() == pytest.approx(middle.item(), rel=0.2)


def test_a_draw_that_is_rounded_to_the_edge_of_its_support_starts_inside():
    def draw(site):  # as init_to_sample, which Pyro marks as given by no one
        value = site["fn"].sample()
        value[2] = 0.0
        value._pyro_custom_init = False
        return value

    def model():
        pyro.sample("x", dist.HalfNormal(torch.ones(5)).to_event(1))

    start_at = AutoMuPNormal(model, init_loc_fn=draw).loc("x")
    assert ((start_at == 0.0) == torch.tensor([False, False, True, False, False])).all()


def test_all_priors_too_wide_are_told_in_one_warning():
    def model():
        for i in range(3):
            pyro.sample(f"rate_{i}", dist.Gamma(0.01, 0.01))

    with pytest.warns(UserWarning, match="'rate_0', 'rate_1', 'rate_2'") as caught:
        AutoMuPNormal(model)
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("prior", "deviation"),
    [
        (dist.HalfCauchy(25.0), math.pi / 2),  # log |Cauchy| has a hyperbolic secant's law
        (dist.Beta(0.5, 0.5), math.pi),
        (dist.LogNormal(0.0, 3.0), 3.0),
        (dist.VonMises(0.0, 1e-3), math.pi / 3**0.5),  # nearly uniform on the circle
    ],
)
def test_usual_weak_priors_are_started_at(prior, deviation):
    assert start_of(prior).item() == pytest.approx(deviation, rel=0.1)


class Triangular(dist.TorchDistribution):
    """A law of one's own that does not say its support, nor what its parameters are."""

    def rsample(self, sample_shape=()):
        shape = torch.Size(sample_shape) + self.batch_shape
        return torch.rand(shape) + torch.rand(shape)

    def log_prob(self, value):
        return (1.0 - (value - 1.0).abs()).log()


def test_a_law_that_does_not_say_its_support_hears_how():
    def model():
        pyro.sample("x", Triangular(torch.Size([3]), validate_args=False).to_event(1))

    with pytest.raises(ValueError, match=r"'x', of law Triangular, does not say.*support = con"):
        AutoMuPNormal(model)
    Triangular.support = dist.constraints.interval(0.0, 2.0)
    guide = AutoMuPNormal(model)
    draws = torch.rand(10_000) + torch.rand(10_000)
    spread = (draws / (2.0 - draws)).log().std()  # in unconstrained space
    torch.testing.assert_close(guide.scale("x").detach(), spread.expand(3), rtol=0.15, atol=0.0)


def two_latents():
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("groups", 2):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    pyro.sample("y", dist.Normal(w.sum() + 0.0 * rate.sum(), 1.0), obs=torch.tensor(1.0))


@pytest.mark.parametrize(
    ("values", "w", "rate"),
    [
        ({"w": 0.5, "rate": 3}, [0.5] * 3, [3.0] * 2),
        ({"w": [0.0, 1.0, 2.0], "rate": np.array([1.5, 2.5])}, [0.0, 1.0, 2.0], [1.5, 2.5]),
        ({"w": torch.tensor([1, 2, 3]), "rate": torch.tensor(2.0)}, [1.0, 2.0, 3.0], [2.0] * 2),
        ({"w": torch.ones(1, 1, 3), "rate": torch.tensor([[1.5, 2.5]])}, [1.0] * 3, [1.5, 2.5]),
    ],
)
def test_starts_are_numbers_and_arrays_too(values, w, rate):
    guide = AutoMuPNormal(two_latents, init_loc_fn=init_to_value(values=values))
    torch.testing.assert_close(guide.median()["w"], torch.tensor(w))
    torch.testing.assert_close(guide.median()["rate"], torch.tensor(rate))
    assert guide.loc("w").dtype == torch.get_default_dtype()
    guide.loc("rate").data[0] = 7.0  # one number for each element
    assert guide.loc("rate")[1].exp().item() == pytest.approx(rate[1])


def test_a_start_of_another_shape_or_outside_of_the_support_is_named():
    start_at = init_to_value(values={"w": torch.zeros(2)})
    message = r"starts the latent site 'w' at a value of shape \(2,\), and it has the shape \(3,\)"
    with pytest.raises(ValueError, match=message):
        AutoMuPNormal(two_latents, init_loc_fn=start_at)
    for edge in (0.0, -1.0):
        start_at = init_to_value(values={"rate": edge})
        with pytest.raises(ValueError, match=r"'rate' outside or at the edge of its support"):
            AutoMuPNormal(two_latents, init_loc_fn=start_at)
