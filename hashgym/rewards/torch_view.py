"""RewardView and Codebook with tensors on a device, for the torch back end of the environment. Imports torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding

from hashgym import codes
from hashgym.rewards.view import Scope, drawn
from hashgym.storage.errors import describe

__all__ = ["TensorCodebook", "TensorView"]


class TensorCodebook:
    """The latest code of every training image: :class:`hashgym.rewards.Codebook`, unpacked and on a device.

    Attributes:
        code: float32 (N, q) of 0.0 and 1.0, one row for each training image, in the order of ``dataset.train``.
        labels: uint8 (N, L), their multi-hot labels.
        label_words: uint64 (N, ceil(L / 64)), the same labels packed, a NumPy array.
        bits: q, the length of a code.
        population: label words of all training images, where this is a sample of them; else ``label_words``.
    """

    def __init__(
        self, code: Tensor, labels: Tensor, label_words: codes.Words, population: codes.Words | None = None
    ) -> None:
        self.code, self.labels, self.label_words, self.bits = code, labels, label_words, code.shape[1]
        self.population = label_words if population is None else population

    def __len__(self) -> int:
        return len(self.code)

    @property
    def signs(self) -> Tensor:
        """All codes, float32 (N, q) of -1.0 and +1.0."""
        return 2 * self.code - 1

    def write(self, rows: Tensor | NDArray[np.int64], bits: Tensor | NDArray[np.bool_], start: int = 0) -> None:
        """Replace bits ``start`` to ``start + k - 1`` of the given rows by ``bits``, bool (n, k)."""
        rows, bits = (torch.as_tensor(x, device=self.code.device) for x in (rows, bits))
        # Of equal rows the last counts. The order of writes on a device is undefined, so all of them write its bits.
        places = torch.arange(len(rows), device=rows.device)
        last = torch.zeros(len(self), dtype=torch.int64, device=rows.device).scatter_reduce_(0, rows, places, "amax")
        self.code[rows, start : start + bits.shape[1]] = bits[last[rows]].to(self.code.dtype)

    def read(self, rows: Tensor | NDArray[np.int64]) -> Tensor:
        """Return the codes of rows (...,), bool (..., q)."""
        return self.code[torch.as_tensor(rows, device=self.code.device)] > 0.5

    def span(self, start: int, stop: int) -> TensorCodebook:
        """Return the codebook of bits ``start`` to ``stop - 1``."""
        return TensorCodebook(self.code[:, start:stop].contiguous(), self.labels, self.label_words, self.population)

    def take(self, rows: Tensor, host_rows: NDArray[np.int64]) -> TensorCodebook:
        """Return the codebook of these rows alone, given on the device and as a NumPy array, as copies."""
        return TensorCodebook(self.code[rows], self.labels[rows], self.label_words[host_rows], self.population)


@dataclass(frozen=True)
class TensorView:
    """:class:`hashgym.rewards.RewardView` with tensors on one device. Do not change them.

    Names, shapes and dtypes are those of ``RewardView``, except that there are no packed codes (``words`` and
    ``label_words``).
    """

    xp: ClassVar[Any] = torch

    code: Tensor
    codebook: TensorCodebook
    rows: Tensor
    positive_rows: Tensor
    negative_rows: Tensor
    labels: Tensor
    start: int = 0
    scope: Scope = "global"
    last: bool = True

    @cached_property
    def bits(self) -> Tensor:
        """The span's bits, bool (n, s): 1 where the code is above 0.5."""
        return self.code > 0.5

    @cached_property
    def signs(self) -> Tensor:
        """2 code - 1, float32 (n, s): -1.0 and +1.0, or between them for probabilities."""
        return 2 * self.code - 1

    @cached_property
    def positives(self) -> Tensor:
        """The positive partners' bits, float32 (n, P, s) of 0.0 and 1.0."""
        return embedding(drawn(self.positive_rows), self.codebook.code)  # indexing takes four times as long on a CPU

    @cached_property
    def negatives(self) -> Tensor:
        """The negative partners' bits, float32 (n, P, s) of 0.0 and 1.0."""
        return embedding(drawn(self.negative_rows), self.codebook.code)

    @cached_property
    def positive_distances(self) -> Tensor:
        """Squared distances to the positive partners, float32 (n, P); on bits the Hamming distance."""
        return self._distances(self.positives)

    @cached_property
    def negative_distances(self) -> Tensor:
        """Squared distances to the negative partners, float32 (n, P); on bits the Hamming distance."""
        return self._distances(self.negatives)

    @cached_property
    def similar(self) -> Tensor:
        """Which training images share a label with each image, bool (n, N), in the order of the codebook."""
        return self.labels.float() @ self.codebook.labels.float().T > 0

    @cached_property
    def others(self) -> Tensor:
        """Which training images are other images, bool (n, N): False for each image's own row."""
        return torch.arange(len(self.codebook), device=self.rows.device) != self.rows[:, None]

    @cached_property
    def distances(self) -> Tensor:
        """Hamming distances of the span's bits to all codes of the codebook, int32 (n, N)."""
        inner = (2 * self.bits.float() - 1) @ self.codebook.signs.T  # exact: see hashgym.retrieval.torch_kernels
        return ((self.codebook.bits - inner) / 2).int()

    def asarray(self, x: NDArray[Any]) -> Tensor:
        """Return a NumPy array as a tensor on the view's device."""
        return torch.as_tensor(x, device=self.code.device)

    def numbers(self, x: Any, shape: tuple[int, ...]) -> Tensor:
        """Return a reward's result as float64; raises TypeError as ``RewardView.numbers``."""
        device, real = self.code.device, isinstance(x, Tensor) and not x.is_complex() and x.dtype != torch.bool
        if not real or x.shape != shape or x.device != device:
            where = f" on {x.device}" if isinstance(x, Tensor) else ""
            raise TypeError(f"a tensor of real numbers of shape {(*shape,)} on {device}, got {describe(x)}{where}")
        return x.double()

    def with_code(self, code: Tensor) -> TensorView:
        """Return the same view with another code."""
        return replace(self, code=code)

    def with_bit(self, bit: int, value: float) -> TensorView:
        """Return the same view with this value as one bit of every code."""
        code = self.code.clone()
        code[:, bit] = value
        return self.with_code(code)

    def _distances(self, partners: Tensor) -> Tensor:
        """Return |x - p|^2 = |x|^2 + p (1 - 2 x), as p^2 = p: a matrix product without an array (n, P, s)."""
        x = self.code
        return (partners @ (1 - 2 * x)[..., None])[..., 0] + (x * x).sum(-1, keepdim=True)
