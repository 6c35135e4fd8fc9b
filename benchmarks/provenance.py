"""What a number was made with, to stand beside it."""

from __future__ import annotations

import platform
from types import ModuleType
from typing import Any

import numpy as np
import pyro
import torch

import pyro_ibvi as ibvi


def provenance(*libraries: ModuleType) -> dict[str, Any]:
    """Versions and hardware of a benchmark that runs on one thread, without names of machines.

    Args:
        libraries: Further libraries that it measures.

    Returns:
        The versions by name, and the hardware.
    """
    modules = (torch, pyro, np, ibvi, *libraries)
    versions = {module.__name__: module.__version__ for module in modules}
    return {
        "versions": {**versions, "python": platform.python_version()},
        "hardware": f"{platform.machine()}, 1 thread",
    }
