"""A rate for one network: what the search finds is what trainings by hand find."""

import math

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import pyro_ibvi as ibvi
from pyro_ibvi.front import RateSearch
from tests.front.conftest import make_net


@pytest.fixture
def build():
    net = make_net()
    return lambda lr: ibvi.VariationalNetwork(
        net, ibvi.Normal(0.3), optimizer=torch.optim.SGD, lr=lr
    )


def by_rates(build, train, valid):
    options = {"valid_loader": valid, "num_epochs": 2, "progress": False}
    return ibvi.rate_search(build, train, rates=(1e-3, 1e-2), **options)


def by_grid(build, train, valid):
    options = {"valid_loader": valid, "num_epochs": 2, "num_samples": 16, "progress": False}
    return ibvi.grid_search(build, {"lr": [1e-3, 1e-2]}, train, **options)


def test_it_trains_and_compares(build, data):
    x, y = data
    valid = (x + 0.1, y)
    state = torch.get_rng_state()
    found = ibvi.rate_search(
        build,
        x,
        y,
        valid_loader=valid,
        rates=(1e4, 1e-6, 1e-2),
        num_epochs=2,
        batch_size=10,
        progress=False,
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert found.rates == (1e-6, 1e-2, 1e4)
    assert math.isinf(found.nlls[2])
    assert found.best == 1e-2
    for rate, nll in zip(found.rates[:2], found.nlls[:2], strict=True):
        torch.manual_seed(0)
        bnn = build(rate)
        bnn.fit(x, y, num_epochs=2, batch_size=10, progress=False)
        assert bnn.evaluate(valid, num_samples=16, seed=0)["nll"] == nll
    assert str(found).splitlines()[2].split() == ["0.01", f"{found.nlls[1]:.4g}", "best"]
    assert "diverged" in str(found)


@pytest.mark.filterwarnings("ignore:The best rate")
@pytest.mark.parametrize("search", [by_rates, by_grid])
def test_loaders_with_a_generator_give_every_training_the_same_batches(build, data, search):
    """The second of two trainings is one by hand, on a loader that is as new."""
    x, y = data
    seen = []

    def own(offset=0.0):
        generator = torch.Generator().manual_seed(5)
        dataset = TensorDataset(x + offset, y)
        return DataLoader(dataset, 10, shuffle=True, generator=generator)

    train, valid = own(), own(0.1)
    found = search(lambda lr: seen.append(lr) or build(lr), train, valid)
    torch.manual_seed(0)
    bnn = build(1e-2)
    bnn.fit(own(), num_epochs=2, progress=False)
    assert seen == [1e-3, 1e-2]
    assert bnn.evaluate(own(0.1), num_samples=16, seed=0)["nll"] == found.nlls[1]
    for loader in (train, valid):
        assert torch.equal(loader.generator.get_state(), own().generator.get_state())


def test_the_picture_marks_the_best():
    pytest.importorskip("matplotlib").use("Agg")
    ax = RateSearch((0.01, 0.1, 1.0), (2.0, 1.0, math.inf)).plot()
    curve, best = ax.lines
    assert curve.get_xdata().tolist() == [0.01, 0.1]
    assert list(best.get_xdata()) == [0.1, 0.1]
    assert ax.get_xscale() == "log"


def test_bad_input(build, data):
    def search(build, **options):
        options = {"rates": (1e-3, 1e-2), "num_epochs": 1, "progress": False, **options}
        ibvi.rate_search(build, *data, valid_loader=data, **options)

    for rates in ((0.1,), (0.1, 0.1), (0.1, -1.0)):
        with pytest.raises(ValueError, match="at least two different positive numbers"):
            search(build, rates=rates)
    with pytest.raises(TypeError, match=r"several to compare, such as \(0\.01, 0\.1\), got 0\.1"):
        search(build, rates=0.1)
    with pytest.raises(TypeError, match="got the class VariationalNetwork: write lambda lr: V"):
        search(ibvi.VariationalNetwork)
    with pytest.raises(TypeError, match="build must make a VariationalNetwork, got Sequential"):
        search(lambda lr: make_net())
    for other in (make_net(), build(0.5), lambda: build(0.5)):
        with pytest.raises(TypeError, match=r"function that makes.*: write lambda lr: Var"):
            search(other)
    with pytest.raises(ValueError, match=r"learns at 0\.5, not at the rate 0\.001"):
        search(lambda lr: build(0.5))
    with pytest.raises(ValueError, match="diverged at every rate"):
        search(build, rates=(1e12, 1e13), num_epochs=3)
    with pytest.warns(UserWarning, match="best rate, 1e-08, is the smallest that was tried"):
        search(build, rates=(1e-8, 1e4), num_epochs=3)


def test_one_try_does_not_go_on_from_another(data):
    x, y = data
    random = ibvi.RandomModule(make_net())
    with pytest.raises(ValueError, match=r"build makes share 'net\.net\..* inside of build"):
        ibvi.rate_search(
            lambda lr: ibvi.VariationalNetwork(random, ibvi.Normal(0.3), lr=lr),
            x,
            y,
            valid_loader=data,
            rates=(1e-4, 1e-3),
            num_epochs=1,
            progress=False,
        )
