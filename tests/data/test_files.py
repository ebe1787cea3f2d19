from __future__ import annotations

import os
import pickle
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from hashgym.data import DataError, files


def test_natural_order_puts_2_before_10() -> None:
    names = ["im10.jpg", "im2.jpg", "a/im1.jpg", "im1.jpg", "im02.jpg", "b", ""]
    assert sorted(names, key=files.natural) == ["", "a/im1.jpg", "b", "im1.jpg", "im02.jpg", "im2.jpg", "im10.jpg"]


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_images_are_found_below_and_all_else_is_counted(tmp_path: Path) -> None:
    touch(
        tmp_path, "b/10.PNG", "b/9.jpeg", "a.jpg", "notes.txt", ".hidden.jpg", ".cache/x.jpg", "b/._9.jpeg", "b/c.ico"
    )
    touch(tmp_path, "b/README", "@eaDir/a.jpg/thumb.jpg", "b/__MACOSX/9.jpeg", "b/Thumbs.db", "b/2.psd", "b/3.PSD")
    found = files.list_images(tmp_path)
    assert found.names == ["a.jpg", "b/9.jpeg", "b/10.PNG"]
    assert found.ignored == {".psd": 2, ".txt": 1, ".ico": 1, "": 1}
    assert (found.hidden, found.links, found.excluded) == (3, 0, 0)
    assert found.words() == (
        "5 files that are not read: 2 .psd (pictures of a format that is not read here: convert them to JPEG), "
        "1 .ico (pictures of a format that is not read here: convert them to JPEG), 1 without extension, 1 .txt; "
        "3 hidden"
    )
    below = files.list_images(tmp_path, "b")
    assert below.names == ["b/9.jpeg", "b/10.PNG"]
    assert files.Listing().words() == ""
    assert files.subfolders(tmp_path)[0] == ["b"]
    with pytest.raises(DataError, match=r"folder .*absent cannot be read: No such file"):
        files.list_images(tmp_path / "absent")


def test_many_kinds_are_summed_up(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{i}.x{i % 12}" for i in range(30)))
    words = files.list_images(tmp_path).words()
    assert words.startswith("30 files that are not read: 3 .x0, 3 .x1,")
    assert words.endswith(", 8 of other kinds")


def test_files_without_extension_are_known_by_their_first_bytes(tmp_path: Path) -> None:
    image = Image.new("RGB", (2, 2))
    for kind in ("jpeg", "png", "gif", "webp"):
        image.save(tmp_path / f"photo_{kind}", kind)
    (tmp_path / "text").write_text("BM is how a letter may begin")
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    found = files.list_images(tmp_path)
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
    found = files.list_images(photos)
    assert found.names == ["a/1.jpg", "z/2.jpg"]
    assert found.links == 8
    assert found.words() == "8 links (--follow-links follows them)"
    found = files.list_images(photos, follow_links=True)
    assert found.names == ["a/1.jpg", "c/4.jpg", "c/deep/3.jpg", "e.jpg", "gone.jpg", "z/2.jpg"]
    assert (found.links, found.ignored) == (0, {".txt": 1, "": 1})
    (tmp_path / "link").symlink_to(photos)  # the folder that is named may be a link
    assert files.list_images(tmp_path / "link").names == ["a/1.jpg", "z/2.jpg"]


def test_patterns_exclude_files_and_folders(tmp_path: Path) -> None:
    touch(tmp_path, "a/raw/1.jpg", "a/2.jpg", "a/2_thumb.jpg", "raw/3.jpg", "b/raw.jpg")
    for patterns, names, count in (
        ((), ["a/2.jpg", "a/2_thumb.jpg", "a/raw/1.jpg", "b/raw.jpg", "raw/3.jpg"], 0),
        (("raw",), ["a/2.jpg", "a/2_thumb.jpg", "b/raw.jpg"], 2),
        (("a/raw/", "*_thumb.*"), ["a/2.jpg", "b/raw.jpg", "raw/3.jpg"], 2),
        (("[ab]", "?.jpg"), [], 3),
    ):
        found = files.list_images(tmp_path, exclude=patterns)
        assert (found.names, found.excluded) == (names, count)


def test_what_hashgym_wrote_is_not_listed(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "page/.hashgym", "page/2.jpg", "out.partial/journal.jsonl", "out.partial/3.jpg")
    touch(tmp_path, "diary/journal.jsonl", "diary/4.jpg", "site/5.jpg", "codes/6.jpg")
    (tmp_path / "site" / "meta.json").write_text('{"format": "jekyll"}')
    (tmp_path / "codes" / "meta.json").write_text('{"format": "hashgym-codes", "version": 1}')
    found = files.list_images(tmp_path)
    assert found.names == ["a/1.jpg", "diary/4.jpg", "site/5.jpg"]
    assert files.subfolders(tmp_path)[0] == ["a", "diary", "site"]
    assert found.ignored == {".jsonl": 1, ".json": 1}  # of the diary and the site
    assert files.list_images(tmp_path / "codes").names == ["6.jpg"]  # which was named outright


def test_an_opener_keeps_within_its_folder(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "secret.png")
    (tmp_path / "photos" / "link.png").symlink_to("../secret.png")
    for name in ("link.png", "../secret.png"):
        assert files.OpenImage(tmp_path / "photos", [name])(0).size == (2, 2)
        with pytest.raises(DataError, match=rf"image {name} lies outside .*--follow-links"):
            files.OpenImage(tmp_path / "photos", [name], inside=True)(0)
    (tmp_path / "photos" / "b.png").symlink_to(tmp_path / "photos-2.png")  # a longer name of the same beginning
    Image.new("RGB", (2, 2)).save(tmp_path / "photos-2.png")
    with pytest.raises(DataError, match="lies outside"):
        files.resolved(tmp_path / "photos", "b.png")


@pytest.mark.parametrize(
    ("mode", "colour"), [("RGB", (9, 8, 7)), ("L", 9), ("1", 1), ("P", 3), ("RGBA", (9, 8, 7, 0)), ("LA", (9, 0))]
)
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str, colour: object) -> None:
    image = Image.new(mode, (5, 3), colour)  # type: ignore[arg-type]
    image.save(tmp_path / "a.png")
    opened = files.open_image(tmp_path / "a.png")
    assert opened.mode == "RGB"
    assert opened.size == (5, 3)
    np.testing.assert_array_equal(np.asarray(opened), np.asarray(image.convert("RGB")))


def test_cmyk_jpeg_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (5, 3), (0, 0, 0, 0)).save(tmp_path / "a.jpg")
    assert np.asarray(files.open_image(tmp_path / "a.jpg")).min() > 250


def test_exif_orientation_turns_the_picture_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (6, 2), (0, 0, 0))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    image.save(tmp_path / "a.png", exif=exif)
    opened = files.open_image(tmp_path / "a.png")
    assert opened.size == (2, 6)
    assert opened.getpixel((1, 0)) == (255, 255, 255)


def test_truncated_images_are_refused_by_name(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    for suffix in ("jpg", "png", "bmp", "gif", "webp", "tiff"):
        path = tmp_path / f"whole.{suffix}"
        Image.fromarray(noise).save(path)
        files.open_image(path)
        broken = tmp_path / f"broken.{suffix}"
        broken.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 5])
        with pytest.raises(DataError, match=rf"train/7.{suffix} is damaged"):
            files.open_image(broken, f"train/7.{suffix}")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.parametrize("content", [b"", b"no picture", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_other_bytes_are_no_picture(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.jpg is damaged or no picture"):
        files.open_image(tmp_path / "a.jpg")


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jpg cannot be read: No such file"):
        files.open_image(tmp_path / "gone.jpg")
    (tmp_path / "a.jpg").mkdir()
    with pytest.raises(DataError, match=r"a\.jpg cannot be read"):
        files.open_image(tmp_path / "a.jpg")


def test_more_than_8_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match=r"deep.png has more than 8 bits.*convert"):
        files.open_image(tmp_path / "deep.png")


def test_decompression_bombs_are_refused_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("1", (4_000, 3_000)).save(tmp_path / "big.png")
    monkeypatch.setattr(files, "MAX_PIXELS", 10_000_000)
    with pytest.raises(DataError, match="4000 x 3000 pixels"):
        files.open_image(tmp_path / "big.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)  # Pillow's own guard
    with pytest.raises(DataError, match=r"big\.png has too many pixels"):
        files.open_image(tmp_path / "big.png", max_pixels=20_000_000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000_000)  # from here to its double it warns
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match=r"big\.png has too many pixels"):
            files.open_image(tmp_path / "big.png", max_pixels=20_000_000)


def test_a_limit_on_pixels_is_the_most_that_is_allowed(tmp_path: Path) -> None:
    Image.new("L", (30, 20)).save(tmp_path / "a.png")
    assert files.open_image(tmp_path / "a.png", max_pixels=600).size == (30, 20)
    with pytest.raises(DataError, match="30 x 20 pixels; more than 599"):
        files.open_image(tmp_path / "a.png", max_pixels=599)


def test_bytes_and_streams_are_opened_as_files_are(tmp_path: Path) -> None:
    Image.new("RGB", (5, 3), (9, 8, 7)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    for source in (tmp_path / "a.png", data, BytesIO(data)):
        assert files.open_image(source, max_bytes=len(data)).tobytes() == bytes([9, 8, 7]) * 15
    for source in (tmp_path / "a.png", data, BytesIO(data)):
        with pytest.raises(DataError, match=rf"image b has more than {len(data) - 1} bytes"):
            files.open_image(source, "b", max_bytes=len(data) - 1)
    with pytest.raises(DataError, match="image uploaded is damaged or no picture: none of BMP, GIF, JPEG"):
        files.open_image(b"<svg/>")


def test_formats_that_start_programs_are_refused_whatever_the_name(tmp_path: Path) -> None:
    Image.new("RGB", (5, 3)).save(tmp_path / "a.eps")  # Ghostscript would run it
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"a\.jpg is damaged or no picture: none of BMP"):
        files.open_image(tmp_path / "a.jpg")


def test_a_smaller_picture_is_no_smaller_than_asked_and_still_checked(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 640, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg")
    for at_least, size in [(400, (640, 400)), (200, (320, 200)), (60, (160, 100)), (1, (80, 50))]:
        assert files.open_image(tmp_path / "a.jpg", at_least=at_least).size == size
    with pytest.raises(DataError, match="640 x 400 pixels"):
        files.open_image(tmp_path / "a.jpg", at_least=60, max_pixels=200_000)


@pytest.mark.parametrize("extra", [0, 40, 400])
def test_jpegs_of_needlessly_many_scans_are_refused(extra: int) -> None:
    """Each scan is a pass over all pixels that takes a hundred bytes or less: 32 MB of them would take hours."""
    out = BytesIO()
    Image.new("L", (64, 64), 100).save(out, "JPEG", progressive=True)
    data = out.getvalue()
    last = data.rindex(b"\xff\xda")
    exif = b"\xff\xe1\x02\x02" + b"\xff\xda" * 256  # inside a segment that is no scan
    film = b"\xff\xda\x00\x02" * 1000  # behind the end
    whole = data[:2] + exif + data[2:last] + data[last:-2] * (1 + extra) + data[-2:] + film
    if extra < 60:
        assert files.open_image(whole).tobytes() == files.open_image(data).tobytes()
    else:
        with pytest.raises(DataError, match="more than 64 scans"):
            files.open_image(whole)


def test_an_opener_goes_to_other_processes(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2), (1, 2, 3)).save(tmp_path / "a.png")
    opener = pickle.loads(pickle.dumps(files.OpenImage(tmp_path, ["a.png"])))
    assert opener(0).getpixel((0, 0)) == (1, 2, 3)


def test_missing_images_are_counted_and_named() -> None:
    with pytest.raises(DataError, match=r"pets: 4 of 5 images are missing \(a, b, c, \.\.\.\).*allow_missing=True"):
        files.require_all("pets", "abcde", [False, False, False, True, False], False)
    assert files.require_all("pets", "abc", [False, True, False], True) == ["a", "c"]
    assert files.require_all("pets", "ab", [True, True], False) == []
