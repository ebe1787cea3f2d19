"""Atomic writes: a file is the complete old or the complete new one, whatever happens to its writer."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hashgym.data import DataError
from hashgym.storage.atomic import DiskFullError, atomic_write, explain_full_disk, full_disk_error, write_text
from tests.conftest import file_limit

WRITER = """
import sys
from hashgym.storage.atomic import atomic_write
with atomic_write(sys.argv[1], new=sys.argv[2] == "new") as file:
    file.write(b"half of it")
    file.flush()
    print("writing", flush=True)
    sys.stdin.read()
"""


@contextmanager
def writer(path: Path, mode: str = "any") -> Iterator[subprocess.Popen]:
    """Another process in the middle of writing ``path``; it ends when its input does."""
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path), mode], **pipes) as process:
        assert process.stdout.readline() == b"writing\n"
        yield process
        process.stdin.close()
        process.wait()


def temporaries(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.suffix == ".hashgym-tmp"]


def test_a_file_is_replaced_at_the_end_and_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a [/b]\n.txt"
    write_text(path, "old\r\n")
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old\r\n"
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_an_error_or_an_interrupt_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail(error: type[BaseException]) -> None:
        with atomic_write(path) as file:
            file.write(b"new")
            raise error

    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error):
            fail(error)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_an_error_leaves_no_folder_that_was_made_for_the_file(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    with pytest.raises(KeyError), atomic_write(tmp_path / "own" / "a" / "b" / "file"):
        raise KeyError
    assert list(tmp_path.rglob("*")) == [tmp_path / "own"]
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "own" / "a" / "b" / "file"):
        (tmp_path / "own" / "a" / "other").touch() or (tmp_path / "missing").read_bytes()
    assert {path.name for path in tmp_path.rglob("*")} == {"own", "a", "other"}


def test_the_file_is_synced_before_it_is_renamed_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def spy(name: str, done: Callable[..., Any], what: Callable[..., str]) -> None:
        monkeypatch.setattr(os, name, lambda *a: (events.append(what(*a)), done(*a))[1])

    spy("fsync", os.fsync, lambda d: f"sync {'folder' if stat.S_ISDIR(os.fstat(d).st_mode) else os.fstat(d).st_size}")
    spy("replace", os.replace, lambda a, b: "rename")
    write_text(tmp_path / "a", "12345")
    assert events == ["sync 5", "rename", "sync folder"]


def test_permissions_are_those_of_an_ordinary_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_text(tmp_path / "ours", "")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("name", ["x" * 255, "ü" * 127, "."])
def test_names_of_any_length(tmp_path: Path, name: str) -> None:
    path = tmp_path / name if name != "." else tmp_path / ".a"
    write_text(path, "content")
    assert path.read_text() == "content"


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with writer(path) as process:
        os.kill(process.pid, signal.SIGKILL)
    assert path.read_text() == "old"
    assert len(temporaries(tmp_path)) == 1
    write_text(tmp_path / "b.txt", "of another file")
    assert len(temporaries(tmp_path)) == 1
    write_text(path, "new")
    assert path.read_text() == "new"
    assert temporaries(tmp_path) == []


def test_two_writers_do_not_harm_each_other(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with writer(path):
        write_text(path, "quicker")
        assert path.read_text() == "quicker"
        assert len(temporaries(tmp_path)) == 1
    assert path.read_text() == "half of it"
    assert temporaries(tmp_path) == []


def test_a_new_file_has_one_writer(tmp_path: Path) -> None:
    path = tmp_path / "words.npy"
    with writer(path, "new") as process:
        with pytest.raises(DataError, match=r"another process is writing .*words\.npy"), atomic_write(path, new=True):
            pytest.fail("this is not reached")
        os.kill(process.pid, signal.SIGKILL)
    with atomic_write(path, new=True) as file:  # a killed one does not count
        file.write(b"done")
    assert [entry.name for entry in tmp_path.iterdir()] == ["words.npy"]


def test_a_new_file_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("the user's")
    with pytest.raises(DataError, match="exists already"), atomic_write(path, new=True):
        pytest.fail("this is not reached")
    path.unlink()
    with pytest.raises(DataError, match="was created in the meantime"), atomic_write(path, new=True):
        path.write_text("the user's")
    assert path.read_text() == "the user's"
    assert temporaries(tmp_path) == []


def test_files_of_others_stay(tmp_path: Path) -> None:
    names = [".a.tmp", ".a.new", "a.tmp", "a.new", ".a.123.tmp", ".a.x.hashgym-tmp"]
    for name in names:
        (tmp_path / name).write_text("the user's")
    write_text(tmp_path / "a", "")
    assert all((tmp_path / name).read_text() == "the user's" for name in names)


def fill_bytes(file: Any) -> None:
    file.write(bytes(100_000))


def fill_array(file: Any) -> None:
    np.save(file, np.zeros(100_000))


def fill_arrays(file: Any) -> None:
    np.savez(file, a=np.zeros(100_000))


def fill_tensors(file: Any) -> None:
    import torch

    torch.save({"a": torch.zeros(100_000)}, file)


@pytest.mark.parametrize("fill", [fill_bytes, fill_array, fill_arrays, fill_tensors])
def test_the_error_of_a_full_disk_names_the_remedy(tmp_path: Path, fill: Callable[[Any], None]) -> None:
    path = tmp_path / "a"
    write_text(path, "old")
    with file_limit(50_000), pytest.raises(DiskFullError) as caught, atomic_write(path) as file:
        fill(file)
    why = "no space left on device" if fill is fill_array else "file too large"  # NumPy does not say which
    assert str(caught.value) == (
        f"{path} cannot be written: {why}. What was finished before is unchanged. "
        "Free space there, or raise the quota or limit, and run the same command again"
    )
    assert caught.value.errno in (errno.EFBIG, errno.ENOSPC)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_only_a_full_disk_is_explained() -> None:
    with pytest.raises(DiskFullError, match="out cannot be written: no space left"), explain_full_disk("out"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(DiskFullError, match="index cannot be written: no space left"), explain_full_disk("index"):
        raise RuntimeError("Error in FileIOWriter: write error in index: 1 != 2 (No space left on device)")
    for error in (OSError(errno.EACCES, "Permission denied"), ValueError("12 requested")):
        with pytest.raises(type(error)) as caught, explain_full_disk("out"):
            raise error
        assert caught.value is error


def test_an_error_that_is_its_own_cause_is_none_of_a_full_disk():
    """As those of gRPC are."""
    error = ValueError("no answer")
    error.__cause__ = error
    assert full_disk_error(error) is None
    with pytest.raises(ValueError, match="no answer"), explain_full_disk("codes"):
        raise error
