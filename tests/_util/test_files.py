"""Files that are replaced as a whole, whoever writes them and whatever stops it."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import xarray
from safetensors.torch import save_file

from pyro_ibvi._util.files import checked_path, whole_file
from tests.full_disk import full_disk


def dead_process():
    run = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"],
        check=True,
        capture_output=True,
        text=True,
    )
    return int(run.stdout)


def test_two_writers_leave_the_file_of_one_of_them(tmp_path):
    path = tmp_path / "run.pt"
    with whole_file(path) as first, whole_file(path) as second:
        first.write_text("first half, ")
        second.write_text("the second's")
        with first.open("a") as file:
            file.write("first end")
    assert path.read_text() == "first half, first end"  # the outer one came last
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_dead_process_left_is_removed_and_no_more(tmp_path):
    path = tmp_path / "run.pt"
    with whole_file(path) as part:
        part.write_text("1")
        dead = part.with_name(part.name.replace(f"-{os.getpid()}-", f"-{dead_process()}-"))
    dead.write_text("half")
    other = tmp_path / "run.pt.part"
    other.write_text("someone's own")
    with whole_file(path) as alive, whole_file(path) as part:
        part.write_text("2")
        assert not dead.exists()
        alive.write_text("3")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.pt", "run.pt.part"]


def test_a_failure_tells_path_and_reason_and_keeps_the_file(tmp_path):
    path = tmp_path / "run.pt"
    path.write_text("old")

    def write():
        with whole_file(path) as part:
            part.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(
        OSError,
        match=r"run\.pt could not be written: No space left on device\. "
        r"The file that was there is as it was",
    ) as caught:
        write()
    assert caught.value.errno == 28
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def write_tensors(path):
    save_file({"x": torch.zeros(2**16)}, path)


def write_pickled(path):
    torch.save({"x": torch.zeros(2**16)}, path)


def write_zarr(path):
    pytest.importorskip("zarr")
    xarray.Dataset({"x": ("row", np.random.rand(2**16))}).to_zarr(path, zarr_format=2)


@pytest.mark.parametrize("write", [write_tensors, write_pickled, write_zarr])
def test_a_full_disk_is_told_whoever_writes(tmp_path, write):
    """Libraries in other languages have errors of their own for it, or none with the reason."""
    path = tmp_path / "file"
    path.write_text("old")
    with (
        pytest.raises(OSError, match=r"file could not be written: File too large\. The file that"),
        full_disk(2**17),
        whole_file(path) as part,
    ):
        write(part)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_errors_of_another_kind_are_their_own(tmp_path):
    def write():
        with whole_file(tmp_path / "file") as part:
            part.write_text("half")
            raise KeyError("no tensor")

    with pytest.raises(KeyError, match="no tensor"):
        write()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_not_replaced(tmp_path):
    """Nor is a device: root's file in the place of /dev/null would stop the system."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(ValueError, match=r"pipe is a device or a pipe, .*: name a file"):
        checked_path(path)
    with pytest.raises(ValueError, match="is a device or a pipe"), whole_file(path):
        pass
    assert path.is_fifo()
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_one(tmp_path):
    target, link = tmp_path / "disk" / "run.pt", tmp_path / "latest.pt"
    target.parent.mkdir()
    link.symlink_to(target)
    for content in ("first", "second"):
        with whole_file(checked_path(link)) as part:
            part.write_text(content)
        assert link.is_symlink()
        assert target.read_text() == content
    assert sorted(tmp_path.iterdir()) == [target.parent, link]
    target.unlink()
    target.parent.rmdir()
    with pytest.raises(OSError, match="could not be written"), whole_file(link) as part:
        part.write_text("third")


def test_a_folder_appears_as_a_whole(tmp_path):
    path = tmp_path / "posterior.zarr"

    def write(stop):
        with whole_file(path) as part:
            part.mkdir()
            (part / "0").write_text("chunk")
            if stop:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(stop=True)
    assert list(tmp_path.iterdir()) == []
    write(stop=False)
    assert [p.name for p in path.iterdir()] == ["0"]
