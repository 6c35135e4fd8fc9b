"""From a batch to a call: containers, named tuples, packed sequences and foreign mappings."""

from collections import UserDict, namedtuple

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from pyro_ibvi._util.inputs import (
    as_call,
    as_tensors,
    first_tensor,
    map_tensors,
    tensors_of,
    to_device,
)

Batch = namedtuple("Batch", ["x", "y"])
A, B = torch.ones(2), torch.zeros(3)
PACKED = pack_sequence([torch.ones(3, 1), torch.ones(2, 1)])


@pytest.mark.parametrize(
    ("batch", "call"),
    [
        (A, ((A,), {})),
        ([A, B], ((A, B), {})),
        (Batch(A, B), ((A, B), {})),
        ({"a": A}, ((), {"a": A})),
        (UserDict(a=A), ((), {"a": A})),
        (PACKED, ((PACKED,), {})),
        ("name", (("name",), {})),
    ],
)
def test_a_batch_is_a_call(batch, call):
    args, kwargs = as_call(batch)
    assert [id(a) for a in args] == [id(a) for a in call[0]]
    assert {k: id(v) for k, v in kwargs.items()} == {k: id(v) for k, v in call[1].items()}


def test_tensors_are_found_and_replaced_in_their_containers():
    data = {"x": [A, (B, "text")], "z": Batch(torch.tensor(1.0), None)}
    assert [t.shape for t in tensors_of(data)] == [A.shape, B.shape, ()]
    doubled = map_tensors(lambda t: 2 * t, data)
    assert torch.equal(doubled["x"][0], 2 * A)
    assert doubled["x"][1][1] == "text"
    assert isinstance(doubled["z"], Batch)
    assert first_tensor([torch.tensor(1.0), B]) is B
    assert first_tensor(["text"]) is None
    assert first_tensor(PACKED) is PACKED.data


def test_whatever_can_be_moved_is_moved():
    class Graph:
        device = None

        def to(self, device):
            self.device = device
            return self

    moved = to_device(UserDict(g=Graph(), p=PACKED, b=Batch(A, 1)), "meta")
    assert moved["g"].device == "meta"
    assert moved["p"].data.device.type == "meta"
    assert moved["b"].x.device.type == "meta"
    assert moved["b"].y == 1
    assert to_device(A, None) is A


@pytest.mark.parametrize("kind", [">f4", ">i8", np.longdouble, np.float16])
def test_arrays_of_any_numbers_are_tensors(kind):
    tensor = as_tensors(np.array([[1, -2], [300, 4]], dtype=kind), torch.float32)
    assert tensor.dtype == (torch.int64 if kind == ">i8" else torch.float32)
    assert tensor.tolist() == [[1, -2], [300, 4]]


@pytest.mark.parametrize("kind", [np.float32, np.int64])
def test_what_an_array_masks_is_missing(kind):
    array = np.ma.masked_array(np.array([1, 2, 3], dtype=kind), mask=[False, True, False])
    torch.testing.assert_close(
        as_tensors(array, torch.float32), torch.tensor([1.0, torch.nan, 3.0]), equal_nan=True
    )
    whole = np.ma.masked_array(array.data, mask=False)
    assert as_tensors(whole, torch.float32).tolist() == [1, 2, 3]
