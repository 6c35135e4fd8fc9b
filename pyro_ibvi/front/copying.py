"""What a copy or a pickle of the front door's network keeps of what its parts know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: What a copy holds beside the attributes.
_KNOWN, _GOES_DIRECT = "known_of_model", "goes_direct"


def state_to_copy(bnn: Any) -> dict[str, Any]:
    """What a copy or a pickle of a network holds.

    A guide by itself is copied and pickled without its model, which comes along here; and an
    objective forgets the pairs that it knows, of which this one is copied.

    Args:
        bnn: The network.

    Returns:
        Its attributes, and what is known of them.
    """
    routes = getattr(bnn.loss, "routes", None)
    return {
        **vars(bnn),
        _KNOWN: [one.known_of_model for one in bnn.guide.components],
        _GOES_DIRECT: routes is not None and routes.knows(bnn.model, bnn.guide),
    }


def take_copied(bnn: Any, state: Mapping[str, Any]) -> None:
    """Makes a network what :func:`state_to_copy` says.

    Args:
        bnn: The new network.
        state: What the old one gave.
    """
    attributes = dict(state)
    known, goes_direct = attributes.pop(_KNOWN), attributes.pop(_GOES_DIRECT)
    vars(bnn).update(attributes)
    for component, own in zip(bnn.guide.components, known, strict=True):
        component.rejoin(bnn.model, own)
    if goes_direct:
        bnn.loss.routes.trust(bnn.model, bnn.guide)
