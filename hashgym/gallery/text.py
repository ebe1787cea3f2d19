"""Codes of texts: the embedding of an image-text model, hashed as those of pictures are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hashgym.encoders import Encoder
from hashgym.storage.errors import DataError

if TYPE_CHECKING:
    from hashgym.features.library_models import LibraryModel

__all__ = ["TextEncoder"]


@dataclass(frozen=True)
class TextEncoder:
    """Gives texts codes that are comparable with those of pictures.

    A text's embedding by the encoder's own backbone goes through the encoder's standardisation and hash function, like
    the embedding of a picture.

    Attributes:
        network: the backbone of the encoder, with its network for texts.
        head: the encoder without its backbone.
    """

    network: LibraryModel
    head: Encoder

    @classmethod
    def of(cls, path: str | Path, encoder: Encoder, weights: str | None = None) -> TextEncoder:
        """Load the backbone of an encoder, and its hash function.

        Args:
            path: the file of the encoder.
            encoder: the same, open, perhaps cut.
            weights: a file or folder of the backbone's weights, if they are not where its name says.

        Raises:
            ValueError: if the backbone is not an image-text model, or its library is not installed.
            DataError: if the backbone has other weights here than the encoder's.
        """
        from hashgym.encoders.write import without_backbone
        from hashgym.features import library_models
        from hashgym.features.libraries import is_library_model

        stored = encoder.metadata["backbone"] or {}
        name = str(stored.get("name", ""))
        if not is_library_model(name):
            raise ValueError(
                f"pictures were encoded by {name or 'an unknown network'}, which embeds no texts: "
                f"{library_models.NEEDS_TEXT}"
            )
        head = without_backbone(path).cut(encoder.bits)
        network = library_models.load(name, size=stored["size"], weights=weights)
        if network.texts is None:
            raise ValueError(f"pictures were encoded by {name}, which embeds no texts: {library_models.NEEDS_TEXT}")
        if network.digest != stored["digest"]:
            raise DataError(
                f"{name} has other weights here ({network.weights}, SHA-256 {network.digest[:12]}) than those that "
                f"encoded the pictures ({stored['weights']}, {stored['digest'][:12]}): name these with --weights"
            )
        return cls(network, head)

    def margins(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the margins of the bits of texts, float32 (n, q): a bit is 1 where its margin is above 0.

        Raises:
            ValueError: for no text or one that is empty, or embeddings of another length than the encoder's features.
        """
        margins: NDArray[np.float32] = self.head.margins(self.network.embed(texts))[:, 0]
        return margins
