"""The check of shapes itself: it is on, and it finds what contradicts an annotation."""

import pytest
import torch

from pyro_ibvi.theory import covariance_factor, expected_poisson_log_prob, regression_limit
from tests.shapes import checked


def test_public_functions_are_checked():
    for function in (regression_limit, covariance_factor, expected_poisson_log_prob):
        assert hasattr(function, "__wrapped__")


def test_what_a_function_takes_and_gives_must_be_as_annotated():
    def wrong_result(covariance):
        return covariance[0]

    wrong_result.__annotations__ = covariance_factor.__wrapped__.__annotations__
    wrong_result.__module__ = covariance_factor.__module__
    with pytest.raises(AssertionError, match=r"gave its result of the shape torch.Size\(\[2\]\)"):
        checked(wrong_result)(torch.eye(2))
    with pytest.raises(AssertionError, match=r"given or gave covariance of the shape .*\[2, 3\]"):
        checked(wrong_result)(torch.ones(2, 3))


def test_a_functions_own_words_come_first():
    with pytest.raises(ValueError, match="y has the shape"):
        regression_limit(torch.ones(3, 2), torch.ones(4), torch.ones(2), torch.ones(2, 1))
