"""Networks, their models and guides, and targets, for tests of the direct route."""

import torch
from pyro.infer import SVI
from torch import nn

from pyro_ibvi import (
    AutoMuPNormal,
    Bernoulli,
    Categorical,
    HeteroscedasticNormal,
    MuPOptim,
    Normal,
    Poisson,
    RandomModule,
    SupervisedModel,
    TraceExpectedLogLikelihood,
)

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))


class ByTraces(TraceExpectedLogLikelihood):
    """The same objective; the direct route is not for subclasses."""


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.last = nn.Linear(3, 2)

    def forward(self, x):
        return self.last(self.second(self.first(x).tanh()))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.last = nn.LSTM(1, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x):
        return self.last(self.lstm(x.unsqueeze(-1))[0][:, -1])


def mlp(num_outputs=2):
    return nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Linear(16, num_outputs))


def with_norm_and_dropout():
    return nn.Sequential(
        nn.Linear(3, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2)
    )


def large():
    # Weights above the size from which memory is used again.
    return nn.Sequential(nn.Linear(3, 300), nn.Tanh(), nn.Linear(300, 300), nn.Linear(300, 2))


def make(make_net, likelihood=None, *, covariance=None, stochastic="all", loss, num_data=30):
    torch.manual_seed(1)
    likelihood = Normal(0.5, learn_scale=True) if likelihood is None else likelihood
    model = SupervisedModel(RandomModule(make_net(), stochastic=stochastic), likelihood, num_data)
    guide = AutoMuPNormal(model, covariance=covariance)
    optim = MuPOptim(torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9}, guide)
    return SVI(model, guide, optim, loss)


def targets(likelihood):
    generator = torch.Generator().manual_seed(1)
    if isinstance(likelihood, Categorical):
        return torch.randint(0, 2, (12,), generator=generator)
    if isinstance(likelihood, (Bernoulli, Poisson)):
        return torch.randint(0, 2, (12, 2), generator=generator)
    shape = (12, 1) if isinstance(likelihood, HeteroscedasticNormal) else (12, 2)
    return torch.randn(shape, generator=generator)


def train(svi, y, num_steps=4):
    torch.manual_seed(2)
    losses = [svi.step(X, y) for _ in range(num_steps)]
    losses.append(svi.evaluate_loss(X, y))
    state = {**svi.model.state_dict(), **svi.guide.state_dict()}
    return losses, state
