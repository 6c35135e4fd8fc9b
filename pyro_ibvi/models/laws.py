"""The law of targets by a likelihood, which may be the user's own: one for each datum."""

from __future__ import annotations

import inspect
from typing import Any

from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_ibvi._util.errors import DataError
from pyro_ibvi.models.kinds import kind_of
from pyro_ibvi.models.likelihoods import Likelihood
from pyro_ibvi.models.tasks import MultiTask
from pyro_ibvi.models.wrapped import Masked


def law_of(likelihood: Likelihood, output: Tensor, num_batch_dims: int, y: Tensor | None) -> Any:
    """The law of targets, checked where the likelihood is not the package's own.

    Args:
        likelihood: The likelihood.
        output: The network's output.
        num_batch_dims: Number of batch dimensions.
        y: Targets, or None.

    Returns:
        The law.

    Raises:
        TypeError: If the likelihood takes other arguments, or gives no distribution of Pyro's.
    """
    if isinstance(likelihood, (MultiTask, Masked)) and kind_of(likelihood) in ("tasks", "other"):
        _check_inside(likelihood, output, num_batch_dims, y)
    is_own = kind_of(likelihood) == "other" and not hasattr(likelihood, "likelihood")
    name = type(likelihood).__name__
    if is_own and len(inspect.signature(likelihood.forward).parameters) < 2:
        raise TypeError(
            f"{name}.forward must take the output and the number of its batch dimensions: write "
            f"def forward(self, output, num_batch_dims=1)."
        )
    law = likelihood(output, num_batch_dims)
    if is_own:
        if not isinstance(law, TorchDistributionMixin):
            raise TypeError(
                f"{name}.forward must return a distribution of pyro.distributions, got "
                f"{type(law).__module__}.{type(law).__name__}."
            )
        batch_shape = tuple(output.shape[:num_batch_dims])
        _check_shapes(name, law, batch_shape, None if y is None else tuple(y.shape[1:]))
    return law


def _check_inside(
    likelihood: MultiTask | Masked, output: Tensor, num_batch_dims: int, y: Tensor | None
) -> None:
    """Checks the laws of the user's likelihoods inside of one that is not."""
    if isinstance(likelihood, Masked):
        law_of(likelihood.likelihood, output, num_batch_dims, y)
        return
    outputs = likelihood.split(output)
    targets = {} if y is None else likelihood.split_target(y)
    for name, task in likelihood.likelihoods.items():
        if kind_of(task) == "other":
            law_of(task, outputs[name], num_batch_dims, targets.get(name))


def _check_shapes(
    name: str,
    law: TorchDistributionMixin,
    batch_shape: tuple[int, ...],
    target_shape: tuple[int, ...] | None,
) -> None:
    batch, event = tuple(law.batch_shape), tuple(law.event_shape)
    if batch[-len(batch_shape) :] != batch_shape:  # states that are enumerated may be in front
        raise DataError(
            f"The law of {name} has the batch shape {batch}, where {batch_shape} is expected: "
            f"what lies right of the batch belongs to a datum, "
            f"law.to_event(len(law.batch_shape) - num_batch_dims)."
        )
    if target_shape not in (None, event):
        raise DataError(
            f"The law of {name} has the event shape {event}, and the targets of a datum have the "
            f"shape {target_shape}: a likelihood whose targets have another shape than the output "
            f"says which by def target_shape(self, output_shape), and its law must have it."
        )
