"""Parts of a batch have opposite noise in pairs: what is odd in it leaves the gradient."""

import pytest
import torch
from torch import nn

from pyro_ibvi import (
    AutoMuPMixture,
    AutoMuPNormal,
    Diagonal,
    Kronecker,
    LowRank,
    Normal,
    RandomModule,
    SupervisedModel,
    TraceExpectedLogLikelihood,
)

N, P = 12, 3


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("covariance", [LowRank(2), Diagonal(), Kronecker(2, 1)], ids=str)
@pytest.mark.parametrize("num_components", [1, 3])
def test_a_pair_has_the_gradient_of_the_mean(covariance, num_components):
    """Of a linear network and equal parts, exactly: the output is odd in the noise."""
    torch.manual_seed(0)
    net = RandomModule(nn.Linear(P, 1, bias=False))
    model = SupervisedModel(net, Normal(1.0))
    guide = AutoMuPNormal(model, covariance=covariance)
    if num_components > 1:
        guide = AutoMuPMixture(model, num_components, covariance=covariance)
    x, y = torch.randn(N, P), torch.randn(N, 1)
    locs = [component.loc("net.weight") for component in guide.components]

    def largest_error(num_parts):
        """Over several steps, of which the first goes by Pyro's traces."""
        loss = TraceExpectedLogLikelihood(reduction="mean", draws=num_parts)
        batch = x.repeat(num_parts, 1), y.repeat(num_parts, 1)
        loss.loss_and_grads(model, guide, *batch)
        errors = []
        for _ in range(3):
            guide.zero_grad()
            loss.loss_and_grads(model, guide, *batch)
            for loc in locs:
                expected = x.T @ (x @ loc.detach().flatten() - y[:, 0]) / N / num_components
                errors.append((loc.grad.flatten() - expected).abs().max())
        return max(errors)

    assert largest_error(2) < 1e-12
    assert largest_error(4) < 1e-12
    assert largest_error(1) > 1e-2  # controls: noise without its opposite
    assert largest_error(3) > 1e-2
