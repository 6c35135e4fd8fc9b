"""The recipe for numbers: relative noise where a network can learn its data by heart."""

from typing import Any

import pytest
import torch
from torch import nn

import pyro_ibvi as ibvi
from pyro_ibvi.front.recipe import NUMBERS


class OfTimes(nn.Module):
    """A number for each time of a series, read by a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 8, batch_first=True), nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0]).squeeze(-1)


def of_features(num: int) -> nn.Module:
    return nn.Sequential(nn.Linear(num, 8), nn.Tanh(), nn.Linear(8, 1))


def of_images() -> nn.Module:
    hidden = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*hidden, nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 1))


@pytest.mark.parametrize(
    ("make", "stochastic"),
    [
        (OfTimes, ["head.weight"]),
        (lambda: of_features(32), ["0.weight", "2.weight"]),
        (of_images, ["2.weight", "5.weight", "7.weight"]),
    ],
)
@pytest.mark.parametrize("likelihood", [ibvi.Normal(0.1), ibvi.Poisson()])
def test_numbers_of_images_series_and_many_features_get_relative_noise(
    make: Any, stochastic: list[str], likelihood: Any
) -> None:
    net = make()
    bnn = ibvi.VariationalNetwork(net, likelihood)
    kinds = {layer.covariance for part in bnn.guide.components for layer in part.layers}
    assert kinds <= {NUMBERS.covariance, NUMBERS.of_convolutions}
    assert bnn.net.stochastic == stochastic
    assert bnn.loss.draws == "datum"
    assert bnn.optim.pt_optim_constructor is torch.optim.Adam
    assert bnn.optim.lr == 0.1
    for name in bnn.net.stochastic:  # from the network on
        site = bnn.net.site_name(name)
        own = bnn.guide.components[0].loc(site)
        assert isinstance(bnn.guide, ibvi.AutoMuPMixture) or torch.equal(
            own, net.get_parameter(name)
        )


@pytest.mark.parametrize("num_features", [2, 31])
def test_numbers_of_few_features_get_the_papers_recipe(num_features: int) -> None:
    bnn = ibvi.VariationalNetwork(of_features(num_features), ibvi.Normal(0.1))
    assert {layer.covariance for layer in bnn.guide.layers} == {ibvi.LowRank(10)}


def test_what_all_tokens_have_in_common_learns_slowly_by_default() -> None:
    """Positions that move by the rate of a weight's own step drown what is added to them."""

    class OfTokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.places = nn.Linear(3, 16), nn.Parameter(torch.randn(6, 16))
            self.layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)
            self.head = nn.Linear(16, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.layer(self.embed(x) + self.places).mean(1))

    given = ibvi.MaximalUpdate(attention="1/sqrt(d)")
    rates = {
        parametrization: {
            name: group["lr"]
            for group in ibvi.VariationalNetwork(
                OfTokens(), ibvi.Normal(0.1), parametrization=parametrization
            ).optim.optimizer.param_groups
            for name in group["param_names"]
        }
        for parametrization in (None, given)
    }
    for name, rate in rates[None].items():
        is_vector = "places" in name or "bias" in name or "norm" in name
        assert rate == pytest.approx(rates[given][name] * (0.03 if is_vector else 1)), name
