"""Malicious files that would take memory or time, or run code: each is rejected at once with a message."""

from __future__ import annotations

import json
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image, features

from hashgym.data import DataError, cache, read_images
from hashgym.data.readers.mirflickr25k import LABELS
from hashgym.index.base import read_meta
from hashgym.storage import sealed
from tests.reliability.damage import bounded

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="bounds are those of Linux")

GIANT = (1 << 40, 128)


def header(shape: tuple[int, ...], kind: str = "<f4") -> bytes:
    """The header of an array's file."""
    text = repr({"descr": kind, "fortran_order": False, "shape": shape}).encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, content: bytes = b"") -> bytes:
    """A picture whose header has this size."""

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")


def refused(read: Callable[[], Any], kind: type[Exception] = DataError, match: str | None = None) -> None:
    """Reading must fail with a message, within little time and memory."""
    with bounded(octets=1 << 29), pytest.raises(kind, match=match):
        read()


def listed(folder: Path, content: bytes, match: str) -> None:
    (folder / "list.txt").write_bytes(content)
    refused(lambda: read_images(f"list:{folder / 'list.txt'}"), match=match)


@pytest.mark.parametrize("inside", [b" " * 1_000_000, b" 0" * 500_000, b"/a" * 500_000, b"\t0 " * 300_000])
def test_a_long_line_of_a_list_takes_no_longer_than_it_is_long(tmp_path: Path, inside: bytes) -> None:
    listed(tmp_path, b"a.png" + inside + b"x\n", "line 1")
    listed(tmp_path, b"/a.png" + inside + b"x 0\n", "1 images are missing")


@pytest.mark.parametrize("name", [b".", b"..", b"/", b"//", b"C:", b"\\", b"a" * 5000, b"a\0b", b"\xff", b"~"])
def test_a_name_in_a_list_that_no_file_has_is_missing(tmp_path: Path, name: bytes) -> None:
    listed(tmp_path, name + b" 0 1\n", "1 images are missing")


def test_a_list_with_a_photo_under_two_names_is_rejected(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    listed(tmp_path, b"a.png 0 1\n/a.png 1 0\n", "twice")


def test_a_batch_of_nested_tuples_as_a_key_is_rejected(tmp_path: Path) -> None:
    """To hash it would take 2^60 steps: every tuple holds the one before twice, by reference."""
    nest = b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) + b"0" for i in range(60))
    program = b"\x80\x02)q\x000" + nest.replace(b"0h", b"h") + b"}h\x3cK\x01s."
    batch(tmp_path, program)
    batch(tmp_path, b"\x80\x02}(" + b")q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"K\x01u.")


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b"\x80\x02}e.",
        b"\x80\x02}u.",
        b"\x80\x02u.",
        b"\x80\x02s.",
        b"\x80\x02.",
        b"\x80\x02}" + b"(" * 100_000,
        b"\x80\x02]q\x00" + b"(h\x00e" * 1000 + b".",
        b"\x80\x02T\xff\xff\xff\x7fabc.",
        b"\x80\x02cos\nsystem\nU\x04true\x85R.",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
    ],
)
def test_an_invalid_batch_is_rejected(tmp_path: Path, program: bytes) -> None:
    batch(tmp_path, program)


def batch(folder: Path, program: bytes) -> None:
    (folder / "data_batch_1").write_bytes(program)
    refused(lambda: read_images("cifar10", folder), match="data_batch_1 is damaged")


@pytest.mark.parametrize(
    "content",
    [
        "[" * 200_000,
        '{"a":' * 200_000,
        "9" * 5000,
        "\ud800",
        '{"images": [], "annotations": {"x": 1}, "categories": []}',
        '{"images": [], "annotations": 3, "categories": []}',
        '{"images": [[{}, 1]], "annotations": [], "categories": []}',
        '{"images": [{"file_name": "a", "id": []}], "annotations": [], "categories": []}',
    ],
)
def test_invalid_annotations_are_rejected(tmp_path: Path, content: str) -> None:
    for part in ("train2014", "val2014"):
        (tmp_path / part).mkdir()
        (tmp_path / f"instances_{part}.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    refused(lambda: read_images("coco", tmp_path), match="instances_train2014.json is damaged")


def test_an_array_with_a_giant_header_is_rejected(tmp_path: Path) -> None:
    from hashgym.features.bow import read_words
    from tests.data.test_cache import dataset

    (tmp_path / "words.npy").write_bytes(header(GIANT) + bytes(64))
    refused(lambda: read_words(tmp_path / "words.npy"))
    cache.save(dataset(), tmp_path / "features")
    (tmp_path / "features" / "features.npy").write_bytes(header(GIANT) + bytes(64))
    refused(lambda: cache.open_cache(tmp_path / "features"), match=r"features\.npy")
    refused(lambda: cache.seal(tmp_path / "features", "x", ["a"], ["b"], {}), match="is damaged")


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("list.txt", lambda folder: read_images(f"list:{folder / 'list.txt'}")),
        ("data_batch_1", lambda folder: read_images("cifar10", folder)),
        ("instances_train2014.json", lambda folder: read_images("coco", folder)),
        ("annotations/animals.txt", lambda folder: read_images("mirflickr25k", folder)),
        ("meta.json", lambda folder: cache.open_cache(folder)),
        ("meta.json", lambda folder: sealed.read_json(folder / "meta.json", "")),
        ("index.json", lambda folder: read_meta(folder)),
    ],
)
def test_giant_files_that_would_be_read_whole_are_rejected_unread(
    tmp_path: Path, name: str, read: Callable[[Path], Any]
) -> None:
    for part in ("train2014", "val2014", "annotations", "images"):
        (tmp_path / part).mkdir()
    for label in LABELS:
        (tmp_path / "annotations" / f"{label}.txt").touch()
    Image.new("RGB", (4, 4)).save(tmp_path / "im1.jpg")
    with (tmp_path / name).open("wb") as file:
        file.write(b'{"format": "hashgym-features"' if name == "meta.json" else b"")
        file.truncate(40_000_000_000)  # sparse
    refused(lambda: read(tmp_path), ValueError, "more than 1,073,741,824 bytes")


def test_too_many_words_are_rejected_unread(tmp_path: Path) -> None:
    from hashgym.features.bow import read_words

    with (tmp_path / "words.npy").open("wb") as file:
        file.write(header((50_000_000, 128)))
        file.truncate(file.tell() + 50_000_000 * 512)  # sparse, 26 GB
    with pytest.raises(DataError, match=r"words\.npy holds 50,000,000 words, and at most 1,000,000"):
        read_words(tmp_path / "words.npy")


def hasher(folder: Path, compression: int = zipfile.ZIP_STORED, **arrays: bytes) -> Path:
    """A saved hasher with other arrays."""
    from hashgym import hashers

    path = folder / "itq.npz"
    path.unlink(missing_ok=True)
    hashers.make("itq", bits=4).fit(np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)).save(path)
    with zipfile.ZipFile(path) as file:
        content = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, octets in (content | {f"{key}.npy": value for key, value in arrays.items()}).items():
            file.writestr(name, octets)
    return path


def test_a_hasher_with_a_giant_header_is_rejected(tmp_path: Path) -> None:
    from hashgym import hashers

    hashers.load(hasher(tmp_path))
    for arrays in ({"projection_": header(GIANT) + bytes(64)}, {"meta": header((), "<U1000000000000")}):
        path = hasher(tmp_path, **arrays)
        refused(lambda path=path: hashers.load(path), ValueError, "is damaged")


def test_a_hasher_that_grows_when_unpacked_is_rejected(tmp_path: Path) -> None:
    from hashgym import hashers

    path = hasher(tmp_path, zipfile.ZIP_DEFLATED, more_=header((1 << 27,)) + bytes(1 << 29))
    assert path.stat().st_size < 2 << 20
    refused(lambda: hashers.load(path), ValueError, "is damaged")


def test_results_with_a_field_without_end_are_rejected(tmp_path: Path) -> None:
    from benchmarks.common.results import COLUMNS, Results

    for content in (b'"' + b"a" * 1_000_000, b"a" * 1_000_000, b"\0" * 100, b"1," * 500_000, b'1,"2"3,4', b"\xff\xfe"):
        (tmp_path / "results.csv").write_bytes((",".join(COLUMNS) + "\n").encode() + content + b"\n")
        refused(lambda: Results(tmp_path).rows(), ValueError, r"results\.csv")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bomb.png", png(60_000, 60_000)),
        ("empty.png", png(0, 5)),
        ("cut.png", png(500, 500)),
        ("bomb.ppm", b"P6 60000 60000 255\n"),
        ("bomb.bmp", b"BM" + bytes(8) + struct.pack("<IIiiHHIIiiII", 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0)),
        ("program.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"),
        ("page.png", b"%PDF-1.4\n"),
        ("drawing.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        ("folder.tif", b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 65535) + b"\1\1\4\0\xff\xff\xff\xff" * 100),
    ],
)
def test_a_file_that_is_not_a_picture_is_rejected(tmp_path: Path, name: str, content: bytes) -> None:
    from hashgym.data.pictures import open_image

    (tmp_path / name).write_bytes(content)
    refused(lambda: open_image(tmp_path / name), match=name)


def saved(suffix: str, **options: Any) -> bytes:
    """A small sound picture."""
    out = BytesIO()
    Image.new("L", (64, 64), 100).save(out, suffix, **options)
    return out.getvalue()


def inserted(content: bytes, at: int, part: bytes, count: int) -> bytes:
    return content[:at] + part * count + content[at:]


def bitmap(runs: bytes) -> bytes:
    """A BMP of 2000 x 2000 with run-length encoding."""
    head = struct.pack("<IiiHHIIiiII", 40, 2000, 2000, 1, 8, 1, 0, 0, 0, 0, 0)
    return b"BM" + bytes(8) + struct.pack("<I", 54 + 1024) + head + bytes(1024) + runs


def tiff(entries: list[tuple[int, int, int, int]], content: bytes, big: bool = False) -> bytes:
    """A TIFF of these tags, types, counts and values."""
    head, entry = (
        (b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, len(entries)), "<HHQQ")
        if big
        else (
            b"II*\0" + struct.pack("<IH", 8, len(entries)),
            "<HHII",
        )
    )
    return (head + b"".join(struct.pack(entry, *values) for values in entries)).ljust(400, b"\0") + content


def strips(count: int, big: bool = False) -> bytes:
    """A TIFF of one column, every pixel of which is a strip."""
    tags = [(256, 4, 1, 1), (257, 4, 1, count), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    tags += [(273, 4, count, 400), (277, 3, 1, 1), (278, 4, 1, 1), (279, 4, count, 400)]
    return tiff(tags, struct.pack("<I", 1) * count, big)


GIF = saved("GIF")
MANY = 300_000
SLOW = {
    "text of millions of pixels.ppm": lambda: b"P3 1900 1900 255\n" + b"255 " * (3 * 1900**2),
    "text of bits.pbm": lambda: b"P1 8000 8000\n" + b"1" * 64_000_000,
    "comments.ppm": lambda: b"P3 100 100 255\n" + b"#\n" * MANY,
    "space.ppm": lambda: b"P3 100 100 255\n" + b" " * 30_000_000,
    "other largest value.ppm": lambda: b"P6 2000 2000 254\n" + bytes(3 * 2000**2),
    "comment in the header.ppm": lambda: b"P6 #" + b"a" * 3 * MANY + b"\n100 100 255\n" + bytes(30_000),
    "runs.bmp": lambda: bitmap(b"\1\5" * MANY),
    "empty runs.bmp": lambda: bitmap(b"\0\2\0\0" * MANY),
    "comments.jpg": lambda: inserted(saved("JPEG"), 2, b"\xff\xfe\0\2", MANY),
    "segments.jpg": lambda: inserted(saved("JPEG"), 2, b"\xff\xe5\0\2", MANY),
    "empty chunks.png": lambda: inserted(saved("PNG"), 33, chunk(b"teSt", b""), MANY // 4),
    "texts.png": lambda: inserted(saved("PNG"), 33, chunk(b"tEXt", b"a\0b"), MANY // 4),
    "empty content.png": lambda: inserted(saved("PNG"), 33, chunk(b"IDAT", b""), MANY // 4),
    "comments.gif": lambda: inserted(GIF, GIF.index(b",\0\0\0\0"), b"!\xfe\1a\0", MANY // 2),
    "long comment.gif": lambda: inserted(GIF, GIF.index(b",\0\0\0\0"), b"!\xfe" + b"\1a" * MANY + b"\0", 1),
    "strips.tif": lambda: strips(3 * MANY),
    "strips of a BigTIFF.tif": lambda: strips(MANY, big=True),
}


@pytest.mark.parametrize("name", SLOW)
def test_pictures_that_take_long_for_their_size_are_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Each would take tens of seconds or gigabytes for every 30 MB; Pillow decodes them in Python."""
    from hashgym.data import pictures
    from hashgym.data.pictures import open_image

    if name == "empty runs.bmp" and int(PIL.__version__.partition(".")[0]) < 12:
        pytest.skip("older versions of Pillow do not take empty runs for empty, and decode them quickly")
    monkeypatch.setattr(pictures, "MAX_READS", 100_000)  # a tenth, for quick tests

    (tmp_path / name).write_bytes(SLOW[name]())
    with bounded(seconds=5, octets=1 << 28), pytest.raises(DataError, match=f"{name} (consists of too many|is a )"):
        open_image(tmp_path / name)


def test_formats_that_pillow_reads_whole_are_bounded_in_pixels(tmp_path: Path) -> None:
    """WebP and AVIF files with giant headers are rejected before their pixels take memory."""
    from hashgym.data.pictures import open_image

    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "bomb.webp", save_all=True, append_images=frames[1:])
    bombs = {"bomb.webp": (b"VP8X", 12, (16_383).to_bytes(3, "little"))}
    if features.check("avif"):
        frames[0].save(tmp_path / "bomb.avif")
        bombs["bomb.avif"] = (b"ispe", 8, (16_000).to_bytes(4, "big"))
    for name, (before, place, side) in bombs.items():
        content = bytearray((tmp_path / name).read_bytes())
        at = content.index(before) + place
        content[at : at + 2 * len(side)] = 2 * side
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name} has (too many|16)"):
            open_image(tmp_path / name)


def test_pictures_beyond_the_limits_are_bad_pictures_and_left_out(tmp_path: Path) -> None:
    """Each is counted and named by --skip-bad, and the others are encoded; without it the first ends the job."""
    from hashgym.features import extract, make
    from hashgym.gallery import encode_images, open_codes
    from tests.gallery.small import write_encoder, write_pictures

    photos = write_pictures(tmp_path / "photos", ["a/1.png", "a/2.png"])
    (photos / "a" / "bomb.png").write_bytes(png(60_000, 60_000))
    (photos / "a" / "comments.ppm").write_bytes(SLOW["comments.ppm"]())
    for name, size in (("3 GB.jpg", 3 << 30), ("40 GB.jpg", 40_000_000_000)):
        with (photos / "a" / name).open("wb") as file:
            file.truncate(size)  # sparse
    bad = {"3 GB.jpg", "40 GB.jpg", "bomb.png", "comments.ppm"}
    encoder = write_encoder(tmp_path / "encoder.onnx")
    with bounded(octets=1 << 29):
        with pytest.raises(DataError, match="more than 536,870,912 bytes"):
            encode_images(encoder, [photos], tmp_path / "codes", progress=False)
        codes = open_codes(encode_images(encoder, [photos], tmp_path / "codes", skip_bad=True, progress=False))
        assert {Path(name).name for name in codes.left_out} == bad
        assert [Path(name).name for name in codes.names] == ["1.png", "2.png"]
        options = {"queries": 1, "train": 1, "workers": 1, "progress": False, "skip_bad": True}
        extract(read_images(f"folder:{photos}"), make("pixels", size=2), tmp_path / "features", **options)
    left_out = cache.open_cache(tmp_path / "features").provenance["left_out"]
    assert {Path(name).name for name in left_out} == bad


def test_pictures_of_the_same_kinds_but_ordinary_size_are_read() -> None:
    from hashgym.data.pictures import open_image

    noise = np.random.default_rng(0).integers(0, 100, (90, 120), np.uint8)
    text = b"P2\n# made by hand\n120 90\n100\n" + b"\n".join(b" ".join(b"%d" % v for v in row) for row in noise)
    binary = b"P5 120 90 100\n" + noise.tobytes()
    expected = np.round(noise / 100 * 255)
    for content in (text, binary):
        np.testing.assert_array_equal(np.asarray(open_image(content))[..., 0], expected)
    assert open_image(bitmap(b"".join(b"\xfa\1" * 8 + b"\0\0" for _ in range(2000)) + b"\0\1")).size == (2000, 2000)
    assert open_image(strips(5000)).size == (1, 5000)
    assert open_image(inserted(saved("PNG"), 33, chunk(b"tEXt", b"a\0b"), 1000)).size == (64, 64)
    assert open_image(inserted(saved("JPEG"), 2, b"\xff\xe5\0\2", 1000)).size == (64, 64)


def test_a_picture_of_one_row_takes_no_more_memory_than_another(tmp_path: Path) -> None:
    """Its longer side would have 256 x 60,000 pixels once its shorter side is 256."""
    from hashgym.features.backbone import Fit

    image = Image.new("RGB", (60_000, 1))
    with bounded(octets=1 << 28):
        for picture in (image, image.transpose(Image.Transpose.ROTATE_90)):
            assert Fit(224, 256, "bilinear")(picture).shape == (224, 224, 3)


def test_meta_with_its_own_digest_but_nonsense_in_it_is_rejected(tmp_path: Path) -> None:
    """A digest does not show that the content is valid."""
    from tests.data.test_cache import dataset

    cache.save(dataset(), tmp_path / "features")
    file = tmp_path / "features" / "meta.json"
    sound = json.loads(file.read_text())
    for key, value in [
        *(("files", nonsense) for nonsense in ([], {}, 3, {"features.npy": 3}, {"names.json": {}}, None)),
        *(
            (key, nonsense)
            for key in ("name", "provenance", "columns")
            for nonsense in (3, [99], [[]], "x", None, {"a": []})
        ),
        *((key, None) for key in sound if key not in ("digest", "images", "dim", "labels")),
    ]:
        vouch(file, {**sound, key: value})
        try:
            with bounded():
                cache.open_cache(tmp_path / "features")
        except DataError as error:
            assert "features" in str(error)  # noqa: PT017


def test_codes_and_indices_with_their_own_digest_but_nonsense_in_it_are_rejected(tmp_path: Path) -> None:
    from hashgym.gallery import open_codes, open_gallery
    from tests.reliability.test_fuzz import make_gallery

    make_gallery(tmp_path)
    for folder, read in (("codes", open_codes), ("index", open_gallery)):
        file = tmp_path / folder / "meta.json"
        sound = json.loads(file.read_text())
        for key in sound:
            for value in (None, -1, "../..", [[]], {"words.npy": {}}):
                vouch(file, {**sound, key: value})
                try:
                    with bounded():
                        read(tmp_path / folder)
                except ValueError as error:
                    assert folder in str(error)  # noqa: PT017


def vouch(file: Path, meta: dict[str, Any]) -> None:
    """Write ``meta.json`` with a digest that fits."""
    said = {key: value for key, value in meta.items() if key != "digest"}
    file.write_text(json.dumps(said | {"digest": sealed.digest(said)}))
