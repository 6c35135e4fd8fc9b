"""A digest of tensors, numbers and strings, by which a damaged file shows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def digest(content: Any) -> str:
    """A digest that changes when anything in the content does.

    Args:
        content: Tensors, numbers, strings and None, in nested lists, tuples and mappings, whose
            order does not count.

    Returns:
        A SHA-256 digest, in hexadecimal digits.

    Raises:
        TypeError: If there is something else.

    Example:
        >>> digest({"a": torch.ones(2), "b": 1}) == digest({"b": 1, "a": torch.ones(2)})
        True
        >>> digest([torch.ones(2)]) == digest([torch.ones(2, 1)])
        False
    """
    found = hashlib.sha256()
    _add(found, content)
    return found.hexdigest()


def _add(found: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        value = value.detach()
        found.update(f"tensor {value.dtype} {tuple(value.shape)}:".encode())
        if value.layout is not torch.strided:
            value = value.to_dense()
        plain = value.cpu().contiguous().reshape(-1).view(torch.uint8)
        found.update(memoryview(plain.numpy()))
    elif isinstance(value, Mapping):
        found.update(f"mapping {len(value)}:".encode())
        for key in sorted(value, key=repr):
            _add(found, key)
            _add(found, value[key])
    elif isinstance(value, (list, tuple)):
        found.update(f"list {len(value)}:".encode())
        for part in value:
            _add(found, part)
    elif isinstance(value, (bool, int, float, complex, str, type(None))):
        text = f"{type(value).__name__} {value!r}".encode()
        found.update(f"{len(text)}:".encode() + text)
    else:
        raise TypeError(f"A digest is of tensors, numbers and strings, got {value!r}.")
