"""How many data a training has: those that have targets, and that a loader draws."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

import pyro_ibvi as ibvi
from pyro_ibvi.front.batches import count_rows
from pyro_ibvi.front.first_batch import batch_at_hand
from tests.layouts import Bags, Graphs, TimeFirst

#: Roles are not the subject here.
pytestmark = pytest.mark.filterwarnings("ignore:The forward pass of")

DATA = TensorDataset(torch.randn(20, 2), torch.randn(20, 1))


@pytest.mark.parametrize(
    ("kind", "x", "size"),
    [
        (TimeFirst, torch.randn(50, 10, 3), 10),
        (Bags, (torch.randint(0, 30, (50,)), torch.tensor([0, 10, 25])), 3),
        (Graphs, (torch.randn(12, 3), torch.arange(12) // 4), 3),
    ],
)
def test_data_are_counted_by_their_targets(kind: type[nn.Module], x: Any, size: int) -> None:
    y = torch.randn(size, 1)
    bnn = ibvi.VariationalNetwork(kind(), ibvi.Normal(0.5))
    bnn.fit([(x, y), (x, y)], num_epochs=1, progress=False)
    assert bnn.model.num_data == 2 * size
    assert count_rows([(x, y)]) == size


def test_parts_of_a_batch_that_are_told() -> None:
    batch = (torch.arange(50), torch.randn(10, 2), torch.randn(10, 1))
    bnn = ibvi.VariationalNetwork(nn.Linear(2, 1), ibvi.Normal(0.5), inputs=1, target=2)
    bnn.fit([batch], num_epochs=1, progress=False)
    assert bnn.model.num_data == 10


class Own(Sampler[int]):
    """Six of the data in an order of their own."""

    def __iter__(self) -> Iterator[int]:
        return iter([7, 3, 1, 0, 2, 9])

    def __len__(self) -> int:
        return 6


class Endless(Own):
    """A sampler that has no length to tell."""

    def __len__(self) -> int:
        raise TypeError


@pytest.mark.parametrize(
    ("sampler", "num_data"),
    [
        (SubsetRandomSampler(range(10)), 10),
        (SubsetRandomSampler([3, 3, 5, 5]), 2),
        (SequentialSampler(range(8)), 8),
        (RandomSampler(range(12)), 12),
        (Own(), 6),
        ([4, 5, 6], 3),
        # An epoch has more or less than there is to be drawn.
        (RandomSampler(DATA, replacement=True, num_samples=5), 20),
        (RandomSampler(DATA, num_samples=5), 20),
        (WeightedRandomSampler(torch.ones(20), num_samples=5), 20),
        (WeightedRandomSampler(torch.ones(20), num_samples=500), 20),
        (DistributedSampler(DATA, num_replicas=2, rank=0), 20),
        (list(range(20)) * 3, 20),
        (Endless(), 20),
    ],
)
def test_a_part_of_the_data_set_counts_as_the_part(sampler: Any, num_data: int) -> None:
    assert count_rows(DataLoader(DATA, batch_size=4, sampler=sampler)) == num_data
    batches = BatchSampler(sampler, batch_size=3, drop_last=False)
    assert count_rows(DataLoader(DATA, batch_sampler=batches)) == num_data
    assert count_rows(DataLoader(DATA, batch_size=None, sampler=batches)) == num_data


class OfBatches(Dataset[Any]):
    """Five items that are batches of four."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        return DATA[4 * index : 4 * index + 4]


class InTurn(IterableDataset[Any], OfBatches):
    """The same, one after the other."""

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(5))


@pytest.mark.parametrize("kind", [OfBatches, InTurn])
def test_items_that_are_batches_are_not_counted_as_data(kind: type[Dataset[Any]]) -> None:
    bnn = ibvi.VariationalNetwork(nn.Linear(2, 1), ibvi.Normal(0.5))
    loader = DataLoader(kind(), batch_size=None)
    with pytest.raises(ValueError, match="cannot be found from a DataLoader: pass num_data="):
        bnn.fit(loader, num_epochs=1, progress=False)
    bnn.fit(loader, num_epochs=1, num_data=20, progress=False)
    assert bnn.model.num_data == 20


def test_batches_of_indices_hide_what_is_drawn() -> None:
    assert count_rows(DataLoader(DATA, batch_sampler=[[0, 1], [2, 3]])) == 20


def test_fit_on_a_part_is_fit_on_a_subset() -> None:
    bnn = ibvi.VariationalNetwork(nn.Linear(2, 1), ibvi.Normal(0.5))
    loader = DataLoader(DATA, batch_size=5, sampler=SubsetRandomSampler(range(10)))
    bnn.fit(loader, num_epochs=1, progress=False)
    assert bnn.model.num_data == 10


def test_a_collate_function_that_makes_several_rows_of_a_datum_is_told():
    def crops(batch):
        x = torch.cat([row.expand(3, 2) for row, _ in batch])
        return x, torch.cat([row.expand(3, 1) for _, row in batch])

    loader = DataLoader(DATA, batch_size=5, collate_fn=crops)
    bnn = ibvi.VariationalNetwork(nn.Linear(2, 1), ibvi.Normal(0.3))
    with pytest.warns(UserWarning, match="batches of 5 data hold 15 rows.*num_data=20"):
        bnn.fit(loader, num_epochs=1, progress=False)
    bnn.fit(loader, num_epochs=1, progress=False, num_data=60)  # in silence
    assert bnn.model.num_data == 60


def test_data_that_workers_read_are_not_read_here() -> None:
    class Rows(Dataset[Any]):
        read = 0

        def __len__(self) -> int:
            return 20

        def __getitem__(self, i: int) -> Any:
            Rows.read += 1
            return torch.ones(2), torch.ones(1)

    for num_workers, num_read in ((2, 0), (0, 2)):
        loader = DataLoader(Rows(), batch_size=5, shuffle=True, num_workers=num_workers)
        state = torch.get_rng_state()
        x, _ = batch_at_hand(loader)
        assert x.shape == (2, 2)
        assert Rows.read == num_read
        assert torch.equal(torch.get_rng_state(), state)


def test_a_stream_that_is_read_once_is_not_begun() -> None:
    class Once(IterableDataset[Any]):
        def __init__(self) -> None:
            self.rows = iter([(torch.ones(2), torch.ones(1))] * 20)

        def __iter__(self) -> Iterator[Any]:
            return self.rows

    stream = Once()
    assert batch_at_hand(DataLoader(stream, batch_size=5)) is None
    assert len(list(stream)) == 20
