"""Files made to do harm: to allocate, to take for ever, to run something. Each is refused in words, and at once."""

from __future__ import annotations

import json
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hashgym.data import DataError, cache, read_images, sealed
from tests.reliability.damage import bounded

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="bounds are those of Linux")

GIANT = (1 << 40, 128)


def header(shape: tuple[int, ...], kind: str = "<f4") -> bytes:
    """The header of an array's file."""
    text = repr({"descr": kind, "fortran_order": False, "shape": shape}).encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def png(width: int, height: int, content: bytes = b"") -> bytes:
    """A picture that says it has this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")


def refused(read: Callable[[], Any], kind: type[Exception] = DataError, match: str | None = None) -> None:
    """Reading must fail in words, within little time and memory."""
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


def test_a_list_with_a_photo_under_two_names_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    listed(tmp_path, b"a.png 0 1\n/a.png 1 0\n", "twice")


def test_a_batch_of_nested_tuples_as_a_key_is_refused(tmp_path: Path) -> None:
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
def test_a_batch_that_is_no_batch_is_refused(tmp_path: Path, program: bytes) -> None:
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
def test_annotations_that_are_none_are_refused(tmp_path: Path, content: str) -> None:
    for part in ("train2014", "val2014"):
        (tmp_path / part).mkdir()
        (tmp_path / f"instances_{part}.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    refused(lambda: read_images("coco", tmp_path), match="instances_train2014.json is damaged")


def test_an_array_that_says_it_is_giant_is_refused(tmp_path: Path) -> None:
    from hashgym.features.bow import read_words
    from tests.data.test_cache import dataset

    (tmp_path / "words.npy").write_bytes(header(GIANT) + bytes(64))
    refused(lambda: read_words(tmp_path / "words.npy"))
    cache.save(dataset(), tmp_path / "features")
    (tmp_path / "features" / "features.npy").write_bytes(header(GIANT) + bytes(64))
    refused(lambda: cache.open_cache(tmp_path / "features"), match=r"features\.npy")
    refused(lambda: cache.seal(tmp_path / "features", "x", ["a"], ["b"], {}), match="is damaged")


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


def test_a_hasher_that_says_it_is_giant_is_refused(tmp_path: Path) -> None:
    from hashgym import hashers

    hashers.load(hasher(tmp_path))
    for arrays in ({"projection_": header(GIANT) + bytes(64)}, {"meta": header((), "<U1000000000000")}):
        path = hasher(tmp_path, **arrays)
        refused(lambda path=path: hashers.load(path), ValueError, "is damaged")


def test_a_hasher_that_grows_when_unpacked_is_refused(tmp_path: Path) -> None:
    from hashgym import hashers

    path = hasher(tmp_path, zipfile.ZIP_DEFLATED, more_=header((1 << 28,)) + bytes(1 << 30))
    assert path.stat().st_size < 2 << 20
    refused(lambda: hashers.load(path), ValueError, "is damaged")


def test_results_with_a_field_without_end_are_refused(tmp_path: Path) -> None:
    from benchmarks.results import COLUMNS, Results

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
def test_a_picture_that_is_none_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    from hashgym.data.files import open_image

    (tmp_path / name).write_bytes(content)
    refused(lambda: open_image(tmp_path / name), match=name)


def test_a_picture_of_one_row_takes_no_more_memory_than_another(tmp_path: Path) -> None:
    """Its longer side would have 256 x 60,000 pixels once its shorter side is 256."""
    from hashgym.features.backbone import Fit

    image = Image.new("RGB", (60_000, 1))
    with bounded(octets=1 << 28):
        for picture in (image, image.transpose(Image.Transpose.ROTATE_90)):
            assert Fit(224, 256, "bilinear")(picture).shape == (224, 224, 3)


def test_meta_with_its_own_digest_but_nonsense_in_it_is_refused(tmp_path: Path) -> None:
    """A digest says that nobody changed a file by accident, not that it makes sense."""
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


def test_codes_and_indices_with_their_own_digest_but_nonsense_in_it_are_refused(tmp_path: Path) -> None:
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
    """Write ``meta.json`` with a digest of what it now says."""
    said = {key: value for key, value in meta.items() if key != "digest"}
    file.write_text(json.dumps(said | {"digest": sealed.digest(said)}))
