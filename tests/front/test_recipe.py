"""What is random where a user says nothing of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import pyro_ibvi as ibvi
from pyro_ibvi.front.recipe import PAPER, RELATIVE, as_random, default_optimizer
from pyro_ibvi.models import Masked, MultiTask
from pyro_ibvi.models.kinds import is_of_labels
from pyro_ibvi.models.weighted import Weighted


def make_convnet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 16),
        nn.ReLU(),
        nn.Linear(16, 3),
    )


def test_labels_get_relative_noise_behind_the_first_layer() -> None:
    net = make_convnet()
    bnn = ibvi.VariationalNetwork(net, ibvi.Categorical())
    assert bnn.net.stochastic == ["2.weight", "5.weight", "7.weight"]
    first, *others = bnn.guide.components
    assert len(others) == 3
    for name, std in (("2.weight", 0.2), ("5.weight", 0.35), ("7.weight", 0.35)):
        weight, site = net.get_parameter(name), f"net.{name}"
        torch.testing.assert_close(first.loc(site), weight, rtol=0, atol=0)
        for component in bnn.guide.components:
            torch.testing.assert_close(component.scale(site), std * component.loc(site).abs())
        # What is behind the convolutions differs between components.
        is_same = [torch.equal(component.loc(site), weight) for component in others]
        assert is_same == [name == "2.weight"] * 3
    assert bnn.loss.draws == "datum"
    assert {rate.factor for _, _, rate in bnn.guide.named_rates("sgd")} == {1.0}


@pytest.mark.parametrize("where", ["around", "inside"])
@pytest.mark.parametrize("likelihood", [ibvi.Categorical(), ibvi.Normal()])
def test_wrappers_of_several_devices_change_nothing(likelihood: Any, where: str) -> None:
    def make() -> nn.Sequential:
        torch.manual_seed(0)
        trunk = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
        return nn.Sequential(trunk, nn.Linear(8, 3))

    net = make()
    if where == "inside":
        net[0] = nn.DataParallel(net[0])
    with pytest.warns(UserWarning, match="what is inside of DataParallel on one device") as told:
        wrapped = ibvi.VariationalNetwork(
            net if where == "inside" else nn.DataParallel(net), likelihood
        )
    assert len(told) == 1
    plain = ibvi.VariationalNetwork(make(), likelihood)
    assert wrapped.net.stochastic == plain.net.stochastic
    names = [[name for name, *_ in bnn.guide.named_rates("sgd")] for bnn in (wrapped, plain)]
    assert names[0] == names[1]
    x = torch.randn(4, 5)
    found, expected = (bnn.predict(x, num_samples=3, seed=1).outputs for bnn in (wrapped, plain))
    if likelihood.discrete:  # means start at the network's
        assert torch.equal(found, expected)


def test_rates_follow_the_base_that_is_given() -> None:
    small, wide = (
        nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 3)) for width in (8, 32)
    )
    parametrization = ibvi.MaximalUpdate(base=small)
    bnn = ibvi.VariationalNetwork(wide, ibvi.Categorical(), parametrization=parametrization)
    rates = {name: rate.factor for name, _, rate in bnn.guide.named_rates("sgd")}
    assert rates["AutoMuPNormal.locs.net.0.weight"] == 4.0
    assert rates["AutoMuPNormal.locs.net.2.weight"] == 0.25


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)),  # would run whole for each
        nn.Sequential(
            nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(12, 8), nn.Linear(8, 3)
        ),
        nn.Sequential(nn.Conv1d(1, 4, 3), nn.Flatten(), nn.Linear(2000, 1000), nn.Linear(1000, 3)),
    ],
)
def test_one_gaussian_where_several_would_cost_much(net: nn.Module) -> None:
    bnn = ibvi.VariationalNetwork(net, ibvi.Categorical())
    assert isinstance(bnn.guide, ibvi.AutoMuPNormal)
    assert bnn.loss.draws == "datum"


def test_attention_has_a_draw_for_each_datum_where_it_can() -> None:
    """Warnings are errors here: no site is left with one draw for a batch."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    net = nn.Sequential(nn.Linear(4, 8), layer, nn.Flatten(), nn.Linear(24, 3))
    bnn = ibvi.VariationalNetwork(net, ibvi.Categorical())
    assert bnn.net.stochastic == [
        *("0.weight", "1.linear1.weight", "1.linear2.weight", "3.weight"),
    ]
    x, y = torch.randn(12, 3, 4), torch.randint(0, 3, (12,))
    bnn.fit(x, y, num_epochs=2, batch_size=6, progress=False)


class Positions(nn.Module):
    """A parameter of no known layer, and code that no symbolic trace follows."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)
        self.position = nn.Parameter(torch.randn(4, 8))
        self.read = nn.Linear(5, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.read(x) + self.position[: len(x[0])])
        return self.head(h.mean(1))


@pytest.mark.parametrize("optimizer", [None, torch.optim.Adam])
def test_what_a_network_is_leaves_the_recipe_as_it_is(optimizer: Any) -> None:
    x, y = torch.randn(20, 4, 5), torch.arange(20) % 3
    role = ibvi.WeightRole.of("bias", fan_in=1, fan_out=8)
    likelihood, options = ibvi.Categorical(), {"roles": {"position": role}, "example_input": x[:2]}
    bnn = ibvi.VariationalNetwork(Positions(), likelihood, optimizer=optimizer, **options)
    assert bnn.net.stochastic == ["head.weight", "read.weight"]
    assert bnn.guide.layers[0].covariance == RELATIVE.covariance
    assert bnn.net.roles["position"].role == "bias"
    bnn.fit(x, y, num_epochs=1, progress=False)
    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(3))
    with pytest.raises(
        ValueError, match=r"have no shape yet: .* pass the batch as example_input="
    ):
        ibvi.VariationalNetwork(lazy, likelihood, optimizer=optimizer)
    bnn = ibvi.VariationalNetwork(lazy, likelihood, optimizer=optimizer, example_input=x[:2])
    assert bnn.net.stochastic == ["1.weight", "3.weight"]
    random = ibvi.RandomModule(nn.Linear(5, 3))
    with pytest.raises(ValueError, match="choices of its own: pass roles to RandomModule"):
        ibvi.VariationalNetwork(random, likelihood, roles={"1": "hidden"})


def test_number_of_components_can_be_chosen() -> None:
    one = ibvi.VariationalNetwork(make_convnet(), ibvi.Categorical(), num_components=1)
    assert isinstance(one.guide, ibvi.AutoMuPNormal)
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))
    two = ibvi.VariationalNetwork(net, ibvi.Normal(0.1), num_components=2)
    assert len(two.guide.components) == 2
    with pytest.raises(ValueError, match="num_components must be a positive"):
        ibvi.VariationalNetwork(net, ibvi.Normal(0.1), num_components=0)


@pytest.mark.parametrize(("num_features", "std"), [(4, 0.0), (20, 0.35 / 4), (50, 0.35)])
def test_step_is_that_of_gaussian_dropout_by_hand(num_features: int, std: float) -> None:
    """One step from the same draws as a network whose units are multiplied by hand."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(num_features, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = torch.randn(6, num_features).double(), torch.randint(0, 3, (6,))
    bnn = ibvi.VariationalNetwork(
        net, ibvi.Categorical(), lr=0.1, parametrization=ibvi.MaximalUpdate(base=net)
    )
    loss_of_step = bnn.loss(bnn.model, bnn.guide)
    loss_of_step(x, y)  # the first call looks at model and guide, which draws numbers too
    torch.manual_seed(1)
    loss = loss_of_step(x, y)
    loss.backward()

    torch.manual_seed(1)
    noise = torch.randn(6, (num_features if std else 0) + 8, dtype=torch.float64)
    hidden = net[:2](x * (1 + std * noise[:, :-8]) if std else x)
    hidden = hidden * (1 + 0.35 * noise[:, -8:])
    by_hand = nn.functional.cross_entropy(hidden @ net[2].weight.T + net[2].bias, y)
    (gradient,) = torch.autograd.grad(by_hand, net[0].bias)
    torch.testing.assert_close(loss, by_hand, rtol=1e-12, atol=0)
    own = dict(bnn.model.named_parameters())["net.net.0.bias"].grad
    torch.testing.assert_close(own, gradient, rtol=1e-10, atol=1e-14)


def test_noise_keeps_its_size_in_training() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 5)
    bnn = ibvi.VariationalNetwork(
        nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 2)), ibvi.Categorical()
    )
    bnn.fit(x, (x[:, 0] > 0).long(), num_epochs=30, batch_size=16, progress=False)
    loc, scale = (f("net.2.weight") for f in (bnn.guide.loc, bnn.guide.scale))
    torch.testing.assert_close(scale / loc.abs(), torch.full_like(loc, 0.35))


@pytest.mark.parametrize(
    ("likelihood", "choices"),
    [
        (ibvi.Normal(0.1), {}),
        (ibvi.Poisson(), {}),
        (ibvi.Categorical(), {"covariance": ibvi.LowRank(3)}),
        (ibvi.Categorical(), {"stochastic": "all"}),
        (ibvi.Categorical(), {"init_scale": 0.5}),
    ],
)
def test_other_targets_and_any_choice_get_the_papers_recipe(
    likelihood: Any, choices: dict[str, Any]
) -> None:
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    bnn = ibvi.VariationalNetwork(net, likelihood, **choices)
    assert "0.weight" in bnn.net.stochastic
    is_for_labels = isinstance(likelihood, ibvi.Categorical)
    assert bnn.loss.draws == ("batch" if is_for_labels else 2)
    assert not any(isinstance(layer.covariance, ibvi.Multiplicative) for layer in bnn.guide.layers)
    assert not torch.equal(bnn.guide.loc("net.0.weight"), net[0].weight)


class Centered(nn.Module):
    """A layer whose output depends on the other data of the batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0)


@pytest.mark.parametrize(
    "layers", [[nn.BatchNorm1d(8)], [Centered()], [nn.Softmax(0)], [nn.Flatten(0, 1)]]
)
def test_a_batch_that_may_belong_together_stays_whole(layers: list[nn.Module]) -> None:
    net = nn.Sequential(nn.Linear(5, 8), *layers, nn.Tanh(), nn.Linear(8, 1))
    assert ibvi.VariationalNetwork(net, ibvi.Normal(0.1)).loss.draws == "batch"


def test_two_draws_fit_numbers_that_are_all_but_exact() -> None:
    """The gradient's noise by one draw is far above what is left to learn."""
    torch.manual_seed(0)
    x = torch.randn(512, 4)
    y = x @ torch.tensor([[1.0], [-1.0], [0.5], [0.2]])
    rmse = {}
    for draws in ("batch", None):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1))
        likelihood = ibvi.Normal(0.3, learn_scale=True)
        bnn = ibvi.VariationalNetwork(net, likelihood, draws=draws)
        bnn.fit(x, y, num_epochs=60, batch_size=64, progress=False)
        rmse[draws] = bnn.evaluate(x, y, seed=0)["rmse"]
    assert rmse[None] < 0.8 * rmse["batch"]


def test_network_without_a_dense_layer_behind_another() -> None:
    net, recipe = as_random(nn.Linear(4, 3), ibvi.Categorical())
    assert recipe is PAPER
    assert net.stochastic == ["weight"]
    _, recipe = as_random(make_convnet(), ibvi.Bernoulli())
    assert recipe is RELATIVE


def test_labels_are_seen_through_wrappers() -> None:
    assert is_of_labels(Masked(ibvi.Bernoulli()))
    assert is_of_labels(Weighted(ibvi.Categorical()))
    assert not is_of_labels(Masked(ibvi.Normal(1.0)))
    assert not is_of_labels(Weighted(Masked(ibvi.Normal(1.0))))
    kind, flag, size = (ibvi.Categorical(), 5), (ibvi.Bernoulli(), 1), (ibvi.Normal(1.0), 1)
    assert is_of_labels(MultiTask({"kind": kind, "flag": flag}))
    assert not is_of_labels(MultiTask({"kind": kind, "size": size}))


def test_several_tasks_of_labels_have_the_recipe_for_labels() -> None:
    """Their trunk learns from labels alone, as that of one task does."""

    def make(other: Any) -> ibvi.VariationalNetwork:
        net = nn.Sequential(nn.Linear(40, 16), nn.ReLU(), nn.Linear(16, 4))
        return ibvi.VariationalNetwork(
            net, MultiTask({"kind": (ibvi.Categorical(), 3), "x": (other, 1)})
        )

    bnn = make(ibvi.Bernoulli())
    assert bnn.loss.draws == "datum"
    assert bnn.optim.pt_optim_constructor is torch.optim.SGD
    assert all(isinstance(layer.covariance, ibvi.Multiplicative) for layer in bnn.guide.layers)
    mixed = make(ibvi.Normal(1.0))
    assert mixed.loss.draws == 2
    assert mixed.optim.pt_optim_constructor is torch.optim.Adam


def test_a_start_that_relative_noise_does_not_have_is_told() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    relative = {"covariance": ibvi.Multiplicative(0.3)}
    with pytest.warns(UserWarning, match=r"init_scale=0\.5 changes nothing.*Multiplicative\(std"):
        half = ibvi.VariationalNetwork(net, ibvi.Categorical(), init_scale=0.5, **relative)
    scale, loc = half.guide.scale("net.2.weight"), half.guide.loc("net.2.weight")
    torch.testing.assert_close(scale, 0.3 * loc.abs())
    ibvi.VariationalNetwork(net, ibvi.Categorical(), init_scale=1.0, **relative)  # in silence
    ibvi.VariationalNetwork(net, ibvi.Categorical(), init_scale=0.5)


def test_noise_on_features_is_the_scale_that_is_given_or_none() -> None:
    """Less of it where few features are read, but where the user says which weights are random."""
    net = nn.Sequential(nn.Linear(24, 6), nn.Tanh(), nn.Linear(6, 3))
    loud = ibvi.Multiplicative(0.4)
    bnn = ibvi.VariationalNetwork(net, ibvi.Categorical(), covariance=loud)
    torch.testing.assert_close(bnn.guide.scale("net.0.weight"), 0.2 * net[0].weight.abs())
    torch.testing.assert_close(bnn.guide.scale("net.2.weight"), 0.4 * net[2].weight.abs())
    bnn = ibvi.VariationalNetwork(
        net, ibvi.Categorical(), covariance=loud, stochastic="all weights"
    )
    torch.testing.assert_close(bnn.guide.scale("net.0.weight"), 0.4 * net[0].weight.abs())
    random = ibvi.RandomModule(net, stochastic="linear+inner weights")
    bnn = ibvi.VariationalNetwork(random, ibvi.Categorical(), covariance=loud)
    torch.testing.assert_close(bnn.guide.scale("net.0.weight"), 0.4 * net[0].weight.abs())


def test_relative_noise_for_numbers_by_its_covariance() -> None:
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))
    bnn = ibvi.VariationalNetwork(net, ibvi.Normal(0.1), covariance=ibvi.Multiplicative(0.1))
    assert bnn.net.stochastic == ["2.weight"]
    assert bnn.loss.draws == "datum"
    torch.testing.assert_close(bnn.guide.scale("net.2.weight"), 0.1 * net[2].weight.abs())


def test_relative_noise_for_numbers_learns_at_the_default_rate() -> None:
    """Adam's default rate is for the absolute table, not for a network that is its own base."""
    torch.manual_seed(0)
    x = torch.randn(256, 6)
    y = (x @ torch.randn(6, 1)).tanh()
    rmse = {}
    for covariance in (None, ibvi.Multiplicative(0.1, rate=0.0)):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(6, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU())
        bnn = ibvi.VariationalNetwork(
            net.append(nn.Linear(128, 1)), ibvi.Normal(0.3), covariance=covariance
        )
        history = bnn.fit(x, y, num_epochs=20, batch_size=64, progress=False)
        assert history.train_loss[0] < 5.0
        rmse[covariance] = bnn.evaluate(x, y, seed=0)["rmse"]
    assert max(rmse.values()) < 0.3


@pytest.mark.parametrize("held", [None, ibvi.Multiplicative(0.2)])
def test_relative_noise_of_each_layer_comes_with_what_goes_with_it(held: Any) -> None:
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    scales = {"hidden": held, "output": ibvi.Multiplicative(0.1)}
    bnn = ibvi.VariationalNetwork(net, ibvi.Normal(0.1), covariance=scales)
    assert bnn.net.stochastic == ["2.weight", "4.weight"]
    assert bnn.loss.draws == "datum"
    torch.testing.assert_close(bnn.guide.loc("net.4.weight"), net[4].weight)
    torch.testing.assert_close(bnn.guide.scale("net.4.weight"), 0.1 * net[4].weight.abs())


def test_relative_noise_beside_other_noise_starts_as_the_papers() -> None:
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))
    scales = {"input": ibvi.LowRank(3), "output": ibvi.Multiplicative(0.1)}
    bnn = ibvi.VariationalNetwork(net, ibvi.Normal(0.1), covariance=scales)
    assert bnn.net.stochastic == ["0.weight", "2.weight"]
    assert bnn.loss.draws == 2


def test_each_choice_can_be_exchanged_alone() -> None:
    bnn = ibvi.VariationalNetwork(make_convnet(), ibvi.Categorical(), draws=4)
    assert bnn.loss.draws == 4
    assert bnn.net.stochastic == ["2.weight", "5.weight", "7.weight"]
    assert len(bnn.guide.components) == 4


@pytest.mark.parametrize("learn_scale", [False, True])
@pytest.mark.parametrize("scale", [0.05, 0.3, 1.0])
def test_default_rate_is_stable_whatever_the_noise(scale: float, learn_scale: bool) -> None:
    """Smaller noise makes the gradient larger, by a factor of 400 here."""
    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 64).unsqueeze(-1)
    net = nn.Sequential(nn.Linear(1, 32), nn.SiLU(), nn.Linear(32, 1))
    bnn = ibvi.VariationalNetwork(net, ibvi.Normal(scale, learn_scale=learn_scale))
    bnn.fit(x, (3 * x).sin(), num_epochs=30, batch_size=16, progress=False)
    assert bnn.evaluate(x, (3 * x).sin(), seed=0)["rmse"] < 0.4  # that of the mean is 0.7


def test_default_optimizers() -> None:
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    assert default_optimizer(net, ibvi.Categorical()) is torch.optim.SGD
    assert default_optimizer(net, Masked(ibvi.Normal(1.0))) is torch.optim.Adam
    bnn = ibvi.VariationalNetwork(net, ibvi.Poisson(), optimizer=torch.optim.SGD, lr=0.2)
    assert bnn.optim.make_torch()[0].defaults["lr"] == 0.2
