"""Bag of visual words: how often each of W typical patches occurs in a picture.

Patches are SIFT descriptors (Lowe, IJCV 60(2), 2004) on a grid of points at two scales; a picture is the histogram of
the words nearest to them (Csurka et al., "Visual categorization with bags of keypoints", ECCV workshop, 2004).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hashgym.checks import check_integer, counted
from hashgym.data import splits
from hashgym.data.images import ImageCollection
from hashgym.features.backbone import Backbone, Stretch, check_size
from hashgym.optional import require
from hashgym.storage.atomic import atomic_write
from hashgym.storage.checksums import sha256
from hashgym.storage.errors import DataError
from hashgym.storage.reading import map_array

__all__ = ["DenseSift", "histogram", "learn_words", "make", "read_words"]

GRID = 16  # points along a side
CELLS = (4, 8)  # sides in pixels of the 4 x 4 cells of a descriptor, at the two scales
LENGTH = 128
COMMAND = "`hashgym words --dataset NAME --root DIR --out words.npy`"
MOST_WORDS = 1_000_000  # 512 MB
PER_IMAGE = 100  # descriptors of an image from which words are learnt


def make(
    *, size: int | None = None, weights: str | None = None, device: str = "auto", runtime: str = "auto"
) -> Backbone:
    """Return the backbone: a histogram, with sum 1, of the W visual words in ``weights`` at size x size (128).

    Args:
        size: side of the picture in pixels, at least 16.
        weights: the file that :func:`learn_words` or ``hashgym words`` wrote.
        device: ``auto`` or ``cpu``.
        runtime: ``auto``.

    Raises:
        ValueError: without words or OpenCV, for a size below 16, or for a device or a runtime, which it does not use.
        DataError: for a file without words.
    """
    if device not in ("auto", "cpu") or runtime != "auto":
        raise ValueError("the backbone `bow` takes neither a device nor a runtime")
    if weights is None:
        raise ValueError(f"the backbone `bow` needs visual words: {COMMAND} learns them, --weights words.npy uses them")
    side = _check_side(size)
    path = Path(weights)
    words = read_words(path)
    describe = DenseSift(side)

    def network(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.stack([histogram(describe(picture), words) for picture in batch])

    return Backbone(
        name="bow",
        dim=len(words),
        size=side,
        preprocessing=f"bicubic to {side} x {side}, grey, RootSIFT at {GRID} x {GRID} points, cells of 4 and 8 pixels",
        weights=path.name,
        digest=sha256(path),
        runtime="opencv",
        preprocess=Stretch(side),
        network=network,
    )


def histogram(descriptors: NDArray[np.float32], words: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the share of descriptors (n, 128) to which each word (W, 128) is nearest: float32 (W,) with sum 1."""
    # |d - w|² = |d|² - 2 (d.w - |w|² / 2)
    nearest = (descriptors @ words.T - (words**2).sum(axis=1) / 2).argmax(axis=1)
    return (np.bincount(nearest, minlength=len(words)) / len(descriptors)).astype(np.float32)


class DenseSift:
    """Descriptors of a picture, float32 (512, 128): points row by row with cells of 4 pixels, then of 8.

    Descriptors are upright, and square roots of SIFT divided by its sum (RootSIFT: Arandjelovic and Zisserman, CVPR
    2012), so that their lengths are 1, or 0 without any gradient.

    Args:
        side: of the pictures, in pixels.

    Raises:
        ValueError: without OpenCV.
    """

    def __init__(self, side: int) -> None:
        cv2 = require("cv2", "the backbone bow")
        self.side = side
        at = ((np.arange(GRID) + 0.5) * side / GRID - 0.5).tolist()
        # A cell is 1.5 times a keypoint's size; an octave is a picture of half the size, so both cost the same.
        scales = [(cell / 1.5, octave) for octave, cell in enumerate(CELLS)]
        self._points = [cv2.KeyPoint(x, y, size, 0.0, 0.0, octave) for size, octave in scales for y in at for x in at]
        self._sift = cv2.SIFT.create()

    def __call__(self, picture: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the descriptors of a picture, uint8 (side, side, 3)."""
        import cv2

        values = self._sift.compute(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), self._points)[1]
        return np.sqrt(values / np.maximum(values.sum(axis=1, keepdims=True), np.float32(1e-6)))

    def __reduce__(self) -> tuple[type[DenseSift], tuple[int]]:
        return DenseSift, (self.side,)  # OpenCV's objects cannot be sent to another process


def read_words(path: str | Path) -> NDArray[np.float32]:
    """Return visual words, float32 (W, 128), from a file of :func:`learn_words`.

    Raises:
        DataError: if the file is missing or damaged, or holds anything else.
    """
    if not Path(path).is_file():
        raise DataError(f"no visual words at {path}: {COMMAND} learns them")
    try:
        words = map_array(path)
    except DataError as error:
        raise DataError(f"{error}; {COMMAND} writes visual words") from error
    if words.dtype != np.float32 or words.shape[1:] != (LENGTH,):
        found = f"{words.dtype} {words.shape}"
        raise DataError(f"{path} holds {found}, but visual words are float32 (W, {LENGTH}): {COMMAND} writes them")
    if len(words) > MOST_WORDS:
        raise DataError(
            f"{path} holds {len(words):,} words, and at most {MOST_WORDS:,} are read: {COMMAND} writes fewer"
        )
    words = np.array(words)
    if len(words) < 2 or not np.isfinite(words).all():
        raise DataError(f"{path} holds NaN, infinity or fewer than 2 words: write them again with {COMMAND}")
    if (longest := np.linalg.norm(words, axis=1).max()) > 1.001:
        raise DataError(f"{path} holds a word of length {longest:.3g}, above 1: write visual words with {COMMAND}")
    return words


def learn_words(
    collection: ImageCollection,
    out: str | Path,
    *,
    words: int = 500,
    images: int = 2000,
    size: int | None = None,
    split: str | None = None,
    seed: int = 0,
    queries: int | None = None,
    train: int | None = None,
    skip_bad: bool = False,
    progress: bool = True,
) -> Path:
    """Learn visual words from training images and write them to the file ``out``, float32 (words, 128).

    The split is the one that :func:`hashgym.features.extract` draws with the same arguments, so that no query is used
    where all images can be read. (Without those that cannot, another split is drawn.)

    Args:
        collection: the images.
        out: the file to write, ``.npy``; it must not exist.
        words: W, their number.
        images: number of training images to use, drawn by ``seed``; all if there are fewer.
        size: side of the pictures in pixels, as for :func:`make`.
        split: the split's name; None for the dataset's default.
        seed: seed of the split, the draw of images and patches, and the clustering.
        queries: number of queries; None for the split's own.
        train: number of training images; None for the split's own.
        skip_bad: leave out images that cannot be read, instead of stopping.
        progress: show a progress bar.

    Returns:
        ``out``.

    Raises:
        ValueError: for impossible arguments, or without OpenCV.
        DataError: before any work if ``out`` exists, another process is writing it, or the split is impossible; for
            an image that cannot be read (unless ``skip_bad``), and for fewer different patches than words.
    """
    if words < 2 or images < 1:
        raise ValueError(f"words must be at least 2 and images at least 1, got {words} and {images}")
    check_integer("seed", seed, 0, 2**32 - 1)  # as scikit-learn takes it
    path = Path(out)
    if path.suffix != ".npy":
        raise ValueError(f"words are written to a file that ends in .npy, got {path}")
    describe, preprocess = DenseSift(side := _check_side(size)), Stretch(side)
    drawn = splits.make(
        collection.name,
        split,
        labels=collection.labels,
        label_names=collection.label_names,
        names=collection.names,
        seed=seed,
        queries=queries,
        train=train,
    )
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(drawn.train)[:images]
    rows = rng.permuted(np.tile(np.arange(2 * GRID**2), (len(chosen), 1)), axis=1)[:, :PER_IMAGE]
    if words > rows.size:
        raise ValueError(
            f"{counted(len(chosen), 'training image')} give at most {rows.size:,} patches, too few for {words:,} "
            "words: ask for fewer words, or for more images"
        )

    def describe_sample(index: int, points: NDArray[np.int64]) -> NDArray[np.float32]:
        try:
            return describe(preprocess(collection.read(index)))[points]
        except (OSError, DataError) as error:
            if not skip_bad:
                raise DataError(f"{error}. Fix it, or leave such images out with --skip-bad") from error
            return np.zeros((0, LENGTH), np.float32)

    with atomic_write(path, new=True) as file:
        sample = [
            describe_sample(index, points)
            for index, points in zip(_track(chosen.tolist(), progress), rows, strict=True)
        ]
        np.save(file, _cluster(np.concatenate(sample), words, seed), allow_pickle=False)
    return path


def _cluster(descriptors: NDArray[np.float32], words: int, seed: int) -> NDArray[np.float32]:
    require("sklearn", "learning visual words")
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    different = len(np.unique(descriptors, axis=0))
    if different < words:
        raise DataError(f"the images have {different:,} different patches, too few for {words:,} words: ask for fewer")
    with threadpool_limits(1):  # the order of sums, and so the last digit, must not depend on the machine
        means = MiniBatchKMeans(words, random_state=seed, batch_size=4096, n_init=3).fit(descriptors)
    return means.cluster_centers_.astype(np.float32)


def _check_side(size: int | None) -> int:
    side = check_size(size, 128)
    if side < GRID:
        raise ValueError(f"the size of `bow` must be at least {GRID}, got {side}")
    return side


def _track(indices: list[int], show: bool) -> Iterator[int]:
    from hashgym.console import track

    yield from track(indices, "describing images", total=len(indices), show=show)
