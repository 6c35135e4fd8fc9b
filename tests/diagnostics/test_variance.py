"""What is left of the start, against dense linear algebra and the theorem."""

import json
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_ibvi as ibvi
from pyro_ibvi.theory import null_space_projection, regression_limit
from pyro_ibvi.theory.divergences import covariance_factor, wasserstein2_squared

pytestmark = pytest.mark.usefixtures("double")

NUM_DATA, NUM_FEATURES = 4, 7


def build(net=None, covariance=None, stochastic="all"):
    net = net or nn.Sequential(nn.Linear(NUM_FEATURES, 5), nn.Tanh(), nn.Linear(5, 2))
    net = ibvi.RandomModule(net, stochastic=stochastic, parametrization=ibvi.Standard(), prior=1.0)
    model = ibvi.SupervisedModel(net, ibvi.Normal(1.0), num_data=NUM_DATA)
    return model, ibvi.AutoMuPNormal(model, covariance=covariance)


@torch.no_grad()
def disturb(guide):
    for parameter in guide.parameters():
        parameter.mul_(0.7).add_(0.3 * torch.randn_like(parameter))


COVARIANCES = {
    "low rank": ibvi.LowRank(3),
    "full": ibvi.LowRank(None),
    "kronecker": ibvi.Kronecker(3, 2),
    "full kronecker": ibvi.Kronecker(None, None),
    "diagonal": ibvi.Diagonal(),
    "mixed": {"*.bias": ibvi.Diagonal(), "*": ibvi.LowRank(2)},
}


def dense_law(guide):
    """Mean and covariance of the first layer, weight and then bias."""
    sites = ["net.0.weight", "net.0.bias"]
    loc = torch.cat([guide.loc(site).flatten() for site in sites])
    try:
        covariance = guide.covariance(*sites)
    except ValueError:
        covariance = torch.block_diag(*(guide.covariance(site) for site in sites))
    return loc.detach(), covariance.detach()


@pytest.mark.parametrize("covariance", COVARIANCES.values(), ids=COVARIANCES)
def test_report_equals_the_dense_formulas(covariance):
    _, guide = build(covariance=covariance)
    x = torch.randn(NUM_DATA, NUM_FEATURES)
    monitor = ibvi.VarianceMonitor(guide, inputs=x)
    loc0, covariance0 = dense_law(guide)
    disturb(guide)
    loc, covariance = dense_law(guide)
    layer = monitor.report().layers[0]
    factors = [covariance_factor(c) for c in (covariance, covariance0)]
    distance = wasserstein2_squared(loc, factors[0], loc0, factors[1]).sqrt()
    assert layer.name == "net.0"
    assert layer.sites == ("net.0.weight", "net.0.bias")
    assert layer.wasserstein2 == pytest.approx(distance.item(), rel=1e-6)
    assert layer.mean_shift == pytest.approx((loc - loc0).norm().item(), rel=1e-12)
    assert layer.variance_left == pytest.approx(
        (covariance.trace() / covariance0.trace()).item(), rel=1e-10
    )
    # The projection of every output's weights and bias, as one matrix over the whole layer.
    extended = torch.cat([x, torch.ones(NUM_DATA, 1)], -1)
    span = torch.linalg.pinv(extended) @ extended
    index = torch.arange(5 * NUM_FEATURES).reshape(5, NUM_FEATURES)
    index = torch.cat([index, 5 * NUM_FEATURES + torch.arange(5)[:, None]], -1)
    full = torch.zeros_like(covariance)
    for rows in index:
        full[rows[:, None], rows] = span
    on, on0 = (full @ covariance).trace(), (full @ covariance0).trace()
    off, off0 = covariance.trace() - on, covariance0.trace() - on0
    assert layer.on_span == pytest.approx((on / on0).item(), rel=1e-8)
    assert layer.off_span == pytest.approx((off / off0).item(), rel=1e-8)


def test_training_takes_the_variance_on_the_span_and_no_other():
    model, guide = build(nn.Linear(NUM_FEATURES, 1, bias=False), ibvi.LowRank(3))
    x, y = torch.randn(NUM_DATA, NUM_FEATURES), torch.randn(NUM_DATA, 1)
    monitor = ibvi.VarianceMonitor(guide, inputs=x, every=2)
    start = guide.loc("net.weight")[0].detach().clone(), guide.factor("net.weight")[0].detach()
    limit = regression_limit(x, y[:, 0], start[0], start[1].clone())
    distance = wasserstein2_squared(*limit, start[0], start[1].clone()).sqrt().item()
    svi = SVI(
        model,
        guide,
        ibvi.MuPOptim(torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}, guide),
        ibvi.TraceClosedFormHead(reduction="mean"),
    )
    loader = DataLoader(TensorDataset(x, y), batch_size=NUM_DATA)
    ibvi.fit(svi, [batch for _ in range(250) for batch in loader], 4, callback=monitor)
    assert [report.epoch for report in monitor.reports] == [1, 3]
    (layer,) = monitor.reports[-1].layers
    assert layer.on_span < 1e-6
    assert layer.off_span == pytest.approx(1.0, abs=1e-10)
    assert layer.wasserstein2 == pytest.approx(distance, rel=1e-3)


def test_a_mean_field_guide_is_told_of_the_remedy():
    model, guide = build(nn.Linear(NUM_FEATURES, 1), {"*.bias": None, "*": ibvi.Diagonal()})
    x, y = torch.randn(NUM_DATA, NUM_FEATURES), torch.randn(NUM_DATA, 1)
    monitor = ibvi.VarianceMonitor(guide, inputs={"net": x})
    optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, guide)
    svi = SVI(model, guide, optim, ibvi.TraceClosedFormHead(reduction="mean"))
    for _ in range(900):
        svi.step(x, y)
    report = monitor.report()
    assert report.collapsed == ("net.weight",)
    assert report.layers[0].off_span < 0.01
    (note,) = report.notes
    assert "A diagonal cannot keep variance" in note
    assert "LowRank(10)" in note
    text = str(report)
    assert "collapsed" in text
    assert "point estimate" in text
    assert note in text
    # A low-rank guide needs no such note.
    assert ibvi.VarianceMonitor(build()[1]).report().notes == ()


@pytest.mark.parametrize("net", [None, nn.Linear(NUM_FEATURES, 1)])
def test_the_remedy_can_be_pasted(net):
    model, guide = build(net, covariance=ibvi.Diagonal())
    (note,) = ibvi.VarianceMonitor(guide).report().notes
    written = note.partition("covariance=")[2].rstrip(".")
    covariance = eval(written, {"LowRank": ibvi.LowRank, "Diagonal": ibvi.Diagonal})
    low_rank = ibvi.AutoMuPNormal(model, covariance=covariance)
    assert ibvi.VarianceMonitor(low_rank).report().notes == ()


def test_at_the_start_nothing_has_changed():
    _, guide = build(covariance={"output": None, "*": ibvi.LowRank(2)})
    report = ibvi.VarianceMonitor(guide).report(epoch=3)
    assert report.epoch == 3
    for layer in report.layers:
        assert layer.wasserstein2 == pytest.approx(0.0, abs=1e-12)
        assert layer.on_span is None
    ratios = [site.ratio for site in report.sites]
    assert ratios[:2] == [1.0, 1.0]
    assert all(math.isnan(ratio) for ratio in ratios[2:])
    assert report.sites[0].initial_std == pytest.approx(1.0, rel=1e-12)
    assert report.collapsed == ()
    assert json.loads(json.dumps(report.to_dict()))["sites"][0]["name"] == "net.0.weight"
    assert not report.to_dict()["collapsed"]


def test_full_data_leave_no_other_direction():
    _, guide = build(nn.Linear(3, 1, bias=False))
    layer = ibvi.VarianceMonitor(guide, inputs=torch.randn(9, 3)).report().layers[0]
    assert layer.on_span == pytest.approx(1.0)
    assert math.isnan(layer.off_span)


def test_sites_of_a_hand_written_model():
    def model(x, y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([NUM_FEATURES]).to_event(1))
        pyro.sample("obs", dist.Normal(x @ w, 1.0).to_event(1), obs=y)

    x, y = torch.randn(NUM_DATA, NUM_FEATURES), torch.randn(NUM_DATA)
    guide = ibvi.AutoMuPNormal(model, covariance=ibvi.LowRank(2))
    with pytest.raises(RuntimeError, match="The guide has no parameters yet"):
        ibvi.VarianceMonitor(guide)
    guide.initialize(x, y)
    monitor = ibvi.VarianceMonitor(guide, inputs={"w": x})
    with torch.no_grad():
        factor = guide.factor("w")
        factor.copy_(null_space_projection(x)(factor))
    (layer,) = monitor.report().layers
    assert layer.on_span == pytest.approx(0.0, abs=1e-20)
    assert layer.off_span == pytest.approx(1.0, rel=1e-12)


def test_sentences():
    model, guide = build()
    with pytest.raises(TypeError, match="needs an AutoMuPNormal guide, got AutoNormal"):
        ibvi.VarianceMonitor(AutoNormal(model))
    with pytest.raises(ValueError, match=r"threshold=2\.0: expected a ratio"):
        ibvi.VarianceMonitor(guide, threshold=2.0)
    with pytest.raises(ValueError, match="every must be a positive whole number, got 0"):
        ibvi.VarianceMonitor(guide, every=0)
    with pytest.raises(ValueError, match=r"names \['net.9'\], but the layers are"):
        ibvi.VarianceMonitor(guide, inputs={"net.9": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match=r"'net.2' have the shape \(3, 4\)"):
        ibvi.VarianceMonitor(guide, inputs={"net.2": torch.ones(3, 4)})
    last = build(nn.Sequential(*(nn.Linear(2, 2) for _ in range(4))), stochastic=["1.*", "2.*"])
    with pytest.raises(ValueError, match="it is not clear which layer reads it"):
        ibvi.VarianceMonitor(last[1], inputs=torch.ones(3, 2))
