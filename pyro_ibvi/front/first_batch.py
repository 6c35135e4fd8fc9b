"""Some data of a training, before its first step."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from itertools import islice
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from pyro_ibvi._util.inputs import as_call, map_tensors, to_device
from pyro_ibvi._util.random_state import own_random_numbers
from pyro_ibvi.front.batches import TensorBatches
from pyro_ibvi.models import SupervisedModel
from pyro_ibvi.mup.layers import owner_of


class FirstBatch:
    """Some data of a training, read when they are first asked for, and once.

    Args:
        model: The model.
        batches: A loader or batches; None has no data.
        accumulate: Number of batches in a step.
    """

    def __init__(self, model: SupervisedModel, batches: Any, accumulate: int = 1) -> None:
        self._model, self._batches, self._accumulate = model, batches, accumulate
        self._read: tuple[Any, Any] | None = None

    def read(self) -> tuple[Any, Any]:
        """The data where the model is.

        Returns:
            Inputs and targets; what the model does not understand, it refuses.
        """
        if self._read is None:
            batch = batch_at_hand(self._batches)
            args, kwargs = as_call(to_device(batch, next(self._model.parameters()).device))
            self._read = self._model.read(*args, **kwargs)
        return self._read

    def target(self) -> Tensor | None:
        """The targets as the likelihood takes them, None where there are none to be had."""
        with own_random_numbers(), suppress(Exception):  # what is wrong shows in the first step
            target = self._model.likelihood.as_target(self.read()[1])
            return target if isinstance(target, Tensor) and len(target) else None
        return None

    def data_in_step(self) -> int | None:
        """Number of data that a step sees, None where nothing tells it."""
        for holder in (self._batches, getattr(self._batches, "batch_sampler", None)):
            if isinstance(size := getattr(holder, "batch_size", None), int):
                return size * self._accumulate
        target = self.target()
        return None if target is None else len(target) * self._accumulate

    @cached_property
    def rows(self) -> Mapping[str, float]:
        """How many rows each layer with parameters makes of a datum: of a set or a series several.

        None of what does not pass a layer, and empty where there are no data to look at.
        """
        net = self._model.net
        counts = dict.fromkeys((owner_of(net.network, name)[0] for name in net.roles), 0.0)
        if (target := self.target()) is None:
            return {}

        def count(layer: str, output: Tensor) -> None:
            counts[layer] = output.shape[:-1].numel() / len(target)

        with own_random_numbers(), suppress(Exception):
            net.runner.watch(list(counts), count, *self._model.arguments_of(self.read()[0]))
            return counts
        return {}


def batch_at_hand(batches: Any) -> Any:
    """Some data in the form of a batch, where they are to be had without a whole iteration.

    Args:
        batches: Batches, or a data loader, the data of which a worker reads where it has some; a
            stream is begun once more.

    Returns:
        The batch, None where there is none.
    """
    if isinstance(batches, TensorBatches):
        return map_tensors(lambda tensor: tensor[:2], batches.data)
    if isinstance(batches, (list, tuple)):
        return next(iter(batches), None)
    if not isinstance(batches, DataLoader):
        return None
    dataset: Any = batches.dataset
    is_stream = isinstance(dataset, IterableDataset)
    size = None if batches.batch_sampler is None else 2  # without one items are batches
    if size is None and not is_stream:
        return None
    with own_random_numbers(), suppress(Exception):  # items by words
        if is_stream and iter(dataset) is iter(dataset):  # what is read is gone
            return None
        if batches.num_workers == 0 or isinstance(dataset, TensorDataset):
            items = list(islice(dataset, 2)) if is_stream else [dataset[0], dataset[1]]
            return batches.collate_fn(items if size else items[0])
        # A file that is opened here would be open in all worker processes.
        names = ("collate_fn", "worker_init_fn", "multiprocessing_context", "timeout")
        options: Any = {name: getattr(batches, name) for name in names}
        sampler = None if is_stream else [0, 1]
        return next(iter(DataLoader(dataset, size, sampler=sampler, num_workers=1, **options)))
    return None
