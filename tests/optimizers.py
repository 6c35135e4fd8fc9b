"""Optimizers that a torch may lack, for the tests of those that it has."""

import pytest
import torch

MUON = getattr(torch.optim, "Muon", None)  # of torch 2.9 and later

needs_muon = pytest.mark.skipif(MUON is None, reason="torch has no Muon")
