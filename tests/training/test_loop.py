"""Training loops: epochs, modes, schedules, and what stops them."""

import copy
import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_ibvi as ibvi


def make_data(num_data=40):
    x = torch.linspace(-1, 1, num_data).unsqueeze(-1)
    return x, torch.sin(3 * x)


def make_svi(net=None, *, lr=1e-2, scheduler=None, num_data=40, covariance=None):
    net = net or nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
    model = ibvi.SupervisedModel(ibvi.RandomModule(net), ibvi.Normal(0.3), num_data=num_data)
    guide = ibvi.AutoMuPNormal(model, covariance=covariance or ibvi.LowRank(5))
    optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": lr}, guide, scheduler=scheduler)
    return SVI(model, guide, optim, ibvi.TraceExpectedLogLikelihood(reduction="mean"))


def make_loader(num_data=40, batch_size=10):
    return DataLoader(TensorDataset(*make_data(num_data)), batch_size=batch_size)


def test_fit_is_a_loop_over_step():
    pyro.set_rng_seed(0)
    svi = make_svi()
    pyro.set_rng_seed(1)
    history = ibvi.fit(svi, make_loader(), 3, progress=False)
    pyro.set_rng_seed(0)
    by_hand = make_svi()
    pyro.set_rng_seed(1)
    losses = [[by_hand.step(x, y) for x, y in make_loader()] for _ in range(3)]
    assert history.train_loss == pytest.approx([sum(epoch) / 4 for epoch in losses], rel=1e-12)
    for one, other in zip(svi.guide.parameters(), by_hand.guide.parameters(), strict=True):
        assert torch.equal(one, other)


def test_fit_learns():
    pyro.set_rng_seed(0)
    svi = make_svi(lr=2e-2)
    history = ibvi.fit(svi, make_loader(), 150, progress=False)
    assert history.train_loss[-1] < 0.5 * history.train_loss[0]
    x, y = make_data()
    assert ibvi.score(ibvi.predict(svi.model, svi.guide, x), y)["rmse"] < 0.35


def test_fit_serves_any_pyro_model_and_batches_of_every_kind():
    def model(x, y=None):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)

    x = torch.linspace(-1, 1, 8)
    for batches in ([(x, 2 * x)], [{"x": x, "y": 2 * x}], [[x, 2 * x]]):
        pyro.clear_param_store()
        svi = SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
        history = ibvi.fit(svi, batches, 40, valid_loader=batches, progress=False)
        assert history.train_loss[-1] < history.train_loss[0]
        assert len(history.valid_loss) == history.num_epochs == 40

    def constant(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    svi = SVI(constant, AutoNormal(constant), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    assert ibvi.fit(svi, [x], 1, progress=False).num_epochs == 1


def test_validation_is_in_evaluation_mode_and_leaves_the_network_alone():
    net = nn.Sequential(nn.Linear(1, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
    svi = make_svi(net)
    svi.model.net.network[2].eval()  # frozen by its user, and to be given back so
    statistics = svi.model.net.network[1]
    before = statistics.running_mean.clone()
    seen = []
    hook = svi.model.net.network[1].register_forward_hook(
        lambda module, *_: seen.append(module.training)
    )
    ibvi.fit(svi, make_loader(), 1, valid_loader=make_loader(), progress=False)
    hook.remove()
    assert seen == [True] * 4 + [False] * 4
    assert not torch.equal(before, statistics.running_mean)
    assert statistics.num_batches_tracked == 4
    assert statistics.training
    assert not svi.model.net.network[2].training


def test_validation_loss_weights_batches_by_their_size():
    pyro.set_rng_seed(0)
    svi = make_svi(covariance={"*": None})  # without noise the loss is a mean over the data
    uneven = make_loader(40, batch_size=30)
    loss = ibvi.fit(svi, make_loader(), 1, valid_loader=uneven, progress=False).valid_loss[0]
    assert loss == pytest.approx(svi.evaluate_loss(*make_data()), rel=1e-5)


def test_scheduler_steps_once_an_epoch():
    svi = make_svi(
        scheduler=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    )
    start = [group["lr"] for group in svi.optim.optimizer.param_groups]
    ibvi.fit(svi, make_loader(), 3, progress=False)
    end = [group["lr"] for group in svi.optim.optimizer.param_groups]
    assert end == pytest.approx([rate / 8 for rate in start])


def test_plateau_scheduler_looks_at_the_validation_loss():
    def plateau(optimizer):
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=1e9)

    svi = make_svi(scheduler=plateau)
    start = svi.optim.optimizer.param_groups[0]["lr"]
    ibvi.fit(svi, make_loader(), 2, valid_loader=make_loader(), progress=False)
    assert svi.optim.optimizer.param_groups[0]["lr"] < start


def test_callback_stops_and_history_goes_on():
    svi = make_svi()
    history = ibvi.fit(
        svi, make_loader(), 10, callback=lambda epoch, _: epoch == 1, progress=False
    )
    assert history.num_epochs == 2
    assert ibvi.fit(svi, make_loader(), 1, history=history, progress=False).num_epochs == 3


@pytest.mark.parametrize("end", [np.bool_(True), torch.tensor(True)])
def test_an_answer_of_other_libraries_ends_training_too(end):
    fit = partial(ibvi.fit, make_svi(), make_loader(), 3, progress=False)
    assert fit(callback=lambda *_: end).num_epochs == 1
    assert fit(callback=lambda *_: ~end).num_epochs == 3


@pytest.mark.parametrize("what", [0.3, 1, "stop", {"loss": 0.3}])
def test_what_is_no_answer_of_a_callback_is_refused(what):
    with pytest.raises(TypeError, match="says whether training ends: return True to end it, and"):
        ibvi.fit(make_svi(), make_loader(), 3, callback=lambda *_: what, progress=False)


def test_a_loss_that_is_not_finite_stops_before_the_step():
    x, y = make_data(20)

    svi = make_svi(num_data=20)
    good = (x[:10], y[:10])
    before = copy.deepcopy(dict(svi.guide.named_parameters()))
    loss_and_grads = svi.loss_and_grads

    def explode(model, guide, *args):
        loss_and_grads(model, guide, *args)
        return math.nan

    svi.loss_and_grads = explode
    with pytest.raises(FloatingPointError, match=r"step 0 of epoch 0.*learning rate"):
        ibvi.fit(svi, [good], 1, progress=False)
    for name, parameter in svi.guide.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
    assert svi.loss_and_grads is explode


@pytest.mark.filterwarnings("ignore:Encountered")
def test_a_diverging_run_names_its_sites():
    pyro.set_rng_seed(0)
    svi = make_svi(lr=1e6)
    with pytest.raises(FloatingPointError, match="sites that are not finite"):
        ibvi.fit(svi, make_loader(), 200, progress=False)
    assert all(parameter.isfinite().all() for parameter in svi.guide.parameters())


def test_bad_input():
    svi = make_svi()
    with pytest.raises(ValueError, match="training loader is empty"):
        ibvi.fit(svi, [], 1, progress=False)
    with pytest.raises(ValueError, match="validation loader is empty"):
        ibvi.fit(svi, make_loader(), 1, valid_loader=[], progress=False)
    for epochs in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="num_epochs must be a positive whole number"):
            ibvi.fit(svi, make_loader(), epochs, progress=False)
