"""Draws of large weights are differentiated forwards as they are backwards."""

import pytest
import torch
from torch.autograd import forward_ad

from pyro_ibvi.guides.buffers import BufferPool, DiagonalDraw, LowRankDraw


# Torch compiles some formulas by TorchScript when the first dual number is made.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("draw", [DiagonalDraw, LowRankDraw])
@pytest.mark.parametrize("moves", ["both", "loc", "factor"])
def test_forward_mode(draw, moves):
    torch.manual_seed(0)
    loc, step = torch.randn(2, 300, 200)
    shape = (300, 200) if draw is DiagonalDraw else (300, 200, 3)
    factor, factor_step = torch.randn(2, *shape)
    noise = torch.randn(300, 200) if draw is DiagonalDraw else torch.randn(3)
    pool = BufferPool()
    with forward_ad.dual_level():
        dual_loc = loc if moves == "factor" else forward_ad.make_dual(loc, step)
        dual_factor = factor if moves == "loc" else forward_ad.make_dual(factor, factor_step)
        drawn = draw.apply(dual_loc, dual_factor, noise, pool)
        change = forward_ad.unpack_dual(drawn).tangent
    # A draw is linear in mean and factor, so that the change is a difference of draws.
    moved_loc = loc if moves == "factor" else loc + step
    moved_factor = factor if moves == "loc" else factor + factor_step
    expected = draw.apply(moved_loc, moved_factor, noise, pool) - draw.apply(
        loc, factor, noise, pool
    )
    torch.testing.assert_close(change, expected)
