"""Loaders of training, validation, test and prediction data, and what goes by their length."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_ibvi as ibvi

pytest.importorskip("lightning")
from pyro_ibvi.lightning import IBVIModule
from tests.test_lightning import make, make_loader, make_trainer, train

X, Y = torch.randn(48, 3), torch.randn(48, 1)
PARTS = [(X[:10], Y[:10]), (X[10:30], Y[10:30] + 3)]


def test_each_loader_has_scores_of_its_own():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    module = IBVIModule(net, ibvi.Normal(0.5), lr=1e-3)
    loaders = [DataLoader(TensorDataset(*part), batch_size=8) for part in PARTS]
    trainer = make_trainer()
    trainer.fit(module, DataLoader(TensorDataset(X, Y), batch_size=16), loaders)
    found = trainer.callback_metrics
    for part, suffix in zip(PARTS, ("", "_1"), strict=True):
        expected = module.bnn.evaluate(*part, num_samples=16, seed=0)
        for name in ("nll", "rmse", "coverage"):
            assert float(found[f"val_{name}{suffix}"]) == pytest.approx(expected[name], abs=1e-5)
    tested = trainer.test(module, loaders, verbose=False)
    keys = {name for metrics in tested for name in metrics}
    assert {"test_nll", "test_nll_1"} <= keys
    predicted = trainer.predict(module, loaders)
    assert [sum(len(p.mean) for p in of_one) for of_one in predicted] == [10, 20]


def test_several_rows_of_a_datum_are_told():
    def crops(batch):
        return tuple(
            torch.cat([part.expand(3, -1) for part in parts]) for parts in zip(*batch, strict=True)
        )

    def module(**options):
        return IBVIModule(nn.Linear(3, 1), ibvi.Normal(0.5), **options)

    loader = DataLoader(TensorDataset(X, Y), batch_size=8, collate_fn=crops)
    with pytest.warns(UserWarning, match="batches of 8 data hold 24 rows.*num_data=48"):
        make_trainer(1).fit(module(), loader)
    make_trainer(1).fit(module(num_data=144), loader)  # in silence


def test_a_schedule_for_steps_that_goes_by_epochs_is_told():
    def cosine(optimizer):
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2 * len(make_loader()))

    with pytest.warns(UserWarning, match="2 epochs alone: pass schedule_every='step'"):
        train(make(scheduler=cosine))
