from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from benchmarks import threads as benchmark
from benchmarks.common.results import read_csv
from benchmarks.threads import Args, busy, main
from hashgym import hashers, threads


def test_every_job_is_measured_with_one_thread_and_with_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, worth = benchmark.synthetic(6, images=300), threads.WORTH_THREADS
    hasher = hashers.make("orthohash", bits=8, hidden=4, updates=2)
    monkeypatch.setattr(benchmark, "jobs", lambda updates: {"one": (9, lambda: hasher.fit(data.features, data.labels))})
    rows = main(Args(busy=(0,), rounds=1, updates=2, out=tmp_path))
    assert [row["threads"] for row in rows] == [1, os.cpu_count()]
    assert all(row["updates_per_second"] > 0 for row in rows)
    assert worth == threads.WORTH_THREADS
    assert len(read_csv(tmp_path / "threads.csv")[1]) == len(rows)


def test_busy_processes_end_with_the_block() -> None:
    with busy(1):
        (process,) = multiprocessing.active_children()
        assert process.is_alive()
    assert not process.is_alive()
