"""Networks that were trained elsewhere: their values, their frozen parts, their predictions."""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.initialization import init_to_mean
from pyro.nn import PyroModule
from torch import nn

from pyro_ibvi import (
    AutoMuPNormal,
    Categorical,
    LowRank,
    MuPOptim,
    RandomModule,
    Standard,
    SupervisedModel,
    TraceExpectedLogLikelihood,
    init_to_network,
    predict,
)


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.Flatten(),
        nn.Linear(8 * 2 * 2, 3),
    )


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(6, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x.squeeze(1))).mean(1))


def make_guide(net, **options):
    torch.manual_seed(0)
    random_net = RandomModule(net, parametrization=Standard(), **options)
    model = SupervisedModel(random_net, Categorical(), num_data=4)
    return AutoMuPNormal(model, covariance=LowRank(3), init_loc_fn=init_to_network)


def take_steps(guide, optimizer=torch.optim.SGD, **optim_args):
    x, y = torch.randn(4, 1, 6, 6), torch.tensor([0, 1, 2, 0])
    optim = MuPOptim(optimizer, {"lr": 0.1, **optim_args}, guide)
    svi = SVI(guide.model, guide, optim, TraceExpectedLogLikelihood(reduction="mean"))
    for _ in range(3):
        svi.step(x, y)


@pytest.mark.parametrize("stochastic", ["last weights", "input+output weights", "all"])
def test_means_and_point_estimates_start_at_the_network(stochastic):
    net = convolutional()
    guide = make_guide(net, stochastic=stochastic)
    random_net = guide.model.net
    for name, parameter in net.named_parameters():
        if name in random_net.stochastic:
            assert torch.equal(guide.loc(f"net.{name}"), parameter)
        else:
            assert torch.equal(random_net.network.get_parameter(name), parameter)
    # The widths are the prior's all the same, and the default starts elsewhere.
    assert guide.scale("net.5.weight").mean().item() == pytest.approx(32**-0.5, rel=1e-5)
    assert not torch.equal(AutoMuPNormal(guide.model).loc("net.5.weight"), net[5].weight)


def test_the_means_are_copies():
    guide = make_guide(convolutional(), stochastic="last weights")
    start = guide.model.net.network[5].weight.clone()
    take_steps(guide)
    assert not torch.equal(guide.loc("net.5.weight"), start)
    assert torch.equal(guide.model.net.network[5].weight, start)


def test_values_loaded_into_the_copy_count():
    random_net = RandomModule(nn.Linear(2, 1), stochastic="all")
    random_net.network.load_state_dict(
        {"weight": torch.tensor([[3.0, 4.0]]), "bias": torch.tensor([5.0])}
    )
    guide = AutoMuPNormal(random_net, init_loc_fn=init_to_network)
    assert guide.loc("weight").tolist() == [[3.0, 4.0]]
    assert guide.loc("bias").tolist() == [5.0]


def test_pyros_own_guide_takes_it():
    net = nn.Linear(2, 3)
    model = SupervisedModel(RandomModule(net), Categorical(), num_data=4)
    guide = AutoNormal(model, init_loc_fn=init_to_network)
    guide(torch.zeros(4, 2), torch.tensor([0, 1, 2, 0]))
    assert torch.equal(guide.median()["net.weight"], net.weight)


class TwoParts(PyroModule):
    def __init__(self):
        super().__init__()
        self.net = RandomModule(nn.Linear(1, 1), stochastic="all")

    def forward(self):
        pyro.sample("shift", dist.Normal(7.0, 1.0))
        return self.net.sample_parameters()


def test_other_sites_start_at_the_fallback():
    model = TwoParts()
    guide = AutoMuPNormal(model, init_loc_fn=init_to_network(fallback=init_to_mean))
    assert guide.loc("shift").item() == 7.0
    assert torch.equal(guide.loc("net.weight"), model.net.network.weight)
    draws = {AutoMuPNormal(model, init_loc_fn=init_to_network).loc("shift").item() for _ in "ab"}
    assert len(draws) == 2


def test_anything_but_a_site_is_an_error():
    with pytest.raises(TypeError, match="write init_loc_fn=init_to_network"):
        init_to_network(nn.Linear(2, 1))


def test_a_value_outside_of_the_support_is_an_error():
    net = nn.Linear(2, 1)
    nn.init.constant_(net.weight, -1.0)
    positive = dist.LogNormal(0.0, 1.0).expand([1, 2]).to_event(2)
    random_net = RandomModule(net, prior={"weight": positive})
    with pytest.raises(ValueError, match="'weight' holds values outside of the support"):
        AutoMuPNormal(random_net, init_loc_fn=init_to_network)
    nn.init.constant_(random_net.network.weight, 2.0)
    guide = AutoMuPNormal(random_net, init_loc_fn=init_to_network)
    assert guide.median()["weight"].tolist() == [[2.0, 2.0]]


@pytest.mark.parametrize(
    ("optimizer", "optim_args"),
    [
        (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
        (torch.optim.AdamW, {"weight_decay": 0.1}),
    ],
)
@pytest.mark.parametrize("frozen_when", ["before", "after"])
def test_frozen_parameters_are_left_alone(optimizer, optim_args, frozen_when):
    net = convolutional()
    if frozen_when == "before":
        net[:5].requires_grad_(False)
    guide = make_guide(net, stochastic="last weights")
    network = guide.model.net.network
    if frozen_when == "after":
        network[:5].requires_grad_(False)
    before = copy.deepcopy(network.state_dict())
    take_steps(guide, optimizer, **optim_args)
    after = network.state_dict()
    # The last layer's weight is random: its values here are unused.
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["5.bias"]
    # Nothing is left alone that nobody froze.
    free = make_guide(convolutional(), stochastic="last weights")
    before = copy.deepcopy(free.model.net.network.state_dict())
    take_steps(free, optimizer, **optim_args)
    after = free.model.net.network.state_dict()
    assert [n for n in before if torch.equal(before[n], after[n])] == ["5.weight"]


@pytest.mark.parametrize("make", [convolutional, Transformer])
def test_without_noise_predictions_are_the_networks(make):
    torch.manual_seed(0)
    net = make()
    guide = make_guide(net, stochastic="input+output weights")
    with torch.no_grad():
        for site in guide.model.net.stochastic:
            guide.factor(f"net.{site}").zero_()
    guide.model.train()
    x = torch.randn(5, 1, 6, 6)
    prediction = predict(guide.model, guide, x, num_samples=3)
    assert guide.model.net.network.training
    net.eval()
    with torch.no_grad():
        expected = net(x)
    torch.testing.assert_close(prediction.outputs, expected.expand(3, 5, 3), rtol=1e-4, atol=1e-5)


def test_a_trained_network_goes_through_a_file(tmp_path):
    guide = make_guide(Transformer(), stochastic="input+output weights")
    take_steps(guide)
    state = {"model": guide.model.state_dict(), "guide": guide.state_dict()}
    torch.save(state, tmp_path / "state.pt")
    new = make_guide(Transformer(), stochastic="input+output weights")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    new.load_state_dict(saved["guide"])

    def outputs(guide):
        generator = torch.Generator().manual_seed(0)
        x = torch.ones(2, 1, 6, 6)
        return predict(guide.model, guide, x, num_samples=4, generator=generator).outputs

    with pytest.warns(UserWarning, match="guide has a state that was loaded, and the model is as"):
        halved = outputs(new)
    assert not torch.equal(halved, outputs(guide))
    new.model.load_state_dict(saved["model"])
    assert torch.equal(outputs(new), outputs(guide))
