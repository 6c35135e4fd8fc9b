"""Predictions come in the order of the data, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
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
from pyro_ibvi._util.samplers import keeps_order

X = torch.arange(20.0).unsqueeze(-1)
DATA = TensorDataset(X, X)


class Drawn(Sampler[int]):
    """An order that is new each time, by a class that does not say so."""

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(20).tolist())


class Endless(Sampler[list[int]]):
    """Batches in an order of their own, without an end of their own."""

    def __iter__(self) -> Iterator[list[int]]:
        while True:
            yield [3, 1]


def predict(loader: Any) -> torch.Tensor:
    """The means of a network that returns its input, but for its random weight."""
    torch.manual_seed(0)
    bnn = ibvi.VariationalNetwork(nn.Linear(1, 1, bias=False), ibvi.Normal(0.1))
    return (
        bnn.predict(loader, num_samples=3, seed=1).mean
        / bnn.predict(torch.ones(1, 1), num_samples=3, seed=1).mean
    )


RANDOM = {
    "random": RandomSampler(DATA),
    "subset": SubsetRandomSampler(range(10)),
    "weighted": WeightedRandomSampler(torch.ones(20), 20),
    "own": Drawn(),
    "distributed": DistributedSampler(DATA, num_replicas=1, rank=0),
}


@pytest.mark.parametrize("name", RANDOM)
def test_loaders_that_shuffle_are_refused(name: str) -> None:
    sampler = RANDOM[name]
    for loader in (
        DataLoader(DATA, batch_size=4, sampler=sampler),
        DataLoader(DATA, batch_size=None, sampler=sampler),
        DataLoader(DATA, batch_sampler=BatchSampler(sampler, 4, drop_last=False)),
    ):
        with pytest.raises(ValueError, match=r"The loader shuffles.*DataLoader\(Subset\(data"):
            predict(loader)


@pytest.mark.parametrize(
    ("sampler", "rows"),
    [
        (SequentialSampler(DATA), range(20)),
        (SequentialSampler(range(8)), range(8)),
        ([5, 3, 4], [5, 3, 4]),
        (DistributedSampler(DATA, num_replicas=2, rank=1, shuffle=False), range(1, 20, 2)),
    ],
)
def test_an_order_that_is_known_is_that_of_the_predictions(sampler: Any, rows: Any) -> None:
    batches = BatchSampler(sampler, 3, drop_last=False)
    for options in ({"sampler": sampler, "batch_size": 4}, {"batch_sampler": batches}):
        found = predict(DataLoader(DATA, **options))
        torch.testing.assert_close(found, X[list(rows)], rtol=1e-4, atol=1e-4)


def test_batches_without_an_end_are_not_listed_to_it() -> None:
    assert keeps_order(DataLoader(DATA, batch_sampler=Endless()))


def test_a_stream_has_no_order_to_lose() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter(DATA)

    found = predict(DataLoader(Stream(), batch_size=4))
    torch.testing.assert_close(found, X, rtol=1e-4, atol=1e-4)


def test_batches_of_different_lengths_are_told_of_their_own_predictions() -> None:
    words = [torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6]), torch.tensor([7, 8])]
    loader = DataLoader(words, 2, collate_fn=torch.stack)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2))
    bnn = ibvi.VariationalNetwork(net, ibvi.Categorical())
    with pytest.raises(ValueError, match=r"\(3, 2\) for each datum of .* \(2, 2\) .*another"):
        bnn.predict(loader, num_samples=2)
    parts = ibvi.prediction.predict_batches(bnn.model, bnn.guide, loader, num_samples=2)
    assert [tuple(part.mean.shape) for part, _ in parts] == [(2, 3, 2), (1, 2, 2)]
