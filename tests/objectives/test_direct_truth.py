"""What a step estimates, against the closed form for a linear network.

For ``y | w ~ N(W x + b, noise^2)`` and weights with the factor ``S`` the expected loss per datum
is, summed over outputs c with ``phi = (x, 1)``,

    log(2 pi noise^2) / 2 + ((y_c - loc_c . phi)^2 + |S_c^T phi|^2) / (2 noise^2)
"""

import math

import pyro
import pytest
import torch
from torch import nn

from pyro_ibvi import (
    AutoMuPNormal,
    Diagonal,
    LowRank,
    Normal,
    RandomModule,
    SupervisedModel,
    TraceExpectedLogLikelihood,
)

NOISE, NUM_STEPS = 0.5, 1000
X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
Y = torch.randn(12, 2, generator=torch.Generator().manual_seed(1))


def expected_loss(locs, factors):
    """The closed form, of weight and bias: locs ``(2, 3), (2,)``, factors with columns after."""
    mean = X @ locs[0].mT + locs[1]
    if factors[0].dim() == 2:  # diagonal: independent weights
        variance = X.square() @ factors[0].square().mT + factors[1].square()
    else:  # one z for the layer: (N, 2, R)
        variance = (torch.einsum("ni,cir->ncr", X, factors[0]) + factors[1]).square().sum(-1)
    squares = (Y - mean).square() + variance
    return (math.log(2 * math.pi * NOISE**2) / 2 + squares / (2 * NOISE**2)).sum(-1).mean()


def make(covariance):
    pyro.set_rng_seed(3)
    model = SupervisedModel(
        RandomModule(nn.Linear(3, 2), stochastic=["*"]), Normal(NOISE), num_data=30
    )
    guide = AutoMuPNormal(model, covariance=covariance)
    names = ["net.weight", "net.bias"]
    return model, guide, [guide.loc(n) for n in names], [guide.factor(n) for n in names]


@pytest.mark.parametrize(
    ("covariance", "num_particles"),
    [(Diagonal(), 1), (LowRank(2), 3), (LowRank(None), 1)],
    ids=["diagonal", "low-rank, three draws", "full"],
)
def test_loss_and_gradients_average_to_the_closed_form(covariance, num_particles):
    model, guide, locs, factors = make(covariance)
    objective = TraceExpectedLogLikelihood(num_particles, reduction="mean")
    parameters = [*locs, *factors]
    rows = []
    for _ in range(NUM_STEPS):
        guide.zero_grad()
        loss = objective.loss_and_grads(model, guide, X, Y)
        rows.append(torch.cat([torch.tensor([loss]), *(p.grad.flatten() for p in parameters)]))
    estimates = torch.stack(rows).double()
    truth = expected_loss(locs, factors)
    grads = torch.autograd.grad(truth, parameters)
    expected = torch.cat([truth.detach().reshape(1), *(g.flatten() for g in grads)]).double()
    error = estimates.std(0) / NUM_STEPS**0.5
    assert ((estimates.mean(0) - expected).abs() < 5 * error).all()
    # The negative control: a factor of another size, or a mean elsewhere, is far off.
    with torch.no_grad():
        for wrong in ((locs, [2 * f for f in factors]), ([m + 1 for m in locs], factors)):
            assert (expected_loss(*wrong) - truth).abs() > 10 * error[0]
