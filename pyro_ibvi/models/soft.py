"""Shares in the place of labels, and laws free of what only training weighs.

The shares of the classes in a datum (of mixed data, smoothed labels, a teacher's probabilities)
are no outcome that could be observed: by a law of labels they have a cross-entropy, the mean of
the log-probability over labels drawn by the shares, and no density. What averages densities over
draws of the weights must average the probabilities of the labels instead.
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Independent
from torch.nn.functional import logsigmoid, one_hot

from pyro_ibvi._util.errors import DataError
from pyro_ibvi.models.labels import Labels
from pyro_ibvi.models.likelihoods import Likelihood
from pyro_ibvi.models.tasks import Joint
from pyro_ibvi.models.wrapped import LawAround, Partial


def is_soft(law: Any, value: Any) -> bool:
    """Whether targets are shares of labels rather than labels.

    Args:
        law: Their distribution.
        value: The targets, as it takes them.

    Returns:
        Whether they are.
    """
    if isinstance(law, (Independent, Partial)):
        return is_soft(law.law if isinstance(law, Partial) else law.base_dist, value)
    if isinstance(law, Joint):
        targets = law.likelihood.split_target(value)
        return any(is_soft(part, targets[name]) for name, part in law.laws.items())
    if isinstance(law, Labels):
        return law.is_soft(value)
    if isinstance(law, torch.distributions.Bernoulli):
        return bool(((value > 0) & (value < 1)).any())
    return False


class Shares(LawAround):
    """Shares of the classes, observed in the place of labels.

    Args:
        law: The distribution of the labels.
    """

    def __init__(self, law: Labels) -> None:
        super().__init__(law, torch.Size((*law.event_shape, law.logits.shape[-1])))

    @property
    def support(self) -> Any:
        """Numbers from 0 on with the sum 1, the classes last."""
        return constraints.independent(constraints.simplex, len(self.event_shape) - 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Shares:
        """The same labels in a larger batch."""
        return Shares(self.law.expand(torch.Size(batch_shape)))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws labels, each as the share 1 of its class."""
        labels = self.law.sample(sample_shape)
        return one_hot(labels, self.event_shape[-1]).to(self.law.logits)

    def log_prob(self, value: Tensor) -> Tensor:
        """The cross-entropy, of the batch shape."""
        return self.law.log_prob(value)

    def num_observed(self, value: Tensor) -> Tensor | None:
        """Number of labels whose shares these are, None where it is one, of the batch shape."""
        return self.law.num_observed(value)


def as_observed(law: Any, value: Any) -> Any:
    """The law of what is observed, which of shares has one dimension more than that of labels.

    Args:
        law: The distribution of the targets.
        value: The targets, as it takes them; None where they are not observed.

    Returns:
        The law.
    """
    if value is not None and isinstance(law, Joint) and law.likelihood.holds_shares(value):
        targets = law.likelihood.split_target(value)
        laws = {name: as_observed(part, targets[name]) for name, part in law.laws.items()}
        return Joint(law.likelihood, laws, law.dtype)
    is_shares = value is not None and isinstance(law, Labels) and law.is_soft(value)
    return Shares(law) if is_shares else law


def observes_shares(law: Any) -> bool:
    """Whether a law is one of shares of classes, or of tasks with such.

    Args:
        law: A law of what is observed.

    Returns:
        Whether it is.
    """
    if isinstance(law, Joint):
        return any(map(observes_shares, law.laws.values()))
    return isinstance(law, Shares)


def mixed_law(likelihood: Likelihood, outputs: Tensor, value: Tensor) -> Any:
    """The laws whose densities make up a predictive one.

    Args:
        likelihood: The likelihood.
        outputs: The network's outputs, draws in front.
        value: Targets, as it takes them.

    Returns:
        The law, with the draws in front; of shares one of averaged probabilities alone.

    Raises:
        DataError: If shares are among the targets of several tasks.
    """
    law = likelihood.density(outputs, 2)
    return _averaged(law) if is_soft(law, value) else law


def _averaged(law: Any) -> Any:
    if isinstance(law, Independent):
        num_dims = law.reinterpreted_batch_ndims
        return dist.Independent(_averaged(law.base_dist), num_dims, validate_args=False)
    if isinstance(law, Partial):
        return Partial(_averaged(law.law))
    if isinstance(law, Labels):
        new = law.expand(law.batch_shape)
        new.logits = _mean(law.logits)
        return new.expand((1, *law.batch_shape[1:]))
    if isinstance(law, torch.distributions.Bernoulli):
        logits = _mean(logsigmoid(law.logits)) - _mean(logsigmoid(-law.logits))
        return dist.Bernoulli(logits=logits, validate_args=False)
    raise DataError(
        "Targets that are shares of labels have no joint density with those of other tasks: take "
        "the tasks one by one, prediction['name'].log_prob(y)."
    )


def as_density(law: Any) -> Any:
    """A law of targets without the weights and the smoothing that are for training alone.

    Args:
        law: The law as training counts it.

    Returns:
        The law, the same where nothing is weighed.
    """
    if isinstance(law, Independent):
        base, num_dims = as_density(law.base_dist), law.reinterpreted_batch_ndims
        same = base is law.base_dist
        return law if same else dist.Independent(base, num_dims, validate_args=False)
    if isinstance(law, Partial):
        return Partial(as_density(law.law))
    if isinstance(law, Joint):
        laws = {name: as_density(part) for name, part in law.laws.items()}
        return Joint(law.likelihood, laws, law.dtype)
    return law.plain() if hasattr(law, "plain") else law


def _mean(log_probs: Tensor) -> Tensor:
    return log_probs.logsumexp(0, keepdim=True) - math.log(len(log_probs))
