"""Drawing partners: images that share a label with a given image, and images that share none."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hashgym import codes
from hashgym.data.similarity import count_similar, label_patterns
from hashgym.storage.errors import DataError

__all__ = ["PartnerSampler"]


class PartnerSampler:
    """Draws partners uniformly from all similar and all dissimilar training images.

    Images are sorted by their label pattern, so that the similar images of any image are a few runs of that order:
    the k-th of them is found from cumulative counts over patterns, in time independent of the number of images.

    Args:
        label_words: uint64 (N, ceil(L / 64)), packed labels of the training images.

    Raises:
        DataError: if no image has both a similar and a dissimilar one.
    """

    def __init__(self, label_words: codes.Words) -> None:
        self._patterns, self._pattern_of, self._counts = label_patterns(label_words)
        self._members = np.argsort(self._pattern_of, kind="stable")  # rows sorted by pattern
        self._starts = np.cumsum(self._counts) - self._counts
        self._place = np.empty_like(self._members)  # a row's place in that order
        self._place[self._members] = np.arange(len(self._members))
        similar_to = count_similar(label_words)
        # An image without labels is not similar even to itself, and has no episode.
        self.eligible: NDArray[np.int64] = np.flatnonzero((similar_to > 1) & (similar_to < len(label_words)))
        if not self.eligible.size:
            raise DataError(
                "no training image has both a similar image (sharing a label) and a dissimilar one; "
                "check that the labels are those of the images and that there are at least two classes"
            )

    def draw(
        self, rows: NDArray[np.int64], partners: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Draw for each row, with replacement; return (positives, negatives), int64 (n, partners) each.

        The number of random numbers drawn does not depend on the labels.
        """
        uniform = self.skip(len(rows), partners, rng)
        similar = self._similar(self._pattern_of[rows])
        return self._pick(similar, uniform[0], rows), self._pick(~similar, uniform[1], None)

    def skip(self, images: int, partners: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Advance the generator as :meth:`draw` does, without finding the partners; return its uniform numbers."""
        return rng.random((2, images, partners))

    def sample(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw ``count`` different rows, stratified by label pattern: each pattern has its share of them, rounded.

        Systematic sampling: rows, sorted by pattern and shuffled within it, are taken at equal intervals from a random
        start, so every row is equally likely.

        Returns:
            int64 (count,), in ascending order; all N rows if there are no more.
        """
        total = len(self._members)
        if count >= total:
            return np.arange(total)
        order = np.argsort(self._pattern_of + rng.random(total))
        places = ((np.arange(count) + rng.random()) * (total / count)).astype(np.int64)
        return np.sort(order[np.minimum(places, total - 1)])  # the last one may be rounded up

    def _similar(self, patterns: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which patterns share a label with the given ones, bool (n, U)."""
        similar = np.zeros((len(patterns), len(self._patterns)), np.bool_)
        for word in range(self._patterns.shape[1]):
            similar |= (self._patterns[patterns, word, None] & self._patterns[None, :, word]) != 0
        return similar

    def _pick(
        self, allowed: NDArray[np.bool_], uniform: NDArray[np.float64], own: NDArray[np.int64] | None
    ) -> NDArray[np.int64]:
        """Return rows picked uniformly from the allowed patterns, int64 (n, P), without the rows ``own`` if given."""
        ends = np.cumsum(np.where(allowed, self._counts, 0), axis=1)
        total = ends[:, -1]
        if own is None:
            rank = (uniform * total[:, None]).astype(np.int64)
        else:
            rank = (uniform * (total - 1)[:, None]).astype(np.int64)
            pattern = self._pattern_of[own]
            place = np.arange(len(own))
            own_rank = ends[place, pattern] - self._counts[pattern] + self._place[own] - self._starts[pattern]
            rank += rank >= own_rank[:, None]
        # One search over all rows: each row's counts are shifted into a range of their own.
        shift = np.arange(len(ends))[:, None] * (len(self._members) + 1)
        found = np.searchsorted((ends + shift).ravel(), (rank + shift).ravel(), side="right").reshape(rank.shape)
        pattern = found - np.arange(len(ends))[:, None] * ends.shape[1]
        before = np.take_along_axis(ends, pattern, axis=1) - self._counts[pattern]
        return self._members[self._starts[pattern] + rank - before]
