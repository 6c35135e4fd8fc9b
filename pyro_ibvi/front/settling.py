"""Defaults that the first batch of a training settles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pyro_ibvi.front.draws import settle_draws
from pyro_ibvi.front.first_batch import FirstBatch
from pyro_ibvi.front.noise import settle_noise
from pyro_ibvi.front.rate import settle_rate


@dataclass(frozen=True)
class Unsettled:
    """What the user has not chosen, and no network shows by itself.

    Attributes:
        noise: Whether the noise goes with the number of data.
        draws: Whether the draws in a step go with whether data run alone.
        rate: Whether SGD's rate goes with the batches and the labels of a datum.
    """

    noise: bool
    draws: bool
    rate: bool

    def settle(self, bnn: Any, first: FirstBatch) -> None:
        """Settles it for a network.

        Args:
            bnn: The network, whose model knows the number of data.
            first: Some of them.
        """
        if self.noise:
            settle_noise(bnn.guide, bnn.model, bnn.model.num_data, first)
        if self.draws:
            settle_draws(bnn.loss, bnn.guide, bnn.model, first)
        if self.rate and bnn.optim.pt_optim_constructor is torch.optim.SGD:
            settle_rate(bnn.optim, bnn.model, first)
