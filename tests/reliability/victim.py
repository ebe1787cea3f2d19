"""Run commands in processes that are killed at a chosen moment.

:func:`serve` imports modules, and then for every line of JSON on its standard input forks a process that runs a
command; it says that process's number, and when it has ended its wait status.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import runpy
import signal
import struct
import sys
import threading
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

TOUCHES = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate"}
MARKS = struct.Struct("qd")  # events so far, and when the first one was (time.monotonic)


def serve(modules: Sequence[str]) -> None:
    """Run commands one after another."""
    for module in modules:
        import_module(module)
    gc.freeze()  # so that forked processes do not scan what they share
    for line in sys.stdin:
        if (pid := os.fork()) == 0:
            run(**json.loads(line))
            return
        print(pid, flush=True)
        _, status, usage = os.wait4(pid, 0)
        print(status, usage.ru_utime + usage.ru_stime, flush=True)


def run(module: str, words: Sequence[str], folder: str, at: int, delay: float) -> None:
    """``python -m module words`` with ``folder`` as its working directory.

    Beside the folder lie its output, FOLDER.log, and FOLDER.marks. Every file or folder below ``folder`` that is
    opened, made, renamed or removed is an event: ``delay`` seconds after event ``at`` (0 for never) the process kills
    itself with SIGKILL.
    """
    os.setsid()  # its children are known by the session
    log = os.open(f"{folder}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for stream, descriptor in ((0, nothing), (1, log), (2, log)):
        os.dup2(descriptor, stream)
    with open(f"{folder}.marks", "r+b") as file:
        marks = mmap.mmap(file.fileno(), MARKS.size)  # outlives the process
    os.chdir(folder)
    inside = os.path.join(os.getcwd(), "")

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in TOUCHES or not isinstance(path := arguments[0], (str, bytes, os.PathLike)):
            return
        if os.path.abspath(os.fsdecode(path)).startswith(inside):
            count, first = MARKS.unpack(marks[:])
            marks[:] = MARKS.pack(count + 1, first or time.monotonic())
            if count + 1 == at:
                die(delay)

    sys.addaudithook(watch)
    sys.argv = [module, *words]
    runpy._run_module_as_main(module)  # as python -m does it: pools of processes look for what is in __main__


def die(delay: float) -> None:
    """Kill this process now, or during its next write."""
    if delay:
        threading.Thread(target=lambda: (time.sleep(delay), die(0)), daemon=True).start()
    else:
        os.kill(os.getpid(), signal.SIGKILL)


def marks_of(folder: Path) -> tuple[int, float]:
    """Events of the last run in ``folder``, and when the first one was; 0 for not yet."""
    return MARKS.unpack(Path(f"{folder}.marks").read_bytes())


def clear(folder: Path) -> None:
    """Make the marks of a run that is about to begin."""
    Path(f"{folder}.marks").write_bytes(MARKS.pack(0, 0.0))
