"""Every test starts from the same random state and leaves no trace in torch's or Pyro's."""

import pyro
import pytest
import torch

from tests.shapes import check_shapes

check_shapes()


@pytest.fixture(autouse=True)
def _isolated():
    num_threads, dtype, settings = (
        torch.get_num_threads(),
        torch.get_default_dtype(),
        pyro.settings.get(),
    )
    torch.set_num_threads(1)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    pyro.enable_validation(True)  # the default, which a test before may have left off
    yield
    pyro.settings.set(**settings)
    torch.set_default_dtype(dtype)
    torch.set_num_threads(num_threads)
    pyro.clear_param_store()


@pytest.fixture
def double(_isolated):
    """Double precision by default, until the end of the test."""
    torch.set_default_dtype(torch.float64)
