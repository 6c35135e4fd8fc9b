"""Resident memory of this process, as Linux counts it."""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path
from typing import Literal


def resident(key: Literal["VmRSS", "VmHWM", "RssAnon"]) -> int:
    """Bytes now, ``VmRSS`` or without pages of files ``RssAnon``, or at the peak, ``VmHWM``."""
    match = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match.group(1)) * 1024


def restart_peak() -> int:
    """Lets the peak start again from what is in use now, and returns that in bytes.

    What was freed, and kept by the C library for later, is given back before, where that is glibc.
    """
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")
