"""Files that are replaced as a whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def checked_path(path: str | os.PathLike[str]) -> Path:
    """A path at which a file can be written.

    Args:
        path: The path.

    Returns:
        The path.

    Raises:
        FileNotFoundError: If its folder does not exist.
        ValueError: If it is a folder itself.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"There is no folder {path.parent} for the file {path.name}: create it first."
        )
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a file in it.")
    return path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write to, which takes the place of another one once it is complete.

    A reader, and whoever comes after a crash, finds the old file or the new one, never a part.

    Args:
        path: The file to replace.

    Yields:
        A path in the same folder.
    """
    part = path.with_name(path.name + ".part")
    try:
        yield part
        with part.open("r+b") as file:
            os.fsync(file.fileno())  # or a power failure could leave the new name without content
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
