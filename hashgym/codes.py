"""Binary codes: packing bits into 64-bit words and counting Hamming distances.

A code of q bits is stored in ceil(q / 64) words of uint64, bit ``b`` of the code in bit ``b % 64`` of word
``b // 64``, unused bits zero. As bytes (``words.view(np.uint8)``) this is ``np.packbits(bitorder="little")``, the order
that faiss uses. Multi-hot labels are packed the same way, so that "share a label" is one AND.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "CodeSets",
    "Words",
    "hamming",
    "longer_than",
    "pack",
    "prefix_lengths",
    "span",
    "span_mask",
    "unpack",
    "word_count",
]

Words = NDArray[np.uint64]
WORD_BITS = 64


def word_count(bits: int) -> int:
    """Return the number of 64-bit words that hold ``bits`` bits."""
    return -(-bits // WORD_BITS)


def pack(bits: ArrayLike) -> Words:
    """Pack boolean codes into words.

    Args:
        bits: bool or 0/1 integers, shape (..., q), q >= 1.

    Returns:
        uint64, shape (..., ceil(q / 64)).

    Raises:
        ValueError: for floating-point input (threshold it first), for values other than 0 and 1, and for q = 0.
    """
    array = np.asarray(bits)
    if array.ndim == 0 or array.shape[-1] == 0:
        raise ValueError(f"bits must have at least one bit on the last axis, got shape {array.shape}")
    if array.dtype != np.bool_:
        if array.dtype.kind not in "iu":
            raise ValueError(f"bits must be bool or 0/1 integers, got {array.dtype}; threshold real values first")
        if array.size and (array.min() < 0 or array.max() > 1):
            raise ValueError("bits must be 0 or 1; convert a code of -1/+1 by `code > 0`")
    packed = np.packbits(array, axis=-1, bitorder="little")
    words = np.zeros((*array.shape[:-1], word_count(array.shape[-1]) * 8), np.uint8)
    words[..., : packed.shape[-1]] = packed
    return words.view("<u8").astype(np.uint64, copy=False)


def prefix_lengths(bits: int, step: int) -> tuple[int, ...]:
    """Return the lengths of the prefixes of a code of ``bits`` bits that end at multiples of ``step``, and ``bits``."""
    return (*range(step, bits, step), bits)


def longer_than(words: Words, bits: int) -> bool:
    """Return whether any of the packed codes (..., ceil(bits / 64)) has a bit set beyond its first ``bits``."""
    return bits % WORD_BITS != 0 and bool((words[..., -1] >> np.uint64(bits % WORD_BITS)).any())


def unpack(words: Words, bits: int) -> NDArray[np.bool_]:
    """Unpack words (..., ceil(bits / 64)) into bool (..., bits); the inverse of :func:`pack`.

    Raises:
        ValueError: if the number of words does not fit ``bits``.
    """
    if words.shape[-1] != word_count(bits):
        raise ValueError(f"{bits} bits take {word_count(bits)} words, got {words.shape[-1]}")
    octets = np.ascontiguousarray(words).astype("<u8", copy=False).view(np.uint8)
    return np.unpackbits(octets, axis=-1, count=bits, bitorder="little").view(np.bool_)


def span_mask(start: int, stop: int, bits: int) -> Words:
    """Return words (ceil(bits / 64),) with ones at bits ``start`` to ``stop - 1``, a mask for a group of bits."""
    if not 0 <= start < stop <= bits:
        raise ValueError(f"a span needs 0 <= start < stop <= {bits}, got [{start}, {stop})")
    positions = np.arange(bits)
    return pack((start <= positions) & (positions < stop))


def span(words: Words, start: int, stop: int) -> Words:
    """Return the packed codes of bits ``start`` to ``stop - 1``, uint64 (..., ceil((stop - start) / 64)).

    Raises:
        ValueError: unless 0 <= start < stop <= 64 x the number of words.
    """
    if not 0 <= start < stop <= words.shape[-1] * WORD_BITS:
        raise ValueError(f"a span needs 0 <= start < stop <= {words.shape[-1] * WORD_BITS}, got [{start}, {stop})")
    first, shift = divmod(start, WORD_BITS)
    count = word_count(stop - start)
    low = words[..., first : first + count] >> np.uint64(shift)
    if shift:
        high = words[..., first + 1 : first + 1 + count] << np.uint64(WORD_BITS - shift)
        low[..., : high.shape[-1]] |= high
    if rest := (stop - start) % WORD_BITS:
        low[..., -1] &= np.uint64((1 << rest) - 1)
    return low


def hamming(a: Words, b: Words) -> NDArray[np.int64]:
    """Hamming distances between packed codes, broadcasting over all axes but the last (the words).

    ``hamming(a[:, None], b[None])`` gives every pair of two sets of codes.

    Raises:
        ValueError: for codes of different numbers of words.
    """
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(f"codes of {a.shape[-1]} and of {b.shape[-1]} words have no distance: give equally long ones")
    return np.bitwise_count(a ^ b).sum(axis=-1, dtype=np.int64)


@dataclass(frozen=True)
class CodeSets:
    """One or more codes for each item: its own, and those of its kept regions (MCH).

    The distance between two items is the minimum over their codes. Of equal codes of an item only the first is kept.

    Attributes:
        words: uint64 (n, K, ceil(bits / 64)), packed codes, the item's own first.
        kept: bool (n, K), which of them an item has; always the first.
        bits: q, the length of a code.
    """

    words: Words
    kept: NDArray[np.bool_]
    bits: int

    def __post_init__(self) -> None:
        words, kept = self.words, self.kept
        if words.dtype != np.uint64 or words.ndim != 3 or words.shape[2] != word_count(self.bits) or not words.size:
            raise ValueError(
                f"words must be packed codes of {self.bits} bits, uint64 (n, K, {word_count(self.bits)}), not empty; "
                f"got {words.dtype} {words.shape}. CodeSets.of(bits, kept) packs them"
            )
        if longer_than(words, self.bits):
            raise ValueError(f"words have bits set beyond bit {self.bits - 1}: they are longer than {self.bits} bits")
        if kept.dtype != np.bool_ or kept.shape != words.shape[:2]:
            raise ValueError(f"kept must be bool {words.shape[:2]}, got {kept.dtype} {kept.shape}")
        if not kept[:, 0].all():
            raise ValueError("kept[:, 0] must be True: an item always has its own code")
        equal = (words[:, :, None] == words[:, None]).all(axis=-1) & kept[:, None]  # [i, a, b]: a equals a kept b
        repeats = np.tril(equal, k=-1).any(axis=2)
        object.__setattr__(self, "kept", kept & ~repeats)

    @classmethod
    def of(cls, bits: ArrayLike, kept: ArrayLike | None = None) -> CodeSets:
        """Create code sets from unpacked codes.

        Args:
            bits: bool (n, q), one code per item, or (n, K, q), the item's own code first.
            kept: bool (n, K), which of the K codes an item keeps; None for all.

        Raises:
            ValueError: for arrays of another type or shape, or an item that does not keep its own code.
        """
        codes = np.asarray(bits)
        if codes.ndim not in (2, 3):
            raise ValueError(f"codes must have shape (n, q) or (n, K, q), got {codes.shape}")
        words = pack(codes if codes.ndim == 3 else codes[:, None])
        return cls(words, np.ones(words.shape[:2], np.bool_) if kept is None else np.asarray(kept), codes.shape[-1])

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, rows: slice | NDArray[np.int64] | NDArray[np.bool_]) -> CodeSets:
        """Return the code sets of some items."""
        return CodeSets(self.words[rows], self.kept[rows], self.bits)

    @property
    def anhc(self) -> float:
        """Average number of hash codes of an item (MCH eq. 8)."""
        return float(self.kept.sum(axis=1).mean())

    @property
    def filled(self) -> Words:
        """``words`` with the item's own code in place of codes that are not kept: the same sets without a mask."""
        return np.where(self.kept[..., None], self.words, self.words[:, :1])
