"""Draws in a step where the user has chosen none, by what a first batch shows."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from pyro_ibvi._util.inputs import as_call, to_device
from pyro_ibvi._util.network_copies import is_compiled
from pyro_ibvi._util.random_state import own_random_numbers
from pyro_ibvi.front.batches import batch_at_hand
from pyro_ibvi.guides import AutoMuPMixture, AutoMuPNormal
from pyro_ibvi.guides.alignment import runs_in_parts
from pyro_ibvi.guides.direct import cut_batch
from pyro_ibvi.models import SupervisedModel
from pyro_ibvi.models.kinds import is_of_labels


def settle_draws(
    loss: Any, guide: AutoMuPNormal | AutoMuPMixture, model: SupervisedModel, batches: Any
) -> None:
    """Sets two draws in the place of one for numbers, where a batch may be cut.

    A network that is no plain ``Sequential`` shows by its code alone neither whether it
    treats each datum by itself nor whether it keeps what it has seen.

    Args:
        loss: The objective.
        guide: The guide.
        model: The model.
        batches: A loader or batches; None shows nothing.
    """
    if loss.draws != "batch" or is_of_labels(model.likelihood):
        return
    batch = batch_at_hand(batches)
    if batch is None or any(map(is_compiled, model.net.network.modules())):
        return  # a compiled network would be compiled anew for each part
    with own_random_numbers(), suppress(Exception):  # what is wrong shows in the first step
        args, kwargs = as_call(to_device(batch, next(model.parameters()).device))
        x, _ = model.read(*args, **kwargs)
        parts = cut_batch(x, 2)
        is_direct = guide.direct_route(model) is not None
        if is_direct and len(parts) > 1 and runs_in_parts(model, guide.components[0], x, parts):
            loss.draws = 2
