"""Initial scales and rates against an independent transcription of the tables."""

import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyro_ibvi import (
    MaximalUpdate,
    NeuralTangent,
    Standard,
)
from pyro_ibvi.mup import Fans

# The absolute table, by hand: role -> (std, SGD rate, Adam rate). The input weight's rates are
# divided by the number of features; the reference code of arXiv:2505.20235 has (n_out, 1).
TABLE = {
    "input": lambda n_in, n_out: (1 / math.sqrt(n_in), n_out / n_in, 1 / n_in),
    "hidden": lambda n_in, n_out: (1 / math.sqrt(n_in), 1.0, 1 / n_in),
    "output": lambda n_in, n_out: (1 / n_in, 1 / n_in, 1 / n_in),
    "bias": lambda n_in, n_out: (1.0, n_out, 1.0),
    "gain": lambda n_in, n_out: (1.0, n_out, 1.0),
}
ROLES = list(TABLE)
widths = st.integers(1, 4096)


def linear(n_in, n_out, **base):
    return Fans(fan_in=n_in, width_in=n_in, width_out=n_out, **base)


def entries(rule, role, fans):
    return rule.std(role, fans), rule.rate(role, fans, "sgd"), rule.rate(role, fans, "adam")


@pytest.mark.parametrize("role", ROLES)
@given(n_in=widths, n_out=widths)
def test_absolute_table(role, n_in, n_out):
    found = entries(MaximalUpdate(), role, linear(n_in, n_out))
    assert found == pytest.approx(TABLE[role](n_in, n_out))


@given(n_in=widths, n_out=widths)
def test_the_reference_codes_input_rates(n_in, n_out):
    mup, fans = MaximalUpdate(inputs="reference"), linear(n_in, n_out)
    assert (mup.rate("input", fans, "sgd"), mup.rate("input", fans, "adam")) == (n_out, 1.0)
    others = [role for role in ROLES if role != "input"]
    for role, family in product(others, ("sgd", "adam")):
        assert mup.rate(role, fans, family) == MaximalUpdate().rate(role, fans, family)


def test_other_rules_fail_the_table_where_they_differ():
    # The negative control: the comparison above notices every entry that is another's.
    fans = linear(64, 32)
    wrong = {
        (type(rule).__name__, role): [
            column
            for column, found, expected in zip(
                ("std", "sgd", "adam"), entries(rule, role, fans), TABLE[role](64, 32), strict=True
            )
            if found != pytest.approx(expected)
        ]
        for rule in (Standard(), NeuralTangent())
        for role in ("input", "hidden", "output", "bias")
    }
    assert wrong == {
        ("Standard", "input"): ["sgd", "adam"],
        ("Standard", "hidden"): ["adam"],
        ("Standard", "output"): ["std", "sgd", "adam"],
        ("Standard", "bias"): ["sgd"],
        ("NeuralTangent", "input"): ["sgd", "adam"],
        ("NeuralTangent", "hidden"): ["sgd", "adam"],
        ("NeuralTangent", "output"): ["std", "adam"],
        ("NeuralTangent", "bias"): ["sgd"],
    }


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("family", ["sgd", "adam"])
@given(n_in=widths, n_out=widths)
def test_at_the_base_rates_and_scales_are_the_standard_ones(role, family, n_in, n_out):
    fans = linear(n_in, n_out, base_width_in=n_in, base_width_out=n_out)
    mup, standard = MaximalUpdate(base=1), Standard()
    assert mup.rate(role, fans, family) == pytest.approx(standard.rate(role, fans, family))
    assert mup.std(role, fans) == pytest.approx(standard.std(role, fans))
    for rank in (1, 10):
        assert mup.factor_rate(role, fans, family, rank=rank) == pytest.approx(1 / rank)
    assert mup.factor_rate(role, fans, family, rank=None) == pytest.approx(1.0)


# m = width/base of the sides that grow; microsoft/mup: vector-like SGD x m, Adam x 1;
# matrix-like SGD / (m_in/m_out), Adam / m_in; read-out both / m.
GROWTH = {
    "input": ((1, 8), 8.0, 1.0),
    "hidden": ((4, 8), 2.0, 1 / 4),
    "output": ((4, 1), 1 / 4, 1 / 4),
    "bias": ((1, 8), 8.0, 1.0),
    "gain": ((1, 8), 8.0, 1.0),
}


@pytest.mark.parametrize("role", ROLES)
def test_rates_grow_from_the_base(role):
    (m_in, m_out), sgd, adam = GROWTH[role]
    fans = linear(16 * m_in, 16 * m_out, base_width_in=16, base_width_out=16)
    assert MaximalUpdate(base=16).rate(role, fans, "sgd") == pytest.approx(sgd)
    assert MaximalUpdate(base=16).rate(role, fans, "adam") == pytest.approx(adam)


def test_the_readout_shrinks_faster_than_its_fan_in():
    fans = linear(64, 10, base_width_in=16, base_width_out=10)
    assert MaximalUpdate(base=16).std("output", fans) == pytest.approx((1 / 8) / math.sqrt(4))


@pytest.mark.parametrize("role", ["input", "hidden", "output"])
@pytest.mark.parametrize("family", ["sgd", "adam"])
def test_the_kernel_is_not_a_width(role, family):
    mup, small, large = MaximalUpdate(), Fans(64, 64, 32), Fans(64 * 49, 64, 32)
    # What reads data is divided by all the numbers that one output sums over: they are no width.
    divisor = 49 if role == "input" else 1
    assert mup.rate(role, small, family) == pytest.approx(divisor * mup.rate(role, large, family))
    # Every role's scale shrinks by the same factor, that of the sum over kernel positions.
    assert mup.std(role, large) == pytest.approx(mup.std(role, small) / 7)


@pytest.mark.parametrize("family", ["sgd", "adam"])
@pytest.mark.parametrize("role", ROLES)
def test_rank_rule(role, family):
    fans, mean = linear(64, 32), MaximalUpdate().rate(role, linear(64, 32), family)
    assert MaximalUpdate().factor_rate(role, fans, family, rank=8) == pytest.approx(mean / 8)
    half = MaximalUpdate(rank_exponent=0.5)
    assert half.factor_rate(role, fans, family, rank=16) == pytest.approx(mean / 4)
    no = MaximalUpdate(rank_exponent=0.0)
    assert no.factor_rate(role, fans, family, rank=16) == pytest.approx(mean)


@pytest.mark.parametrize("family", ["sgd", "adam"])
@pytest.mark.parametrize("role", ROLES)
@given(rank=widths, num_particles=widths)
def test_rank_rule_for_many_draws(role, family, rank, num_particles):
    mup, fans = MaximalUpdate(num_particles=num_particles), linear(64, 32)
    _, sgd, adam = TABLE[role](64, 32)
    expected = (sgd if family == "sgd" else adam) * num_particles / (rank + 1 + num_particles)
    assert mup.factor_rate(role, fans, family, rank=rank) == pytest.approx(expected, rel=1e-12)
    # Noise that is not shared, and the mean, know nothing of it.
    without = MaximalUpdate()
    assert mup.rate(role, fans, family) == without.rate(role, fans, family)
    diagonal = without.factor_rate(role, fans, family, rank=None)
    assert mup.factor_rate(role, fans, family, rank=None) == diagonal


@pytest.mark.parametrize(("role", "growth"), [("hidden", 8.0), ("output", 8.0), ("input", 1.0)])
def test_diagonal_rule(role, growth):
    fans = linear(64, 32)
    mean = MaximalUpdate().rate(role, fans, "sgd")
    maximal = MaximalUpdate(diagonal="maximal").factor_rate(role, fans, "sgd", rank=None)
    reference = MaximalUpdate().factor_rate(role, fans, "sgd", rank=None)
    assert maximal == pytest.approx(mean * growth)
    assert reference == pytest.approx(mean)


@pytest.mark.parametrize(
    ("family", "power_init", "power_rate"), [("sgd", 1.0, 2.0), ("adam", 1.0, 1.0)]
)
def test_neural_tangent_is_the_one_with_multipliers(family, power_init, power_rate):
    # (init, multiplier, rate) = (1, n^-1/2, 1) is (n^-1/2, 1, 1/n) for SGD, n^-1/2 for Adam.
    theta = 64**-0.5
    fans = linear(64, 32)
    assert NeuralTangent().std("hidden", fans) == pytest.approx(theta**power_init)
    assert NeuralTangent().rate("hidden", fans, family) == pytest.approx(theta**power_rate)
    assert NeuralTangent().rate("bias", fans, family) == 1.0
    assert NeuralTangent().factor_rate("hidden", fans, family, rank=4) == pytest.approx(
        theta**power_rate / 4
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base": 0}, "base must be a positive width, got 0"),
        ({"base": -3}, "base must be a positive width, got -3"),
        ({"base": True}, "base must be a positive width, got True"),
        ({"diagonal": "max"}, "diagonal must be 'reference' or 'maximal', got 'max'"),
        ({"attention": "1/D"}, r"attention must be '1/d', '1/sqrt\(d\)' or None, got '1/D'"),
        ({"rank_exponent": -1.0}, r"rank_exponent must be finite and not negative, got -1\.0"),
        ({"num_particles": 0}, "num_particles must be a positive whole number, got 0"),
        ({"num_particles": 2.0}, r"num_particles must be a positive whole number, got 2\.0"),
        (
            {"num_particles": 4, "rank_exponent": 0.5},
            r"num_particles=4 sets the rate .* in the place of rank_exponent=0\.5: give one",
        ),
        ({"rank_exponent": math.nan}, "rank_exponent must be finite and not negative, got nan"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        MaximalUpdate(**arguments)
