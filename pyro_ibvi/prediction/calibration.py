r"""Calibration after training: one temperature, learned on validation data.

The temperature :math:`T` changes the density of each draw to :math:`p(y \mid f_s)^{1/T}`,
normalized: logits are divided by it, standard deviations multiplied by its square root. So it acts
alike on the mean, on the draws and on whatever is made of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_ibvi._util.checks import check_positive_int
from pyro_ibvi._util.precision import in_double
from pyro_ibvi.models.likelihoods import Likelihood
from pyro_ibvi.prediction.mixture import Prediction, check_prediction
from pyro_ibvi.prediction.moments import rows_at_once
from pyro_ibvi.prediction.scored import mixture_log_probs

#: Bounds of the temperature's logarithm: separable labels would have it at 0.
_BOUND = math.log(100.0)


@dataclass(frozen=True)
class Temperature:
    """A temperature and what it did on the validation data.

    Attributes:
        value: The temperature; above 1 where the model was too sure.
        nll_before: Validation NLL of the prediction as it was, in nats.
        nll: Validation NLL at this temperature, never higher.
    """

    value: float
    nll_before: float
    nll: float


def fit_temperature(prediction: Prediction, y: Any, *, num_steps: int = 50) -> Temperature:
    """Finds the temperature of the least negative log predictive density, by L-BFGS.

    Args:
        prediction: A prediction of validation data, which training has not seen.
        y: Their targets.
        num_steps: Largest number of steps.

    Returns:
        The temperature: pass its ``value`` to :func:`~pyro_ibvi.predict`, or to
        ``Prediction.at_temperature``. It is the prediction's own, 1 unless it was given another,
        where none is better.

    Raises:
        TypeError: If the first argument is no prediction, or the likelihood has no temperature.
        ValueError: If the targets do not fit.

    References:
        Guo, Pleiss, Sun and Weinberger, 2017, *On Calibration of Modern Neural Networks*.

    Example:
        >>> from pyro_ibvi import Normal
        >>> prediction = Prediction(torch.zeros(1, 200, 1), Normal(1.0))
        >>> y = 3 * torch.randn(200, 1, generator=torch.Generator().manual_seed(0))
        >>> temperature = fit_temperature(prediction, y)
        >>> abs(temperature.value - y.square().mean().item()) < 1e-2
        True
    """
    check_prediction(prediction, "fit_temperature", "y")
    check_positive_int("num_steps", num_steps)
    return temperature_of([(prediction, prediction.target(y))], num_steps=num_steps)


def temperature_of(
    predictions: Sequence[tuple[Prediction, Tensor]], *, num_steps: int = 50
) -> Temperature:
    """The temperature of several predictions together, as of batches of other lengths.

    Args:
        predictions: Predictions by one likelihood, and their targets as it takes them.
        num_steps: As for :func:`fit_temperature`.

    Returns:
        The temperature.
    """
    parts = [part for prediction, y in predictions for part in _parts(prediction.outputs, y)]
    first = predictions[0][0]
    likelihood = first.likelihood.at_temperature(1.0)
    own = float(first.likelihood.temperature)
    start = in_double(first.outputs.new_tensor(own))
    before = float(_nll(parts, likelihood, start)[0])
    log_value = start.log().clamp(-_BOUND, _BOUND).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [log_value], max_iter=num_steps, line_search_fn="strong_wolfe", tolerance_change=1e-12
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        temperature = log_value.clamp(-_BOUND, _BOUND).exp()
        loss, slope = _nll(parts, likelihood, temperature.detach())
        temperature.backward(slope)
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    value = float(log_value.detach().clamp(-_BOUND, _BOUND).exp())
    value = float(torch.tensor(value, dtype=first.outputs.dtype))  # as it will be used
    nll = float(_nll(parts, likelihood, start.new_tensor(value))[0])
    if not nll < before:
        return Temperature(own, before, before)
    return Temperature(value, before, nll)


def _parts(outputs: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Outputs and targets, some data at once."""
    # The graph of all data together would take a dozen times the memory of the outputs.
    num_rows = rows_at_once(outputs)
    y = in_double(y) if y.is_floating_point() else y
    return zip(outputs.detach().split(num_rows, dim=1), y.split(num_rows), strict=True)


def _nll(
    parts: Sequence[tuple[Tensor, Tensor]], likelihood: Likelihood, temperature: Tensor
) -> tuple[Tensor, Tensor]:
    """The mean over what was observed, and its derivative by the temperature."""
    total, slope, weight = (torch.zeros_like(temperature) for _ in range(3))
    with torch.enable_grad():
        for outputs, y in parts:
            variable = temperature.clone().requires_grad_()
            likelihood.set_temperature(variable)
            log_probs, weights = mixture_log_probs(in_double(outputs), likelihood, y)
            nats = -log_probs.sum()
            slope += torch.autograd.grad(nats, variable)[0]
            total += nats.detach()
            weight += weights.sum()
    return total / weight, slope / weight
