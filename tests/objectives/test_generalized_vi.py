"""The explicit penalty: its closed forms against torch's own and against dense ones."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.infer import TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoNormal
from torch.distributions import Independent, MultivariateNormal, constraints, kl_divergence

from pyro_ibvi import AutoMuPNormal
from pyro_ibvi.diagnostics.objective_report import explain
from pyro_ibvi.objectives.expected_log_likelihood import TraceExpectedLogLikelihood
from pyro_ibvi.objectives.generalized_vi import TraceGeneralizedVI
from pyro_ibvi.objectives.penalty import DivergencePenalty
from pyro_ibvi.theory.divergences import wasserstein2_squared
from tests.objectives.zoo import Case, assert_same, loss_and_grads, make_case

pytestmark = pytest.mark.usefixtures("double")
Y = torch.linspace(-1.0, 2.0, 3, dtype=torch.float64)


def model(y):
    w = pyro.sample("w", dist.Normal(torch.tensor([0.5, -1.0]), 2.0).to_event(1))
    b = pyro.sample("b", dist.Normal(0.3, 0.7))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(w.sum(-1) + b, 1.0), obs=y)


def built(fn=model, guide=AutoNormal, **options):
    guide = guide(fn, **options)
    guide(Y)
    return Case(fn, guide, (Y,))


def penalty(case, **options):
    """The penalty alone: a loss with it less the loss without, under the same draws."""
    free = loss_and_grads(TraceGeneralizedVI(weight=0.0, **options), case)
    full = loss_and_grads(TraceGeneralizedVI(weight=1.0, **options), case)
    return full[0] - free[0], {name: full[1][name] - free[1][name] for name in full[1]}


PARTICLES = [{}, {"num_particles": 3}, {"num_particles": 3, "vectorize_particles": True}]


class PlainNormal(AutoNormal):
    """The guide of `AutoNormal` without auxiliary sites; it has the same parameters and draws."""

    def forward(self, *args):
        if self.prototype_trace is None:
            self._setup_prototype(*args)
        for name in self._event_dims:
            fn = dist.Normal(*self._get_loc_and_scale(name)).to_event(self._event_dims[name])
            pyro.sample(name, fn)


PlainNormal.__name__ = "AutoNormal"  # the prefix of the parameters' names


@pytest.mark.parametrize("options", PARTICLES)
def test_kl_is_the_analytic_elbo(options):
    plain = built(guide=PlainNormal, init_scale=0.4)
    expected = loss_and_grads(TraceMeanField_ELBO(**options), plain)
    for case in (plain, built(init_scale=0.4)):
        actual = loss_and_grads(TraceGeneralizedVI(divergence="kl", **options), case)
        assert_same(actual, expected)


@pytest.mark.parametrize("options", PARTICLES)
def test_wasserstein_distance_of_independent_normals(options):
    case = built(init_scale=0.4)
    value, grads = penalty(case, divergence="wasserstein2", **options)
    loc = {name: case.guide.median()[name] for name in "wb"}
    expected = (loc["w"] - torch.tensor([0.5, -1.0])).square().sum() + 2 * (0.4 - 2.0) ** 2
    expected += (loc["b"] - 0.3).square() + (0.4 - 0.7) ** 2
    assert value == pytest.approx(expected.item(), rel=1e-10)
    slope = 2 * (loc["b"] - 0.3)
    torch.testing.assert_close(grads["AutoNormal.locs.b"], slope, rtol=1e-9, atol=1e-12)


class LowRank:
    def rows(self, factor, layer_factor=None, loc=None):
        return factor.reshape(-1, factor.shape[-1])


class Twisted:
    """A structure whose factors only it can read."""

    def rows(self, factor, layer_factor=None, loc=None):
        return factor.mT


class Factored(TorchDistribution):
    """A low-rank Gaussian that shares its noise between sites, without a density."""

    arg_constraints = {}  # noqa: RUF012
    support = constraints.real
    has_rsample = True

    def __init__(self, loc, factor, covariance, shared=None, noise=None):
        self.loc, self.factor, self.covariance, self.shared = loc, factor, covariance, shared
        self.noise, self.layer_factor = noise, None
        super().__init__(loc.shape[:0], loc.shape, validate_args=False)

    def expand(self, batch_shape, _instance=None):
        new = Factored.__new__(Factored)
        new.__dict__.update(self.__dict__)
        new._batch_shape = torch.Size(batch_shape)
        return new

    def rsample(self, sample_shape=()):
        noise = torch.randn(*sample_shape, *self.batch_shape, self.factor.shape[-1])
        return self.loc + (self.factor @ noise.unsqueeze(-1)).squeeze(-1)


def layer_model(y):
    weight = pyro.sample("weight", dist.Normal(0.0, 1.5).expand([2, 2]).to_event(2))
    bias = pyro.sample("bias", dist.Normal(torch.tensor([0.2, 0.1]), 0.5).to_event(1))
    with pyro.plate("data", len(y)):
        loc = weight.sum((-2, -1)) + bias.sum(-1)
        pyro.sample("y", dist.Normal(loc, 1.0), obs=y)


def layer_guide(y, rank=2, shared=True):
    generator = torch.Generator().manual_seed(rank)
    draw = [torch.randn(s, generator=generator) for s in ((2, 2), (2, 2, rank), (2,), (2, rank))]
    loc_w, factor_w, loc_b, factor_b = (pyro.param(f"p{i}", value) for i, value in enumerate(draw))
    noise = object() if shared else None
    pyro.sample("weight", Factored(loc_w, factor_w, LowRank(), noise))
    pyro.sample("bias", Factored(loc_b, factor_b, LowRank(), noise))


@pytest.mark.parametrize("options", PARTICLES)
@pytest.mark.parametrize("rank", [1, 2, 8])
def test_wasserstein_distance_of_a_layer_that_shares_noise(rank, options):
    case = Case(layer_model, lambda y: layer_guide(y, rank), (Y,))
    value, _ = penalty(case, **options)
    p = [pyro.param(f"p{i}").detach() for i in range(4)]
    loc = torch.cat([p[0].reshape(-1), p[2]])
    factor = torch.cat([p[1].reshape(4, rank), p[3]])
    prior_loc = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.2, 0.1])
    prior_scale = torch.tensor([1.5, 1.5, 1.5, 1.5, 0.5, 0.5])
    # The textbook formula: tr A + tr B - 2 tr (B^1/2 A B^1/2)^1/2, B diagonal.
    covariance = factor @ factor.mT
    root = prior_scale.unsqueeze(-1) * covariance * prior_scale
    cross = torch.linalg.eigvalsh(root).clamp_min(0).sqrt().sum()
    expected = (loc - prior_loc).square().sum() + covariance.trace() - 2 * cross
    expected += prior_scale.square().sum()
    assert value == pytest.approx(expected.item(), rel=1e-6)
    apart = Case(layer_model, lambda y: layer_guide(y, rank, shared=False), (Y,))
    assert penalty(apart, **options)[0] < value - 1e-3  # marginals are nearer than the joint


@pytest.mark.parametrize("options", PARTICLES)
def test_kl_of_a_full_factor_equals_the_dense_form(options):
    case = Case(layer_model, lambda y: layer_guide(y, 8), (Y,))
    value, _ = penalty(case, divergence="kl", **options)
    p = [pyro.param(f"p{i}").detach() for i in range(4)]
    factor = torch.cat([p[1].reshape(4, 8), p[3]])
    posterior = MultivariateNormal(torch.cat([p[0].reshape(-1), p[2]]), factor @ factor.mT)
    prior_loc = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.2, 0.1])
    scale = torch.tensor([1.5, 1.5, 1.5, 1.5, 0.5, 0.5])
    expected = kl_divergence(posterior, MultivariateNormal(prior_loc, scale.square().diag()))
    assert value == pytest.approx(expected.item(), rel=1e-8)


def test_kl_of_a_degenerate_covariance_is_refused():
    case = Case(layer_model, lambda y: layer_guide(y, 2), (Y,))
    with pytest.raises(ValueError, match="has rank at most 2 in 6 dimensions"):
        loss_and_grads(TraceGeneralizedVI(divergence="kl"), case)


@pytest.mark.parametrize("divergence", ["kl", "wasserstein2"])
@pytest.mark.parametrize("dense_prior", [False, True])
@pytest.mark.parametrize("dense_guide", [False, True])
def test_multivariate_normals(dense_guide, dense_prior, divergence):
    cov = torch.tensor([[1.0, 0.3], [0.3, 0.8]])
    dense = dist.MultivariateNormal(torch.tensor([0.1, -0.2]), cov)
    diagonal = dist.Normal(torch.tensor([0.4, 0.0]), torch.tensor([0.5, 1.1])).to_event(1)
    p = dense if dense_prior else diagonal
    q = (
        dist.MultivariateNormal(torch.ones(2), 2 * cov.diag().diag() + 0.1)
        if dense_guide
        else (dist.Normal(torch.ones(2), 0.3).to_event(1))
    )

    def fn(y):
        w = pyro.sample("w", p)
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(w.sum(-1), 1.0), obs=y)

    def guide(y):
        pyro.sample("w", q)

    value, _ = penalty(Case(fn, guide, (Y,)), divergence=divergence)
    p, q = (MultivariateNormal(d.mean, _dense(d)) for d in (p, q))
    if divergence == "kl":
        expected = kl_divergence(q, p)
    else:
        expected = wasserstein2_squared(q.loc, q.scale_tril, p.loc, p.scale_tril)
    assert value == pytest.approx(expected.item(), rel=1e-8)


def _dense(fn):
    is_diagonal = isinstance(fn, Independent)
    return fn.variance.diag() if is_diagonal else fn.covariance_matrix


def test_a_structure_of_its_own():
    factor = torch.tensor([[1.0, 0.2], [0.0, 0.7], [0.3, 0.3]])

    def fn(y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("y", dist.Normal(w.sum(-1), 1.0).expand([3]).to_event(1), obs=y)

    class Draws(Factored):
        def rsample(self, sample_shape=()):
            return self.loc.clone()

    def guide(y):
        pyro.sample("w", Draws(torch.ones(2), factor, Twisted()))

    value, _ = penalty(Case(fn, guide, (Y,)))
    covariance = factor.mT @ factor
    expected = 2 + covariance.trace() + 2 - 2 * torch.linalg.eigvalsh(covariance).sqrt().sum()
    assert value == pytest.approx(expected.item(), rel=1e-6)


def test_plates_and_scales_multiply_the_divergence():
    def fn(y):
        with poutine.scale(scale=3.0), pyro.plate("groups", 4, dim=-2):
            b = pyro.sample("b", dist.Normal(0.3, 0.7))
        with pyro.plate("data", len(y), dim=-1):
            pyro.sample("y", dist.Normal(b.sum(), 1.0), obs=y)

    case = built(fn, init_scale=0.4)
    loc = case.guide.median()["b"]
    expected = 3.0 * ((loc - 0.3).square() + (0.4 - 0.7) ** 2).sum()
    assert penalty(case)[0] == pytest.approx(expected.item(), rel=1e-10)
    assert penalty(case, reduction="mean")[0] == pytest.approx(expected.item() / 3, rel=1e-10)


def test_hierarchical_priors_use_the_current_draw():
    def fn(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        w = pyro.sample("w", dist.Normal(mu, 0.5))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(w, 1.0), obs=y)

    expected = loss_and_grads(TraceMeanField_ELBO(), built(fn, PlainNormal))
    assert_same(loss_and_grads(TraceGeneralizedVI(divergence="kl"), built(fn)), expected)


def test_point_estimates_have_a_distance():
    case = built(guide=AutoDelta)
    medians = case.guide.median()
    expected = (medians["w"] - torch.tensor([0.5, -1.0])).square().sum() + 2 * 4.0
    expected += (medians["b"] - 0.3).square() + 0.49
    assert penalty(case)[0] == pytest.approx(expected.item(), rel=1e-10)
    with pytest.raises(ValueError, match="'w' from Delta, which has no closed-form kl"):
        loss_and_grads(TraceGeneralizedVI(divergence="kl"), case)


def test_a_positive_latent_is_told_to_become_normal_and_transformed():
    """The remedy has the divergence that torch has for the law on the latent's own scale."""

    def scaled(y, s):
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(0.0, s), obs=y)

    def positive(y):
        scaled(y, pyro.sample("s", dist.LogNormal(0.0, 1.0)))

    def transformed(y):
        scaled(y, pyro.sample("z", dist.Normal(0.0, 1.0)).exp())

    with pytest.raises(ValueError, match=r"'s' from .*Use a Normal latent and transform it"):
        TraceGeneralizedVI(divergence="kl").loss(*built(positive, AutoMuPNormal)[:2], Y)
    guide = built(transformed, AutoMuPNormal).guide
    losses = []
    for weight in (0.0, 1.0):
        pyro.set_rng_seed(0)
        loss = TraceGeneralizedVI(divergence="kl", weight=weight, max_plate_nesting=1)
        losses.append(loss.loss(transformed, guide, Y))
    law = dist.LogNormal(guide.loc("z"), guide.scale("z"))
    expected = kl_divergence(law, dist.LogNormal(0.0, 1.0)).item()
    assert losses[1] - losses[0] == pytest.approx(expected, rel=1e-8)


def test_weight_zero_is_the_expected_log_likelihood_and_may_change():
    case, loss = built(), TraceGeneralizedVI(weight=0.0)
    free = loss_and_grads(TraceExpectedLogLikelihood(), case)
    assert_same(loss_and_grads(loss, case), free, exact=True)
    loss.weight = 0.25
    quarter = loss_and_grads(loss, case)[0]
    assert quarter - free[0] == pytest.approx(0.25 * penalty(case)[0], rel=1e-10)


def test_the_penalty_moves_what_the_likelihood_does_not():
    def fn(y):
        tau = pyro.sample("tau", dist.Normal(1.0, 0.1))
        w = pyro.sample("w", dist.Normal(0.0, tau.exp()))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(w, 1.0), obs=y)

    case = built(fn)
    assert explain(TraceGeneralizedVI(weight=0.0), *case[:2], Y).unmoved[0] == "tau"
    assert explain(TraceGeneralizedVI(), *case[:2], Y).unmoved == ()
    with pytest.warns(UserWarning, match=r"cannot move the latent sites \['tau'\]"):
        loss_and_grads(TraceGeneralizedVI(weight=0.0), case)
    _, grads = loss_and_grads(TraceGeneralizedVI(), case)
    assert grads["AutoNormal.locs.tau"] != 0


def test_what_is_not_gaussian_is_refused():
    def positive(y):
        w = pyro.sample("w", dist.LogNormal(0.0, 1.0))
        pyro.sample("y", dist.Normal(w, 1.0), obs=y[0])

    with pytest.raises(ValueError, match=r"The guide draws 'w' from Delta.*AutoNormal"):
        loss_and_grads(TraceGeneralizedVI(), built(positive))
    with pytest.raises(ValueError, match=r"The guide draws 'w' from Delta.*AutoNormal"):
        loss_and_grads(TraceGeneralizedVI(), built(guide=AutoDiagonalNormal))
    with pytest.raises(ValueError, match="The guide draws 'k' from Bernoulli"):
        loss_and_grads(TraceGeneralizedVI(), make_case("discrete"))

    def heavy(y):
        w = pyro.sample("w", dist.Cauchy(0.0, 1.0))
        pyro.sample("y", dist.Normal(w, 1.0), obs=y[0])

    with pytest.raises(ValueError, match=r"The prior of 'w' is Cauchy.*must be Normal"):
        loss_and_grads(TraceGeneralizedVI(), built(heavy))

    def masked(y):
        with pyro.plate("data", len(y)), poutine.mask(mask=y > 0):
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(w, 1.0), obs=y)

    with pytest.raises(ValueError, match=r"latent sites \['w'\] are masked"):
        loss_and_grads(TraceGeneralizedVI(), built(masked))


def test_options_must_be_known():
    with pytest.raises(ValueError, match="divergence='w2': expected 'wasserstein2'"):
        TraceGeneralizedVI(divergence="w2")
    for weight in (-1.0, math.nan):
        with pytest.raises(ValueError, match=r"weight=.*expected a finite number of at least 0"):
            TraceGeneralizedVI(weight=weight)
    with pytest.raises(TypeError, match="weight=True: expected a number, got bool"):
        TraceGeneralizedVI(weight=True)


def test_the_weight_is_that_of_the_penalty_whatever_holds_it():
    loss = TraceExpectedLogLikelihood(penalty=DivergencePenalty(weight=0.5))
    loss.weight = 0.25
    assert loss.weight == loss.penalty.weight == 0.25
    plain = TraceExpectedLogLikelihood()
    assert not hasattr(plain, "weight")
    with pytest.raises(AttributeError, match=r"no penalty .*penalty=DivergencePenalty"):
        plain.weight = 0.5
