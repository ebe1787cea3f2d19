"""Locks keep other processes and threads out, and end with their process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from hashgym.data import DataError
from hashgym.storage.locks import lock_folder

HOLDER = """
import sys
from hashgym.storage.locks import lock_folder
with lock_folder(sys.argv[1], "", file=sys.argv[2] or None):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("file", [None, ".lock"])
def test_a_folder_is_locked_by_one_process_and_free_when_that_is_killed(tmp_path: Path, file: str | None) -> None:
    words = [sys.executable, "-c", HOLDER, str(tmp_path), file or ""]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        with pytest.raises(DataError, match="it is busy"), lock_folder(tmp_path, "it is busy", file=file):
            pass
        os.kill(process.pid, signal.SIGKILL)
    with lock_folder(tmp_path, "it is busy", file=file):
        assert [path.name for path in tmp_path.iterdir()] == ([file] if file else [])


def test_a_lock_on_a_file_is_of_one_thread_which_may_repeat_it(tmp_path: Path) -> None:
    def lock() -> AbstractContextManager[None]:
        return lock_folder(tmp_path, "it is busy", file=".lock")

    errors: list[str] = []

    def try_lock() -> None:
        try:
            with lock():
                errors.append("")
        except DataError as error:
            errors.append(str(error))

    def in_another_thread() -> str:
        thread = threading.Thread(target=try_lock)
        thread.start()
        thread.join()
        return errors.pop()

    with lock():
        with lock():
            assert in_another_thread() == "it is busy"
        assert in_another_thread() == "it is busy"
    assert in_another_thread() == ""


def test_a_foreign_file_is_not_used_as_a_lock(tmp_path: Path) -> None:
    """Locking would empty it."""
    (tmp_path / ".lock").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / ".lock")
    (tmp_path / "folder").mkdir()
    for name in (".lock", "link", "folder"):
        with pytest.raises(DataError, match=f"{name} was not written by hashgym"), lock_folder(tmp_path, "", file=name):
            pass
    assert (tmp_path / ".lock").read_text() == "mine"
