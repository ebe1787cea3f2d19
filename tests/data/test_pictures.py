from __future__ import annotations

import pickle
import subprocess
import sys
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps, PngImagePlugin, features

from hashgym.data import DataError, image_files, pictures
from tests.reliability.damage import bounded


def test_an_opener_keeps_within_its_folder(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "secret.png")
    (tmp_path / "photos" / "link.png").symlink_to("../secret.png")
    for name in ("link.png", "../secret.png"):
        assert pictures.OpenImage(tmp_path / "photos", [name])(0).size == (2, 2)
        with pytest.raises(DataError, match=rf"image {name} lies outside .*--follow-links"):
            pictures.OpenImage(tmp_path / "photos", [name], inside=True)(0)
    (tmp_path / "photos" / "b.png").symlink_to(tmp_path / "photos-2.png")  # a longer name of the same beginning
    Image.new("RGB", (2, 2)).save(tmp_path / "photos-2.png")
    with pytest.raises(DataError, match="lies outside"):
        image_files.resolved(tmp_path / "photos", "b.png")


@pytest.mark.parametrize(
    ("mode", "colour"), [("RGB", (9, 8, 7)), ("L", 9), ("1", 1), ("P", 3), ("RGBA", (9, 8, 7, 255)), ("LA", (9, 255))]
)
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str, colour: object) -> None:
    image = Image.new(mode, (5, 3), colour)  # type: ignore[arg-type]
    image.save(tmp_path / "a.png")
    opened = pictures.open_image(tmp_path / "a.png")
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
        found.append(np.asarray(pictures.to_rgb(image))[0])
        if kind not in ("PA", "RGBa"):  # not in PNG
            image.save(tmp_path / f"{under}.png")
            opened = pictures.open_image(tmp_path / f"{under}.png")
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
        np.testing.assert_allclose(pictures.open_image(tmp_path / f"a.{suffix}").getpixel((3, 3)), (255, 0, 0), atol=2)


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
        assert image_files.looks_like_image(tmp_path / f"a.{suffix}")
        np.testing.assert_allclose(
            pictures.open_image(tmp_path / f"a.{suffix}").getpixel((3, 3)), (200, 100, 50), atol=3
        )


def test_without_avif_in_pillow_the_message_lists_the_other_formats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures.importlib.util, "find_spec", lambda name: None)
    (tmp_path / "a.avif").write_bytes(b"\0\0\0\x1cftypavif" + bytes(40))
    with pytest.raises(DataError, match=r"a\.avif is damaged or not a picture: it is not one of BMP, .*, WEBP$"):
        pictures.open_image(tmp_path / "a.avif")


def test_a_heic_without_its_package_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_formats", lambda: ("JPEG", "PNG", "AVIF"))
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x1cftypheic" + bytes(40))
    with pytest.raises(DataError, match=r"a\.jpg is a HEIC, which needs pillow-heif: pip install 'hashgym\[heif\]'$"):
        pictures.open_image(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes(b"\0\0\0\x1cftypmp42" + bytes(40))
    with pytest.raises(DataError, match=r"b\.jpg is damaged or not a picture: it is not one of JPEG, PNG, AVIF$"):
        pictures.open_image(tmp_path / "b.jpg")


def test_cmyk_jpeg_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (5, 3), (0, 0, 0, 0)).save(tmp_path / "a.jpg")
    assert np.asarray(pictures.open_image(tmp_path / "a.jpg")).min() > 250


def test_exif_orientation_turns_the_picture_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (6, 2), (0, 0, 0))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    image.save(tmp_path / "a.png", exif=exif)
    opened = pictures.open_image(tmp_path / "a.png")
    assert opened.size == (2, 6)
    assert opened.getpixel((1, 0)) == (255, 255, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_and_its_file_become_the_same(tmp_path: Path, orientation: int) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("a.jpg", "a.png", "a.tif", "a.webp"):
        image.save(tmp_path / name, exif=exif)
        opened = pictures.open_image(tmp_path / name)
        with Image.open(tmp_path / name) as lazy:
            turned = pictures.to_rgb(lazy)
            wanted = ImageOps.exif_transpose(lazy).convert("RGB")
        for found in (opened, turned, pictures.to_rgb(opened), pictures.to_rgb(turned)):
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
    expected = pictures.open_image(tmp_path / name).tobytes()
    image.save(tmp_path / name, exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter(filter)
        assert pictures.open_image(tmp_path / name).tobytes() == expected
    with Image.open(tmp_path / name) as lazy, warnings.catch_warnings():
        warnings.simplefilter(filter)
        assert pictures.to_rgb(lazy).tobytes() == expected


def test_warnings_that_are_errors_do_no_harm(tmp_path: Path) -> None:
    see_through(0)["P, bytes"].save(tmp_path / "palette.png")
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x02\0\0\0\x06\0\x01\0" + bytes(4)
    Image.new("RGB", (4, 2)).save(tmp_path / "turned.png", exif=exif)  # two orientations: Pillow warns, takes the first
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pictures.open_image(tmp_path / "palette.png").getpixel((0, 0)) == (255, 255, 255)
        assert pictures.open_image(tmp_path / "turned.png").size == (2, 4)
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
            pictures.open_image(tmp_path / name).save(out, suffix)
            assert b"secret" not in out.getvalue()


def test_truncated_images_are_rejected_by_name(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    for suffix in ("jpg", "png", "bmp", "gif", "webp", "tiff"):
        path = tmp_path / f"whole.{suffix}"
        Image.fromarray(noise).save(path)
        pictures.open_image(path)
        broken = tmp_path / f"broken.{suffix}"
        broken.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 5])
        with pytest.raises(DataError, match=rf"train/7.{suffix} is damaged"):
            pictures.open_image(broken, f"train/7.{suffix}")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.parametrize("content", [b"", b"no picture", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_other_bytes_are_not_a_picture(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.jpg is damaged or not a picture"):
        pictures.open_image(tmp_path / "a.jpg")


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jpg cannot be read: No such file"):
        pictures.open_image(tmp_path / "gone.jpg")
    (tmp_path / "a.jpg").mkdir()
    with pytest.raises(DataError, match=r"a\.jpg cannot be read"):
        pictures.open_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("size", [3 << 30, 40_000_000_000])
@pytest.mark.parametrize(
    "start", [b"", b"\xff\xd8\xff\xe0", b"P6 5 5 255\n", b"\0\0\0\x1cftypavif", b"RIFF\0\0\0\0WEBP"]
)
def test_giant_files_are_rejected_unread(tmp_path: Path, size: int, start: bytes) -> None:
    with (tmp_path / "a.jpg").open("wb") as file:
        file.write(start)
        file.truncate(size)  # sparse
    with bounded(octets=1 << 26), pytest.raises(DataError, match=r"a\.jpg has more than 536,870,912 bytes"):
        pictures.open_image(tmp_path / "a.jpg")


def test_large_files_are_read_no_further_than_their_header(tmp_path: Path) -> None:
    for start in (b"", b"P6 10000 9000 255\n"):
        with (tmp_path / "a.jpg").open("wb") as file:
            file.write(start)
            file.truncate(500 << 20)
        with bounded(octets=1 << 26), pytest.raises(DataError, match=r"a\.jpg (is damaged|has 10000 x 9000 pixels)"):
            pictures.open_image(tmp_path / "a.jpg")


def test_a_stream_without_end_is_read_no_further_than_allowed() -> None:
    with Path("/dev/zero").open("rb") as file, pytest.raises(DataError, match="uploaded has more than 1,000 bytes"):
        pictures.open_image(file, max_bytes=1000)


def test_a_picture_that_does_not_fit_in_memory_is_a_bad_picture(tmp_path: Path) -> None:
    Image.new("1", (9_000, 8_000)).save(tmp_path / "a.png")
    script = (  # in a process of its own, which has no memory left over from other tests
        "import sys; from pathlib import Path; from PIL import Image; from hashgym.data import pictures; "
        "from tests.reliability.damage import bounded\n"
        "with bounded(octets=1 << 27): pictures.open_image(Path(sys.argv[1]))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "a.png"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert "DataError: image " in ended.stderr
    assert "a.png does not fit in memory" in ended.stderr


def test_more_than_8_bits_are_rejected(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match=r"deep.png has more than 8 bits.*convert"):
        pictures.open_image(tmp_path / "deep.png")


def test_decompression_bombs_are_rejected_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("1", (4_000, 3_000)).save(tmp_path / "big.png")
    monkeypatch.setattr(pictures, "MAX_PIXELS", 10_000_000)
    with pytest.raises(DataError, match="4000 x 3000 pixels"):
        pictures.open_image(tmp_path / "big.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)  # Pillow's own guard
    with pytest.raises(DataError, match=r"big\.png has too many pixels"):
        pictures.open_image(tmp_path / "big.png", max_pixels=20_000_000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000_000)  # from here to its double it warns
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match=r"big\.png has too many pixels"):
            pictures.open_image(tmp_path / "big.png", max_pixels=20_000_000)


def test_a_limit_on_pixels_is_the_most_that_is_allowed(tmp_path: Path) -> None:
    Image.new("L", (30, 20)).save(tmp_path / "a.png")
    assert pictures.open_image(tmp_path / "a.png", max_pixels=600).size == (30, 20)
    with pytest.raises(DataError, match="30 x 20 pixels, more than the limit of 599"):
        pictures.open_image(tmp_path / "a.png", max_pixels=599)


def test_bytes_and_streams_are_opened_as_files_are(tmp_path: Path) -> None:
    Image.new("RGB", (5, 3), (9, 8, 7)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    for source in (tmp_path / "a.png", data, BytesIO(data)):
        assert pictures.open_image(source, max_bytes=len(data)).tobytes() == bytes([9, 8, 7]) * 15
    for source in (tmp_path / "a.png", data, BytesIO(data)):
        with pytest.raises(DataError, match=rf"image b has more than {len(data) - 1} bytes"):
            pictures.open_image(source, "b", max_bytes=len(data) - 1)
    with pytest.raises(DataError, match="image uploaded is damaged or not a picture: it is not one of BMP, GIF, JPEG"):
        pictures.open_image(b"<svg/>")


def test_formats_that_start_programs_are_rejected_whatever_the_name(tmp_path: Path) -> None:
    Image.new("RGB", (5, 3)).save(tmp_path / "a.eps")  # Ghostscript would run it
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"a\.jpg is damaged or not a picture: it is not one of BMP"):
        pictures.open_image(tmp_path / "a.jpg")


def test_a_reduced_picture_has_the_minimum_size_and_is_still_checked(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 640, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg")
    for at_least, size in [(400, (640, 400)), (200, (320, 200)), (60, (160, 100)), (1, (80, 50))]:
        assert pictures.open_image(tmp_path / "a.jpg", at_least=at_least).size == size
    with pytest.raises(DataError, match="640 x 400 pixels"):
        pictures.open_image(tmp_path / "a.jpg", at_least=60, max_pixels=200_000)


@pytest.mark.parametrize("extra", [0, 40, 400])
def test_jpegs_of_needlessly_many_scans_are_rejected(extra: int) -> None:
    """Each scan is a pass over all pixels that takes a hundred bytes or less: 32 MB of them would take hours."""
    out = BytesIO()
    Image.new("L", (64, 64), 100).save(out, "JPEG", progressive=True)
    data = out.getvalue()
    last = data.rindex(b"\xff\xda")
    exif = b"\xff\xe1\x02\x02" + b"\xff\xda" * 256  # inside a segment that is no scan
    film = b"\xff\xda\x00\x02" * 1000  # behind the end
    whole = data[:2] + exif + data[2:last] + data[last:-2] * (1 + extra) + data[-2:] + film
    if extra < 60:
        assert pictures.open_image(whole).tobytes() == pictures.open_image(data).tobytes()
    else:
        with pytest.raises(DataError, match="more than 64 scans"):
            pictures.open_image(whole)


def test_an_opener_goes_to_other_processes(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2), (1, 2, 3)).save(tmp_path / "a.png")
    opener = pickle.loads(pickle.dumps(pictures.OpenImage(tmp_path, ["a.png"])))
    assert opener(0).getpixel((0, 0)) == (1, 2, 3)
