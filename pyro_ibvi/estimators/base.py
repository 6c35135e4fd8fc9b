"""What both estimators do: standardize, weigh, hold back, train, predict."""

# Annotations are no strings here: subclasses take the fields over into modules with other names.

import itertools
import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass
from numbers import Real
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from torch import Tensor, nn
from torch.optim import Optimizer

from pyro_ibvi._util.arguments import takes
from pyro_ibvi._util.checks import check_positive_int
from pyro_ibvi._util.columns import column_moments
from pyro_ibvi._util.modes import module_mode
from pyro_ibvi._util.random_state import own_random_numbers
from pyro_ibvi.front import VariationalNetwork
from pyro_ibvi.models.likelihoods import Likelihood
from pyro_ibvi.models.weighted import Weighted
from pyro_ibvi.mup.parametrization import Family
from pyro_ibvi.prediction import Prediction, predict_batches

#: Draws of the weights by which early stopping judges an epoch.
_NUM_VALID_SAMPLES = 16
#: Steps and epochs of training at least, where no number of epochs is given. An epoch of a small
#: table is a few steps, by the number of which, and not of epochs, a network learns.
_MIN_STEPS, _MIN_EPOCHS = 2000, 100
#: Number of epochs at least after which training that gains nothing ends.
_MIN_PATIENCE = 10
_FLOATS = (np.float64, np.float32)


@dataclass(eq=False, repr=False)
class Estimator(BaseEstimator):  # type: ignore[misc]  # scikit-learn is untyped
    """What both estimators do: standardize, weigh, hold back, train, predict.

    The fields are the arguments that both have; :class:`IBVIRegressor` documents them.
    """

    hidden_layer_sizes: tuple[int, ...] = (128, 128)
    _: KW_ONLY
    activation: type[nn.Module] = nn.SiLU
    network: Callable[[int, int], nn.Module] | None = None
    stochastic: Any = None
    covariance: Any = None
    num_components: int | None = None
    init_scale: float | None = None
    optimizer: type[Optimizer] | None = None
    family: Family | None = None
    learning_rate: float | None = None
    batch_size: int = 128
    max_epochs: int | None = None
    early_stopping: bool = True
    validation_fraction: float = 0.1
    patience: int | None = None
    num_samples: int = 100
    device: torch.device | str | None = None
    random_state: Any = None
    verbose: bool = False

    #: Number of components where all is the estimator's choice; None for the front door's.
    _own_components: ClassVar[int | None] = None
    #: Share of the epochs after which training that gains nothing ends. Where few are asked for it
    #: is of those of one's own choice: an epoch of a small table is few steps.
    _own_patience: ClassVar[float] = 0.1

    def _fit(self, X: Any, y: Tensor, weight: Any, likelihood: Likelihood, size: int) -> None:
        """Trains a new network.

        Args:
            X: Inputs, checked.
            y: Targets as the likelihood takes them.
            weight: A weight of at least 0 for each row, or None.
            likelihood: The likelihood.
            size: Number of the network's outputs.
        """
        self._check_numbers()
        random = check_random_state(self.random_state)
        self.seed_ = int(random.randint(2**31 - 1))
        self.x_mean_, self.x_scale_ = moments(X, weight)
        x = torch.as_tensor(self._standardize(X))
        y = y.to(x.dtype) if y.is_floating_point() else y
        counted = likelihood
        if weight is not None:
            # The mean of the loss over data is then the weighted mean, whatever the batches.
            share = torch.as_tensor(weight / weight.mean(), dtype=x.dtype)
            counted = Weighted(likelihood)
            y = counted.join(y, share)
        parts = self._split((x, y), random)
        with own_random_numbers(self.seed_):
            net = self._network(x.shape[1], size).to(x.dtype)
            self.network_ = VariationalNetwork(
                net,
                counted,
                stochastic=self.stochastic,
                covariance=self.covariance,
                num_components=self._num_components(),
                init_scale=self._init_scale(len(parts[0][0])),
                optimizer=self.optimizer,
                family=self.family,
                lr=self.learning_rate,
            )
            if self.device is not None:
                self.network_.to(self.device)
            self._train(*parts)
        trained = self.network_.likelihood
        if isinstance(trained, Weighted):  # weights are for training alone
            plain = likelihood.to(device=self.network_.device, dtype=x.dtype)
            plain.load_state_dict(trained.likelihood.state_dict())
            self.network_.likelihood = self.network_.model.likelihood = plain
        self.n_iter_ = self.network_.history.num_epochs

    def _train(self, train: tuple[Tensor, Tensor], valid: tuple[Tensor, Tensor] | None) -> None:
        options: dict[str, Any] = {}
        num_epochs = self._num_epochs(len(train[0]))
        if valid is not None:
            patience = self.patience
            if patience is None:
                num_own = self._own_num_epochs(len(train[0]))
                patience = max(
                    _MIN_PATIENCE, math.ceil(self._own_patience * max(num_epochs, num_own))
                )
            options = {
                "valid_loader": [valid],
                "metrics": _score,
                "patience": operator.index(patience),
            }
        # A single batch is not shuffled: its order means nothing.
        is_one = len(train[0]) <= self.batch_size
        self.network_.fit(
            [train] if is_one else train,
            num_epochs=num_epochs,
            batch_size=operator.index(self.batch_size),
            device=self.device,
            progress=self.verbose,
            **options,
        )

    def _is_own(self) -> bool:
        """Whether all is the estimator's choice."""
        return self.network is None and self.covariance is None

    def _num_components(self) -> int | None:
        if self.num_components is not None:
            return operator.index(self.num_components)
        return self._own_components if self._is_own() else None

    def _init_scale(self, num_data: int) -> float | None:
        is_own = self.init_scale is None and self._is_own()
        return self._own_scale(num_data) if is_own else self.init_scale

    def _own_scale(self, num_data: int) -> float | None:
        """Scale of the weights' noise at the start, None for the front door's."""
        return None

    def _num_epochs(self, num_data: int) -> int:
        """Number of epochs at most."""
        if self.max_epochs is not None:
            return operator.index(self.max_epochs)
        return self._own_num_epochs(num_data)

    def _own_num_epochs(self, num_data: int) -> int:
        num_steps = math.ceil(num_data / operator.index(self.batch_size))
        return max(_MIN_EPOCHS, math.ceil(_MIN_STEPS / num_steps))

    def _split(self, data: tuple[Tensor, Tensor], random: Any) -> tuple[Any, Any]:
        """Data to train on and data to stop by."""
        num_data = len(data[0])
        num_valid = math.ceil(self.validation_fraction * num_data)
        if not self.early_stopping or num_data < 2:
            return data, None
        num_valid = min(num_valid, num_data - 1)
        rows = train_test_split(np.arange(num_data), test_size=num_valid, random_state=random)
        train, valid = (tuple(part[torch.as_tensor(r)] for part in data) for r in rows)
        return train, valid

    def _network(self, num_inputs: int, num_outputs: int) -> nn.Module:
        if self.network is not None:
            return self._made_by_user(num_inputs, num_outputs)
        if isinstance(self.activation, (str, nn.Module)) or not callable(self.activation):
            raise TypeError(
                f"activation is the class of an activation, such as torch.nn.SiLU, got "
                f"{self.activation!r}."
            )
        sizes = self.hidden_layer_sizes
        sizes = (sizes,) if isinstance(sizes, (int, np.integer)) else sizes
        name = "Each of hidden_layer_sizes"
        widths = [num_inputs, *(_checked_int(name, w) for w in sizes)]
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), self.activation()]
        return nn.Sequential(*layers, nn.Linear(widths[-1], num_outputs))

    def _made_by_user(self, num_inputs: int, num_outputs: int) -> nn.Module:
        make = self.network
        if isinstance(make, nn.Module) or not callable(make) or not takes(make, 2):
            what = type(make).__name__ if isinstance(make, nn.Module) else repr(make)
            raise TypeError(
                f"network is a function of the numbers of inputs and outputs that makes a torch "
                f"module, lambda num_inputs, num_outputs: ..., got {what}."
            )
        made = make(num_inputs, num_outputs)
        if not isinstance(made, nn.Module):
            raise TypeError(
                f"network is a function of the numbers of inputs and outputs that makes a "
                f"torch module, got one that returns {type(made).__name__}."
            )
        try:
            with torch.no_grad(), module_mode(made, training=False):
                shape = tuple(made(torch.zeros(2, num_inputs)).shape)
        except Exception:  # what is wrong with it shows in training
            return made
        if shape != (2, num_outputs):  # more logits than classes would train in silence
            raise ValueError(
                f"network({num_inputs}, {num_outputs}) made a network that gives outputs of shape "
                f"{shape} for 2 rows, and {(2, num_outputs)} is needed: let its second argument "
                f"be the size of the last layer."
            )
        return made

    def _checked(self, X: Any, y: Any, weight: Any, **options: Any) -> tuple[Any, Any, Any]:
        """Data of which each row counts; those of weight 0 are left out."""
        X, y = validate_data(self, X, y, dtype=_FLOATS, **options)
        if weight is None:
            return X, y, None
        weight = _check_sample_weight(weight, X, dtype=np.float64, ensure_non_negative=True)
        if not weight.any():
            raise ValueError("Every sample_weight is 0: there is nothing to learn from.")
        counts = weight > 0
        return X[counts], y[counts], weight[counts]

    def _check_numbers(self) -> None:
        for name in ("batch_size", "num_samples"):
            _checked_int(name, getattr(self, name))
        for name in ("num_components", "max_epochs", "patience"):
            if getattr(self, name) is not None:
                _checked_int(name, getattr(self, name))
        if self.early_stopping not in (True, False):
            raise TypeError(
                f"early_stopping is True or False, got {self.early_stopping!r}: the number of "
                f"epochs to wait for a better one is patience={self.early_stopping!r}."
            )
        share = self.validation_fraction
        if not isinstance(share, Real) or not 0 < float(share) < 1:
            raise ValueError(
                f"validation_fraction is the share of the data that is held back, strictly "
                f"between 0 and 1, got {share!r}; early_stopping=False holds "
                f"back none."
            )

    def _standardize(self, X: Any) -> Any:
        return ((X - self.x_mean_) / self.x_scale_).astype(X.dtype, copy=False)

    def predictive(self, X: Any) -> Prediction:
        """The predictive distribution, with quantiles, intervals, and both parts of the variance.

        Args:
            X: Inputs, shape ``(rows, features)``.

        Returns:
            The distribution in the targets' units, by the same draws at each call.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=_FLOATS, reset=False)
        x = torch.as_tensor(self._standardize(X), dtype=self.network_.dtype)
        return self.network_.predict(
            x.to(self.network_.device),
            num_samples=operator.index(self.num_samples),
            seed=self.seed_,
        )


def _score(model: Any, guide: Any, batches: Iterable[Any]) -> dict[str, float]:
    """Negative log predictive density in nats, weighted if the data are."""
    total, share = 0.0, 0.0
    for found, y in predict_batches(model, guide, batches, num_samples=_NUM_VALID_SAMPLES):
        prediction, weight = found, torch.ones(())
        if isinstance(model.likelihood, Weighted):
            y, weight = model.likelihood.split(y.to(found.outputs))
            prediction = Prediction(found.outputs, model.likelihood.likelihood)
        nats = -prediction.log_prob(y)
        weight = weight.expand_as(nats)
        total += float((weight * nats).sum())
        share += float(weight.sum())
    return {"nll": total / share}


def moments(columns: Any, weight: Any) -> tuple[Any, Any]:
    """Mean and standard deviation of each column, the latter 1 where it is constant.

    Args:
        columns: Numbers, shape ``(rows, columns)``.
        weight: Weights of the rows, or None.

    Returns:
        Both in double precision, shape ``(columns,)``.
    """
    weight = None if weight is None else torch.as_tensor(weight)
    mean, scale = column_moments(torch.tensor(columns, dtype=torch.float64), weight)
    return mean.numpy(), torch.where(scale == 0, 1.0, scale).numpy()


def _checked_int(name: str, value: Any) -> int:
    """A positive whole number, which a grid may give as one of NumPy's."""
    number = operator.index(value) if isinstance(value, np.integer) else value
    check_positive_int(name, number)
    return int(number)


def as_array(numbers: Tensor) -> Any:
    """A tensor as an array of NumPy's."""
    return numbers.detach().cpu().numpy()
