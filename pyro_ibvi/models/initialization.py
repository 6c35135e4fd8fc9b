r"""Where the means of a guide start: at the values that a network brings.

A guide's ``init_loc_fn`` gives each site its first mean. Pyro has several, among them
``init_to_sample``, a draw from the prior, which is what a network without training needs.
:func:`init_to_network` is the one for a network that is trained already.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from pyro.infer.autoguide.initialization import init_to_sample

#: Key of a site's ``infer`` dictionary under which the network's own parameter stands.
NETWORK_VALUE_KEY = "ibvi_network_value"


def init_to_network(
    site: Mapping[str, Any] | None = None,
    *,
    fallback: Callable[..., Any] = init_to_sample,
) -> Any:
    """Starts a guide's means at the values that the network of a ``RandomModule`` holds.

    For a network that is trained already. To be given to a guide as ``init_loc_fn``, as it is or
    with a fallback; this package's guide and Pyro's take it. The standard deviations start at
    the prior's times the guide's ``init_scale``. Around trained weights 1 may be too wide:
    compare numbers from 0.1 to 1 on held-out data, see the tutorial on pretrained networks.

    Args:
        site: A site of the model's trace, or None to give the other argument alone.
        fallback: Start of the sites that are no parameter of a ``RandomModule``.

    Returns:
        The value at which the site starts, or without a site a function of one.

    Raises:
        TypeError: If the site is none.
        ValueError: If a value lies outside of its prior's support.

    Example:
        >>> import torch
        >>> from pyro_ibvi import AutoMuPNormal, RandomModule
        >>> net = torch.nn.Linear(2, 1)  # trained, say
        >>> guide = AutoMuPNormal(
        ...     RandomModule(net), init_loc_fn=init_to_network, init_scale=0.2)
        >>> torch.equal(guide.loc("weight"), net.weight)
        True
    """
    if site is None:
        return functools.partial(init_to_network, fallback=fallback)
    if not isinstance(site, Mapping):
        raise TypeError(
            f"init_to_network is for a guide to call with a site, got {site!r}: write "
            f"init_loc_fn=init_to_network."
        )
    parameter = site["infer"].get(NETWORK_VALUE_KEY)
    if parameter is None:
        return fallback(site)
    value = parameter.detach()
    if not site["fn"].support.check(value).all():
        raise ValueError(
            f"The network's {site['name']!r} holds values outside of the support of its prior, "
            f"{site['fn'].support}: give it a prior on all real numbers, such as a standard "
            f"deviation, or start it elsewhere."
        )
    return value.expand(site["fn"].shape()).clone()
