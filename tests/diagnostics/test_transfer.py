"""Learning-rate transfer: best rates, resumption, and a case where they must move."""

import copy
import json
import math

import pytest
import torch
from pyro.infer import SVI
from torch import nn

import pyro_ibvi as ibvi
from pyro_ibvi.diagnostics.book import describe_loss

RATES = (0.01, 0.1, 1.0)


def build(width):
    net = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1))
    model = ibvi.SupervisedModel(ibvi.RandomModule(net), ibvi.Normal())
    return model, ibvi.AutoMuPNormal(model, covariance=ibvi.LowRank(2))


def loader(batch_size=8):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(24, 2, generator=generator)
    data = torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True))
    return torch.utils.data.DataLoader(data, batch_size=batch_size, shuffle=True)


def make_result(losses, widths=(8, 32), axis="width"):
    return ibvi.diagnostics.RateTransfer(
        widths,
        RATES,
        {(w, r): tuple(v) for w, row in zip(widths, losses, strict=True)
         for r, v in zip(RATES, row, strict=True)},
        axis,
    )  # fmt: skip


def test_best_rates_and_slope():
    result = make_result([[[3.0], [2.0], [1.0]], [[1.0, 1.0], [0.0, 3.0], [math.inf, 0.0]]])
    assert result.mean(32) == [1.0, 1.5, math.inf]
    assert (result.best_rate(8), result.best_rate(32)) == (1.0, 0.01)
    assert result.slope() == pytest.approx(math.log(0.01) / math.log(4))
    same = make_result([[[2.0], [1.0], [3.0]]] * 2)
    assert same.slope() == pytest.approx(0)


def test_where_everything_diverged():
    result = make_result([[[math.inf]] * 3, [[1.0]] * 3])
    assert math.isnan(result.best_rate(8))
    assert math.isnan(result.slope())
    assert result.to_dict()["best_rates"] == [None, 0.01]
    with pytest.raises(KeyError, match=r"No run of width 7; the widths are \[8, 32\]"):
        result.best_rate(7)


def test_loss_is_the_expected_one_after_training():
    """A cell against the same training by hand, and the average over draws against many."""
    num_draws = 100
    result = ibvi.rate_transfer(build, [8, 16], [0.01, 0.02], loader(), 2, num_draws=num_draws)
    torch.manual_seed(0)
    model, guide = build(8)
    optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": 0.02}, guide)
    loss = ibvi.TraceExpectedLogLikelihood(reduction="mean")
    ibvi.fit(SVI(model, guide, optim, loss), loader(), 2, progress=False)
    x, y = loader().dataset.tensors
    outputs = ibvi.predict(model, guide, x, num_samples=20_000).outputs
    losses = 0.5 * (outputs - y).square().mean((1, 2)) + 0.5 * math.log(2 * math.pi)
    error = 4 * losses.std().item() / math.sqrt(num_draws)
    assert result.losses[8, 0.02][0] == pytest.approx(losses.mean().item(), abs=error)
    assert error < 0.5 * losses.mean()


def test_runs_do_not_depend_on_each_other():
    before = torch.random.get_rng_state()
    both = ibvi.rate_transfer(build, [8, 16], RATES, loader(), 1, num_draws=2)
    assert torch.equal(torch.random.get_rng_state(), before)
    part = ibvi.rate_transfer(build, [16, 12], RATES[1:], loader(), 1, num_draws=2)
    assert part.losses[16, 0.1] == both.losses[16, 0.1]


@pytest.mark.parametrize("where", ["loader", "sampler"])
def test_loaders_with_random_states_of_their_own_begin_alike_in_each_run(where):
    def own():
        data, generator = loader().dataset, torch.Generator().manual_seed(5)
        if where == "loader":
            return torch.utils.data.DataLoader(data, 8, shuffle=True, generator=generator)
        sampler = torch.utils.data.RandomSampler(data, generator=generator)
        return torch.utils.data.DataLoader(data, 8, sampler=sampler)

    both = ibvi.rate_transfer(build, [8, 16], RATES, own(), 2, num_draws=2)
    part = ibvi.rate_transfer(build, [16, 32], [0.1, 1.0], own(), 2, num_draws=2)
    assert part.losses[16, 0.1] == both.losses[16, 0.1]
    assert part.losses[16, 1.0] == both.losses[16, 1.0]


def test_resumes_from_its_file(tmp_path):
    path, calls = tmp_path / "runs.json", []

    def counting(width):
        calls.append(width)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return build(width)

    arguments = (RATES, loader(), 1)
    with pytest.raises(KeyboardInterrupt):
        ibvi.rate_transfer(counting, [8, 16], *arguments, num_draws=2, path=path)
    assert len(json.loads(path.read_text())["runs"]) == 3
    resumed = ibvi.rate_transfer(counting, [8, 16], *arguments, num_draws=2, path=path)
    # Before the runs a network of each width tells whether the file is of these.
    assert calls == [8, 16, 8, 8, 8, 16, 8, 16, 16, 16, 16]
    assert resumed.losses == ibvi.rate_transfer(build, [8, 16], *arguments, num_draws=2).losses
    assert not list(tmp_path.glob("*.part"))
    with pytest.raises(
        ValueError, match=r"holds runs with num_epochs 1 and now 2: choose another"
    ):
        ibvi.rate_transfer(build, [8, 16], RATES, loader(), 2, num_draws=2, path=path)
    nowhere = tmp_path / "nowhere" / "runs.json"
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*nowhere"):
        ibvi.rate_transfer(build, [8, 16], *arguments, path=nowhere)


def build_other(width):
    model, _ = build(width)
    return model, ibvi.AutoMuPNormal(model, covariance=ibvi.LowRank(2), init_scale=0.5)


def other_data():
    (x, y) = loader().dataset.tensors
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y + 1), batch_size=8)


class Lion(torch.optim.SGD):
    """Another optimizer by its name, and by its family if one is given."""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"build": build_other}, "another network, likelihood, prior or covariance at width 8"),
        ({"train_loader": other_data()}, "data '.*' and now '.*'"),
        ({"valid_loader": other_data()}, "data '.*' and now"),
        ({"loss": ibvi.TraceExpectedLogLikelihood(kl_weight=1.0)}, "loss .*kl_weight"),
        ({"optimizer": Lion}, "optimizer 'SGD' and now 'Lion'"),
        ({"optimizer": Lion, "family": "adam"}, "family 'sgd' and now 'adam'"),
        ({"num_draws": 3}, "num_draws 2 and now 3"),
    ],
)
def test_a_file_is_of_one_network_data_loss_and_optimizer(tmp_path, change, message):
    arguments = {
        "build": build,
        "sizes": [8, 16],
        "rates": [0.01, 0.1],
        "train_loader": loader(),
        "num_epochs": 1,
        "num_draws": 2,
        "path": tmp_path / "runs.json",
    }
    before = ibvi.rate_transfer(**arguments)
    with pytest.raises(ValueError, match=rf"holds runs with .*{message}.*choose another file"):
        ibvi.rate_transfer(**{**arguments, **change})
    # The same data in a loader of another object are the same data.
    arguments["train_loader"] = loader()
    assert ibvi.rate_transfer(**arguments).losses == before.losses


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (ibvi.TraceGeneralizedVI(weight=0.5), ibvi.TraceGeneralizedVI(weight=0.25)),
        (ibvi.TraceGeneralizedVI(divergence="kl"), ibvi.TraceGeneralizedVI()),
        (
            ibvi.TraceClosedFormHead(categorical_bound="tilted"),
            ibvi.TraceClosedFormHead(categorical_bound="jensen"),
        ),
    ],
    ids=["weight", "divergence", "bound"],
)
def test_parts_of_an_objective_are_part_of_its_description(one, other):
    assert describe_loss(one) != describe_loss(other)
    assert describe_loss(one) == describe_loss(copy.deepcopy(one))


def test_divergence_is_a_result(tmp_path):
    path = tmp_path / "runs.json"
    rates = [0.01, 1e6]
    result = ibvi.rate_transfer(build, [8, 16], rates, loader(), 8, num_draws=2, path=path)
    assert result.losses[16, 1e6] == (math.inf,)
    assert result.best_rate(16) == 0.01
    assert json.loads(path.read_text())["runs"][-1]["loss"] is None
    again = ibvi.rate_transfer(build, [8, 16], rates, loader(), 8, num_draws=2, path=path)
    assert again.losses == result.losses


def test_standard_rates_do_not_transfer():
    """The negative control: with one rate for all, the best rate falls with the width."""

    def slope(parametrization):
        def build_deep(width):
            net = nn.Sequential(
                nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
                nn.Linear(width, 1),
            )  # fmt: skip
            random = ibvi.RandomModule(net, parametrization=parametrization, stochastic="last")
            model = ibvi.SupervisedModel(random, ibvi.Normal())
            return model, ibvi.AutoMuPNormal(model, covariance=ibvi.LowRank(4), init_scale=0.1)

        rates = [2.0**k for k in range(-11, -4)]
        result = ibvi.rate_transfer(
            build_deep, [64, 512], rates, loader(), 3, optimizer=torch.optim.Adam, num_draws=4
        )
        return result.slope()

    assert abs(slope(ibvi.MaximalUpdate(base=64))) < 0.35
    assert slope(ibvi.Standard()) < -0.65


@pytest.mark.parametrize("axis", ["width", "batch_size"])
def test_table_and_picture(axis):
    result = make_result([[[3.0], [2.0], [math.inf]], [[2.0], [1.0], [3.0]]], axis=axis)
    assert "inf" in str(result)
    lines = str(result).splitlines()
    words = axis.replace("_", " ")
    assert lines[0].startswith(words if axis == "batch_size" else " width")
    assert len({line.index("|") for line in lines}) == 1
    assert result.to_dict()[f"{axis}s"] == [8, 32]
    with pytest.raises(KeyError, match=f"No run of {words} 7; the {words}s are"):
        result.mean(7)
    plt = pytest.importorskip("matplotlib.pyplot")
    ax = result.plot()
    assert len(ax.lines) == 4
    assert ax.get_legend().get_title().get_text() == words
    plt.close(ax.figure)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rates": [0.1]}, r"rates must be at least two different positive numbers, got \[0\.1\]"),
        ({"rates": [0.1, -1]}, "rates must be at least two different positive numbers"),
        ({"widths": [8]}, "widths must be at least 2 different positive whole numbers"),
        ({"optim_args": {"lr": 0.1}}, "optim_args must not name lr"),
        ({"num_seeds": 0}, "num_seeds must be a positive whole number, got 0"),
    ],
)
def test_bad_arguments(arguments, message):
    widths = arguments.pop("widths", [8, 16])
    rates = arguments.pop("rates", RATES)
    with pytest.raises(ValueError, match=message):
        ibvi.rate_transfer(build, widths, rates, loader(), 1, **arguments)


# -- over batch sizes --------------------------------------------------------------------------


def loader_of(size):
    return loader(batch_size=size)


def test_a_cell_of_a_batch_size_is_the_training_by_hand():
    """Plain torch on the same draws: 24 data in batches of 4 are six steps an epoch."""
    sizes = [4, 12]
    result = ibvi.rate_transfer(
        lambda _: build(8), sizes, [0.01, 0.02], loader_of, 2, axis="batch_size", num_draws=1
    )
    assert (result.sizes, result.axis) == ((4, 12), "batch_size")
    for size in sizes:
        torch.manual_seed(0)
        batches = loader_of(size)
        model, guide = build(8)
        groups = ibvi.mup_param_groups(guide, 0.02, optimizer=torch.optim.SGD)
        optimizer = torch.optim.SGD(groups)
        loss = ibvi.TraceExpectedLogLikelihood(reduction="mean")(model, guide)
        num_steps = 0
        for _ in range(2):
            for x, y in batches:
                optimizer.zero_grad()
                loss(x, y).backward()
                optimizer.step()
                num_steps += 1
        assert num_steps == 2 * 24 // size
        model.eval(), guide.eval()
        with torch.no_grad():
            value = sum(len(x) * loss(x, y).item() for x, y in batches) / 24
        assert result.losses[size, 0.02][0] == pytest.approx(value, rel=1e-5)


def test_noise_of_data_asks_for_a_rate_that_falls_with_smaller_batches():
    """A mean of targets that are noise: the best rate is known in closed form.

    One pass over N targets of variance v by SGD from a distance d: the error at rate r is
    d^2 (1 - r)^(2 N / B) + (v / B) r / (2 - r), nearly.
    """
    generator = torch.Generator().manual_seed(0)
    num_data, spread, distance = 1024, 2.0, 3.0
    y = distance + spread * torch.randn(num_data, 1, generator=generator)
    data = torch.utils.data.TensorDataset(torch.zeros(num_data, 1), y)
    target = torch.full((4, 1), y.mean().item())

    def one_number(_):
        net = nn.Linear(1, 1)
        nn.init.zeros_(net.weight), nn.init.zeros_(net.bias)
        random = ibvi.RandomModule(net, stochastic=["weight"], parametrization=ibvi.Standard())
        model = ibvi.SupervisedModel(random, ibvi.Normal(1.0), num_data=num_data)
        return model, ibvi.AutoMuPNormal(model)

    rates, sizes = [2.0**-k for k in range(7)], [8, 32, 128]
    result = ibvi.rate_transfer(
        one_number,
        sizes,
        rates,
        lambda size: torch.utils.data.DataLoader(data, size, shuffle=True),
        1,
        axis="batch_size",
        valid_loader=[(torch.zeros(4, 1), target)],
        num_seeds=2,
        num_draws=1,
    )

    def error(rate, size):
        left = distance**2 * (1 - rate) ** (2 * num_data / size)
        return left + spread**2 / size * rate / (2 - rate)

    for size in sizes:
        expected = min(rates, key=lambda rate, size=size: error(rate, size))
        assert 0.4 < result.best_rate(size) / expected < 2.5, (size, expected)
    assert result.slope() == pytest.approx(1.0, abs=0.35)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"axis": "batch"}, ValueError, "axis must be 'width', 'depth' or 'batch_size', got 'b"),
        ({"train_loader": None}, TypeError, r"a function that makes a loader.*got DataLoader"),
        (
            {"train_loader": lambda _: loader()},
            ValueError,
            r"train_loader\(4\) made a loader of batch size 8: write lambda size",
        ),
        ({"sizes": [4]}, ValueError, "batch_sizes must be at least 2 different positive whole"),
    ],
)
def test_batches_that_cannot_have_the_sizes(arguments, error, message):
    arguments = {"axis": "batch_size", "sizes": [4, 12], "train_loader": loader_of, **arguments}
    arguments["train_loader"] = arguments["train_loader"] or loader()
    with pytest.raises(error, match=message):
        ibvi.rate_transfer(lambda _: build(8), rates=RATES, num_epochs=1, **arguments)


def test_a_file_of_batch_sizes_knows_its_data(tmp_path):
    path = tmp_path / "runs.json"

    def run(loaders, axis="batch_size", sizes=(4, 12)):
        return ibvi.rate_transfer(
            lambda _: build(8), sizes, [0.01, 0.1], loaders, 1, axis=axis, num_draws=1, path=path
        )

    before = run(loader_of)
    assert {run["batch_size"] for run in json.loads(path.read_text())["runs"]} == {4, 12}
    assert run(loader_of).losses == before.losses
    assert run(loader_of, sizes=(8, 12)).losses[12, 0.1] == before.losses[12, 0.1]

    def other(size):
        return torch.utils.data.DataLoader(other_data().dataset, size)

    with pytest.raises(ValueError, match="holds runs with other data at batch size 4"):
        run(other)
    with pytest.raises(ValueError, match="holds runs with axis 'batch_size' and now 'width'"):
        run(loader_of, axis="width")
