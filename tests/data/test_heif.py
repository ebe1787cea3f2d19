"""HEIC files, written by pillow-heif: read like other pictures, within the same limits."""

from __future__ import annotations

import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hashgym.data import DataError, image_files, pictures
from tests.reliability.damage import bounded

pillow_heif = pytest.importorskip("pillow_heif", reason="HEIC needs pillow-heif: pip install 'hashgym[heif]'")


def heic(image: Image.Image, **options: Any) -> bytes:
    """A picture as HEIC."""
    file = BytesIO()
    pillow_heif.from_pillow(image).save(file, **{"quality": 90, **options})
    return file.getvalue()


def blocks(width: int = 96, height: int = 64) -> Image.Image:
    colours = np.random.default_rng(0).integers(0, 256, (2, 3, 3), np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.NEAREST)


def test_a_heic_is_found_and_read(tmp_path: Path) -> None:
    for name in ("a.heic", "b.HEIF", "c.jpg", "without extension"):
        (tmp_path / name).write_bytes(heic(blocks()))
    assert image_files.list_images(tmp_path).names == ["a.heic", "b.HEIF", "c.jpg", "without extension"]
    for path in tmp_path.iterdir():
        opened = pictures.open_image(path)
        assert (opened.mode, opened.size, opened.info) == ("RGB", (96, 64), {})
        assert np.abs(np.subtract(opened, blocks(), dtype=int)).mean() < 6


def test_it_is_registered_only_for_files_that_begin_like_one(tmp_path: Path) -> None:
    blocks().save(tmp_path / "a.png")
    (tmp_path / "a.heic").write_bytes(heic(blocks()))
    script = (
        "import sys; from pathlib import Path; from PIL import Image; from hashgym.data.pictures import open_image\n"
        "for name in sys.argv[1:]: open_image(Path(name)); print('pillow_heif' in sys.modules)"
    )
    command = [sys.executable, "-c", script, tmp_path / "a.png", tmp_path / "a.heic"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == ["False", "True"]


def test_upright_once_and_transparent_on_white() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = pictures.open_image(heic(blocks(), exif=exif.tobytes()))
    assert turned.size == (64, 96)
    expected = blocks().transpose(Image.Transpose.ROTATE_270)
    assert np.abs(np.subtract(turned, expected, dtype=int)).mean() < 6
    clear = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    assert np.asarray(pictures.open_image(heic(clear))).min() > 250
    assert pictures.open_image(heic(Image.new("L", (64, 64), 77))).getpixel((3, 3)) == pytest.approx((77,) * 3, abs=2)


def test_ten_bits_are_scaled_to_eight() -> None:
    ramp = np.repeat(np.linspace(0, 65535, 64).astype("<u2")[None, :, None], 64, axis=0).repeat(3, axis=2)
    file = BytesIO()
    pillow_heif.from_bytes("RGB;16", (64, 64), ramp.tobytes()).save(file, quality=-1, chroma=444)
    opened = np.asarray(pictures.open_image(file.getvalue()))[..., 1]
    np.testing.assert_allclose(opened, ramp[..., 1] / 257, atol=3)


def test_the_main_picture_is_shown_not_its_thumbnail() -> None:
    file = BytesIO()
    pillow_heif.from_pillow(blocks(960, 640)).save(file, quality=50, thumbnails=[128])
    assert pictures.open_image(file.getvalue(), at_least=64).size == (960, 640)


def patched(content: bytes, size: tuple[int, int], declared: tuple[int, int]) -> bytes:
    """The file with another size in every box that has this one."""
    before, after = (b"".join(side.to_bytes(4, "big") for side in sides) for sides in (size, declared))
    assert before in content
    return content.replace(before, after)


def test_limits_hold_before_and_while_decoding() -> None:
    content = heic(blocks(1200, 800), quality=10)
    with pytest.raises(DataError, match="uploaded has 1200 x 800 pixels, more than the limit of 100,000"):
        pictures.open_image(content, max_pixels=100_000)
    with pytest.raises(DataError, match="uploaded has more than 100 bytes"):
        pictures.open_image(content, max_bytes=100)
    for side, message in (
        (30_000, "uploaded has too many pixels"),
        (9_200, "uploaded has 9200 x 9200 pixels, more than"),
    ):
        with bounded(octets=1 << 28), pytest.raises(DataError, match=message):
            pictures.open_image(patched(content, (1200, 800), (side, side)))
    with pytest.raises(DataError, match="damaged or not a picture"):  # decodes to more than it declares
        pictures.open_image(patched(heic(blocks(3000, 2000), quality=10), (3000, 2000), (64, 64)))


def test_tiles_count_as_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pillow_heif.options, "GRID_TILE_SIZE", 512)
    content = heic(blocks(1500, 1000), quality=10)
    assert pictures.open_image(content, max_pixels=6 * 512 * 512).size == (1500, 1000)
    grid = b"".join(side.to_bytes(2, "big") for side in (1500, 1000))
    assert content.count(grid) == 1
    small = patched(content.replace(grid, (64).to_bytes(2, "big") * 2), (1500, 1000), (64, 64))  # six tiles are decoded
    with pytest.raises(DataError, match="has parts of 1,572,864 pixels, more than the limit of 1,000,000"):
        pictures.open_image(small, max_pixels=1_000_000)
    giant = patched(small, (512, 512), (40_000, 40_000))
    with pytest.raises(DataError, match=r"has parts of [\d,]+ pixels|damaged"):
        pictures.open_image(giant)


def test_a_part_is_found_in_both_forms_of_a_box() -> None:
    class Without:
        info: dict[str, Any] = {}  # noqa: RUF012

    sides = (70_000).to_bytes(4, "big") + (3).to_bytes(4, "big")
    for box in (b"\0\0\0\x14ispe" + bytes(4), b"\0\0\0\1ispe" + bytes(7) + b"\x1c" + bytes(4)):
        assert pictures._heif_pixels(Without(), BytesIO(b"..." + box + sides + b"...")) == 210_000  # type: ignore[arg-type]
    narrow = b"\0\0\0\x14ispe" + bytes(4) + (7).to_bytes(4, "big") + (9).to_bytes(4, "big")
    assert pictures._heif_pixels(Without(), BytesIO(narrow)) == 63  # type: ignore[arg-type]


@pytest.mark.parametrize("length", [0, 20, 100, 400, -40])
def test_a_truncated_heic_is_a_bad_picture(length: int) -> None:
    with pytest.raises(DataError, match="damaged or not a picture"):
        pictures.open_image(heic(blocks())[:length])


def test_damage_is_one_error() -> None:
    content, rng = heic(blocks()), np.random.default_rng(0)
    errors = []
    for _ in range(150):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), 3):
            damaged[place] = rng.integers(256)
        try:
            assert pictures.open_image(bytes(damaged)).mode == "RGB"
        except DataError as error:
            errors.append(str(error))
    assert errors
    assert not any("\n" in error for error in errors)


def test_encode_search_and_serve_read_heic(tmp_path: Path) -> None:
    from hashgym.gallery import build, encode_images, open_gallery
    from hashgym.gallery.decoding import Decoders
    from tests.gallery.small import picture, write_encoder

    (tmp_path / "photos").mkdir()
    for i in range(4):
        (tmp_path / "photos" / f"{i}.heic").write_bytes(heic(picture(i), quality=-1, chroma=444))
    encode_images(write_encoder(tmp_path / "encoder.onnx"), [tmp_path / "photos"], tmp_path / "codes", progress=False)
    with open_gallery(build([tmp_path / "codes"], tmp_path / "index", "brute-force", progress=False)) as gallery:
        assert [(match.name, match.distance) for match in gallery.search(picture(2), 1)] == [("2.heic", 0)]
    decoders = Decoders(max_bytes=1 << 25, max_pixels=50_000_000)
    try:
        assert decoders(tmp_path / "photos" / "1.heic", "1.heic", longer=16).thumbnail.size == (16, 12)
        large = BytesIO(heic(blocks(4000, 3000), quality=5))
        assert decoders(large, "large.heic", longer=256).thumbnail.size == (256, 192)
    finally:
        decoders.close()
