"""A disk that is full, as far as a process can make one."""

import contextlib

import pytest


@contextlib.contextmanager
def full_disk(num_bytes):
    """No file grows beyond so many bytes; whoever writes more hears of it from the system."""
    resource = pytest.importorskip("resource", reason="needs a limit on the size of files")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
