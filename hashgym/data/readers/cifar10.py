"""CIFAR-10 (Krizhevsky, 2009): 60,000 pictures of 32 x 32 in ten classes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hashgym.data.image_files import folder, list_images
from hashgym.data.images import ImageCollection
from hashgym.data.pictures import OpenImage
from hashgym.data.readers import Reader
from hashgym.storage.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
PIXELS = 3 * 32 * 32
LAYOUT = (
    "cifar-10-batches-bin/ or cifar-10-batches-py/ as the official archives unpack, "
    "or class folders train/CLASS/*.jpg and test/CLASS/*.jpg"
)


def read(root: str | Path) -> ImageCollection:
    """Read all images, the training part first. Names begin with ``train/`` or ``test/``, on which splits are based.

    Args:
        root: the folder with the official batches or their folder, or with ``train/`` and ``test/``. If there are
            several, binary batches are preferred to Python batches, and these to class folders.

    Raises:
        DataError: if none is found, a batch file is missing or damaged, or a class folder is missing or empty.
    """
    base = folder(root, LAYOUT)
    for place in (base / "cifar-10-batches-bin", base):
        if (place / f"{BATCHES[0]}.bin").exists():
            return _from_batches(place, ".bin")
    for place in (base / "cifar-10-batches-py", base):
        if (place / BATCHES[0]).exists():
            return _from_batches(place, "")
    if (base / "train").is_dir() and (base / "test").is_dir():
        return _from_folders(base)
    raise DataError(f"{base} has no CIFAR-10; expected: {LAYOUT}")


READER = Reader(read, LAYOUT)


def _from_folders(base: Path) -> ImageCollection:
    names: list[str] = []
    targets: list[int] = []
    for part in ("train", "test"):
        for target, label in enumerate(CLASSES):
            place = base / part / label
            files = list_images(place, follow_links=True).names if place.is_dir() else []
            if not files:
                raise DataError(f"{place} holds no images; expected: {LAYOUT}")
            names += [f"{part}/{label}/{file}" for file in files]
            targets += [target] * len(files)
    return _collection(names, np.array(targets), OpenImage(base, names), "class folders of images")


def _from_batches(base: Path, suffix: str) -> ImageCollection:
    read_batch = _binary_batch if suffix else _python_batch
    batches: list[NDArray[np.uint8]] = []
    names: list[str] = []
    targets: list[NDArray[np.int64]] = []
    for batch in BATCHES:
        path = base / f"{batch}{suffix}"
        if not path.is_file():
            raise DataError(f"{path} is missing; expected: {', '.join(b + suffix for b in BATCHES)} in {base}")
        pixels, labels = read_batch(path)
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(CLASSES):
            raise DataError(f"{path} is damaged: it has labels outside 0 to {len(CLASSES) - 1}")
        part = batch.partition("_")[0].replace("data", "train")
        first = sum(name.startswith(part) for name in names)
        names += [f"{part}/{i:05d}" for i in range(first, first + len(labels))]
        batches.append(pixels)
        targets.append(labels)
    return _collection(names, np.concatenate(targets), _Rows(batches), f"official batches ({base.name})")


def _collection(names: list[str], targets: NDArray[np.int64], read: Any, source: str) -> ImageCollection:
    labels = (targets[:, None] == np.arange(len(CLASSES))).astype(np.uint8)
    provenance, stamp = {"source": f"CIFAR-10, {source}"}, getattr(read, "stamp", None)
    return ImageCollection("cifar10", tuple(names), labels, CLASSES, read, provenance, stamp)


class _Rows:
    """Opens image ``i`` of batches of rows: 1,024 red, then green, then blue values."""

    def __init__(self, batches: list[NDArray[np.uint8]]) -> None:
        self.batches = batches
        self.ends = np.cumsum([len(batch) for batch in batches])

    def __call__(self, index: int) -> Image:
        from PIL import Image

        batch = int(np.searchsorted(self.ends, index, side="right"))
        row = self.batches[batch][index - self.ends[batch]]  # the difference is negative: counted from the end
        return Image.fromarray(np.ascontiguousarray(row.reshape(3, 32, 32).transpose(1, 2, 0)))


def _binary_batch(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Map pixels (n, 3072) and read labels (n,) of rows of one label byte and 3,072 pixel bytes."""
    size = path.stat().st_size
    if size == 0 or size % (1 + PIXELS):
        raise DataError(f"{path} is damaged: {size} bytes are not a multiple of rows of {1 + PIXELS}")
    rows = np.memmap(path, np.uint8, "r", shape=(size // (1 + PIXELS), 1 + PIXELS))
    return rows[:, 1:], rows[:, 0].astype(np.int64)


def _python_batch(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read pixels (n, 3072) and labels (n,) of a batch of the Python version, without unpickling it."""
    from hashgym.storage import array_pickles

    batch = array_pickles.parse(path)
    pixels, labels = batch.get("data"), batch.get("labels")
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != PIXELS or pixels.dtype != np.uint8:
        raise DataError(f"{path} is damaged: 'data' is not a uint8 array of shape (n, {PIXELS})")
    if not isinstance(labels, list) or len(labels) != len(pixels) or not all(type(i) is int for i in labels):
        raise DataError(f"{path} is damaged: 'labels' is not a list of {len(pixels)} numbers")
    return pixels, np.array(labels, np.int64)
