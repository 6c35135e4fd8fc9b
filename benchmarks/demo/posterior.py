"""A posterior file that ArviZ summarizes and plots within seconds."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import xarray

import pyro_ibvi as ibvi
from benchmarks.demo.digits import Digits
from pyro_ibvi.arviz.structure import wrap

NUM_CHAINS = 4


def write(path: Path, digits: Digits, bnn: ibvi.VariationalNetwork, num_draws: int) -> None:
    """Writes draws of the last layer's biases, one for each digit, with predictions."""
    path.unlink(missing_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # ArviZ announces its next version
        posterior = ibvi.to_arviz(
            bnn.model,
            bnn.guide,
            digits.tests["clean"],
            digits.y_test,
            num_samples=num_draws,
            var_names=["net.4.bias"],
            groups=["posterior", "posterior_predictive", "log_likelihood", "observed_data"],
            dims={"net.4.bias": ["digit"]},
            coords={"digit": range(10)},
            seed=0,
        )
        in_chains(posterior).to_netcdf(str(path))


def in_chains(data: Any, num_chains: int = NUM_CHAINS) -> Any:
    """The same draws in several chains, which ArviZ expects to compare.

    Draws from a guide are independent, so any of them may stand in any chain.
    """
    names = data.groups() if callable(data.groups) else list(data.children)
    sets = {name: data[name] for name in names}
    sets = {n: s.to_dataset() if hasattr(s, "to_dataset") else s for n, s in sets.items()}
    return wrap({name: _split(part, num_chains) for name, part in sets.items()}, data.attrs)


def _split(part: Any, num_chains: int) -> Any:
    if "draw" not in part.dims:
        return part
    length = part.sizes["draw"] // num_chains
    cut = [
        part.isel(draw=slice(i * length, (i + 1) * length)).assign_coords(
            chain=[i], draw=np.arange(length)
        )
        for i in range(num_chains)
    ]
    return xarray.concat(cut, "chain", data_vars="minimal", join="exact")
