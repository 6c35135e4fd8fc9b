"""Whether a network reads tables, and how many rows of one a datum is."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress

from torch import Tensor, nn

from pyro_ibvi._util.random_state import own_random_numbers
from pyro_ibvi.front.first_batch import FirstBatch
from pyro_ibvi.models import SupervisedModel
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


def rows_of_datum(
    model: SupervisedModel, layers: Collection[str], first: FirstBatch
) -> dict[str, float]:
    """How many rows layers make of a datum: of a set, a graph or a series several.

    Args:
        model: The model.
        layers: Names of layers of its network.
        first: Data.

    Returns:
        The number by layer, nothing where there are no data to look at.
    """
    counts: dict[str, float] = {}
    with own_random_numbers(), suppress(Exception):  # what is wrong shows in the first step
        x, y = first.read()
        num_data = len(model.likelihood.as_target(y))

        def count(layer: str, output: Tensor) -> None:
            counts[layer] = output.shape[:-1].numel() / num_data

        model.net.runner.watch(layers, count, *model.arguments_of(x))
    return counts if counts.keys() >= set(layers) else {}


def reads_rows(model: SupervisedModel, first: FirstBatch) -> bool:
    """Whether each datum is one row of features, whatever the form in which it comes.

    Args:
        model: The model.
        first: Data.

    Returns:
        Whether all layers make one row of it; False where there are no data to look at.
    """
    network = model.net.network
    if not is_of_tables(network):
        return False
    layers = {owner_of(network, name)[0] for name, _ in network.named_parameters()}
    counts = rows_of_datum(model, layers, first)
    return bool(counts) and set(counts.values()) == {1.0}
