from __future__ import annotations

from pathlib import Path

import pytest

from hashgym.storage import owned
from hashgym.storage.errors import DataError


def test_what_was_created_can_be_removed(tmp_path: Path) -> None:
    folder = owned.create(tmp_path / "a" / "b")
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "file").write_text("x")
    assert owned.is_owned(folder)
    assert not owned.is_owned(folder.parent)
    owned.remove(folder)
    assert not folder.exists()
    owned.remove(folder)


@pytest.mark.parametrize("name", ["2023", "photos.partial", ".codes.1a2b.old"])
def test_folders_of_others_are_neither_taken_nor_removed(tmp_path: Path, name: str) -> None:
    photo = tmp_path / name / "photo.jpg"
    photo.parent.mkdir()
    photo.write_bytes(b"x")
    with pytest.raises(DataError, match="choose another name"):
        owned.create(photo.parent)
    with pytest.raises(DataError, match="is not deleted"):
        owned.remove(photo.parent)
    assert photo.read_bytes() == b"x"


def test_empty_folders_are_taken_and_removed(tmp_path: Path) -> None:
    for name in ("taken", "removed"):
        (tmp_path / name).mkdir()
    assert owned.is_owned(owned.create(tmp_path / "taken"))
    owned.remove(tmp_path / "removed")
    assert not (tmp_path / "removed").exists()


def test_links_are_not_followed(tmp_path: Path) -> None:
    folder = owned.create(tmp_path / "ours")
    (folder / "file").write_text("x")
    (tmp_path / "link").symlink_to(folder)
    assert not owned.is_owned(tmp_path / "link")
    with pytest.raises(DataError, match="is not deleted"):
        owned.remove(tmp_path / "link")
    (owned.create(tmp_path / "with-link") / "out").symlink_to(folder)
    owned.remove(tmp_path / "with-link")
    assert (folder / "file").read_text() == "x"


def test_an_interrupted_removal_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = owned.create(tmp_path / "ours")
    for i in range(3):
        (folder / f"{i}").write_text("x")

    def fail(path: Path, *args: object) -> None:
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", fail)
        with pytest.raises(PermissionError):
            owned.remove(folder)
    assert owned.is_owned(folder)
    owned.remove(folder)
    assert not folder.exists()


def test_only_files_of_ours_are_replaceable(tmp_path: Path) -> None:
    def check(name: str) -> None:
        owned.require_replaceable(tmp_path / name, "a page", lambda file: file.read_bytes() == b"ours")

    (tmp_path / "ours").write_bytes(b"ours")
    (tmp_path / "letter").write_bytes(b"mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "ours")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    check("new")
    check("missing/new")
    check("ours")
    for name in ("letter", "folder", "link", "dangling"):
        with pytest.raises(DataError, match=f"{name} exists already and is not a page of hashgym: choose another name"):
            check(name)


def test_only_empty_folders_are_empty(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    names = ("", "file", "empty", "link", "missing")
    assert [owned.is_empty(tmp_path / name) for name in names] == [False, False, True, False, False]


def test_a_published_folder_replaces_an_owned_one_and_no_other(tmp_path: Path) -> None:
    def publish(text: str, **options: bool) -> None:
        (owned.create(tmp_path / "work") / "file").write_text(text)
        owned.publish(tmp_path / "work", tmp_path / "out", **options)

    publish("first")
    publish("second", replace=True)
    assert (tmp_path / "out" / "file").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(OSError, match="not empty"):
        publish("third")
    (tmp_path / "out" / owned.MARKER).unlink()
    with pytest.raises(DataError, match="out was not written by hashgym and is not replaced"):
        publish("fourth", replace=True)
    assert (tmp_path / "out" / "file").read_text() == "second"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "work"]


def test_a_replacement_that_is_interrupted_keeps_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("work", "out"):
        (owned.create(tmp_path / name) / "file").write_text(name)
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        renamed = rename(self, target)
        if self.name == "out":
            raise KeyboardInterrupt
        return renamed

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        owned.publish(tmp_path / "work", tmp_path / "out", replace=True)
    assert (tmp_path / "out" / "file").read_text() == "out"
