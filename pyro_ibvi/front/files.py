"""The file of a trained network: tensors with the choices that made it, and a digest of both.

The format is safetensors: reading it runs no code.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyro
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pyro_ibvi._util.digest import digest
from pyro_ibvi._util.files import checked_path, whole_file
from pyro_ibvi._util.misfits import listed, misfits
from pyro_ibvi._version import __version__

_KEY = "pyro_ibvi"
#: Raised when files of a new form are no longer read by older versions.
_FORMAT = 1


def state_of(model: nn.Module, guide: nn.Module) -> dict[str, Any]:
    """Tensors of a model and its guide, by the names that they have in a file.

    Args:
        model: The model.
        guide: The guide.

    Returns:
        The tensors.
    """
    return {
        f"{kind}.{name}": value
        for kind, module in (("model", model), ("guide", guide))
        for name, value in module.state_dict().items()
    }


def write_network(
    path: str | os.PathLike[str], choices: Mapping[str, Any], state: Mapping[str, Any]
) -> None:
    """Writes a network to a file.

    Args:
        path: The file.
        choices: What the network was made of, as JSON has it.
        state: Its tensors by name.
    """
    path = checked_path(path)
    tensors = {name: _storable(name, value) for name, value in state.items()}
    header: dict[str, Any] = {
        "format": _FORMAT,
        "versions": {
            "pyro_ibvi": __version__,
            "torch": str(torch.__version__),
            "pyro": pyro.__version__,
        },
        "choices": choices,
    }
    header["digest"] = digest([header, tensors])
    with whole_file(path) as part:
        save_file(_apart(tensors), part, metadata={_KEY: json.dumps(header)})


def read_network(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the tensors of a file, if its digest is that of its content.

    Args:
        path: The file.

    Returns:
        The header, with the choices in it, and the tensors by name.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, of a newer version, or none of this kind.
    """
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except KeyError:
        raise ValueError(
            f"{path} is a file of tensors, but not one that VariationalNetwork.save wrote: load "
            f"it by safetensors.torch.load_file."
        ) from None
    except (SafetensorError, ValueError, UnicodeError) as error:
        hint = _what_else(path)
        raise ValueError(f"{path} cannot be read: {hint} ({error}).") from error
    if not isinstance(header, dict) or not isinstance(header.get("format"), int):
        raise ValueError(f"{path} is damaged: its header has no format.")
    if header["format"] > _FORMAT:
        raise ValueError(
            f"{path} was written by a newer version, pyro_ibvi "
            f"{header.get('versions', {}).get('pyro_ibvi')}, in the format {header['format']}; "
            f"this is {__version__}, which reads formats up to {_FORMAT}."
        )
    expected = header.pop("digest", None)
    if digest([header, tensors]) != expected:
        raise ValueError(
            f"{path} is damaged: its content has another digest than when it was written. Take "
            f"it from a copy."
        )
    return header, tensors


def check_fit(path: Path, there: Mapping[str, Tensor], here: Mapping[str, Any]) -> None:
    """Checks that a file's tensors are those that a network has.

    Args:
        path: The file.
        there: The file's tensors by name.
        here: The network's.

    Raises:
        ValueError: If they differ in name, type or shape.
    """
    found = misfits(there, here)
    if found:
        raise ValueError(f"{path} is of another network: {listed(found)}.")


def _storable(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.layout is not torch.strided:
        raise TypeError(
            f"The network's {name} is no plain tensor but a {type(value).__name__}, which a file "
            f"of tensors cannot hold: keep it in a buffer, or outside of the network."
        )
    return value.detach().cpu().contiguous()


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of which no two share memory, as tied weights do."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        pointer = tensor.untyped_storage().data_ptr()
        result[name] = tensor.clone() if pointer in seen else tensor
        seen.add(pointer)
    return result


def _what_else(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(4)
    if start[:2] == b"PK":
        return (
            "it is a file of torch.save, such as a checkpoint of a training (go on with it by "
            "fit(..., checkpoint=) or load_checkpoint) or a state_dict"
        )
    return "it is damaged, or no saved network" if start else "it is empty"
