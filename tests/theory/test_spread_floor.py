"""The spread that steps of a fixed size cannot go below, against simulated steps."""

import math

import pytest
import torch

from pyro_ibvi.theory import spread_floor


def growth(spread, rank, update, rate=0.1, num_draws=200_000):
    """Change of the squared length of s in one step, and its standard error."""
    generator = torch.Generator().manual_seed(rank)
    z = torch.randn(num_draws, rank, generator=generator, dtype=torch.float64)
    s = torch.full((rank,), spread / math.sqrt(rank), dtype=torch.float64)
    # By its singular vectors, the nearest orthogonal matrix of g z^T is made of z / |z|.
    step = z.sign() if update == "sign" else z / z.norm(dim=1, keepdim=True)
    after = s - rate * (z @ s).sign()[:, None] * step
    change = after.square().sum(1) - s.square().sum()
    return change.mean().item(), change.std().item() / math.sqrt(num_draws)


@pytest.mark.parametrize("update", ["sign", "orthogonal"])
@pytest.mark.parametrize("rank", [1, 2, 10, 100])
def test_the_floor_is_where_the_spread_stops_shrinking(rank, update):
    floor = spread_floor(0.1, rank, update)
    mean, error = growth(floor, rank, update)
    assert abs(mean) <= 4 * error + 1e-12
    below, error = growth(0.8 * floor, rank, update)
    assert below > 4 * error
    above, error = growth(1.25 * floor, rank, update)
    assert above < -4 * error


def test_how_it_grows_with_the_rank():
    assert spread_floor(0.1, 10_000) / spread_floor(0.1, 2_500) == pytest.approx(4, rel=1e-3)
    ratio = spread_floor(0.1, 10_000, "orthogonal") / spread_floor(0.1, 2_500, "orthogonal")
    assert ratio == pytest.approx(2, rel=1e-3)


def test_equal_entries_are_the_worst_for_signs():
    # Along an axis only one sign matters: E[sign(w) s.sign(z)] = |s|, so the floor is rate R / 2.
    assert spread_floor(0.1, 10) > 0.1 * 10 / 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 3), r"rate=0\.0, and a positive finite number"),
        ((0.1, 0), "rank must be a positive whole number, got 0"),
        ((0.1, 3, "adam"), "update must be 'sign' or 'orthogonal', got 'adam'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        spread_floor(*arguments)
