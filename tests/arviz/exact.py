"""A mixture with a known density, and what its fits are compared with."""

import math

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine

LOCS = torch.tensor([-2.0, 1.5])
PROBS = torch.tensor([0.3, 0.7])
FRESH = torch.tensor([-2.5, -0.4, 0.3, 1.0, 2.2])
S = 400


def shared_guide(*args, **kwargs):
    """Draws the one site that all data share, from a known law."""
    pyro.sample("shift", dist.Normal(0.2, 0.1))


def draws_of(guide, name, num_samples, *args, seed=0):
    """The draws of a guide under a seed."""
    pyro.set_rng_seed(seed)
    traces = (poutine.trace(guide).get_trace(*args) for _ in range(num_samples))
    return torch.stack([trace.nodes[name]["value"].detach() for trace in traces])


def exact_mixture(y, shift):
    """Log-density of each datum, averaged over draws of the shift."""
    parts = dist.Normal(LOCS + shift[:, None, None], 0.5).log_prob(y[None, :, None]) + PROBS.log()
    return (parts.logsumexp(-1).logsumexp(0) - math.log(len(shift))).numpy()


def within(found, expected, most=3.0):
    """Whether each density is within some standard errors of the exact one."""
    return (abs(found.pointwise - expected) < most * found.pointwise_mc_se).all()


def mixture(y, how="parallel"):
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        mark = {"enumerate": how} if how else {}
        label = pyro.sample("label", dist.Categorical(PROBS), infer=mark)
        pyro.sample("y", dist.Normal(LOCS[label] + shift, 0.5), obs=y)


def plain_mixture(y):
    mixture(y, how=None)
