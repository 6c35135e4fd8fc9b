"""What tests of several objectives share."""

import pytest

from pyro_ibvi.objectives import weights


@pytest.fixture
def count_traces(monkeypatch):
    """Number of times that an objective traced a model."""
    calls = []
    run_traces = weights.run_traces
    monkeypatch.setattr(weights, "run_traces", lambda *args: calls.append(1) or run_traces(*args))
    return calls
