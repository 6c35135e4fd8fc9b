"""What a network's forward does to gradients and draws is told."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import nn

import pyro_ibvi as ibvi
from tests.objectives.test_verdicts import messages

pytestmark = pytest.mark.usefixtures("double")


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kl_weight", [0, 1])
def test_where_gradients_are_off_nothing_is_trained(off, kl_weight):
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    model = ibvi.SupervisedModel(ibvi.RandomModule(net), ibvi.Normal(0.3))
    guide = ibvi.AutoMuPNormal(model, covariance=ibvi.Diagonal())
    loss = ibvi.TraceExpectedLogLikelihood(kl_weight=kl_weight)
    x = torch.ones(5, 3)
    with off():
        assert loss.loss(model, guide, x, x[:, :1]) > 0
        with pytest.raises(RuntimeError, match="Gradients are off here"):
            loss.loss_and_grads(model, guide, x, x[:, :1])


class Cut(nn.Module):
    """Three layers, one of whose outputs leaves the graph in some way."""

    def __init__(self, cut, place):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 1)])
        self.cut, self.place = cut, place

    def forward(self, x):
        for i, layer in enumerate(self.layers):
            x = layer(x)
            x = self.cut(x) if i == self.place else x
        return x


def without_gradients(x):
    with torch.no_grad():
        return x + 0.0


CUTS = {
    "detach": lambda x: x.detach(),
    "data": lambda x: x.data,
    "no_grad": without_gradients,
    "argmax": lambda x: x.argmax(-1, keepdim=True).to(x.dtype).expand(x.shape),
}


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("place", [1, 2])
def test_a_forward_that_cuts_the_gradients_hears_of_it(name, place):
    net = ibvi.RandomModule(
        Cut(CUTS[name], place), stochastic="all", example_input=torch.randn(8, 3)
    )
    model = ibvi.SupervisedModel(net, ibvi.Normal(1.0), num_data=8)
    guide = ibvi.AutoMuPNormal(model)
    optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": 0.1}, guide)
    svi = SVI(model, guide, optim, ibvi.TraceExpectedLogLikelihood(reduction="mean"))
    before = {n: p.clone() for n, p in guide.named_parameters()}
    (said,) = messages(lambda: svi.step(torch.randn(8, 3), torch.ones(8, 1)))
    moved = {n for n, p in guide.named_parameters() if not torch.equal(p, before[n])}
    cut_off = {n for n in before if int(n.split("layers.")[1][0]) <= place}
    assert moved == before.keys() - cut_off
    if place == 2:
        assert said.startswith("No gradient of the data's log-likelihood reaches any")
        assert "Take that out of the forward" in said
    else:
        assert "what a detach() or torch.no_grad() in the forward cuts off" in said


class Drawing(nn.Linear):
    """A plain network that draws in its forward."""

    def forward(self, x):
        return super().forward(x) + pyro.sample("z", dist.Normal(0.0, 1.0))


@pytest.mark.filterwarnings("ignore:Found vars in model but not guide")
def test_a_draw_in_a_forward_hears_that_it_is_noise_and_one_before_it_is_learned():
    x, y = torch.randn(8, 3), torch.ones(8, 1)

    def step(model, guide):
        optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": 0.1}, guide)
        svi = SVI(model, guide, optim, ibvi.TraceExpectedLogLikelihood(reduction="mean"))
        return [m for m in messages(lambda: svi.step(x, y)) if not m.startswith("Found vars")]

    model = ibvi.SupervisedModel(
        ibvi.RandomModule(Drawing(3, 1), stochastic="all"), ibvi.Normal(1.0)
    )
    (said,) = step(model, ibvi.AutoMuPNormal(model))
    assert said.startswith("The guide has no sites ['z'], which are drawn from their prior")

    net = ibvi.RandomModule(nn.Linear(3, 1), stochastic="all")

    def by_hand(x, y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        loc = net(x) + z
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(loc, 1.0).to_event(1), obs=y)

    guide = ibvi.AutoMuPNormal(by_hand)
    guide.initialize(x, y)
    before = guide.loc("z").clone()
    assert step(by_hand, guide) == []
    assert not torch.equal(guide.loc("z"), before)
