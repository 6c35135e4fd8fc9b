"""Noise relative to the mean is noise on a layer's inputs, in every kind of layer."""

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import nn
from torch.func import functional_call

import pyro_ibvi as ibvi
from pyro_ibvi import (
    AutoMuPNormal,
    MaximalUpdate,
    Multiplicative,
    MuPOptim,
    Normal,
    RandomModule,
    SupervisedModel,
    TraceExpectedLogLikelihood,
)
from pyro_ibvi.diagnostics.spread import squared_distance, state_of
from pyro_ibvi.guides import FactorNormal
from pyro_ibvi.guides.distributions import SharedNoise
from pyro_ibvi.mup import WeightRole

NUM_DRAWS = 100_000


def guide_of(layer, covariance=None, **options):
    torch.manual_seed(0)
    net = RandomModule(layer, stochastic=lambda name: name.endswith("weight") or "_l0" in name)
    guide = AutoMuPNormal(net, covariance=covariance or Multiplicative(0.4), **options)
    with torch.no_grad():
        for name, parameter in guide.named_parameters():
            if name.startswith("factors."):
                parameter.mul_(torch.rand_like(parameter) + 0.5)
    return guide


# A layer, its weight, an input, and the dimension of its units.
CASES = {
    "linear": (lambda: nn.Linear(4, 3), "weight", (5, 4), -1),
    "conv": (lambda: nn.Conv2d(4, 3, (2, 3)), "weight", (5, 4, 6, 6), 1),
    "grouped": (lambda: nn.Conv1d(4, 6, 2, groups=2), "weight", (5, 4, 7), 1),
    "depthwise": (lambda: nn.Conv1d(4, 8, 3, groups=4), "weight", (5, 4, 7), 1),
    "transposed": (lambda: nn.ConvTranspose2d(4, 3, 2), "weight", (5, 4, 3, 3), 1),
    "grouped transposed": (lambda: nn.ConvTranspose1d(4, 6, 2, groups=2), "weight", (5, 4, 3), 1),
    "recurrent": (lambda: nn.LSTM(4, 3, batch_first=True), "weight_ih_l0", (5, 2, 4), -1),
    "attention": (lambda: Attention(4), "attention.in_proj_weight", (5, 2, 4), -1),
}


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("case", CASES)
def test_a_draw_multiplies_the_inputs(case):
    make, name, shape, dim = CASES[case]
    layer = make()
    weight = layer.get_parameter(name)
    net = RandomModule(
        layer, stochastic=[name], parametrization=MaximalUpdate(attention="1/sqrt(d)")
    )
    guide = AutoMuPNormal(net, covariance=Multiplicative(0.4), init_loc_fn=ibvi.init_to_network)
    factor = guide.factor(name).detach() * (torch.rand(guide.factor(name).shape) + 0.5)
    noise = torch.randn(factor.shape)
    assert factor.numel() == shape[dim]
    x = torch.randn(shape)
    drawn = Multiplicative(0.4).draw(weight.detach(), factor, noise)
    multiplier = (1 + factor * noise).reshape(
        [-1 if d == dim % x.dim() else 1 for d in range(x.dim())]
    )
    output = functional_call(layer, {name: drawn}, x)
    expected = layer(x * multiplier)
    if case == "recurrent":
        output, expected = output[0], expected[0]
    torch.testing.assert_close(output, expected)
    assert not torch.allclose(output, layer(x)[0] if case == "recurrent" else layer(x))


def test_a_draw_scales_each_token_of_an_embedding():
    layer = nn.Embedding(5, 3)
    guide = AutoMuPNormal(RandomModule(layer), covariance=Multiplicative(0.4))
    assert guide.factor("weight").shape == (5, 1)
    ratio = guide.draw(1000)["weight"] / guide.loc("weight")
    torch.testing.assert_close(ratio, ratio[..., :1].expand_as(ratio))
    assert ratio[..., 0].std(0).mean().item() == pytest.approx(0.4, rel=0.05)
    correlation = torch.corrcoef(ratio[..., 0].T) - torch.eye(5)
    assert correlation.abs().max() < 0.15


def test_bilinear_layers_have_pairs_of_inputs_and_biases_one():
    guide = AutoMuPNormal(
        RandomModule(nn.Bilinear(2, 3, 4), stochastic="all"), covariance=Multiplicative(0.4)
    )
    assert guide.factor("weight").shape == (1, 2, 3)
    assert guide.factor("bias").shape == (1,)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("layer", [lambda: nn.Linear(3, 2), lambda: nn.Conv1d(4, 2, 2, groups=2)])
def test_moments_of_draws_are_the_dense_form(layer):
    guide = guide_of(layer())
    loc, factor = guide.loc("weight"), guide.factor("weight")
    dense = guide.covariance("weight")
    rows = Multiplicative(0.4).rows(factor, None, loc)
    torch.testing.assert_close(rows @ rows.mT, dense)
    torch.testing.assert_close(guide.scale("weight").flatten(), dense.diagonal().sqrt())
    draws = guide.draw(NUM_DRAWS)["weight"].flatten(1)
    centered = draws - loc.flatten()
    empirical = centered.mT @ centered / NUM_DRAWS
    variance = dense.diagonal()
    error = ((variance.outer(variance) + dense.square()) / NUM_DRAWS).sqrt()
    # Elements of independent inputs and of the same, none of which may be out of order.
    assert ((empirical - dense).abs() / error).max() < 4.5


@pytest.mark.usefixtures("double")
def test_the_dense_form_of_a_matrix_by_hand():
    guide = guide_of(nn.Linear(3, 2))
    loc, s = guide.loc("weight"), guide.factor("weight").flatten()
    expected = torch.zeros(2, 3, 2, 3)
    for i in range(2):
        for k in range(2):
            for j in range(3):
                expected[i, j, k, j] = s[j] ** 2 * loc[i, j] * loc[k, j]
    torch.testing.assert_close(guide.covariance("weight"), expected.reshape(6, 6))


def test_a_density_where_there_is_one():
    loc, factor = torch.randn(1, 4), torch.rand(1, 4) + 0.5
    law = FactorNormal(loc, factor, Multiplicative(1.0), event_dim=2)
    value = torch.randn(1, 4)
    expected = dist.Normal(loc, (loc * factor).abs()).log_prob(value).sum()
    torch.testing.assert_close(law.log_prob(value), expected)
    prior = dist.Normal(torch.zeros(1, 4), 2.0).to_event(2)
    posterior = dist.Normal(loc, (loc * factor).abs()).to_event(2)
    torch.testing.assert_close(
        dist.kl.kl_divergence(law, prior), dist.kl.kl_divergence(posterior, prior)
    )
    law = FactorNormal(torch.randn(3, 4), factor, Multiplicative(1.0), event_dim=2)
    with pytest.raises(RuntimeError, match="rank 4 over 12 weights is degenerate"):
        law.log_prob(torch.randn(3, 4))


def test_held_noise_is_no_parameter():
    guide = guide_of(nn.Linear(3, 2), Multiplicative(0.4, rate=0))
    assert [name for name, _, _ in guide.named_rates("sgd")] == [
        "AutoMuPNormal.locs.weight",
        "bias",
    ]
    assert "factors.weight" in guide.state_dict()
    model = SupervisedModel(RandomModule(nn.Linear(3, 2)), Normal())
    guide = AutoMuPNormal(model, covariance=Multiplicative(0.4, rate=0))
    optim = MuPOptim(torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.1}, guide)
    svi = SVI(model, guide, optim, TraceExpectedLogLikelihood())
    for _ in range(3):
        svi.step(torch.randn(6, 3), torch.randn(6, 2))
    assert (guide.factor("net.weight") == 0.4).all()
    traced = pyro.poutine.trace(guide).get_trace()
    assert [n for n, s in traced.nodes.items() if s["type"] == "param"] == [
        "AutoMuPNormal.locs.net.weight"
    ]


def test_copies_pickles_and_states():
    guide = guide_of(nn.Linear(3, 2))
    fresh = AutoMuPNormal(guide.model, covariance=Multiplicative(0.1))
    fresh.load_state_dict(guide.state_dict())
    for other in (copy.deepcopy(guide), pickle.loads(pickle.dumps(guide)), fresh):
        torch.manual_seed(1)
        drawn = other.draw(2)["weight"]
        torch.manual_seed(1)
        assert torch.equal(drawn, guide.draw(2)["weight"])


def test_sites_that_are_no_weights_and_roles_that_say_so():
    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3, 2]).to_event(2))
        pyro.sample("y", dist.Normal(x @ w, 1.0).to_event(2), obs=torch.zeros(4, 2))

    with pytest.raises(ValueError, match=r"shape \(3, 2\) is no weight of a network"):
        AutoMuPNormal(model, covariance=Multiplicative(0.4)).initialize(torch.ones(4, 3))
    role = WeightRole.of("hidden", fan_in=3, fan_out=2, inputs_first=True)
    guide = AutoMuPNormal(model, covariance=Multiplicative(0.4), roles={"w": role})
    guide.initialize(torch.ones(4, 3))
    assert guide.factor("w").shape == (3, 1)
    role = WeightRole.of("hidden", fan_in=3, fan_out=2)
    guide = AutoMuPNormal(model, covariance=Multiplicative(0.4), roles={"w": role})
    with pytest.raises(ValueError, match=r"shape \(3, 2\) has no dimension of the 3 inputs"):
        guide.initialize(torch.ones(4, 3))


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), "0.4", True])
def test_bad_numbers(bad):
    with pytest.raises(ValueError, match="needs a std that is finite and positive"):
        Multiplicative(bad)
    if bad != 0.0:
        with pytest.raises(ValueError, match="needs a rate that is finite and not negative"):
            Multiplicative(0.4, rate=bad)


def test_a_percentage_is_told():
    with pytest.warns(UserWarning, match=r"std is a share, 35 percent 0\.35"):
        Multiplicative(35)


def test_the_mean_is_missing():
    for method in (Multiplicative(0.4).scale, Multiplicative(0.4).rows):
        with pytest.raises(ValueError, match="relative to the mean, which is missing"):
            method(torch.ones(1, 3))
    with pytest.raises(ValueError, match="which is missing"):
        Multiplicative(0.4).dense([torch.ones(1, 3)])


def test_rates():
    net = nn.Sequential(
        nn.Linear(5, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)
    )

    def rates(family, **options):
        random = RandomModule(
            net, stochastic="all weights", parametrization=MaximalUpdate(**options)
        )
        guide = AutoMuPNormal(random, covariance=Multiplicative(0.4))
        named = {name: rate.factor for name, _, rate in guide.named_rates(family)}
        return [named[f"AutoMuPNormal.factors.{layer}.weight"] for layer in (0, 2, 4)]

    assert rates("sgd") == pytest.approx([0.1, 0.1, 0.1])
    assert rates("adam") == pytest.approx([0.1 / 64] * 3)
    assert rates("sgd", base=16) == pytest.approx([0.1, 0.1, 0.1])
    assert rates("adam", base=16) == pytest.approx([0.1 / 4] * 3)
    assert rates("sgd", multiplicative="maximal") == pytest.approx([0.1, 6.4, 6.4])
    assert rates("adam", multiplicative="maximal") == pytest.approx([0.1, 0.1, 0.1])
    with pytest.raises(ValueError, match="multiplicative must be 'reference' or 'maximal'"):
        MaximalUpdate(multiplicative="none")


def test_a_distribution_draws_anew_each_time():
    for covariance in (Multiplicative(0.4), ibvi.LowRank(2), ibvi.Diagonal()):
        model = SupervisedModel(RandomModule(nn.Linear(3, 2), stochastic="all"), Normal())
        traced = pyro.poutine.trace(AutoMuPNormal(model, covariance=covariance)).get_trace()
        fn = traced.nodes["net.weight"]["fn"]
        draws = [fn.sample() for _ in range(3)]
        assert not torch.equal(draws[0], traced.nodes["net.weight"]["value"])
        assert not torch.equal(draws[0], draws[1])
        assert not torch.equal(draws[1], draws[2])


def test_sites_of_a_layer_still_share_each_round_of_noise():
    weight, bias = ibvi.LowRank(1).init_factors([torch.ones(2, 2), torch.ones(2)])
    shared = SharedNoise()
    rounds = []
    for _ in range(2):
        drawn = [
            shared.draw(torch.zeros(f.shape[:-1]), f, ibvi.LowRank(1)) / f[..., 0]
            for f in (weight, bias)
        ]
        torch.testing.assert_close(drawn[0][0], drawn[1])  # one number for the whole layer
        rounds.append(drawn[1][0])
    assert rounds[0] != rounds[1]


def test_distances_to_the_prior_and_to_the_start():
    model = SupervisedModel(
        RandomModule(nn.Linear(3, 4), stochastic="all", prior=0.7), Normal(), 6
    )
    guide = AutoMuPNormal(model, covariance=Multiplicative(0.5))
    x, y = torch.randn(6, 3), torch.randn(6, 4)
    by_penalty = ibvi.objectives.DivergencePenalty("wasserstein2", weight=1.0)
    seed, losses = 3, []
    for penalty in (None, by_penalty):
        torch.manual_seed(seed)
        losses.append(TraceExpectedLogLikelihood(penalty=penalty).loss(model, guide, x, y))
    expected = 0.0
    for name in ("net.weight", "net.bias"):
        loc, rows = guide.loc(name).flatten(), guide.factor(name)
        rows = Multiplicative(0.5).rows(rows, None, guide.loc(name))
        expected += ibvi.theory.wasserstein2_squared(
            loc, rows, torch.zeros_like(loc), torch.full_like(loc, 0.7)
        ).item()
    assert losses[1] - losses[0] == pytest.approx(expected, rel=1e-4)


def test_monitors_know_the_distance_from_the_start():
    model = SupervisedModel(RandomModule(nn.Linear(3, 4), stochastic="all"), Normal(), 6)
    guide = AutoMuPNormal(model, covariance=Multiplicative(0.5))
    start = state_of(guide)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    now = state_of(guide)
    for group in guide.layers:
        name = group.name
        pairs = [
            (s[name][0].flatten(), Multiplicative(0.5).rows(s[name][1], None, s[name][0]))
            for s in (now, start)
        ]
        expected = ibvi.theory.wasserstein2_squared(*pairs[0], *pairs[1])
        torch.testing.assert_close(
            squared_distance(group, now, start), expected, rtol=1e-3, atol=1e-5
        )


def test_a_network_from_training_to_arviz():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2))
    model = SupervisedModel(RandomModule(net, stochastic="all weights"), Normal(0.3), 32)
    guide = AutoMuPNormal(model, covariance=Multiplicative(0.3))
    optim = MuPOptim(torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9}, guide)
    loss = TraceExpectedLogLikelihood(reduction="mean", draws="datum")
    svi = SVI(model, guide, optim, loss)
    x = torch.randn(32, 3)
    y = x[:, :2] - x[:, 1:]
    losses = [svi.step(x, y) for _ in range(200)]
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])
    factor = guide.factor("net.2.weight")
    assert (factor != 0.3).all()
    assert 0.5 < (factor / 0.3).mean() < 1.2  # learns slowly
    prediction = ibvi.predict(model, guide, x, num_samples=50)
    assert (prediction.epistemic > 0).all()
    idata = ibvi.to_arviz(model, guide, x, y, num_samples=10, var_names=["net.2.weight"])
    assert idata["posterior"]["net.2.weight"].shape[1:] == (10, 2, 16)


def test_a_weight_with_noise_on_its_inputs_fits_a_closed_form_head():
    torch.manual_seed(0)
    net = RandomModule(nn.Linear(3, 2), stochastic=["weight"])
    model = SupervisedModel(net, Normal(0.5))
    guide = AutoMuPNormal(model, covariance=Multiplicative(0.5))
    x, y = torch.randn(6, 3), torch.randn(6, 2)
    exact = TraceExpectedLogLikelihood(head=ibvi.objectives.ClosedFormHead())
    drawn = TraceExpectedLogLikelihood(num_particles=2000)
    assert exact.loss(model, guide, x, y) == pytest.approx(
        drawn.loss(model, guide, x, y), rel=0.05
    )
