"""kill -9 at random moments: nothing is lost, no unfinished file is read, and the result is that of an undisturbed run.

    python -m tests.reliability.kill --times 20                  # every job
    python -m tests.reliability.kill --times 3 --jobs features-pixels training-drlih

Every job is a command as a user types it. It runs once undisturbed. Then, in rounds: it is begun, killed at a moment
drawn by ``--seed`` (any time from its first file to its end, any of the files it touches, or one of the last), and run
again, with ``--resume`` where it has that, until it is done; until there were ``--times`` kills. After every kill all
that lies there is opened by our own readers, and at the end of a round everything is compared with the undisturbed run.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np

from tests.reliability import victim

# Imported once, so that a start costs little more than its work; not what starts threads (ONNX Runtime, grpc).
MODULES = ("agents.drlih", "hashgym.cli", "hashgym.gallery", "hashgym.encoders.write", "torch._dynamo", "torch.onnx")
MORE = ("agents.sb3", "agents.mch", "benchmarks.drlih", "faiss", "sklearn.datasets", "hashgym.retrieval.numba_kernels")
LIMIT = 900.0  # seconds that one start may take
LAST = 12  # events of a run that count as its last writes


@dataclass(frozen=True)
class Job:
    """A command, and how to check its results.

    Attributes:
        module: ``python -m module``.
        words: the words after it, with paths from the folder that it works in, which is beside ``inputs``' folder.
        readers: patterns of files and folders -> what opens them and raises if they are not whole.
        refused: patterns of what a reader must refuse or find whole.
        again: words that a run needs where another was stopped.
        finished: whether all is done, for commands that refuse to do it twice.
        progress: how much is done; it must never shrink.
        prepare: puts into the folder what must be there before.
        ignored: patterns of files that no two runs write alike.
        volatile: columns of CSV files that no two runs have alike.
        answers: what a folder must give besides, whatever its bytes.
        compared: in words.
    """

    module: str
    words: Sequence[str]
    readers: Mapping[str, Callable[[Path], Any]]
    refused: Mapping[str, Callable[[Path], Any]] = field(default_factory=dict)
    again: Callable[[Path], Sequence[str]] = lambda folder: ()
    finished: Callable[[Path], bool] = lambda folder: False
    progress: Callable[[Path], float] = lambda folder: 0.0
    prepare: Callable[[Path], None] = lambda folder: None
    ignored: Sequence[str] = ()
    volatile: Sequence[str] = ()
    answers: Callable[[Path], Any] = lambda folder: None
    compared: str = "all files, byte for byte"


@dataclass(frozen=True)
class Moment:
    """When to kill: ``seconds`` after the first event, or ``delay`` seconds after event ``at``."""

    seconds: float = 0.0
    at: int = 0
    delay: float = 0.0

    def __str__(self) -> str:
        return f"event {self.at} + {1000 * self.delay:.1f} ms" if self.at else f"{self.seconds:.2f} s"


@dataclass
class Report:
    """The kills and results of a job."""

    job: str
    compared: str
    kills: int = 0
    starts: int = 0
    rounds: int = 0
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Ended:
    """How a start ended."""

    killed: bool
    events: int
    span: float
    """from its first event to its end, in seconds"""
    cpu: float


def torture(
    runner: Runner, name: str, job: Job, base: Path, times: int, seed: int, say: Callable[[str], None] = print
) -> Report:
    """Kill a job ``times`` times, in as many rounds as that takes."""
    report, rng = Report(name, job.compared), np.random.default_rng([seed, *name.encode()])
    whole = _folder(job, base / name / "whole")
    undisturbed = runner.start(job, job.words, whole)
    _open(job, whole, "undisturbed", report)
    say(f"{name}: undisturbed {undisturbed.span:.1f} s, {undisturbed.cpu:.1f} s of CPU, {undisturbed.events} events")
    while report.kills < times and not report.faults:
        folder = _folder(job, base / name / f"round{report.rounds}")
        done, reached = False, 0.0
        while not done:
            moment = _draw(rng, undisturbed) if report.kills < times else None
            words = [*job.words, *job.again(folder)]
            ended = runner.start(job, words, folder, moment)
            report.starts += 1
            report.kills += ended.killed
            where = f"round {report.rounds}, {moment}"
            _open(job, folder, where, report)
            if (now := job.progress(folder)) < reached:
                report.faults.append(f"{where}: {reached} was done, {now} is left")
            reached = max(reached, now)
            done = not ended.killed or job.finished(folder)
        report.faults += [f"round {report.rounds}: {line}" for line in differences(job, whole, folder)]
        report.rounds += 1
        say(f"{name}: {report.kills} kills, {report.starts} starts, {report.rounds} rounds, {report.faults or 'sound'}")
        if not report.faults:
            shutil.rmtree(folder)
    return report


class Runner:
    """Starts commands, in processes that have imported ``modules`` already, and kills them."""

    def __init__(self, *modules: str) -> None:
        command = [sys.executable, "-c", f"from tests.reliability import victim; victim.serve({modules})"]
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.server = subprocess.Popen(command, cwd=Path(__file__).parents[2], **pipes)

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *error: object) -> None:
        self.server.stdin.close()
        self.server.wait()

    def start(self, job: Job, words: Sequence[str], folder: Path, moment: Moment | None = None) -> Ended:
        """Run a command once in ``folder``; kill it at ``moment``.

        Raises:
            RuntimeError: if it fails of itself, hangs, or leaves processes behind.
        """
        at, delay = (moment.at, moment.delay) if moment else (0, 0.0)
        what = {"module": job.module, "words": list(words), "folder": str(folder), "at": at, "delay": delay}
        victim.clear(folder)
        print(json.dumps(what), file=self.server.stdin, flush=True)
        pid = int(self.server.stdout.readline())
        said = Thread(target=lambda: last.extend(self.server.stdout.readline().split()))
        last: list[str] = []
        said.start()
        limit = LIMIT
        if timed := moment is not None and not at:
            while said.is_alive() and not victim.marks_of(folder)[1]:
                time.sleep(0.002)
            limit = moment.seconds
        said.join(limit)
        late = said.is_alive()
        if late:
            with contextlib.suppress(ProcessLookupError):  # it may have ended just now
                os.kill(pid, signal.SIGKILL)
            said.join()
        ended, (events, first) = time.monotonic(), victim.marks_of(folder)
        command = f"python -m {job.module} {' '.join(words)}"
        if left := _left_behind(pid):
            raise RuntimeError(f"{command} leaves processes behind: {left}")
        code = os.waitstatus_to_exitcode(int(last[0]))
        if code not in (0, -signal.SIGKILL) or (late and not timed):
            log = Path(f"{folder}.log").read_text(errors="replace")
            raise RuntimeError(f"{command} {'hangs' if late else f'ends with {code}'}:\n{log[-3000:]}")
        return Ended(code == -signal.SIGKILL, events, ended - (first or ended), float(last[1]))


def differences(job: Job, whole: Path, folder: Path) -> list[str]:
    """Differences between two folders, one line each."""

    def files(root: Path) -> dict[str, Path]:
        found = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}
        return {name: path for name, path in found.items() if not any(path.match(p) for p in job.ignored)}

    left, right = files(whole), files(folder)
    lines = [f"{name} is missing" for name in left.keys() - right.keys()]
    lines += [f"{name} is left over" for name in right.keys() - left.keys()]
    for name in left.keys() & right.keys():
        if left[name].read_bytes() != right[name].read_bytes() and not _alike(job, left[name], right[name]):
            lines.append(f"{name} differs")
    if job.answers(whole) != job.answers(folder):
        lines.append("its answers differ")
    return sorted(lines)


def _alike(job: Job, a: Path, b: Path) -> bool:
    """Whether two files with different bytes have equal content."""
    if a.suffix == ".pt":
        return _same(_torch(a), _torch(b))
    if a.suffix == ".csv" and job.volatile:
        return _rows(a, job.volatile) == _rows(b, job.volatile)
    return False


def _same(a: Any, b: Any) -> bool:
    """Whether nested contents of checkpoints are equal, tensors bit by bit."""
    import torch

    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
    return a == b or (a != a and b != b)


def _torch(path: Path) -> dict[str, Any]:
    from agents import checkpoint

    return checkpoint.load(path)


def _rows(path: Path, volatile: Sequence[str]) -> list[tuple[tuple[str, str], ...]]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return sorted(tuple((key, value) for key, value in row.items() if key not in volatile) for row in rows)


def _folder(job: Job, folder: Path) -> Path:
    folder.mkdir(parents=True)
    job.prepare(folder)
    return folder


def _draw(rng: np.random.Generator, undisturbed: Ended) -> Moment:
    events, delay = undisturbed.events, float(rng.choice([0, rng.uniform(0, 0.004)]))
    kind = rng.integers(3)
    if kind == 0:
        return Moment(seconds=float(rng.uniform(0, undisturbed.span)))
    if kind == 1:
        return Moment(at=int(rng.integers(1, events + 1)), delay=delay)
    return Moment(at=int(rng.integers(max(1, events - LAST), events + 1)), delay=delay)


def _open(job: Job, folder: Path, where: str, report: Report) -> None:
    """Open every result in the folder with its reader."""
    for read, path, may_refuse in [
        *((read, path, False) for pattern, read in job.readers.items() for path in folder.glob(pattern)),
        *((read, path, True) for pattern, read in job.refused.items() for path in folder.glob(pattern)),
    ]:
        try:
            read(path)
        except Exception as error:  # noqa: PERF203
            if not (may_refuse and isinstance(error, ValueError)):
                report.faults.append(f"{where}: {path.name} is there and not whole: {type(error).__name__}: {error}")


def _left_behind(session: int | None, patience: float = 20.0) -> list[str]:
    """Processes of a session that do not end by themselves; they are killed."""
    deadline = time.monotonic() + patience
    while left := list(_members(session)):
        if time.monotonic() > deadline:
            for pid, _ in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return [name for _, name in left]
        time.sleep(0.05)
    return []


def _members(session: int | None) -> Iterator[tuple[int, str]]:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                words = stat.with_name("cmdline").read_bytes().replace(b"\0", b" ")
                yield int(stat.parent.name), words.decode(errors="replace")[:200]


def main(words: Sequence[str] | None = None) -> int:
    """Test the jobs and print a table; return the number of jobs with faults."""
    from rich.console import Console
    from rich.table import Table

    from tests.reliability.jobs import jobs, make_inputs

    known = jobs(large=True)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20, help="kills of every job")
    parser.add_argument("--seed", type=int, default=0, help="draws the moments")
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder by default")
    names = {"nargs": "+", "choices": list(known), "default": list(known), "metavar": "JOB"}
    parser.add_argument("--jobs", **names, help=", ".join(known))
    args = parser.parse_args(words)
    console, reports = Console(highlight=False), []
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a run's last digits may depend on it

    def say(line: str) -> None:
        console.print(f"{time.strftime('%H:%M:%S')} {line}", markup=False)

    with contextlib.ExitStack() as stack:
        base = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hashgym-kill-")))
        make_inputs(base.resolve() / "inputs", large=True)
        runner = stack.enter_context(Runner(*MODULES, *MORE))
        for name in args.jobs:
            try:
                reports.append(torture(runner, name, known[name], base.resolve(), args.times, args.seed, say))
            except RuntimeError as error:  # noqa: PERF203
                reports.append(Report(name, known[name].compared, faults=[str(error)]))
                say(str(error))
    table = Table("job", "kills", "starts", "rounds", "compared", "outcome", title="kill -9")
    for report in reports:
        outcome = "; ".join(report.faults) or "equal"
        table.add_row(report.job, *map(str, (report.kills, report.starts, report.rounds)), report.compared, outcome)
    console.print(table)
    return sum(bool(report.faults) for report in reports)


if __name__ == "__main__":
    sys.exit(min(main(), 1))
