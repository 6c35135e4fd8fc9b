"""The Kronecker covariance in guides: starts, densities, divergences, rates and its errors."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, TraceMeanField_ELBO
from torch import nn
from torch.distributions import MultivariateNormal, kl_divergence

import pyro_ibvi as ibvi
from pyro_ibvi.guides.distributions import FactorNormal, SharedNoise
from pyro_ibvi.theory.divergences import wasserstein2_squared
from pyro_ibvi.theory.kronecker_divergences import separate_scales

SHAPES = ((2, 3, 2), (2,))


def layer(covariance, shapes=SHAPES):
    """Means, factors, layer factor and covariance matrix of a layer away from its start."""
    scales = [torch.ones(shape) for shape in shapes]
    factors = [f + 0.5 * torch.randn_like(f) for f in covariance.init_factors(scales)]
    outputs = covariance.init_layer_factor(scales)
    outputs = outputs + 0.5 * torch.randn_like(outputs)
    locs = [torch.randn(shape) for shape in shapes]
    return locs, factors, outputs, covariance.dense(factors, outputs)


def laws_of(covariance, locs, factors, outputs, sample_shape=()):
    """The layer's laws, each given the sites before it, with their draws."""
    shared, previous, laws = SharedNoise(outputs), [], []
    for loc, factor in zip(locs, factors, strict=True):
        kept = {"layer_factor": outputs, "shared": shared, "previous": tuple(previous)}
        law = FactorNormal(loc, factor, covariance, event_dim=loc.dim(), **kept)
        value = law.rsample(torch.Size(sample_shape))
        previous.append((loc, factor, value))
        laws.append((law, value))
    return laws


def network_guide(net=None, covariance=None, stochastic="all", **kwargs):
    net = net or nn.Linear(3, 4)
    random = ibvi.RandomModule(net, stochastic=stochastic, **kwargs)
    model = ibvi.SupervisedModel(random, ibvi.Normal(0.5), num_data=100)
    return ibvi.AutoMuPNormal(model, covariance=covariance or ibvi.Kronecker(2, 3))


# -- the law -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("sample_shape", [(), (4,), (4, 1)])
@pytest.mark.parametrize("shapes", [SHAPES, ((3, 2), (3,), (3, 1)), ((3,),), ((),)], ids=str)
def test_densities_of_a_layer_sum_to_the_joint_density(shapes, sample_shape):
    covariance = ibvi.Kronecker(None, None)
    locs, factors, outputs, dense = layer(covariance, shapes)
    laws = laws_of(covariance, locs, factors, outputs, sample_shape)
    total = sum(law.log_prob(value) for law, value in laws)
    joint = MultivariateNormal(torch.cat([loc.flatten() for loc in locs]), dense)
    values = torch.cat(
        [
            v.flatten(len(sample_shape)) if v.dim() > len(sample_shape) else v.unsqueeze(-1)
            for _, v in laws
        ],
        dim=-1,
    )
    assert total.shape == sample_shape
    torch.testing.assert_close(total, joint.log_prob(values))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("ranks", [(1, 1), (2, 2), (None, 1), (3, None)])
def test_a_degenerate_product_has_no_density(ranks):
    covariance = ibvi.Kronecker(*ranks)
    locs, factors, outputs, _ = layer(covariance)
    (law, value), _ = laws_of(covariance, locs, factors, outputs)
    with pytest.raises(RuntimeError, match=r"rank \d+ over 12 weights is degenerate.*Kronecker"):
        law.log_prob(value)


@pytest.mark.usefixtures("double")
def test_moments_and_the_noise_that_sites_share():
    covariance = ibvi.Kronecker(1, 2)
    locs, factors, outputs, dense = layer(covariance)
    (weight, drawn), (bias, bias_drawn) = laws_of(covariance, locs, factors, outputs, (5,))
    variance = torch.cat([weight.variance.flatten(), bias.variance])
    torch.testing.assert_close(variance, dense.diagonal())
    # With one column in S_in, each output's weights and bias are multiples of one number.
    by_weight = (drawn - locs[0])[..., 0, 0] / factors[0][0, 0]
    by_bias = (bias_drawn - locs[1]) / factors[1]
    torch.testing.assert_close(by_weight, by_bias)
    alone = FactorNormal(locs[0], factors[0], covariance, event_dim=3, layer_factor=outputs)
    assert alone.expand([7]).rsample().shape == (7, *SHAPES[0])
    assert not torch.equal(alone.rsample(), alone.rsample())


@pytest.mark.usefixtures("double")
def test_gradients_of_a_draw():
    covariance = ibvi.Kronecker(2, 3)
    (loc,), (factor,), outputs, _ = layer(covariance, [(3, 2)])
    factor.requires_grad_(), outputs.requires_grad_()
    matrix = torch.randn(6, 6)
    matrix = matrix @ matrix.mT
    law = FactorNormal(loc, factor, covariance, event_dim=2, layer_factor=outputs)
    w = (law.rsample((100_000,)) - loc).flatten(1)
    estimate = torch.autograd.grad(0.5 * (w @ matrix * w).sum(-1).mean(), [factor, outputs])
    # E[w' A w] / 2 = tr(A C) / 2.
    exact = 0.5 * (matrix * covariance.dense([factor], outputs)).sum()
    for actual, expected in zip(
        estimate, torch.autograd.grad(exact, [factor, outputs]), strict=True
    ):
        error = 0.03 * expected.norm()
        assert (actual - expected).norm() < error
        assert (actual - 0.8 * expected).norm() > error  # the tolerance can fail


# -- the start ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [(1, 1), (2, 3), (None, None), (50, 50)])
@pytest.mark.parametrize("net", [nn.Linear(3, 4), nn.Conv2d(2, 3, 2), nn.ConvTranspose1d(3, 2, 2)])
def test_marginals_start_at_the_prior(net, ranks):
    names = ["weight"] if isinstance(net, nn.ConvTranspose1d) else ["weight", "bias"]
    prior = {"bias": 0.3} if "bias" in names else None
    guide = network_guide(net, ibvi.Kronecker(*ranks), names, prior=prior)
    for name in names:
        prior = guide.model.net.prior_std(name)
        expected = torch.full_like(guide.loc(f"net.{name}"), prior)
        torch.testing.assert_close(guide.scale(f"net.{name}"), expected)


def test_a_full_product_starts_at_the_prior_itself():
    guide = network_guide(nn.Conv1d(2, 3, 2), ibvi.Kronecker(None, None), prior={"bias": 0.3})
    std = torch.cat([guide.scale(f"net.{n}").flatten() for n in ("weight", "bias")])
    torch.testing.assert_close(guide.covariance("net.weight", "net.bias"), std.square().diag())


def test_ranks_above_the_sizes_are_reduced():
    guide = network_guide(covariance=ibvi.Kronecker(100, 100))
    assert guide.factor("net.weight").shape == (3, 4)  # three inputs and the bias
    assert guide.factor("net.bias").shape == (4,)
    assert guide.layer_factor("net.bias").shape == (4, 4)


def test_separable_scales():
    a, b = torch.rand(4) + 0.1, torch.rand(3) + 0.1
    rows, columns = separate_scales(a.outer(b))
    torch.testing.assert_close(rows.outer(columns), a.outer(b))
    assert rows.square().mean().item() == pytest.approx(1.0)
    assert separate_scales(a.outer(b) + 0.1 * torch.eye(4, 3)) is None


def hand_written(scale):
    def model():
        pyro.sample("w", dist.Normal(torch.zeros(()), scale).to_event(scale.dim()))

    return model


def test_a_prior_that_varies_over_the_outputs():
    scale = torch.tensor([1.0, 2.0, 4.0]).outer(torch.tensor([0.1, 0.3]))
    guide = ibvi.AutoMuPNormal(hand_written(scale), covariance=ibvi.Kronecker(1, 2))
    torch.testing.assert_close(guide.scale("w"), scale)
    scale[0, 0] = 1.0
    with pytest.raises(
        ValueError, match=r"\['w'\] cannot have Kronecker.*products a_i b_j of one"
    ):
        ibvi.AutoMuPNormal(hand_written(scale), covariance=ibvi.Kronecker(1, 2))


@pytest.mark.parametrize("shape", [(), (1,), (4,), (4, 2), (4, 2, 3)])
def test_sites_of_hand_written_models(shape):
    scale = torch.full(shape, 0.4)
    guide = ibvi.AutoMuPNormal(hand_written(scale), covariance=ibvi.Kronecker(2, 3))
    torch.testing.assert_close(guide.scale("w"), scale)
    draws = guide.draw(4000)["w"]
    assert draws.shape == (4000, *shape)
    torch.testing.assert_close(draws.std(0), scale, rtol=0.1, atol=0)
    assert guide.covariance("w").shape == (scale.numel(),) * 2
    assert guide.quantiles([0.5])["w"].shape == (1, *shape)
    torch.testing.assert_close(guide.quantiles([0.5])["w"][0], guide.median()["w"])
    assert guide()["w"].shape == shape


# -- what does not fit -------------------------------------------------------------------------


def test_sites_of_different_first_dimensions():
    with pytest.raises(
        ValueError,
        match=r"\['net.weight', 'net.bias'\] cannot have Kronecker.*another covariance, or",
    ):
        network_guide(nn.ConvTranspose1d(3, 2, 2))
    # The ways out.
    guide = network_guide(
        nn.ConvTranspose1d(3, 2, 2), {"*.bias": ibvi.Diagonal(), "*": ibvi.Kronecker(2, 2)}
    )
    assert guide.layer_factor("net.bias") is None
    network_guide(nn.ConvTranspose1d(3, 2, 2), stochastic=["weight"])


def test_first_dimensions_that_agree_by_chance():
    with pytest.raises(ValueError, match="is the layer's inputs in one of them and its outputs"):
        network_guide(nn.ConvTranspose1d(3, 3, 2))


def test_plates_cannot_share_noise():
    def model():
        with pyro.plate("groups", 3):
            pyro.sample("w", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"inside the plate 'groups'.*choose"):
        ibvi.AutoMuPNormal(model, covariance={"*": ibvi.Kronecker(1, 1)})


def test_a_missing_layer_factor():
    covariance = ibvi.Kronecker(1, 1)
    (factor,) = covariance.init_factors([torch.ones(3, 2)])
    for ask in (covariance.scale, covariance.rows, lambda f: covariance.dense([f])):
        with pytest.raises(ValueError, match="two factors, and the layer's is missing"):
            ask(factor)


def test_layers_without_a_factor_of_their_own():
    guide = network_guide(covariance={"*.bias": None, "*": ibvi.LowRank(2)})
    assert guide.layer_factor("net.weight") is None
    assert guide.layer_factor("net.bias") is None


# -- objectives --------------------------------------------------------------------------------


def disturbed(guide):
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return guide


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("varied", [False, True])
def test_divergences_of_a_full_product_equal_the_dense_forms(varied):
    scale = torch.full((3, 2), 0.4)

    def model():
        w = pyro.sample("w", dist.Normal(torch.zeros(()), scale).to_event(2))
        pyro.sample("y", dist.Normal(0.0 * w.sum((-2, -1)), 1.0), obs=torch.tensor(0.3))

    rest = -dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.3)).item()
    guide = disturbed(ibvi.AutoMuPNormal(model, covariance=ibvi.Kronecker(None, None)))
    if varied:  # a prior that is no product any more: the dense way
        scale[0, 0] = 1.0
    loss = ibvi.TraceGeneralizedVI(divergence="kl").loss(model, guide) - rest
    posterior = MultivariateNormal(guide.loc("w").flatten(), guide.covariance("w"))
    prior = MultivariateNormal(torch.zeros(6), scale.flatten().square().diag())
    assert loss == pytest.approx(kl_divergence(posterior, prior).item(), rel=1e-8)
    distance = ibvi.TraceGeneralizedVI(divergence="wasserstein2").loss(model, guide) - rest
    root = torch.linalg.cholesky(posterior.covariance_matrix)
    expected = wasserstein2_squared(posterior.loc, root, prior.loc, scale.flatten())
    assert distance == pytest.approx(expected.item(), rel=1e-8)
    # Monte Carlo over the guide's own density agrees.
    elbo = ibvi.TraceExpectedLogLikelihood(
        num_particles=5000, vectorize_particles=True, max_plate_nesting=0, kl_weight=1.0
    )
    assert elbo.loss(model, guide) - rest == pytest.approx(loss, rel=0.05)


def test_a_degenerate_product_has_no_kl():
    guide = network_guide()
    x, y = torch.randn(5, 3), torch.randn(5, 4)
    with pytest.raises(ValueError, match="degenerate and it has no density"):
        ibvi.TraceGeneralizedVI(divergence="kl").loss(guide.model, guide, x, y)
    with pytest.raises(RuntimeError, match="is degenerate and has no density"):
        TraceMeanField_ELBO().loss(guide.model, guide, x, y)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_training_on_data(optimizer):
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
    guide = network_guide(net)
    x = torch.rand(64, 2)
    y = x.sum(-1, keepdim=True).sin()
    optim = ibvi.MuPOptim(optimizer, {"lr": 0.01}, guide)
    svi = SVI(guide.model, guide, optim, ibvi.TraceExpectedLogLikelihood(reduction="mean"))
    losses = [svi.step(x, y) for _ in range(150)]
    assert sum(losses[-50:]) < 0.7 * sum(losses[:50])
    prediction = ibvi.predict(guide.model, guide, x, num_samples=5)
    assert prediction.mean.shape == y.shape


# -- rates -------------------------------------------------------------------------------------

FANS = ibvi.mup.Fans(fan_in=128, width_in=128, width_out=256)


@pytest.mark.parametrize(
    ("role", "family", "expected"),
    [
        ("input", "sgd", (1 / 128, 256.0)),
        ("input", "adam", (1 / 128, 1.0)),
        ("hidden", "sgd", (1 / 128, 256.0)),
        ("hidden", "adam", (1 / 128, 1.0)),
        ("output", "sgd", (1 / 128, 1.0)),
        ("output", "adam", (1 / 128, 1.0)),
        ("bias", "sgd", (1.0, 256.0)),
        ("bias", "adam", (1.0, 1.0)),
    ],
)
def test_maximal_rates(role, family, expected):
    mup = ibvi.MaximalUpdate()
    for side, rate in zip(("in", "out"), expected, strict=True):
        actual = mup.kronecker_rate(role, FANS, family, rank=4, side=side)
        assert actual == pytest.approx(rate / 4)
        reference = ibvi.MaximalUpdate(kronecker="reference", rank_exponent=0.5)
        actual = reference.kronecker_rate(role, FANS, family, rank=4, side=side)
        assert actual == pytest.approx(mup.rate(role, FANS, family) / 2)
        for plain in (ibvi.Standard(), ibvi.NeuralTangent()):
            actual = plain.kronecker_rate(role, FANS, family, rank=4, side=side)
            assert actual == pytest.approx(plain.rate(role, FANS, family) / 4)


def test_rates_at_the_base_are_those_of_standard():
    fans = ibvi.mup.Fans(128, 128, 256, base_width_in=128, base_width_out=256)
    wider = ibvi.mup.Fans(256, 256, 1024, base_width_in=128, base_width_out=256)
    mup = ibvi.MaximalUpdate(base=128)
    for role in ("input", "hidden", "output", "bias"):
        for side in ("in", "out"):
            assert mup.kronecker_rate(role, fans, "sgd", rank=2, side=side) == 0.5
    assert mup.kronecker_rate("hidden", wider, "sgd", rank=2, side="in") == pytest.approx(1 / 4)
    assert mup.kronecker_rate("hidden", wider, "sgd", rank=2, side="out") == pytest.approx(2)


def rates(guide, optimizer=torch.optim.SGD):
    groups = ibvi.mup_param_groups(guide, 1.0, optimizer=optimizer)
    return {
        name.removeprefix("AutoMuPNormal."): group["lr"]
        for group in groups
        for name in group["param_names"]
    }


def test_rates_of_a_network():
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 1))
    found = rates(network_guide(net, ibvi.Kronecker(2, 4)))
    factors = {name: rate for name, rate in found.items() if "factors" in name}
    assert factors == pytest.approx(
        {
            "factors.net.0.weight": 1 / 2 / 2,  # two features
            "factors.net.0.bias": 1 / 2,
            "layer_factors.net.0.weight": 16 / 4,
            "factors.net.2.weight": 1 / 16 / 2,
            "factors.net.2.bias": 1 / 2,
            "layer_factors.net.2.weight": 8 / 4,
            "factors.net.4.weight": 1 / 8 / 2,
            "factors.net.4.bias": 1 / 2,
            "layer_factors.net.4.weight": 1.0,  # one output, so rank one
        }
    )


def test_rates_where_the_inputs_come_first():
    net = nn.Sequential(nn.Conv1d(1, 4, 1), nn.ConvTranspose1d(4, 6, 1), nn.Conv1d(6, 1, 1))
    found = rates(network_guide(net, ibvi.Kronecker(1, 1), ["*.weight"]))
    assert found["layer_factors.net.1.weight"] == pytest.approx(1 / 4)  # from the inputs
    assert found["factors.net.1.weight"] == pytest.approx(6)  # to the outputs
    table = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 1))
    found = rates(network_guide(table, ibvi.Kronecker(1, 1)))
    assert found["layer_factors.net.0.weight"] == 1.0  # the words, of which there is no width
    assert found["factors.net.0.weight"] == pytest.approx(6)


def test_rates_of_hand_written_sites():
    def model():
        pyro.sample("a", dist.Normal(0.0, 1.0).expand([4, 8]).to_event(2))
        pyro.sample("b", dist.Normal(0.0, 1.0).expand([8, 4]).to_event(2))
        pyro.sample("c", dist.Normal(0.0, 1.0).expand([3]).to_event(1))

    role = {"fan_in": 4, "fan_out": 8}
    roles = {
        "a": ibvi.WeightRole.of("input", **role, inputs_first=True),
        "b": ibvi.WeightRole.of("input", **role),
    }
    guide = ibvi.AutoMuPNormal(model, covariance=ibvi.Kronecker(1, 1), roles=roles)
    found = rates(guide)
    assert (found["factors.a"], found["layer_factors.a"]) == (8.0, 1 / 4)
    assert (found["factors.b"], found["layer_factors.b"]) == (1 / 4, 8.0)
    assert (found["factors.c"], found["layer_factors.c"]) == (1.0, 1.0)


def test_a_bad_rule():
    with pytest.raises(ValueError, match="kronecker must be 'reference' or 'maximal', got 'both'"):
        ibvi.MaximalUpdate(kronecker="both")
