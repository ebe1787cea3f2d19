"""What a reward may see: the acting lanes' bits, their partners' bits, labels, and the codebook."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from hashgym import codes

__all__ = ["Codebook", "RewardView", "described", "drawn", "squared_distance"]


class Codebook:
    """The freshest code of every training image, packed.

    Attributes:
        words: uint64 (N, ceil(bits / 64)), one row for each training image, in the order of ``dataset.train``.
        label_words: uint64 (N, ceil(L / 64)), their labels packed.
        bits: q, the length of a code.
    """

    def __init__(self, words: codes.Words, label_words: codes.Words, bits: int) -> None:
        self.words, self.label_words, self.bits = words, label_words, bits

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
        """All codes, float32 (N, q) of -1.0 and +1.0, as they were when this was first asked for."""
        return codes.unpack(self.words, self.bits) * np.float32(2) - np.float32(1)

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Codes of the given rows: rows (...,) gives bool (..., q)."""
        return codes.unpack(self.words[rows], self.bits)

    def span(self, start: int, stop: int) -> Codebook:
        """The codebook of bits ``start`` to ``stop - 1`` alone."""
        if (start, stop) == (0, self.bits):
            return self
        return Codebook(codes.span(self.words, start, stop), self.label_words, stop - start)


@dataclass(frozen=True)
class RewardView:
    """One span of bits (a group, or the whole code) of n lanes, as a reward sees it. Arrays are not to be written.

    Attributes:
        code: float32 (n, s), the emitted bits as 0.0 and 1.0, or the probabilities of ``action="probability"``.
        codebook: packed codes (this span's bits alone) and labels of all N training images.
        rows: int64 (n,), the lanes' own rows of the codebook, which a ranking must leave out.
        positive_rows: int64 (n, P), rows of the partners that share a label with the lane's image.
        negative_rows: int64 (n, P), rows of the partners that share none.
        labels: uint8 (n, L), the lanes' multi-hot labels.
        start: place of the span's first bit in the code.
        scope: "group" for an action group's bits, "global" for the whole code.
        last: whether this is the episode's last step.
        xp: the module of the view's arrays: here numpy, torch where the view holds tensors.
    """

    xp: ClassVar[Any] = np

    code: NDArray[np.float32]
    codebook: Codebook
    rows: NDArray[np.int64]
    positive_rows: NDArray[np.int64]
    negative_rows: NDArray[np.int64]
    labels: NDArray[np.uint8]
    start: int = 0
    scope: Literal["group", "global"] = "global"
    last: bool = True

    @cached_property
    def bits(self) -> NDArray[np.bool_]:
        """The lanes' bits, bool (n, s): 1 where the code is above 0.5."""
        return self.code > 0.5

    @cached_property
    def signs(self) -> NDArray[np.float32]:
        """The lanes' code as 2 code - 1, float32 (n, s): -1.0 and +1.0, or between them for probabilities."""
        return 2 * self.code - 1

    @cached_property
    def words(self) -> codes.Words:
        """The lanes' bits packed, uint64 (n, ceil(s / 64))."""
        return codes.pack(self.bits)

    @cached_property
    def label_words(self) -> codes.Words:
        """The lanes' labels packed, uint64 (n, ceil(L / 64))."""
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
        """Which training images share a label with the lane's, bool (n, N), in the order of the codebook."""
        own, all_ = (
            np.ascontiguousarray(words).view(np.uint8).T.copy()  # eight labels at a time
            for words in (self.label_words, self.codebook.label_words)
        )
        shared = np.zeros((len(self.rows), len(self.codebook)), np.uint8)
        for eight, of_all in zip(own, all_, strict=True):
            if eight.any():
                shared |= eight[:, None] & of_all
        return shared != 0

    @cached_property
    def others(self) -> NDArray[np.bool_]:
        """All training images but the lane's own, bool (n, N)."""
        return np.arange(len(self.codebook)) != self.rows[:, None]

    @cached_property
    def distances(self) -> NDArray[np.int16]:
        """Hamming distances of the lanes' bits to all codes of the codebook, int16 (n, N)."""
        inner = (self.bits - np.float32(0.5)) @ self.codebook.signs.T  # half the inner product: s / 2 - distance
        return (self.codebook.bits / 2 - inner).astype(np.int16)

    def asarray(self, x: NDArray[Any]) -> Any:
        """A NumPy array as the kind of array this view holds: here itself, a tensor where the view holds tensors."""
        return x

    def numbers(self, x: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """What a reward returned as float64 of the view's kind of array.

        Raises:
            TypeError: for anything but real numbers of this shape; the message says what was wanted and what came.
        """
        try:
            array = np.asarray(x)
        except ValueError:  # rows of several lengths
            array = np.empty(0, object)
        if array.shape != shape or array.dtype.kind not in "fiu":
            wanted = f"an array of real numbers (float64, float32 or integers) of shape {shape}"
            raise TypeError(f"{wanted}, got {described(x)}")
        return array.astype(np.float64, copy=False)

    def with_code(self, code: NDArray[np.float32]) -> RewardView:
        """The same view with other bits or probabilities in place of the lanes'."""
        return replace(self, code=code)

    def with_bit(self, bit: int, value: float) -> RewardView:
        """The same view with this value at one place of every lane's code."""
        code = self.code.copy()
        code[:, bit] = value
        return self.with_code(code)

    def _distances(self, rows: NDArray[np.int64], partners: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
        if np.array_equal(self.code, self.bits):  # bits: popcount, with nothing unpacked
            return codes.hamming(self.words[:, None], self.codebook.words[drawn(rows)]).astype(np.float32)
        return squared_distance(self.code[:, None], partners())


def drawn(rows):  # type: ignore[no-untyped-def]  # NumPy arrays and torch tensors alike
    """Return rows of partners, (n, P), as they are.

    Raises:
        ValueError: if none were drawn, because the reward says that it reads none.
    """
    if not rows.shape[-1]:
        raise ValueError("it reads partners, and none were drawn, as it has reads_partners = False: remove that line")
    return rows


def described(x: Any) -> str:
    """What came, in words: shape and dtype of an array, else its type."""
    if hasattr(x, "dtype") and hasattr(x, "shape"):
        return f"{x.dtype} {tuple(x.shape)}"
    return "None (is a return missing?)" if x is None else f"{type(x).__name__} {x!r:.60}"


def squared_distance(a, b):  # type: ignore[no-untyped-def]  # NumPy arrays and torch tensors alike
    """Squared Euclidean distance over the last axis; on bits in {0, 1} it is the Hamming distance."""
    return ((a - b) ** 2).sum(-1)
