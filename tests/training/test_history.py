"""What a history says of its epochs where they did not all measure the same."""

import itertools
import math

import pyro
import pytest
import torch
from pyro.infer import SVI

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


def plateau(optimizer):
    return torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, patience=0, threshold=0.0, eps=0.0
    )


def pyros_plateau(svi):
    args = {
        "optimizer": torch.optim.SGD,
        "optim_args": {"lr": 1e-4},
        "patience": 0,
        "threshold": 0.0,
    }
    return SVI(svi.model, svi.guide, pyro.optim.ReduceLROnPlateau(args), svi.loss)


@pytest.mark.parametrize("change", [lambda svi: svi, pyros_plateau], ids=["ours", "Pyro's"])
@pytest.mark.parametrize("is_resumed", [False, True])
def test_a_plateau_compares_a_number_with_itself(tmp_path, monkeypatch, change, is_resumed):
    """Both losses fall from epoch to epoch, and that of validation is far above the other."""
    measured, falling = History.last, itertools.count(0.0, -1.0)
    offsets = {"train_loss": 0.0, "valid_loss": 1e6}

    def make():
        pyro.set_rng_seed(0)
        return change(make_svi(scheduler=plateau))

    def rates(svi):
        is_one = isinstance(svi.optim, ibvi.MuPOptim)
        inner = [svi.optim] if is_one else svi.optim.optim_objs.values()
        return [group["lr"] for one in inner for group in one.optimizer.param_groups]

    def train(svi, num_epochs, is_validated):
        options = {"valid_loader": make_loader() if is_validated else None, "progress": False}
        if is_resumed:
            options["checkpoint"] = tmp_path / "run.pt"
        ibvi.fit(svi, make_loader(), num_epochs, **options)

    monkeypatch.setattr(
        History,
        "last",
        lambda self: {name: offsets[name] + next(falling) for name in measured(self)},
    )
    svi, seen = make(), []
    for done, is_validated in enumerate([False, True, False, True]):
        svi = make() if is_resumed else svi
        train(svi, 3 * (done + 1) if is_resumed else 3, is_validated)
        seen.append(rates(svi))
    assert seen == [seen[0]] * 4
    monkeypatch.setattr(History, "last", lambda self: offsets)
    train(svi, 15 if is_resumed else 3, True)
    assert all(end < start for end, start in zip(rates(svi), seen[0], strict=True))


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
