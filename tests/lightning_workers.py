"""Trains by Lightning in two processes until one is killed; process 0 prints what it found.

Run as a program by ``tests/test_lightning.py``.
"""

import logging
import os
import signal

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_ibvi as ibvi
from pyro_ibvi.lightning import IBVIModule

NUM_EPOCHS = 2
X = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


class Watch(lightning.Callback):
    """Compares the processes around each step; after some epochs tells and kills."""

    def __init__(self):
        self.networks = self.draws = 0.0

    def on_train_batch_start(self, trainer, module, *_):
        if trainer.current_epoch == NUM_EPOCHS:
            self.end(trainer, module)
            return
        state = torch.get_rng_state()
        draw = torch.rand(())
        torch.set_rng_state(state)
        self.draws = max(self.draws, spread(draw))

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.current_epoch < NUM_EPOCHS:
            values = torch.cat([p.detach().flatten() for p in module.parameters()])
            self.networks = max(self.networks, spread(values))

    def end(self, trainer, module):
        if trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        found = {
            "networks": self.networks,
            "draws": self.draws,
            "num_data": module.model.num_data,
            "steps": trainer.global_step,
            "logged": {name: value.item() for name, value in trainer.callback_metrics.items()},
            "expected": ibvi.evaluate(
                module.model, module.guide, [(X, Y)], num_samples=16, generator=0
            ),
        }
        print(found, flush=True)


def spread(values):
    """How far the processes are from one another."""
    low, high = values.clone(), values.clone()
    torch.distributed.all_reduce(low, torch.distributed.ReduceOp.MIN)
    torch.distributed.all_reduce(high, torch.distributed.ReduceOp.MAX)
    return (high - low).max().item()


def main():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    lightning.seed_everything(0, verbose=False)
    net = nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Linear(16, 2))
    trainer = lightning.Trainer(
        max_epochs=NUM_EPOCHS + 1,
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        callbacks=[Watch()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = TensorDataset(X, Y)
    loader, valid = DataLoader(data, batch_size=4, shuffle=True), DataLoader(data, batch_size=8)
    trainer.fit(IBVIModule(net, ibvi.Categorical()), loader, valid)


if __name__ == "__main__":
    main()
