"""Devices by their names."""

from __future__ import annotations

from typing import Any

import torch


def checked_device(device: Any) -> torch.device:
    """A device by its name.

    Args:
        device: The device, or its name.

    Returns:
        The device.

    Raises:
        ValueError: If there is no such device, or it is a type.
    """
    if isinstance(device, torch.dtype):
        raise ValueError(
            f"A device is expected, got the type {device}: convert the network before it is "
            f"wrapped, net.to({device})."
        )
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"There is no device {device!r}: write 'cpu', 'cuda', 'cuda:0' or 'mps'."
        ) from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"There is no device {str(found)!r} here: torch finds no GPU.")
    return found
