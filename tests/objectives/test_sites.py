"""What kind a site is: data, computed values, latents, whatever handlers made of them."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.transforms import Permute
from pyro.infer import reparam
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal, AutoStructured
from pyro.poutine.messenger import Messenger

from pyro_ibvi.objectives.sites import computed_sites, guide_kind, model_kind, sample_sites

Y = torch.tensor([0.3, -0.2, 0.7, 0.1])


def _latent(fn):
    """A model that observes a function of one latent ``x``, and any data."""

    def model(y):
        x = pyro.sample("x", fn)
        loc = x.flatten().sum()
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    return model


def _vector(**kwargs):
    return dist.Normal(torch.zeros(4), torch.ones(4), **kwargs).to_event(1)


def _neutra(model):
    guide = AutoDiagonalNormal(model, init_scale=0.1)
    guide(Y)
    return reparam.NeuTraReparam(guide).reparam(model)


def _structured(conditional):
    def wrap(model):
        guide = AutoStructured(model, conditionals=conditional, dependencies={})
        guide(Y)
        return reparam.StructuredReparam(guide).reparam(model)

    return wrap


def _by(rep):
    return lambda model: poutine.reparam(model, config={"x": rep})


LOG_NORMAL = dist.LogNormal(torch.zeros(4), torch.ones(4)).to_event(1)
STABLE = dist.Stable(torch.tensor(1.5), torch.tensor(0.5), torch.tensor(1.0))
PERMUTE = Permute(torch.tensor([2, 0, 1, 3]))

#: Latent sites and what takes them apart: every reparametrizer that leaves a computed value.
LATENTS = {
    "loc-scale": (_vector(), _by(reparam.LocScaleReparam(0.0))),
    "loc-scale-learned": (_vector(), _by(reparam.LocScaleReparam())),
    "transform": (LOG_NORMAL, _by(reparam.TransformReparam())),
    "split": (_vector(), _by(reparam.SplitReparam([1, 3], -1))),
    "discrete-cosine": (_vector(), _by(reparam.DiscreteCosineReparam())),
    "haar": (_vector(), _by(reparam.HaarReparam())),
    "unit-jacobian": (_vector(), _by(reparam.UnitJacobianReparam(PERMUTE))),
    "latent-stable": (STABLE, _by(reparam.LatentStableReparam())),
    "projected-normal": (
        dist.ProjectedNormal(torch.zeros(3)),
        _by(reparam.ProjectedNormalReparam()),
    ),
    "gumbel-softmax": (
        dist.RelaxedOneHotCategorical(torch.tensor(0.5), logits=torch.zeros(3)),
        _by(reparam.GumbelSoftmaxReparam()),
    ),
    "conjugate": (
        dist.Gamma(2.0, 1.0),
        _by(reparam.ConjugateReparam(dist.Gamma(torch.tensor(3.0), torch.tensor(1.0)))),
    ),
    "neutra": (_vector(), _neutra),
    "structured-normal": (_vector(), _structured("normal")),
    "auto": (LOG_NORMAL, lambda model: poutine.reparam(model, config=reparam.AutoReparam())),
    "minimal": (STABLE, lambda model: poutine.reparam(model, config=reparam.MinimalReparam())),
}


class DrawImproper(Messenger):
    """Draws the improper parts of a split site from elsewhere, as a guide would."""

    def _pyro_sample(self, msg):
        if isinstance(msg["fn"], dist.ImproperUniform) and msg["value"] is None:
            msg["value"] = torch.randn(msg["fn"].shape())


def _kinds(model, *, grad=True, guide_names=()):
    with torch.set_grad_enabled(grad):
        trace = poutine.trace(DrawImproper()(model)).get_trace(Y)
        computed = computed_sites(model, trace, (Y,), {})
    return {
        name: model_kind(site, guide_names, computed)
        for name, site in sample_sites(trace)
        if not poutine.util.site_is_subsample(site)
    }


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", LATENTS)
def test_what_a_reparametrizer_leaves_is_computed(name, grad):
    fn, wrap = LATENTS[name]
    kinds = _kinds(wrap(_latent(fn)), grad=grad)
    assert kinds.pop("y") == "observed"
    assert kinds.pop("x") == "deterministic"
    parts = {"x_base": "deterministic"} if name == "auto" else {}
    assert {site: parts.get(site, "predicted") for site in kinds} == kinds


@pytest.mark.parametrize(
    ("fn", "rep"),
    [
        (STABLE.expand([4]).to_event(1), reparam.StableReparam()),
        (dist.Stable(1.5, 0.0, 1.0).expand([4]).to_event(1), reparam.SymmetricStableReparam()),
        (dist.StudentT(3.0, torch.zeros(4), 1.0).to_event(1), reparam.StudentTReparam()),
    ],
    ids=["stable", "symmetric-stable", "student"],
)
def test_data_given_auxiliary_variables_stay_data(fn, rep):
    def model(y):
        pyro.sample("y", fn, obs=y)

    kinds = _kinds(poutine.reparam(model, config={"y": rep}))
    assert kinds.pop("y") == "observed"
    assert set(kinds.values()) == {"predicted"}


def test_a_hidden_markov_model_with_heavy_tails_stays_data():
    hmm = dist.LinearHMM(
        dist.Normal(torch.zeros(1), 1.0).to_event(1),
        torch.eye(1),
        dist.Normal(torch.zeros(1), 1.0).to_event(1),
        torch.eye(1),
        dist.Stable(torch.tensor([1.5]), torch.tensor([0.5])).to_event(1),
        duration=4,
    )

    def model(y):
        pyro.sample("y", hmm, obs=y.unsqueeze(-1))

    rep = reparam.LinearHMMReparam(obs=reparam.StableReparam())
    kinds = _kinds(poutine.reparam(model, config={"y": rep}))
    assert kinds.pop("y") == "observed"
    assert set(kinds.values()) == {"predicted"}


def test_a_site_fixed_at_a_point_estimate_is_conditioned_on():
    kinds = _kinds(_structured("delta")(_latent(_vector())))  # as poutine.condition would have it
    assert kinds == {"x": "observed", "y": "observed"}


@pytest.mark.parametrize("grad", [True, False])
def test_a_point_mass_on_data_is_data_and_one_on_a_draw_is_not(grad):
    def model(y):
        k = pyro.sample("k", dist.Bernoulli(0.5))
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        own_density = dist.Normal(w, 1.0).log_prob(y)  # how one writes a likelihood of one's own
        pyro.sample("y", dist.Delta(y, own_density), obs=y)
        pyro.sample("step", dist.Delta((w > 0).float()), obs=(w > 0).float())
        pyro.sample("label", dist.Delta(2 * k), obs=2 * k)
        pyro.deterministic("twice", 2 * w)

    kinds = _kinds(model, grad=grad, guide_names=["w"])
    assert kinds == {
        "k": "predicted",
        "w": "latent",
        "y": "observed",
        "step": "deterministic",
        "label": "deterministic",
        "twice": "deterministic",
    }


def test_looking_leaves_random_state_and_statistics_alone():
    norm = torch.nn.BatchNorm1d(3)

    def model(y):  # a function: nothing but running it leads to the network
        w = pyro.sample("w", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
        value = norm(w)
        pyro.sample("value", dist.Delta(value, event_dim=2), obs=value)

    with torch.no_grad():
        trace = poutine.trace(model).get_trace(Y)
        before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
        state = torch.get_rng_state()
        assert computed_sites(model, trace, (Y,), {}) == {"value"}
    assert torch.equal(torch.get_rng_state(), state)
    for name, buffer in norm.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_sites_of_a_guide():
    def model(y):
        pyro.sample("x", dist.LogNormal(0.0, 1.0))
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=y[0])

    guide = AutoNormal(model)
    guide(Y)
    model_trace = poutine.trace(model).get_trace(Y)
    guide_trace = poutine.trace(guide).get_trace(Y)
    kinds = {n: guide_kind(site, model_trace.nodes) for n, site in sample_sites(guide_trace)}
    assert kinds == {"x_unconstrained": "auxiliary", "x": "latent"}
