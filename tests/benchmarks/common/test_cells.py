"""Cells in processes and on Ray: equal outcomes, one process per cell, failures reported one by one."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks.common.cells import data_digest, run_cells, same_data
from hashgym.data import HashingDataset, cache
from hashgym.storage.ray_cluster import cluster

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Cell:
    number: int
    folder: str = ""

    def __str__(self) -> str:
        return f"cell {self.number}"


def square(cell: Cell) -> tuple[int, int]:
    """The square of a cell's number, and the process that found it."""
    if cell.number == 2:
        raise ValueError("two is [not] allowed")
    return cell.number**2, os.getpid()


def surroundings(cell: Cell) -> tuple[str, str | None]:
    return os.getcwd(), os.environ.get("OMP_NUM_THREADS")


def killed_once(cell: Cell) -> int:
    """End this process the first time, like a failing machine."""
    try:
        (Path(cell.folder) / "tried").mkdir()
    except FileExistsError:
        return cell.number
    os.kill(os.getpid(), signal.SIGKILL)
    return -1


def slow(cell: Cell) -> int:
    """Write a file, with a delay."""
    time.sleep(0.5 if cell.number else 0.0)
    (Path(cell.folder) / str(cell.number)).touch()
    return cell.number


@pytest.fixture(scope="module")
def ray():
    pytest.importorskip("ray")
    with cluster(2) as module:
        yield module


def ray_is_connected() -> bool:
    import ray

    return ray.is_initialized()


def collect(cells, work, **options):
    outcomes, text = [], StringIO()

    def finish(outcome):
        outcomes.append(outcome)
        return "finished"

    failed = run_cells(cells, work, finish, jobs=2, console=Console(file=text, width=200), **options)
    return outcomes, failed, text.getvalue()


@pytest.mark.parametrize("executor", ["processes", "ray"])
def test_every_cell_has_its_own_process_and_a_failure_does_not_stop_the_others(executor, request):
    if executor == "ray":
        request.getfixturevalue("ray")
    outcomes, failed, text = collect([Cell(i) for i in range(1, 5)], square, executor=executor)
    assert sorted(number for number, _ in outcomes) == [1, 9, 16]
    assert len({process for _, process in outcomes} | {os.getpid()}) == 4
    assert failed == 1
    assert "cell 2 failed: ValueError: two is [not] allowed\n" in text
    assert "cell 4: finished" in text
    assert executor == "processes" or ray_is_connected()  # the fixture closes its own connection


def test_tasks_run_in_this_folder_with_their_share_of_the_cores(ray, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcomes, failed, _ = collect([Cell(0)], surroundings, executor="ray")
    assert (outcomes, failed) == ([(str(tmp_path), os.environ["OMP_NUM_THREADS"])], 0)


def test_a_cell_whose_process_is_lost_is_run_again(ray, tmp_path):
    outcomes, failed, _ = collect([Cell(7, str(tmp_path))], killed_once, executor="ray")
    assert (outcomes, failed) == ([7], 0)


def test_waiting_cells_are_cancelled_when_the_benchmark_stops(ray, tmp_path):
    def interrupt(outcome):
        raise KeyboardInterrupt

    cells = [Cell(i, str(tmp_path)) for i in range(8)]
    with pytest.raises(KeyboardInterrupt):
        run_cells(cells, slow, interrupt, executor="ray", console=Console(file=StringIO()))
    time.sleep(1.5)
    assert len(list(tmp_path.iterdir())) <= 2  # the first, and one that may have ended meanwhile


def test_unknown_executors_are_rejected_before_any_work(monkeypatch):
    with pytest.raises(ValueError, match="unknown executor 'slurm': choose one of processes, ray"):
        collect([Cell(1)], square, executor="slurm")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'hashgym\[ray\]'"):
        collect([Cell(1)], square, executor="ray")


def test_nothing_to_do_starts_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert collect([], square, executor="ray") == ([], 0, "")


def test_a_killed_benchmark_keeps_finished_cells_and_leaves_no_process_behind(tmp_path):
    """Runs as a separate program, whose functions are those of ``__main__``; killed after the first cell."""
    pytest.importorskip("ray")
    (tmp_path / "program.py").write_text(
        textwrap.dedent("""
        import os, time
        from pathlib import Path
        from rich.console import Console
        from benchmarks.common.cells import run_cells

        def work(number):
            time.sleep(600 * number)
            return number, os.getppid()

        def finish(outcome):
            print("finished", *outcome, flush=True)
            return ""

        if __name__ == "__main__":
            run_cells([0, 1, 2], work, finish, executor="ray", console=Console(quiet=True))
        """)
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    program = subprocess.Popen(
        [sys.executable, "program.py"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    )
    _, number, parent = program.stdout.readline().split()
    assert number == "0"
    program.kill()
    program.wait()
    program.stdout.close()
    for _ in range(300):
        if not alive(int(parent)):
            return
        time.sleep(0.1)
    raise AssertionError("Ray outlived the benchmark")


def test_a_running_cell_ends_with_a_killed_benchmark(tmp_path):
    (tmp_path / "program.py").write_text(
        textwrap.dedent("""
        import os, time
        from rich.console import Console
        from benchmarks.common.cells import run_cells

        def work(cell):
            print(os.getpid(), flush=True)
            time.sleep(600)

        if __name__ == "__main__":
            run_cells([1], work, str, console=Console(quiet=True))
        """)
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    program = subprocess.Popen(
        [sys.executable, "program.py"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    )
    worker = int(program.stdout.readline())
    assert alive(worker)
    program.kill()
    program.wait()
    program.stdout.close()
    for _ in range(300):
        if not alive(worker):
            return
        time.sleep(0.1)
    raise AssertionError("a cell outlived the benchmark")


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_a_digest_of_data_follows_the_arrays_and_the_split(tmp_path):
    """Extracted again, under another provenance, the same arrays are the same data; another split is not."""
    rng = np.random.default_rng(0)
    features, labels = rng.standard_normal((30, 4), np.float32), np.eye(3, dtype=np.uint8)[np.arange(30) % 3]
    made = HashingDataset.from_arrays(features, labels, queries=5, train=10)
    variants = {
        "first": made,
        "again": dataclasses.replace(made, provenance={"features": "extracted by another version"}),
        "split": dataclasses.replace(made, train=made.train[1:]),
        "labels": dataclasses.replace(made, labels=labels[:, [1, 0, 2]]),
        "arrays": dataclasses.replace(made, features=features + 1),
    }
    digests = {}
    for name, dataset in variants.items():
        cache.save(dataset, tmp_path / name)
        opened = cache.open_cache(tmp_path / name)
        digests[name] = data_digest(opened)
        assert digests[name] == data_digest(opened.standardized())
    arrays = {name: digest.split("+")[0] for name, digest in digests.items()}
    assert arrays["first"] == arrays["again"]
    assert len(set(arrays.values())) == 4
    assert same_data(digests["first"], digests["again"])
    assert digests["first"] != digests["again"]
    for name in ("split", "labels", "arrays"):  # the last two under the same provenance
        assert not same_data(digests["first"], digests[name])
    former = digests["first"].split("+")[1]  # a row of an earlier version
    assert same_data(digests["first"], former)
    assert not same_data(digests["again"], former)
    assert not same_data(digests["first"], digests["first"].replace("+", "x+", 1))  # nothing says of what they are
    assert "+" not in data_digest(made)  # of arrays in memory the provenance is all that is known


def test_features_that_another_processor_rounds_differently_are_the_same_data(tmp_path):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (30, 4, 4, 3), np.uint8)
    features, labels = rng.standard_normal((30, 4), np.float32), np.eye(3, dtype=np.uint8)[np.arange(30) % 3]
    made = HashingDataset.from_arrays(features, labels, queries=5, train=10)
    variants = {
        "here": dataclasses.replace(made, thumbnails=pictures),
        "there": dataclasses.replace(made, features=features * np.float32(1 + 1e-6), thumbnails=pictures),
        "other pictures": dataclasses.replace(made, features=features + 1, thumbnails=pictures[::-1]),
        "other network": dataclasses.replace(made, features=-features, thumbnails=pictures, provenance={"a": "b"}),
    }
    digests = {}
    for name, dataset in variants.items():
        cache.save(dataset, tmp_path / name)
        digests[name] = data_digest(cache.open_cache(tmp_path / name))
    assert digests["here"] != digests["there"]
    assert [same_data(digests["here"], digests[name]) for name in variants] == [True, True, False, False]
