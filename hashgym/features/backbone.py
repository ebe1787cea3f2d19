"""Backbone: a fixed function from pictures to feature vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hashgym.data.pictures import to_rgb

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Backbone", "Fit", "Stretch", "check_size", "describe_preprocess", "preprocess_of"]

Network = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
Preprocess = Callable[["Image"], NDArray[np.uint8]]


@dataclass(frozen=True)
class Backbone:
    """A frozen image network with the preprocessing that its weights expect.

    Preprocessing is split in two: ``preprocess`` makes every picture one size, in bytes, so that threads can do it
    ahead; the network itself scales the bytes to what the weights were trained on.

    Attributes:
        name: the name :func:`hashgym.features.make` knows it by.
        dim: D, the number of features.
        size: side in pixels of the square the network sees.
        preprocessing: what happens to a picture on its way to the network, in words.
        weights: the weights' name; empty where there are none.
        digest: sha256 of the weights' file; empty where there are none.
        engine: what runs the network: ``numpy``, ``onnx`` or ``torch:DEVICE``.
        preprocess: picture -> uint8 (size, size, 3); what is not RGB goes through
            ``hashgym.data.pictures.to_rgb``.
        network: uint8 (n, size, size, 3) -> float32 (n, D). Where it has a method ``to_onnx()``, this gives the ONNX
            model of :meth:`to_onnx`.
    """

    name: str
    dim: int
    size: int
    preprocessing: str
    weights: str
    digest: str
    engine: str
    preprocess: Preprocess
    network: Network

    def __call__(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features, float32 (n, D), of preprocessed pictures, uint8 (n, size, size, 3).

        Raises:
            ValueError: for a batch of another shape or type.
        """
        if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[1:] != (self.size, self.size, 3) or not len(batch):
            raise ValueError(
                f"{self.name} takes preprocessed pictures, uint8 (n, {self.size}, {self.size}, 3), "
                f"got {batch.dtype} {batch.shape}"
            )
        return self.network(batch)

    def to_onnx(self) -> bytes:
        """The network as an ONNX model, from ``pictures``, uint8 (n, size, size, 3), to ``features``, float32 (n, D).

        Raises:
            ValueError: where it has no such form: then encoders take its features.
        """
        convert = getattr(self.network, "to_onnx", None)
        if convert is None:
            raise ValueError(
                f"the backbone {self.name} has no ONNX form, so its encoders take features, not pictures: extract them "
                "with `hashgym features`, or use a backbone that is a network"
            )
        return convert()

    @property
    def provenance(self) -> dict[str, Any]:
        """Everything that decides the features' values, ready for JSON."""
        return {key: getattr(self, key) for key in _DESCRIBED}


INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
MAX_SIDE = 8192  # of the network's picture, in pixels: 200 MB each
_LONGEST = 32  # times the shorter side
_DESCRIBED = ("name", "dim", "size", "preprocessing", "weights", "digest", "engine")


def check_size(size: int | None, default: int) -> int:
    """``size``, or the default where it is None.

    Raises:
        ValueError: for a size below one pixel.
    """
    if size is not None and size < 1:
        raise ValueError(f"size is the side of the network's picture in pixels, at least 1, got {size}")
    return default if size is None else size


def _check_side(name: str, side: int) -> None:
    if type(side) is not int or not 1 <= side <= MAX_SIDE:
        raise ValueError(f"{name} must be a whole number of pixels from 1 to {MAX_SIDE:,}, got {side!r:.60}")


@dataclass(frozen=True)
class Stretch:
    """Resize to size x size whatever the proportions, bicubic."""

    size: int

    def __post_init__(self) -> None:
        _check_side("size", self.size)

    def __call__(self, image: Image) -> NDArray[np.uint8]:
        """The picture, upright and in RGB, uint8 (size, size, 3)."""
        from PIL import Image

        image, side = to_rgb(image), (self.size, self.size)
        return np.asarray(image if image.size == side else image.resize(side, Image.Resampling.BICUBIC))


@dataclass(frozen=True)
class Fit:
    """Resize the shorter side to ``short_side``, proportions kept, and cut out the centre size x size.

    Interpolation is one of INTERPOLATIONS. Of a picture more than 32 times as long as wide only the middle is resized:
    the whole might not fit in memory.
    """

    size: int
    short_side: int
    interpolation: str

    def __post_init__(self) -> None:
        _check_side("size", self.size)
        _check_side("short_side", self.short_side)
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {self.interpolation!r}")

    def __call__(self, image: Image) -> NDArray[np.uint8]:
        """The picture, upright and in RGB, uint8 (size, size, 3)."""
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
    """A :class:`Stretch` or :class:`Fit` as data, ready for JSON; :func:`preprocess_of` makes it again.

    Raises:
        ValueError: for any other function.
    """
    for kind, made in _PREPROCESS.items():
        if isinstance(preprocess, made):
            return {"kind": kind, **asdict(preprocess)}
    raise ValueError("preprocessing can be described where it is hashgym.features.backbone.Stretch or Fit")


def preprocess_of(description: Mapping[str, Any]) -> Preprocess:
    """The preprocessing that :func:`describe_preprocess` described.

    Raises:
        ValueError: for anything else.
    """
    arguments = dict(description)
    try:
        return _PREPROCESS[arguments.pop("kind")](**arguments)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"no preprocessing is described by {str(dict(description))[:200]} ({error})") from error
