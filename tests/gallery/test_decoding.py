"""Worker processes that decode pictures: their results and limits."""

from __future__ import annotations

import gc
import io
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hashgym.data.pictures import open_image
from hashgym.features.backbone import Stretch, describe_preprocess
from hashgym.gallery.decoding import Decoders
from hashgym.gallery.page import small
from hashgym.storage.errors import DataError
from tests.gallery.small import picture

MAX_BYTES, MAX_PIXELS = 100_000, 30_000_000
PREPROCESS = Stretch(8)


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    with closing(Decoders(max_bytes=MAX_BYTES, max_pixels=MAX_PIXELS)) as made:
        yield made


def png(image: Image.Image) -> io.BytesIO:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out


def resident(pid: int) -> int:
    """Bytes of memory that a process uses."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_results_are_those_of_this_process(decoders: Decoders, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9 \xff\n.png")  # no UTF-8
    picture(3, 500, 90).save(tmp_path / name, "PNG")
    expected = open_image(tmp_path / name)
    for source in (tmp_path / name, png(picture(3, 500, 90))):
        got = decoders(source, name, longer=100, preprocess=describe_preprocess(PREPROCESS))
        assert got.thumbnail.size == (100, 18)
        assert got.thumbnail.mode == "RGB"
        np.testing.assert_array_equal(got.thumbnail, small(expected, 100))
        np.testing.assert_array_equal(got.view, PREPROCESS(expected))
    assert decoders(tmp_path / name, name, longer=100).view is None


def test_bad_files_are_data_errors_and_cost_no_process(decoders: Decoders, tmp_path: Path) -> None:
    decoders(png(picture(0)), "a", longer=9)
    before = decoders._idle.queue[-1]._process
    for source, words in [
        (io.BytesIO(b""), "damaged or not a picture"),
        (io.BytesIO(bytes(MAX_BYTES + 1)), "bytes"),
        (png(Image.new("L", (6000, 5001))), "pixels"),
        (tmp_path / "none.png", "cannot be read"),
        (tmp_path, "regular file|directory"),
    ]:
        with pytest.raises(DataError, match=rf"image bad\.png .*{words}"):
            decoders(source, "bad.png", longer=9)
    assert decoders._idle.queue[-1]._process is before


def test_many_threads_share_few_processes(decoders: Decoders) -> None:
    with ThreadPoolExecutor(12) as pool:
        got = list(pool.map(lambda seed: decoders(png(picture(seed)), "a", longer=32).thumbnail, range(40)))
    for seed, thumbnail in enumerate(got):
        np.testing.assert_array_equal(thumbnail, picture(seed))
    assert len({worker._process.pid for worker in decoders._workers}) == 2


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not tell what a process uses")
def test_memory_is_given_back_and_none_of_it_is_used_here(decoders: Decoders) -> None:
    decoders(png(picture(0)), "a", longer=9)
    pid = decoders._idle.queue[-1]._process.pid
    before, here = resident(pid), resident(os.getpid())
    large = png(Image.new("RGBA", (3500, 3500)))  # 49 MB decoded
    for _ in range(2):
        decoders(large, "large.png", longer=384)
        assert decoders._idle.queue[-1]._process.pid == pid
    assert resident(pid) - before < 20e6
    assert resident(os.getpid()) - here < 80e6  # what this test itself made


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system limits no address space")
def test_a_picture_that_needs_too_much_memory_is_an_error_and_others_are_decoded() -> None:
    with closing(Decoders(max_bytes=MAX_BYTES, max_pixels=MAX_PIXELS, memory=200 * 2**20)) as decoders:
        with pytest.raises(MemoryError, match=r"image large\.png needs more memory than is available"):
            decoders(png(Image.new("L", (5000, 5000))), "large.png", longer=384)
        assert decoders(png(picture(0)), "a", longer=32).thumbnail.size == (32, 24)


def test_a_process_that_died_while_it_waited_costs_no_picture(decoders: Decoders) -> None:
    """The system ends idle ones first when memory runs out."""
    decoders(png(picture(0)), "a", longer=9)
    process = decoders._idle.queue[-1]._process
    process.kill()
    process.wait()
    for _ in range(2):  # every worker
        assert decoders(png(picture(0)), "a", longer=32).thumbnail.size == (32, 24)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_process_that_dies_is_replaced(
    decoders: Decoders, end: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoders(png(picture(0)), "a", longer=9)
    worker = decoders._idle.queue[-1]
    monkeypatch.setattr(worker._process, "poll", lambda: None)  # it dies after it was chosen
    os.kill(worker._process.pid, end)
    with pytest.raises(MemoryError if end == signal.SIGKILL else DataError, match=r"image b\.png"):
        decoders(png(picture(0)), "b.png", longer=9)
    assert decoders(png(picture(0)), "a", longer=32).thumbnail.size == (32, 24)


def test_slow_decoding_is_ended() -> None:
    with closing(Decoders(max_bytes=MAX_BYTES, max_pixels=MAX_PIXELS, seconds=0.01)) as decoders:
        with pytest.raises(DataError, match=r"image a\.ppm takes more than 0\.01 s to decode; save it as PNG or JPEG"):
            decoders(png(picture(0)), "a.ppm", longer=9)  # a process takes longer than that to start
        for _ in range(2):
            decoders._idle.get()
        with pytest.raises(TimeoutError, match="all decoders are busy"):
            decoders(png(picture(0)), "a.ppm", longer=9)


def test_no_process_outlives_its_owner() -> None:
    pids = []
    for explicit in (True, False):
        decoders = Decoders(max_bytes=MAX_BYTES, max_pixels=MAX_PIXELS)
        decoders(png(picture(0)), "a", longer=9)
        pids.append(decoders._idle.queue[-1]._process.pid)
        if explicit:
            decoders.close()
            with pytest.raises(TimeoutError, match="the decoders are closed"):
                decoders(png(picture(0)), "a", longer=9)
        del decoders
        gc.collect()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
