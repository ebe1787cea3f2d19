"""Fit an encoder to the pictures themselves, without labels, while they are encoded for the first time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hashgym import console
from hashgym.checks import check_integer, closest
from hashgym.codes import CodeSets
from hashgym.data.dataset import HashingDataset
from hashgym.encoders import Encoder, load_encoder
from hashgym.features.onnx_runtime import PICTURES_AT_ONCE, open_session, thread_count
from hashgym.storage.reading import map_array

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from PIL.Image import Image

    from hashgym.features import Backbone

__all__ = ["EncoderFit", "check_method", "method_of"]

# Most pictures that a hasher is fitted to, which bounds the memory, and an agent, which bounds the time.
MOST, MOST_NEIGHBOURS = 20_000, 5_000
_ROWS = 8192  # features that are encoded at once


@dataclass(frozen=True)
class EncoderFit:
    """An encoder that is still to be fitted: a backbone, and a hash function that needs no labels.

    The features of all pictures are computed once. The hash function is fitted to them, or to a random part of them,
    and then gives all of them their codes.

    Attributes:
        backbone: computes the features; it needs an ONNX form.
        bits: q, the length of the codes.
        method: of :func:`hashgym.encoders.build.fit_encoder`; None for ``itq``, or ``lsh``, with a warning, where too
            few pictures differ.
        seed: of the method, and of the pictures that it is fitted to.
        threads: of the network; None for ``OMP_NUM_THREADS``, or all cores.
        progress: whether to show a progress bar.
    """

    backbone: Backbone
    bits: int = 64
    method: str | None = None
    seed: int = 0
    threads: int | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        check_integer("bits", self.bits)
        if self.method in ("itq", "pca") and self.bits > self.backbone.dim:
            raise ValueError(
                f"{self.method} gives at most a bit for each of the {self.backbone.dim} features of "
                f"{self.backbone.name}: ask for fewer bits than {self.bits}, or use lsh"
            )

    @cached_property
    def _session(self) -> InferenceSession:
        return open_session(self.backbone.to_onnx(), self.threads or thread_count())

    def open(self) -> None:
        """Open the network now, rather than for the first picture.

        Raises:
            ValueError: for a backbone without an ONNX form.
        """
        _ = self._session

    @property
    def identity(self) -> dict[str, Any]:
        """What must be equal for a job to be resumed: its features do not depend on the method."""
        return {"encoder": "", "fit": {"backbone": self.backbone.provenance}}

    @property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and type of a picture's row in every array that is computed."""
        return {"features": ((self.backbone.dim,), "float32")}

    def prepare(self, image: Image) -> NDArray[np.uint8]:
        """Return an image as input of the network, uint8 (1, size, size, 3)."""
        return self.backbone.preprocess(image)[None]

    def compute(self, views: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """Return the rows of every array, for views (n, 1, size, size, 3)."""
        starts = range(0, len(views), PICTURES_AT_ONCE)
        found = [self._session.run(None, {"pictures": views[i : i + PICTURES_AT_ONCE, 0]})[0] for i in starts]
        return {"features": np.concatenate(found)}

    def finish(self, folder: Path) -> tuple[Encoder, dict[str, NDArray[Any]]]:
        """Fit the hash function to the features in a folder, and write the encoder there as ``encoder.onnx``.

        Returns:
            The encoder of pictures, and the arrays ``words`` and ``kept`` of all pictures.

        Raises:
            ValueError: for pictures that the method cannot learn from.
        """
        from hashgym.encoders.build import NEIGHBOURS, fit_encoder

        features, target = map_array(folder / "features.npy"), folder / "encoder.onnx"
        n = len(features)
        method = self.method or "itq"
        most = MOST_NEIGHBOURS if method == NEIGHBOURS else MOST
        rows = np.sort(np.random.default_rng(self.seed).permutation(n)[:most])
        every = np.arange(len(rows))
        dataset = HashingDataset(
            name="photos",
            features=np.ascontiguousarray(features[rows]),
            labels=np.zeros((len(rows), 0), np.uint8),
            query=every[:0],
            database=every,
            train=every,
            provenance={"backbone": self.backbone.provenance},
        )
        fit: dict[str, Any] = {"bits": self.bits, "seed": self.seed, "progress": self.progress}
        try:
            head = fit_encoder(dataset, self.backbone, target, method, **fit)
        except ValueError as error:
            if self.method is not None:
                raise
            console.warn(f"these pictures are encoded by lsh: {error}")
            head = fit_encoder(dataset, self.backbone, target, "lsh", **fit)
        parts = [head.encode(np.asarray(features[start : start + _ROWS])) for start in range(0, n, _ROWS)]
        sets = CodeSets(np.concatenate([p.words for p in parts]), np.concatenate([p.kept for p in parts]), self.bits)
        return load_encoder(target), {"words": sets.words, "kept": sets.kept}


def method_of(encoder: Encoder) -> str:
    """Return the method by which an encoder was fitted, as :func:`check_method` knows it."""
    from hashgym import hashers
    from hashgym.encoders.build import NEIGHBOURS

    made_by = encoder.metadata["source"].get("hasher")
    names = [name for name in hashers.available() if hashers.HASHERS.find(name).__name__ == made_by]
    return names[0] if names else NEIGHBOURS


def check_method(method: str | None) -> None:
    """Raise ValueError for a method that is neither a hasher without labels nor ``neighbours``."""
    from hashgym import hashers
    from hashgym.encoders.build import NEIGHBOURS

    known = [name for name in hashers.available() if not hashers.HASHERS.find(name).supervised]
    if method not in (None, NEIGHBOURS, *known):
        raise ValueError(
            f"{method!r} is not a method without labels{closest(method or '', [NEIGHBOURS, *known])}: choose "
            f"{NEIGHBOURS}, {', '.join(known)}"
        )
