from __future__ import annotations

import os
from pathlib import Path

import pytest

from hashgym.storage import user_cache


def test_the_variable_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASHGYM_CACHE", str(tmp_path / "a" / "b"))
    assert user_cache.folder() == tmp_path / "a" / "b"
    assert (tmp_path / "a" / "b").is_dir()


def test_by_default_it_is_the_systems_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HASHGYM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = user_cache.folder()
    assert folder is not None
    assert folder.is_relative_to(tmp_path)


@pytest.mark.parametrize("value", ["", "/dev/null/nowhere"])
def test_no_folder_where_it_is_switched_off_or_cannot_be_made(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HASHGYM_CACHE", value)
    assert user_cache.folder() is None


@pytest.mark.skipif(os.name != "posix", reason="there are no modes")
def test_a_folder_that_others_can_write_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HASHGYM_CACHE", str(tmp_path / "link"))
    (tmp_path / "shared").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "shared")
    assert user_cache.folder() == tmp_path / "link"
    (tmp_path / "shared").chmod(0o1777)
    assert user_cache.folder() is None
    assert "can be written by every user and is not used" in caplog.text
    (tmp_path / "shared").chmod(0o755)
    assert user_cache.folder() == tmp_path / "link"
    monkeypatch.setattr(user_cache, "_warned", set())
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert user_cache.folder() is None
    assert "belongs to another user and is not used" in caplog.text
