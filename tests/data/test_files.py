from __future__ import annotations

import os
import pickle
import subprocess
import sys
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps, PngImagePlugin, features

from hashgym.data import DataError, files
from tests.reliability.damage import bounded


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
    ("mode", "colour"), [("RGB", (9, 8, 7)), ("L", 9), ("1", 1), ("P", 3), ("RGBA", (9, 8, 7, 255)), ("LA", (9, 255))]
)
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str, colour: object) -> None:
    image = Image.new(mode, (5, 3), colour)  # type: ignore[arg-type]
    image.save(tmp_path / "a.png")
    opened = files.open_image(tmp_path / "a.png")
    assert opened.mode == "RGB"
    assert opened.size == (5, 3)
    np.testing.assert_array_equal(np.asarray(opened), np.asarray(image.convert("RGB")))


def see_through(under: int) -> dict[str, Image.Image]:
    """Pictures in every mode with transparency: left transparent over ``under``, middle half transparent, right red."""
    rgba = Image.new("RGBA", (3, 1), (under, under, under, 0))
    rgba.putpixel((1, 0), (100, 50, 0, 128))
    rgba.putpixel((2, 0), (200, 10, 20, 255))
    palette = Image.new("P", (3, 1))
    palette.putpalette([under] * 3 + [100, 50, 0] + [200, 10, 20])
    palette.putdata([0, 1, 2])
    some, one = palette.copy(), palette.copy()
    some.info["transparency"], one.info["transparency"] = bytes([0, 128]), 0
    rgb, grey = rgba.convert("RGB"), Image.new("L", (3, 1), under)
    rgb.info["transparency"], grey.info["transparency"] = (under, under, under), under
    grey.putpixel((2, 0), 90)
    return {
        "RGBA": rgba,
        "LA": rgba.convert("LA"),
        "P, bytes": some,
        "P, index": one,
        "RGB": rgb,
        "L": grey,
        "PA": some.convert("PA"),
        "RGBa": rgba.convert("RGBa"),
    }


@pytest.mark.parametrize("kind", see_through(0))
def test_pictures_that_look_the_same_on_white_become_the_same(tmp_path: Path, kind: str) -> None:
    found = []
    for under in (0, 255, 123):
        image = see_through(under)[kind]
        found.append(np.asarray(files.to_rgb(image))[0])
        if kind not in ("PA", "RGBa"):  # not in PNG
            image.save(tmp_path / f"{under}.png")
            opened = files.open_image(tmp_path / f"{under}.png")
            assert (opened.mode, opened.info) == ("RGB", {})
            np.testing.assert_array_equal(np.asarray(opened)[0], found[-1])
    left, middle, right = found[0].tolist()
    assert left == [255, 255, 255]
    if "L" not in kind:
        assert right == [200, 10, 20]
        opaque = kind in ("RGB", "P, index")
        np.testing.assert_allclose(middle, [100, 50, 0] if opaque else [177, 152, 127], atol=0 if opaque else 1)
    for other in found[1:]:
        np.testing.assert_array_equal(other[[0, 2]], found[0][[0, 2]])


def test_animations_and_several_pictures_give_the_first(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    for suffix in ("gif", "png", "webp", "tiff", "mpo"):
        frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
        np.testing.assert_allclose(files.open_image(tmp_path / f"a.{suffix}").getpixel((3, 3)), (255, 0, 0), atol=2)


def test_what_pillow_reads_is_found_and_read(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 6), (200, 100, 50))
    for suffix in (
        "jfif",
        "jpe",
        "JPG",
        "Jpeg",
        "ppm",
        "pnm",
        "bmp",
        "tif",
        *(["avif"] if features.check("avif") else []),
    ):
        image.save(tmp_path / f"a.{suffix}")
        assert files.looks_like_image(tmp_path / f"a.{suffix}")
        np.testing.assert_allclose(files.open_image(tmp_path / f"a.{suffix}").getpixel((3, 3)), (200, 100, 50), atol=3)


def test_where_pillow_reads_no_avif_the_message_lists_what_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.importlib.util, "find_spec", lambda name: None)
    (tmp_path / "a.avif").write_bytes(b"\0\0\0\x1cftypavif" + bytes(40))
    with pytest.raises(DataError, match=r"a\.avif is damaged or no picture: none of BMP, .*, WEBP$"):
        files.open_image(tmp_path / "a.avif")


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


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_and_its_file_become_the_same(tmp_path: Path, orientation: int) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("a.jpg", "a.png", "a.tif", "a.webp"):
        image.save(tmp_path / name, exif=exif)
        opened = files.open_image(tmp_path / name)
        with Image.open(tmp_path / name) as lazy:
            turned = files.to_rgb(lazy)
            wanted = ImageOps.exif_transpose(lazy).convert("RGB")
        for found in (opened, turned, files.to_rgb(opened), files.to_rgb(turned)):
            assert found.size == wanted.size == ((24, 16) if orientation < 5 else (16, 24))
            assert found.tobytes() == wanted.tobytes()


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0nonsense",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x01\0\0\0x\0\0\0",  # an orientation that is a text
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x03\0\0\0\xf0\xff\xff\xff",  # and one far behind the end
    ],
)
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
@pytest.mark.parametrize("filter", ["default", "error"])
def test_exif_that_cannot_be_read_does_no_harm(tmp_path: Path, name: str, exif: bytes, filter: str) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8))
    image.save(tmp_path / name)
    expected = files.open_image(tmp_path / name).tobytes()
    image.save(tmp_path / name, exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter(filter)
        assert files.open_image(tmp_path / name).tobytes() == expected
    with Image.open(tmp_path / name) as lazy, warnings.catch_warnings():
        warnings.simplefilter(filter)
        assert files.to_rgb(lazy).tobytes() == expected


def test_warnings_that_are_errors_do_no_harm(tmp_path: Path) -> None:
    see_through(0)["P, bytes"].save(tmp_path / "palette.png")
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x02\0\0\0\x06\0\x01\0" + bytes(4)
    Image.new("RGB", (4, 2)).save(tmp_path / "turned.png", exif=exif)  # two orientations: Pillow warns, takes the first
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert files.open_image(tmp_path / "palette.png").getpixel((0, 0)) == (255, 255, 255)
        assert files.open_image(tmp_path / "turned.png").size == (2, 4)
        with pytest.raises(UserWarning, match="mine"):  # the filters are as they were
            warnings.warn("mine", stacklevel=1)


def test_metadata_does_not_leave_with_the_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "secret"
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "secret")
    image = Image.new("RGB", (8, 8))
    image.save(tmp_path / "a.jpg", comment=b"secret", exif=exif, icc_profile=b"secret")
    image.save(tmp_path / "a.png", pnginfo=text, exif=exif)
    image.save(tmp_path / "a.gif", comment=b"secret")
    for name in ("a.jpg", "a.png", "a.gif"):
        assert b"secret" in (tmp_path / name).read_bytes()
        for suffix in ("JPEG", "PNG", "GIF", "WEBP"):
            out = BytesIO()
            files.open_image(tmp_path / name).save(out, suffix)
            assert b"secret" not in out.getvalue()


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


@pytest.mark.parametrize("size", [3 << 30, 40_000_000_000])
@pytest.mark.parametrize(
    "start", [b"", b"\xff\xd8\xff\xe0", b"P6 5 5 255\n", b"\0\0\0\x1cftypavif", b"RIFF\0\0\0\0WEBP"]
)
def test_giant_files_are_refused_unread(tmp_path: Path, size: int, start: bytes) -> None:
    with (tmp_path / "a.jpg").open("wb") as file:
        file.write(start)
        file.truncate(size)  # sparse
    with bounded(octets=1 << 26), pytest.raises(DataError, match=r"a\.jpg has more than 536,870,912 bytes"):
        files.open_image(tmp_path / "a.jpg")


def test_large_files_are_read_no_further_than_their_header(tmp_path: Path) -> None:
    for start in (b"", b"P6 10000 9000 255\n"):
        with (tmp_path / "a.jpg").open("wb") as file:
            file.write(start)
            file.truncate(500 << 20)
        with bounded(octets=1 << 26), pytest.raises(DataError, match=r"a\.jpg (is damaged|has 10000 x 9000 pixels)"):
            files.open_image(tmp_path / "a.jpg")


def test_a_stream_without_end_is_read_no_further_than_allowed() -> None:
    with Path("/dev/zero").open("rb") as file, pytest.raises(DataError, match="uploaded has more than 1,000 bytes"):
        files.open_image(file, max_bytes=1000)


def test_a_picture_that_does_not_fit_in_memory_is_a_bad_picture(tmp_path: Path) -> None:
    Image.new("1", (9_000, 8_000)).save(tmp_path / "a.png")
    script = (  # in a process of its own, which has no memory left over from other tests
        "import sys; from pathlib import Path; from PIL import Image; from hashgym.data import files; "
        "from tests.reliability.damage import bounded\n"
        "with bounded(octets=1 << 27): files.open_image(Path(sys.argv[1]))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "a.png"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert "DataError: image " in ended.stderr
    assert "a.png does not fit in memory" in ended.stderr


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


def test_files_that_are_read_whole_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"12345")
    assert files.read_bounded(tmp_path / "list.txt", 5) == b"12345"
    with pytest.raises(DataError, match=r"list\.txt has more than 4 bytes"):
        files.read_bounded(tmp_path / "list.txt", 4)
    os.truncate(tmp_path / "list.txt", 40_000_000_000)
    with bounded(octets=1 << 26), pytest.raises(DataError, match=r"list\.txt has more than 1,073,741,824 bytes"):
        files.read_bounded(tmp_path / "list.txt")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="regular"):
        files.read_bounded(tmp_path / "pipe")


def test_an_opener_goes_to_other_processes(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2), (1, 2, 3)).save(tmp_path / "a.png")
    opener = pickle.loads(pickle.dumps(files.OpenImage(tmp_path, ["a.png"])))
    assert opener(0).getpixel((0, 0)) == (1, 2, 3)


def test_missing_images_are_counted_and_named() -> None:
    with pytest.raises(DataError, match=r"pets: 4 of 5 images are missing \(a, b, c, \.\.\.\).*allow_missing=True"):
        files.require_all("pets", "abcde", [False, False, False, True, False], False)
    assert files.require_all("pets", "abc", [False, True, False], True) == ["a", "c"]
    assert files.require_all("pets", "ab", [True, True], False) == []
