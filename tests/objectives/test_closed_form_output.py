"""The closed-form last layer where the likelihood takes something of the network's output."""

import copy

import pytest
import torch
from torch import nn

import pyro_ibvi as ibvi

BATCH, NUM_FEATURES = 10, 4


class Aside(nn.Module):
    """A network that returns the last layer's output beside something else."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return {"features": x, "logits": self.net(x)}


def build(net, likelihood, **options):
    torch.manual_seed(1)
    random = ibvi.RandomModule(net, stochastic="last")
    model = ibvi.SupervisedModel(random, likelihood, num_data=50, **options)
    return model, ibvi.AutoMuPNormal(model, covariance=ibvi.LowRank(3), init_scale=0.5)


def data():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(NUM_FEATURES, 6), nn.Tanh(), nn.Linear(6, 2))
    return net, torch.randn(BATCH, NUM_FEATURES), torch.randint(2, (BATCH, 2)).float()


def closed_form(model, guide, x, y):
    return ibvi.TraceClosedFormHead(reduction="mean").loss(model, guide, x, y)


@pytest.mark.parametrize("output", [None, "logits", lambda out: out["logits"]])
def test_what_is_picked_counts_as_if_the_network_returned_nothing_else(output):
    net, x, y = data()
    expected = closed_form(*build(copy.deepcopy(net), ibvi.Normal(0.5)), x, y)
    found = closed_form(*build(Aside(net), ibvi.Normal(0.5), output=output), x, y)
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "output",
    [lambda out: 3 * out, lambda out: out[:, :1], lambda out: out.flip(-1), torch.relu],
)
def test_what_is_made_of_the_output_is_refused(output):
    net, x, y = data()
    y = y[:, : output(y).shape[-1]]
    model, guide = build(net, ibvi.Normal(0.5), output=output)
    with pytest.raises(ValueError, match="or output= of the SupervisedModel, changes the output"):
        closed_form(model, guide, x, y)


def test_what_a_network_changes_in_place_after_its_last_layer_is_refused_behind_a_choice():
    net, x, y = data()
    net = Aside(nn.Sequential(*net, nn.ReLU(inplace=True)))
    with pytest.raises(ValueError, match="changes the output of its last layer"):
        closed_form(*build(net, ibvi.Normal(0.5)), x, y)


@pytest.mark.parametrize(
    ("likelihood", "y"),
    [(ibvi.Bernoulli(), torch.ones(BATCH, 2)), (ibvi.Categorical(), torch.ones(BATCH).long())],
)
def test_a_temperature_that_the_closed_form_does_not_know_is_refused(likelihood, y):
    net, x, _ = data()
    model, guide = build(net, likelihood.at_temperature(4.0))
    loss = ibvi.TraceClosedFormHead(categorical_bound="tilted")
    with pytest.raises(ValueError, match=r"has the temperature 4\.0"):
        loss.loss(model, guide, x, y)


def test_the_temperature_of_a_gaussian_widens_it():
    net, x, y = data()
    tempered = build(copy.deepcopy(net), ibvi.Normal(0.5).at_temperature(4.0))
    wide = build(net, ibvi.Normal(1.0))
    assert closed_form(*tempered, x, y) == pytest.approx(closed_form(*wide, x, y), rel=1e-6)


def test_a_network_of_bfloat16_has_its_density_in_float32():
    net, x, y = data()
    model, guide = build(net.bfloat16(), ibvi.Normal(0.05))
    svi_loss = ibvi.TraceClosedFormHead(reduction="mean").differentiable_loss
    value = svi_loss(model, guide, x.bfloat16(), y)
    assert value.dtype == torch.float32
    draws = ibvi.TraceExpectedLogLikelihood(reduction="mean", num_particles=1000)
    with torch.no_grad():
        drawn = draws.loss(model, guide, x.bfloat16(), y)
    assert drawn == pytest.approx(value.item(), rel=0.1)
