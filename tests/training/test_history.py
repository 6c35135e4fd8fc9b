"""What a history says of its epochs where they did not all measure the same."""

import math

import pyro
import pytest
import torch

import pyro_ibvi as ibvi
from pyro_ibvi.training import History
from tests.training.test_loop import make_loader, make_svi

NAN = pytest.approx(math.nan, nan_ok=True)


def constant(*names):
    return lambda model, guide, loader: dict.fromkeys(names, 0.5)


def test_lists_have_an_entry_for_each_epoch_and_the_last_ones_are_of_that_epoch():
    svi, history = make_svi(), History()

    def train(num_epochs, **options):
        return ibvi.fit(svi, make_loader(), num_epochs, history=history, progress=False, **options)

    train(1)
    assert history.valid_loss == []
    assert history.last() == {"train_loss": history.train_loss[-1]}
    train(2, valid_loader=make_loader(), metrics=constant("nll", "error"))
    assert history.last().keys() == {"train_loss", "valid_loss", "nll", "error"}
    train(1)
    assert history.last() == {"train_loss": history.train_loss[-1]}
    train(1, valid_loader=make_loader(), metrics=constant("error"))
    assert history.last().keys() == {"train_loss", "valid_loss", "error"}
    assert [math.isnan(value) for value in history.valid_loss] == [True, False, False, True, False]
    assert history.metrics == {
        "nll": [NAN, 0.5, 0.5, NAN, NAN],
        "error": [NAN, 0.5, 0.5, NAN, 0.5],
    }
    restored = History()
    restored.replace(history.to_dict())
    assert restored.last() == history.last()


def test_a_measured_nan_is_a_number_of_its_epoch():
    history = History()
    history.add_epoch(1.0)
    history.add_validation(2.0, {"nll": math.nan})
    assert history.last() == {"train_loss": 1.0, "valid_loss": 2.0, "nll": NAN}


def test_patience_looks_at_what_this_training_measures():
    pyro.set_rng_seed(0)
    svi = make_svi(covariance={"*": None})  # without noise the loss falls in each epoch
    options = {"valid_loader": make_loader(), "progress": False}
    history = ibvi.fit(svi, make_loader(), 2, metrics=constant("nll"), **options)
    ibvi.fit(svi, make_loader(), 20, history=history, patience=2, **options)
    assert history.num_epochs == 22


def test_a_schedule_looks_at_what_this_training_measures():
    def plateau(optimizer):
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.0)

    pyro.set_rng_seed(0)
    svi = make_svi(covariance={"*": None}, scheduler=plateau)
    history = ibvi.fit(svi, make_loader(), 2, valid_loader=make_loader(), progress=False)
    rate = svi.optim.optimizer.param_groups[0]["lr"]
    svi.optim.scheduler.best = math.inf  # the training loss is not compared with another one
    ibvi.fit(svi, make_loader(), 10, history=history, progress=False)
    assert svi.optim.optimizer.param_groups[0]["lr"] == rate


@pytest.mark.parametrize("first", [math.nan, math.inf])
def test_any_number_is_better_than_nan(first):
    svi = make_svi()
    values = iter([first, 3.0, 2.0, math.nan, 2.5, 2.25])
    tensors = []

    def measure(model, guide, loader):
        tensors.append({n: p.detach().clone() for n, p in guide.named_parameters()})
        return {"nll": next(values)}

    history = ibvi.fit(
        svi,
        make_loader(),
        10,
        valid_loader=make_loader(),
        metrics=measure,
        patience=3,
        progress=False,
    )
    assert history.num_epochs == 6
    for name, parameter in svi.guide.named_parameters():
        assert torch.equal(parameter, tensors[2][name])


def test_nan_throughout_is_no_better_either():
    history = ibvi.fit(
        make_svi(),
        make_loader(),
        10,
        valid_loader=make_loader(),
        metrics=lambda *_: {"nll": math.nan},
        patience=2,
        progress=False,
    )
    assert history.num_epochs == 3
