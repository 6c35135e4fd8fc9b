"""What to write of a parameter of a layer that is not known."""

import re

import pytest
import torch
from torch import nn

from pyro_ibvi import WeightRole
from pyro_ibvi.mup.roles import find_roles


@pytest.mark.parametrize("shape", [(), (8,), (1, 1, 8)])
def test_an_unknown_vector_is_shown_as_one(shape):
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.shift = nn.Linear(3, 8), nn.Parameter(torch.zeros(shape))

        def forward(self, x):
            return self.layer(x) + self.shift

    with pytest.raises(ValueError, match="if it is added to data") as error:
        find_roles(Shifted())
    shown = re.search(r"roles=(\{.*?\)\})", str(error.value))[1]
    weights = find_roles(Shifted(), overrides=eval(shown, {"WeightRole": WeightRole}))
    size = Shifted().shift.numel()
    assert weights["shift"] == WeightRole.of("bias", fan_in=1, fan_out=size, layer="shift")
