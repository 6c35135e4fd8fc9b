"""What tests of several objectives share."""

import pytest

from pyro_ibvi.objectives import mixin


@pytest.fixture
def count_traces(monkeypatch):
    """Number of times that an objective traced a model."""
    calls = []
    run_traces = mixin.run_traces
    monkeypatch.setattr(mixin, "run_traces", lambda *args: calls.append(1) or run_traces(*args))
    return calls
