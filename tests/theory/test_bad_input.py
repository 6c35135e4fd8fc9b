"""What the theory says of arguments that do not fit."""

import numpy as np
import pytest
import torch

from pyro_ibvi.theory import (
    classification_limit,
    max_margin_direction,
    max_stable_multiplicative_rate,
    max_stable_rate,
    mean_field_limit,
    null_space_projection,
    rank_rate_factor,
    regression_limit,
)

GOOD = {"X": torch.ones(3, 2), "y": torch.ones(3), "loc0": torch.ones(2), "S0": torch.ones(2, 2)}
BAD = {
    "data": ({"X": torch.ones(3)}, r"X has the shape \(3,\), and \(N, P\) was expected"),
    "type": ({"X": torch.ones(3, 2).int()}, r"type torch.int32.*Write X.double\(\)"),
    "NaN": ({"X": torch.tensor([[1.0, 2.0], [np.nan, 1.0]])}, "1 of the 2 rows of X hold a NaN"),
    "column": ({"y": torch.ones(3, 1)}, r"y has the shape \(3, 1\).*y.squeeze\(-1\)"),
    "target": ({"y": torch.tensor([1.0, np.inf, 1.0])}, "1 of the 3 entries of y"),
    "mean": ({"loc0": torch.ones(3)}, r"mean has the shape \(3,\), and \(2,\) was expected"),
    "diagonal": ({"S0": torch.ones(2)}, r"S0.diag\(\).*mean_field_limit"),
}


@pytest.mark.parametrize(("change", "sentence"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("function", [regression_limit, classification_limit])
def test_inputs_that_do_not_fit_are_named(function, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        function(**(GOOD | change))


@pytest.mark.parametrize(
    ("noise_scale", "sentence"),
    [
        (0.0, "smallest noise_scale is 0 .*positive finite"),
        (torch.ones(2), r"noise_scale has the shape \(2,\)"),
    ],
)
def test_noise_that_does_not_fit_is_named(noise_scale, sentence):
    with pytest.raises(ValueError, match=sentence):
        regression_limit(**GOOD, noise_scale=noise_scale)


@pytest.mark.parametrize(
    ("rates", "sentence"),
    [
        (torch.ones(3), r"rates has the shape \(3,\), and \(2,\) was expected"),
        (torch.tensor([0.0, 1.0]), "smallest of rates is 0 .*taken out of X"),
    ],
)
def test_rates_that_do_not_fit_are_named(rates, sentence):
    with pytest.raises(ValueError, match=sentence):
        regression_limit(**GOOD, rates=rates)


def test_other_sentences():
    with pytest.raises(ValueError, match=r"label 0.0, and -1 or 1 was expected.*2 \* y - 1"):
        max_margin_direction(torch.ones(2, 2), torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match=r"\(5,\), and \(2,\) was expected"):
        mean_field_limit(torch.ones(3, 2), torch.ones(5))
    with pytest.raises(ValueError, match=r"\(3,\), and \(2,\) or \(2, R\) was expected"):
        null_space_projection(torch.ones(3, 2))(torch.ones(3))
    with pytest.raises(ValueError, match="rank must be a positive whole number, got 0"):
        rank_rate_factor(0)
    with pytest.raises(ValueError, match=r"curvature=0\.0, and a positive finite"):
        max_stable_rate(0.0, 3)
    with pytest.raises(ValueError, match=r"loc_rate_ratio=-1\.0, and a finite"):
        max_stable_rate(1.0, 3, loc_rate_ratio=-1.0)
    with pytest.raises(ValueError, match=r"s \(2,\), and \(N, P\) and \(P,\) were expected"):
        max_stable_multiplicative_rate(torch.ones(4, 3), torch.ones(2))
    with pytest.raises(ValueError, match="draws must be 'batch' or 'datum', got 2"):
        max_stable_multiplicative_rate(torch.ones(4, 3), torch.ones(3), draws=2)
    with pytest.raises(ValueError, match="no entry other than 0"):
        max_stable_multiplicative_rate(torch.zeros(4, 3), torch.ones(3))
