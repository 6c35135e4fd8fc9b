"""Likelihoods against torch's distributions, and their words for bad targets."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import nn

from pyro_ibvi import (
    Bernoulli,
    Categorical,
    HeteroscedasticNormal,
    Normal,
    Poisson,
    VariationalNetwork,
)
from pyro_ibvi.models import Likelihood, Masked, MultiTask

OUTPUT = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
Y = torch.randn(5, 2, generator=torch.Generator().manual_seed(1))
COUNTS = torch.tensor([[0, 1], [2, 0], [3, 1], [0, 0], [1, 5]])
LABELS = torch.tensor([0, 1, 1, 0, 1])

# likelihood, target, independent log-density summed over events, by hand.
CASES = {
    "normal": (
        Normal(0.5),
        Y,
        (-0.5 * ((Y - OUTPUT) / 0.5) ** 2 - math.log(0.5) - 0.5 * math.log(2 * math.pi)).sum(-1),
    ),
    "heteroscedastic": (
        HeteroscedasticNormal(0.1),
        Y[:, :1],
        torch.distributions.Normal(OUTPUT[:, 0], 0.1 + torch.log1p(OUTPUT[:, 1].exp())).log_prob(
            Y[:, 0]
        ),
    ),
    "categorical": (
        Categorical(),
        LABELS,
        -nn.functional.cross_entropy(OUTPUT, LABELS, reduction="none"),
    ),
    "bernoulli": (
        Bernoulli(),
        (COUNTS > 0).long(),
        -nn.functional.binary_cross_entropy_with_logits(
            OUTPUT, (COUNTS > 0).float(), reduction="none"
        ).sum(-1),
    ),
    "poisson": (
        Poisson(),
        COUNTS,
        (COUNTS * OUTPUT - OUTPUT.exp() - torch.lgamma(COUNTS + 1.0)).sum(-1),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_density_moments_and_shapes(name):
    likelihood, target, expected = CASES[name]
    likelihood.check_target(target, OUTPUT)
    law = likelihood(OUTPUT)
    assert law.batch_shape == (5,)
    log_prob = law.log_prob(likelihood.convert_target(target, OUTPUT))
    torch.testing.assert_close(log_prob, expected)
    many = likelihood(OUTPUT.expand(3, 1, 5, 2), num_batch_dims=3)
    assert many.batch_shape == (3, 1, 5)
    assert many.event_shape == law.event_shape
    mean, variance = likelihood.moments(OUTPUT)
    draws = law.expand([20_000, 5]).sample()
    if name == "categorical":
        draws = nn.functional.one_hot(draws, 2).float()
    assert draws.shape[1:] == mean.shape
    error = ((draws.mean(0) - mean).abs() / (variance / 20_000).sqrt()).max()
    assert error < 4.0
    torch.testing.assert_close(draws.var(0), variance, rtol=0.15, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_known_scale_is_exact_in_every_type(dtype):
    law = Normal(0.1)(torch.zeros(3, dtype=dtype))
    assert law.stddev.dtype == dtype
    torch.testing.assert_close(law.stddev, torch.full((3,), 0.1, dtype=dtype), rtol=0, atol=0)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 3e-3), (torch.float64, 1e-8)])
def test_large_counts_have_their_density_and_its_gradient(dtype, atol):
    """Terms of 1e7 nearly cancel in what is about ten."""
    counts = torch.tensor([0.0, 1.0, 31.0, 32.0, 33.0, 1e3, 1e6], dtype=torch.float64)
    for distance in (-3.0, 0.0, 2.0):  # in standard deviations
        rates = (counts + distance * counts.sqrt() + 0.1).clamp(min=0.1)
        output = rates.log().to(dtype).requires_grad_()
        rates = output.detach().double().exp()
        log_prob = Poisson()(output.unsqueeze(-1)).log_prob(counts.to(dtype).unsqueeze(-1))
        expected = stats.poisson(rates.numpy()).logpmf(counts.numpy())
        np.testing.assert_allclose(log_prob.detach().numpy(), expected, rtol=0, atol=atol)
        (gradient,) = torch.autograd.grad(log_prob.sum(), output)
        torch.testing.assert_close(gradient.double() + rates, counts, rtol=2e-6, atol=1e-5)


def test_no_counts_at_a_rate_that_rounds_to_nothing():
    output = torch.tensor([[-200.0, 5.0]], requires_grad=True)
    log_prob = Poisson()(output).log_prob(torch.tensor([[0.0, 148.0]]))
    log_prob.backward()
    assert log_prob.item() == pytest.approx(stats.poisson(math.exp(5)).logpmf(148), rel=1e-5)
    assert output.grad.tolist() == [[0.0, pytest.approx(148 - math.exp(5), abs=1e-4)]]


def test_a_learned_scale():
    likelihood = Normal(0.3, learn_scale=True)
    assert likelihood.scale.item() == pytest.approx(0.3)
    assert [name for name, _ in likelihood.named_parameters()] == ["log_scale"]
    (-likelihood(OUTPUT).log_prob(Y).mean()).backward()
    residual = ((Y - OUTPUT) ** 2).sum(-1).mean()
    # d/d log s of (r / (2 s^2) + 2 log s), by hand.
    expected = 2 - residual / 0.09
    torch.testing.assert_close(likelihood.log_scale.grad, expected, rtol=1e-4, atol=1e-5)
    assert not list(Normal(0.3).parameters())


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_a_bad_scale(scale):
    with pytest.raises(ValueError, match="is a standard deviation, positive and finite; got"):
        Normal(scale)
    with pytest.raises(ValueError, match="min_scale is a standard deviation, positive and finite"):
        HeteroscedasticNormal(scale)


@pytest.mark.parametrize("scale", ["0.1", None, True, torch.ones(2)])
def test_a_scale_that_is_no_number(scale):
    with pytest.raises(
        TypeError, match="The scale of the Normal likelihood must be a number, got"
    ):
        Normal(scale)
    with pytest.raises(TypeError, match="min_scale must be a number, got"):
        HeteroscedasticNormal(scale)


FLOATS = torch.zeros(5)
BAD = [
    (Normal(), (5,), FLOATS.reshape(5, 1), ValueError, r"shape \(5, 1\).*Normal.*expects \(5,\)"),
    (Normal(), (5, 1), FLOATS, ValueError, r"expects \(5, 1\)\. Write y\.reshape\(-1, 1\)"),
    (Normal(), (5, 3), FLOATS, ValueError, r"target has shape \(5,\).*expects \(5, 3\)\.$"),
    (Normal(), (5, 2), FLOATS, ValueError, r"expects \(5, 2\)\. Of two outputs .* Heterosced"),
    (
        Normal(),
        (5, 1),
        torch.zeros(5, 1).long(),
        TypeError,
        r"dtype torch\.int64.*y\.to\(torch\.fl",
    ),
    (Normal(), (5,), FLOATS.double(), TypeError, r"dtype torch\.float64 and the network's output"),
    (
        HeteroscedasticNormal(),
        (5, 3),
        FLOATS,
        ValueError,
        r"so an even number; got shape \(5, 3\)",
    ),
    (HeteroscedasticNormal(), (6,), FLOATS, ValueError, r"so an even number; got shape \(6,\)"),
    (HeteroscedasticNormal(), (5, 2), FLOATS, ValueError, r"expects \(5, 1\)"),
    *(
        (HeteroscedasticNormal(), (5, 2, 3, width), torch.zeros(5, 1, 3, width), ValueError, moved)
        for moved in (r"out\.movedim\(1, -1\), and pass y\.movedim\(1, -1\)",)
        for width in (3, 4)
    ),
    (
        Categorical(),
        (5, 3),
        FLOATS,
        TypeError,
        r"integers, got dtype torch\.float32: pass y\.long",
    ),
    (
        Categorical(),
        (5, 3),
        FLOATS.reshape(5, 1).long(),
        ValueError,
        r"Categorical.*expects \(5,\)",
    ),
    (
        Categorical(),
        (5, 3),
        torch.arange(5),
        ValueError,
        "labels of 3 classes, from 0 to 2; got.*4",
    ),
    (Categorical(), (5, 3), -torch.arange(5), ValueError, "from 0 to 2; got values from -4 to 0"),
    (
        Bernoulli(),
        (5,),
        torch.arange(5),
        ValueError,
        "must be 0 or 1, or shares between them, got values from 0 to 4",
    ),
    (Bernoulli(), (5,), FLOATS + 1.5, ValueError, r"must be 0 or 1, or shares.*from 1\.5 to 1\.5"),
    (Bernoulli(), (5,), FLOATS - 1.0, ValueError, r"of two values write \(y > 0\)\.float\(\)"),
    (Bernoulli(), (5, 3), FLOATS, ValueError, r"one of 3 classes, .*: Categorical\(\)"),
    (Poisson(), (5,), FLOATS + 0.5, ValueError, r"has others, such as \d\.\d.* write Normal"),
    (Poisson(), (5,), -torch.arange(5), ValueError, "Expected counts, from 0; got values from -4"),
]


@pytest.mark.parametrize(("likelihood", "shape", "target", "error", "message"), BAD)
def test_a_bad_target(likelihood, shape, target, error, message):
    with pytest.raises(error, match=message):
        likelihood.check_target(target, torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.float32])
def test_counts_and_labels_come_in_any_number_type(dtype):
    target = torch.tensor([0, 1, 1, 0, 1]).to(dtype)
    for likelihood in (Bernoulli(), Poisson()):
        likelihood.check_target(target, torch.zeros(5))
        converted = likelihood.convert_target(target, torch.zeros(5))
        assert likelihood(torch.zeros(5)).log_prob(converted).isfinite().all()
    if dtype != torch.float32:
        Categorical().check_target(target, torch.zeros(5, 2))
        assert Categorical()(torch.zeros(5, 2)).log_prob(target).isfinite().all()


def test_a_users_own_likelihood():
    class StudentT(Likelihood):
        def forward(self, output, num_batch_dims=1):
            law = dist.StudentT(4.0, output, 1.0)
            return law.to_event(len(law.batch_shape) - num_batch_dims)

    likelihood = StudentT()
    likelihood.check_target(Y, OUTPUT)
    assert likelihood(OUTPUT).log_prob(Y).shape == (5,)
    mean, variance = likelihood.moments(OUTPUT)
    torch.testing.assert_close(mean, OUTPUT)
    torch.testing.assert_close(variance, torch.full_like(OUTPUT, 2.0))
    with pytest.raises(NotImplementedError, match="Likelihood has no forward: write"):
        Likelihood()(OUTPUT)


def column(output, num_batch_dims=1):
    return dist.Normal(output, 1.0)


def without_column(output, num_batch_dims=1):
    return dist.Normal(output.squeeze(-1), 1.0)


def of_torch(output, num_batch_dims=1):
    return torch.distributions.Independent(torch.distributions.Normal(output, 1.0), 1)


def of_output_alone(output):
    return dist.Normal(output, 1.0).to_event(1)


@pytest.mark.parametrize(
    "inside",
    [lambda own: own, Masked, lambda own: MultiTask({"a": (own, np.int64(1))})],
    ids=["alone", "masked", "task"],
)
@pytest.mark.parametrize("draws", ["batch", 2])
@pytest.mark.parametrize(
    ("law", "error", "words"),
    [
        (column, ValueError, r"law of Own has the batch shape \(.*1\), .* law\.to_event"),
        (without_column, ValueError, r"event shape \(\), .* shape \(1,\): .*target_shape"),
        (of_torch, TypeError, r"distribution of pyro\.distributions, got torch\.distributions"),
        (of_output_alone, TypeError, r"write def forward\(self, output, num_batch_dims=1\)"),
    ],
)
def test_a_law_that_does_not_fit_hears_what_to_write(law, error, words, draws, inside):
    class Own(Likelihood):
        forward = staticmethod(law)

    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    bnn = VariationalNetwork(net, inside(Own()), draws=draws)
    with pytest.raises(error, match=words):
        bnn.fit(Y, Y[:, :1], num_epochs=1, progress=False)
