"""How much noise the default has, by features and data."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

import pyro_ibvi as ibvi

NOISE = 0.35


def table_network(num_features: int = 4) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Linear(num_features, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU()),
        nn.Linear(8, 3),
    )


def relative(bnn: ibvi.VariationalNetwork, name: str) -> float:
    """Standard deviation of a layer's noise in units of its mean, one for all of its weights."""
    name = f"net.{name}"
    held = {
        site.name for layer in bnn.guide.layers if not layer.covariance for site in layer.sites
    }
    if name in held:
        return 0.0
    ratio = bnn.guide.scale(name) / bnn.guide.loc(name).abs()
    torch.testing.assert_close(ratio, ratio.flatten()[0].expand_as(ratio))
    return ratio.flatten()[0].item()


@pytest.mark.parametrize("num_components", [1, 2])
@pytest.mark.parametrize(
    ("num_features", "num_data", "on_features", "on_hidden"),
    [
        (4, 1600, 0.0, NOISE),  # 400 data for each feature
        (16, 12_800, 0.0, NOISE / 2),
        (20, 400, NOISE / 4, NOISE),
        (20, 6000, NOISE / 8, NOISE),
        (64, 12_800, NOISE, NOISE),
        (64, 19_200, NOISE / 2, NOISE),
        (64, 102_400, 0.0, NOISE / 4),
    ],
)
def test_many_data_for_each_feature_leave_less(
    num_features: int, num_data: int, on_features: float, on_hidden: float, num_components: int
) -> None:
    bnn = ibvi.VariationalNetwork(
        table_network(num_features), ibvi.Categorical(), num_components=num_components
    )
    for _ in range(2):  # again is the same
        bnn.set_num_data(num_data)
    assert bnn.model.num_data == num_data
    assert relative(bnn, "0.weight") == pytest.approx(on_features, rel=1e-5)
    assert relative(bnn, "3.weight") == pytest.approx(on_hidden, rel=1e-5)
    assert relative(bnn, "5.weight") == pytest.approx(on_hidden, rel=1e-5)


@pytest.mark.parametrize(
    ("wrap", "activation"),
    [
        (nn.utils.parametrizations.weight_norm, nn.ReLU()),
        (nn.utils.parametrizations.spectral_norm, nn.ReLU()),
        (nn.Identity(), nn.PReLU()),
        (nn.Identity(), nn.GroupNorm(2, 8)),
    ],
)
def test_tables_in_other_words_have_no_more(wrap: Any, activation: nn.Module) -> None:
    layers = wrap(nn.Linear(20, 8, bias=False)), activation, wrap(nn.Linear(8, 8)), nn.ReLU()
    bnn = ibvi.VariationalNetwork(nn.Sequential(*layers, nn.Linear(8, 3)), ibvi.Categorical())
    bnn.set_num_data(16_000)  # 800 for each feature
    assert [relative(bnn, name) for name in bnn.net.stochastic] == pytest.approx(
        [0.0, NOISE / 2, NOISE / 2], rel=1e-5
    )


@pytest.mark.parametrize("number", [0, -1, True, 2.5, "100", None])
def test_a_number_of_data_that_is_none_is_refused(number: Any) -> None:
    bnn = ibvi.VariationalNetwork(table_network(), ibvi.Categorical())
    with pytest.raises(ValueError, match="num_data must be a positive whole number, got"):
        bnn.set_num_data(number)
    assert bnn.model.num_data is None


def test_data_in_the_place_of_their_batches_are_refused() -> None:
    bnn = ibvi.VariationalNetwork(table_network(), ibvi.Categorical())
    for data in ((torch.randn(4, 40), torch.zeros(4)), TensorDataset(torch.randn(4, 40))):
        with pytest.raises(TypeError, match=r"batches .*: write "):
            bnn.set_num_data(4, data)


def test_fit_counts_the_data() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(1600, 2), torch.randint(3, (1600,))
    bnn = ibvi.VariationalNetwork(table_network(2), ibvi.Categorical())
    assert relative(bnn, "3.weight") == pytest.approx(NOISE)
    bnn.fit(x, y, num_epochs=1, batch_size=400, progress=False)
    assert relative(bnn, "3.weight") == pytest.approx(NOISE / 2, rel=1e-5)
    assert relative(copy.deepcopy(bnn), "3.weight") == pytest.approx(NOISE / 2, rel=1e-5)
    bnn.fit(x[:400], y[:400], num_epochs=1, batch_size=400, progress=False)
    assert relative(bnn, "3.weight") == pytest.approx(NOISE, rel=1e-5)


def test_a_file_keeps_the_noise(tmp_path: Path) -> None:
    bnn = ibvi.VariationalNetwork(table_network(32), ibvi.Categorical())
    bnn.set_num_data(9600)
    bnn.save(tmp_path / "net.ibvi")
    again = ibvi.load(tmp_path / "net.ibvi", table_network(32))
    assert relative(again, "0.weight") == pytest.approx(NOISE / 2, rel=1e-5)
    assert relative(again, "5.weight") == pytest.approx(NOISE, rel=1e-5)
    again.set_num_data(32 * 800)  # where it goes on with more
    assert relative(again, "0.weight") == 0
    assert relative(again, "5.weight") == pytest.approx(NOISE / 2, rel=1e-5)


def test_a_file_keeps_noise_that_was_chosen(tmp_path: Path) -> None:
    noise = ibvi.Multiplicative(0.4, rate=0.0)
    bnn = ibvi.VariationalNetwork(table_network(), ibvi.Categorical(), covariance=noise)
    bnn.save(tmp_path / "net.ibvi")
    again = ibvi.load(tmp_path / "net.ibvi", table_network())
    again.set_num_data(10**6)
    assert relative(again, "5.weight") == pytest.approx(0.4, rel=1e-5)


@pytest.mark.parametrize(
    "choice",
    [
        {"covariance": ibvi.Multiplicative(0.4, rate=0.0)},
        {"covariance": ibvi.Multiplicative(0.4)},
        {"stochastic": "all weights", "covariance": ibvi.Multiplicative(0.4, rate=0.0)},
    ],
)
def test_noise_that_is_chosen_stays(choice: dict[str, Any]) -> None:
    bnn = ibvi.VariationalNetwork(table_network(), ibvi.Categorical(), **choice)
    before = relative(bnn, "0.weight")
    bnn.set_num_data(10**6)
    assert relative(bnn, "0.weight") == before
    assert relative(bnn, "5.weight") == pytest.approx(0.4, rel=1e-5)


class Gated(nn.Module):
    """Two layers that read the same features."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.gate, self.out = nn.Linear(20, 8), nn.Linear(20, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.value(x) * self.gate(x).sigmoid())


def test_features_that_two_layers_read_count_once() -> None:
    bnn = ibvi.VariationalNetwork(Gated(), ibvi.Categorical())
    bnn.set_num_data(16_000)
    assert relative(bnn, "gate.weight") == 0.0
    assert relative(bnn, "out.weight") == pytest.approx(NOISE / 2, rel=1e-5)


class OverTime(nn.Module):
    """One feature at each time."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.over, self.out = nn.Linear(1, 8), nn.GRU(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.over(self.embed(x).relu())[0][-1])


class OfPixels(nn.Sequential):
    """Convolutions beside a linear layer that reads data."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Linear(4, 4), nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 8, 3, padding=1), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(32, 3)),
        )


@pytest.mark.parametrize("make", [OverTime, OfPixels])
def test_networks_of_words_pixels_and_times_keep_theirs(make: Any) -> None:
    bnn = ibvi.VariationalNetwork(make(), ibvi.Categorical(), num_components=1)
    before = {name: bnn.guide.scale(f"net.{name}") for name in bnn.net.stochastic}
    bnn.set_num_data(10**6)
    for name, scale in before.items():
        assert torch.equal(bnn.guide.scale(f"net.{name}"), scale)


class OfPoints(nn.Module):
    """Each point by itself, then what all of them have in common, or a label for each."""

    def __init__(self, *, pools: bool = True) -> None:
        super().__init__()
        self.point, self.inner, self.out = nn.Linear(40, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.pools = pools

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.inner(self.point(x).relu()).relu()
        return self.out(hidden.amax(1) if self.pools else hidden)


class Stream(IterableDataset[Any]):
    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts

    def __iter__(self) -> Iterator[Any]:
        yield from self.parts


FORMS = ["tensors", "data set", "loader", "workers", "batches", "stream", "stream of batches"]
FORMS += ["worker of a stream"]


def forms_of(x: torch.Tensor, y: torch.Tensor) -> dict[str, tuple[Any, ...]]:
    data = TensorDataset(x, y)
    rows = Subset(data, range(len(data)))  # whose rows are made as they are read
    return {
        "tensors": (x, y),
        "data set": (rows,),
        "loader": (DataLoader(rows, batch_size=50, shuffle=True),),
        "workers": (DataLoader(rows, batch_size=150, num_workers=1),),
        "batches": ([(x[:100], y[:100]), (x[100:], y[100:])],),
        "stream": (Stream(list(data)),),
        "worker of a stream": (DataLoader(Stream(list(data)), batch_size=50, num_workers=1),),
        "stream of batches": (DataLoader(Stream([(x[:99], y[:99])]), batch_size=None),),
    }


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("labels", ["one", "each", "shares"])
def test_points_of_a_datum_are_features_of_its_label_or_data(form: str, labels: str) -> None:
    """As a table that has the points beside one another, or below."""
    num_data, num_points = 300, 100
    x, y = torch.randn(num_data, num_points, 40), torch.randint(3, (num_data,))
    if labels == "each":
        y = torch.randint(3, (num_data, num_points))
    if labels == "shares":
        y = nn.functional.one_hot(y, 3).float()
    bnn = ibvi.VariationalNetwork(OfPoints(pools=labels != "each"), ibvi.Categorical())
    bnn.fit(*forms_of(x, y)[form], num_epochs=1, num_data=num_data, progress=False)
    table = ibvi.VariationalNetwork(
        table_network(40 if labels == "each" else 4000), bnn.likelihood
    )
    table.set_num_data(num_data * num_points if labels == "each" else num_data)
    assert relative(bnn, "point.weight") == pytest.approx(relative(table, "0.weight"), rel=1e-5)
    assert relative(bnn, "inner.weight") == pytest.approx(relative(table, "3.weight"), rel=1e-5)
    bnn.set_num_data(300 * 100)  # of which nothing else is known
    assert relative(bnn, "point.weight") == 0.0


class OfTimes(OfPoints):
    """What comes out of the points, in another layout or number."""

    def __init__(self, form: str) -> None:
        super().__init__(pools=form == "several")
        self.form = form
        if form == "several":
            self.out = nn.Linear(8, 100)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = super().forward(x)
        return {"channels": out.mT, "later": out[:, 1:]}.get(self.form, out)


def label(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randint(3, shape)


@pytest.mark.parametrize(
    ("form", "likelihood", "y", "is_each"),
    [
        ("several", ibvi.Bernoulli(), torch.ones(300, 100), False),  # as many labels as points
        ("later", ibvi.Categorical(class_dim=-1), label((300, 99)), True),
        ("channels", ibvi.Categorical(class_dim=1), label((300, 100)), True),
        ("channels", ibvi.Categorical(class_dim=1), torch.rand(300, 3, 100).softmax(1), True),
    ],
)
def test_the_last_layer_tells_whether_points_have_labels(
    form: str, likelihood: Any, y: torch.Tensor, is_each: bool
) -> None:
    bnn = ibvi.VariationalNetwork(OfTimes(form), likelihood)
    bnn.set_num_data(300, [(torch.randn(300, 100, 40), y)])
    table = ibvi.VariationalNetwork(table_network(40 if is_each else 4000), ibvi.Categorical())
    table.set_num_data(300 * 100 if is_each else 300)
    assert relative(bnn, "point.weight") == pytest.approx(relative(table, "0.weight"), rel=1e-5)
    if form != "later":
        same = pytest.approx(relative(table, "3.weight"), rel=1e-5)
        assert relative(bnn, "inner.weight") == same


def test_numbers_have_the_papers_noise() -> None:
    bnn = ibvi.VariationalNetwork(table_network(), ibvi.Normal(0.1))
    before = bnn.guide.scale("net.0.weight")
    bnn.set_num_data(10**6)
    assert torch.equal(bnn.guide.scale("net.0.weight"), before)


@pytest.mark.parametrize("num_features", [8, 20, 64])
@pytest.mark.parametrize("num_data", [100, 20_000, 100_000])
def test_behind_frozen_layers_noise_is_that_of_the_rest_alone(
    num_features: int, num_data: int
) -> None:
    rest = nn.Linear(num_features, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
    frozen = nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, num_features), nn.ReLU()
    alone = ibvi.VariationalNetwork(nn.Sequential(*rest), ibvi.Categorical())
    behind = ibvi.VariationalNetwork(
        nn.Sequential(*(layer.requires_grad_(False) for layer in frozen), *rest),
        ibvi.Categorical(),
    )
    for bnn in (alone, behind):
        bnn.set_num_data(num_data)
    for i in (0, 2, 4):
        truth = relative(alone, f"{i}.weight")
        assert relative(behind, f"{i + 4}.weight") == pytest.approx(truth, rel=1e-5)


def test_a_last_layer_behind_frozen_ones_keeps_its_noise() -> None:
    frozen = nn.Linear(5, 8).requires_grad_(False)
    bnn = ibvi.VariationalNetwork(
        nn.Sequential(frozen, nn.ReLU(), nn.Linear(8, 3)), ibvi.Categorical()
    )
    bnn.set_num_data(100_000)
    assert relative(bnn, "2.weight") == pytest.approx(NOISE)
