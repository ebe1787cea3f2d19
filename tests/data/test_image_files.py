from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from PIL import Image

from hashgym.data import DataError, image_files


def test_natural_order_puts_2_before_10() -> None:
    in_order = ["", "a/im1.jpg", "b", "im1.jpg", "im02.jpg", "im2.jpg", "im10.jpg"]
    assert sorted(sorted(in_order), key=image_files.natural) == in_order


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_images_are_found_below_and_all_else_is_counted(tmp_path: Path) -> None:
    touch(
        tmp_path, "b/10.PNG", "b/9.jpeg", "a.jpg", "notes.txt", ".hidden.jpg", ".cache/x.jpg", "b/._9.jpeg", "b/c.ico"
    )
    touch(tmp_path, "b/README", "@eaDir/a.jpg/thumb.jpg", "b/__MACOSX/9.jpeg", "b/Thumbs.db", "b/2.psd", "b/3.PSD")
    found = image_files.list_images(tmp_path)
    assert found.names == ["a.jpg", "b/9.jpeg", "b/10.PNG"]
    assert found.ignored == {".psd": 2, ".txt": 1, ".ico": 1, "": 1}
    assert (found.hidden, found.links, found.excluded) == (3, 0, 0)
    assert found.summary() == (
        "5 files that are not read: 2 .psd (pictures of a format that is not read here: convert them to JPEG), "
        "1 .ico (pictures of a format that is not read here: convert them to JPEG), 1 without extension, 1 .txt; "
        "3 hidden"
    )
    below = image_files.list_images(tmp_path, "b")
    assert below.names == ["b/9.jpeg", "b/10.PNG"]
    assert image_files.Listing().summary() == ""
    assert image_files.subfolders(tmp_path)[0] == ["b"]
    with pytest.raises(DataError, match=r"folder .*absent cannot be read: No such file"):
        image_files.list_images(tmp_path / "absent")


def test_a_summary_says_what_makes_heic_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "1.heic", "2.HEIC", "3.heif", "4.jpg", "5.jfif", "6.MPO", "7.avif")
    (tmp_path / "8").write_bytes(b"\0\0\0\x1cftypheic" + bytes(9))
    monkeypatch.setattr(image_files, "reads_heif", lambda: False)
    found = image_files.list_images(tmp_path)
    assert found.names == ["4.jpg", "5.jfif", "6.MPO", "7.avif"]
    assert found.summary() == (
        "4 files that are not read: 2 .heic (pictures that `pip install 'hashgym[heif]'` makes readable), "
        "1 .heif (pictures that `pip install 'hashgym[heif]'` makes readable), 1 without extension"
    )
    monkeypatch.setattr(image_files, "reads_heif", lambda: True)
    found = image_files.list_images(tmp_path)
    assert found.names == ["1.heic", "2.HEIC", "3.heif", "4.jpg", "5.jfif", "6.MPO", "7.avif", "8"]
    assert found.summary() == ""


def test_many_kinds_are_summed_up(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{i}.x{i % 12}" for i in range(30)))
    words = image_files.list_images(tmp_path).summary()
    assert words.startswith("30 files that are not read: 3 .x0, 3 .x1,")
    assert words.endswith(", 8 of other kinds")


def test_files_without_extension_are_known_by_their_first_bytes(tmp_path: Path) -> None:
    image = Image.new("RGB", (2, 2))
    for kind in ("jpeg", "png", "gif", "webp"):
        image.save(tmp_path / f"photo_{kind}", kind)
    (tmp_path / "text").write_text("BM is how a letter may begin")
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    found = image_files.list_images(tmp_path)
    assert found.names == ["photo_gif", "photo_jpeg", "photo_png", "photo_webp"]
    assert found.ignored == {"": 3}


def test_links_are_counted_or_followed_once(tmp_path: Path) -> None:
    photos, other = tmp_path / "photos", tmp_path / "other"
    touch(photos, "a/1.jpg", "z/2.jpg")
    touch(other, "deep/3.jpg", "4.jpg", "notes.txt")
    for link, target in (
        ("a/loop", photos),
        ("a/up", photos / "a"),
        ("b", photos / "z"),
        ("c", other),
        ("d", other),
        ("e.jpg", other / "4.jpg"),
        ("gone.jpg", "nowhere.jpg"),
        ("gone", "nowhere"),
    ):
        (photos / link).symlink_to(target)
    found = image_files.list_images(photos)
    assert found.names == ["a/1.jpg", "z/2.jpg"]
    assert found.links == 8
    assert found.summary() == "8 links (--follow-links follows them)"
    found = image_files.list_images(photos, follow_links=True)
    assert found.names == ["a/1.jpg", "c/4.jpg", "c/deep/3.jpg", "e.jpg", "gone.jpg", "z/2.jpg"]
    assert (found.links, found.ignored) == (0, {".txt": 1, "": 1})
    (tmp_path / "link").symlink_to(photos)  # the folder itself may be a link
    assert image_files.list_images(tmp_path / "link").names == ["a/1.jpg", "z/2.jpg"]


def test_patterns_exclude_files_and_folders(tmp_path: Path) -> None:
    touch(tmp_path, "a/raw/1.jpg", "a/2.jpg", "a/2_thumb.jpg", "raw/3.jpg", "b/raw.jpg")
    for patterns, names, count in (
        ((), ["a/2.jpg", "a/2_thumb.jpg", "a/raw/1.jpg", "b/raw.jpg", "raw/3.jpg"], 0),
        (("raw",), ["a/2.jpg", "a/2_thumb.jpg", "b/raw.jpg"], 2),
        (("a/raw/", "*_thumb.*"), ["a/2.jpg", "b/raw.jpg", "raw/3.jpg"], 2),
        (("[ab]", "?.jpg"), [], 3),
    ):
        found = image_files.list_images(tmp_path, exclude=patterns)
        assert (found.names, found.excluded) == (names, count)


def test_folders_of_hashgym_are_not_listed(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "page/.hashgym", "page/2.jpg", "out.partial/journal.jsonl", "out.partial/3.jpg")
    touch(tmp_path, "diary/journal.jsonl", "diary/4.jpg", "site/5.jpg", "codes/6.jpg")
    (tmp_path / "site" / "meta.json").write_text('{"format": "jekyll"}')
    (tmp_path / "codes" / "meta.json").write_text('{"format": "hashgym-codes", "version": 1}')
    found = image_files.list_images(tmp_path)
    assert found.names == ["a/1.jpg", "diary/4.jpg", "site/5.jpg"]
    assert image_files.subfolders(tmp_path)[0] == ["a", "diary", "site"]
    assert found.ignored == {".jsonl": 1, ".json": 1}  # of the diary and the site
    assert image_files.list_images(tmp_path / "codes").names == ["6.jpg"]  # given explicitly


def test_missing_images_are_counted_and_named() -> None:
    with pytest.raises(DataError, match=r"pets: 4 of 5 images are missing \(a, b, c, \.\.\.\).*allow_missing=True"):
        image_files.require_all("pets", "abcde", [False, False, False, True, False], False)
    assert image_files.require_all("pets", "abc", [False, True, False], True) == ["a", "c"]
    assert image_files.require_all("pets", "ab", [True, True], False) == []


def test_a_folder_that_cannot_be_entered_is_named(tmp_path, monkeypatch):
    """Asking for a file in it fails as well."""
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.png").touch()
    is_file, scandir = Path.is_file, os.scandir

    def refused(path):
        if "closed" in Path(path).parts:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return path

    monkeypatch.setattr(Path, "is_file", lambda self: is_file(refused(self)))
    monkeypatch.setattr(os, "scandir", lambda path: scandir(refused(path)))
    with pytest.raises(DataError, match=r"folder .*closed cannot be read: Permission denied; --exclude leaves it out"):
        image_files.list_images(tmp_path)
