"""A training that can be killed after a step; as a script, one that is killed by a signal."""

import os
import random
import signal
import sys

import numpy as np
import pyro
import torch
from pyro.infer import SVI
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_ibvi as ibvi

NUM_BATCHES, NUM_EPOCHS = 5, 3
OPTIMIZERS = {
    "momentum": (torch.optim.SGD, {"lr": 2e-3, "momentum": 0.9}),
    "adamw": (torch.optim.AdamW, {"lr": 1e-2}),
}


class Killed(Exception):  # noqa: N818
    """Stands for the end of a process."""


class NoisyData(TensorDataset):
    """Inputs are augmented with random numbers of every global generator."""

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        noise = torch.randn(x.shape) + np.random.rand() + random.random()
        return x + 0.01 * noise, y


def make_svi(optimizer, seed=0, *, width=6, loss=None, **kwargs):
    pyro.set_rng_seed(seed)
    net = nn.Sequential(
        nn.Linear(2, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Dropout(0.3), nn.Linear(width, 1)
    )
    model = ibvi.SupervisedModel(
        ibvi.RandomModule(net), ibvi.Normal(0.3, learn_scale=True), num_data=37
    )
    guide = ibvi.AutoMuPNormal(model, covariance=ibvi.LowRank(3))
    kwargs = {
        "scheduler": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5),
        "clip_norm": 5.0,
        **kwargs,
    }
    optim = ibvi.MuPOptim(*OPTIMIZERS[optimizer], guide, **kwargs)
    loss = ibvi.TraceExpectedLogLikelihood(reduction="mean") if loss is None else loss
    return SVI(model, guide, optim, loss)


def make_loader(**kwargs):
    x = torch.randn(37, 2, generator=torch.Generator().manual_seed(1))
    data = NoisyData(x, x.sum(-1, keepdim=True).sin())
    return DataLoader(data, **{"batch_size": 8, "shuffle": True, **kwargs})


def kill_after(svi, num_steps, how):
    """Makes a training end after a step and before the next."""
    step, done = svi.step, 0

    def counted(*args, **kwargs):
        nonlocal done
        if done == num_steps:
            how()
        done += 1
        return step(*args, **kwargs)

    svi.step = counted


def train(svi, seed=5, *, killed_after=None, loader=None, num_epochs=NUM_EPOCHS, **kwargs):
    def kill():
        raise Killed

    if killed_after is not None:
        kill_after(svi, killed_after, kill)
    pyro.set_rng_seed(seed)
    loader = make_loader() if loader is None else loader
    return ibvi.fit(svi, loader, num_epochs, progress=False, **kwargs)


def optimizer_summary(optim):
    """The optimizer's state; for Pyro's own by the values of the parameters, which lack names."""
    if isinstance(optim, ibvi.MuPOptim):
        return optim.get_state()
    keys = {tuple(p.detach().reshape(-1).tolist()): p for p in optim.optim_objs}
    return {str(k): optim.optim_objs[keys[k]].state_dict() for k in sorted(keys)}


def summary(svi, history):
    """Everything that must be equal, with the random numbers that follow."""
    modules = [m.state_dict() for m in (svi.model, svi.guide) if isinstance(m, nn.Module)]
    store = sorted(pyro.get_param_store().named_parameters())
    return {
        "modules": [{k: v.detach().clone() for k, v in state.items()} for state in modules],
        "store": {k: v.detach().clone() for k, v in store},
        "optimizer": optimizer_summary(svi.optim),
        "history": [history.train_loss, history.valid_loss],
        "draws": [torch.rand(3), np.random.rand(), random.random()],
    }


def differences(one, other, where=""):
    """Paths at which two summaries are not equal to the last bit."""
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) and one.dtype == other.dtype else [where]
    if isinstance(one, dict):
        assert list(one) == list(other), where
        return [d for k in one for d in differences(one[k], other[k], f"{where}/{k}")]
    if isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        rows = enumerate(zip(one, other, strict=True))
        return [d for i, (a, b) in rows for d in differences(a, b, f"{where}/{i}")]
    return [] if one == other else [where]


#: Where the script kills itself: the optimizer, steps between checkpoints, and the last step.
#: In the middle of an epoch, a step after a checkpoint; and at the end of an epoch.
CASES = [("momentum", 2, NUM_BATCHES + 3), ("adamw", None, 2 * NUM_BATCHES)]


def main(what, folder):
    torch.set_num_threads(1)
    for optimizer, steps, last in CASES:
        svi, checkpoint = make_svi(optimizer), f"{folder}/{optimizer}.pt"
        if what == "resume":
            history = train(svi, checkpoint=checkpoint, checkpoint_steps=steps)
            torch.save(summary(svi, history), f"{folder}/{optimizer}.summary")
            continue
        process = os.fork()
        if process == 0:
            kill_after(svi, last, lambda: os.kill(os.getpid(), signal.SIGKILL))
            train(svi, checkpoint=checkpoint, checkpoint_steps=steps)
        status = os.waitpid(process, 0)[1]
        assert os.WIFSIGNALED(status)
        assert os.WTERMSIG(status) == signal.SIGKILL


if __name__ == "__main__":
    main(*sys.argv[1:])
