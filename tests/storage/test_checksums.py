"""Checksums of large files are verified once, and again after a change."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from hashgym import data
from hashgym.data import DataError, cache
from hashgym.storage import sealed
from hashgym.storage.checksums import has_checksum
from tests.conftest import small_dataset

CONTENT = b"some features"
RIGHT = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HASHGYM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "verified"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "features.npy"
    path.write_bytes(CONTENT)
    return path


def is_read(path: Path, **options: bool) -> bool:
    """Whether verifying the file reads it."""
    ticks: list[None] = []
    assert has_checksum(path, RIGHT, tick=lambda: ticks.append(None), **options)
    return bool(ticks)


def test_a_file_is_read_once(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_read(path)
    assert not is_read(path)
    monkeypatch.chdir(tmp_path)
    assert not is_read(Path("features.npy"))
    assert is_read(path, again=True)


def test_a_file_in_another_state_is_read_again(path: Path) -> None:
    is_read(path)
    path.write_bytes(CONTENT)
    assert is_read(path)
    path.with_suffix(".new").write_bytes(CONTENT)
    path.with_suffix(".new").replace(path)
    assert is_read(path)
    assert not has_checksum(path, RIGHT[:-1] + "x")
    assert not is_read(path)


def test_a_change_that_keeps_size_and_time_is_found(path: Path) -> None:
    is_read(path)
    before = path.stat()
    path.write_bytes(CONTENT[:-1] + b"S")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not has_checksum(path, RIGHT)
    assert not has_checksum(path, RIGHT)  # nothing wrong is noted


def test_another_machine_reads_it_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_read(path)
    monkeypatch.setattr("platform.node", lambda: "another")
    assert is_read(path)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b"\xff"])
def test_a_damaged_note_is_written_again(path: Path, notes: Path, damage: bytes) -> None:
    is_read(path)
    (note,) = notes.iterdir()
    note.write_bytes(damage)
    assert is_read(path)
    assert not is_read(path)


def test_without_a_folder_for_notes_it_is_read_every_time(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file")
    assert is_read(path)
    assert is_read(path)
    monkeypatch.setenv("HASHGYM_CACHE", "")
    assert is_read(path)


@pytest.fixture
def features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Features whose file counts as large."""
    monkeypatch.setattr(sealed, "SMALL", 500)
    cache.save(small_dataset(0), tmp_path / "features")
    assert (tmp_path / "features" / "features.npy").stat().st_size > 500
    return tmp_path / "features"


def test_a_flipped_bit_in_a_large_file_is_found_when_features_are_loaded(features: Path, tmp_path: Path) -> None:
    rng, file = np.random.default_rng(0), features / "features.npy"
    data.load(features)
    whole = file.read_bytes()
    for bit in rng.integers(0, 8 * len(whole), 50):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=r"features\.npy (has changed|is damaged)"):
            data.load(features)
    file.write_bytes(whole)
    shutil.copytree(features, tmp_path / "copy")
    assert np.array_equal(data.load(tmp_path / "copy").features, small_dataset(0).features)


def test_verifying_all_leaves_nothing_to_do_for_the_next(features: Path, notes: Path) -> None:
    cache.open_cache(features, verify=False)
    assert not notes.exists()
    cache.verify(features)
    names = {note.name: note.stat().st_ino for note in notes.iterdir()}
    assert names
    cache.open_cache(features)
    assert {note.name: note.stat().st_ino for note in notes.iterdir()} == names


def test_who_waits_learns_why(
    features: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sealed, "PATIENCE", -1.0)
    data.load(features)
    data.load(features)
    assert caplog.messages == [f"comparing {features} with its checksums: 0.0 GB, once on this machine"]
