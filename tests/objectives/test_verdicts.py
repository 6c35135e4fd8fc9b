"""Verdicts are about the model, not about the batch that came first."""

import re
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.gp.kernels import RBF
from pyro.contrib.gp.likelihoods import Gaussian
from pyro.contrib.gp.models import VariationalSparseGP
from pyro.distributions.transforms import AffineTransform, affine_autoregressive
from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO, config_enumerate
from pyro.infer.autoguide import AutoNormal
from torch import nn

import pyro_ibvi as ibvi
from pyro_ibvi.objectives.expected_log_likelihood import TraceExpectedLogLikelihood
from pyro_ibvi.objectives.variants import TraceEnumExpectedLogLikelihood
from tests.objectives.zoo import PAIRS, Case, X, loss_and_grads

pytestmark = pytest.mark.usefixtures("double")


def messages(function):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function()
    return [str(warning.message) for warning in caught]


def semi_supervised(x, label=None):
    pyro.module("decoder", DECODER)
    with pyro.plate("data", len(x)):
        label = pyro.sample("label", dist.OneHotCategorical(torch.ones(2)), obs=label)
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        loc = label @ DECODER.weight[0, :2] + z * DECODER.weight[0, 2] + DECODER.bias
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


@config_enumerate
def classifier_guide(x, label=None):
    pyro.module("classifier", CLASSIFIER)
    pyro.module("encoder", ENCODER)
    with pyro.plate("data", len(x)):
        if label is None:
            label = pyro.sample(
                "label", dist.OneHotCategorical(logits=CLASSIFIER(x.unsqueeze(-1)))
            )
        pyro.sample("z", dist.Normal(ENCODER(x.unsqueeze(-1)).squeeze(-1), 1.0))


DECODER, CLASSIFIER, ENCODER = (
    nn.Linear(*sizes, dtype=torch.float64) for sizes in ((3, 1), (1, 2), (1, 1))
)
LABELS = torch.eye(2, dtype=torch.float64)[[0, 1, 1, 0]]


@pytest.mark.parametrize("batches", [(LABELS, None), (None, LABELS)])
def test_labels_may_be_data_in_one_batch_and_latent_in_another(batches):
    loss = TraceEnumExpectedLogLikelihood(keep_kl=["label", "z"], max_plate_nesting=1)

    def steps():
        for label in (*batches, *batches):
            ours = loss_and_grads(loss, Case(semi_supervised, classifier_guide, (X, label)))
            theirs = PAIRS["enum"][1](max_plate_nesting=1, strict_enumeration_warning=False)
            expected = loss_and_grads(theirs, Case(semi_supervised, classifier_guide, (X, label)))
            assert ours[0] == pytest.approx(expected[0], rel=1e-10)

    assert [m for m in messages(steps) if "cannot move" in m or "one value" in m] == []


def test_a_name_that_is_nowhere_is_still_an_error():
    loss = TraceEnumExpectedLogLikelihood(keep_kl=["lable"], max_plate_nesting=1)
    message = r"names 'lable', which fits no latent site of this batch.*lambda site"
    with pytest.raises(ValueError, match=message):
        loss.loss(semi_supervised, classifier_guide, X, LABELS)


def test_parameters_that_a_batch_does_not_use_are_not_judged():
    loss = TraceEnumExpectedLogLikelihood(
        allow_local=True, max_plate_nesting=1, strict_enumeration_warning=False
    )
    pair = (semi_supervised, classifier_guide)
    for label in (LABELS, None, LABELS):
        assert messages(lambda label=label: loss.loss_and_grads(*pair, X, label)) == []


def test_inducing_values_move_by_their_own_parameters():
    x = torch.linspace(-1.0, 1.0, 8, dtype=torch.float64)
    gp = VariationalSparseGP(
        x,
        torch.sin(3 * x),
        RBF(input_dim=1),
        x[::3].clone(),
        Gaussian(torch.tensor(0.1)),
        jitter=1e-5,
    ).double()
    loss = TraceExpectedLogLikelihood(allow_local=True)
    before = gp.u_loc.detach().clone()
    found = messages(
        lambda: [
            SVI(gp.model, gp.guide, pyro.optim.Adam({"lr": 0.1}), loss).step() for _ in range(2)
        ]
    )
    assert [m for m in found if "'u'" in m or "u_loc" in m] == []
    assert not torch.equal(gp.u_loc, before)


def test_deterministic_sites_of_a_guide_are_no_latents():
    def model(y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(w, 1.0), obs=y)

    def guide(y):
        scale = pyro.param("scale", torch.tensor(0.5))
        loc = pyro.param("loc", torch.tensor(0.1))
        pyro.deterministic("spread", 2 * scale, event_dim=0)
        pyro.sample("w", dist.Normal(loc, scale))

    for estimator, (ours, _, options) in PAIRS.items():
        loss = ours(**options)
        found = messages(lambda loss=loss: loss.loss_and_grads(model, guide, X))
        assert [m for m in found if "spread" in m] == [], estimator


# -- what Pyro's classes take ------------------------------------------------------------------


@pytest.mark.parametrize("estimator", PAIRS)
def test_options_for_the_jit_are_taken(estimator):
    ours, _, options = PAIRS[estimator]
    loss = ours(ignore_jit_warnings=True, jit_options={"check_trace": False}, **options)
    assert loss.ignore_jit_warnings
    assert loss.jit_options == {"check_trace": False}


def test_compiled_forms_are_refused_with_a_word():
    net = ibvi.RandomModule(nn.Linear(1, 1))
    model = ibvi.SupervisedModel(net, ibvi.Normal(1.0))
    guide = ibvi.AutoMuPNormal(model)
    svi = SVI(model, guide, pyro.optim.SGD({"lr": 0.1}), JitTrace_ELBO())
    with pytest.raises(RuntimeError, match=r"lives in its module, and pyro.ops.jit.*Trace_ELBO"):
        svi.step(torch.zeros(2, 1), torch.zeros(2, 1))


@pytest.mark.parametrize("estimator", PAIRS)
def test_the_class_is_no_loss(estimator):
    ours = PAIRS[estimator][0]

    def model(y):
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    svi = SVI(model, lambda y: None, pyro.optim.SGD({"lr": 0.1}), loss=ours)
    with pytest.raises(TypeError, match=rf"{ours.__name__} is a class.*loss={ours.__name__}\(\)"):
        svi.step(X[0])
    with pytest.raises(ValueError, match="num_particles must be a positive whole number, got 0"):
        ours(num_particles=0)


def test_models_without_sites_have_a_loss_of_zero_as_in_pyro():
    def empty():
        pass

    pair = empty, lambda: None
    assert Trace_ELBO().loss_and_grads(*pair) == 0.0
    assert TraceExpectedLogLikelihood(kl_weight=1.0).loss_and_grads(empty, empty) == 0.0
    assert TraceExpectedLogLikelihood(kl_weight=0.5).loss_and_grads(*pair) == 0.0
    with pytest.raises(ValueError, match="The model observed nothing"):
        TraceExpectedLogLikelihood().loss_and_grads(*pair)


def learned_flow():
    flow = affine_autoregressive(2).double()

    def model(y):
        pyro.module("flow", flow)
        prior = dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0).to_event(1), [flow])
        pyro.sample("y", dist.Normal(pyro.sample("w", prior).sum(), 1.0), obs=y)

    return model, "flow$$$arn.layers.0.weight"


def learned_width():
    def model(y):
        width = pyro.param("width", torch.ones(2), dist.constraints.positive)
        w = pyro.sample("w", dist.Normal(0.0, width).to_event(1))
        pyro.sample("y", dist.Normal(w.sum(), 1.0), obs=y)

    return model, "width"


def learned_map():
    def model(y):
        width = pyro.param("width", torch.ones(2), dist.constraints.positive)
        base = dist.Normal(torch.zeros(2), 1.0)
        prior = dist.TransformedDistribution(base, [AffineTransform(0.0, width)]).to_event(1)
        pyro.sample("y", dist.Normal(pyro.sample("w", prior).sum(), 1.0), obs=y)

    return model, "width"


@pytest.mark.parametrize("make", [learned_flow, learned_width, learned_map])
def test_a_learned_prior_is_told_of_with_the_site_that_keeps_it(make):
    model, name = make()

    def guide(y):
        loc = pyro.param("loc", torch.zeros(2))
        pyro.sample("w", dist.Normal(loc, 0.5).to_event(1))

    y = torch.tensor(1.0)
    said = messages(lambda: TraceExpectedLogLikelihood().loss_and_grads(model, guide, y))
    assert len(said) == 1
    assert f"'{name}'" in said[0]
    assert "keep_kl=['w']" in said[0]
    pyro.clear_param_store()
    kept = TraceExpectedLogLikelihood(keep_kl=["w"])
    assert messages(lambda: kept.loss_and_grads(model, guide, y)) == []
    assert pyro.get_param_store()[name].requires_grad
    gradient = pyro.get_param_store()._params[name].grad
    assert gradient is not None
    assert gradient.abs().sum() > 0


class Experts(nn.Module):
    """Two maps, of which the sign of the first feature picks one for each datum."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(3, 1) for _ in range(2))

    def forward(self, x):
        out = x.new_zeros(len(x), 1)
        for k, expert in enumerate(self.experts):
            rows = ((x[:, 0] > 0) == bool(k)).nonzero().squeeze(-1)
            if len(rows):
                out = out.index_add(0, rows, expert(x[rows]))
        return out


def test_an_idle_expert_is_told_from_what_a_prior_alone_sees():
    x = torch.randn(8, 3)
    x[:, 0] = x[:, 0].abs()
    net = ibvi.RandomModule(Experts(), stochastic="all", example_input=torch.randn(8, 3))
    model = ibvi.SupervisedModel(net, ibvi.Normal(1.0))
    guide = ibvi.AutoMuPNormal(model)
    optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": 0.1}, guide)
    loss = ibvi.TraceExpectedLogLikelihood(reduction="mean")
    svi = SVI(model, guide, optim, loss)
    (said,) = messages(lambda: [svi.step(x, torch.ones(8, 1)) for _ in range(3)])
    idle = [f"net.experts.0.{name}" for name in ("weight", "bias")]
    assert said.startswith(f"Nothing in this step was computed from the latent sites {idle}")
    assert "learns when others pass it" in said
    assert f"keep_kl={idle}" in said
    assert ibvi.explain(loss, model, guide, x, torch.ones(8, 1)).unmoved == tuple(idle)
    before = {k: guide.loc(f"net.experts.{k}.weight").clone() for k in range(2)}
    assert messages(lambda: svi.step(-x, torch.ones(8, 1))) == []
    assert not torch.equal(guide.loc("net.experts.0.weight"), before[0])  # its turn
    held = ibvi.TraceExpectedLogLikelihood(reduction="mean", keep_kl=idle)
    assert messages(lambda: SVI(model, guide, optim, held).step(x, torch.ones(8, 1))) == []


def test_a_latent_that_is_held_counts_for_no_observation_once_it_is_hidden():
    y = torch.randn(9)

    def model():
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 9):
            pyro.sample("y", dist.Normal(loc + shift, 1.0), obs=y)

    def guide():
        pyro.sample("loc", dist.Delta(pyro.param("start", torch.tensor(0.5))))

    def step(held, reduction):
        pyro.clear_param_store()
        loss = ibvi.TraceExpectedLogLikelihood(reduction=reduction)
        return SVI(held, guide, pyro.optim.SGD({"lr": 0.0}), loss).step()

    data = {"shift": torch.tensor(0.3)}
    conditioned = poutine.condition(model, data=data)
    hidden = poutine.block(conditioned, hide=["shift"])
    (said,) = messages(lambda: step(conditioned, "mean"))
    assert said.startswith("The observed sites ['shift'] depend on no latent and no parameter")
    assert "data=...), hide=['shift'])" in said
    assert messages(lambda: step(conditioned, "sum")) == []
    expected = -dist.Normal(0.8, 1.0).log_prob(y).mean().item()
    assert step(hidden, "mean") == pytest.approx(expected, rel=1e-6)


def partly_observed(x, y, size=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), subsample_size=size) as rows:
        x, y = x[rows], y[rows]
        pyro.sample("y", dist.Normal(w * x, 1.0), obs=y, obs_mask=y > 0)


@pytest.mark.parametrize("size", [None, 4])
def test_missing_targets_are_left_to_the_model(size):
    x = torch.linspace(-1.0, 1.0, 6)
    loss = ibvi.TraceExpectedLogLikelihood(max_plate_nesting=1)
    guide = ibvi.AutoMuPNormal(partly_observed, covariance={"w": None, "*": ibvi.Diagonal()})
    guide.initialize(x, x)
    step = SVI(partly_observed, guide, pyro.optim.SGD({"lr": 0.0}), loss).step
    hidden = r"poutine\.block\(model, hide=\['y_unobserved'\]\)"
    if size is None:
        theirs = SVI(
            partly_observed, AutoNormal(partly_observed), pyro.optim.SGD({"lr": 0.0}), loss
        )
        (said,) = messages(lambda: theirs.step(x, x))  # though it draws them elsewhere
        assert said.startswith("The latent sites ['y_unobserved'] are missing data")
        (said,) = messages(lambda: [step(x, x) for _ in range(3)])
        assert said.startswith("The latent sites ['y_unobserved'] are missing data")
        assert re.search(hidden, said)
        assert ibvi.explain(loss, partly_observed, guide, x, x).unmoved == ("y_unobserved",)
    else:
        with pytest.raises(ValueError, match=f"'y_unobserved' stands for missing data.*{hidden}"):
            step(x, x, size)
    blocked = pyro.poutine.block(partly_observed, hide=["y_unobserved"])
    guide = ibvi.AutoMuPNormal(blocked, covariance={"w": None})
    guide.initialize(x, x)
    step = SVI(partly_observed, guide, pyro.optim.SGD({"lr": 0.0}), loss).step
    with pytest.warns(UserWarning, match="in model but not guide"):
        losses = [step(x, x, size) for _ in range(400 if size else 1)]
    terms = -dist.Normal(guide.loc("w") * x, 1.0).log_prob(x)[x > 0]
    spread = 3 * 2 / 20  # a batch's share of the three targets, of 400 batches
    assert torch.tensor(losses).mean() == pytest.approx(terms.sum().item(), abs=spread)


def test_missing_inputs_are_no_idle_ones():
    def model(x, y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            x = pyro.sample("x", dist.Normal(0.0, 1.0), obs=x, obs_mask=x > 0)
            pyro.sample("y", dist.Normal(w * x, 1.0), obs=y)

    x = torch.linspace(-1.0, 1.0, 6)
    guide = ibvi.AutoMuPNormal(model)
    guide.initialize(x, x)
    loss = ibvi.TraceExpectedLogLikelihood()
    (said,) = messages(lambda: loss.loss_and_grads(model, guide, x, x))
    assert said.startswith("Each of the latent sites ['x_unobserved'] has one value per observ")


def priors_observed(x, y, how="translated"):
    """Effects of four groups, whose prior is observed as translations from Stan have it."""
    wide, prior = dist.Normal(0.0, 9.0), dist.Normal(0.0, 1.0)
    with pyro.plate("groups", 4):
        effects = pyro.sample("effects", prior if how == "Pyro's own" else wide)
        if how == "translated":
            pyro.sample("effects_prior", prior, obs=effects)
        if how == "a factor":
            pyro.factor("effects_factor", prior.log_prob(effects))
    with pyro.plate("data", len(y)):
        residuals = y - x @ effects  # what is observed of these are data
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=residuals)


def test_a_prior_that_is_observed_is_told_and_is_no_datum():
    x, y = torch.randn(9, 4), torch.randn(9)

    def said(how):
        guide = AutoNormal(priors_observed)
        loss = TraceExpectedLogLikelihood()
        return messages(lambda: loss.loss_and_grads(priors_observed, guide, x, y, how=how))

    (only,) = said("translated")
    assert only.startswith("The observed sites ['effects_prior'] observe draws of latent sites")
    assert said("Pyro's own") == said("a factor") == []
