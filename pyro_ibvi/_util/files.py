"""Files that are replaced as a whole."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import uuid
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
        TypeError: If it is no path.
        FileNotFoundError: If its folder does not exist.
        ValueError: If it is a folder itself, a device or a pipe.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f'Expected the path of a file, such as "run.pt", got {path!r}.')
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"There is no folder {path.parent} for the file {path.name}: create it first."
        )
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a file in it.")
    return _replaceable(path)


def readable_path(path: str | os.PathLike[str], what: str) -> Path:
    """A path of a file that is there.

    Args:
        path: The path.
        what: What the file should be, for messages.

    Returns:
        The path.

    Raises:
        TypeError: If it is no path.
        FileNotFoundError: If there is no such file.
        ValueError: If it is a folder.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"Expected the path of a {what}, got {path!r}.")
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name the {what} in it.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no {what} {path}.")
    return path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file or folder to write to, which takes the place of another one once it is complete.

    A reader, and whoever comes after a crash, finds the old file or the new one, never a part.
    The path to write to is of this call alone, so that of two writers the last one wins and no
    file is made of both. What a process that was killed left half written is removed. A symbolic
    link stays one, and what it points to is replaced.

    Args:
        path: The file to replace.

    Yields:
        A path in the same folder.

    Raises:
        OSError: If it cannot be written, with the path and the reason.
        ValueError: If it is a device or a pipe.
    """
    path = _replaceable(path)
    _remove_parts_of_the_dead(path)
    part = path.with_name(f"{_part_prefix(path)}{os.getpid()}-{uuid.uuid4().hex[:8]}.part")
    try:
        yield part
        if part.is_file():
            with part.open("r+b") as file:
                os.fsync(file.fileno())  # or a power failure could leave a name without content
        part.replace(path)
    except Exception as error:
        refusal = error if isinstance(error, OSError) else _refusal(part)
        _remove(part)
        if refusal is None:
            raise
        reason = refusal.strerror or str(refusal)
        kept = " The file that was there is as it was." if path.exists() else ""
        message = f"{path} could not be written: {reason}.{kept}"
        raise OSError(*filter(None, (refusal.errno,)), message) from error
    except BaseException:
        _remove(part)
        raise


def _replaceable(path: Path) -> Path:
    """What a file would take the place of: neither a link nor, unseen, a device of the system."""
    if path.is_symlink():
        path = path.resolve()
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError(
            f"{path} is a device or a pipe, which a file would take the place of: name a file."
        )
    return path


def _refusal(part: Path) -> OSError | None:
    """Why the system takes no more, which writers in other languages keep to themselves."""
    try:
        with (part / "more" if part.is_dir() else part).open("ab") as file:
            file.write(bytes(2**20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error
    return None


def _part_prefix(path: Path) -> str:
    return f".{path.name}.{platform.node()}-"


def _remove(part: Path) -> None:
    if part.is_dir():
        shutil.rmtree(part)
    part.unlink(missing_ok=True)


def _remove_parts_of_the_dead(path: Path) -> None:
    if os.name != "posix":  # elsewhere the signal 0 is no question
        return
    prefix = _part_prefix(path)
    for part in path.parent.glob("*.part"):
        owner = part.name.removeprefix(prefix).partition("-")[0]
        if part.name.startswith(prefix) and owner.isdigit() and not _is_alive(int(owner)):
            with contextlib.suppress(OSError):
                _remove(part)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
