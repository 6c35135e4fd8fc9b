"""Temperature against a grid and a closed form; conformal coverage counted on new data."""

import math

import pyro.distributions as dist
import pytest
import torch

import pyro_ibvi as ibvi
from pyro_ibvi.models import Masked, Standardized
from pyro_ibvi.prediction import (
    ConformalIntervals,
    Prediction,
    conformal_intervals,
    conformal_sets,
    fit_temperature,
    moments,
)
from tests.allocation import LargestAllocation


def too_sure(num_data=400, num_samples=8):
    """Labels drawn from the logits divided by 3, predicted by the logits."""
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(num_data, 3, generator=generator)
    y = torch.multinomial((logits / 3).softmax(-1), 1, generator=generator).squeeze(-1)
    noise = 0.1 * torch.randn(num_samples, num_data, 3, generator=generator)
    return Prediction(logits + noise, ibvi.Categorical()), y


def test_the_temperature_of_labels_is_that_of_a_grid():
    prediction, y = too_sure()
    fitted = fit_temperature(prediction, y)
    grid = torch.linspace(0.5, 6, 551)
    nlls = [ibvi.score(prediction.at_temperature(t), y)["nll"] for t in grid.tolist()]
    best = grid[int(torch.tensor(nlls).argmin())].item()
    assert fitted.value == pytest.approx(best, abs=0.011)
    assert fitted.nll == pytest.approx(min(nlls), abs=1e-4)
    assert fitted.nll_before == pytest.approx(ibvi.score(prediction, y)["nll"], abs=1e-4)
    cooled = ibvi.score(prediction.at_temperature(fitted.value), y)
    assert cooled["ece"] < ibvi.score(prediction, y)["ece"] / 2


@pytest.mark.parametrize(
    "around", [lambda known: known, Masked, lambda known: Standardized(known, 2.0, 3.0)]
)
def test_the_temperature_of_a_normal_is_the_ratio_of_variances(around):
    """One draw: the best variance is the mean squared residual."""
    y = torch.randn(300, 1, generator=torch.Generator().manual_seed(1))
    prediction = Prediction(torch.zeros(1, 300, 1), around(ibvi.Normal(0.2)))
    variance = prediction.variance[0].item()
    expected = (y - prediction.mean).square().mean().item() / variance
    fitted = fit_temperature(prediction, y)
    assert fitted.value == pytest.approx(expected, rel=1e-4)
    tempered = prediction.at_temperature(fitted.value)
    assert tempered.variance[0].item() == pytest.approx(expected * variance, rel=1e-4)


def test_large_outputs_are_seen_in_parts(monkeypatch):
    """Which one part of labels alone, of which none counts, does not disturb."""
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(4, 60, 3, 5, generator=generator)
    y = torch.randint(0, 3, (60, 5), generator=generator)
    y[:20] = -100
    likelihood = ibvi.Categorical(class_dim=1, ignore_index=-100)
    prediction = Prediction(logits, likelihood)
    whole = fit_temperature(prediction, y)
    monkeypatch.setattr(moments, "MAX_NUMBERS", logits.numel() // 6)
    with LargestAllocation(logits) as largest:
        parts = fit_temperature(prediction, y)
    assert parts.value == pytest.approx(whole.value, rel=1e-5)
    assert parts.nll == pytest.approx(whole.nll, rel=1e-9)
    assert parts.nll_before == pytest.approx(ibvi.score(prediction, y)["nll"], rel=1e-5)
    assert largest.numbers <= logits.numel() // 6


def test_it_acts_alike_on_mean_draws_and_density():
    prediction, y = too_sure()
    tempered = prediction.at_temperature(2.5)
    by_hand = (prediction.outputs / 2.5).softmax(-1)
    torch.testing.assert_close(tempered.mean, by_hand.mean(0))
    right = by_hand.gather(-1, y.expand(8, -1).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(tempered.log_prob(y), right.mean(0).log())
    torch.manual_seed(0)
    drawn = torch.stack([tempered.sample() for _ in range(300)]).flatten(0, 1)
    shares = torch.nn.functional.one_hot(drawn, 3).float().mean(0)
    assert (shares - tempered.mean).abs().max() < 5 * 0.5 / math.sqrt(2400)
    torch.testing.assert_close(prediction.at_temperature(1.0).mean, prediction.mean)


def test_predict_takes_a_temperature():
    torch.manual_seed(0)
    model = ibvi.SupervisedModel(ibvi.RandomModule(torch.nn.Linear(3, 2)), ibvi.Categorical())
    guide = ibvi.AutoMuPNormal(model)
    x = torch.randn(5, 3)
    plain = ibvi.predict(model, guide, x, num_samples=4, generator=0)
    warm = ibvi.predict(model, guide, x, num_samples=4, generator=0, temperature=2.0)
    torch.testing.assert_close(warm.mean, plain.at_temperature(2.0).mean)
    assert model.likelihood.temperature == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_it_is_never_worse(seed):
    """Also where labels are separable, and the best temperature is none."""
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(6, 12, 3, generator=generator) * 10 ** (seed - 2)
    for y in (outputs.mean(0).argmax(-1), torch.randint(0, 3, (12,), generator=generator)):
        prediction = Prediction(outputs, ibvi.Categorical())
        fitted = fit_temperature(prediction, y)
        assert fitted.nll <= fitted.nll_before
        assert 0.0099 < fitted.value < 100.1
        after = ibvi.score(prediction.at_temperature(fitted.value), y)["nll"]
        assert after <= ibvi.score(prediction, y)["nll"] + 1e-6


def test_intervals_cover_whatever_the_model():
    """Mean coverage over 400 splits, within four standard errors of its exact mean."""
    generator = torch.Generator().manual_seed(0)
    num, new, wanted = 39, 200, 0.9
    covered = []
    for _ in range(400):
        y = torch.randn(num + new, 1, generator=generator).exp()  # a skewed truth
        prediction = Prediction(torch.zeros(1, num + new, 1), ibvi.Normal(0.3))
        part = Prediction(prediction.outputs[:, :num], prediction.likelihood)
        intervals = conformal_intervals(part, y[:num], coverage=wanted)
        low, high = intervals(Prediction(prediction.outputs[:, num:], prediction.likelihood))
        covered.append(((y[num:] >= low) & (y[num:] <= high)).float().mean().item())
    coverage = torch.tensor(covered)
    exact = math.ceil((num + 1) * wanted) / (num + 1)
    error = coverage.std().item() / math.sqrt(len(covered))
    assert coverage.mean().item() == pytest.approx(exact, abs=4 * error)
    assert abs(coverage.mean().item() - 0.85) > 4 * error  # it can fail


def test_sets_cover_whatever_the_model():
    prediction, y = too_sure(4000, 2)
    wrong = Prediction(prediction.outputs[..., [1, 2, 0]], ibvi.Categorical())
    for outputs in (prediction.outputs, wrong.outputs):
        first = Prediction(outputs[:, :2000], ibvi.Categorical())
        second = Prediction(outputs[:, 2000:], ibvi.Categorical())
        sets = conformal_sets(first, y[:2000], coverage=0.8)
        inside = sets(second)
        assert inside.shape == (2000, 3)
        assert inside.any(-1).all()
        covered = inside.gather(-1, y[2000:].unsqueeze(-1)).float().mean().item()
        assert covered > 0.8 - 4 * math.sqrt(2 * 0.16 / 2000)
    # A model that knows gives smaller sets.
    good = conformal_sets(Prediction(prediction.outputs, ibvi.Categorical()), y, coverage=0.8)
    bad = conformal_sets(wrong, y, coverage=0.8)
    assert good(prediction).sum() < bad(wrong).sum()


def test_sets_of_binary_labels_are_those_of_the_same_labels_as_classes():
    torch.manual_seed(0)
    logits, y = torch.randn(5, 40, 1), torch.randint(0, 2, (40, 1))
    binary = Prediction(logits, Masked(ibvi.Bernoulli()))
    classes = Prediction(torch.cat([torch.zeros_like(logits), logits], -1), ibvi.Categorical())
    found, truth = conformal_sets(binary, y), conformal_sets(classes, y[:, 0])
    assert found.threshold == pytest.approx(truth.threshold)
    assert torch.equal(found(binary)[:, 0], truth(classes))
    tasks = ibvi.models.MultiTask({"a": (ibvi.Categorical(), 2), "b": (ibvi.Categorical(), 2)})
    with pytest.raises(TypeError, match=r"conformal_sets\(prediction\['name'\], y\)"):
        conformal_sets(Prediction(torch.zeros(1, 40, 4), tasks), y)


class HeavyTails(ibvi.models.Likelihood):
    """Student's law, whose variance is infinite."""

    def forward(self, output, num_batch_dims=1):
        return dist.StudentT(2.0, output, 1.0).to_event(output.dim() - num_batch_dims)


def test_intervals_of_standard_deviations_need_some():
    prediction = Prediction(torch.zeros(1, 40, 1), HeavyTails())
    with pytest.raises(ValueError, match="the HeavyTails likelihood may have no variance"):
        conformal_intervals(prediction, torch.randn(40, 1))
    with pytest.raises(ValueError, match="the HeavyTails likelihood may have no variance"):
        ConformalIntervals(1.0, 0.9)(prediction)


@pytest.mark.parametrize(
    "wrap", [lambda law: law, Masked, lambda law: Standardized(law, 1.0, 2.0)]
)
def test_before_is_the_prediction_as_it_was(wrap):
    y = 2 * torch.randn(200, 1, generator=torch.Generator().manual_seed(0)) + 1
    prediction = Prediction(torch.zeros(1, 200, 1), wrap(ibvi.Normal(1.0))).at_temperature(3.0)
    found = fit_temperature(prediction, y)
    assert found.nll_before == pytest.approx(-prediction.log_prob(y).mean().item(), rel=1e-5)
    best = prediction.at_temperature(found.value)
    assert found.nll == pytest.approx(-best.log_prob(y).mean().item(), rel=1e-5)
    assert found.nll < found.nll_before
    again = fit_temperature(best, y)
    assert again.value == pytest.approx(found.value, rel=1e-4)
    assert again.nll_before == pytest.approx(found.nll, rel=1e-6)


def test_intervals_and_sets_are_of_their_own_kind_of_prediction():
    labels, y = too_sure(30)
    numbers = Prediction(torch.zeros(1, 30, 1), ibvi.Normal())
    sets = conformal_sets(labels, y)
    intervals = conformal_intervals(numbers, torch.zeros(30, 1))
    with pytest.raises(TypeError, match="for numbers write conformal_intervals"):
        sets(numbers)
    with pytest.raises(TypeError, match="for class labels write conformal_sets"):
        intervals(labels)
    for name, made in (("sets", sets), ("intervals", intervals)):
        match = rf"{name} needs what predict returned, got Tensor: write {name}\(.*, x\)\)\.$"
        with pytest.raises(TypeError, match=match):
            made(torch.zeros(30, 1))


def test_bad_input():
    prediction, y = too_sure(10)
    with pytest.raises(ValueError, match=r"coverage of 0\.95 needs 19 calibration data .* got 10"):
        conformal_sets(prediction, y, coverage=0.95)
    with pytest.raises(ValueError, match=r"coverage is a probability such as 0\.9, got 90"):
        conformal_sets(prediction, y, coverage=90)
    with pytest.raises(TypeError, match="for class labels write conformal_sets"):
        conformal_intervals(prediction, y)
    numbers = Prediction(torch.zeros(1, 20, 1), ibvi.Normal())
    with pytest.raises(TypeError, match="for numbers write conformal_intervals"):
        conformal_sets(numbers, torch.zeros(20, 1))
    counts = Prediction(torch.zeros(1, 20, 1), ibvi.Poisson())
    with pytest.raises(TypeError, match="The Poisson likelihood has no temperature"):
        fit_temperature(counts, torch.zeros(20, 1))
    found = fit_temperature(prediction, y)
    for wrong, match in ((found, r"got Temperature\(.*\): pass its \.value"), ("1", "got '1'")):
        with pytest.raises(TypeError, match=rf"A temperature must be a number, {match}"):
            prediction.at_temperature(wrong)
    for value in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="temperature must be positive and finite"):
            prediction.at_temperature(value)
    with pytest.raises(ValueError, match="num_steps must be a positive whole number, got 0"):
        fit_temperature(prediction, y, num_steps=0)
