"""HashingDataset: images as features, activations or pixels, labels and splits, in memory or mapped from a folder."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashgym import codes
from hashgym.checks import first_not_finite, row_blocks
from hashgym.data import conversion
from hashgym.data.similarity import NEIGHBOURS, neighbour_labels, pair_labels, read_pairs
from hashgym.data.splits import Split
from hashgym.moved import keep_old_names
from hashgym.storage.errors import DataError, describe

__all__ = ["HashingDataset"]


_FAR = 10.0  # factor from unit scale at which a warning is given
_SAMPLE = 1_000  # training images from which the scale is estimated

FROM_ARRAYS = "HashingDataset.from_arrays(features, labels=...)"
LABEL_FREE = "lsh, itq, sh, pca or cibhash"  # hashers, for messages
NO_LABELS = f"give it labels, make some by with_similarity('neighbours'), or use a hasher that needs none: {LABEL_FREE}"
REGIONS_COMMAND = (
    "`hashgym features --dataset NAME --root DIR --backbone BACKBONE --regions 5 --sigma 0.5 --train-regions 4 "
    "--out DIR`"
)

_OPTIONAL = ("regions", "train_regions", "thumbnails", "center", "scale", "boxes", "train_boxes", "views", "viewed")
_MAP_TYPES = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.uint8))


@dataclass(frozen=True)
class HashingDataset:
    """Images with multi-hot labels and retrieval splits.

    Images are feature vectors, or maps for a network that is trained: activations at a cut of a backbone, or pixels.
    Two images are similar when they share at least one label. Arrays may be memory maps.

    Attributes:
        name: the dataset's name.
        features: vectors, float32 (n, D); activations, float16 or float32 (n, C, H, W); or pixels, uint8 (n, 3, H, W).
            All finite.
        labels: uint8 (n, L) of 0 and 1; L is 0 for a dataset without labels.
        query: int64 indices of the query images.
        database: int64 indices of the database images.
        train: int64 indices of the training images; never a query.
        names: n image names, unique (a path relative to the dataset's root, or a number).
        label_names: L names.
        regions: float32 (n, R, D), features of the fixed regions of each image, or None.
        train_regions: float32 (n, M, D), features of random regions for training, or None.
        thumbnails: uint8 (n, h, w, 3) RGB, small pictures for renderings, or None.
        provenance: origin of the features: backbone, weights and their digest, preprocessing, split, seed.
        center: float32 (D,), subtracted by :meth:`standardized`, or None for features as extracted.
        scale: float32 (D,), divided by in :meth:`standardized`, or None.
        boxes: float32 (n, R, 4), positions of the fixed regions: left, top, right and bottom as fractions of the sides
            of the thumbnail, which is the square in the middle of an image, so values may be below 0 or above 1; or
            None.
        train_boxes: float32 (n, M, 4), positions of the random regions, or None.
        views: (m, V, C, H, W) of the type of ``features``, activations of V augmented views of each image in
            ``viewed``, the first one without augmentation; or None.
        viewed: int64 (m,), indices of the images that have views; they include all training images. None without views.
        checksums: SHA-256 of the arrays as they were extracted, by name, where they are read from a folder of features;
            :meth:`standardized` keeps them.

    Raises:
        DataError: for arrays of another shape or type, lengths that disagree, features that are not finite, labels
            other than 0 and 1, indices out of range or repeated, no training image, or a query that is also in the
            training set or the database.
    """

    name: str
    features: NDArray[Any]
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
    views: NDArray[Any] | None = None
    viewed: NDArray[np.int64] | None = None
    checksums: Mapping[str, str] = field(default_factory=dict)

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
        """Make a dataset from arrays, lists, tables or CPU tensors, split and ready to use.

        Args:
            features: (n, D), real numbers of any type; converted to float32, a float32 array is not copied. Or pixels,
                uint8 (n, 3, H, W), or activations, float16 or float32 (n, C, H, W), which stay as they are.
            labels: one class per image, (n,) of strings or integers; multi-hot (n, L), 0 and 1 of any type; a list of n
                lists of names, where [] is an image without a label; or None for a dataset without labels, for hashers
                that need none.
            name: the dataset's name.
            names: n different image names; numbers by default.
            label_names: different names of the labels: of the columns of multi-hot, of the classes 0, 1, ..., or all
                that labels may name, in the order of the columns. By default the labels themselves, sorted.
            queries: the number of query images, their indices, or a mask (n,). By default a tenth, at most 1,000.
            train: the number of training images, their indices, or a mask. By default a quarter, at most 5,000.
            database: indices or a mask of the database images. By default all except the queries.
            seed: an integer of at least 0, for drawing the parts that are not given by indices; images without any
                label are not drawn.
            standardize: whether to return :meth:`standardized`.
            regions: (n, R, D), features of fixed regions, or None.
            train_regions: (n, M, D), features of random regions, or None.

        Raises:
            DataError: for features or labels of another form, masked values, lengths that disagree, labels that no two
                images share, more images than there are, and arrays that are invalid for the class itself.
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
        # Immutable and large; Gymnasium deep-copies the arguments of an environment with its spec.
        return self

    @property
    def dim(self) -> int:
        """D, the number of features of an image; C x H x W for maps."""
        return math.prod(self.image_shape)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of an image: (D,) for vectors, (C, H, W) for activations and pixels."""
        return self.features.shape[1:]

    @property
    def has_labels(self) -> bool:
        """Whether images have labels, by which codes can be learnt and measured."""
        return self.labels.shape[1] > 0

    @property
    def has_maps(self) -> bool:
        """Whether images are activations or pixels, which a trained network reads, instead of vectors."""
        return self.features.ndim == 4

    @property
    def num_views(self) -> int:
        """V, the number of views of a training image; 1 without ``views``."""
        return 1 if self.views is None else self.views.shape[1]

    def images(self, index: NDArray[np.int64], view: NDArray[np.int64] | None = None) -> NDArray[Any]:
        """Return images as networks take them: float32, or uint8 for pixels.

        Args:
            index: (b,), of images.
            view: (b,), the view of each, from 0 (not augmented) to V - 1, of images that have views; None for 0.

        Raises:
            DataError: for a view of an image that has none.
        """
        if view is None or self.views is None:
            images = self.features[index]
        else:
            rows = self._row_of_views[index]
            if (rows < 0).any():
                raise DataError(
                    f"{self.name!r} has views of the images in viewed alone, got other ones: leave out view"
                )
            images = self.views[rows, view]
        return images if images.dtype == np.uint8 else images.astype(np.float32, copy=False)

    @property
    def training_images(self) -> NDArray[Any]:
        """The training images as hashers are fitted to them: ``features[train]``, or (N, V, C, H, W) with views."""
        images, rows = self.training_rows
        if self.has_maps and np.array_equal(rows, np.arange(len(images))):
            return images  # not copied: they may be larger than the memory
        return images[rows]

    @property
    def training_rows(self) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """The array that holds the training images, ``views`` or ``features``, and their rows in it, (N,)."""
        return (self.features, self.train) if self.views is None else (self.views, self._row_of_views[self.train])

    @cached_property
    def _row_of_views(self) -> NDArray[np.int64]:
        """The row of each image in ``views``, -1 where it has none."""
        assert self.viewed is not None
        rows = np.full(len(self), -1)
        rows[self.viewed] = np.arange(len(self.viewed))
        return rows

    @cached_property
    def label_words(self) -> codes.Words:
        """Labels packed 64 to a word, uint64 (n, ceil(L / 64)).

        Raises:
            DataError: for a dataset without labels.
        """
        self.require("labels")
        return codes.pack(self.labels)

    def similar(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether images ``a`` and ``b`` share a label; index arrays broadcast against each other."""
        return ((self.label_words[a] & self.label_words[b]) != 0).any(axis=-1)

    def require(self, *keys: str) -> None:
        """Raise :class:`DataError` unless the dataset has these of ``labels``, ``regions`` and ``train_regions``."""
        for key in keys:
            if key == "labels":
                if not self.has_labels:
                    raise DataError(f"the dataset {self.name!r} has no labels: {NO_LABELS}")
                continue
            regions = getattr(self, key)
            if self.has_maps:
                raise DataError(
                    f"the images of {self.name!r} are {'pixels' if self.features.dtype == np.uint8 else 'activations'} "
                    "for a network that is trained, which have no regions: learn one code an image from them, with "
                    "BitGroupHashing-v0, `hashgym train drlih` or a hasher with a backbone; for several codes extract "
                    f"feature vectors with regions, {REGIONS_COMMAND}"
                )
            if regions is None or not regions.shape[1]:
                raise DataError(
                    f"the dataset {self.name!r} has no {key}: {REGIONS_COMMAND} extracts them, 'digit-scenes' has them"
                )

    def check_scale(self) -> None:
        """Warn, once per dataset, if features are not standardised and far from mean 0 and deviation 1."""
        _ = self._scale_is_near

    @cached_property
    def _scale_is_near(self) -> bool:
        if self.center is not None or self.has_maps:
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
        """Return a copy in memory whose features have mean 0 and deviation 1 over the training images.

        Constant features are only centred. Regions are standardised by the mean and deviation of the image features,
        because a hash function fitted to images must get regions on the same scale. Mean and deviation are kept in
        ``center`` and ``scale``; a dataset that is standardised already is returned unchanged, and so is one of maps,
        which networks take as they are.
        """
        if self.center is not None or self.has_maps:
            return self
        sample = np.asarray(self.features[self.train], np.float64)
        center = sample.mean(0)
        deviation = sample.std(0)
        center, scale = center.astype(np.float32), np.where(deviation > 1e-6, deviation, 1.0).astype(np.float32)

        def standardize(x: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
            if x is None:
                return None
            result = np.empty(x.shape, np.float32)
            for rows in row_blocks(x):
                np.subtract(x[rows], center, out=result[rows])
                result[rows] /= scale
            return result

        features = standardize(self.features)
        assert features is not None
        return dataclasses.replace(
            self,
            features=features,
            regions=standardize(self.regions),
            train_regions=standardize(self.train_regions),
            center=center,
            scale=scale,
        )

    def with_split(self, split: Split) -> HashingDataset:
        """Return the dataset with another split, and only the labels that define similarity in it.

        Raises:
            DataError: if it is standardised already, by the training images of its current split, or has views of these
                alone.
        """
        if self.center is not None:
            raise DataError(f"{self.name} is standardised by its training images: choose another split before that")
        if self.viewed is not None and not np.isin(split.train, self.viewed).all():
            raise DataError(
                f"{self.name} has views of its own training images alone: extract it with the other split, "
                "`hashgym features --split NAME`"
            )
        keeps_all_labels = len(split.labels) == self.labels.shape[1]
        counts = {"split_counts": split.described_counts} if "split_counts" in self.provenance else {}
        return dataclasses.replace(
            self,
            labels=self.labels if keeps_all_labels else self.labels[:, split.labels],
            label_names=tuple(self.label_names[i] for i in split.labels),
            query=split.query,
            database=split.database,
            train=split.train,
            provenance={**self.provenance, **split.provenance, **counts},
        )

    def with_similarity(self, similarity: str | Path, *, k: int = NEIGHBOURS, seed: int = 0) -> HashingDataset:
        """Return the dataset with labels that are made, to learn from without classes; its own labels are ignored.

        Queries and database have none of them: measure with the labels of the dataset itself, if it has any.

        Args:
            similarity: ``"neighbours"``: training images near each other are similar, see
                :func:`hashgym.data.similarity.neighbour_labels`. Or a CSV file of similar training images, with
                ``name,name`` on each line.
            k: number of neighbours.
            seed: of the neighbours that are labels, where there are more than 5,000 training images.

        Raises:
            DataError: for a file that is missing or not of this form, pairs of images that are not training images, or
                a dataset of pixels or activations, of which neighbours are not known.
            ValueError: for a k that is not between 2 and the number of training images.
        """
        if similarity == "neighbours":
            if self.has_maps:
                raise DataError(
                    f"the images of {self.name!r} are pixels or activations, whose nearness says little: extract "
                    "features without --cut, or give pairs"
                )
            own = neighbour_labels(np.asarray(self.features[self.train]), k, seed=seed)
        else:
            own = pair_labels([self.names[row] for row in self.train], read_pairs(similarity))
        labels = np.zeros((len(self), own.shape[1]), np.uint8)
        labels[self.train] = own
        made = {"similarity": f"{k} neighbours" if similarity == "neighbours" else "pairs"}
        return dataclasses.replace(self, labels=labels, label_names=(), provenance={**self.provenance, **made})

    def _validate(self) -> None:
        self._check_features_and_labels()
        self._check_regions()
        self._check_thumbnails()
        self._check_split()
        self._check_views()
        self._check_finite()

    def _check_features_and_labels(self) -> None:
        n = len(self.features)
        kind, shape = self.features.dtype, self.features.shape
        is_vector = len(shape) == 2 and kind == np.float32
        is_map = len(shape) == 4 and kind in _MAP_TYPES and (kind != np.uint8 or shape[1] == 3)
        if not (is_vector or is_map) or 0 in shape:
            raise DataError(
                "features must be float32 of shape (n, D), activations (n, C, H, W) of float16 or float32, or pixels, "
                f"uint8 (n, 3, H, W), got {kind} {shape}: {FROM_ARRAYS} converts"
            )
        if is_map and (self.regions is not None or self.train_regions is not None):
            raise DataError("regions belong to feature vectors: a dataset of activations or pixels has none")
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
            raise DataError(
                f"{len(self.label_names)} label names for {self.labels.shape[1]} labels: give each label one"
            )

    def _check_regions(self) -> None:
        n = len(self)
        for key in ("regions", "train_regions"):
            regions = getattr(self, key)
            if regions is not None and (
                regions.ndim != 3 or regions.dtype != np.float32 or len(regions) != n or regions.shape[2] != self.dim
            ):
                raise DataError(
                    f"{key} must be float32 of shape ({n}, R, {self.dim}), got {regions.dtype} {regions.shape}"
                )
            boxes = getattr(self, key.replace("regions", "boxes"))
            count = None if regions is None else regions.shape[1]
            if boxes is not None and (boxes.shape != (n, count, 4) or boxes.dtype != np.float32):
                raise DataError(
                    f"{key.replace('regions', 'boxes')} must be float32 of shape ({n}, {count}, 4), a box for each of "
                    f"{key}, got {boxes.dtype} {boxes.shape}"
                )

    def _check_views(self) -> None:
        views, viewed = self.views, self.viewed
        if views is None and viewed is None:
            return
        if views is None or viewed is None:
            raise DataError("views and viewed belong together: give both or neither")
        if viewed.ndim != 1 or viewed.dtype != np.int64 or len(np.unique(viewed)) != len(viewed):
            raise DataError(f"viewed must be int64 (m,), different images, got {viewed.dtype} {viewed.shape}")
        wanted = (len(viewed), *views.shape[1:2], *self.image_shape)
        if not self.has_maps or views.shape != wanted or views.dtype != self.features.dtype or 0 in views.shape:
            raise DataError(
                f"views must be {self.features.dtype} of shape ({len(viewed)}, V, C, H, W), activations like features "
                f"{self.features.shape}, got {views.dtype} {views.shape}"
            )
        if len(viewed) and (viewed.min() < 0 or viewed.max() >= len(self)):
            raise DataError(f"viewed has indices outside 0 to {len(self) - 1}")
        if not np.isin(self.train, viewed).all():
            raise DataError("views of some training images are missing: viewed must include all of train")

    def _check_thumbnails(self) -> None:
        small, n = self.thumbnails, len(self)
        if small is not None and (small.ndim != 4 or small.dtype != np.uint8 or len(small) != n or small.shape[3] != 3):
            raise DataError(f"thumbnails must be uint8 of shape ({n}, h, w, 3), got {small.dtype} {small.shape}")

    def _check_split(self) -> None:
        n = len(self)
        for key in ("query", "database", "train"):
            index = getattr(self, key)
            if index.ndim != 1 or index.dtype != np.int64:
                raise DataError(f"{key} must be int64 indices of shape (m,), got {index.dtype} {index.shape}")
            if index.size and (index.min() < 0 or index.max() >= n):
                raise DataError(f"{key} has indices outside 0 to {n - 1}")
            if len(np.unique(index)) != len(index):
                raise DataError(f"{key} has an image twice")
        if not len(self.train):
            raise DataError("the training split is empty: give it at least one image")
        if np.intersect1d(self.query, self.train).size or np.intersect1d(self.query, self.database).size:
            raise DataError("an image is both a query and in the training set or the database; separate them")

    def _check_finite(self) -> None:
        for key in ("features", "regions", "train_regions", "boxes", "train_boxes", "views"):
            array = getattr(self, key)
            if array is not None and array.dtype != np.uint8 and (bad := first_not_finite(array)) is not None:
                bad = bad if key != "views" or self.viewed is None else int(self.viewed[bad])
                raise DataError(
                    f"{key} of image {bad} ({self.names[bad]!r}) hold NaN or infinity: extract them again, "
                    "or leave the image out"
                )


keep_old_names(__name__)
