"""Regression with a standard deviation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import RegressorMixin
from torch import Tensor

from pyro_ibvi._util.arguments import named_fields
from pyro_ibvi.estimators.base import Estimator, as_array, moments
from pyro_ibvi.models import HeteroscedasticNormal, Normal, Standardized
from pyro_ibvi.models.likelihoods import Likelihood

#: Standard deviation of the noise to begin with, in units of the targets' own.
_START_SCALE = 0.5
#: Number of data up to which the weights' noise starts at the prior's own scale.
_FEW_DATA = 1000


def noise_at_start(num_data: int) -> float:
    """Standard deviations at the start, in units of the prior's, for a number of data.

    The more data, the less noise a posterior has. Training takes it away where data see it, but
    not within the epochs that many data get; up to a thousand data the prior's own is best (page
    *Results*).

    Args:
        num_data: Number of training data.

    Returns:
        The scale, 1 at most.
    """
    return min(1.0, math.sqrt(_FEW_DATA / num_data))


@named_fields
@dataclass(eq=False, repr=False, kw_only=True)
class IBVIRegressor(RegressorMixin, Estimator):  # type: ignore[misc]
    r"""Regression with a standard deviation, by a network with random weights.

    .. math:: p(y \mid x) = \frac1S \sum_s \mathcal N(y; f_{w_s}(x), \sigma_s(x)^2)

    Inputs and targets are standardized inside. The network is trained in the inputs' precision:
    ``X.astype(numpy.float32)`` halves the time. Several targets are several columns of ``y``.

    Args:
        hidden_layer_sizes: Widths of the hidden layers.
        activation: Class of the activation.
        network: In place of these, a function of the numbers of inputs and outputs (twice the
            targets with ``heteroscedastic``) that makes a torch module.
        noise_scale: Standard deviation of the noise in units of the targets', between 0 and 1 or
            so; None learns it.
        heteroscedastic: Whether the noise depends on the inputs, ``noise_scale`` being the
            smallest then (0.05 for None).
        stochastic: Which parameters are random, see :class:`~pyro_ibvi.RandomModule`.
        covariance: Structure of their covariance, see :class:`~pyro_ibvi.AutoMuPNormal`.
        num_components: Number of Gaussians over these weights, of which the posterior is the
            mixture; None for four, which take two to four times as long to train as one, but for
            the default of :class:`~pyro_ibvi.VariationalNetwork` with a ``network`` or
            ``covariance`` of your own.
        init_scale: Standard deviations of the weights at the start, in units of the prior's; None
            for ``sqrt(1000 / rows)``, 1 at most, by the rows that are not held back, but for 1
            with a ``network`` or ``covariance`` of your own.
        optimizer: Class of the torch optimizer; None for the default of
            :class:`~pyro_ibvi.VariationalNetwork`: Adam here, SGD for classes.
        family: How the steps of an optimizer that is not torch's go with the gradient, see
            :func:`~pyro_ibvi.mup_param_groups`.
        learning_rate: Global learning rate, which falls to 0 along a cosine over ``max_epochs``
            where these are 1,000 steps or more; None for the optimizer's default.
        batch_size: Number of rows in a step.
        max_epochs: Number of epochs at most; None for as many as make 2,000 steps, and for 100 at
            least.
        early_stopping: Whether to hold data back, to stop when the log predictive density of
            these has not improved for ``patience`` epochs, and to put the best state back.
        validation_fraction: Share of the rows that is held back.
        patience: Number of epochs; None for a quarter of ``max_epochs``, of its default where
            that is more, and for 10 at least.
        num_samples: Draws of the weights in a prediction.
        device: Where to train and predict, such as ``"cuda"``.
        random_state: Seed, or a generator of NumPy's; global random states stay as they are.
        verbose: Whether to show a progress bar.

    Attributes:
        network_: The trained :class:`~pyro_ibvi.VariationalNetwork`, of standardized inputs.
        n_features_in_: Number of inputs.
        feature_names_in_: Their names, if they came with names.
        n_iter_: Number of epochs.
        x_mean_: Mean of the inputs.
        x_scale_: Their standard deviation, 1 where they are constant.
        seed_: Seed of training and of the draws in predictions.

    Example:
        >>> from sklearn.datasets import make_friedman1
        >>> X, y = make_friedman1(200, random_state=0)
        >>> model = IBVIRegressor(max_epochs=20, random_state=0).fit(X[:150], y[:150])
        >>> mean, std = model.predict(X[150:], return_std=True)
        >>> mean.shape, std.shape
        ((50,), (50,))
        >>> bool(model.score(X[150:], y[150:]) > 0.5)
        True
    """

    noise_scale: float | None = None
    heteroscedastic: bool = False

    #: Of a small network they cost seconds, and predict as one or better (page *Results*).
    _own_components = 4
    #: As long as the rate is large, the validation data see its noise more than what is learned.
    _own_patience = 0.25

    def _own_scale(self, num_data: int) -> float:
        return noise_at_start(num_data)

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Trains anew.

        Args:
            X: Inputs, shape ``(rows, features)``: an array or a data frame of numbers.
            y: Targets, shape ``(rows,)`` or ``(rows, targets)``.
            sample_weight: Weight of each row in the loss, in standardization and in early
                stopping; only the ratios count.

        Returns:
            The estimator.

        Raises:
            ValueError: If the targets are no numbers.
        """
        options = {"multi_output": True, "y_numeric": True}
        X, y, weight = self._checked(X, y, sample_weight, **options)
        if np.asarray(y).dtype.kind in "US":
            raise ValueError(
                f"IBVIRegressor learns numbers, got targets such as {str(np.ravel(y)[0])!r}: for "
                f"classes write IBVIClassifier()."
            )
        columns = np.asarray(y, dtype=np.float64).reshape(len(y), -1)
        mean, scale = moments(columns, weight)
        law: Likelihood = Normal(self.noise_scale or _START_SCALE, learn_scale=True)
        if self.heteroscedastic:
            law = HeteroscedasticNormal(0.05 if self.noise_scale is None else self.noise_scale)
        elif self.noise_scale is not None:
            law = Normal(self.noise_scale)
        likelihood = Standardized(law, torch.as_tensor(mean), torch.as_tensor(scale))
        size = columns.shape[1] * (2 if self.heteroscedastic else 1)
        self._is_column = y.ndim == 1
        self._fit(X, torch.tensor(columns), weight, likelihood, size)
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Predicts.

        Args:
            X: Inputs.
            return_std: Whether to return the standard deviation, too, noise included.

        Returns:
            The mean in the shape of ``y``; with ``return_std`` a pair.
        """
        prediction = self.predictive(X)
        mean, std = (self._shaped(part) for part in (prediction.mean, prediction.stddev))
        return (mean, std) if return_std else mean

    def _shaped(self, numbers: Tensor) -> Any:
        array = as_array(numbers)
        return array[:, 0] if self._is_column else array

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
