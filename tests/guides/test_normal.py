"""The guide starts at the prior, and gives its parts by name."""

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from pyro_ibvi import (
    AutoMuPMixture,
    AutoMuPNormal,
    Categorical,
    Diagonal,
    Kronecker,
    LowRank,
    MaximalUpdate,
    NeuralTangent,
    Normal,
    RandomModule,
    Standard,
    SupervisedModel,
)

COVARIANCES = [Diagonal(), LowRank(3), LowRank(None)]


def mlp():
    return nn.Sequential(
        nn.Linear(4, 6), nn.SiLU(), nn.Linear(6, 5), nn.LayerNorm(5), nn.SiLU(), nn.Linear(5, 3)
    )


def conv():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(4, 2)
    )


def make(net, covariance, *, likelihood=None, **kwargs):
    guide_args = {k: kwargs.pop(k) for k in ("init_scale", "init_loc_fn") if k in kwargs}
    random_net = RandomModule(net, stochastic=kwargs.pop("stochastic", "all"), **kwargs)
    model = SupervisedModel(random_net, likelihood or Categorical())
    return model, AutoMuPNormal(model, covariance=covariance, **guide_args)


# By hand from the tables: std of each weight of the networks above.
MUP_STD = {
    mlp: {"0": 4**-0.5, "2": 6**-0.5, "5": 1 / 5},
    conv: {"0": 18**-0.5, "2": 12**-0.5, "4": 1 / 4},
}
STANDARD_STD = {
    mlp: {"0": 4**-0.5, "2": 6**-0.5, "5": 5**-0.5},
    conv: {"0": 18**-0.5, "2": 12**-0.5, "4": 4**-0.5},
}


def standard_errors(guide, expected, num_draws=2000):
    """Largest error of standard deviations of draws through Pyro's traces, in standard errors."""
    draws = {name: [] for name in expected}
    with torch.no_grad():
        for _ in range(num_draws):
            trace = poutine.trace(guide).get_trace()
            for name in expected:
                draws[name].append(trace.nodes[name]["value"])
    error = (2 * num_draws) ** -0.5
    return {
        name: ((torch.stack(draws[name]).std(0) / std - 1).abs() / error).max().item()
        for name, std in expected.items()
    }


# The largest of at most 60 deviations of a site: 4.5 standard errors.
BOUND = 4.5


@pytest.mark.parametrize("covariance", [*COVARIANCES, Kronecker(2, 3)], ids=str)
@pytest.mark.parametrize("net", [mlp, conv])
def test_every_weight_starts_with_its_priors_standard_deviation(net, covariance):
    model, guide = make(net(), covariance)
    expected = {}
    for layer, std in MUP_STD[net].items():
        expected |= {f"net.{layer}.weight": std, f"net.{layer}.bias": 1.0}
    errors = standard_errors(guide, expected, num_draws=1500)
    assert max(errors.values()) < BOUND, errors
    # The draws' centers are draws of the prior too; the prior's own draws say the same.
    prior = poutine.trace(model.sample_parameters).get_trace()
    for name, std in expected.items():
        fn = prior.nodes[name]["fn"]
        torch.testing.assert_close(fn.stddev, torch.full(fn.shape(), std))
        torch.testing.assert_close(guide.scale(name), torch.full(fn.shape(), std))


def test_a_wrong_prior_is_noticed():
    _, guide = make(mlp(), LowRank(3))
    errors = standard_errors(guide, {"net.5.weight": 5**-0.5}, num_draws=1500)
    assert errors["net.5.weight"] > 2 * BOUND


@pytest.mark.parametrize("covariance", COVARIANCES, ids=str)
def test_init_scale_and_overriding_priors(covariance):
    prior = {
        "0.*": 0.3,
        "2.bias": dist.Laplace(0.0, 2.0).expand([5]).to_event(1),
        "2.weight": dist.Normal(0.0, torch.arange(1.0, 31.0).reshape(5, 6)).to_event(2),
    }
    _, guide = make(mlp(), covariance, prior=prior, init_scale=0.5)
    expected = {
        "net.0.weight": torch.full((6, 4), 0.15),
        "net.0.bias": torch.full((6,), 0.15),
        "net.2.weight": 0.5 * torch.arange(1.0, 31.0).reshape(5, 6),
        "net.2.bias": torch.full((5,), 0.5 * 2.0 * 2**0.5),
        "net.5.weight": torch.full((3, 5), 0.1),
        "net.5.bias": torch.full((3,), 0.5),
    }
    for name, std in expected.items():
        torch.testing.assert_close(guide.scale(name), std)


@pytest.mark.parametrize("parametrization", [Standard(), NeuralTangent()])
@pytest.mark.parametrize("net", [mlp, conv])
def test_other_parametrizations(net, parametrization):
    _, guide = make(net(), Diagonal(), parametrization=parametrization)
    for layer, std in STANDARD_STD[net].items():
        scale = guide.scale(f"net.{layer}.weight")
        torch.testing.assert_close(scale, torch.full_like(scale, std))


def test_at_the_base_the_start_is_the_standard_one():
    base = mlp()
    _, guide = make(mlp(), Diagonal(), parametrization=MaximalUpdate(base=base))
    for layer, std in STANDARD_STD[mlp].items():
        scale = guide.scale(f"net.{layer}.weight")
        torch.testing.assert_close(scale, torch.full_like(scale, std))


def test_loc_starts_at_a_draw_of_the_prior():
    starts = []
    for seed in range(400):
        torch.manual_seed(seed)
        starts.append(make(nn.Linear(4, 3), Diagonal())[1].loc("net.weight").detach())
    std = torch.stack(starts).std(0)
    # A layer alone has no width: it starts as in the standard parametrization, at 4^-1/2.
    assert ((std * 2 - 1).abs() * 800**0.5).max() < 4.0


# By hand, base=None: 20 inputs, width 24, 18 outputs, every bias and gain random.
EVERY_ROLE = {
    "0.weight": 20**-0.5,
    "0.bias": 1.0,
    "1.weight": 1.0,
    "1.bias": 1.0,
    "3.weight": 24**-0.5,
    "3.bias": 1.0,
    "5.weight": 1 / 24,
    "5.bias": 1.0,
}


def deviations_of_the_start(covariance, expected):
    """Root mean squares of loc, in standard errors from the table's; of S, relative to its."""
    net = nn.Sequential(
        *(nn.Linear(20, 24), nn.LayerNorm(24), nn.Tanh()),
        *(nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 18)),
    )
    _, guide = make(net, covariance, stochastic=["*"])
    of_loc, of_factor = {}, {}
    for name, std in expected.items():
        loc, factor = guide.loc(f"net.{name}").detach(), guide.factor(f"net.{name}").detach()
        loc = loc - float(name == "1.weight")  # gains start around one
        of_loc[name] = ((loc.square().mean().sqrt() / std - 1) * (2 * loc.numel()) ** 0.5).item()
        rank = 1 if covariance == Diagonal() else factor.shape[-1]
        of_factor[name] = (factor.square().mean().sqrt() / (std * rank**-0.5) - 1).item()
    return of_loc, of_factor


@pytest.mark.parametrize("covariance", COVARIANCES, ids=str)
def test_every_role_starts_as_the_table_says(covariance):
    of_loc, of_factor = deviations_of_the_start(covariance, EVERY_ROLE)
    assert max(map(abs, of_loc.values())) < 4.0, of_loc
    assert max(map(abs, of_factor.values())) < 1e-5, of_factor
    # The negative control: a hidden weight's scale for the output.
    wrong = EVERY_ROLE | {"5.weight": 24**-0.5}
    of_loc, of_factor = deviations_of_the_start(covariance, wrong)
    assert abs(of_loc["5.weight"]) > 8.0
    assert abs(of_factor["5.weight"]) > 0.5


def test_a_layer_shares_one_noise_and_layers_do_not():
    _, guide = make(mlp(), LowRank(1))
    draws = guide.draw(500)

    def along(name):
        z = (draws[name] - guide.loc(name)) / guide.factor(name).squeeze(-1)
        return z.detach().reshape(500, -1)[:, 0]

    torch.testing.assert_close(along("net.0.weight"), along("net.0.bias"), rtol=1e-3, atol=1e-3)
    across = torch.corrcoef(torch.stack([along("net.0.weight"), along("net.2.weight")]))[0, 1]
    assert abs(across) < 4 / 500**0.5


def test_covariance_by_role_name_and_pattern():
    choice = {"output": LowRank(2), "net.0.bias": None, "input": Diagonal(), "*": LowRank(None)}
    _, guide = make(mlp(), choice)
    assert guide.factor("net.5.weight").shape == (3, 5, 2)
    assert guide.factor("net.5.bias").shape == (3, 2)
    assert guide.factor("net.0.weight").shape == (6, 4)
    assert guide.factor("net.2.weight").shape == (5, 6, 35)
    assert guide.scale("net.0.bias").eq(0).all()
    with pytest.raises(ValueError, match=r"The site 'net\.0\.bias' is a point estimate"):
        guide.factor("net.0.bias")
    with pytest.raises(ValueError, match="are independent: they share no layer"):
        guide.covariance("net.0.weight", "net.2.weight")
    with pytest.raises(KeyError, match="No latent site 'nope'; the sites are"):
        guide.loc("nope")


def test_equal_covariances_of_one_layer_share_its_noise():
    choice = {"net.0.weight": LowRank(2), "net.0.bias": LowRank(2), "*": Diagonal()}
    _, guide = make(mlp(), choice)
    assert guide.covariance("net.0.weight", "net.0.bias").shape == (30, 30)


def test_draws_at_once_and_one_by_one_have_the_same_law():
    _, guide = make(mlp(), LowRank(3), likelihood=Normal())
    many = guide.draw(4000)
    for name, value in many.items():
        loc, scale = guide.loc(name), guide.scale(name)
        assert value.shape == (4000, *loc.shape)
        assert ((value.mean(0) - loc).abs() / scale * 4000**0.5).max() < 4.5
        assert ((value.std(0) / scale - 1).abs() * 8000**0.5).max() < 4.5


def test_median_and_quantiles_of_gaussian_sites():
    _, guide = make(mlp(), {"net.0.bias": None, "*": LowRank(3)})
    median, quantiles = guide.median(), guide.quantiles([0.5, 0.975, 1.0])
    for name, value in median.items():
        torch.testing.assert_close(value, guide.loc(name).detach())
        torch.testing.assert_close(quantiles[name][0], value)
        upper = value + 1.959964 * guide.scale(name).detach()
        torch.testing.assert_close(quantiles[name][1], upper)
    assert quantiles["net.0.bias"][2].isfinite().all()
    assert quantiles["net.0.weight"][2].isinf().all()
    median["net.0.weight"].fill_(7.0)
    assert not guide.loc("net.0.weight").eq(7.0).any()  # a copy


@pytest.mark.parametrize("probabilities", [[5, 50, 95], [0.5, float("nan")], -0.1])
def test_quantiles_of_no_probabilities_are_refused(probabilities):
    _, guide = make(mlp(), LowRank(3))
    with pytest.raises(ValueError, match=r"probabilities between 0 and 1, got"):
        guide.quantiles(probabilities)


@pytest.mark.parametrize("number", [0, -1, 2.5, (2, 3)])
def test_no_number_of_draws_is_refused(number):
    _, guide = make(mlp(), LowRank(3))
    for drawn in (guide, AutoMuPMixture(guide.model, num_components=2)):
        with pytest.raises(ValueError, match=r"num_samples must be a positive whole"):
            drawn.draw(number)
