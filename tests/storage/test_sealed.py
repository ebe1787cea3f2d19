"""Sealed folders: a manifest lists the files, and a new version stands beside the old one until it is in force."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hashgym.data import DataError
from hashgym.storage import owned, sealed
from hashgym.storage.sealed import FolderFormat

SETS = FolderFormat(
    "hashgym-sets",
    2,
    description="a folder of sets",
    command="make sets",
    remedy="make the sets again",
    fields={"count": int},
    manifest="index.json",
)


def version(folder: Path, *words: int, count: int = 1) -> dict[str, Any]:
    """A new version of a folder, with a file of text and one of words."""
    work = owned.create(folder / ".work")
    np.save(work / "words.npy", np.array(words))
    (work / "names.json").write_text("[]")
    SETS.seal_version(folder, work, count=count)
    owned.remove(work)
    return SETS.read(folder)


def test_a_new_version_replaces_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    old = version(tmp_path, 1, 2, 3)
    (tmp_path / "words-0123456789abcdef.npy").write_bytes(b"mine")
    (tmp_path / "notes.txt").touch()
    assert [entry["file"] for entry in old["files"].values()] == [
        f"names-{hashlib.sha256(b'[]').hexdigest()[:16]}.json",
        SETS.path(tmp_path, old, "words.npy").name,
    ]
    new = version(tmp_path, 4, count=5)
    SETS.verify(tmp_path, new, large_files=True)
    assert (new["format"], new["version"], new["count"]) == ("hashgym-sets", 2, 5)
    assert SETS.open_array(tmp_path, new, "words.npy").tolist() == [4]
    stored = {entry["file"] for entry in new["files"].values()}
    assert {path.name for path in tmp_path.iterdir()} == {
        "index.json", "notes.txt", "words-0123456789abcdef.npy", *stored
    }  # fmt: skip
    with pytest.raises(DataError, match=r"is damaged: words-[0-9a-f]+\.npy is missing; make the sets again"):
        SETS.verify(tmp_path, old)


def test_until_the_manifest_is_replaced_the_old_version_is_in_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = version(tmp_path, 1, 2, 3)
    monkeypatch.setattr(sealed, "write_text", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        version(tmp_path, 4)
    monkeypatch.undo()
    assert SETS.read(tmp_path) == old
    SETS.verify(tmp_path, old, large_files=True)
    version(tmp_path, 5)
    assert len(list(tmp_path.glob("words-*.npy"))) == 1


@pytest.mark.parametrize("stored", ["../words-0123456789abcdef.npy", "/etc/passwd", "words.npy", 3, None])
def test_a_manifest_names_no_file_elsewhere(tmp_path: Path, stored: Any) -> None:
    manifest = version(tmp_path, 1)
    manifest["files"]["words.npy"]["file"] = stored
    manifest.pop("digest")
    (tmp_path / "index.json").write_text(json.dumps(manifest | {"digest": sealed.digest(manifest)}))
    with pytest.raises(DataError, match=r"index\.json is damaged or was edited; make the sets again"):
        SETS.read(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, r"is not a folder of sets: it has no index\.json; `make sets` writes one"),
        ("[]", r"is not a folder of sets: its index\.json is of another format"),
        ('{"format": "hashgym-cache"}', "is of another format"),
        ('{"format": "hashgym-sets", "version": 1}', "is of version 1, this hashgym reads version 2"),
        ('{"format": "hashgym-sets", "version": 2}', "is damaged or was edited"),
        ("{", "is damaged: "),
    ],
)
def test_invalid_manifests_are_described(tmp_path: Path, content: str | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "index.json").write_text(content)
    with pytest.raises(DataError, match=reason):
        SETS.read(tmp_path)
    assert SETS.matches(tmp_path) == ("hashgym-sets" in (content or ""))
