"""Whether a network reads tables, and whether a datum is a row of one."""

from __future__ import annotations

from torch import nn

from pyro_ibvi.front.first_batch import FirstBatch
from pyro_ibvi.mup.layers import NORM_LAYERS, owner_of

#: Layers of networks that read each feature once: others read words, pixels or times.
_OF_TABLES: tuple[type[nn.Module], ...] = (nn.Linear, *NORM_LAYERS)


def is_of_tables(network: nn.Module) -> bool:
    """Whether a network has no layer that reads words, pixels or times.

    Args:
        network: The network.

    Returns:
        Whether all of its layers are linear or norms.
    """
    owners = {owner_of(network, name)[0] for name, _ in network.named_parameters()}
    return all(isinstance(network.get_submodule(name), _OF_TABLES) for name in owners)


def reads_rows(network: nn.Module, first: FirstBatch) -> bool:
    """Whether each datum is one row of features, whatever the form in which it comes.

    Args:
        network: The network.
        first: Data.

    Returns:
        Whether all layers make one row of it; False where there are no data to look at.
    """
    return is_of_tables(network) and set(first.rows.values()) == {1.0}
