"""The content of a checkpoint's file: plain values and tensors, with a digest of them."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_ibvi._util.digest import digest
from pyro_ibvi._util.files import whole_file

_KIND = "pyro_ibvi checkpoint, version "
_VERSION = 2
_ATOMS = (bool, int, float, complex, str, type(None))


def write_content(path: Path, content: Mapping[str, Any]) -> None:
    """Writes what a training is made of to a file, which takes the place of an earlier one.

    Args:
        path: The file.
        content: Tensors, numbers and strings, in lists and dictionaries.
    """
    plain = _plain({"format": f"{_KIND}{_VERSION}", **content}, "the checkpoint")
    plain["digest"] = digest(plain)
    with whole_file(path) as part:
        torch.save(plain, part)


def read_content(path: Path) -> dict[str, Any]:
    """The content of a file, if its digest is that of its content.

    Args:
        path: The file.

    Returns:
        What was written.

    Raises:
        ValueError: If the file is damaged, of another version, or no checkpoint.
    """
    with path.open("rb") as file:
        try:
            content: Any = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file can raise anything in the reader
            reason = str(error).partition("\n")[0].partition(". ")[0]
            raise ValueError(
                f"{path} cannot be read: it is damaged or no checkpoint ({type(error).__name__}: "
                f"{reason}). Delete it to start anew, or read a network that was saved by "
                f"ibvi.load."
            ) from error
    written = content.get("format") if isinstance(content, dict) else None
    if not isinstance(written, str) or not written.startswith(_KIND):
        raise ValueError(
            f"{path} is no checkpoint that this version reads: expected a file that "
            f"save_checkpoint or fit wrote, got {_what_it_is(content)}."
        )
    if written != f"{_KIND}{_VERSION}":
        raise ValueError(
            f"{path} is a checkpoint of version {written.removeprefix(_KIND)}, and this version "
            f"of the package reads version {_VERSION} alone: go on with the package that wrote it."
        )
    if content.pop("digest", None) != digest(content):
        raise ValueError(
            f"{path} is damaged or no checkpoint as it was written: its content has another "
            f"digest. Take it from a copy, or delete it to start anew."
        )
    return dict(content)


def _what_it_is(content: Any) -> str:
    if isinstance(content, dict) and content:
        if all(isinstance(value, Tensor) for value in content.values()):
            return "a state_dict, which load_state_dict of its module takes"
        return f"a dictionary with the keys {', '.join(map(repr, list(content)[:5]))}"
    return f"a {type(content).__name__}"


def _plain(value: Any, where: str) -> Any:
    """A copy that ``torch.load`` reads with ``weights_only``; tensors are not copied."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in _ATOMS:
        return value
    if type(value) in (list, tuple):
        return type(value)(_plain(v, f"{where}[{i}]") for i, v in enumerate(value))
    if type(value) in (dict, OrderedDict, Counter):
        return type(value)(
            {_plain(k, where): _plain(v, f"{where}[{k!r}]") for k, v in value.items()}
        )
    raise TypeError(
        f"{where} is of the type {type(value).__name__}, but a checkpoint holds tensors, numbers, "
        f"strings, and lists and dictionaries of them."
    )
