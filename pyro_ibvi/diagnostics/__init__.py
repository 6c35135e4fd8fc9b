"""What training did: spreads, sizes over widths, rates, and what an objective does to a site."""

from pyro_ibvi.diagnostics.coordinate_result import CoordinateCheck
from pyro_ibvi.diagnostics.coordinates import coordinate_check
from pyro_ibvi.diagnostics.objective_report import (
    ObjectiveReport,
    explain,
)
from pyro_ibvi.diagnostics.role_report import (
    RoleReport,
    roles,
)
from pyro_ibvi.diagnostics.transfer import rate_transfer
from pyro_ibvi.diagnostics.transfer_result import RateTransfer
from pyro_ibvi.diagnostics.variance import VarianceMonitor
from pyro_ibvi.diagnostics.variance_report import VarianceReport

__all__ = [
    "CoordinateCheck",
    "ObjectiveReport",
    "RateTransfer",
    "RoleReport",
    "VarianceMonitor",
    "VarianceReport",
    "coordinate_check",
    "explain",
    "rate_transfer",
    "roles",
]
