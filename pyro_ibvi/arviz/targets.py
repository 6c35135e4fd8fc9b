"""Which arguments of a model are its targets, and which are inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pyro.poutine import Trace

from pyro_ibvi.arviz.draws import Sampler
from pyro_ibvi.arviz.sites import sample_sites, to_numpy


def input_arrays(
    sampler: Sampler, named: Mapping[str, Any], trace: Trace
) -> dict[str, np.ndarray]:
    """The arrays among the arguments of a model that are no targets.

    A target goes into the value of an observed site and not into the law of any: the ``x`` of an
    autoencoder is both target and input. Where that cannot be followed, as for NumPy arrays, a
    target is what equals the data.

    Args:
        sampler: Source of the draws.
        named: All of its tensors and arrays by name.
        trace: A trace of the model with these arguments.

    Returns:
        The arrays by name.
    """
    sites = sample_sites(trace)
    data = [n for n, s in sites.items() if sampler.kinds.is_data(s)]
    found = {n: to_numpy(a) for n, a in named.items()}
    targets = sampler.targets - sampler.sources.arguments(data, of="laws")
    unknown = [
        n for n, a in named.items() if not sampler.sources.known or not isinstance(a, torch.Tensor)
    ]
    for name in data:
        site = sites[name]
        value = site["value"] if site["is_observed"] else site["infer"].get("obs")
        if value is None:
            continue
        # targets may have been reshaped or converted on their way to the site
        value = to_numpy(value).ravel()
        equal = [n for n in unknown if _equal(found[n].ravel(), value)]
        targets |= set(equal[-1:])  # of several that are equal, the targets come last
    return {n: a for n, a in found.items() if n not in targets}


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a, b, equal_nan=a.dtype.kind in "fc" and b.dtype.kind in "fc")
