"""Optimizers with a rate for each parameter, the loop over epochs, checkpoints."""

from pyro_ibvi.training.checkpoints import (
    load_checkpoint,
    save_checkpoint,
)
from pyro_ibvi.training.history import History
from pyro_ibvi.training.loop import fit
from pyro_ibvi.training.optim import (
    MuPOptim,
    mup_param_groups,
)

__all__ = [
    "History",
    "MuPOptim",
    "fit",
    "load_checkpoint",
    "mup_param_groups",
    "save_checkpoint",
]
