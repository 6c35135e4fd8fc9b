"""Models that several tests export, and how to look at an export."""

import arviz as az
import pyro
import pyro.distributions as dist
import torch
import xarray
from pyro import poutine

J, N = 3, 7
OLD = "InferenceData" in vars(az)  # ArviZ 0.x


def groups(data):
    """Names of the groups of an InferenceData or a DataTree."""
    return list(data.children) if isinstance(data, xarray.DataTree) else list(data.groups())


def plain(data, group):
    """One group without its attributes, of which ``created_at`` differs between two runs."""
    found = data[group]
    return (found if isinstance(found, xarray.Dataset) else found.to_dataset()).drop_attrs()


def hierarchical(x, group, y=None):
    """Two plates, a size-1 site, an event dimension, a deterministic and two observed sites."""
    tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
    one = pyro.sample("one", dist.Normal(torch.zeros(1), 1.0).to_event(1))
    beta = pyro.sample("beta", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("group", J):
        theta = pyro.sample("theta", dist.Normal(0.0, tau))
    mean = pyro.deterministic("mean", theta[group] + x @ beta + one)
    pyro.sample("total", dist.Normal(mean.sum(), 2.0), obs=None if y is None else y.sum())
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(mean, 0.5), obs=y)


def network_model(x, y=None):
    weight = dist.Normal(torch.zeros(2, 1), 1.0).to_event(2)
    w = pyro.sample("net.0.weight", weight, infer={"ibvi_weight": {"role": "input"}})
    b = pyro.sample("net.0.bias", dist.Normal(0.0, 1.0), infer={"ibvi_weight": None})
    sigma = pyro.sample("sigma", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal((x @ w).squeeze(-1) + b, sigma), obs=y)


def round_trip_model(x, y):
    """Floats of both widths, integers, flags, NaN and a size-1 dimension."""
    w = pyro.sample("w", dist.Normal(torch.zeros(1, dtype=torch.float64), 1.0).to_event(1))
    pyro.deterministic("flag", w > 0)
    with pyro.plate("data", len(x)), poutine.mask(mask=y > 0):
        pyro.sample("y", dist.Poisson((w * x).exp()), obs=y)


def round_trip_arguments():
    return torch.linspace(0, 1, 5, dtype=torch.float64), torch.tensor([0.0, 1, 2, 3, 4])
