"""Encoder: a hash function from features or pictures to codes in one file, run by ONNX Runtime.

The file is an ONNX model. Its input is ``features``, float32 (n, D) as a backbone gives them, or, if the backbone is
included, ``pictures``, uint8 (n, size, size, 3). Where the backbone was trained, features are activations or pixels in
a row, of the shape (C, H, W) in the metadata, ``image_shape``. Encoders of images with regions read V views of each,
(n, V, ...), and view 0 is the whole image. Encoders that give images m further codes read one view and give V = 1 + m
codes. Outputs: ``bits``, bool (n[, V], q); ``margin``, float32 of the same shape, above 0 where the bit is 1; and where
there are several codes ``keep``, float32 (n, V), the probability that a code is kept.

Metadata: ``hashgym.encoder``, a JSON description of the hash function, and as the last entry ``hashgym.sha256``, the
digest of the file with the digest's own 64 digits set to 0, so that no damaged file is ever parsed. A digest does not
show who wrote a file: before ONNX Runtime parses it, ``hashgym.encoders.onnx_file`` rejects everything that could read
other files, and the metadata is compared with the network's inputs and outputs.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hashgym.checks import check_integer, finite_rows
from hashgym.codes import CodeSets
from hashgym.data.pictures import to_rgb
from hashgym.encoders.onnx_file import check_self_contained
from hashgym.features.backbone import Preprocess, preprocess_of
from hashgym.features.onnx_runtime import PICTURES_AT_ONCE, open_session, require_runtime, thread_count
from hashgym.features.regions import Box, corner_and_centre
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
    """Return an ONNX model with its digest appended, as :func:`load_encoder` requires."""
    return model + _SEAL + hashlib.sha256(model + _SEAL + _EMPTY).hexdigest().encode()


def is_sealed(path: str | Path) -> bool:
    """Return whether a file ends like an encoder; the digest is not checked."""
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, 2) - len(_SEAL) - 64))
        return file.read(len(_SEAL)) == _SEAL


def load_encoder(path: str | Path, threads: int | None = None) -> Encoder:
    """Open an encoder.

    Args:
        path: the file, from ``hashgym export`` or a training run's ``policy.onnx``.
        threads: number of threads of one call; ``OMP_NUM_THREADS`` by default, or all cores. Calls from several threads
            are safe.

    Raises:
        DataError: if the file is missing, damaged, of 2 GB or more, or not an encoder; was written in a later format;
            needs other files or operators that are not ONNX's own; or has metadata that do not fit its network.
        MissingPackageError: if ONNX Runtime is not installed.
    """
    file = Path(path)
    try:
        model = read_bounded(file, MAX_BYTES)
    except OSError as error:
        raise DataError(f"the encoder {file} cannot be read ({error.strerror}): `hashgym export` writes one") from error
    body, claimed = memoryview(model)[:-64], model[-64:]
    if body[-len(_SEAL) :] != _SEAL:
        state = "is damaged" if _SEAL in model else "is not an encoder of hashgym, or was cut off"
        raise DataError(f"{file} {state}: copy it again, or write it with `hashgym export`")
    sha256 = hashlib.sha256(body)
    sha256.update(_EMPTY)
    digest = sha256.hexdigest()
    if digest.encode() != claimed:
        raise DataError(f"{file} is damaged (its SHA-256 does not match): copy it again, or export it again")
    require_runtime()
    try:
        check_self_contained(model)
    except ValueError as error:
        raise DataError(
            f"{file} cannot be run: it {error}; export it again, or get it again from its author"
        ) from error
    try:
        session = open_session(model, threads or thread_count())
        metadata = json.loads(session.get_modelmeta().custom_metadata_map[KEY])
        written = metadata["format"]
    except Exception as error:  # ONNX Runtime raises many types
        reason = str(error).partition("\n")[0]
        raise DataError(f"{file} cannot be run ({reason}): upgrade onnxruntime, or export it again") from error
    if written != FORMAT:
        raise DataError(
            f"{file} is an encoder of format {written}, and this hashgym reads format {FORMAT}: upgrade hashgym, or "
            "export it again"
        )
    try:
        _check(metadata, session)
        return Encoder(session, metadata, digest)
    except (ValueError, TypeError, KeyError) as error:
        problem = f"lacks {error}" if isinstance(error, KeyError) else error
        raise DataError(f"{file} is not a valid encoder: its metadata {problem}; export it again") from error


def _check(metadata: Mapping[str, Any], session: InferenceSession) -> None:
    """Validate the types of the metadata, and compare them with the network's inputs and outputs.

    Raises:
        ValueError: with the problem, to follow the words "its metadata".
    """

    def number(key: str, low: int, high: int) -> int:
        value = metadata[key]
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"has {key} = {_short(value)}, not an integer from {low:,} to {high:,}")
        return value

    bits, dim, regions = number("bits", 1, 1 << 20), number("dim", 1, 1 << 31), number("regions", 0, 5)
    if regions not in (0, 5):
        raise ValueError(f"has regions = {regions}, not 0 or 5")
    if (image := metadata.get("image_shape")) is not None:
        is_shape = isinstance(image, list) and len(image) == 3 and all(type(side) is int for side in image)
        if not is_shape or min(image) < 1 or math.prod(image) != dim or regions:
            raise ValueError(f"has image_shape = {_short(image)}, not three sides of {dim:,} numbers")
    further = number("codes", 1, 1 << 10) if "codes" in metadata else 0
    if further and regions:
        raise ValueError(f"has codes = {further} and regions, not one of the two")
    several = further > 0 or regions > 0
    if metadata["group_bits"] is not None:
        number("group_bits", 1, 1 << 20)
    if (lengths := metadata.get("lengths")) is not None:
        are_lengths = isinstance(lengths, list) and all(type(length) is int for length in lengths) and lengths
        if not are_lengths or lengths[0] < 1 or lengths[-1] != bits or sorted(set(lengths)) != lengths:
            raise ValueError(f"has lengths = {_short(lengths)}, not ascending integers from 1 to {bits:,}")
    for key, least in ("sigma", "above 0"), ("threshold", "0"):
        value, needed = metadata[key], regions > 0 if key == "sigma" else several
        if not needed and value is None:
            continue
        is_valid = type(value) in (int, float) and 0 <= value <= 1 and math.isfinite(value)
        if not needed or not is_valid or (key == "sigma" and value == 0):
            wanted = f"a number from {least} to 1" if needed else "null, as there are no regions"
            raise ValueError(f"has {key} = {_short(value)}, not {wanted}")
    if not isinstance(metadata["backbone"], dict | None):
        raise ValueError(f"has backbone = {_short(metadata['backbone'])}, not an object or null")
    takes = metadata["takes"]
    view: list[int | None] = [dim]
    if takes not in ("features", "pictures"):
        raise ValueError(f"has takes = {_short(takes)}, not features or pictures")
    if takes == "pictures":
        if not isinstance(metadata["preprocess"], dict):
            raise ValueError(f"has preprocess = {_short(metadata['preprocess'])}, not an object")
        preprocess_of(metadata["preprocess"])
        view = [metadata["preprocess"]["size"]] * 2 + [3]
    lead: list[int | None] = [None, None] if regions else [None]
    each = [None, 1 + further] if further else lead
    inputs: _Values = {takes: ("tensor(float)" if takes == "features" else "tensor(uint8)", lead + view)}
    outputs: _Values = {"bits": ("tensor(bool)", [*each, bits]), "margin": ("tensor(float)", [*each, bits])}
    if several:
        outputs["keep"] = ("tensor(float)", each)
    for expected, values in (inputs, session.get_inputs()), (outputs, session.get_outputs()):
        found: _Values = {value.name: (value.type, value.shape) for value in values}
        if found.keys() != expected.keys() or not all(_fits(*found[name], *expected[name]) for name in expected):
            raise ValueError(f"describes {_shapes(expected)}, but its network has {_shapes(found)}")


_Values = dict[str, tuple[str, Sequence[Any]]]  # name -> type and shape


def _fits(kind: str, shape: Sequence[Any], wanted_kind: str, wanted: Sequence[int | None]) -> bool:
    """Return whether the types are equal, and the shapes as far as both are known."""
    pairs = zip(shape, wanted, strict=False)
    known = all(x == y for x, y in pairs if isinstance(x, int) and y is not None)
    return kind == wanted_kind and len(shape) == len(wanted) and known


def _shapes(values: _Values) -> str:
    return ", ".join(
        f"{name} {kind} ({', '.join('?' if side is None else str(side) for side in shape)})"
        for name, (kind, shape) in values.items()
    )[:300]


def _short(value: Any) -> str:
    """Return a value as text of at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class Encoder:
    """A hash function: see :func:`load_encoder`.

    Attributes:
        bits: q, the length of a code.
        lengths: lengths to which codes were trained to be cut, ascending, and q; only q for most encoders.
        dim: D, the number of features of a view.
        takes: ``features`` or ``pictures``.
        image_shape: (C, H, W) of the activations or pixels that a trained backbone takes; None for feature vectors.
        regions: number of regions with a code, besides the whole image: 0 or 5.
        codes: number of further codes of an image, besides that of its base; 0 for most encoders.
        sigma: ratio of a region's side to the image's; None without regions.
        threshold: xi, the least probability at which a code is kept; None where an image has one code.
        size: side in pixels of the pictures; None if it takes features.
        digest: SHA-256 of the file with the digest's own digits set to 0, hexadecimal; of an encoder that was cut,
            followed by a colon and its length.
        metadata: of the file, including method, backbone, preprocessing and settings.
    """

    def __init__(self, session: InferenceSession, metadata: dict[str, Any], digest: str) -> None:
        self.metadata = metadata
        self.digest = digest
        self.bits: int = metadata["bits"]
        self.lengths: tuple[int, ...] = tuple(metadata.get("lengths", [self.bits]))
        self.dim: int = metadata["dim"]
        self.takes: str = metadata["takes"]
        shape = metadata.get("image_shape")
        self.image_shape: tuple[int, ...] | None = None if shape is None else tuple(shape)
        self.regions: int = metadata["regions"]
        self.codes: int = metadata.get("codes", 0)
        self.sigma: float | None = metadata["sigma"]
        self.threshold: float | None = metadata["threshold"]
        self._preprocess: Preprocess | None = None
        self.size: int | None = None
        if self.takes == "pictures":
            self._preprocess = preprocess_of(metadata["preprocess"])
            self.size = metadata["preprocess"]["size"]
        self._session = session

    def __repr__(self) -> str:
        regions = f", {self.regions} regions" if self.regions else f", {self.codes} further codes" if self.codes else ""
        return f"Encoder({self.bits} bits from {self.takes}{regions}, {self.digest[:12]})"

    @property
    def most_codes(self) -> int:
        """The largest number of codes of an image."""
        return 1 + self.regions + self.codes

    def cut(self, bits: int) -> Encoder:
        """Return an encoder of the first bits of each code, from the same network.

        Where ``lengths`` has the length, codes are as good as those of an encoder trained for it; between two such
        lengths nearly so. Without such training they are just truncated codes.

        Args:
            bits: their number, from 1 to q.

        Raises:
            ValueError: for another number.
        """
        if check_integer("bits", bits) > self.bits:
            raise ValueError(f"the encoder has codes of {self.bits} bits, which cannot be cut to {bits}")
        if bits == self.bits:
            return self
        encoder = copy.copy(self)
        encoder.bits, encoder.digest = bits, f"{self.digest.partition(':')[0]}:{bits}"
        encoder.lengths = (*(length for length in self.lengths if length < bits), bits)
        return encoder

    def encode(self, features: NDArray[np.float32]) -> CodeSets:
        """Return the codes of images, from their features.

        Args:
            features: float32 (n, D), as the backbone gives them; with regions also (n, V, D), the whole image first. An
                encoder with a trained backbone also takes its activations or pixels, (n, C, H, W) of float32, float16
                or uint8.

        Returns:
            n code sets of up to V codes.

        Raises:
            ValueError: for features of another shape or type or not finite, or if the encoder takes pictures.
        """
        return self._encode(self._features(features))

    def encode_pictures(self, pictures: NDArray[np.uint8]) -> CodeSets:
        """Return the codes of images, from their pictures.

        Args:
            pictures: uint8 (n, size, size, 3), as :meth:`prepare` makes them; with regions also (n, V, size, size, 3),
                the whole image first.

        Returns:
            n code sets of up to V codes.

        Raises:
            ValueError: for pictures of another shape or type, or if the encoder takes features.
        """
        return self._encode(self._pictures(pictures))

    def margins(self, x: NDArray[Any]) -> NDArray[np.float32]:
        """Return the margins of the bits, float32 (n, V, q) of V codes: a bit is 1 where its margin is above 0.

        Args:
            x: features or pictures, as the encoder takes them.

        Raises:
            ValueError: as :meth:`encode` and :meth:`encode_pictures`.
        """
        margin: NDArray[np.float32] = self.outputs(x, "margin")[0]
        return margin if margin.ndim == 3 else margin[:, None]

    def outputs(self, x: NDArray[Any], *names: str) -> list[NDArray[Any]]:
        """Return outputs of the network by name: ``bits``, ``margin`` and with several codes ``keep``.

        Args:
            x: features or pictures, as the encoder takes them.
            names: names of the outputs.

        Raises:
            ValueError: as :meth:`encode` and :meth:`encode_pictures`.
        """
        return self._run(self._features(x) if self.takes == "features" else self._pictures(x), names)

    def boxes(self, width: int, height: int) -> list[Box]:
        """Return the boxes of an image's V views, in pixels: the whole image first.

        Raises:
            ValueError: for an image without pixels.
        """
        if width < 1 or height < 1:
            raise ValueError(f"an image has at least one pixel each way, got {width} x {height}")
        whole = (0, 0, width, height)
        return [whole] if self.sigma is None else [whole, *corner_and_centre(width, height, self.sigma)]

    def prepare(self, image: Image, regions: bool = True) -> NDArray[np.uint8]:
        """Return an image's V views as inputs of the network, uint8 (V, size, size, 3): the whole image first.

        Args:
            image: a picture from :func:`hashgym.data.pictures.open_image` or ``PIL.Image.open``; it is turned upright
                by its EXIF orientation, and its transparent pixels are put on white.
            regions: also cut out the regions, if the encoder has them; False gives V = 1.

        Raises:
            ValueError: if the encoder takes features.
            DataError: if the picture has more than 8 bits per channel.
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
        if self.image_shape is not None and features.shape[1:] == self.image_shape and len(features):
            if features.dtype.name not in ("float32", "float16", "uint8"):
                raise ValueError(f"images must be float32, float16 or uint8, got {features.dtype}")
            return features  # checked and converted in batches: they may be larger than the memory
        if features.dtype != np.float32:
            raise ValueError(f"features must be float32, got {features.dtype}")
        return self._shaped("features", features, (self.dim,))

    def _pictures(self, pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self.size is None:
            raise ValueError(_NO_BACKBONE)
        pictures = np.asarray(pictures)
        if pictures.dtype != np.uint8:
            raise ValueError(f"pictures must be uint8, values 0 to 255, got {pictures.dtype}; prepare() makes them")
        return self._shaped("pictures", pictures, (self.size, self.size, 3))

    def _shaped(self, name: str, x: NDArray[Any], view: tuple[int, ...]) -> NDArray[Any]:
        """Return ``x`` in the shape that the network takes: n times V views with regions, else n views."""
        several = self.regions > 0 and x.ndim == len(view) + 2
        if x.shape[1 + several :] != view or not x.size or (several and x.shape[1] > 1 + self.regions):
            size = ", ".join(map(str, view))
            also = f" or (n, V, {size}) with V from 1 to {1 + self.regions}" if self.regions else ""
            if self.image_shape is not None and name == "features":
                also = f" or (n, {', '.join(map(str, self.image_shape))})"
            raise ValueError(f"this encoder takes {name} of shape (n, {size}){also}, n at least 1, got {x.shape}")
        return x[:, None] if self.regions and not several else x

    def _encode(self, views: NDArray[Any]) -> CodeSets:
        if self.threshold is None:
            return CodeSets.of(self._run(views, ["bits"])[0])
        bits, keep = self._run(views, ["bits", "keep"])
        return CodeSets.of(bits, keep.astype(np.float64) >= self.threshold)

    def _run(self, views: NDArray[Any], names: Sequence[str]) -> list[NDArray[Any]]:
        has_network = self.takes == "pictures" or self.image_shape is not None
        at_once = PICTURES_AT_ONCE if has_network else FEATURES_AT_ONCE
        step = max(1, round(at_once / views.shape[1])) if self.regions else at_once
        batches = (self._batch(views, start, step) for start in range(0, len(views), step))
        parts = [self._session.run(names, {self.takes: batch}) for batch in batches]
        outputs = [np.concatenate(part) for part in zip(*parts, strict=True)]
        lead = views.shape[: 2 if self.regions else 1] + ((self.most_codes,) if self.codes else ())
        for name, output in zip(names, outputs, strict=True):  # a file may declare other shapes than it has
            if output.shape != (wanted := lead if name == "keep" else (*lead, self.metadata["bits"])):
                raise DataError(
                    f"the encoder gives {name} of shape {output.shape} instead of {wanted}: export it again"
                )
        return [
            output if name == "keep" else output[..., : self.bits] for name, output in zip(names, outputs, strict=True)
        ]

    def _batch(self, views: NDArray[Any], start: int, count: int) -> NDArray[Any]:
        """Return ``count`` images from number ``start`` on as the network takes them.

        Raises:
            ValueError: for features that are not finite.
        """
        batch = np.ascontiguousarray(views[start : start + count])
        if self.takes == "pictures":
            return batch
        finite = finite_rows(batch)
        if not finite.all():
            raise ValueError(f"features hold NaN or infinity, first in row {start + int(np.argmin(finite))}")
        return (batch if self.image_shape is None else batch.reshape(len(batch), -1)).astype(np.float32, copy=False)


_NO_BACKBONE = (
    "this encoder takes features, not pictures: `hashgym export` writes one with its backbone, or extract features and "
    "call encode"
)
