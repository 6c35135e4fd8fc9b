"""A word where a training ends as it began, at guessing among labels."""

from __future__ import annotations

import math
import warnings
from typing import Any

from pyro_ibvi.models import SupervisedModel
from pyro_ibvi.models.kinds import kind_of

#: Epochs after which a network that learns at all is better than guessing.
_MANY_EPOCHS = 10
#: Share of the loss of guessing that is no better than it.
_NO_BETTER = 0.98


def warn_of_guessing(bnn: Any) -> None:
    """Warns where the loss of the last epoch is that of labels that are all equally likely.

    Args:
        bnn: The network, after a training.
    """
    losses, loss = bnn.history.train_loss, bnn.loss
    # Other objectives, stock ones among them, have other units.
    is_of_data = getattr(loss, "is_likelihood_alone", False) and loss.reduction == "mean"
    if len(losses) < _MANY_EPOCHS or not is_of_data:
        return
    guess, among = _of_guessing(bnn.model)
    if guess and losses[-1] >= _NO_BETTER * guess:
        warnings.warn(
            f"The network has learned nothing: after {len(losses)} epochs the loss of a datum is "
            f"{losses[-1]:.3g}, and that of guessing {among} is {guess:.3g}. Look whether the "
            f"labels belong to the inputs and these are standardized; deep networks without "
            f"normalization learn by optimizer=torch.optim.Adam, others by a smaller lr=.",
            UserWarning,
            stacklevel=4,
        )


def _of_guessing(model: SupervisedModel) -> tuple[float, str]:
    """The loss of equal probabilities and what they are of; 0 where they are not known."""
    likelihood: Any = model.likelihood
    if not getattr(likelihood, "is_plain", False):
        return 0.0, ""
    if kind_of(likelihood) == "categorical" and (num_classes := model.net.num_outputs) > 1:
        return math.log(num_classes), f"among {num_classes} classes"
    if kind_of(likelihood) == "bernoulli":
        return likelihood.num_summed * math.log(2), "whether each label is 0 or 1"
    return 0.0, ""
