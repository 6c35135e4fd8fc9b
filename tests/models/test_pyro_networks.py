"""Networks that are made of Pyro's modules."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule, PyroParam, PyroSample
from pyro.nn.module import to_pyro_module_
from torch import nn
from torch.distributions import constraints

from pyro_ibvi import (
    AutoMuPNormal,
    MuPOptim,
    Normal,
    RandomModule,
    SupervisedModel,
    TraceExpectedLogLikelihood,
    predict,
)


def with_a_prior():
    net = nn.Sequential(PyroModule[nn.Linear](2, 4), nn.Tanh(), nn.Linear(4, 1))
    net[0].weight = PyroSample(dist.Normal(0.0, 1.0).expand([4, 2]).to_event(2))
    return net


def with_priors_alone():
    net = PyroModule[nn.Linear](2, 1)
    net.weight = PyroSample(dist.Normal(torch.zeros(1, 2), 1.0).to_event(2))
    net.bias = PyroSample(dist.Normal(torch.zeros(1), 1.0).to_event(1))
    return net


class Tempered(PyroModule):
    def __init__(self):
        super().__init__()
        self.layer = PyroModule[nn.Linear](2, 1)
        self.temperature = PyroParam(torch.tensor(2.0), constraint=constraints.positive)

    def forward(self, x):
        return self.layer(x) / self.temperature


class Decorated(PyroModule):
    @PyroSample
    def shift(self):
        return dist.Normal(0.0, 1.0)

    def forward(self, x):
        return x + self.shift


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (with_a_prior, r"\['0.weight'\] of this one are PyroSample.*priors in prior="),
        (with_priors_alone, r"\['bias', 'weight'\] of this one are PyroSample"),
        (Tempered, r"\['temperature'\] of this one are PyroParam.*softplus"),
        (lambda: nn.Sequential(nn.Linear(2, 2), Decorated()), r"\['1.shift'\] of this one are Py"),
    ],
)
def test_sites_of_a_network_are_refused(make, message):
    with pytest.raises(TypeError, match=message):
        RandomModule(make())


def test_the_remedy_of_the_message_trains_the_sites():
    """The conjugate posterior of a model that is a PyroModule by itself, by the ELBO."""
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    y = torch.tensor([2.0, -1.0])

    class Model(PyroModule):
        def __init__(self):
            super().__init__()
            self.net = PyroModule[nn.Linear](2, 1, bias=False)
            self.net.weight = PyroSample(dist.Normal(torch.zeros(1, 2), 1.0).to_event(2))

        def forward(self, x, y):
            mean = self.net(x).squeeze(-1)
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(mean, 0.5), obs=y)

    pyro.set_rng_seed(0)
    model = Model()
    guide = AutoMuPNormal(model)
    guide.initialize(x, y)
    optim = MuPOptim(torch.optim.Adam, {"lr": 0.02}, guide)
    svi = SVI(model, guide, optim, Trace_ELBO(num_particles=20))
    for _ in range(600):
        svi.step(x, y)
    # precision 1 + 1 / 0.25 in each direction
    torch.testing.assert_close(guide.loc("net.weight")[0], y * 4 / 5, rtol=0, atol=0.05)
    expected = torch.full((2,), 5**-0.5)
    torch.testing.assert_close(guide.scale("net.weight")[0], expected, rtol=0, atol=0.05)


def test_a_network_of_pyro_modules_is_run_as_a_plain_one():
    def trained(convert):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1))
        convert(net)
        model = SupervisedModel(RandomModule(net), Normal(0.1), num_data=10)
        guide = AutoMuPNormal(model)
        optim = MuPOptim(torch.optim.SGD, {"lr": 1e-4}, guide)
        svi = SVI(model, guide, optim, TraceExpectedLogLikelihood())
        x = torch.linspace(-1.0, 1.0, 20).reshape(10, 2)
        losses = [svi.step(x, x[:, :1]) for _ in range(5)]
        return torch.tensor(losses), predict(model, guide, x, generator=0).mean

    for ours, plain in zip(trained(to_pyro_module_), trained(lambda net: None), strict=True):
        torch.testing.assert_close(ours, plain)
