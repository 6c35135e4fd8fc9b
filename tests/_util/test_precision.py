"""The precision in which numbers are counted."""

import torch

from pyro_ibvi._util.precision import in_double


class OnMps(torch.Tensor):
    """A tensor that says to be on a device without double precision."""

    @property
    def device(self):
        return torch.device("mps")


def test_double_precision_is_used_where_a_device_has_it():
    assert in_double(torch.ones(2)).dtype == torch.float64
    assert in_double(torch.ones(2).as_subclass(OnMps)).dtype == torch.float32
