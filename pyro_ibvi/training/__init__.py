"""Optimizers with a rate for each parameter, the loop over epochs, checkpoints."""

from pyro_ibvi.training.checkpoints import (
    load_checkpoint,
    save_checkpoint,
)
from pyro_ibvi.training.default_rates import default_rate
from pyro_ibvi.training.history import History
from pyro_ibvi.training.loop import fit
from pyro_ibvi.training.muon import MuonWithAdamW
from pyro_ibvi.training.optim import MuPOptim
from pyro_ibvi.training.param_groups import mup_param_groups
from pyro_ibvi.training.processes import seed_process

__all__ = [
    "History",
    "MuPOptim",
    "MuonWithAdamW",
    "default_rate",
    "fit",
    "load_checkpoint",
    "mup_param_groups",
    "save_checkpoint",
    "seed_process",
]
