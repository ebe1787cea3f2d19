from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hashgym.data import DataError, read_images, splits
from hashgym.data.readers import cifar10

ROWS = 20  # in each of the six batches
BATCHES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]


def batch(number: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Pixels and labels of a made-up batch, two images a class."""
    rng = np.random.default_rng(number)
    return rng.integers(0, 256, (ROWS, 3072)).astype(np.uint8), rng.permutation(ROWS).astype(np.uint8) % 10


def write_binary(folder: Path) -> None:
    folder.mkdir()
    for number, name in enumerate(BATCHES):
        pixels, labels = batch(number)
        (folder / f"{name}.bin").write_bytes(np.hstack([labels[:, None], pixels]).tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(cifar10.CLASSES) + "\n\n")


def python2_pickle(pixels: NDArray[np.uint8], labels: NDArray[np.uint8]) -> bytes:
    """A batch as Python 2 and NumPy 1.6 wrote it in protocol 2: byte strings, memo entries, and labels in appends."""

    def short(text: str, memo: int) -> bytes:
        return b"U" + bytes([len(text)]) + text.encode() + b"q" + bytes([memo])

    def number(value: int) -> bytes:
        return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)

    data = pixels.tobytes()
    return b"".join(
        [
            b"\x80\x02}q\x01(",
            short("batch_label", 2) + short("training batch 1 of 5", 3),
            short("labels", 4) + b"]q\x05(" + b"".join(number(int(label)) for label in labels) + b"e",
            short("data", 6) + b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85q\x09",
            short("b", 10) + b"\x87q\x0bRq\x0c(K\x01" + number(len(pixels)) + number(3072) + b"\x86q\x0d",
            b"cnumpy\ndtype\nq\x0e" + short("u1", 15) + b"K\x00K\x01\x87q\x10Rq\x11(K\x03" + short("|", 18),
            b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x13b\x89T" + struct.pack("<i", len(data)) + data,
            b"q\x14tq\x15b" + short("filenames", 22) + b"]q\x17(",
            b"".join(short(f"leptodactylus_{i:06d}.png", 24 + i) for i in range(len(pixels))),
            b"eu.",
        ]
    )


def python3_pickle(pixels: NDArray[np.uint8], labels: NDArray[np.uint8]) -> bytes:
    content: dict[Any, Any] = {b"data": pixels, b"labels": labels.tolist(), b"batch_label": b"x", b"filenames": [b"y"]}
    return pickle.dumps({key.decode(): value for key, value in content.items()}, protocol=2)


def write_python(folder: Path, dump: Callable[[NDArray[np.uint8], NDArray[np.uint8]], bytes]) -> None:
    folder.mkdir()
    for number, name in enumerate(BATCHES):
        (folder / name).write_bytes(dump(*batch(number)))


def check_batches(root: Path) -> None:
    collection = read_images("cifar10", root)
    assert len(collection) == 6 * ROWS
    assert collection.names[0] == "train/00000"
    assert collection.names[5 * ROWS - 1] == f"train/{5 * ROWS - 1:05d}"
    assert collection.names[-1] == f"test/{ROWS - 1:05d}"
    assert collection.label_names == cifar10.CLASSES
    labels = np.concatenate([batch(number)[1] for number in range(6)])
    np.testing.assert_array_equal(collection.labels, np.eye(10, dtype=np.uint8)[labels])
    for index in (0, ROWS - 1, ROWS, 6 * ROWS - 1):
        row = batch(index // ROWS)[0][index % ROWS]
        picture = collection.read(index)
        assert (picture.mode, picture.size) == ("RGB", (32, 32))
        assert picture.getpixel((3, 2)) == (row[2 * 32 + 3], row[1024 + 2 * 32 + 3], row[2048 + 2 * 32 + 3])


def test_the_hand_written_batch_is_what_python_2_would_unpickle() -> None:
    pixels, labels = batch(0)
    content = pickle.loads(python2_pickle(pixels, labels), encoding="bytes")
    assert set(content) == {b"batch_label", b"labels", b"data", b"filenames"}
    np.testing.assert_array_equal(content[b"data"], pixels)


def test_binary_batches(tmp_path: Path) -> None:
    write_binary(tmp_path / "cifar-10-batches-bin")
    check_batches(tmp_path)
    check_batches(tmp_path / "cifar-10-batches-bin")


@pytest.mark.parametrize("dump", [python2_pickle, python3_pickle])
def test_python_batches(tmp_path: Path, dump: Callable[..., bytes]) -> None:
    write_python(tmp_path / "cifar-10-batches-py", dump)
    check_batches(tmp_path)
    check_batches(tmp_path / "cifar-10-batches-py")


def test_both_official_versions_give_the_same_splits(tmp_path: Path) -> None:
    write_binary(tmp_path / "bin")
    write_python(tmp_path / "py", python2_pickle)
    a, b = read_images("cifar10", tmp_path / "bin"), read_images("cifar10", tmp_path / "py")
    assert a.names == b.names
    np.testing.assert_array_equal(a.labels, b.labels)
    np.testing.assert_array_equal(np.asarray(a.read(77)), np.asarray(b.read(77)))


def test_class_folders(tmp_path: Path, picture: Callable[..., Path]) -> None:
    for part, count in (("train", 3), ("test", 2)):
        for number, label in enumerate(cifar10.CLASSES):
            for i in range(count):
                picture(tmp_path / part / label / f"{i:04d}.png", (number, i, count), (32, 32))
    collection = read_images("cifar10", tmp_path)
    assert len(collection) == 50
    assert collection.names[:4] == ("train/airplane/0000.png", *(f"train/airplane/000{i}.png" for i in (1, 2)),
                                    "train/automobile/0000.png")  # fmt: skip
    assert collection.names[-1] == "test/truck/0001.png"
    np.testing.assert_array_equal(collection.labels.sum(axis=0), 5)
    assert collection.read(4).getpixel((0, 0)) == (1, 1, 3)
    split = splits.make(
        "cifar10", "cifar10-2", labels=collection.labels, label_names=cifar10.CLASSES, names=collection.names
    )
    np.testing.assert_array_equal(split.query, np.arange(30, 50))
    np.testing.assert_array_equal(split.train, np.arange(30))
    np.testing.assert_array_equal(split.database, np.arange(30))
    (tmp_path / "test" / "dog" / "0000.png").unlink()
    (tmp_path / "test" / "dog" / "0001.png").unlink()
    with pytest.raises(DataError, match="dog holds no images"):
        read_images("cifar10", tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs the folder that it is in"):
        read_images("cifar10")
    with pytest.raises(DataError, match="nowhere is not a folder; expected: cifar-10-batches-bin"):
        read_images("cifar10", tmp_path / "nowhere")
    with pytest.raises(DataError, match="has no CIFAR-10; expected: cifar-10-batches-bin"):
        read_images("cifar10", tmp_path)
    write_binary(tmp_path / "cifar-10-batches-bin")
    (tmp_path / "cifar-10-batches-bin" / "data_batch_4.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_4.bin is missing"):
        read_images("cifar10", tmp_path)


def test_damaged_binary_batches(tmp_path: Path) -> None:
    write_binary(tmp_path / "cifar-10-batches-bin")
    path = tmp_path / "cifar-10-batches-bin" / "data_batch_2.bin"
    whole = path.read_bytes()
    for content, reason in (
        (whole[:-1], "not a multiple of rows"),
        (b"", "not a multiple of rows"),
        (b"\x0a" + whole[1:], "labels"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"data_batch_2.bin is damaged.*{reason}"):
            read_images("cifar10", tmp_path)


class Exploit:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def test_a_batch_is_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    folder = tmp_path / "cifar-10-batches-py"
    write_python(folder, python2_pickle)
    attack = {"data": Exploit(marker), "labels": [1]}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (folder / "data_batch_1").write_bytes(pickle.dumps(attack, protocol))
        with pytest.raises(DataError, match="data_batch_1 is damaged, or not a pickled dict of arrays"):
            read_images("cifar10", tmp_path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(attack, 2))
    assert marker.exists()  # so it was dangerous


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"data": np.zeros((2, 3072), np.uint8)}, "'labels' is not a list of 2"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}, "'labels' is not a list of 2"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1, "2"]}, "'labels' is not a list of 2"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1, 10]}, "labels outside 0 to 9"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1, -3]}, "labels outside 0 to 9"),
        ({"data": np.zeros((2, 3071), np.uint8), "labels": [1, 2]}, "not a uint8 array of shape"),
        ({"data": np.zeros((2, 3072), np.float32), "labels": [1, 2]}, "not a uint8 array of shape"),
        ({"data": {"data": np.zeros((2, 3072), np.uint8)}, "labels": [1, 2]}, "not a uint8 array of shape"),
        ({"labels": [1, 2]}, "not a uint8 array of shape"),
        ({"data": {1, 2}}, "not a pickled dict of arrays"),
        ([1, 2], "not a pickled dict of arrays"),
    ],
)
def test_other_contents_are_rejected(tmp_path: Path, content: Any, reason: str) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    write_python(folder, python2_pickle)
    (folder / "test_batch").write_bytes(pickle.dumps(content, 2))
    with pytest.raises(DataError, match=f"test_batch is damaged.*{reason}"):
        read_images("cifar10", tmp_path)


def test_damaged_python_batches_are_rejected_wherever_they_break(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    write_python(folder, python2_pickle)
    whole = python2_pickle(*batch(0))
    rng = np.random.default_rng(0)
    header = whole.index(b"|") + 40
    for cut in [*range(header), len(whole) - 1]:
        (folder / "data_batch_1").write_bytes(whole[:cut])
        with pytest.raises(DataError, match="data_batch_1 is damaged"):
            cifar10._python_batch(folder / "data_batch_1")
    for _ in range(500):  # a changed byte may also leave a batch that can be read; anything but DataError is wrong
        changed = bytearray(whole)
        changed[rng.integers(header)] = rng.integers(256)
        (folder / "data_batch_1").write_bytes(changed)
        try:
            pixels, labels = cifar10._python_batch(folder / "data_batch_1")
        except DataError:
            continue
        assert pixels.shape == (len(labels), 3072)
