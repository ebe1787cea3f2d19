"""The folder of a job: whatever happens to it, the result is right, or an error."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hashgym.data import DataError
from hashgym.storage import job_store as store
from hashgym.storage import owned
from hashgym.storage.atomic import DiskFullError
from hashgym.storage.job_store import Arrays, JobStore
from tests.conftest import file_limit

ARRAYS: Arrays = {"features": ((5,), "float32"), "thumbnails": ((2, 2), "uint8")}
N, BATCH, JOB = 20, 4, {"dataset": "twenty", "images": 20}
BATCHES = [np.arange(start, start + BATCH) for start in range(0, N, BATCH)]
BAD = 6


def values(key: str, rows: NDArray[np.int64]) -> NDArray[Any]:
    shape, kind = ARRAYS[key]
    return np.random.default_rng(3).integers(1, 200, (N, *shape)).astype(kind)[rows]


def make(folder: Path) -> JobStore:
    return JobStore(folder, N, ARRAYS, JOB)


def work(job: JobStore, batches: int = len(BATCHES), bad: tuple[int, ...] = ()) -> list[int]:
    """Do the unfinished ones of the first batches, and return them."""
    done = [b for b in range(batches) if b not in job.finished]
    for b in done:
        good = np.setdiff1d(BATCHES[b], bad)
        for key in ARRAYS:
            job.write(key, good, values(key, good))
        job.finish(b, [[int(i), "damaged"] for i in np.intersect1d(BATCHES[b], bad)])
    return done


def rows_of(folder: Path) -> dict[str, NDArray[Any]]:
    return {key: np.load(folder / f"{key}.npy") for key in ARRAYS}


def flip(file: Path, byte: int, bit: int = 0) -> None:
    content = bytearray(file.read_bytes())
    content[byte] ^= 1 << bit
    file.write_bytes(content)


def test_a_flipped_bit_in_a_finished_row_is_found_and_the_batch_done_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rng, folder = np.random.default_rng(0), tmp_path / "out.partial"
    with make(folder) as job:
        work(job, 3)
        offsets = dict(job.offsets)
    for key in 10 * list(ARRAYS):
        row = rng.integers(3 * BATCH)
        size = values(key, np.arange(1)).nbytes
        byte = int(offsets[key] + row * size + rng.integers(size))
        caplog.clear()
        flip(folder / f"{key}.npy", byte, int(rng.integers(8)))
        with make(folder) as job:
            assert "1 finished batches were damaged and are computed again" in caplog.text
            assert work(job, 3) == [row // BATCH]
    with make(folder) as job:
        assert work(job) == [3, 4]
    assert all(np.array_equal(rows, values(key, np.arange(N))) for key, rows in rows_of(folder).items())


def test_a_flipped_bit_in_the_journal_costs_a_batch_at_most(tmp_path: Path) -> None:
    rng, folder = np.random.default_rng(0), tmp_path / "out.partial"
    with make(folder) as job:
        work(job, 3)
    whole = (folder / "journal.jsonl").read_bytes()
    begin = whole.index(b"\n") + 1
    for byte in rng.integers(0, len(whole), 100):
        flip(folder / "journal.jsonl", byte, int(rng.integers(8)))
        if byte < begin:  # what the job is
            with pytest.raises(DataError), make(folder) as job:
                pass
        else:
            with make(folder) as job:
                assert set(job.finished) < {0, 1, 2}
        (folder / "journal.jsonl").write_bytes(whole)


def test_a_job_of_an_older_version_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "out.partial"
    with make(folder) as job:
        work(job, 3, bad=(BAD,))
    journal = folder / "journal.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    old = [{key: line[key] for key in line if key not in ("digest", "blocks")} for line in lines]
    journal.write_text("".join(f"{json.dumps(line)}\n" for line in old))
    (folder / owned.MARKER).unlink()
    with make(folder) as job:
        assert set(job.finished) == {0, 2}
        assert work(job) == [1, 3, 4]
    assert all(np.array_equal(rows, values(key, np.arange(N))) for key, rows in rows_of(folder).items())


KEPT = np.setdiff1d(np.arange(N), [BAD])


def test_rows_that_were_left_out_do_not_confuse_the_checksums(tmp_path: Path) -> None:
    folder = tmp_path / "out.partial"
    with make(folder) as job:
        work(job, bad=(BAD,))
        job.keep(KEPT)
    with make(folder) as job:  # killed between leaving out and publishing
        assert work(job) == []
        assert job.finished[1] == [[BAD, "damaged"]]
        job.keep(KEPT)
    assert all(np.array_equal(rows, values(key, KEPT)) for key, rows in rows_of(folder).items())


@pytest.mark.parametrize("compacted", [0, 1, 2])
def test_damage_after_the_last_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compacted: int) -> None:
    """Killed while rows are left out: batches can be done again until the first array is rewritten."""
    folder, compact, done = tmp_path / "out.partial", store._compact, []

    def killed(file: Path, kept: NDArray[np.int64]) -> None:
        if len(done) == compacted:
            raise KeyboardInterrupt
        compact(file, kept)
        done.append(file)

    monkeypatch.setattr(store, "_compact", killed)
    with make(folder) as job:
        work(job, bad=(BAD,))
        if compacted < len(ARRAYS):
            with pytest.raises(KeyboardInterrupt):
                job.keep(KEPT)
        else:
            job.keep(KEPT)
    monkeypatch.undo()
    flip(folder / "thumbnails.npy", -1)
    if compacted:
        with pytest.raises(DataError, match="is damaged in finished rows: remove it and"), make(folder):
            pass
        return
    with make(folder) as job:
        assert work(job, bad=(BAD,)) == [1, 4]  # the unreadable image is tried again
        job.keep(KEPT)
    with make(folder) as job:
        assert work(job) == []
    assert all(np.array_equal(rows, values(key, KEPT)) for key, rows in rows_of(folder).items())


def test_arrays_of_another_length_are_rejected(tmp_path: Path) -> None:
    """A journal that lost its last line would let rows be written where they do not belong."""
    folder = tmp_path / "out.partial"
    with make(folder) as job:
        work(job, bad=(BAD,))
        job.keep(KEPT)
    lines = (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "journal.jsonl").write_bytes(b"".join(lines[:-1]))
    with pytest.raises(DataError, match=r"features\.npy is damaged"), make(folder):
        pass


def test_the_folder_keeps_its_marker_until_it_is_published(tmp_path: Path) -> None:
    with make(tmp_path / "out.partial") as job:
        assert owned.is_owned(tmp_path / "out.partial")
        work(job)
        job.publish(tmp_path / "out", {}, lambda folder: None)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".hashgym", "features.npy", "thumbnails.npy"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_only_our_journal_is_removed(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text("a diary")
    store.remove_journal(tmp_path)
    assert (tmp_path / "journal.jsonl").read_text() == "a diary"


SETUP = """
import os, sys
from hashgym.storage.job_store import JobStore
os.posix_fallocate = lambda *a: (print("begun", flush=True), sys.stdin.read())
with JobStore(__import__("pathlib").Path(sys.argv[1]), 20, {"features": ((5,), "float32")}, {"images": 20}):
    pass
"""


def test_a_folder_that_was_being_set_up_is_removed_if_its_process_was_killed(tmp_path: Path) -> None:
    folder = tmp_path / "out.partial"
    others = [tmp_path / f".out.partial.{name}" for name in ("new", "1.new", "photos")]
    for other in others:
        other.mkdir()
        (other / "photo.jpg").write_text("precious")
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", SETUP, str(folder)], **pipes) as process:
        assert process.stdout.readline() == b"begun\n"
        (setup,) = set(tmp_path.iterdir()) - set(others)
        with make(folder):  # the folder of a running process is kept
            assert setup.exists()
        os.kill(process.pid, signal.SIGKILL)
    folder.rename(tmp_path / "elsewhere")
    with make(folder):
        assert not setup.exists()
    assert all((other / "photo.jpg").read_text() == "precious" for other in others)


def test_a_full_disk_is_reported_and_the_job_resumed_later(tmp_path: Path) -> None:
    folder = tmp_path / "out.partial"
    with make(folder) as job:
        work(job, 3)
    size = (folder / "journal.jsonl").stat().st_size
    full = pytest.raises(DiskFullError, match=r"out\.partial cannot be written")
    with full, file_limit(size + 10), make(folder) as job:
        work(job)
    with make(folder) as job:
        assert work(job) == [3, 4]


def test_a_disk_that_is_full_at_the_start_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DiskFullError, match="cannot be written"), file_limit(200), make(tmp_path / "out.partial"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_giant_journal_is_rejected_unread(tmp_path: Path) -> None:
    folder = tmp_path / "out.partial"
    with make(folder) as job:
        work(job)
    os.truncate(folder / "journal.jsonl", 64 << 30)
    with (
        pytest.raises(DataError, match=r"journal\.jsonl is damaged, or not of"),
        make(folder),
    ):
        pass


def test_a_broken_link_is_not_used_for_a_job(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("nowhere")
    with pytest.raises(DataError, match="is not a job of"), make(tmp_path / "out"):
        pass
    with make(tmp_path / "out.partial") as job:
        work(job)
        with pytest.raises(DataError, match="out was created in the meantime"):
            job.publish(tmp_path / "out", {}, lambda folder: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.partial"]


@pytest.mark.parametrize("text", ["a diary", "a diary\nwithout a last line end", '{"images": 3}\nmine'])
def test_a_foreign_journal_is_not_truncated(tmp_path: Path, text: str) -> None:
    (tmp_path / "journal.jsonl").write_text(text)
    with pytest.raises(DataError, match=r"is damaged|another, unfinished job"), make(tmp_path):
        pass
    assert (tmp_path / "journal.jsonl").read_text() == text


# -- arrays with rows of some images only ------------------------------------------------------------------------------


def subset_job(folder: Path, n: int, subset: NDArray[np.int64]) -> JobStore:
    arrays: Arrays = {"features": ((3,), "float32"), "views": ((2, 2), "float16")}
    return JobStore(folder, n, arrays, {"images": n}, subsets={"views": subset})


def row(key: str, image: int) -> NDArray[Any]:
    """What image ``image`` has in an array."""
    rng = np.random.default_rng([len(key), image])
    return rng.normal(size=3).astype(np.float32) if key == "features" else rng.normal(size=(2, 2)).astype(np.float16)


def fill(job: JobStore, batches: list[NDArray[np.int64]], subset: NDArray[np.int64], bad: set[int]) -> list[int]:
    """Do the batches that are not finished, and return them."""
    done = [b for b in range(len(batches)) if b not in job.finished]
    for b in done:
        good = np.array([i for i in batches[b].tolist() if i not in bad], np.int64)
        for key, rows in (("features", good), ("views", good[np.isin(good, subset)])):
            if len(rows):
                job.write(key, rows, np.stack([row(key, i) for i in rows.tolist()]))
        job.finish(b, [[i, "damaged"] for i in batches[b].tolist() if i in bad])
    return done


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_rows_of_a_subset_are_those_of_its_images(tmp_path: Path, data: st.DataObject) -> None:
    """Stopped anywhere, a row damaged meanwhile, images left out: the rows are those of a loop over the images."""
    n = data.draw(st.integers(2, 14), "n")
    subset = np.array(sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1), "subset")))
    bad = data.draw(st.sets(st.integers(0, n - 1), max_size=n - 1), "bad")
    size = data.draw(st.integers(1, 5), "batch")
    batches = [np.arange(start, min(start + size, n)) for start in range(0, n, size)]
    folder = Path(tempfile.mkdtemp(dir=tmp_path)) / "out.partial"
    begun = data.draw(st.integers(0, len(batches)), "batches before it is stopped")
    with subset_job(folder, n, subset) as job:
        assert job.files["views"].stat().st_size == job.offsets["views"] + len(subset) * 8
        fill(job, batches[:begun], subset, bad)
        offset = job.offsets["views"]
    written = [i for batch in batches[:begun] for i in batch.tolist() if i in subset and i not in bad]
    damaged = data.draw(st.sampled_from([None, *written]), "damaged image")
    if damaged is not None:
        flip(folder / "views.npy", offset + int(np.searchsorted(subset, damaged)) * 8 + data.draw(st.integers(0, 7)))
    with subset_job(folder, n, subset) as job:
        again = {b for b in range(begun) if b not in job.finished}
        assert again == {b for b in range(begun) if damaged in batches[b] or bad & set(batches[b].tolist())}
        fill(job, batches, subset, bad)
        job.keep(np.setdiff1d(np.arange(n), list(bad)))
    with subset_job(folder, n, subset) as job:  # killed before it was published
        assert fill(job, batches, subset, bad) == []
        job.keep(np.setdiff1d(np.arange(n), list(bad)))
    for key, members in (("features", range(n)), ("views", subset.tolist())):
        expected = [row(key, i) for i in members if i not in bad]
        found = np.load(folder / f"{key}.npy")
        assert len(found) == len(expected)
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_subset_reserves_the_space_of_its_rows_alone(tmp_path: Path) -> None:
    with subset_job(tmp_path / "out.partial", 1000, np.array([3, 999])) as job:
        assert np.load(job.files["views"], mmap_mode="r").shape == (2, 2, 2)
        assert np.load(job.files["features"], mmap_mode="r").shape == (1000, 3)
    with (
        pytest.raises(DataError, match=r"views\.npy is damaged: remove"),
        subset_job(tmp_path / "out.partial", 1000, np.array([3, 4, 999])),
    ):
        pass
