"""The coordinate check against hand-made numbers, and what it must say of parametrizations."""

import json
import math

import pytest
import torch
from torch import nn

import pyro_ibvi as ibvi

KEY = ("size", 0, "0")


def make_result(rows, widths=(16, 64, 256)):
    return ibvi.diagnostics.CoordinateCheck(widths, {KEY: tuple(tuple(row) for row in rows)})


def mlp(width, covariance=None, stochastic="all", **kwargs):
    net = nn.Sequential(
        nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 5)
    )
    # Small biases, so that the first logits are small and the slopes can be told by few seeds.
    prior = {"*.bias": 0.1} if stochastic == "all" else None
    random = ibvi.RandomModule(net, stochastic=stochastic, prior=prior, **kwargs)
    model = ibvi.SupervisedModel(random, ibvi.Categorical())
    return model, ibvi.AutoMuPNormal(model, covariance=covariance or ibvi.LowRank(4))


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(32, 8, generator=generator), torch.arange(32) % 5


def test_slope_of_a_power_law():
    rows = [[3 * w**-0.5, 3 * w**-0.5] for w in (16, 64, 256)]
    assert make_result(rows).slope(*KEY) == pytest.approx(-0.5)
    assert make_result(rows).slope_error(*KEY) == pytest.approx(0, abs=1e-6)
    assert make_result(rows).largest_slope(["size"]) == pytest.approx(0.5)


def test_seeds_are_averaged_by_their_squares():
    assert make_result([[3.0, 4.0]] * 3).mean(*KEY) == pytest.approx([math.sqrt(12.5)] * 3)


def test_standard_error_of_a_slope():
    # Two seeds with slopes 0 and 1: their mean has the standard error 1/2.
    result = make_result([[1.0, w / 16] for w in (16, 64, 256)])
    assert result.slope_error(*KEY) == pytest.approx(0.5)
    assert math.isnan(make_result([[1.0]] * 3).slope_error(*KEY))


def test_standard_error_with_more_runs_of_narrow_networks():
    # Entries i and i + 2 share a seed: what they have in common at all widths does not count.
    result = make_result([[1.0, 2.0, 1.0, 2.0], [1.0, 2.0], [1.0, 2.0]])
    assert result.slope(*KEY) == pytest.approx(0, abs=1e-12)
    assert result.slope_error(*KEY) == pytest.approx(0, abs=1e-12)
    other = make_result([[1.0, 1.0, 2.0, 2.0], [1.0, 2.0], [1.0, 2.0]])
    assert other.slope_error(*KEY) > 0.1


def test_what_diverged_is_not_flat():
    for bad in (math.inf, math.nan, 0.0):
        result = make_result([[1.0], [1.0], [bad]])
        assert math.isnan(result.slope(*KEY))
        assert result.largest_slope(["size"]) == math.inf


def test_unknown_quantities():
    with pytest.raises(KeyError, match=r"No .'change', 1, '0'. was measured; there are"):
        make_result([[1.0]] * 3).slope("change", 1, "0")
    with pytest.raises(ValueError, match=r"Nothing was measured of \['change'\] from step 0 on"):
        make_result([[1.0]] * 3).largest_slope(["change"])


def test_sizes_at_the_start_are_those_of_the_prior(data):
    def build(width):
        net = nn.Sequential(nn.Linear(8, width), nn.Linear(width, 5))
        random = ibvi.RandomModule(net, stochastic="all", prior=1.0)
        model = ibvi.SupervisedModel(random, ibvi.Categorical())
        return model, ibvi.AutoMuPNormal(model, covariance=ibvi.Diagonal())

    check = ibvi.coordinate_check(build, [256, 512], data, steps=[1], num_seeds=2, num_draws=32)
    expected = float((1 + data[0].square().sum(1)).mean().sqrt())
    # loc is a draw from the prior and S z adds as much again.
    assert check.mean("size", 0, "0") == pytest.approx([2**0.5 * expected] * 2, rel=0.04)
    unbiased = [value * (32 / 31) ** 0.5 for value in check.mean("spread", 0, "0")]
    assert unbiased == pytest.approx([expected] * 2, rel=0.04)


def test_changes_of_a_layer_are_what_its_parameters_do(data):
    """One step of a single linear layer, against the same step by hand."""
    kept = {}

    def build(width):
        random = ibvi.RandomModule(nn.Linear(8, 5), stochastic="all")
        model = ibvi.SupervisedModel(random, ibvi.Categorical())
        guide = ibvi.AutoMuPNormal(model, covariance=ibvi.Diagonal())
        start = {name: p.detach().clone() for name, p in guide.named_parameters()}
        kept.setdefault(width, (guide, start))
        return model, guide

    check = ibvi.coordinate_check(build, [1, 2], data, steps=[1], num_seeds=1, num_draws=1000)
    guide, start = kept[1]
    change = {n: p.detach() - start[n] for n, p in guide.named_parameters()}
    x = data[0]
    by_weight = (x @ change["locs.net.weight"].mT).square().mean().sqrt()
    by_bias = change["locs.net.bias"].square().mean().sqrt()
    assert check.mean("loc", 1, "weight")[0] == pytest.approx(by_weight.item(), rel=1e-4)
    assert check.mean("loc", 1, "bias")[0] == pytest.approx(by_bias.item(), rel=1e-4)
    # The factor's change times fresh noise has mean zero and this variance.
    spread = x.square() @ change["factors.net.weight"].square().mT
    assert check.mean("factor", 1, "weight")[0] == pytest.approx(
        spread.mean().sqrt().item(), rel=0.05
    )
    mean = x @ change["locs.net.weight"].mT + change["locs.net.bias"]
    expected = mean.square().mean().sqrt().item()
    assert check.mean("mean change", 1, "")[0] == pytest.approx(expected, rel=0.05)


WIDTHS = [64, 256, 512]


@pytest.mark.parametrize(
    ("optimizer", "lr"), [(torch.optim.SGD, 0.02), (torch.optim.Adam, 0.01)], ids=["SGD", "Adam"]
)
def test_maximal_update_is_flat_and_standard_is_not(data, optimizer, lr):
    def check(parametrization):
        return ibvi.coordinate_check(
            lambda width: mlp(width, parametrization=parametrization),
            WIDTHS,
            data,
            optimizer=optimizer,
            optim_args={"lr": lr},
            steps=[1, 5],
            num_draws=4,
        )

    flat = check(ibvi.MaximalUpdate())
    assert flat.largest_slope(["size", "change"], layers=["0", "2"]) < 0.15
    assert flat.largest_slope(["loc", "factor"], layers=["0.weight", "2.weight"]) < 0.25
    standard = check(ibvi.Standard())
    assert standard.largest_slope(["size", "change"], layers=["0", "2"]) > 0.3


def test_a_diagonal_factor_by_both_rules(data):
    slopes = {}
    for rule in ("maximal", "reference"):
        check = ibvi.coordinate_check(
            lambda width, rule=rule: mlp(
                width, ibvi.Diagonal(), parametrization=ibvi.MaximalUpdate(diagonal=rule)
            ),
            WIDTHS,
            data,
            optimizer=torch.optim.Adam,
            optim_args={"lr": 0.01},
            steps=[2],
            num_seeds=2,
            num_draws=4,
        )
        slopes[rule] = check.slope("factor", 2, "2.weight")
    assert slopes["maximal"] == pytest.approx(0, abs=0.15)
    assert slopes["reference"] == pytest.approx(-0.5, abs=0.15)


def small_check(data, **kwargs):
    return ibvi.coordinate_check(
        lambda width: mlp(width, stochastic="input+output"),
        [8, 16],
        data,
        **{"steps": [1], "num_seeds": 1, "num_draws": 2, **kwargs},
    )


def test_same_numbers_again_and_random_state_untouched(data):
    before = torch.random.get_rng_state()
    first = small_check(data)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    assert small_check(data).rms == first.rms
    assert small_check(data, optim_args={"lr": 0.2}).rms != first.rms


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_a_run_that_diverges_has_no_slope(data):
    check = small_check(data, steps=[40], optim_args={"lr": 1e6})
    assert math.isnan(check.slope("loc", 40, "0.weight"))
    assert check.largest_slope(["loc"]) == math.inf


def test_runs_of_narrow_networks_share_the_noise_of_wide_ones(data):
    check = small_check(data, num_seeds=[4, 2])
    assert [len(row) for row in check.rms["change", 1, "0"]] == [4, 2]
    # The first runs are those of a call with fewer seeds, the others are new networks.
    assert (
        check.rms["change", 1, "0"][0][:2]
        == small_check(data, num_seeds=2).rms["change", 1, "0"][0]
    )
    assert len(set(check.rms["size", 0, "0"][0])) == 4


def test_a_seed_has_the_same_noise_at_each_width(data):
    drawn = {}

    def build(width):
        model, guide = mlp(width, stochastic="input+output")
        draw = guide.forward

        def recorded(*args, **kwargs):
            drawn.setdefault(width, []).append(torch.random.get_rng_state())
            return draw(*args, **kwargs)

        guide.forward = recorded
        return model, guide

    small_args = {"steps": [1], "num_seeds": [4, 2], "num_draws": 2}
    ibvi.coordinate_check(build, [8, 16], data, **small_args)
    narrow, wide = drawn[8], drawn[16]
    assert len(narrow) == 2 * len(wide)
    assert all(torch.equal(a, b) for a, b in zip(narrow, [*wide, *wide], strict=True))
    assert not torch.equal(wide[0], wide[-1])


def test_point_estimates_have_no_factor(data):
    check = small_check(data)
    assert ("factor", 1, "0.weight") in check.rms
    assert ("factor", 1, "2.weight") not in check.rms
    assert ("loc", 1, "2.weight") in check.rms


def test_running_statistics_are_no_parameters_doing(data):
    def build(width):
        net = nn.Sequential(nn.Linear(8, width), nn.BatchNorm1d(width), nn.Linear(width, 5))
        model = ibvi.SupervisedModel(ibvi.RandomModule(net), ibvi.Categorical())
        return model, ibvi.AutoMuPNormal(model, covariance=ibvi.LowRank(2))

    optim_args = {"lr": 1e-9}
    check = ibvi.coordinate_check(
        build, [8, 16], data, steps=3, num_seeds=1, num_draws=2, optim_args=optim_args
    )
    assert check.mean("change", 3, "1")[0] > 1e-2
    for kind, step, name in check.rms:
        if kind in ("loc", "factor"):
            assert max(check.mean(kind, step, name)) < 1e-6
    assert not any(key[0] == "factor" and key[2].startswith("1.") for key in check.rms)


def test_networks_with_several_outputs_and_tied_layers(data):
    class Recurrent(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.first = nn.Linear(8, width)
            self.middle = nn.Linear(width, width)
            self.last = nn.Linear(width, 5)

        def forward(self, x):
            h = self.first(x).relu()
            return self.last(self.middle(self.middle(h).relu()).relu())

    def build(width):
        model = ibvi.SupervisedModel(ibvi.RandomModule(Recurrent(width)), ibvi.Categorical())
        return model, ibvi.AutoMuPNormal(model, covariance=ibvi.Diagonal())

    check = ibvi.coordinate_check(build, [8, 16], data, steps=[1], num_seeds=1, num_draws=2)
    assert {key[2] for key in check.rms} >= {"first", "middle", "last", "middle.weight"}


def test_table_dictionary_and_picture(data):
    check = small_check(data)
    table = str(check)
    assert "slope" in table
    assert "factor" in table
    content = json.loads(json.dumps(check.to_dict()))
    assert content["widths"] == [8, 16]
    record = next(r for r in content["records"] if r["quantity"] == "change")
    assert record["slope"] == pytest.approx(check.slope("change", 1, record["layer"]))
    plt = pytest.importorskip("matplotlib.pyplot")
    ax = check.plot()
    assert len(ax.lines) == 3
    assert check.plot("size", step=0, ax=ax) is ax
    plt.close(ax.figure)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": []}, r"steps must be at least 1 different positive whole numbers, got \[\]"),
        ({"steps": [0]}, r"steps must be at least 1 different positive whole numbers, got \[0\]"),
        ({"num_seeds": 0}, "num_seeds must be a positive whole number, got 0"),
        ({"num_seeds": [2]}, r"num_seeds must be one number, or one for each of the 2 widths"),
        ({"num_draws": 1.5}, r"num_draws must be a positive whole number, got 1\.5"),
    ],
)
def test_bad_arguments(data, arguments, message):
    with pytest.raises(ValueError, match=message):
        small_check(data, **arguments)


def test_bad_widths_and_builds(data):
    with pytest.raises(ValueError, match=r"widths must be at least 2 different .* got \[8, 8\]"):
        ibvi.coordinate_check(mlp, [8, 8], data)
    with pytest.raises(TypeError, match=r"must return a SupervisedModel and its AutoMuPNormal"):
        ibvi.coordinate_check(lambda width: mlp(width)[0], [8, 16], data)


class InLists(nn.Module):
    """Parameters in containers, which do not run, or on the network itself."""

    def __init__(self, width, in_lists):
        super().__init__()
        first, last = nn.Parameter(torch.zeros(8, width)), nn.Parameter(torch.zeros(width, 5))
        if in_lists:
            self.matrices, self.named = nn.ParameterList([first]), nn.ParameterDict({"last": last})
        else:
            self.first, self.last = first, last
        self.in_lists = in_lists

    def forward(self, x):
        if self.in_lists:
            return (x @ self.matrices[0]).tanh() @ self.named["last"]
        return (x @ self.first).tanh() @ self.last


def test_parameters_in_lists_are_measured_as_those_of_the_network_itself(data):
    def measured(in_lists, names):
        def build(width):
            of = ibvi.WeightRole.of
            given = (
                of("input", fan_in=8, fan_out=width, inputs_first=True),
                of("output", fan_in=width, fan_out=5, inputs_first=True),
            )
            roles = dict(zip(names, given, strict=True))
            random = ibvi.RandomModule(InLists(width, in_lists), roles=roles, stochastic="all")
            model = ibvi.SupervisedModel(random, ibvi.Categorical())
            return model, ibvi.AutoMuPNormal(model, covariance=ibvi.LowRank(2))

        check = ibvi.coordinate_check(build, [8, 16], data, steps=[1], num_seeds=1, progress=False)
        assert "mean change" in str(check)
        return {
            (*key[:2], key[2] if key[2] not in names else names.index(key[2])): value
            for key, value in check.rms.items()
        }

    listed = measured(True, ("matrices.0", "named.last"))
    assert listed == measured(False, ("first", "last"))
    assert ("loc", 1, 1) in listed
