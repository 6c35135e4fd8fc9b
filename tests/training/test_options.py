"""What fit offers beside its loop: accumulation, schedules, precision, metrics, patience."""

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn

import pyro_ibvi as ibvi
from pyro_ibvi.training import progress
from tests.training.test_loop import make_data, make_loader, make_svi

POINT = {"*": None}  # without noise a batch's gradient is a mean over its data


def parameters(svi):
    return {n: p.detach().clone() for n, p in svi.guide.named_parameters()}


@pytest.mark.filterwarnings("ignore:The learning rates of MuPOptim are meant")
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_accumulated_batches_are_one_large_batch(reduction):
    def make():
        pyro.set_rng_seed(0)
        svi = make_svi(covariance=POINT, lr=1e-2 if reduction == "mean" else 2e-4)
        loss = ibvi.TraceExpectedLogLikelihood(reduction=reduction)
        return SVI(svi.model, svi.guide, svi.optim, loss)

    x, y = make_data()
    sizes = [10, 4, 6, 20]
    batches = list(zip(x.split(sizes), y.split(sizes), strict=True))
    by_parts, whole = make(), make()
    history = ibvi.fit(by_parts, batches, 3, accumulate=3, progress=False)
    larger = [(x[:20], y[:20]), (x[20:], y[20:])]
    expected = ibvi.fit(whole, larger, 3, progress=False)
    assert history.train_loss == pytest.approx(expected.train_loss, rel=1e-5)
    for name, value in parameters(by_parts).items():
        torch.testing.assert_close(value, parameters(whole)[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("place", [0, 1])
def test_an_empty_batch_among_several_is_refused(place):
    x, y = make_data()
    sizes = [0, 20] if place == 0 else [20, 0]
    batches = list(zip(x[:20].split(sizes), y[:20].split(sizes), strict=True))
    for svi in (make_svi(), make_stock(pyro.optim.SGD({"lr": 1e-3}))):
        with pytest.raises(ValueError, match=r"The batch is empty: at step 0 of epoch 0"):
            ibvi.fit(svi, batches, 1, accumulate=2, progress=False)


def test_a_schedule_by_steps():
    svi = make_svi(scheduler=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5))
    start = [group["lr"] for group in svi.optim.optimizer.param_groups]
    ibvi.fit(svi, make_loader(), 2, schedule_every="step", accumulate=2, progress=False)
    end = [group["lr"] for group in svi.optim.optimizer.param_groups]
    assert end == pytest.approx([rate / 2**4 for rate in start])  # of 4 batches in 2 steps, twice


def regression(x, y):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(slope * x, 0.5).to_event(1), obs=y)


def make_stock(optim):
    return SVI(regression, AutoNormal(regression), optim, Trace_ELBO())


def cycle(optimizer, num_steps):
    rates = [group["lr"] for group in optimizer.param_groups]
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, num_steps)


@pytest.mark.parametrize("kind", [cycle, torch.optim.lr_scheduler.CosineAnnealingLR])
def test_a_schedule_for_steps_that_goes_by_epochs_is_told(kind):
    def train(num_steps, interval):
        svi = make_svi(scheduler=lambda optimizer: kind(optimizer, num_steps))
        ibvi.fit(svi, make_loader(), 3, schedule_every=interval, progress=False)

    with pytest.warns(UserWarning, match=r"has 12 steps, .* 3 epochs .* schedule_every='step'"):
        train(12, "epoch")
    train(12, "step")  # these in silence
    train(13, "epoch")


def test_pyros_schedulers_take_steps_too():
    adam = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}}
    plain = pyro.optim.StepLR({**adam, "step_size": 2, "gamma": 0.1})
    plateau = pyro.optim.ReduceLROnPlateau({**adam, "patience": 0, "threshold": 1e9})
    for optim, expected in ((plain, 0.1**3), (plateau, 0.1**5)):
        pyro.clear_param_store()
        ibvi.fit(make_stock(optim), make_loader(), 4, progress=False)
        rates = [s.optimizer.param_groups[0]["lr"] for s in optim.optim_objs.values()]
        assert rates == pytest.approx([expected] * 2)


def test_inner_arithmetic_in_bfloat16():
    pyro.set_rng_seed(0)
    svi = make_svi()
    seen = set()
    hook = lambda module, args, output: seen.add(output.dtype)  # noqa: E731
    svi.model.net.network[0].register_forward_hook(hook)
    history = ibvi.fit(svi, make_loader(), 20, autocast=torch.bfloat16, progress=False)
    assert torch.bfloat16 in seen
    assert {p.dtype for p in svi.guide.parameters()} == {torch.float32}
    pyro.set_rng_seed(0)
    expected = ibvi.fit(make_svi(), make_loader(), 20, progress=False)
    assert history.train_loss[-1] == pytest.approx(expected.train_loss[-1], rel=0.05)


def nlls(values):
    """Metrics that are known beforehand, and the parameters that they are of."""
    found, values = [], iter(values)

    def measure(model, guide, loader):
        assert not model.training
        assert not guide.training
        torch.rand(3)  # its random numbers are its own
        found.append({n: p.detach().clone() for n, p in guide.named_parameters()})
        return {"nll": next(values), "error": 0.5}

    return found, measure


def test_patience_stops_and_puts_the_best_back():
    svi = make_svi()
    found, measure = nlls([3.0, 1.0, 2.0, 1.5, 1.2, 0.1])
    history = ibvi.fit(
        svi,
        make_loader(),
        10,
        valid_loader=make_loader(),
        metrics=measure,
        patience=3,
        progress=False,
    )
    assert history.metrics == {"nll": [3.0, 1.0, 2.0, 1.5, 1.2], "error": [0.5] * 5}
    for name, value in parameters(svi).items():
        assert torch.equal(value, found[1][name])
        assert not torch.equal(value, found[-1][name])


def test_the_best_is_put_back_where_patience_lasts_and_may_be_another_number():
    svi = make_svi()
    found, measure = nlls([3.0, 2.0, 1.0])
    history = ibvi.fit(
        svi,
        make_loader(),
        3,
        valid_loader=make_loader(),
        metrics=measure,
        patience=3,
        monitor="error",
        progress=False,
    )
    assert history.num_epochs == 3
    assert torch.equal(parameters(svi)["locs.net.0.weight"], found[0]["locs.net.0.weight"])


@pytest.mark.parametrize("name", ["accuracy", "kind/accuracy"])
def test_accuracies_are_best_where_they_are_large(name):
    svi = make_svi()
    found, measure = nlls([1.0, 2.0, 3.0, 4.0, 5.0])
    accuracies = iter([0.5, 0.9, 0.7, 0.8, 0.95])
    history = ibvi.fit(
        svi,
        make_loader(),
        10,
        valid_loader=make_loader(),
        metrics=lambda *args: {**measure(*args), name: next(accuracies)},
        patience=2,
        monitor=name,
        progress=False,
    )
    assert history.num_epochs == 4
    assert torch.equal(parameters(svi)["locs.net.0.weight"], found[1]["locs.net.0.weight"])


def test_metrics_leave_the_training_alone():
    def train(**kwargs):
        pyro.set_rng_seed(0)
        svi = make_svi()
        loader = make_loader()
        ibvi.fit(svi, loader, 2, valid_loader=loader, progress=False, **kwargs)
        return parameters(svi)

    _, measure = nlls([1.0, 1.0])
    plain, measured = train(), train(metrics=measure)
    assert all(torch.equal(plain[name], measured[name]) for name in plain)


def hidden_in_a_function(net):
    def model(x, y):
        output = net(x)
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(output * slope, 1.0).to_event(1), obs=y)

    return model


class Owner(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def model(self, x, y):
        return hidden_in_a_function(self.net)(x, y)


@pytest.mark.parametrize("kind", [hidden_in_a_function, lambda net: Owner(net).model])
def test_models_that_are_no_modules_are_validated_in_evaluation_mode(kind):
    net = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    model, seen = kind(net), []
    net[1].register_forward_hook(lambda module, *_: seen.append(module.training))
    optim = pyro.optim.Adam({"lr": 0.01})
    svi = SVI(model, AutoNormal(model), optim, Trace_ELBO())
    svi.step(*make_data())  # the guide looks at the model once more when it is first called
    seen.clear()
    ibvi.fit(svi, make_loader(), 1, valid_loader=make_loader(), progress=False)
    assert seen == [True] * 4 + [False] * 4
    assert net.training


class Bar:
    """Stands for tqdm and notes what it was told."""

    def __init__(self, *, total, initial, disable, **_):
        self.total, self.n, self.disable, self.texts = total, initial, bool(disable), []
        self.moves = []
        type(self).last = self

    def update(self):
        self.n += 1
        self.moves.append(self.n)

    def set_description(self, text, **_):
        self.texts.append(text)

    def set_postfix(self, values):
        self.texts.append(values)

    def close(self):
        self.moves.append("closed")


def test_the_bar_moves_within_an_epoch(monkeypatch):
    monkeypatch.setattr(progress, "tqdm", Bar)
    _, measure = nlls([0.25, 0.125])
    loader = make_loader()
    ibvi.fit(make_svi(), loader, 2, valid_loader=loader, metrics=measure, accumulate=3)
    assert Bar.last.total == 4  # of 4 batches in 2 steps, twice
    assert Bar.last.moves == [1, 2, 3, 4, "closed"]
    assert Bar.last.texts[0] == "fit, epoch 2/2"
    assert Bar.last.texts[-1].keys() == {"loss", "valid", "nll", "error"}
    assert Bar.last.texts[-1]["nll"] == "0.125"

    class Endless:
        def __iter__(self):
            return itertools.islice(iter(make_loader()), 3)

    ibvi.fit(make_svi(), Endless(), 2)
    assert Bar.last.total == 6
