"""The arguments of a reward: the emitted bits, the partners' bits, labels, and the codebook."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hashgym import codes
from hashgym.data.similarity import shared_labels
from hashgym.storage.errors import describe

__all__ = ["Codebook", "RewardView", "Scope", "drawn", "squared_distance"]

Scope: TypeAlias = Literal["group", "prefix", "global"]
"""The bits that a reward scores, see :class:`RewardView`."""


class Codebook:
    """The latest code of every training image, packed.

    Attributes:
        words: uint64 (N, ceil(bits / 64)), one row for each training image, in the order of ``dataset.train``.
        label_words: uint64 (N, ceil(L / 64)), their labels packed.
        bits: q, the length of a code.
        population: label words of all training images, where this is a sample of them; else ``label_words``.
    """

    def __init__(
        self, words: codes.Words, label_words: codes.Words, bits: int, population: codes.Words | None = None
    ) -> None:
        self.words, self.label_words, self.bits = words, label_words, bits
        self.population = label_words if population is None else population

    def __len__(self) -> int:
        return len(self.words)

    def write(self, rows: NDArray[np.int64], bits: NDArray[np.bool_], start: int = 0) -> None:
        """Replace bits ``start`` to ``start + k - 1`` of the given rows by ``bits``, bool (n, k)."""
        whole = np.zeros((len(rows), self.bits), np.bool_)
        whole[:, start : start + bits.shape[1]] = bits
        keep = ~codes.span_mask(start, start + bits.shape[1], self.bits)
        self.words[rows] = (self.words[rows] & keep) | codes.pack(whole)
        self.__dict__.pop("signs", None)

    @cached_property
    def signs(self) -> NDArray[np.float32]:
        """All codes, float32 (N, q) of -1.0 and +1.0; computed at the first use after a write."""
        return codes.unpack(self.words, self.bits) * np.float32(2) - np.float32(1)

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return the codes of rows (...,), bool (..., q)."""
        return codes.unpack(self.words[rows], self.bits)

    def span(self, start: int, stop: int) -> Codebook:
        """Return the codebook of bits ``start`` to ``stop - 1``."""
        if (start, stop) == (0, self.bits):
            return self
        return Codebook(codes.span(self.words, start, stop), self.label_words, stop - start, self.population)

    def take(self, rows: NDArray[np.int64]) -> Codebook:
        """Return the codebook of these rows alone, as copies."""
        return Codebook(self.words[rows], self.label_words[rows], self.bits, self.population)


@dataclass(frozen=True)
class RewardView:
    """One span of bits (a group, a prefix, or the whole code) of n images, a reward's argument.

    Its arrays are those of the environment, so that a reward must not change them.

    Attributes:
        code: float32 (n, s), the emitted bits as 0.0 and 1.0, or the probabilities of ``action="probability"``.
        codebook: packed codes (only this span's bits) and labels of all N training images, or of a sample of them.
        rows: int64 (n,), the images' own rows of the codebook, which a ranking must leave out.
        positive_rows: int64 (n, P), rows of the partners that share a label with the image.
        negative_rows: int64 (n, P), rows of the partners that share no label with it.
        labels: uint8 (n, L), the images' multi-hot labels.
        start: position of the span's first bit in the code.
        scope: "group" for an action group's bits, "prefix" for all bits so far, "global" for the whole code.
        last: whether this is the episode's last step.
        xp: the module of the view's arrays: numpy here, torch in ``hashgym.rewards.torch_view.TensorView``.
    """

    xp: ClassVar[Any] = np

    code: NDArray[np.float32]
    codebook: Codebook
    rows: NDArray[np.int64]
    positive_rows: NDArray[np.int64]
    negative_rows: NDArray[np.int64]
    labels: NDArray[np.uint8]
    start: int = 0
    scope: Scope = "global"
    last: bool = True

    @cached_property
    def bits(self) -> NDArray[np.bool_]:
        """The span's bits, bool (n, s): 1 where the code is above 0.5."""
        return self.code > 0.5

    @cached_property
    def signs(self) -> NDArray[np.float32]:
        """2 code - 1, float32 (n, s): -1.0 and +1.0, or between them for probabilities."""
        return 2 * self.code - 1

    @cached_property
    def words(self) -> codes.Words:
        """The span's bits packed, uint64 (n, ceil(s / 64))."""
        return codes.pack(self.bits)

    @cached_property
    def label_words(self) -> codes.Words:
        """The images' labels packed, uint64 (n, ceil(L / 64))."""
        return self.codebook.label_words[self.rows]

    @cached_property
    def positives(self) -> NDArray[np.float32]:
        """The positive partners' bits, float32 (n, P, s) of 0.0 and 1.0."""
        return self.codebook.read(drawn(self.positive_rows)).astype(np.float32)

    @cached_property
    def negatives(self) -> NDArray[np.float32]:
        """The negative partners' bits, float32 (n, P, s) of 0.0 and 1.0."""
        return self.codebook.read(drawn(self.negative_rows)).astype(np.float32)

    @cached_property
    def positive_distances(self) -> NDArray[np.float32]:
        """Squared distances to the positive partners, float32 (n, P); on bits the Hamming distance."""
        return self._distances(self.positive_rows, lambda: self.positives)

    @cached_property
    def negative_distances(self) -> NDArray[np.float32]:
        """Squared distances to the negative partners, float32 (n, P); on bits the Hamming distance."""
        return self._distances(self.negative_rows, lambda: self.negatives)

    @cached_property
    def similar(self) -> NDArray[np.bool_]:
        """Which training images share a label with each image, bool (n, N), in the order of the codebook."""
        return shared_labels(self.label_words, self.codebook.label_words)

    @cached_property
    def others(self) -> NDArray[np.bool_]:
        """Which training images are other images, bool (n, N): False for each image's own row."""
        return np.arange(len(self.codebook)) != self.rows[:, None]

    @cached_property
    def distances(self) -> NDArray[np.int16]:
        """Hamming distances of the span's bits to all codes of the codebook, int16 (n, N)."""
        inner = (self.bits - np.float32(0.5)) @ self.codebook.signs.T  # half the inner product: s / 2 - distance
        return (self.codebook.bits / 2 - inner).astype(np.int16)

    def asarray(self, x: NDArray[Any]) -> Any:
        """Return a NumPy array as the view's kind of array: here unchanged, in ``TensorView`` as a tensor."""
        return x

    def numbers(self, x: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Return a reward's result as float64 of the view's kind of array.

        Raises:
            TypeError: for anything but real numbers of this shape; the message has the form "wanted, got ...".
        """
        try:
            array = np.asarray(x)
        except ValueError:  # rows of different lengths
            array = np.empty(0, object)
        if array.shape != shape or array.dtype.kind not in "fiu":
            wanted = f"an array of real numbers (float64, float32 or integers) of shape {shape}"
            raise TypeError(f"{wanted}, got {describe(x)}")
        return array.astype(np.float64, copy=False)

    def with_code(self, code: NDArray[np.float32]) -> RewardView:
        """Return the same view with another code."""
        return replace(self, code=code)

    def with_bit(self, bit: int, value: float) -> RewardView:
        """Return the same view with this value as one bit of every code."""
        code = self.code.copy()
        code[:, bit] = value
        return self.with_code(code)

    def _distances(self, rows: NDArray[np.int64], partners: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
        if np.array_equal(self.code, self.bits):  # bits: popcount of packed codes
            return codes.hamming(self.words[:, None], self.codebook.words[drawn(rows)]).astype(np.float32)
        return squared_distance(self.code[:, None], partners())


def drawn(rows):  # type: ignore[no-untyped-def]  # NumPy arrays or torch tensors
    """Return rows of partners, (n, P), unchanged.

    Raises:
        ValueError: if none were drawn, because the reward has ``reads_partners = False``.
    """
    if not rows.shape[-1]:
        raise ValueError(
            "it reads partners, but none were drawn because of its reads_partners = False: remove that attribute"
        )
    return rows


def squared_distance(a, b):  # type: ignore[no-untyped-def]  # NumPy arrays or torch tensors
    """Return the squared Euclidean distance over the last axis; for bits in {0, 1} the Hamming distance."""
    return ((a - b) ** 2).sum(-1)
