"""Mixtures of numbers and labels against scipy-free truths: quadrature, sorting, large samples."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms
from scipy import special, stats

import pyro_ibvi as ibvi
from pyro_ibvi.models import Masked, Standardized
from pyro_ibvi.prediction import Prediction, moments
from pyro_ibvi.prediction.marginals import cdf_of, normal_crps, normal_entropy
from pyro_ibvi.prediction.scored import score_numbers
from tests.allocation import LargestAllocation


def mixture(likelihood=None, num_samples=4, shape=(3, 2)):
    torch.manual_seed(0)
    outputs = 2 * torch.randn(num_samples, *shape, dtype=torch.float64)
    return Prediction(outputs, likelihood or ibvi.Normal(0.7))


def density(prediction, grid):
    """The mixture's density of the first number on a grid."""
    means, scales = prediction.components()
    law = torch.distributions.Normal(means[:, 0, 0], scales[:, 0, 0])
    return law.log_prob(grid.unsqueeze(-1)).exp().mean(-1)


GRID = torch.linspace(-60, 60, 600_001, dtype=torch.float64)
FAMILY = [ibvi.Normal(0.7), ibvi.HeteroscedasticNormal(), Masked(ibvi.Normal(0.7))]


@pytest.mark.parametrize("likelihood", FAMILY, ids=lambda known: type(known).__name__)
def test_distribution_function_and_entropy_by_quadrature(likelihood):
    prediction = mixture(likelihood)
    p = density(prediction, GRID)
    dx = (GRID[1] - GRID[0]).item()
    for y in (-1.3, 0.0, 2.1):
        expected = (p * (y >= GRID)).sum() * dx
        assert prediction.cdf(y)[0, 0].item() == pytest.approx(expected.item(), abs=1e-4)
    entropy = -(torch.special.xlogy(p, p)).sum() * dx
    assert prediction.entropy()[0, 0].item() == pytest.approx(entropy.item(), abs=2e-3)
    means, scales = prediction.components()
    within = torch.distributions.Normal(means, scales).entropy().mean(0)
    torch.testing.assert_close(
        prediction.mutual_information(), (prediction.entropy() - within).clamp(min=0)
    )


@pytest.mark.parametrize("likelihood", FAMILY, ids=lambda known: type(known).__name__)
def test_quantiles_invert_the_distribution_function(likelihood):
    prediction = mixture(likelihood, num_samples=50)
    q = torch.tensor([0.001, 0.05, 0.5, 0.975], dtype=torch.float64)
    quantiles = prediction.quantile(q)
    for value, quantile in zip(q, quantiles, strict=True):
        torch.testing.assert_close(prediction.cdf(quantile), value.expand(quantile.shape))
    low, high = prediction.interval(0.9)
    inside = prediction.cdf(high) - prediction.cdf(low)
    torch.testing.assert_close(inside, torch.full_like(inside, 0.9))
    assert prediction.quantile(0.5).shape == prediction.mean.shape


def test_units_carry_over():
    y = torch.tensor([[100.0], [300.0]])
    plain = mixture(ibvi.Normal(0.7), shape=(3, 1))
    scaled = Prediction(plain.outputs, Standardized.of(ibvi.Normal(0.7), y))
    loc, scale = 200.0, 100.0
    torch.testing.assert_close(scaled.quantile(0.9), loc + scale * plain.quantile(0.9))
    torch.testing.assert_close(scaled.entropy(), plain.entropy() + math.log(scale))
    torch.testing.assert_close(scaled.mutual_information(), plain.mutual_information())
    torch.testing.assert_close(scaled.cdf(loc + scale * 0.3), plain.cdf(0.3))


def test_counts():
    prediction = mixture(ibvi.Poisson())
    counts = torch.arange(400, dtype=torch.float64)
    rates = prediction.outputs[:, 0, 0].exp()
    p = torch.distributions.Poisson(rates).log_prob(counts.unsqueeze(-1)).exp().mean(-1)
    below = p.cumsum(0)
    for y in (0, 1, 3.5, 7):
        expected = below[int(y)].item()
        assert prediction.cdf(y)[0, 0].item() == pytest.approx(expected, rel=1e-6)
    assert prediction.cdf(-0.5)[0, 0] == 0.0
    for q in (0.05, 0.5, 0.99):
        expected = int((below >= q).nonzero()[0])
        assert prediction.quantile(q)[0, 0].item() == expected
    entropy = -torch.special.xlogy(p, p).sum().item()
    assert prediction.entropy()[0, 0].item() == pytest.approx(entropy, rel=1e-6)
    assert (prediction.mutual_information() >= 0).all()


@pytest.mark.parametrize(("rate", "ratio"), [(50.0, 3.0), (300.0, 1.0), (2e4, 1.02), (1e6, 1.3)])
def test_entropies_of_large_counts(rate, ratio):
    """Against sums over all counts in double precision."""
    rates = np.array([rate, rate * ratio])
    outputs = torch.tensor(np.log(rates)).float().reshape(2, 1, 1)
    prediction = Prediction(torch.cat([outputs, outputs - 20], 1), ibvi.Poisson())
    laws = stats.poisson(outputs[:, :, 0].double().exp().numpy())
    low, high = int(rate - 15 * rate**0.5), int(rates[1] + 15 * rates[1] ** 0.5)
    p = laws.pmf(np.arange(max(0, low - 30), high + 60))
    total, within = (stats.entropy(each, axis=-1) for each in (p.mean(0), p))
    assert prediction.entropy()[0, 0].item() == pytest.approx(total, rel=1e-6)
    information = prediction.mutual_information()[0, 0].item()
    assert information == pytest.approx(total - within.mean(), abs=2e-6)
    empty = Prediction(torch.full((2, 1, 1), -200.0), ibvi.Poisson())
    assert empty.entropy().item() == 0


def test_labels():
    prediction = mixture(ibvi.Categorical(class_dim=1), shape=(3, 4, 5))
    p = prediction.outputs.softmax(2)
    entropy = torch.distributions.Categorical(p.mean(0).movedim(1, -1)).entropy()
    within = torch.distributions.Categorical(p.movedim(2, -1)).entropy().mean(0)
    torch.testing.assert_close(prediction.entropy(), entropy)
    torch.testing.assert_close(prediction.mutual_information(), entropy - within)
    assert prediction.mean.shape == (3, 4, 5)
    binary = mixture(ibvi.Bernoulli())
    p = binary.outputs.sigmoid().mean(0)
    torch.testing.assert_close(binary.entropy(), torch.distributions.Bernoulli(p).entropy())
    assert torch.equal(binary.quantile(0.5), (p > 0.5).to(p))
    torch.testing.assert_close(binary.cdf(0.0), 1 - p)


@pytest.mark.parametrize("likelihood", [ibvi.Categorical(class_dim=1), ibvi.Bernoulli()])
def test_entropies_of_labels_take_less_memory_than_the_outputs(monkeypatch, likelihood):
    outputs = torch.randn(4, 60, 3, 5, generator=torch.Generator().manual_seed(0))
    prediction = Prediction(outputs, likelihood)
    if isinstance(likelihood, ibvi.Bernoulli):
        shares, dim = torch.stack([outputs.sigmoid(), (-outputs).sigmoid()], -1), -1
    else:
        shares, dim = outputs.softmax(2), 1
    total = torch.special.entr(shares.mean(0)).sum(dim)
    within = torch.special.entr(shares).sum(dim if dim < 0 else dim + 1).mean(0)
    monkeypatch.setattr(moments, "MAX_NUMBERS", outputs.numel() // 6)
    with LargestAllocation(outputs) as largest:
        torch.testing.assert_close(prediction.entropy(), total)
        torch.testing.assert_close(prediction.mutual_information(), total - within)
    assert largest.numbers <= outputs.numel() // 2


def test_sure_labels_have_no_entropy():
    prediction = Prediction(torch.tensor([[[2000.0, 0.0]]]), ibvi.Categorical())
    assert prediction.entropy().item() == 0.0


def test_the_ranked_score_is_the_integral_of_its_definition():
    prediction = mixture(num_samples=3)
    y = torch.tensor([[0.4, 0.0], [1.0, 0.0], [-9.0, 0.0]], dtype=torch.float64)
    scores = normal_crps(*prediction.components(), y)
    for i in range(3):
        grid = GRID[::10]
        below = torch.stack(
            [torch.distributions.Normal(m, 0.7).cdf(grid) for m in prediction.outputs[:, i, 0]]
        ).mean(0)
        integral = (below - (grid >= y[i, 0]).double()).square().sum() * (grid[1] - grid[0])
        assert scores[i, 0].item() == pytest.approx(integral.item(), abs=2e-3)


def test_questions_without_an_answer():
    labels = mixture(ibvi.Categorical())
    with pytest.raises(TypeError, match="Class labels have no order, so no quantile"):
        labels.quantile(0.5)
    with pytest.raises(TypeError, match="Class labels have no order, so no cdf"):
        labels.cdf(0.5)
    tasks = ibvi.models.MultiTask({"a": (ibvi.Normal(1.0), 1), "b": (ibvi.Poisson(), 1)})
    together = mixture(tasks)
    for name, article in (("quantile", "a"), ("cdf", "a"), ("entropy", "an")):
        ask = getattr(together, name)
        with pytest.raises(
            TypeError, match=rf"Each task has {article} {name} .*\['name'\].{name}"
        ):
            ask() if name == "entropy" else ask(0.5)
        ask = getattr(together["b"], name)
        assert (ask() if name == "entropy" else ask(0.5)).shape == (3, 1)
    numbers = mixture()
    for parts in ((numbers.outputs.numpy(), ibvi.Normal()), (ibvi.Normal(), numbers.outputs)):
        with pytest.raises(TypeError, match=r"made of a tensor of outputs, \(num_samples, batch"):
            Prediction(*parts)
    with pytest.raises(TypeError, match=r"no array: write prediction\.mean\.numpy\(\)"):
        np.asarray(numbers)
    for q in (0.0, 1.0, [0.5, 1.5], []):
        with pytest.raises(ValueError, match="probabilities strictly between 0 and 1, got"):
            numbers.quantile(q)
    with pytest.raises(ValueError, match=r"coverage is a probability such as 0\.95, got 95"):
        numbers.interval(95)
    with pytest.raises(TypeError, match="The Poisson likelihood has no temperature"):
        mixture(ibvi.Poisson()).at_temperature(2.0)
    with pytest.raises(ValueError, match="A temperature must be positive and finite, got 0"):
        numbers.at_temperature(0.0)


@pytest.mark.parametrize(
    "kind", [dist.Gamma, dist.Exponential, dist.LogNormal, dist.HalfNormal], ids=str
)
def test_quantiles_of_a_users_law_are_those_of_many_draws(kind):
    class Own(ibvi.models.Likelihood):
        def forward(self, output, num_batch_dims=1):
            law = kind(*(output.sigmoid(), output.sigmoid() + 1)[: len(kind.arg_constraints)])
            return law.to_event(len(law.batch_shape) - num_batch_dims)

    prediction = mixture(Own(), num_samples=2, shape=(1, 1))
    law = prediction.likelihood(prediction.outputs, 2)
    drawn = law.sample((100_000,)).flatten()
    q = torch.tensor([0.01, 0.2, 0.9], dtype=torch.float64)
    quantiles = prediction.quantile(q)
    torch.testing.assert_close(prediction.cdf(quantiles[1]), torch.full_like(quantiles[1], 0.2))
    shares = (drawn < quantiles.reshape(-1, 1)).double().mean(-1)
    torch.testing.assert_close(shares, q, atol=0.005, rtol=0)
    assert prediction.cdf(-1.0).item() == 0


class Wide(ibvi.models.Likelihood):
    """A law of one's own without a variance, or with one that is no number."""

    def __init__(self, kind, scale):
        super().__init__()
        self.kind, self.scale = kind, scale

    def forward(self, output, num_batch_dims=1):
        return self.kind(output, self.scale).to_event(output.dim() - num_batch_dims)


@pytest.mark.parametrize(
    ("kind", "scale", "truth"),
    [
        (dist.Cauchy, 1.0, stats.cauchy),
        (dist.Cauchy, 1e30, stats.cauchy),
        (dist.LogNormal, 30.0, lambda loc, scale: stats.lognorm(scale, scale=np.exp(loc))),
    ],
)
def test_quantiles_of_a_law_need_no_variance(kind, scale, truth):
    prediction = mixture(Wide(kind, scale))
    q = [0.001, 0.2, 0.5, 0.999]
    quantiles = prediction.quantile(q)
    assert quantiles.shape == (4, 3, 2)
    assert quantiles.isfinite().all()
    for quantile, value in zip(quantiles, q, strict=True):
        levels = truth(prediction.outputs.numpy(), scale).cdf(quantile.numpy()).mean(0)
        np.testing.assert_allclose(levels, value, rtol=1e-9)


@pytest.mark.parametrize("unit", [1e30, 1.0, 1e-30])
def test_quantiles_of_targets_whose_squares_are_no_numbers(unit):
    outputs = mixture().outputs.float()
    scaled = Prediction(outputs, Standardized(ibvi.Normal(0.7), 0.0, unit))
    expected = Prediction(outputs.double(), ibvi.Normal(0.7)).quantile([0.025, 0.6, 1 - 1e-6])
    found = scaled.quantile([0.025, 0.6, 1 - 1e-6]).double() / unit
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(scaled.cdf(found[1] * unit), torch.full((3, 2), 0.6).double())


@pytest.mark.parametrize("ratio", [1.0, 10.0])
@pytest.mark.parametrize("spread", [0.0, 1.0, 5.0, 300.0, 1e4])
@pytest.mark.parametrize("num_samples", [2, 40])
def test_entropies_are_those_of_a_fine_grid(num_samples, spread, ratio):
    """Also of few components, of one place, and of narrow ones far from one another."""
    generator = torch.Generator().manual_seed(2)
    means = spread * torch.randn(num_samples, 3, generator=generator)
    scales = ratio ** torch.rand(num_samples, 3, generator=generator)
    found = normal_entropy(means, scales)
    for i in range(3):
        m, s = means[:, i].double().numpy(), scales[:, i].double().numpy()
        y = np.linspace((m - 9 * s).min(), (m + 9 * s).max(), 100_001)
        p = sum(stats.norm.pdf(y, *one) for one in zip(m, s, strict=True)) / num_samples
        truth = np.trapezoid(special.entr(p), y)
        assert found[i].item() == pytest.approx(truth, abs=2e-2 if spread == 1e4 else 1e-5)


@pytest.mark.parametrize("unit", [1e30, 1e-30])
def test_entropies_and_scores_of_targets_whose_squares_are_no_numbers(unit):
    outputs = mixture().outputs.float()
    y = outputs[0] + 0.3
    scaled = Prediction(outputs, Standardized(ibvi.Normal(0.7), 0.0, unit))
    plain = Prediction(outputs.double(), ibvi.Normal(0.7))
    entropy = plain.entropy().float() + math.log(unit)
    torch.testing.assert_close(scaled.entropy(), entropy, rtol=1e-5, atol=0)
    found, expected = scaled.mutual_information(), plain.mutual_information().float()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    with pytest.warns(UserWarning, match=r"beyond what torch\.float32 holds"):
        score = score_numbers(scaled, y * unit, ranked=True)
    expected = score_numbers(plain, y.double(), ranked=True)
    torch.testing.assert_close(score.ranked.double() / unit, expected.ranked, rtol=1e-5, atol=0)
    rmse = expected.summary(15)["rmse"]
    assert score.summary(15)["rmse"] / unit == pytest.approx(rmse, rel=1e-5)


@pytest.mark.parametrize("unit", [1e30, 1e-30])
def test_variances_that_are_no_numbers_are_told(unit):
    outputs = mixture().outputs
    likelihood = Standardized(ibvi.Normal(0.7), 0.0, unit)
    with pytest.warns(UserWarning, match=r"beyond what torch\.float32 holds"):
        _ = Prediction(outputs.float(), likelihood).stddev
    expected = unit * Prediction(outputs, ibvi.Normal(0.7)).stddev
    torch.testing.assert_close(Prediction(outputs, likelihood).stddev, expected)  # in silence


@pytest.mark.parametrize("y", [1, True, np.int64(1), np.array([[1]]), torch.tensor(1)])
@pytest.mark.parametrize(
    ("likelihood", "law"),
    [
        (ibvi.Normal(0.7), lambda f: stats.norm(f, 0.7)),
        (Standardized(ibvi.Normal(0.7), 0.0, 1.0), lambda f: stats.norm(f, 0.7)),
        (ibvi.Poisson(), lambda f: stats.poisson(np.exp(f))),
        (ibvi.Bernoulli(), lambda f: stats.bernoulli(1 / (1 + np.exp(-f)))),
    ],
)
def test_a_distribution_function_takes_any_numbers(likelihood, law, y):
    prediction = mixture(likelihood)
    expected = law(prediction.outputs.numpy()).cdf(1).mean(0)
    np.testing.assert_allclose(prediction.cdf(y).numpy(), expected, rtol=1e-12)
    assert prediction.cdf(math.nan).isnan().all()


def test_no_number_has_no_quantile_and_small_probabilities_are_some():
    outputs = torch.tensor([[[math.nan, 0.0]], [[1.0, 0.0]]])
    low, high = Prediction(outputs, ibvi.Normal(1.0)).interval()
    assert low.isnan().tolist() == high.isnan().tolist() == [[True, False]]
    assert high[0, 1].item() == pytest.approx(stats.norm.ppf(0.975), rel=1e-6)
    tail = Prediction(outputs, Standardized(ibvi.Normal(1.0), 0.0, 1.0)).cdf(-10.0)[0, 1]
    assert tail.item() == pytest.approx(stats.norm.cdf(-10), rel=1e-4)


MIRRORED = dist.TransformedDistribution(
    dist.Normal(0.0, 1.0), [transforms.ExpTransform(), transforms.AffineTransform(3.0, -2.0)]
)
PARETOS = dist.MixtureSameFamily(
    dist.Categorical(torch.ones(2)), dist.Pareto(torch.tensor([1.0, 10.0]), 1.0)
)


@pytest.mark.parametrize(
    ("law", "y", "expected"),
    [
        (dist.Kumaraswamy(2.0, 2.0), [-1.0, 0.5, 3.0], [0.0, 1 - 0.75**2, 1.0]),
        (PARETOS, [0.5, 2.0, 5.0, 20.0], [0.0, 0.25, 0.4, 0.725]),
        (MIRRORED, [1.0, 3.0, 5.0], [0.5, 1.0, 1.0]),  # 3 - 2 exp(z)
        (MIRRORED, [3 - 2 * math.exp(0.3)], [1 - stats.norm.cdf(0.3)]),
        (dist.Uniform(1.0, 3.0), [0.0, 1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.5, 1.0, 1.0]),
        (dist.Weibull(2.0, 3.0), [-1.0, 1.0], [0.0, stats.weibull_min.cdf(1, 3, scale=2)]),
        (dist.Gumbel(0.0, 1.0), [-1.0, 2.0], stats.gumbel_r.cdf([-1, 2])),
        (dist.HalfCauchy(1.0), [-1.0, 1.0], [0.0, 0.5]),
        (dist.StudentT(3.0, 0.5, 2.0), [-math.inf, 7.0], [0.0, stats.t.cdf(7, 3, 0.5, 2)]),
        (dist.Beta(2.0, 3.0), [-1.0, 0.3, 1.0], [0.0, stats.beta.cdf(0.3, 2, 3), 1.0]),
        (dist.NegativeBinomial(3.0, 0.4), [-1.0, 2.5], [0.0, stats.nbinom.cdf(2, 3, 0.6)]),
        (dist.Binomial(7, 0.3), [-1.0, 2.5, 7.0], [0.0, stats.binom.cdf(2, 7, 0.3), 1.0]),
        (dist.Gamma(2.0, 1.0), [math.nan, 1.0], [math.nan, stats.gamma.cdf(1, 2)]),
        (dist.LogNormal(0.0, 1.0), [math.nan, 0.0, 1.0], [math.nan, 0.0, 0.5]),
    ],
    ids=str,
)
def test_the_distribution_function_of_any_law(law, y, expected):
    expected = torch.tensor(np.asarray(expected), dtype=torch.float32)
    found = cdf_of(law, torch.tensor(y))
    torch.testing.assert_close(found, expected, equal_nan=True, atol=1e-5, rtol=1e-5)


def test_labels_of_a_users_law_have_no_mean():
    class Ordered(ibvi.models.Likelihood):
        discrete = True

        def forward(self, output, num_batch_dims=1):
            return dist.OrderedLogistic(output, torch.tensor([-1.0, 1.0]))

    prediction = Prediction(torch.zeros(2, 5), Ordered())
    assert prediction.log_prob(torch.ones(5)).exp()[0].item() == pytest.approx(0.4621, abs=1e-4)
    scores = ibvi.score(prediction, torch.ones(5))
    assert scores["nll"] == pytest.approx(-math.log(0.4621), abs=1e-4)
    assert repr(prediction) == "Prediction(num_samples=2, outputs of shape (2, 5))"
    tasks = ibvi.models.MultiTask({"size": (ibvi.Normal(1.0), 1), "rank": (Ordered(), 1)})
    together = Prediction(torch.zeros(2, 5, 2), tasks)
    for ask in (
        lambda: prediction.mean,
        prediction.components,
        lambda: together.mean,
        together["rank"].components,
    ):
        with pytest.raises(NotImplementedError, match=r"of the Ordered .*write Ordered\.moments"):
            ask()
