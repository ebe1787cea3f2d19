"""Encoder: a hash function in one file, from features or pictures to codes, run by ONNX Runtime.

The file is an ONNX model. Its input is ``features``, float32 (n, D) as a backbone gives them, or where the backbone is
included ``pictures``, uint8 (n, size, size, 3); encoders of images with regions read V views of each, (n, V, ...), of
which number 0 is the whole image. Outputs: ``bits``, bool (n[, V], q); ``margin``, float32 of the same shape, above 0
where the bit is 1; with regions ``keep``, float32 (n, V), the probability that a view's code is kept.

Metadata: ``hashgym.encoder``, in JSON what else belongs to the hash function, and last of all ``hashgym.sha256``, the
digest of the file with the digest's own 64 digits set to 0, so that no damaged file is ever parsed. A digest does not
show who wrote a file: so before ONNX Runtime parses it, ``hashgym.encoders.onnx_file`` refuses all that could read
other files, and what the metadata says is compared with the network's inputs and outputs.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hashgym.codes import CodeSets
from hashgym.data.pictures import to_rgb
from hashgym.encoders.onnx_file import check_self_contained
from hashgym.features.backbone import Preprocess, preprocess_of
from hashgym.features.regions import Box, corner_and_centre
from hashgym.features.runtime import PICTURES_AT_ONCE, open_session, require_runtime, thread_count
from hashgym.storage.errors import DataError
from hashgym.storage.reading import read_bounded

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from PIL.Image import Image

__all__ = ["FORMAT", "KEY", "Encoder", "is_sealed", "load_encoder", "seal"]

FORMAT = 1
KEY = "hashgym.encoder"
MAX_BYTES = 1 << 31  # Protocol Buffers' own bound
FEATURES_AT_ONCE = 4096  # rows: bounds the memory that networks with wide layers take
# The end of a file: field 14 of a ModelProto, a pair of strings of 14 and 64 bytes.
_SEAL = b"\x72\x52\x0a\x0ehashgym.sha256\x12\x40"
_EMPTY = b"0" * 64


def seal(model: bytes) -> bytes:
    """An ONNX model with its digest appended, as :func:`load_encoder` wants it."""
    return model + _SEAL + hashlib.sha256(model + _SEAL + _EMPTY).hexdigest().encode()


def is_sealed(path: str | Path) -> bool:
    """Whether a file ends as encoders do; whether it is whole is not checked."""
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, 2) - len(_SEAL) - 64))
        return file.read(len(_SEAL)) == _SEAL


def load_encoder(path: str | Path, threads: int | None = None) -> Encoder:
    """Open an encoder.

    Args:
        path: the file, from ``hashgym export`` or a training run's ``policy.onnx``.
        threads: of one call; ``OMP_NUM_THREADS`` by default, or all cores. Calls from several threads are safe.

    Raises:
        DataError: where the file is missing, damaged, of 2 GB or more, or no encoder; was written in a later format;
            needs other files or operators that are not ONNX's own; or has metadata that do not fit its network.
        ValueError: where ONNX Runtime is not installed.
    """
    file = Path(path)
    try:
        model = read_bounded(file, MAX_BYTES)
    except OSError as error:
        raise DataError(f"no encoder can be read at {file} ({error.strerror}): `hashgym export` writes one") from error
    body, found = memoryview(model)[:-64], model[-64:]
    if body[-len(_SEAL) :] != _SEAL:
        state = "is damaged" if _SEAL in model else "is no encoder of hashgym, or cut short"
        raise DataError(f"{file} {state}: copy it again, or write it with `hashgym export`")
    sha256 = hashlib.sha256(body)
    sha256.update(_EMPTY)
    digest = sha256.hexdigest()
    if digest.encode() != found:
        raise DataError(f"{file} has changed since it was written: copy it again, or export it again")
    require_runtime()
    try:
        check_self_contained(model)
    except ValueError as error:
        raise DataError(f"{file} cannot be run: it {error}; export it again, or ask who gave it to you") from error
    try:
        session = open_session(model, threads or thread_count())
        metadata = json.loads(session.get_modelmeta().custom_metadata_map[KEY])
        written = metadata["format"]
    except Exception as error:  # ONNX Runtime raises all sorts
        reason = str(error).partition("\n")[0]
        raise DataError(f"{file} cannot be run ({reason}): upgrade onnxruntime, or export it again") from error
    if written != FORMAT:
        raise DataError(
            f"{file} is an encoder of format {written}, this hashgym reads format {FORMAT}: upgrade hashgym, or export "
            "it again"
        )
    try:
        _check(metadata, session)
        return Encoder(session, metadata, digest)
    except (ValueError, TypeError, KeyError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else error
        raise DataError(f"{file} is no sound encoder: its metadata {what}; export it again") from error


def _check(metadata: Mapping[str, Any], session: InferenceSession) -> None:
    """Refuse metadata that are not of the types written, or do not fit the network's inputs and outputs.

    Raises:
        ValueError: with what they say, to follow the words "its metadata".
    """

    def number(key: str, low: int, high: int) -> int:
        value = metadata[key]
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"says {key} is {_short(value)}, not a whole number from {low:,} to {high:,}")
        return value

    bits, dim, regions = number("bits", 1, 1 << 20), number("dim", 1, 1 << 31), number("regions", 0, 5)
    if regions not in (0, 5):
        raise ValueError(f"says regions is {regions}, not 0 or 5")
    if metadata["group_bits"] is not None:
        number("group_bits", 1, 1 << 20)
    for key, least in ("sigma", "above 0"), ("threshold", "0"):
        value = metadata[key]
        if regions == 0 and value is None:
            continue
        sound = type(value) in (int, float) and 0 <= value <= 1 and math.isfinite(value)
        if not regions or not sound or (key == "sigma" and value == 0):
            wanted = f"a number from {least} to 1" if regions else "null, as there are no regions"
            raise ValueError(f"says {key} is {_short(value)}, not {wanted}")
    if not isinstance(metadata["backbone"], dict | None):
        raise ValueError(f"says backbone is {_short(metadata['backbone'])}, not an object or null")
    takes = metadata["takes"]
    view: list[int | None] = [dim]
    if takes not in ("features", "pictures"):
        raise ValueError(f"says that it takes {_short(takes)}, not features or pictures")
    if takes == "pictures":
        if not isinstance(metadata["preprocess"], dict):
            raise ValueError(f"says preprocess is {_short(metadata['preprocess'])}, not an object")
        preprocess_of(metadata["preprocess"])
        view = [metadata["preprocess"]["size"]] * 2 + [3]
    lead: list[int | None] = [None, None] if regions else [None]
    inputs: _Values = {takes: ("tensor(float)" if takes == "features" else "tensor(uint8)", lead + view)}
    outputs: _Values = {"bits": ("tensor(bool)", [*lead, bits]), "margin": ("tensor(float)", [*lead, bits])}
    if regions:
        outputs["keep"] = ("tensor(float)", lead)
    for expected, values in (inputs, session.get_inputs()), (outputs, session.get_outputs()):
        found: _Values = {value.name: (value.type, value.shape) for value in values}
        if found.keys() != expected.keys() or not all(_fits(*found[name], *expected[name]) for name in expected):
            raise ValueError(f"says {_shapes(expected)}, but its network has {_shapes(found)}")


_Values = dict[str, tuple[str, Sequence[Any]]]  # name -> type and shape


def _fits(kind: str, shape: Sequence[Any], wanted_kind: str, wanted: Sequence[int | None]) -> bool:
    """Whether the type is the wanted one, and the shape as far as both are known."""
    pairs = zip(shape, wanted, strict=False)
    known = all(x == y for x, y in pairs if isinstance(x, int) and y is not None)
    return kind == wanted_kind and len(shape) == len(wanted) and known


def _shapes(values: _Values) -> str:
    return ", ".join(
        f"{name} {kind} ({', '.join('?' if side is None else str(side) for side in shape)})"
        for name, (kind, shape) in values.items()
    )[:300]


def _short(value: Any) -> str:
    """A value in at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class Encoder:
    """A hash function: see :func:`load_encoder`.

    Attributes:
        bits: q, the length of a code.
        dim: D, the number of features of a view.
        takes: ``features`` or ``pictures``.
        regions: number of regions that it gives codes to besides the whole image: 0 or 5.
        sigma: ratio of a region's side to the image's; None without regions.
        threshold: xi, from which probability on a region's code is kept; None without regions.
        size: side in pixels of the pictures; None where it takes features.
        digest: SHA-256 of the file with the digest's own digits set to 0, hexadecimal.
        metadata: all that the file says of itself: also method, backbone, preprocessing, and settings.
    """

    def __init__(self, session: InferenceSession, metadata: dict[str, Any], digest: str) -> None:
        self.metadata = metadata
        self.digest = digest
        self.bits: int = metadata["bits"]
        self.dim: int = metadata["dim"]
        self.takes: str = metadata["takes"]
        self.regions: int = metadata["regions"]
        self.sigma: float | None = metadata["sigma"]
        self.threshold: float | None = metadata["threshold"]
        self._preprocess: Preprocess | None = None
        self.size: int | None = None
        if self.takes == "pictures":
            self._preprocess = preprocess_of(metadata["preprocess"])
            self.size = metadata["preprocess"]["size"]
        self._session = session

    def __repr__(self) -> str:
        regions = f", {self.regions} regions" if self.regions else ""
        return f"Encoder({self.bits} bits from {self.takes}{regions}, {self.digest[:12]})"

    def encode(self, features: NDArray[np.float32]) -> CodeSets:
        """Codes of images by their features.

        Args:
            features: float32 (n, D), as the backbone gives them; with regions also (n, V, D), the whole image first.

        Returns:
            n code sets of up to V codes.

        Raises:
            ValueError: for features of another shape or type or not finite, or where the encoder takes pictures.
        """
        return self._encode(self._features(features))

    def encode_pictures(self, pictures: NDArray[np.uint8]) -> CodeSets:
        """Codes of images.

        Args:
            pictures: uint8 (n, size, size, 3), as :meth:`prepare` makes them; with regions also (n, V, size, size, 3),
                the whole image first.

        Returns:
            n code sets of up to V codes.

        Raises:
            ValueError: for pictures of another shape or type, or where the encoder takes features.
        """
        return self._encode(self._pictures(pictures))

    def margins(self, x: NDArray[Any]) -> NDArray[np.float32]:
        """How far the bits are from changing, float32 (n, V, q): a bit is 1 where its margin is above 0.

        Args:
            x: features or pictures, whatever the encoder takes.

        Raises:
            ValueError: as :meth:`encode` and :meth:`encode_pictures`.
        """
        margin: NDArray[np.float32] = self.outputs(x, "margin")[0]
        return margin if self.regions else margin[:, None]

    def outputs(self, x: NDArray[Any], *names: str) -> list[NDArray[Any]]:
        """What the network gives under these names: ``bits``, ``margin`` and with regions ``keep``.

        Args:
            x: features or pictures, whatever the encoder takes.
            names: of the outputs.

        Raises:
            ValueError: as :meth:`encode` and :meth:`encode_pictures`.
        """
        return self._run(self._features(x) if self.takes == "features" else self._pictures(x), names)

    def boxes(self, width: int, height: int) -> list[Box]:
        """Where the V views of an image lie in it, in pixels: the whole image first.

        Raises:
            ValueError: for an image without pixels.
        """
        if width < 1 or height < 1:
            raise ValueError(f"an image has at least one pixel each way, got {width} x {height}")
        whole = (0, 0, width, height)
        return [whole] if self.sigma is None else [whole, *corner_and_centre(width, height, self.sigma)]

    def prepare(self, image: Image, regions: bool = True) -> NDArray[np.uint8]:
        """An image's V views as the network sees them, uint8 (V, size, size, 3): the whole image first.

        Args:
            image: a picture, as :func:`hashgym.data.pictures.open_image` or ``PIL.Image.open`` gives it; it is turned
                upright as its EXIF orientation says, and its transparent pixels are laid on white.
            regions: also cut out the regions, where the encoder has them; False gives V = 1.

        Raises:
            ValueError: where the encoder takes features.
            DataError: where the picture has more than 8 bits a channel.
        """
        if self._preprocess is None:
            raise ValueError(_NO_BACKBONE)
        picture = to_rgb(image)
        boxes = self.boxes(*picture.size)[1:] if regions else []
        return np.stack([self._preprocess(view) for view in (picture, *(picture.crop(box) for box in boxes))])

    def _features(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.takes != "features":
            raise ValueError("this encoder takes pictures, not features: call encode_pictures")
        features = np.asarray(features)
        if features.dtype != np.float32:
            raise ValueError(f"features must be float32, got {features.dtype}")
        features = self._shaped("features", features, (self.dim,))
        finite = np.isfinite(features).reshape(len(features), -1).all(axis=1)
        if not finite.all():
            raise ValueError(f"features hold NaN or infinity, first in row {int(np.argmin(finite))}")
        return features

    def _pictures(self, pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self.size is None:
            raise ValueError(_NO_BACKBONE)
        pictures = np.asarray(pictures)
        if pictures.dtype != np.uint8:
            raise ValueError(f"pictures must be uint8, values 0 to 255, got {pictures.dtype}; prepare() makes them")
        return self._shaped("pictures", pictures, (self.size, self.size, 3))

    def _shaped(self, name: str, x: NDArray[Any], view: tuple[int, ...]) -> NDArray[Any]:
        """``x`` as the network reads it: with regions n times V views, else n views."""
        several = self.regions > 0 and x.ndim == len(view) + 2
        if x.shape[1 + several :] != view or not x.size or (several and x.shape[1] > 1 + self.regions):
            size = ", ".join(map(str, view))
            also = f" or (n, V, {size}) with V from 1 to {1 + self.regions}" if self.regions else ""
            raise ValueError(f"this encoder takes {name} of shape (n, {size}){also}, n at least 1, got {x.shape}")
        return x[:, None] if self.regions and not several else x

    def _encode(self, views: NDArray[Any]) -> CodeSets:
        if self.threshold is None:
            return CodeSets.of(self._run(views, ["bits"])[0])
        bits, keep = self._run(views, ["bits", "keep"])
        return CodeSets.of(bits, keep.astype(np.float64) >= self.threshold)

    def _run(self, views: NDArray[Any], names: Sequence[str]) -> list[NDArray[Any]]:
        at_once = FEATURES_AT_ONCE if self.takes == "features" else PICTURES_AT_ONCE
        step = max(1, round(at_once / views.shape[1])) if self.regions else at_once
        parts = [
            self._session.run(names, {self.takes: np.ascontiguousarray(views[start : start + step])})
            for start in range(0, len(views), step)
        ]
        outputs = [np.concatenate(part) for part in zip(*parts, strict=True)]
        lead = views.shape[: 2 if self.regions else 1]
        for name, output in zip(names, outputs, strict=True):  # a file may say other shapes than it gives
            if output.shape != (wanted := lead if name == "keep" else (*lead, self.bits)):
                raise DataError(
                    f"the encoder gives {name} of shape {output.shape} instead of {wanted}: export it again"
                )
        return outputs


_NO_BACKBONE = (
    "this encoder takes features, not pictures: `hashgym export` writes one with its backbone, or extract features and "
    "call encode"
)
