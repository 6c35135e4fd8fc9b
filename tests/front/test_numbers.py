"""The recipe for numbers: relative noise where a network reads images, series or tokens."""

from typing import Any

import pytest
import torch
from torch import nn

import pyro_ibvi as ibvi
from pyro_ibvi.front.recipe import NUMBERS


class OfTokens(nn.Module):
    """A number for each sentence of twenty words, by attention."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(20, 8), nn.Parameter(torch.zeros(5, 8))
        self.attention, self.head = nn.MultiheadAttention(8, 2), nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = (self.words(x) + self.places).transpose(0, 1)
        return self.head(self.attention(h, h, h)[0].mean(0))


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
        (of_images, ["2.weight", "5.weight", "7.weight"]),
    ],
)
@pytest.mark.parametrize("likelihood", [ibvi.Normal(0.1), ibvi.Poisson()])
def test_numbers_of_images_and_series_get_relative_noise(
    make: Any, stochastic: list[str], likelihood: Any
) -> None:
    net = make()
    bnn = ibvi.VariationalNetwork(net, likelihood)
    kinds = {layer.covariance for part in bnn.guide.components for layer in part.layers}
    assert kinds <= {NUMBERS.covariance, NUMBERS.of_convolutions}
    assert bnn.net.stochastic == stochastic
    assert bnn.loss.draws == "datum"
    assert bnn.optim.pt_optim_constructor is torch.optim.Adam
    assert bnn.optim.lr == pytest.approx(0.1 if make is OfTimes else 0.075)  # four layers
    for name in bnn.net.stochastic:  # from the network on
        site = bnn.net.site_name(name)
        own = bnn.guide.components[0].loc(site)
        assert isinstance(bnn.guide, ibvi.AutoMuPMixture) or torch.equal(
            own, net.get_parameter(name)
        )


@pytest.mark.parametrize("num_features", [2, 64])
def test_numbers_of_tables_get_the_papers_recipe(num_features: int) -> None:
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


@pytest.mark.parametrize(
    ("num_data", "num_times", "share"),
    [(1000, 1, 1.0), (100, 10, 1.0), (40, 100, 0.5), (500, 1, 2**0.5), (20, 2, 1.75)],
)
@pytest.mark.parametrize("has_batches", [True, False])
def test_the_noise_goes_with_how_many_numbers_there_are(
    num_data: int, num_times: int, share: float, has_batches: bool
) -> None:
    bnn = ibvi.VariationalNetwork(OfTimes(), ibvi.Normal(0.1))
    batches = [(torch.randn(2, num_times, 3), torch.randn(2, num_times))] if has_batches else None
    bnn.set_num_data(num_data if has_batches else num_data * num_times, batches)
    noise = bnn.guide.scale("net.head.weight") / bnn.guide.loc("net.head.weight").abs()
    torch.testing.assert_close(noise, torch.full_like(noise, 0.2 * share))


def test_noise_that_is_chosen_stays() -> None:
    bnn = ibvi.VariationalNetwork(
        OfTimes(), ibvi.Normal(0.1), covariance=ibvi.Multiplicative(0.05, rate=0.0)
    )
    bnn.set_num_data(20)
    noise = bnn.guide.scale("net.head.weight") / bnn.guide.loc("net.head.weight").abs()
    torch.testing.assert_close(noise, torch.full_like(noise, 0.05))


@pytest.mark.parametrize("seed", range(2))
def test_what_is_learned_by_heart_does_not_end_in_certainty(seed: int) -> None:
    """The scale of the targets' noise goes by residuals, which a network of images makes zero."""
    torch.manual_seed(seed)
    x = torch.randn(500, 1, 8, 8)
    y = 3 * x[:, :, :4, :4].mean((2, 3)) + 0.5 * torch.randn(500, 1)

    def nll(**choices: Any) -> float:
        likelihood = ibvi.Normal(0.5, learn_scale=True)
        bnn = ibvi.VariationalNetwork(of_images(), likelihood, **choices)
        bnn.fit(x[:200], y[:200], num_epochs=200, batch_size=50, progress=False)
        return bnn.evaluate(x[200:], y[200:], num_samples=50, seed=0)["nll"]

    assert nll() < nll(covariance=ibvi.LowRank(10)) - 1


@pytest.mark.parametrize("optimizer", [None, torch.optim.AdamW])
def test_the_default_rate_of_deep_networks_is_smaller(optimizer: Any) -> None:
    """The steps of all layers add up: ten of them did not learn at the rate for two."""

    def rate(depth: int, **choices: Any) -> float:
        hidden = [nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(depth)]
        net = nn.Sequential(*hidden, nn.Linear(8, 1))
        lr = ibvi.VariationalNetwork(net, ibvi.Normal(), optimizer=optimizer, **choices).optim.lr
        return float(lr)

    assert rate(1) == rate(2) == 0.1
    assert rate(9) == pytest.approx(0.03)
    assert rate(9, lr=0.1) == 0.1


@pytest.mark.parametrize("likelihood", [ibvi.Normal(), ibvi.Categorical()])
@pytest.mark.parametrize(
    ("net", "words"),
    [
        ([nn.Linear(2, 1)], r"write torch\.nn\.Sequential\(\*layers\)"),
        (None, r"needs a torch\.nn\.Module, got NoneType"),
        (nn.Linear, r"got the class Linear: write Linear"),
        (torch.jit.ScriptModule(), "pass the network from before torch.jit.script"),
    ],
)
def test_what_is_no_network_is_told_whatever_the_targets(
    net: Any, words: str, likelihood: Any
) -> None:
    with pytest.raises(TypeError, match=words):
        ibvi.VariationalNetwork(net, likelihood)


def test_positions_learn_slowly_by_default_and_words_do_not() -> None:
    """A position is in all data, a word in few, and its table fell short at such a rate."""
    bnn = ibvi.VariationalNetwork(OfTokens(), ibvi.Normal())
    rates = {name: rate.factor for name, _, rate in bnn.guide.named_rates("adam")}
    slow = {name.removeprefix("net.") for name, factor in rates.items() if factor == 0.03}
    assert slow == {"places", "attention.in_proj_bias", "attention.out_proj.bias", "head.bias"}
    assert {factor for name, factor in rates.items() if "words" in name} == {1.0}


@pytest.mark.parametrize("vectors", [0.0, -1.0, float("inf"), float("nan"), "0.1", True])
def test_a_rate_of_positions_is_a_positive_number(vectors: Any) -> None:
    with pytest.raises(ValueError, match="vectors must be positive and finite"):
        ibvi.MaximalUpdate(vectors=vectors)
