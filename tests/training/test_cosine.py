"""The schedule that ends with the epochs of fit, beside torch's own."""

import contextlib
import itertools
import pickle

import pytest
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import pyro_ibvi as ibvi


def by_torch(num_epochs):
    return lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, num_epochs)


def make(scheduler, make_guide=ibvi.AutoMuPNormal):
    torch.manual_seed(0)
    net = ibvi.RandomModule(nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)))
    model = ibvi.SupervisedModel(net, ibvi.Normal(0.1), num_data=32)
    guide = make_guide(model)
    optim = ibvi.MuPOptim(torch.optim.Adam, {"lr": 0.1}, guide, scheduler=scheduler)
    return SVI(model, guide, optim, ibvi.TraceExpectedLogLikelihood(reduction="mean"))


@pytest.fixture
def batches():
    x = torch.linspace(-1, 1, 64).reshape(32, 2)
    return [(x[:16], x[:16, :1]), (x[16:], x[16:, :1])]


@contextlib.contextmanager
def watched_rates():
    """The first group's rate in each step."""
    rates = []

    def see(optimizer, *_):
        rates.append(optimizer.param_groups[0]["lr"])

    handle = register_optimizer_step_pre_hook(see)
    try:
        yield rates
    finally:
        handle.remove()


def rates_of(svi, batches, num_epochs, **options):
    with watched_rates() as rates:
        ibvi.fit(svi, batches, num_epochs, progress=False, **options)
    return rates


def test_it_is_torchs_cosine_over_the_epochs(batches):
    ours, theirs = make("cosine"), make(by_torch(5))
    expected = rates_of(theirs, batches, 5)
    assert rates_of(ours, batches, 5) == pytest.approx(expected, rel=1e-12)
    assert expected[-1] < 0.1 * expected[0]  # the control


def test_each_call_of_fit_begins_at_the_full_rate_and_leaves_it(batches):
    svi = make("cosine")
    first = rates_of(svi, batches, 4)
    assert rates_of(svi, batches, 4) == first
    assert svi.optim.optimizer.param_groups[0]["lr"] == first[0]
    assert rates_of(svi, batches, 2) == pytest.approx([first[0]] * 2 + [first[0] / 2] * 2)


def test_early_stopping_leaves_the_full_rate(batches):
    svi = make("cosine")
    rates_of(svi, batches, 6, callback=lambda epoch, history: epoch == 2)
    assert svi.optim.scheduler.get_last_lr() == svi.optim.scheduler.base_lrs
    assert svi.optim.optimizer.param_groups[0]["lr"] == svi.optim.scheduler.base_lrs[0]


@pytest.mark.parametrize("num_epochs", [6, 9])
def test_an_interrupted_training_goes_on_where_it_was(batches, tmp_path, num_epochs):
    def interrupt(epoch, history):
        if epoch == 2:
            raise KeyboardInterrupt  # before the epoch is saved: two are done

    options = {"checkpoint": tmp_path / "run.pt"}
    with pytest.raises(KeyboardInterrupt):
        rates_of(make("cosine"), batches, 6, callback=interrupt, **options)
    whole = rates_of(make(by_torch(num_epochs)), batches, num_epochs)
    rates = rates_of(make("cosine"), batches, num_epochs, **options)
    assert rates == pytest.approx(whole[4:], rel=1e-9)


def test_more_epochs_than_were_asked_for_are_trained(batches, tmp_path):
    options = {"checkpoint": tmp_path / "run.pt"}
    rates_of(make("cosine"), batches, 3, **options)
    rates = rates_of(make("cosine"), batches, 6, **options)
    assert rates == pytest.approx(rates_of(make(by_torch(6)), batches, 6)[6:], rel=1e-9)


def test_it_serves_guides_whose_parameters_come_with_the_first_step(batches):
    whole = rates_of(make(by_torch(3)), batches, 3)
    share = [rate / whole[0] for rate in whole]
    rates = rates_of(make("cosine", AutoNormal), batches, 3)
    assert [rate / rates[0] for rate in rates] == pytest.approx(share)


def test_steps_of_ones_own_are_at_the_full_rate(batches):
    svi, constant = make("cosine"), make(None)
    for each, (x, y) in itertools.product((svi, constant), batches):
        torch.manual_seed(1)
        each.step(x, y)
        each.optim.step_scheduler()
    for ours, theirs in zip(svi.guide.parameters(), constant.guide.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_it_goes_by_epochs_alone(batches):
    with pytest.raises(ValueError, match="'cosine' goes by the epochs of fit"):
        ibvi.fit(make("cosine"), batches, 2, schedule_every="step", progress=False)


def test_the_front_door_takes_it_and_keeps_it_in_copies():
    x = torch.linspace(-1, 1, 64).reshape(32, 2)
    bnn = ibvi.VariationalNetwork(nn.Linear(2, 1), ibvi.Normal(0.1), scheduler="cosine")
    copy = pickle.loads(pickle.dumps(bnn))
    for each in (bnn, copy):
        torch.manual_seed(3)
        each.fit(x, x[:, :1], num_epochs=3, batch_size=8, progress=False)
    for ours, theirs in zip(bnn.guide.parameters(), copy.guide.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("likelihood", "num_epochs", "options", "falls"),
    [
        (ibvi.Normal(0.1), 250, {}, True),  # a thousand steps
        (ibvi.Normal(0.1), 249, {}, False),
        (ibvi.Normal(0.1), 499, {"accumulate": 2}, False),
        (ibvi.Normal(0.1), 250, {"scheduler": "constant"}, False),
        (ibvi.Bernoulli(), 250, {}, False),
    ],
)
def test_by_default_the_rate_of_numbers_falls_in_a_long_training(
    likelihood, num_epochs, options, falls
):
    x = torch.linspace(0, 1, 16).reshape(8, 2)
    chosen = {name: options.pop(name) for name in ("scheduler",) if name in options}
    bnn = ibvi.VariationalNetwork(nn.Linear(2, 1), likelihood, **chosen)
    options = {"num_epochs": num_epochs, "batch_size": 2, "progress": False, **options}
    with watched_rates() as rates:
        bnn.fit(x, (x[:, :1] > 0.5).float(), **options)
    assert (rates[-1] < 0.01 * rates[0]) if falls else len(set(rates)) == 1


def test_what_adam_leaves_is_not_taken_for_noise():
    """Targets without noise: the scale that is learned is what training leaves of the error."""
    torch.manual_seed(0)
    x = torch.rand(64, 2)
    scales = {}
    for scheduler in ("constant", None):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, 1))
        law = ibvi.Normal(0.3, learn_scale=True)
        bnn = ibvi.VariationalNetwork(net, law, scheduler=scheduler)
        bnn.fit(x, x.prod(1, keepdim=True), num_epochs=250, batch_size=16, progress=False)
        scales[scheduler] = bnn.likelihood.scale.item()
    assert scales[None] < 0.7 * scales["constant"]
