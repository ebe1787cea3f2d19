"""The base hasher of RegionKeep-v0 and MultiCodeHashing-v0: their common arguments, its codes and its loss."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hashgym import codes, hashers
from hashgym.checks import check_integer, check_number, closest, plain_numbers
from hashgym.data import HashingDataset
from hashgym.envs.base import DatasetIndex, EnvMixin, task_property
from hashgym.hashers import Hasher
from hashgym.hashers.fit_once import fit_once
from hashgym.storage.errors import describe

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["BaseMixin", "BaseTask", "SharedCodes", "drop_features", "encode_versions", "fitted_base", "loss_table"]

DEFAULT_BITS = 32


@dataclass(frozen=True, kw_only=True)
class BaseTask:
    """Arguments that both environments share; see :class:`hashgym.envs.region_keep.RegionKeepEnv`."""

    base: str | Path | Hasher = "dch"
    bits: int | None = None
    price: float = 0.0
    loss: ArrayLike | None = None
    code_dropout: float = 0.0
    code_copies: int = 4

    def __post_init__(self) -> None:
        plain_numbers(self)
        if self.bits is not None:
            check_integer("bits", self.bits)
        check_integer("code_copies", self.code_copies)
        object.__setattr__(self, "code_dropout", check_number("code_dropout", self.code_dropout, 0))
        if self.code_dropout >= 1:
            raise ValueError(f"code_dropout is a share of the features, from 0 to below 1, got {self.code_dropout}")
        object.__setattr__(self, "price", check_number("price", self.price, least=0))
        if self.loss is not None:  # as tuples of numbers, so that tasks can be compared
            try:
                table = np.asarray(self.loss, np.float64)
            except (TypeError, ValueError):  # strings, and rows of different lengths
                raise ValueError(
                    "loss must be a table (2, bits + 1) of finite numbers, row 1 for similar pairs, got "
                    f"{describe(self.loss)}"
                ) from None
            if table.ndim != 2:
                raise ValueError(
                    f"loss must be a table (2, bits + 1), row 1 for similar pairs, got {describe(self.loss)}"
                )
            object.__setattr__(self, "loss", tuple(map(tuple, table.tolist())))

    def check_bits(self, bits: int) -> None:
        """Raise ValueError for arguments that do not suit codes of ``bits`` bits, before a base is fitted."""


class BaseMixin(EnvMixin):
    """Attributes of the core that environments with a base expose."""

    _core: Any
    price = task_property("price", "Amount subtracted from the reward for each kept code")

    @property
    def base(self) -> Hasher:
        """The fitted base hasher, which computes the codes."""
        return self._core.base

    @property
    def loss_table(self) -> NDArray[np.float64]:
        """L(d, s) at every distance, float64 (2, q + 1), row 1 for similar pairs, from which rewards are computed."""
        return self._core.table


class SharedCodes:
    """Codes of the training images, computed once for all environments of a process with the same arguments."""

    shared: ClassVar[WeakValueDictionary[tuple[Any, ...], Any]] = WeakValueDictionary()

    def __init__(self, dataset: HashingDataset, base: Hasher, task: BaseTask) -> None:
        self.held = dataset, list(vars(base).values())  # keeps the objects alive: ``shared`` is keyed by their ids

    @classmethod
    def of(cls, dataset: HashingDataset, base: Hasher, task: BaseTask) -> Self:
        """Return the codes of a dataset and a base, under the dropout of a task.

        The ids of its attributes distinguish a base that was fitted again, which has other codes.
        """
        dropout = (task.code_dropout, task.code_copies) if task.code_dropout else ()
        key = cls, dropout, id(dataset), id(type(base)), *map(id, vars(base).values())
        if (found := cls.shared.get(key)) is None:
            found = cls.shared[key] = cls(dataset, base, task)
        return found


def encode_versions(
    base: Hasher, features: NDArray[np.float32], task: BaseTask, rng: np.random.Generator
) -> NDArray[np.uint64]:
    """Return packed codes (C, n, W) of features (n, D): one version, or ``code_copies`` of them under dropout."""
    dropout, versions = task.code_dropout, []
    for _ in range(task.code_copies if dropout else 1):
        seen = drop_features(features, dropout, rng) if dropout else features
        versions.append(codes.pack(base.encode(seen)))
    return np.stack(versions)


def drop_features(features: NDArray[np.float32], share: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return features with a random share of them set to 0 and the others scaled up, so that means stay."""
    return features * (rng.random(features.shape, np.float32) >= share) / np.float32(1 - share)


def fitted_base(dataset_index: DatasetIndex, task: BaseTask) -> Hasher:
    """Return the fitted base hasher of a task.

    Raises:
        ValueError: for a name or file that is not of a hasher, or one that does not fit the dataset or the task.
    """
    dataset = dataset_index.dataset
    if isinstance(task.base, str) and task.base in hashers.HASHERS:
        unfitted = hashers.make(task.base, bits=task.bits or DEFAULT_BITS, seed=0)
        loss_table(unfitted, task, fitted=False)
        task.check_bits(unfitted.bits)
        key = task.base, unfitted.bits
        if key not in dataset_index.bases:
            dataset_index.bases[key] = fit_once(
                unfitted, dataset.features[dataset.train], dataset.labels[dataset.train]
            )
        return dataset_index.bases[key]
    if isinstance(task.base, str | Path):
        if not Path(task.base).is_file():
            names, close = ", ".join(hashers.available()), closest(task.base, hashers.available())
            raise ValueError(
                f"base={str(task.base)!r} is neither a hasher{close} nor the file of a saved one; hashers are {names}"
            )
        path = Path(task.base).resolve()
        base = _loaded(path, path.stat().st_mtime_ns)
    else:
        base = task.base
    if not isinstance(base, Hasher) or not hasattr(base, "n_features_in_"):
        raise ValueError(f"base must be a hasher's name, a fitted hasher or the path of a saved one, got {base!r}")
    if base.n_features_in_ != dataset.dim:
        raise ValueError(
            f"the base was fitted on {base.n_features_in_} features, images of {dataset.name!r} have {dataset.dim}: "
            "fit it on features of the same backbone"
        )
    if task.bits not in (None, base.bits):
        raise ValueError(f"bits={task.bits}, but the base's codes have {base.bits} bits: leave bits out")
    return base


def loss_table(base: Hasher, task: BaseTask, *, fitted: bool = True) -> NDArray[np.float64]:
    """Return L, float64 (2, q + 1): ``task.loss``, or that of the base; zeros if the base is not ``fitted`` yet.

    Raises:
        ValueError: for a base without a loss, or a table of another shape or of numbers that are not finite.
    """
    if task.loss is None:
        if not hasattr(base, "loss_table"):
            raise ValueError(
                f"{type(base).__name__} has no pairwise loss: give loss=, a table (2, {base.bits + 1}) of "
                "L at every distance, row 1 for similar pairs, or choose a base such as 'dch'"
            )
        table = base.loss_table() if fitted else np.zeros((2, base.bits + 1))
    else:
        table = np.asarray(task.loss, np.float64)
    if table.shape != (2, base.bits + 1) or not np.isfinite(table).all():
        raise ValueError(
            f"loss must be a table (2, {base.bits + 1}) of finite numbers, row 1 for similar pairs, got "
            f"{describe(table)}"
        )
    return table


@lru_cache(maxsize=4)
def _loaded(path: Path, changed: int) -> Hasher:
    return hashers.load(path)
