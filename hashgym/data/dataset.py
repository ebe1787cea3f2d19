"""HashingDataset: image features, labels and splits, in memory or mapped from a cache folder."""

from __future__ import annotations

import dataclasses
import mmap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashgym import codes
from hashgym.data import conversion
from hashgym.data.splits import Split
from hashgym.moved import keep_old_names
from hashgym.storage.errors import DataError, describe

__all__ = ["HashingDataset"]

_BLOCK = 1 << 24  # numbers looked at at once, so that a mapped file is never read into memory whole

_FAR = 10.0  # times larger or smaller than unit scale
_SAMPLE = 1_000  # training images by which the scale is judged

FROM_ARRAYS = "HashingDataset.from_arrays(features, labels=...)"
NO_LABELS = "give it labels, or use hashers that need none: lsh, itq, sh"
REGIONS_COMMAND = (
    "`hashgym features --dataset NAME --root DIR --backbone BACKBONE --regions 5 --sigma 0.5 --train-regions 4 "
    + "--out DIR`"
)


_OPTIONAL = ("regions", "train_regions", "thumbnails", "center", "scale", "boxes", "train_boxes")


@dataclass(frozen=True)
class HashingDataset:
    """Images as feature vectors, with multi-hot labels and retrieval splits.

    Two images are similar when they share at least one label. Arrays may be memory maps.

    Attributes:
        name: the dataset's name.
        features: float32 (n, D), all finite.
        labels: uint8 (n, L) of 0 and 1; L is 0 for a dataset without labels.
        query: int64 indices of the images that search.
        database: int64 indices of the images that are searched.
        train: int64 indices of the images that methods learn from; never a query.
        names: n image names, unique (a path relative to the dataset's root, or a number).
        label_names: L names.
        regions: float32 (n, R, D), features of the fixed regions of each image, or None.
        train_regions: float32 (n, M, D), features of random regions to learn from, or None.
        thumbnails: uint8 (n, h, w, 3) RGB, small pictures for renderings, or None.
        provenance: where the features come from: backbone, weights and their digest, preprocessing, split, seed.
        center: float32 (D,), what :meth:`standardized` subtracted, or None for features as extracted.
        scale: float32 (D,), what :meth:`standardized` divided by, or None.
        boxes: float32 (n, R, 4), where the fixed regions lie: left, top, right and bottom as parts of the sides of the
            thumbnail, the square in the middle of an image, so that numbers below 0 and above 1 lie beyond it; or None.
        train_boxes: float32 (n, M, 4), where the random regions lie, or None.

    Raises:
        DataError: for arrays of another shape or type, lengths that disagree, features that are not finite, labels
            other than 0 and 1, indices outside the data or repeated, no training image, or a query that is also in
            the training set or the database.
    """

    name: str
    features: NDArray[np.float32]
    labels: NDArray[np.uint8]
    query: NDArray[np.int64]
    database: NDArray[np.int64]
    train: NDArray[np.int64]
    names: Sequence[str] = ()
    label_names: Sequence[str] = ()
    regions: NDArray[np.float32] | None = None
    train_regions: NDArray[np.float32] | None = None
    thumbnails: NDArray[np.uint8] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    center: NDArray[np.float32] | None = None
    scale: NDArray[np.float32] | None = None
    boxes: NDArray[np.float32] | None = None
    train_boxes: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        for key in ("features", "labels", "query", "database", "train", *_OPTIONAL):
            array = getattr(self, key)
            if not isinstance(array, np.ndarray) and not (array is None and key in _OPTIONAL):
                raise DataError(f"{key} must be a NumPy array, got {describe(array)}: {FROM_ARRAYS} converts")
        if not len(self.names):
            object.__setattr__(self, "names", tuple(str(i) for i in range(len(self.features))))
        if not len(self.label_names) and self.labels.ndim == 2:
            object.__setattr__(self, "label_names", tuple(str(i) for i in range(self.labels.shape[1])))
        self._validate()

    @classmethod
    def from_arrays(
        cls,
        features: Any,
        labels: Any = None,
        *,
        name: str = "arrays",
        names: Any = None,
        label_names: Any = None,
        queries: Any = None,
        train: Any = None,
        database: Any = None,
        seed: int = 0,
        standardize: bool = False,
        regions: Any = None,
        train_regions: Any = None,
    ) -> HashingDataset:
        """Make a dataset of your own arrays, lists, tables or CPU tensors, split and ready to use.

        Args:
            features: (n, D), real numbers of any type; kept as float32, an array that is float32 already as it is.
            labels: one class an image, (n,) of strings or integers; multi-hot (n, L), 0 and 1 of any type; a list of n
                lists of names, where [] is an image without a label; or None for a dataset without labels, which
                serves for hashers that learn from none.
            name: the dataset's name.
            names: n different image names; by default numbers.
            label_names: different names of the labels: of the columns of multi-hot, of the classes 0, 1, ..., or all
                that labels may name, in the order of the columns. By default the labels themselves, sorted.
            queries: how many images search, their indices, or a mask (n,). By default a tenth, at most 1,000.
            train: how many images methods learn from, their indices, or a mask. By default a quarter, at most 5,000.
            database: indices or a mask of the images that are searched. By default all but the queries.
            seed: an integer of at least 0; seeds the drawing of what is not given by indices, which leaves out images
                without any label.
            standardize: whether to return :meth:`standardized`.
            regions: (n, R, D), features of fixed regions, or None.
            train_regions: (n, M, D), features of random regions, or None.

        Raises:
            DataError: for features or labels of another form, masked values, lengths that disagree, labels that no two
                images could share, more images than there are, and arrays that the class itself refuses.
        """
        if not isinstance(standardize, (bool, np.bool_)):
            raise DataError(f"standardize must be True or False, got {describe(standardize)}")
        fields = conversion.fields_of(
            features,
            labels,
            name=name,
            names=names,
            label_names=label_names,
            queries=queries,
            train=train,
            database=database,
            seed=seed,
            regions=regions,
            train_regions=train_regions,
        )
        dataset = cls(**fields)
        return dataset.standardized() if standardize else dataset

    def __len__(self) -> int:
        return len(self.features)

    def __deepcopy__(self, memo: dict[int, Any]) -> HashingDataset:
        # Immutable, and large: Gymnasium deep-copies the arguments of an environment with its spec.
        return self

    @property
    def dim(self) -> int:
        """D, the number of features of an image."""
        return int(self.features.shape[1])

    @cached_property
    def label_words(self) -> codes.Words:
        """Labels packed 64 to a word, uint64 (n, ceil(L / 64)).

        Raises:
            DataError: for a dataset without labels.
        """
        self.require("labels")
        return codes.pack(self.labels)

    def similar(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether images ``a`` and ``b`` share a label; index arrays broadcast against each other."""
        return ((self.label_words[a] & self.label_words[b]) != 0).any(axis=-1)

    def require(self, *keys: str) -> None:
        """Raise :class:`DataError` unless the dataset has ``labels``, ``regions`` and ``train_regions``, as asked."""
        for key in keys:
            if key == "labels":
                if not self.labels.shape[1]:
                    raise DataError(f"the dataset {self.name!r} has no labels: {NO_LABELS}")
                continue
            regions = getattr(self, key)
            if regions is None or not regions.shape[1]:
                raise DataError(
                    f"the dataset {self.name!r} has no {key}: {REGIONS_COMMAND} extracts them, 'digit-scenes' has them"
                )

    def check_scale(self) -> None:
        """Warn, once for each dataset, of features that are not standardised and far from mean 0 and deviation 1."""
        _ = self._scale_is_near

    @cached_property
    def _scale_is_near(self) -> bool:
        if self.center is not None:
            return True
        sample = np.asarray(self.features[self.train[:: max(1, len(self.train) // _SAMPLE)]], np.float64)
        deviation, offset = np.sqrt(sample.var(0).mean()), np.sqrt(np.square(sample.mean(0)).mean())
        near = bool(1 / _FAR <= deviation <= _FAR and offset <= _FAR * deviation)
        if not near:
            warnings.warn(
                f"the features of {self.name!r} have a deviation of about {deviation:.2g} and a mean of about "
                f"{offset:.2g} in size; networks learn best near 1 and 0: dataset.standardized() gives such features",
                stacklevel=2,
            )
        return near

    def standardized(self) -> HashingDataset:
        """A copy in memory whose features have mean 0 and deviation 1 over the training images.

        Features that never vary are only centred. Regions are moved by the image features' own mean and deviation,
        because a hash function fitted on images must read regions on the same scale. The mean and deviation are
        kept in ``center`` and ``scale``; a dataset that is standardised already is returned as it is.
        """
        if self.center is not None:
            return self
        sample = np.asarray(self.features[self.train], np.float64)
        center = sample.mean(0)
        deviation = sample.std(0)
        center, scale = center.astype(np.float32), np.where(deviation > 1e-6, deviation, 1.0).astype(np.float32)

        def move(x: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
            if x is None:
                return None
            moved = np.empty(x.shape, np.float32)
            for rows in _blocks(x):
                np.subtract(x[rows], center, out=moved[rows])
                moved[rows] /= scale
            return moved

        features = move(self.features)
        assert features is not None
        return dataclasses.replace(
            self,
            features=features,
            regions=move(self.regions),
            train_regions=move(self.train_regions),
            center=center,
            scale=scale,
        )

    def with_split(self, split: Split) -> HashingDataset:
        """The dataset with another split, and only the labels that count in that.

        Raises:
            DataError: if it is standardised already, by the training images of the split it had.
        """
        if self.center is not None:
            raise DataError(f"{self.name} is standardised by its training images: choose another split before that")
        every = len(split.labels) == self.labels.shape[1]
        counts = {"split_counts": split.described_counts} if "split_counts" in self.provenance else {}
        return dataclasses.replace(
            self,
            labels=self.labels if every else self.labels[:, split.labels],
            label_names=tuple(self.label_names[i] for i in split.labels),
            query=split.query,
            database=split.database,
            train=split.train,
            provenance={**self.provenance, **split.provenance, **counts},
        )

    def _validate(self) -> None:
        n = len(self.features)
        if self.features.ndim != 2 or self.features.dtype != np.float32 or n == 0 or self.features.shape[1] == 0:
            raise DataError(
                f"features must be float32 of shape (n, D), got {self.features.dtype} {self.features.shape}: "
                f"{FROM_ARRAYS} converts"
            )
        if self.labels.ndim != 2 or self.labels.dtype != np.uint8:
            raise DataError(
                f"labels must be multi-hot uint8 of shape (n, L), got {self.labels.dtype} {self.labels.shape}: "
                f"{FROM_ARRAYS} converts"
            )
        if len(self.labels) != n:
            raise DataError(f"{len(self.labels)} labels for {n} features: give every image one row of labels")
        if self.labels.size and self.labels.max() > 1:
            raise DataError("labels must be 0 or 1; one column for each label")
        if len(self.names) != n or len(set(self.names)) != n:
            raise DataError(f"names must be {n} different names, one for each image")
        if len(self.label_names) != self.labels.shape[1]:
            raise DataError(f"{len(self.label_names)} label names for {self.labels.shape[1]} labels")
        for key in ("regions", "train_regions"):
            regions = getattr(self, key)
            if regions is not None and (
                regions.ndim != 3
                or regions.dtype != np.float32
                or len(regions) != n
                or regions.shape[2] != self.features.shape[1]
            ):
                raise DataError(
                    f"{key} must be float32 of shape ({n}, R, {self.features.shape[1]}), "
                    f"got {regions.dtype} {regions.shape}"
                )
            boxes = getattr(self, key.replace("regions", "boxes"))
            count = None if regions is None else regions.shape[1]
            if boxes is not None and (boxes.shape != (n, count, 4) or boxes.dtype != np.float32):
                raise DataError(
                    f"{key.replace('regions', 'boxes')} must be float32 of shape ({n}, {count}, 4), a box for each of "
                    f"{key}, got {boxes.dtype} {boxes.shape}"
                )
        if self.thumbnails is not None and (
            self.thumbnails.ndim != 4
            or self.thumbnails.dtype != np.uint8
            or len(self.thumbnails) != n
            or self.thumbnails.shape[3] != 3
        ):
            raise DataError(
                f"thumbnails must be uint8 of shape ({n}, h, w, 3), got {self.thumbnails.dtype} {self.thumbnails.shape}"
            )
        for key in ("query", "database", "train"):
            index = getattr(self, key)
            if index.ndim != 1 or index.dtype != np.int64:
                raise DataError(f"{key} must be int64 indices of shape (m,), got {index.dtype} {index.shape}")
            if index.size and (index.min() < 0 or index.max() >= n):
                raise DataError(f"{key} has indices outside 0 to {n - 1}")
            if len(np.unique(index)) != len(index):
                raise DataError(f"{key} names an image twice")
        if not len(self.train):
            raise DataError("the training split is empty: nothing can be learnt")
        if np.intersect1d(self.query, self.train).size or np.intersect1d(self.query, self.database).size:
            raise DataError("an image is both a query and in the training set or the database; split them apart")
        for key in ("features", "regions", "train_regions", "boxes", "train_boxes"):
            array = getattr(self, key)
            if array is not None and (bad := _first_not_finite(array)) is not None:
                raise DataError(
                    f"{key} of image {bad} ({self.names[bad]!r}) hold NaN or infinity: extract them again, "
                    "or leave the image out"
                )


def _first_not_finite(array: NDArray[np.float32]) -> int | None:
    """Row of the first value that is NaN or infinite, read in blocks."""
    for rows in _blocks(array):
        block = array[rows]
        finite = np.isfinite(block).reshape(len(block), -1).all(axis=1)
        if not finite.all():
            return rows.start + int(np.argmin(finite))
    return None


def _blocks(array: NDArray[Any]) -> Iterator[slice]:
    """Rows to read together. What was read of a mapped file is given back, so that it never lies in memory whole."""
    count = max(1, _BLOCK // max(1, array[0].size))
    for start in range(0, len(array), count):
        yield slice(start, start + count)
        if isinstance(array.base, mmap.mmap) and not array.flags.writeable and hasattr(mmap, "MADV_DONTNEED"):
            array.base.madvise(mmap.MADV_DONTNEED)


keep_old_names(__name__)
