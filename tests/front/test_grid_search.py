"""Choices for one network: what the search finds is what trainings by hand find."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import pyro_ibvi as ibvi
from pyro_ibvi.front import RateSearch
from tests.front.conftest import make_net


@pytest.fixture
def build():
    net = make_net()

    def build(lr, scale):
        return ibvi.VariationalNetwork(
            net,
            ibvi.Normal(0.3),
            covariance=ibvi.Multiplicative(scale, rate=0.0),
            stochastic="all weights",
            optimizer=torch.optim.SGD,
            lr=lr,
        )

    return build


def test_it_trains_with_every_combination_and_compares(build, data):
    x, y = data
    valid = (x + 0.1, y)
    state = torch.get_rng_state()
    found = ibvi.grid_search(
        build,
        {"lr": [1e-3, 1e4], "scale": (0.1, 0.5)},
        x,
        y,
        valid_loader=valid,
        num_epochs=2,
        batch_size=10,
        num_samples=8,
        progress=False,
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert found.choices == (
        {"lr": 1e-3, "scale": 0.1},
        {"lr": 1e-3, "scale": 0.5},
        {"lr": 1e4, "scale": 0.1},
        {"lr": 1e4, "scale": 0.5},
    )
    assert all(map(math.isinf, found.nlls[2:]))
    for choice, nll in zip(found.choices[:2], found.nlls[:2], strict=True):
        torch.manual_seed(0)
        bnn = build(**choice)
        bnn.fit(x, y, num_epochs=2, batch_size=10, progress=False)
        assert bnn.evaluate(valid, num_samples=8, seed=0)["nll"] == nll
    best = found.nlls.index(min(found.nlls))
    assert found.best == found.choices[best]
    head, *rows = str(found).splitlines()
    assert head.split() == ["lr", "scale", "nll"]
    assert [row.endswith("best") for row in rows] == [i == best for i in range(4)]
    assert rows[3].split() == ["1e+04", "0.5", "diverged"]


def test_any_choice_can_be_made(data):
    """Also of what is no number, such as how many components or which covariance."""

    def build(covariance, num_components):
        return ibvi.VariationalNetwork(
            make_net(), ibvi.Normal(0.3), covariance=covariance, num_components=num_components
        )

    grid = {"covariance": [ibvi.LowRank(2), ibvi.Diagonal()], "num_components": [1, 2]}
    found = ibvi.grid_search(build, grid, *data, valid_loader=data, num_epochs=1)
    assert found.best in found.choices
    assert "LowRank" in str(found)


def test_bad_input(build, data):
    def search(build, grid):
        return ibvi.grid_search(
            build, grid, *data, valid_loader=data, num_epochs=2, progress=False
        )

    for grid in ({"lr": 0.1}, [0.1, 0.2], {"lr": "0.1"}, {0: [1, 2]}):
        with pytest.raises(TypeError, match="grid must have a list of values for each argument"):
            search(build, grid)
    for grid in ({}, {"lr": [0.1]}, {"lr": [0.1, 0.2], "scale": []}):
        with pytest.raises(ValueError, match="nothing to choose from in grid="):
            search(build, grid)
    with pytest.raises(TypeError, match=r"got Sequential: write lambda lr, scale: Variational"):
        search(lambda lr, scale: nn.Sequential(), {"lr": [0.1, 0.2], "scale": [0.1]})
    for other in (make_net(), build(0.1, 0.1), None, lambda rate, scale: None):
        with pytest.raises(TypeError, match=r"function that makes.*: write lambda lr, scale:"):
            search(other, {"lr": [0.1, 0.2], "scale": [0.1]})
    with pytest.raises(ValueError, match="diverged with every choice"):
        search(build, {"lr": [1e12, 1e13], "scale": [0.1]})
    random = ibvi.RandomModule(make_net())
    with pytest.raises(ValueError, match=r"build makes share 'net\.net\..* inside of build"):
        search(
            lambda lr: ibvi.VariationalNetwork(random, ibvi.Normal(0.3), lr=lr),
            {"lr": [1e-4, 1e-3]},
        )


def test_a_choice_that_changes_nothing_is_told(build, data):
    options = {"valid_loader": data, "num_epochs": 1, "progress": False}
    with pytest.warns(UserWarning, match="choice 'num_epochs' changes nothing, to the last digit"):
        found = ibvi.grid_search(
            lambda lr, num_epochs: build(lr, 0.1),
            {"lr": np.array([1e-3, 1e-2]), "num_epochs": [1, 5]},
            *data,
            **options,
        )
    assert found.nlls[::2] == found.nlls[1::2]
    assert [choice["lr"] for choice in found.choices[::2]] == [1e-3, 1e-2]
    with pytest.raises(ValueError, match=r"got lr=RateSearch\(.*: pass its \.best"):
        ibvi.VariationalNetwork(make_net(), ibvi.Normal(), lr=RateSearch((0.1, 0.2), (1.0, 2.0)))
