"""Prediction: mixtures against closed forms and loops by hand."""

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import (
    AutoDelta,
    AutoNormal,
    AutoNormalMessenger,
    AutoRegressiveMessenger,
)
from torch import nn

import pyro_ibvi as ibvi
from pyro_ibvi.models import Likelihood
from pyro_ibvi.prediction import Prediction
from pyro_ibvi.prediction import chunking as _chunking


def make_model(net=None, likelihood=None, stochastic="all"):
    net = net or nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    return ibvi.SupervisedModel(
        ibvi.RandomModule(net, stochastic=stochastic), likelihood or ibvi.Normal(0.5), num_data=50
    )


@pytest.mark.usefixtures("double")
def test_moments_of_a_linear_model_agree_with_its_closed_form():
    """f = x w + b is Gaussian under q, so the predictive moments are known."""
    model = make_model(nn.Linear(3, 1), ibvi.Normal(0.5))
    guide = ibvi.AutoMuPNormal(model, covariance=ibvi.LowRank(2))
    x = torch.randn(4, 3)
    num_samples = 20_000
    prediction = ibvi.predict(model, guide, x, num_samples=num_samples)
    features = torch.cat([x, torch.ones(4, 1)], dim=-1)
    names = ("net.weight", "net.bias")
    loc = torch.cat([guide.loc(name).flatten() for name in names])
    mean = features @ loc
    variance = (features @ guide.covariance(*names) * features).sum(-1)
    standard_error = (variance / num_samples).sqrt()
    assert ((prediction.mean[:, 0] - mean).abs() < 4 * standard_error).all()
    assert torch.allclose(prediction.epistemic[:, 0], variance, rtol=4 * (2 / num_samples) ** 0.5)
    assert torch.allclose(prediction.aleatoric, torch.tensor(0.25))
    assert torch.equal(prediction.variance, prediction.epistemic + prediction.aleatoric)
    y = torch.randn(4, 1)
    exact = torch.distributions.Normal(mean, (variance + 0.25).sqrt()).log_prob(y[:, 0])
    assert torch.allclose(prediction.log_prob(y), exact, atol=0.05)
    # Negative control: the mean of the log-densities is another number.
    naive = model.likelihood(prediction.outputs, 2).log_prob(y).mean(0)
    assert not torch.allclose(naive, exact, atol=0.05)


def test_log_prob_is_that_of_the_mixture():
    outputs = torch.randn(5, 4, 3)
    y = torch.tensor([0, 1, 2, 1])
    prediction = ibvi.Prediction(outputs, ibvi.Categorical())
    by_hand = outputs.softmax(-1)[:, torch.arange(4), y].mean(0).log()
    assert torch.allclose(prediction.log_prob(y), by_hand, atol=1e-6)
    assert torch.allclose(prediction.mean, outputs.softmax(-1).mean(0))
    # The one-hot label's variance is p (1 - p), however it is split.
    assert torch.allclose(prediction.variance, prediction.mean * (1 - prediction.mean), atol=1e-6)


@pytest.mark.parametrize(
    ("likelihood", "target"),
    [
        (ibvi.Normal(0.5), torch.randn(6, 2)),
        (ibvi.HeteroscedasticNormal(), torch.randn(6, 1)),
        (ibvi.Bernoulli(), torch.ones(6, 2, dtype=torch.long)),
        (ibvi.Poisson(), torch.ones(6, 2, dtype=torch.long)),
        (ibvi.Categorical(), torch.ones(6, dtype=torch.long)),
    ],
)
def test_every_likelihood_predicts(likelihood, target):
    model = make_model(likelihood=likelihood)
    guide = ibvi.AutoMuPNormal(model)
    prediction = ibvi.predict(model, guide, torch.randn(6, 3), num_samples=7)
    assert prediction.log_prob(target).shape == (6,)
    assert prediction.sample().shape == (7, *target.shape)
    total = prediction.epistemic + prediction.aleatoric
    assert torch.allclose(prediction.variance, total)
    assert (prediction.epistemic >= 0).all()
    assert prediction.stddev.isfinite().all()
    assert prediction.num_samples == 7
    assert "num_samples=7" in repr(prediction)


def test_chunks_and_batches_change_nothing_but_memory():
    model = make_model()
    guide = ibvi.AutoMuPNormal(model, covariance=ibvi.LowRank(4))
    x = torch.randn(11, 3)

    def outputs(seed=0, **kwargs):
        generator = torch.Generator().manual_seed(seed)
        return ibvi.predict(model, guide, x, num_samples=6, generator=generator, **kwargs).outputs

    whole = outputs()
    assert torch.allclose(outputs(batch_size=4), whole, atol=1e-6)
    assert torch.equal(outputs(), whole)
    assert not torch.equal(outputs(seed=1), whole)
    # Draws of different chunks are different draws.
    chunked = outputs(chunk_size=2)
    assert chunked.shape == whole.shape
    assert len({tuple(o.flatten().tolist()) for o in chunked}) == 6


def test_large_activations_run_in_pieces_of_the_same_draws(monkeypatch):
    net = nn.Sequential(nn.Linear(3, 100), nn.Tanh(), nn.Linear(100, 100), nn.Linear(100, 2))
    model = make_model(net)
    guide = ibvi.AutoMuPNormal(model, covariance=ibvi.LowRank(4))
    x = torch.randn(1000, 3)
    sizes = []
    run = model.run

    def spy(values, x, **options):
        sizes.append(len(values["0.weight"]))
        return run(values, x, **options)

    monkeypatch.setattr(model, "run", spy)

    def outputs(**kwargs):
        sizes.clear()
        generator = torch.Generator().manual_seed(0)
        return ibvi.predict(model, guide, x, num_samples=60, generator=generator, **kwargs).outputs

    in_pieces = outputs()
    at_once = 400_000 // (100 * 1000)
    assert sizes == [at_once] * (60 // at_once)
    assert torch.allclose(in_pieces, outputs(batch_size=10), atol=1e-5)
    assert set(sizes) - {1} == {60}  # and one draw to see whether rows can be cut
    assert torch.allclose(in_pieces, outputs(chunk_size=60), atol=1e-5)


@pytest.mark.parametrize("mixes", [False, True])
def test_large_activations_bound_the_rows_where_these_can_be_cut(monkeypatch, mixes):
    class Net(nn.Sequential):
        def forward(self, x):
            return super().forward(x - x.mean(0) if mixes else x)

    model = make_model(Net(nn.Linear(3, 100), nn.Tanh(), nn.Linear(100, 2)))
    guide = ibvi.AutoMuPNormal(model)
    x = torch.randn(103, 3, generator=torch.Generator().manual_seed(0))
    whole = ibvi.predict(model, guide, x, num_samples=3, generator=0).outputs
    monkeypatch.setattr(_chunking, "_MAX_OF_LAYER", 100 * 40)
    rows = []
    run = model.run

    def spy(values, x, **options):
        rows.append((len(x), len(values["0.weight"])))
        return run(values, x, **options)

    monkeypatch.setattr(model, "run", spy)
    in_pieces = ibvi.predict(model, guide, x, num_samples=3, generator=0).outputs
    assert [size for size, draws in rows if draws == 3] == ([103] if mixes else [40, 40, 23])
    assert torch.allclose(in_pieces, whole, atol=1e-6)


def test_layers_before_the_first_random_one_do_not_bound_the_draws():
    net = nn.Sequential(nn.Linear(3, 500), nn.Tanh(), nn.Linear(500, 2))
    sizes = {}
    for stochastic in ("all", "last"):
        random_net = make_model(net, stochastic=stochastic).net.eval()
        of_layers = _chunking.output_sizes(random_net, ((torch.zeros(1, 3),), {}))
        sizes[stochastic] = _chunking.draws_to_run(random_net, of_layers, 1000)
    # The last layer's outputs are the result, so only its weights bound the draws.
    assert sizes == {"all": 1, "last": 10**7 // (2 * 500 + 2)}


def test_networks_that_refuse_a_single_row_still_predict():
    class Pairs(nn.Linear):
        def forward(self, x):
            return super().forward(x.reshape(len(x) // 2, 2, 3)).flatten(0, 1)

    class Fussy(Pairs):
        def forward(self, x):
            if len(x) % 2:
                raise IndexError
            return super().forward(x)

    model = make_model(nn.Sequential(Fussy(3, 2)))
    guide = ibvi.AutoMuPNormal(model)
    assert ibvi.predict(model, guide, torch.randn(4, 3), num_samples=5).mean.shape == (4, 2)
    assert not any(module._forward_hooks for module in model.net.network.modules())


def test_a_generator_leaves_the_global_random_state_alone():
    model = make_model()
    guide = ibvi.AutoMuPNormal(model)
    before = torch.random.get_rng_state()
    ibvi.predict(
        model,
        guide,
        torch.randn(2, 3, generator=torch.Generator()),
        num_samples=3,
        generator=torch.Generator().manual_seed(0),
    )
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("guide_class", [AutoNormal, AutoDelta])
def test_other_guides_serve(guide_class):
    pyro.set_rng_seed(0)
    model = make_model()
    guide = guide_class(model)
    x, y = torch.randn(6, 3), torch.randn(6, 2)
    guide(x, y)
    prediction = ibvi.predict(model, guide, x, num_samples=4)
    assert prediction.outputs.shape == (4, 6, 2)
    if guide_class is AutoDelta:
        assert torch.allclose(prediction.epistemic, torch.zeros(6, 2), atol=1e-6)


def test_prediction_equals_a_loop_over_the_draws():
    """Point-estimated and random layers, against the network run by hand."""
    model = make_model(
        stochastic="input+output",
        net=nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 2)),
    )
    guide = ibvi.AutoMuPNormal(model)
    x = torch.randn(5, 3)
    pyro.set_rng_seed(3)
    outputs = ibvi.predict(model, guide, x, num_samples=4).outputs
    pyro.set_rng_seed(3)
    draws = guide.draw(4)
    hidden = model.net.network[2]
    for i, output in enumerate(outputs):
        w = {name: draw[i] for name, draw in draws.items()}
        h = nn.functional.silu(x @ w["net.0.weight"].T + w["net.0.bias"])
        h = nn.functional.silu(hidden(h))
        by_hand = h @ w["net.4.weight"].T + w["net.4.bias"]
        assert torch.allclose(output, by_hand, atol=1e-5)


def test_norm_layers_and_dropout_are_in_evaluation_mode():
    net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    model = make_model(net)
    guide = ibvi.AutoMuPNormal(model, covariance={"*": None})
    statistics = {k: v.clone() for k, v in model.net.network[1].named_buffers()}
    x = torch.randn(6, 3)
    prediction = ibvi.predict(model, guide, x, num_samples=3)
    # A point estimate without dropout is the same for each draw.
    assert torch.equal(prediction.outputs[0], prediction.outputs[2])
    for name, buffer in model.net.network[1].named_buffers():
        assert torch.equal(buffer, statistics[name])
    assert all(module.training for module in model.modules())
    # Also when the network fails in the middle.
    with pytest.raises(ValueError, match=r"shape \(6, 4\).*layer '0' \(Linear\) expects 3"):
        ibvi.predict(model, guide, torch.randn(6, 4))
    assert all(module.training for module in model.modules())


def test_several_inputs():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = nn.Linear(3, 2), nn.Linear(1, 2)

        def forward(self, a, b):
            return self.one(a) + self.other(b)

    model = make_model(Sum())
    guide = ibvi.AutoMuPNormal(model)
    a, b = torch.randn(6, 3), torch.randn(6, 1)
    for x in ((a, b), {"a": a, "b": b}):
        prediction = ibvi.predict(model, guide, x, num_samples=3, batch_size=4)
        assert prediction.mean.shape == (6, 2)


def test_bad_input():
    model = make_model()
    guide = ibvi.AutoMuPNormal(model)
    x = torch.randn(4, 3)
    with pytest.raises(TypeError, match=r"use pyro\.infer\.Predictive"):
        ibvi.predict(lambda x: x, guide, x)
    for name in ("num_samples", "chunk_size", "batch_size"):
        with pytest.raises(ValueError, match=f"{name} must be a positive whole number, got 0"):
            ibvi.predict(model, guide, x, **{name: 0})
    with pytest.raises(TypeError, match=r"weights torch\.float32: pass x\.to"):
        ibvi.predict(model, guide, x.double())
    prediction = ibvi.predict(model, guide, x, num_samples=3)
    with pytest.raises(ValueError, match=r"target has shape \(4,\)"):
        prediction.log_prob(torch.zeros(4))


def test_score_and_reliability_against_definitions():
    torch.manual_seed(0)
    probabilities = torch.softmax(torch.randn(200, 3), -1)
    y = torch.randint(0, 3, (200,))
    prediction = ibvi.Prediction(probabilities.log()[None], ibvi.Categorical())
    confidence, predicted = probabilities.max(-1)
    right = predicted == y
    ece = 0.0
    for k in range(15):
        members = (confidence > k / 15) & (confidence <= (k + 1) / 15)
        if members.any():
            gap = confidence[members].mean() - right[members].float().mean()
            ece += members.float().mean().item() * abs(gap.item())
    scores = ibvi.score(prediction, y)
    assert scores["ece"] == pytest.approx(ece, abs=1e-5)
    assert scores["accuracy"] == pytest.approx(right.float().mean().item())
    nll = -probabilities[torch.arange(200), y].log().mean()
    assert scores["nll"] == pytest.approx(nll.item(), rel=1e-5)
    bins = ibvi.reliability(prediction, y)
    gap = (bins.confidence - bins.accuracy).abs() * bins.fraction
    assert gap.sum().item() == pytest.approx(ece, abs=1e-5)
    assert bins.fraction.sum().item() == pytest.approx(1.0)


def test_score_of_numbers_and_of_binary_labels():
    outputs = torch.zeros(1, 1000, 1)
    y = torch.randn(1000, 1, generator=torch.Generator().manual_seed(0))
    scores = ibvi.score(ibvi.Prediction(outputs, ibvi.Normal(1.0)), y)
    assert scores["coverage"] == pytest.approx(0.95, abs=0.03)
    assert scores["rmse"] == pytest.approx(y.square().mean().sqrt().item(), rel=1e-6)
    binary = ibvi.Prediction(torch.tensor([[[0.0], [math.log(3)]]]), ibvi.Bernoulli())
    scores = ibvi.score(binary, torch.tensor([[0], [1]]))
    assert scores["nll"] == pytest.approx(-(math.log(0.5) + math.log(0.75)) / 2, rel=1e-5)
    with pytest.raises(TypeError, match="needs predictions of labels"):
        ibvi.reliability(ibvi.Prediction(outputs, ibvi.Normal(1.0)), y)


def test_a_test_set_may_be_larger_than_the_training_set():
    model = ibvi.SupervisedModel(ibvi.RandomModule(nn.Linear(3, 1)), ibvi.Normal(0.5), num_data=4)
    x, y = torch.randn(9, 3), torch.randn(9, 1)
    with pytest.raises(ValueError, match="The batch holds 9 data, but num_data=4"):
        model(x, y)
    model.eval()
    trace = pyro.poutine.trace(model).get_trace(x, y)
    assert trace.nodes["obs"]["scale"] == 1.0


def test_a_prediction_says_what_its_parts_are_called():
    prediction = Prediction(torch.zeros(2, 5, 3), ibvi.Categorical())
    with pytest.raises(AttributeError, match=r"A Prediction has no 'probs': write \.mean\."):
        _ = prediction.probs
    with pytest.raises(AttributeError, match=r"^A Prediction has no 'color'\.$"):
        _ = prediction.color
    with pytest.raises(TypeError, match=r"as in prediction\.mean\[0\]"):
        _ = prediction[0]
    copied = pickle.loads(pickle.dumps(copy.deepcopy(prediction)))
    assert torch.equal(copied.mean, prediction.mean)


class LogNormal(Likelihood):
    """A likelihood of strictly one method, whose distribution knows no moments of its own."""

    def forward(self, output, num_batch_dims=1):
        normal = dist.Normal(output, 0.3)
        positive = dist.TransformedDistribution(normal, [dist.transforms.ExpTransform()])
        return positive.to_event(len(positive.batch_shape) - num_batch_dims)


def test_a_likelihood_without_moments_predicts_all_that_needs_none():
    x = torch.randn(20, 3)
    y = x[:, :1].exp()
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
    bnn = ibvi.VariationalNetwork(net, LogNormal())
    bnn.fit(x, y, num_epochs=1, progress=False)
    prediction = bnn.predict(x, num_samples=5)
    law = torch.distributions.LogNormal(prediction.outputs, 0.3)
    expected = law.log_prob(y).squeeze(-1).logsumexp(0) - math.log(5)
    torch.testing.assert_close(prediction.log_prob(y), expected)
    with pytest.raises(NotImplementedError, match=r"write LogNormal\.moments\(output"):
        _ = prediction.mean


@pytest.mark.parametrize("kind", [AutoNormalMessenger, AutoRegressiveMessenger])
def test_a_guide_that_runs_the_model_draws_weights_alone(kind):
    """With a linear layer of one weight the outputs are its draws; targets are no latents."""
    model = make_model(nn.Linear(1, 1, bias=False))
    guide = kind(model, init_scale=0.3)
    x, y = torch.linspace(-1.0, 1.0, 5).unsqueeze(-1), torch.zeros(5, 1)
    guide(x, y)
    names = {name for name, _ in guide.named_parameters()}
    outputs = ibvi.predict(model, guide, torch.ones(3, 1), num_samples=500, generator=0).outputs
    assert outputs.shape == (500, 3, 1)
    assert {name for name, _ in guide.named_parameters()} == names
    drawn = torch.stack([guide(x, y)["net.weight"].detach() for _ in range(500)]).flatten()
    found = outputs[:, 0, 0]
    error = (2 / 500) ** 0.5 * drawn.std()
    assert abs(found.mean() - drawn.mean()) < 4 * error
    assert abs(found.std() - drawn.std()) < 4 * error
