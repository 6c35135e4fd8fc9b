"""Draws in a step where the user has chosen none, by what a first batch shows."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from pyro_ibvi._util.network_copies import is_compiled
from pyro_ibvi._util.random_state import own_random_numbers
from pyro_ibvi.front.first_batch import FirstBatch
from pyro_ibvi.guides import AutoMuPMixture, AutoMuPNormal
from pyro_ibvi.guides.alignment import runs_in_parts
from pyro_ibvi.guides.direct import cut_batch
from pyro_ibvi.models import SupervisedModel
from pyro_ibvi.models.kinds import is_of_labels


def settle_draws(
    loss: Any, guide: AutoMuPNormal | AutoMuPMixture, model: SupervisedModel, first: FirstBatch
) -> None:
    """Sets two draws in the place of one for numbers, where a batch may be cut.

    A network that is no plain ``Sequential`` shows by its code alone neither whether it
    treats each datum by itself nor whether it keeps what it has seen.

    Args:
        loss: The objective.
        guide: The guide.
        model: The model.
        first: Data; where there are none, they show nothing.
    """
    if loss.draws != "batch" or is_of_labels(model.likelihood):
        return
    # A compiled network would be compiled anew for each part.
    is_compiled_anew = any(map(is_compiled, model.net.network.modules()))
    if is_compiled_anew or guide.direct_route(model) is None:
        return
    with own_random_numbers(), suppress(Exception):  # what is wrong shows in the first step
        x, _ = first.read()
        parts = cut_batch(x, 2)
        if len(parts) > 1 and runs_in_parts(model, guide.components[0], x, parts):
            loss.draws = 2
