"""Classification with averaged probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from pyro_ibvi._util.arguments import named_fields
from pyro_ibvi.estimators.base import Estimator, as_array
from pyro_ibvi.models import Categorical


@named_fields
@dataclass(eq=False, repr=False, kw_only=True)
class IBVIClassifier(ClassifierMixin, Estimator):  # type: ignore[misc]
    r"""Classification with probabilities averaged over a network's random weights.

    .. math:: p(y = c \mid x) = \frac1S \sum_s \operatorname{softmax}(f_{w_s}(x))_c

    Args and attributes as for :class:`IBVIRegressor`, without the noise. By default each row has
    noise of its own in a step (:class:`~pyro_ibvi.VariationalNetwork` has the recipe), so that a
    row of weight 2 is not quite two rows; with ``covariance=LowRank(10)`` it is.

    Args:
        hidden_layer_sizes: Widths of the hidden layers.
        activation: Class of the activation.
        network: In place of these, a function of the numbers of inputs and classes.
        class_weight: Weights by class, or ``"balanced"``; they multiply ``sample_weight``.
        stochastic: As there, and so are all that follow.
        covariance: As there.
        num_components: As there, but None for the default of
            :class:`~pyro_ibvi.VariationalNetwork` in any case: one behind no convolutions.
        init_scale: As there, but None for the default of :class:`~pyro_ibvi.VariationalNetwork`,
            noise relative to the weights; a number asks for the prior's, times it.
        optimizer: As there.
        family: As there.
        learning_rate: Global learning rate, which stays; None for the optimizer's default.
        batch_size: As there.
        max_epochs: As there.
        early_stopping: As there.
        validation_fraction: As there.
        patience: As there, but a tenth in place of a quarter.
        num_samples: As there.
        device: As there.
        random_state: As there.
        verbose: As there.

    Attributes:
        classes_: The classes, sorted.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> X, y = load_iris(return_X_y=True)
        >>> model = IBVIClassifier(max_epochs=20, random_state=0).fit(X[::2], y[::2])
        >>> model.predict_proba(X[1::2]).shape
        (75, 3)
        >>> bool(model.score(X[1::2], y[1::2]) > 0.9)
        True
    """

    class_weight: Mapping[Any, float] | str | None = None

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Trains anew.

        Args:
            X: Inputs, shape ``(rows, features)``: an array or a data frame of numbers.
            y: Classes: numbers or strings, shape ``(rows,)``.
            sample_weight: Weight of each row in the loss, in standardization and in early
                stopping; only the ratios count.

        Returns:
            The estimator.

        Raises:
            ValueError: If there is only one class, or a class has a negative weight.
        """
        X, y, weight = self._checked(X, y, sample_weight)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"There is nothing to tell apart: y holds the 1 class "
                f"{self.classes_.tolist()[0]!r} alone."
            )
        if self.class_weight is not None:
            by_class = compute_sample_weight(self.class_weight, y)
            if not (by_class >= 0).all():
                raise ValueError(
                    f"class_weight must be 0 or more for each class, got {self.class_weight!r}."
                )
            weight = by_class if weight is None else weight * by_class
        self._fit(X, torch.as_tensor(labels), weight, Categorical(), len(self.classes_))
        return self

    def predict_proba(self, X: Any, return_std: bool = False) -> Any:
        """Probabilities of the classes.

        Args:
            X: Inputs.
            return_std: Whether to return, too, how much each probability differs between draws
                of the weights: what more data could reduce.

        Returns:
            Probabilities, shape ``(rows, classes)``, in the order of ``classes_``; with
            ``return_std`` a pair with their standard deviations.
        """
        prediction = self.predictive(X)
        mean, std = as_array(prediction.mean), as_array(prediction.epistemic.sqrt())
        return (mean, std) if return_std else mean

    def predict(self, X: Any) -> Any:
        """The most probable class of each row.

        Args:
            X: Inputs.

        Returns:
            Classes, shape ``(rows,)``.
        """
        check_is_fitted(self)
        return self.classes_[self.predict_proba(X).argmax(axis=1)]
