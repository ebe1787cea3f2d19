"""Pairwise losses as rewards: the losses of MCH's base hashers, on the bits that an agent emits."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hashgym import codes, hashers
from hashgym.checks import closest
from hashgym.rewards.view import RewardView

if TYPE_CHECKING:
    from hashgym.hashers.pairwise import PairwiseHasher

__all__ = ["LOSSES", "Pairwise"]

LOSSES = ("dch", "hashnet", "adsh", "ksh", "ksh-relaxed", "mmhh", "dsh")  # hashers with a pairwise loss


class _LossTables(NamedTuple):
    """Functions of a pair's distance d and similarity as flat tables: entry 2 d + similar; the last entry is 0.

    Flipping a bit towards the other image's adds L(d - 1) - L(d), flipping it away adds L(d + 1) - L(d). The credit of
    a bit is computed from half the sum and half the difference of these two.
    """

    loss: Any  # L(d)
    slope: Any  # (L(d + 1) - L(d - 1)) / 2
    curve: Any  # (L(d + 1) - 2 L(d) + L(d - 1)) / 2


class Pairwise:
    """R = -(mean over the other training images j of w_ij L(d_ij, s_ij)), d the Hamming distance, s 1 if similar.

    L is the loss of a base hasher (MCH, Table 1) at the span's length; the weights w_ij of similar and dissimilar pairs
    are those of the hasher fitted to the codebook's labels. A span of probabilities is scored by its bits.

    Args:
        loss: name of a hasher with a pairwise loss; such a hasher, of which the settings are used and, if it is fitted,
            the pair weights; or a table (2, s + 1) of w L, row 1 for similar pairs, for spans of s bits.
        against: "codebook" for all training images; "partners" for the image's partners: the positives represent all
            similar images and the negatives all dissimilar ones, weighted by their shares of all pairs.
        **settings: of a hasher given by name, such as ``gamma=10.0`` for "dch".

    Raises:
        ValueError: for an unknown loss or setting, or a hasher without a pairwise loss.
    """

    def __init__(
        self,
        loss: str | PairwiseHasher | ArrayLike = "dch",
        against: Literal["codebook", "partners"] = "codebook",
        **settings: Any,
    ) -> None:
        if against not in ("codebook", "partners"):
            raise ValueError(f"against must be 'codebook' or 'partners', got {against!r}")
        self.against = against
        self._hasher: Any = None
        self._table: Any = None
        if isinstance(loss, str):
            name, self._hasher = loss, hashers.make(loss, **settings)
        elif settings:
            raise ValueError(
                f"settings ({', '.join(settings)}) are only for a hasher given by name: set them on the hasher itself"
            )
        elif isinstance(loss, hashers.Hasher):
            name, self._hasher = type(loss).__name__, loss
        else:
            try:
                name, self._table = "table", np.asarray(loss)
            except ValueError:  # rows of different lengths
                name, self._table = "table", np.empty(0, object)
            if self._table.ndim != 2 or len(self._table) != 2 or self._table.dtype.kind not in "fiu":
                raise ValueError(
                    "loss must be a hasher's name, a hasher, or a table of real numbers (2, s + 1), row 1 for similar "
                    f"pairs; got {self._table.dtype} {self._table.shape}"
                )
            if not np.isfinite(self._table).all():
                raise ValueError("loss must be a table of finite numbers, got NaN or infinity in it")
        if self._hasher is not None and not hasattr(self._hasher, "pair_loss"):
            close = closest(name, LOSSES)
            raise ValueError(f"hasher {name!r} has no pairwise loss{close}; the losses are {', '.join(LOSSES)}")
        self.name = f"pairwise:{name}"
        self._labels: Any = None  # from which the tables and the weights were computed
        self._computed: dict[tuple[Any, ...], _LossTables] = {}
        self._weights: NDArray[np.float64] | None = None
        self.reads_partners = against == "partners"

    def __call__(self, view: RewardView) -> NDArray[np.floating]:
        """Return -(mean of w L), floating (n,)."""
        loss = self._tables(view).loss
        return -sum(loss[entry].sum(-1) for entry, _ in self._pairs(view))

    def value_and_credit(self, view: RewardView) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """Return the value (n,) and each bit's credit (n, s), from one product of matrices.

        Without bit b the pair's distance is d - [x_b != y_b], x and y the signs of the two images. R(1) - R(0) is the
        sum over j of y_b (L(d + 1) - L(d)) if the signs agree and y_b (L(d) - L(d - 1)) if they differ, which is
        y_b slope(d) + x_b curve(d) for both.
        """
        tables, value, credit = self._tables(view), 0.0, 0.0
        own = 2.0 * view.bits - 1.0
        for entry, signs in self._pairs(view):
            slope = tables.slope[entry]
            toward = slope @ signs if signs.ndim == 2 else (slope[:, None] @ signs)[:, 0]
            value = value - tables.loss[entry].sum(-1)
            credit = credit + toward + own * tables.curve[entry].sum(-1)[:, None]
        return value, credit  # type: ignore[return-value]

    def _pairs(self, view: RewardView) -> list[tuple[Any, Any]]:
        """Return the pairs of every image: their entries in the tables (n, M), and the others' signs (.., M, s)."""
        if self.against == "codebook":
            entries = view.distances * 2 + view.similar
            entries[view.asarray(np.arange(len(view.rows))), view.rows] = 2 * view.codebook.bits + 2  # not itself
            return [(entries, view.codebook.signs)]
        return [
            ((view.bits[:, None] != (bits > 0.5)).sum(-1) * 2 + similar, 2 * bits - 1)
            for similar, bits in enumerate((view.negatives, view.positives))
        ]

    def _tables(self, view: RewardView) -> _LossTables:
        """Return the tables for the span's length, computed once for every kind of view that the reward is given."""
        if self._labels is not view.codebook.population:
            self._labels, self._computed, self._weights = view.codebook.population, {}, None
        length = view.codebook.bits
        # Samples of a codebook differ in size, and several environments may share the reward.
        counts = len(view.codebook), view.positive_rows.shape[1], view.negative_rows.shape[1]
        key = length, counts, view.xp.__name__, str(getattr(view.code, "device", ""))
        if key not in self._computed:
            loss = self._loss(view, length)
            inner = np.pad(loss, ((0, 0), (1, 1)), mode="edge")  # the ends cancel
            ahead, back = inner[:, 2:] - loss, loss - inner[:, :-2]
            tables = (loss, (ahead + back) / 2, (ahead - back) / 2)
            self._computed[key] = _LossTables(*(view.asarray(np.append(t.T, 0).astype(np.float32)) for t in tables))
        return self._computed[key]

    def _loss(self, view: RewardView, length: int) -> NDArray[np.float64]:
        """Return the loss that a pair of each kind and distance adds, float64 (2, length + 1)."""
        weights = self._pair_weights(view.codebook.population) if self._needs_weights else np.ones(2)
        if self._hasher is None:
            table = self._table.astype(np.float64)
            if table.shape[1] != length + 1:
                raise ValueError(
                    f"the table of the loss is for spans of {table.shape[1] - 1} bits, not of {length}: set the weight "
                    "of the other scope to 0 (group_weight, global_weight), or give a hasher instead"
                )
        else:
            import torch

            hasher = dataclasses.replace(self._hasher, bits=length)
            hasher._weigh(weights)
            hasher.pair_weights_ = getattr(self._hasher, "pair_weights_", hasher.pair_weights_)
            similar = torch.tensor([[False], [True]])
            table = hasher.weighted_pair_loss(torch.arange(length + 1, dtype=torch.float64), similar).numpy()
        if self.against == "codebook":
            return table / max(1, len(view.codebook) - 1)
        drawn = np.array([view.negative_rows.shape[1], view.positive_rows.shape[1]])
        return table / (weights * drawn)[:, None]  # 1 / weights: the kind's share of all pairs

    @property
    def _needs_weights(self) -> bool:
        return self.against == "partners" or getattr(self._hasher, "weighted", False)

    def _pair_weights(self, label_words: codes.Words) -> NDArray[np.float64]:
        """Return 1 / share of all pairs, of dissimilar and similar pairs, float64 (2,); counted once."""
        if self._weights is None:
            from hashgym.hashers.pairwise import packed_pair_weights

            self._weights = packed_pair_weights(label_words)
        return self._weights
