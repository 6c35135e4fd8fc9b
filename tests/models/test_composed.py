"""Missing targets, several tasks, targets in their own units: against densities by hand."""

import math

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
import torch.nn.functional as F
from pyro.infer import SVI, Predictive
from torch import nn

import pyro_ibvi as ibvi
from pyro_ibvi._util.inputs import as_tensors
from pyro_ibvi.front.choices import describe, restore
from pyro_ibvi.models import Masked, MultiTask, Standardized
from pyro_ibvi.models.weighted import Weighted
from pyro_ibvi.prediction import Prediction, fit_temperature

NAN = math.nan


def by_hand(model, guide, x):
    """The network's output for the draw that seed 1 gives."""
    torch.manual_seed(1)
    draw = {k.removeprefix("net."): v for k, v in guide.rsample().items()}
    return torch.func.functional_call(model.net.network, draw, (x,))


def losses(model, guide, x, y, **options):
    """The loss by traces, then without."""
    loss_fn = ibvi.TraceExpectedLogLikelihood(**options)(model, guide)
    for _ in range(2):
        torch.manual_seed(1)
        yield loss_fn(x, y)


def make(net, likelihood, **options):
    torch.manual_seed(0)
    model = ibvi.SupervisedModel(ibvi.RandomModule(net), likelihood, num_data=12, **options)
    return model, ibvi.AutoMuPNormal(model)


def test_missing_numbers_count_nothing():
    model, guide = make(nn.Linear(3, 2), Masked(ibvi.Normal(0.5)))
    x, y = torch.randn(4, 3), torch.randn(4, 2)
    y[0, 1] = y[2, 0] = y[2, 1] = NAN
    for mean, total in zip(
        losses(model, guide, x, y, reduction="mean"), losses(model, guide, x, y), strict=True
    ):
        seen = ~y.isnan()
        law = torch.distributions.Normal(by_hand(model, guide, x)[seen], 0.5)
        expected = -law.log_prob(y[seen]).sum()
        torch.testing.assert_close(total, 12 / 4 * expected)
        torch.testing.assert_close(mean, expected / (0.5 + 1 + 1))  # two halves and two data
        (gradient,) = torch.autograd.grad(total, guide.loc("net.weight"))
        assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("likelihood", "y"),
    [
        (ibvi.Bernoulli(), [[1.0, NAN], [0.0, 1.0]]),
        (ibvi.Poisson(), [[3.0, NAN], [0.0, 1.0]]),
    ],
)
def test_missing_labels_and_counts(likelihood, y):
    y, output = torch.tensor(y), torch.randn(2, 2)
    masked = Masked(likelihood)
    masked.check_target(y, output)
    log_prob = masked(output).log_prob(y)
    whole = likelihood(output).log_prob(torch.where(y.isnan(), 0.0, y))
    one = likelihood(output[:1, 1:]).log_prob(torch.zeros(1, 1))
    torch.testing.assert_close(log_prob, whole - torch.cat([one, torch.zeros(1)]))
    with pytest.raises(ValueError, match=r"must be 0 or 1|must be whole numbers"):
        masked.check_target(y + 0.5, output)


def test_targets_in_their_own_units():
    y = torch.tensor([[100.0], [300.0], [500.0], [100.0]])
    likelihood = Standardized.of(ibvi.Normal(0.1), y)
    model, guide = make(nn.Linear(3, 1), likelihood)
    x = torch.randn(4, 3)
    mean, std = y.mean(), y.std(correction=0)
    for loss in losses(model, guide, x, y, reduction="mean"):
        law = torch.distributions.Normal(mean + std * by_hand(model, guide, x), 0.1 * std)
        torch.testing.assert_close(loss, -law.log_prob(y).mean())
    prediction = ibvi.predict(model, guide, x, num_samples=50)
    assert prediction.aleatoric[0].sqrt().item() == pytest.approx(0.1 * std.item(), rel=1e-5)
    state = model.state_dict()
    assert {"likelihood.loc", "likelihood.scale"} <= state.keys()
    # Missing numbers in units of their own.
    missing = Masked(Standardized(ibvi.Normal(0.1), mean, std))
    assert missing(torch.zeros(1, 1)).log_prob(torch.tensor([[NAN]])) == 0.0


def test_moments_of_targets_that_are_no_tensor_or_not_all_there():
    y = np.array([[100, 1], [300, 2], [500, 4], [100, 1]])
    frame = pd.DataFrame(y, columns=["a", "b"])
    missing = frame.astype("float64")
    missing.iloc[1, 0] = NAN
    there = y[[0, 2, 3], 0]
    for targets in (y, frame, y.tolist(), torch.tensor(y), missing):
        likelihood = Standardized.of(ibvi.Normal(0.1), targets)
        first = there if targets is missing else y[:, 0]
        expected = [[first.mean(), y[:, 1].mean()], [first.std(), y[:, 1].std()]]
        found = torch.stack([likelihood.loc, likelihood.scale])
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    series = Standardized(ibvi.Normal(0.1), frame.mean(), frame.std(ddof=0))
    whole = Standardized.of(ibvi.Normal(0.1), y)
    assert series.arguments() == {**whole.arguments(), "likelihood": series.likelihood}
    prediction = ibvi.Prediction(torch.zeros(3, 4, 2), whole)
    assert torch.equal(prediction.cdf(frame), prediction.cdf(torch.tensor(y)))


@pytest.mark.parametrize(
    ("made_of", "given", "fits"),
    [
        ((8, 2), (8, 1), False),  # each datum would be two
        ((8, 2), (8,), False),
        ((8, 3), (8, 4, 2), False),
        ((8, 4, 2), (8, 2), False),
        ((8, 1), (8, 3), True),
        ((8, 1), (8,), True),
        ((8,), (8, 1), True),
        ((8, 2), (8, 4, 2), True),
    ],
)
def test_means_are_those_of_the_targets(made_of, given, fits):
    likelihood = Standardized.of(ibvi.Normal(0.1), torch.randn(made_of))
    y, output = torch.randn(given), torch.randn(given)
    if fits:
        likelihood.check_target(y, output)
        assert likelihood(output).log_prob(y).shape == (8,)
        return
    with pytest.raises(ValueError, match=r"Standardized has means .* of a datum have the shape"):
        likelihood.check_target(y, output)


class TwoHeads(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.body, self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 5), nn.Linear(8, 1)
        self.kind = kind

    def forward(self, x):
        h = self.body(x).relu()
        a, b = self.a(h), self.b(h)
        return {"kind": a, "age": b} if self.kind is dict else (a, b)


def tasks():
    label, number = ibvi.Categorical(ignore_index=-100), Masked(ibvi.Normal(0.5))
    return MultiTask({"kind": (label, 5), "age": (number, 1)})


@pytest.mark.parametrize("kind", [dict, tuple])
def test_tasks_add_up(kind):
    model, guide = make(TwoHeads(kind), tasks())
    x = torch.randn(4, 3)
    label, age = torch.tensor([1, -100, 4, -100]), torch.tensor([[0.5], [1.0], [NAN], [NAN]])
    y = {"kind": label, "age": age} if kind is dict else (label, age)
    for loss in losses(model, guide, x, y, reduction="mean"):
        output = by_hand(model, guide, x)
        logits, mean = output.values() if kind is dict else output
        first = F.cross_entropy(logits, label, reduction="sum", ignore_index=-100)
        law = torch.distributions.Normal(mean[:2], 0.5)
        torch.testing.assert_close(loss, (first - law.log_prob(age[:2]).sum()) / 3)
    pyro.set_rng_seed(0)
    drawn = Predictive(model, guide=guide, num_samples=3)(x)["obs"]
    assert drawn.shape == (3, 4, 2)
    assert (drawn[..., 0] == drawn[..., 0].round()).all()


def test_tasks_come_from_batches_that_are_mappings():
    model, guide = make(TwoHeads(dict), tasks(), target=["kind", "age"])
    optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": 1e-3}, guide)
    svi = SVI(model, guide, optim, ibvi.TraceExpectedLogLikelihood(reduction="mean"))
    batch = {"x": torch.randn(4, 3), "kind": torch.zeros(4).long(), "age": torch.zeros(4)}
    with pytest.raises(ValueError, match=r"target of the task 'age' has shape \(3,\)"):
        svi.step(**{**batch, "age": torch.zeros(3)})
    assert svi.step(**{**batch, "age": torch.zeros(4, 1)}) > 0
    assert svi.step(**batch) > 0


def test_columns_of_a_frame_are_tasks_by_their_names():
    x = torch.randn(6, 3)
    likelihood = MultiTask({"kind": (ibvi.Categorical(), 3), "mark": (ibvi.Categorical(), 3)})
    y = {"kind": torch.arange(6) % 3, "mark": torch.arange(6) % 2}
    frame = pd.DataFrame({name: part.numpy() for name, part in y.items()})
    assert torch.equal(frame_target(likelihood, frame), likelihood.as_target(y))
    found = []
    for targets in (y, frame, frame[["mark", "kind"]].assign(other=1.5)):
        torch.manual_seed(0)
        bnn = ibvi.VariationalNetwork(nn.Linear(3, 6), likelihood)
        history = bnn.fit(x, targets, num_epochs=1, valid_loader=(x, targets), progress=False)
        torch.manual_seed(1)
        step = bnn.svi.step(x, targets)
        score = ibvi.score(bnn.predict(x, seed=0), targets)
        found.append((history.train_loss, history.valid_loss, step, score))
    assert found[0] == found[1] == found[2]
    unnamed = frame.set_axis([0, 1], axis=1)
    assert torch.equal(frame_target(likelihood, unnamed), likelihood.as_target(y))


def frame_target(likelihood, frame):
    return likelihood.as_target(as_tensors(likelihood.by_task(frame), torch.float32)).float()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_labels_beside_short_numbers_stay_what_they_are(dtype):
    """In bfloat16 1001 is 1000, in float16 70001 is infinite."""
    label = torch.tensor([1001, 2049, 70001, 2**24 - 1])
    number = torch.tensor([[0.1], [0.2], [0.3], [0.4]], dtype=dtype)
    pair = {"kind": (ibvi.Categorical(), 5), "age": (ibvi.Normal(), 1)}
    apart = MultiTask(pair).split_target(MultiTask(pair).as_target((label, number)))
    assert torch.equal(apart["kind"].long(), label)
    assert torch.equal(apart["age"].to(dtype), number)
    plain, weight = Weighted(ibvi.Categorical()).split(
        Weighted(ibvi.Categorical()).join(label, number[:, 0])
    )
    assert torch.equal(plain, label)
    assert torch.equal(weight.to(dtype), number[:, 0])


def test_labels_that_no_number_beside_them_holds_are_refused():
    pair = MultiTask({"kind": (ibvi.Categorical(), 5), "age": (ibvi.Normal(), 1)})
    label = torch.tensor([3, 2**24 + 1])
    with pytest.raises(ValueError, match="number 16777217 would become 16777216 in one tensor"):
        pair.as_target((label, torch.zeros(2, 1)))
    target = pair.as_target((label, torch.zeros(2, 1).double()))
    assert torch.equal(pair.split_target(target)["kind"].long(), label)


def test_tasks_in_bfloat16_learn_the_labels_that_they_were_given():
    num_classes = 1500
    likelihood = MultiTask({"kind": (ibvi.Categorical(), num_classes), "age": (ibvi.Normal(), 1)})
    model, guide = make(nn.Linear(3, num_classes + 1).bfloat16(), likelihood)
    x, label, age = (
        torch.randn(4, 3).bfloat16(),
        torch.tensor([1001, 2, 1499, 514]),
        torch.zeros(4),
    )
    for loss in losses(model, guide, x, (label, age.bfloat16()), reduction="mean"):
        output = by_hand(model, guide, x).float()
        law = torch.distributions.Normal(output[:, -1], 1.0)
        expected = F.cross_entropy(output[:, :-1], label) - law.log_prob(age).mean()
        torch.testing.assert_close(loss, expected)


def test_tasks_have_parameters_of_their_own():
    both = {name: (ibvi.Normal(0.5, learn_scale=True), 1) for name in ("a", "b")}
    model, _ = make(nn.Linear(3, 2), MultiTask(both))
    trace = pyro.poutine.trace(model).get_trace(torch.zeros(4, 3), torch.zeros(4, 2))
    names = [name for name in trace.nodes if name.endswith("log_scale")]
    assert names == ["likelihood.tasks.a.log_scale", "likelihood.tasks.b.log_scale"]


@pytest.mark.parametrize(
    "likelihood",
    [
        ibvi.Categorical(class_dim=1, weight=[0.1, 0.9], ignore_index=3, label_smoothing=0.2),
        Masked(Standardized(ibvi.Normal(0.1), [0.1, 0.2], [1.5, 2.5])),
        tasks(),
    ],
)
def test_likelihoods_are_made_again_from_their_arguments(likelihood):
    again = restore(describe(likelihood))
    assert repr(again) == repr(likelihood)
    assert describe(again) == describe(likelihood)
    buffers = dict(again.named_buffers())
    for name, buffer in likelihood.named_buffers():
        assert torch.equal(buffer, buffers[name])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_likelihood_of_two_tasks_is_one(reduction):
    """Its noise learns from both, and is one after it is saved."""

    def of(first, second):
        torch.manual_seed(0)
        likelihood = MultiTask({"a": (first, 1), "b": (second, 1)})
        return make(nn.Linear(3, 2), likelihood)

    noise = ibvi.Normal(0.5, learn_scale=True)
    x, y = torch.randn(6, 3), torch.randn(6, 2)
    model, guide = of(noise, noise)
    apart, other = of(*(ibvi.Normal(0.5, learn_scale=True) for _ in range(2)))
    other.load_state_dict(guide.state_dict())
    apart.net.load_state_dict(model.net.state_dict())
    together = list(losses(model, guide, x, y, reduction=reduction))
    alone = list(losses(apart, other, x, y, reduction=reduction))
    for loss, parts in zip(together, alone, strict=True):
        shared = model.likelihood.likelihoods["a"].log_scale  # the model has a copy of its own
        (gradient,) = torch.autograd.grad(loss, [shared])
        scales = [likelihood.log_scale for likelihood in apart.likelihood.likelihoods.values()]
        own = torch.autograd.grad(parts, scales)
        torch.testing.assert_close(gradient, own[0] + own[1])
        assert min(abs(g.item()) for g in own) > 1e-3
    names = [name for name, _, _ in guide.named_rates("sgd") if "log_scale" in name]
    assert len(names) == len({id(p) for p in model.likelihood.parameters()}) == 1
    for likelihood, num in ((model.likelihood, 1), (apart.likelihood, 2)):
        again = restore(describe(likelihood))
        assert len(list(again.parameters())) == num


def test_bad_parts():
    with pytest.raises(TypeError, match="Masked needs a likelihood of numbers, got Categorical"):
        Masked(ibvi.Categorical())
    with pytest.raises(TypeError, match=r"needs a likelihood such as Normal\(0.1\), got Normal"):
        Masked(ibvi.Normal)
    with pytest.raises(TypeError, match="Masked needs a likelihood of numbers, got MultiTask"):
        Masked(tasks())
    with pytest.raises(TypeError, match=r"such as Normal\(0\.1\), got Tensor"):
        Standardized.of(torch.ones(4, 1), ibvi.Normal())
    for outside in (Masked, lambda inner: Standardized(inner, 0.0, 1.0)):
        with pytest.raises(TypeError, match=r"Masked is outermost, once: write Masked\(Standard"):
            outside(Masked(ibvi.Normal()))
    with pytest.raises(TypeError, match="likelihood of real numbers, got the Poisson"):
        Standardized(ibvi.Poisson(), 0.0, 1.0)
    with pytest.raises(ValueError, match="positive standard deviations, got loc"):
        Standardized.of(ibvi.Normal(), torch.ones(4, 1))
    with pytest.raises(ValueError, match=r"got loc \[0\.1\] and scale \[0\.0\]"):
        Standardized.of(ibvi.Normal(), np.full((1000, 1), 0.1))  # whose sum is not 100
    with pytest.raises(ValueError, match="needs a task at least"):
        MultiTask({})
    with pytest.raises(TypeError, match=r"takes its tasks by name, .*, got \[Normal\(\)\]"):
        MultiTask([ibvi.Normal()])
    with pytest.raises(TypeError, match=r"such as \(Categorical\(\), 10\); got Normal"):
        MultiTask({"a": ibvi.Normal()})
    with pytest.raises(
        ValueError, match="The width of 'a' must be a positive whole number, got 0"
    ):
        MultiTask({"a": (ibvi.Normal(), 0)})
    likelihood = tasks()
    with pytest.raises(TypeError, match=r"an output for each of \['kind', 'age'\]"):
        likelihood.as_tensor((torch.zeros(4, 5),))
    with pytest.raises(ValueError, match=r"No output for the task 'age' among \['kind'\]"):
        likelihood.as_tensor({"kind": torch.zeros(4, 5)})
    with pytest.raises(ValueError, match=r"output of the task 'kind' has shape \(4, 6\), expect"):
        likelihood.as_tensor((torch.zeros(4, 6), torch.zeros(4, 1)))
    alone = MultiTask({"a": (ibvi.Normal(), 1)})
    with pytest.raises(ValueError, match="target of the task 'a' holds NaN"):
        alone.check_target(torch.tensor([[NAN]]), torch.zeros(1, 1))
    model, _ = make(nn.Linear(3, 1), ibvi.Normal())
    with pytest.raises(ValueError, match=r"left out by Masked"):
        model(torch.zeros(2, 3), torch.tensor([[0.0], [NAN]]))


def test_tasks_have_a_temperature_each():
    prediction = Prediction(torch.randn(4, 10, 6), tasks())
    y = {"kind": torch.randint(5, (10,)), "age": torch.randn(10, 1)}
    with pytest.raises(TypeError, match=r"fit_temperature\(prediction\['name'\], y\['name'\]\)"):
        prediction.at_temperature(2.0)
    with pytest.raises(TypeError, match="Several tasks"):
        fit_temperature(prediction, y)
    found = fit_temperature(prediction["kind"], y["kind"])
    own = prediction["kind"].at_temperature(found.value)
    assert ibvi.score(own, y["kind"])["nll"] == pytest.approx(found.nll, rel=1e-5)
