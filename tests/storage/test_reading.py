"""Files that would take more memory than they should."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from hashgym.data import DataError
from hashgym.storage.reading import read_arrays, read_bounded
from tests.reliability.damage import bounded


def test_what_was_written_is_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(3), y=np.eye(2))
    assert {key: array.tolist() for key, array in read_arrays(tmp_path / "a.npz").items()} == {
        "x": [0, 1, 2],
        "y": [[1, 0], [0, 1]],
    }


def test_a_giant_file_is_rejected_unread(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(3))
    os.truncate(tmp_path / "a.npz", 64 << 30)
    with pytest.raises(DataError, match="at most 2,147,483,648 are read"):
        read_arrays(tmp_path / "a.npz")


def test_content_larger_than_the_file_is_rejected(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(10_000_000))
    with pytest.raises(DataError, match="its content is compressed"):
        read_arrays(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:  # many names for the same bytes
        archive.writestr("x.npy", bytes(1000))
        archive.filelist.extend([archive.filelist[0]] * 9)
    with pytest.raises(DataError, match="its content is larger than the file"):
        read_arrays(tmp_path / "b.npz")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.npz")
    with pytest.raises(DataError, match="not a regular file"):
        read_arrays(tmp_path / "a.npz")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
def test_files_read_at_once_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"12345")
    assert read_bounded(tmp_path / "list.txt", 5) == b"12345"
    with pytest.raises(DataError, match=r"list\.txt has more than 4 bytes"):
        read_bounded(tmp_path / "list.txt", 4)
    os.truncate(tmp_path / "list.txt", 40_000_000_000)
    with bounded(octets=1 << 26), pytest.raises(DataError, match=r"list\.txt has more than 1,073,741,824 bytes"):
        read_bounded(tmp_path / "list.txt")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="regular"):
        read_bounded(tmp_path / "pipe")
