"""Scores of held-out data against definitions, and against other libraries."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_ibvi as ibvi
from pyro_ibvi import models
from pyro_ibvi.models import Masked, MultiTask, Standardized
from pyro_ibvi.prediction import (
    Prediction,
    conformal_intervals,
    conformal_sets,
    fit_temperature,
    metrics,
    predict_batches,
)


def make(net, likelihood):
    torch.manual_seed(0)
    model = ibvi.SupervisedModel(ibvi.RandomModule(net), likelihood, num_data=50)
    return model, ibvi.AutoMuPNormal(model)


X = torch.randn(90, 3, generator=torch.Generator().manual_seed(5))


def loader(y, batch_size=32):
    return DataLoader(TensorDataset(X, y), batch_size=batch_size)


def test_classes():
    model, guide = make(nn.Linear(3, 4), ibvi.Categorical())
    y = torch.randint(0, 4, (90,), generator=torch.Generator().manual_seed(6))
    scores = ibvi.evaluate(model, guide, loader(y), num_samples=20, generator=3)
    prediction = ibvi.predict(model, guide, X, num_samples=20, generator=3)
    p = prediction.mean
    assert scores["nll"] == pytest.approx(-p[range(90), y].log().mean().item(), rel=1e-5)
    wrong = (p.argmax(-1) != y).float()
    assert scores["error"] == pytest.approx(wrong.mean().item())
    assert scores["accuracy"] == pytest.approx(1 - wrong.mean().item())
    one_hot = nn.functional.one_hot(y, 4)
    assert scores["brier"] == pytest.approx((p - one_hot).square().sum(-1).mean().item(), rel=1e-5)
    entropy = torch.distributions.Categorical(p).entropy()
    kept = wrong[entropy.argsort(stable=True)]
    assert scores["error_at_80"] == pytest.approx(kept[:72].mean().item())
    risks = [kept[: k + 1].mean().item() for k in range(90)]
    assert scores["aurc"] == pytest.approx(np.mean(risks), rel=1e-5)
    brief = ibvi.score(prediction, y)
    for name, value in brief.items():
        assert scores[name] == pytest.approx(value, rel=1e-4)


def test_numbers():
    model, guide = make(nn.Linear(3, 1), ibvi.Normal(0.5))
    y = torch.randn(90, 1, generator=torch.Generator().manual_seed(6))
    scores = ibvi.evaluate(model, guide, loader(y), num_samples=20, generator=3)
    prediction = ibvi.predict(model, guide, X, num_samples=20, generator=3)
    low, high = prediction.interval(0.95)
    inside = ((y >= low) & (y <= high)).float().mean().item()
    assert scores["coverage"] == pytest.approx(inside)
    error = prediction.mean - y
    assert scores["mae"] == pytest.approx(error.abs().mean().item(), rel=1e-5)
    assert scores["rmse"] == pytest.approx(error.square().mean().sqrt().item(), rel=1e-5)
    assert scores["nll"] == pytest.approx(-prediction.log_prob(y).mean().item(), rel=1e-5)
    draws = torch.cat([prediction.sample() for _ in range(200)])
    spread = (draws - draws[torch.randperm(len(draws))]).abs().mean(0) / 2
    crps = ((draws - y).abs().mean(0) - spread).mean().item()
    assert scores["crps"] == pytest.approx(crps, rel=0.02)


class Mystery(models.likelihoods.Likelihood):
    """A likelihood of one's own, which has none."""

    def forward(self, output, num_batch_dims=1):
        return dist.VonMises(output, torch.ones_like(output)).to_event(1)

    def target_shape(self, output_shape):
        return output_shape


@pytest.mark.parametrize(
    "likelihood",
    [
        ibvi.Normal(0.5),
        ibvi.HeteroscedasticNormal(),
        Masked(Standardized(ibvi.Normal(0.5), 0.2, 1.5)),
        ibvi.Poisson(),
    ],
    ids=lambda likelihood: type(likelihood).__name__,
)
def test_coverage_is_the_share_within_the_interval(likelihood):
    """Draws that differ much, so that the mixture is no Normal and counts go up to some ten."""
    generator = torch.Generator().manual_seed(3)
    width = 2 if isinstance(likelihood, ibvi.HeteroscedasticNormal) else 1
    outputs = 1.5 * torch.randn(12, 400, width, generator=generator)
    prediction = Prediction(outputs, likelihood)
    torch.manual_seed(4)
    y = prediction.sample()[0] * 1.3
    y = y.round() if isinstance(likelihood, ibvi.Poisson) else y
    low, high = prediction.interval(0.95)
    inside = ((y >= low - 1e-5) & (y <= high + 1e-5)).float().mean().item()
    assert ibvi.score(prediction, y)["coverage"] == pytest.approx(inside)
    within = (y - prediction.mean).abs() <= 1.96 * prediction.stddev
    assert within.float().mean().item() != pytest.approx(inside)  # it can fail


def test_scores_of_one_prediction_and_of_batches_agree_on_the_coverage():
    for likelihood in (ibvi.Normal(0.5), ibvi.Poisson()):
        model, guide = make(nn.Linear(3, 1), likelihood)
        y = torch.randint(0, 3, (90, 1), generator=torch.Generator().manual_seed(6)).float()
        scores = ibvi.evaluate(model, guide, loader(y), num_samples=20, generator=3)
        prediction = ibvi.predict(model, guide, X, num_samples=20, generator=3)
        assert scores["coverage"] == pytest.approx(ibvi.score(prediction, y)["coverage"])


def test_a_likelihood_without_a_distribution_function_has_no_coverage():
    model, guide = make(nn.Linear(3, 1), Mystery())
    y = torch.zeros(90, 1)
    scores = ibvi.evaluate(model, guide, loader(y), num_samples=5, generator=3)
    assert sorted(scores) == ["aurc", "mae", "nll", "rmse"]


class Cauchy(models.likelihoods.Likelihood):
    """One whose law has neither a mean nor a variance."""

    def forward(self, output, num_batch_dims=1):
        return dist.Cauchy(output, 0.5).to_event(1)


def test_a_law_without_a_mean_has_no_scores_of_it():
    model, guide = make(nn.Linear(3, 1), Cauchy())
    y = torch.zeros(90, 1)
    scores = ibvi.evaluate(model, guide, loader(y), num_samples=5, generator=3)
    assert sorted(scores) == ["coverage", "nll"]
    prediction = ibvi.predict(model, guide, X, num_samples=5, generator=3)
    assert sorted(ibvi.score(prediction, y)) == ["coverage", "nll"]
    with pytest.raises(ValueError, match=r"standard deviation, .* has none: leave out foreign="):
        ibvi.evaluate(model, guide, loader(y), foreign=loader(y), num_samples=5)


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_samples": 0},
        {"num_samples": -3},
        {"num_samples": 2.5},
        {"chunk_size": 0},
        {"batch_size": -1},
    ],
    ids=str,
)
def test_sizes_are_looked_at_before_anything_runs(arguments):
    model, guide = make(nn.Linear(3, 1), ibvi.Normal(0.5))
    (name, value), batches = arguments.popitem(), iter(loader(torch.zeros(90, 1)))
    match = rf"{name} must be a positive whole number, got {value}"
    functions = [predict_batches]
    if name != "batch_size":
        functions.append(ibvi.evaluate)
    for function in functions:
        with pytest.raises(ValueError, match=match):
            function(model, guide, batches, **{name: value})
    bnn = ibvi.VariationalNetwork(nn.Linear(3, 1), ibvi.Normal(0.5))
    if name == "num_samples":
        for method in (bnn.evaluate, bnn.calibrate):
            with pytest.raises(ValueError, match=match):
                method(X, torch.zeros(90, 1), **{name: value})
    assert len(list(batches)) == 3


def test_batches_are_checked_at_the_call():
    model, guide = make(nn.Linear(3, 1), ibvi.Normal(0.5))
    with pytest.raises(TypeError, match="Batches are expected, got 3"):
        predict_batches(model, guide, 3)
    with pytest.raises(TypeError, match="needs a SupervisedModel, got Linear"):
        predict_batches(nn.Linear(3, 1), guide, X)


def test_foreign_data_are_told_by_their_uncertainty():
    model, guide = make(nn.Linear(3, 1), ibvi.Normal(0.1))
    y = torch.zeros(90, 1)
    far = DataLoader(TensorDataset(20 * X), batch_size=40)
    scores = ibvi.evaluate(model, guide, loader(y), foreign=far, num_samples=30, generator=0)
    near, foreign = (
        torch.cat(
            [
                p.stddev.flatten()
                for p, _ in predict_batches(model, guide, data, num_samples=30, generator=0)
            ]
        )
        for data in (loader(y), far)
    )
    pairs = (foreign.unsqueeze(-1) > near).float().mean().item()
    assert scores["auroc"] == pytest.approx(pairs, abs=1e-6)
    threshold = near.sort().values[math.ceil(0.95 * 90) - 1]
    assert scores["fpr95"] == pytest.approx((foreign <= threshold).float().mean().item())
    assert scores["auroc"] > 0.9


def test_foreign_data_may_be_several_inputs():
    model, guide = make(nn.Bilinear(3, 3, 1), ibvi.Normal(0.1))
    data, options = [((X, X), torch.zeros(90, 1))], {"num_samples": 30, "generator": 0}
    with pytest.raises(TypeError, match=r"got a tuple of 2 tensors.*\[\(\(x1, x2\), None\)\]"):
        ibvi.evaluate(model, guide, data, foreign=(20 * X, X), **options)
    told = ibvi.evaluate(model, guide, data, foreign=[((20 * X, X), None)], **options)
    same = ibvi.evaluate(model, guide, data, foreign=[((X, X), None)], **options)
    assert same["auroc"] == 0.5 < 0.8 < told["auroc"]


def test_uncertainties_beyond_one_keep_their_order():
    near, far = torch.linspace(50, 60, 20), torch.linspace(61, 70, 20)
    assert metrics.auroc(near, far) == 1.0
    assert metrics.auroc(far, near) == 0.0
    assert metrics.auroc(near, near) == 0.5


def test_what_is_missing_counts_nowhere():
    model, guide = make(nn.Linear(3, 2), Masked(ibvi.Normal(0.5)))
    y = torch.randn(90, 2, generator=torch.Generator().manual_seed(6))
    y[::3, 0] = y[:30, 1] = math.nan
    scores = ibvi.evaluate(model, guide, loader(y), num_samples=10, generator=3)
    prediction = ibvi.predict(model, guide, X, num_samples=10, generator=3)
    seen = ~y.isnan()
    error = (prediction.mean - y)[seen]
    assert scores["rmse"] == pytest.approx(error.square().mean().sqrt().item(), rel=1e-5)
    total = -prediction.log_prob(y).sum() / (seen.float().mean(-1).sum())
    assert scores["nll"] == pytest.approx(total.item(), rel=1e-5)
    with pytest.raises(ValueError, match="Nothing was observed"):
        ibvi.evaluate(model, guide, loader(y * math.nan), num_samples=3)


def test_void_pixels_count_nowhere():
    model, guide = make(nn.Conv2d(1, 3, 1), ibvi.Categorical(class_dim=1, ignore_index=255))
    x, y = torch.randn(6, 1, 4, 5), torch.randint(0, 3, (6, 4, 5))
    y[:, 0] = 255
    prediction = ibvi.predict(model, guide, x, num_samples=10, generator=0)
    scores = ibvi.score(prediction, y)
    seen = y != 255
    p = prediction.mean.movedim(1, -1)[seen]
    assert scores["nll"] == pytest.approx(-p[range(len(p)), y[seen]].log().mean().item(), rel=1e-5)
    right = (p.argmax(-1) == y[seen]).float().mean().item()
    assert scores["accuracy"] == pytest.approx(right)
    assert ibvi.reliability(prediction, y).fraction.sum().item() == pytest.approx(1.0)


def test_tasks_have_scores_of_their_own():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(3, 1)

        def forward(self, x):
            return self.a(x), self.b(x)

    tasks = {"kind": (ibvi.Categorical(), 4), "age": (ibvi.Normal(0.5), 1)}
    model, guide = make(Heads(), MultiTask(tasks))
    kind, age = torch.randint(0, 4, (90,)), torch.randn(90, 1)
    data = [(X[i : i + 45], (kind[i : i + 45], age[i : i + 45])) for i in (0, 45)]
    scores = ibvi.evaluate(model, guide, data, foreign=data, num_samples=10, generator=0)
    prediction = ibvi.predict(model, guide, X, num_samples=10, generator=0)
    alone = ibvi.score(prediction["kind"], kind)
    assert scores["kind/nll"] == pytest.approx(alone["nll"], rel=1e-5)
    assert scores["age/rmse"] == pytest.approx(
        ibvi.score(prediction["age"], age)["rmse"], rel=1e-5
    )
    assert scores["kind/auroc"] == pytest.approx(0.5)
    with pytest.raises(KeyError, match=r"No task 'size'; the likelihood has the tasks \['kind'"):
        prediction["size"]


def test_what_is_no_prediction_is_told():
    prediction = Prediction(torch.zeros(1, 4, 1), ibvi.Normal())
    y = torch.zeros(4, 1)
    for name in ("score", "reliability"):
        function = getattr(ibvi, name)
        with pytest.raises(TypeError, match=rf"{name} needs what predict returned .* got Tensor"):
            function(prediction.mean, y)
        with pytest.raises(ValueError, match="num_bins must be a positive whole number, got 0"):
            function(prediction, y, num_bins=0)
    with pytest.raises(TypeError, match="score needs what predict returned"):
        ibvi.score(y, prediction)
    for function in (fit_temperature, conformal_intervals, conformal_sets):
        name = function.__name__
        for wrong in (prediction.mean, y.numpy(), None):
            with pytest.raises(TypeError, match=rf"{name} needs .* write {name}\(ibvi\..*, y\)"):
                function(wrong, y)
    assert ibvi.score(prediction, y.numpy()) == ibvi.score(prediction, y)
    model, guide = make(nn.Linear(3, 1), ibvi.Normal())
    with pytest.raises(ValueError, match="There is nothing to score by: the data hold"):
        ibvi.evaluate(model, guide, [X])
