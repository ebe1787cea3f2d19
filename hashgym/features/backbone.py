"""Backbone: a fixed function from pictures to feature vectors, or to the activations at a cut."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hashgym.checks import check_integer
from hashgym.data.pictures import to_rgb
from hashgym.moved import renamed

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Backbone", "Fit", "Stretch", "check_size", "describe_preprocess", "preprocess_of"]

Network = Callable[[NDArray[np.uint8]], NDArray[Any]]
Preprocess = Callable[["Image"], NDArray[np.uint8]]


@dataclass(frozen=True)
class Backbone:
    """A frozen image network with the preprocessing that its weights expect.

    Preprocessing is split in two: ``preprocess`` converts every picture to bytes of one size, so that threads can do it
    in advance; the network itself scales the bytes as in the training of its weights.

    Attributes:
        name: its name for :func:`hashgym.features.make`.
        dim: D, the number of features; C x H x W at a cut.
        size: side in pixels of the network's input.
        preprocessing: a description in words, for the provenance.
        weights: name of the weights; empty if there are none.
        digest: SHA-256 of the file of weights; empty if there are none.
        runtime: runtime of the network: ``numpy``, ``onnx`` or ``torch:DEVICE``.
        preprocess: picture -> uint8 (size, size, 3); pictures are converted to RGB first.
        network: uint8 (n, size, size, 3) -> float32 (n, D), at a cut the flattened map. Its method ``to_onnx()``, if it
            has one, returns the ONNX model of :meth:`to_onnx`.
        cut: the block after which the network is cut, 0 for the pixels themselves; None for the whole network.
        map_shape: (C, H, W) at a cut; None for the whole network.
        texts: whether it is of an image-text model, whose embeddings of texts are comparable with its features.
    """

    name: str
    dim: int
    size: int
    preprocessing: str
    weights: str
    digest: str
    runtime: str
    preprocess: Preprocess
    network: Network
    cut: int | None = None
    map_shape: tuple[int, int, int] | None = None
    texts: bool = False

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of the result for one picture: (D,), or (C, H, W) at a cut."""
        return (self.dim,) if self.map_shape is None else self.map_shape

    @property
    def dtype(self) -> str:
        """Type in which the results are stored: features float32, activations float16, pixels uint8."""
        return "float32" if self.cut is None else "float16" if self.cut else "uint8"

    def __call__(self, batch: NDArray[np.uint8]) -> NDArray[Any]:
        """Return the features, float32 (n, D), of preprocessed pictures, uint8 (n, size, size, 3).

        At a cut they are activations, float32 (n, C, H, W), or at cut 0 the pixels, uint8 (n, 3, H, W).

        Raises:
            ValueError: for a batch of another shape or type.
        """
        if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[1:] != (self.size, self.size, 3) or not len(batch):
            raise ValueError(
                f"{self.name} takes preprocessed pictures, uint8 (n, {self.size}, {self.size}, 3), "
                f"got {batch.dtype} {batch.shape}"
            )
        return self.network(batch).reshape(len(batch), *self.image_shape)

    def to_onnx(self) -> bytes:
        """Return the network as an ONNX model: ``pictures``, uint8 (n, size, size, 3), to ``features``, float32 (n, D).

        Raises:
            ValueError: if it has no such form; encoders then take its features.
        """
        self.check_onnx()
        return self.network.to_onnx()  # type: ignore[attr-defined]

    def check_onnx(self) -> None:
        """Raise ValueError if the network has no ONNX form."""
        if not hasattr(self.network, "to_onnx"):
            raise ValueError(
                f"the backbone {self.name} has no ONNX form, so its encoders take features, not pictures: extract them "
                "with `hashgym features`, or use a backbone that is a network"
            )

    @property
    def provenance(self) -> dict[str, Any]:
        """Everything that determines the features, ready for JSON; the runtime has its old name ``engine`` there."""
        cut = {} if self.cut is None else {"cut": self.cut}
        texts = {"texts": True} if self.texts else {}
        return {**{key: getattr(self, key) for key in _DESCRIBED}, **cut, **texts, "engine": self.runtime}

    @property
    def engine(self) -> str:
        """The old name of ``runtime``."""
        warnings.warn("Backbone.engine is called Backbone.runtime now", DeprecationWarning, stacklevel=2)
        return self.runtime


Backbone.__init__ = renamed(engine="runtime")(Backbone.__init__)  # type: ignore[method-assign]


INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
MAX_SIDE = 8192  # of the network's picture, in pixels: 200 MB each
_LONGEST = 32  # times the shorter side
_DESCRIBED = ("name", "dim", "size", "preprocessing", "weights", "digest")


def check_size(size: int | None, default: int) -> int:
    """Return ``size``, or the default if it is None.

    Raises:
        ValueError: for a size below one pixel, or above MAX_SIDE.
    """
    name = "size, the side of the network's input in pixels,"
    return default if size is None else check_integer(name, size, 1, MAX_SIDE)


def _check_side(name: str, side: int) -> None:
    if type(side) is not int or not 1 <= side <= MAX_SIDE:
        raise ValueError(f"{name} must be a whole number of pixels from 1 to {MAX_SIDE:,}, got {side!r:.60}")


def _check_interpolation(name: str) -> None:
    if name not in INTERPOLATIONS:
        raise ValueError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {name!r:.60}")


@dataclass(frozen=True)
class Stretch:
    """Resize to size x size, without keeping proportions. Interpolation is one of INTERPOLATIONS."""

    size: int
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        _check_side("size", self.size)
        _check_interpolation(self.interpolation)

    def __call__(self, image: Image) -> NDArray[np.uint8]:
        """Return the picture, upright and in RGB, uint8 (size, size, 3)."""
        from PIL import Image

        image, side = to_rgb(image), (self.size, self.size)
        resample = Image.Resampling[self.interpolation.upper()]
        return np.asarray(image if image.size == side else image.resize(side, resample))


@dataclass(frozen=True)
class Fit:
    """Resize the shorter side to ``short_side``, keeping proportions, and crop the centre size x size.

    Interpolation is one of INTERPOLATIONS. If a picture is more than 32 times as long as wide, only the middle
    is resized, since the whole might not fit in memory.
    """

    size: int
    short_side: int
    interpolation: str

    def __post_init__(self) -> None:
        _check_side("size", self.size)
        _check_side("short_side", self.short_side)
        _check_interpolation(self.interpolation)

    def __call__(self, image: Image) -> NDArray[np.uint8]:
        """Return the picture, upright and in RGB, uint8 (size, size, 3)."""
        from PIL import Image

        image = to_rgb(image)
        size, most = self.size, _LONGEST * min(image.size)
        if max(image.size) > most:
            beyond = [max(0, side - most) // 2 for side in image.size]
            image = image.crop((beyond[0], beyond[1], image.width - beyond[0], image.height - beyond[1]))
        width, height = image.size
        if width <= height:
            shape = (self.short_side, int(self.short_side * height / width))
        else:
            shape = (int(self.short_side * width / height), self.short_side)
        left, top = round((shape[0] - size) / 2), round((shape[1] - size) / 2)
        resample = Image.Resampling[self.interpolation.upper()]
        resized = image if image.size == shape else image.resize(shape, resample)
        return np.asarray(resized.crop((left, top, left + size, top + size)))


_PREPROCESS: dict[str, type[Stretch] | type[Fit]] = {"stretch": Stretch, "fit": Fit}


def describe_preprocess(preprocess: Preprocess) -> dict[str, Any]:
    """Return a :class:`Stretch` or :class:`Fit` as data, ready for JSON; :func:`preprocess_of` restores it.

    Raises:
        ValueError: for any other function.
    """
    for kind, cls in _PREPROCESS.items():
        if isinstance(preprocess, cls):
            described = {"kind": kind, **asdict(preprocess)}
            if preprocess == Stretch(preprocess.size):
                del described["interpolation"]  # encoders of hashgym 0.1 have no other way to stretch
            return described
    raise ValueError(
        f"only preprocessing by hashgym.features.backbone.Stretch or Fit can be described, got {preprocess!r:.80}"
    )


def preprocess_of(description: Mapping[str, Any]) -> Preprocess:
    """Return the preprocessing that :func:`describe_preprocess` described.

    Raises:
        ValueError: for any other description.
    """
    arguments = dict(description)
    try:
        return _PREPROCESS[arguments.pop("kind")](**arguments)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not a description of preprocessing: {str(dict(description))[:200]} ({error})") from error
