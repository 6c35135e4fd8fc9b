"""Networks with random weights as scikit-learn estimators, for tables of numbers.

Both stand on :class:`~pyro_ibvi.VariationalNetwork`, which a fitted estimator holds as
``network_``. They need the extra ``sklearn``, and nothing else of the package knows them.
"""

from pyro_ibvi.estimators.classifier import IBVIClassifier
from pyro_ibvi.estimators.regressor import IBVIRegressor

__all__ = ["IBVIClassifier", "IBVIRegressor"]
