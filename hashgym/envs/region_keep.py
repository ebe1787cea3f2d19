"""RegionKeep-v0, scalar and native vector: an agent keeps or discards the hash codes of an image's regions (MCH)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from numpy.typing import ArrayLike, NDArray

from hashgym import codes
from hashgym.checks import check_integer
from hashgym.codes import Words
from hashgym.data import HashingDataset
from hashgym.envs.base import (
    BatchedCore,
    DatasetIndex,
    Info,
    LockstepVectorEnv,
    Observation,
    ScalarEnv,
)
from hashgym.envs.bases import BaseMixin, BaseTask, SharedCodes, encode_versions, fitted_base, loss_table
from hashgym.envs.rendering import RegionScene
from hashgym.hashers import Hasher
from hashgym.registry import named_settings_of
from hashgym.retrieval.kernels import distance_histograms

__all__ = ["RegionKeepEnv", "RegionKeepTask", "RegionKeepVectorEnv", "observation"]

_ROWS = 1024  # images whose regions are encoded at once, as features may be memory-mapped files


@named_settings_of("RegionKeep-v0", "dataset", "flat", "info", "render_mode")
@dataclass(frozen=True, kw_only=True)
class RegionKeepTask(BaseTask):
    """Arguments of the task, shared by both environments; see :class:`RegionKeepEnv`."""

    regions_per_episode: int = 1
    reduction: Literal["mean", "sum"] = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("regions_per_episode", self.regions_per_episode)
        if self.reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be 'mean' or 'sum', got {self.reduction!r}")

    def check_regions(self, dataset: HashingDataset) -> None:
        """Raise DataError for a dataset without regions, and ValueError for one with fewer than an episode offers."""
        dataset.require("train_regions")
        assert dataset.train_regions is not None
        if self.regions_per_episode > (available := dataset.train_regions.shape[1]):
            raise ValueError(
                f"regions_per_episode={self.regions_per_episode} is more than the {available} regions of an image: "
                "choose fewer, or extract more with --train-regions"
            )

    def observation_space(self, dim: int, bits: int) -> spaces.Dict:
        """Return the space of one observation of images with ``dim`` features and codes of ``bits`` bits."""
        features = spaces.Box(-np.inf, np.inf, (dim,), np.float32)
        code = spaces.Box(-1, 1, (bits,), np.float32)
        space = spaces.Dict(image=features, region=features, image_code=code, region_code=code)
        if self.regions_per_episode > 1:
            space["kept"] = code
        return space


def observation(
    image: NDArray[np.float32],
    region: NDArray[np.float32],
    kept: Words,
    region_code: Words,
    bits: int,
    *,
    sequential: bool = False,
) -> Observation:
    """Return the observations of n images, in the environment and in encoding.

    Args:
        image: float32 (n, D).
        region: float32 (n, D), the offered region.
        kept: uint64 (n, K, W), packed codes kept so far, the image's own first; unused entries repeat one of them.
        region_code: uint64 (n, W), the packed code of the offered region.
        bits: q, the length of a code.
        sequential: whether regions are offered in turn (``regions_per_episode`` > 1), so that ``kept`` is observed.

    Returns:
        ``image``, ``region`` float32 (n, D); ``image_code``, ``region_code`` and, if sequential, ``kept`` float32
        (n, q) of -1 and +1. ``kept`` is the kept code closest to the region's, the first one on ties.
    """
    shown = {"image_code": kept[:, 0], "region_code": region_code}
    if sequential:
        nearest = codes.hamming(kept, region_code[:, None]).argmin(axis=1)
        shown["kept"] = kept[np.arange(len(kept)), nearest]
    signs = {key: np.where(codes.unpack(words, bits), np.float32(1), np.float32(-1)) for key, words in shown.items()}
    return {"image": image, "region": region, **signs}


class _TrainingCodes(SharedCodes):
    """Codes of the training images and their regions by a base hasher.

    Attributes:
        images: uint64 (C, N, W), C versions of them: one, or with ``code_dropout`` as many as there are copies.
        regions: uint64 (C, N, M, W).
    """

    def __init__(self, dataset: HashingDataset, base: Hasher, task: BaseTask) -> None:
        super().__init__(dataset, base, task)
        train, bits, rng = dataset.train, base.bits, np.random.default_rng(0)
        assert dataset.train_regions is not None
        self.images = encode_versions(base, dataset.features[train], task, rng)
        versions, _, width = self.images.shape
        self.regions = np.empty((versions, len(train), dataset.train_regions.shape[1], width), np.uint64)
        for start in range(0, len(train), _ROWS):
            block = dataset.train_regions[train[start : start + _ROWS]].reshape(-1, dataset.dim)
            part = self.regions[:, start : start + _ROWS]
            part[:] = encode_versions(base, block, task, rng).reshape(part.shape)
        self._bits, self._databases = bits, [_doubled(words, bits) for words in self.images]
        self._label_words = DatasetIndex.of(dataset).label_words
        self._own_counts = np.zeros((versions, versions, len(train), 2, bits + 1), np.int64)
        self._counted = np.zeros(self._own_counts.shape[:3], np.bool_)

    def count(self, kept: Words, rows: NDArray[np.int64], book: int, offered: Words | None = None) -> NDArray[np.int64]:
        """Count the training images at each distance from sets of codes.

        Args:
            kept: uint64 (n, K, W), packed codes.
            rows: int64 (n,), the image of each set.
            book: the version of the training images' codes.
            offered: uint64 (n, W), one more code for each set.

        Returns:
            int64 (n, 2, bits + 1, 2): [:, 1] counts images that share a label with that of the set, [:, 0] others;
            [..., 1] counts images nearer to the offered code than to any kept one, [..., 0] others.
        """
        # Repeating codes twice doubles distances, and one extra bit makes those to the offered code odd: the parity of
        # the least distance tells whether the offered code is strictly nearer.
        sets = _doubled(kept, self._bits)
        if offered is not None:
            sets = np.concatenate([sets, _doubled(offered[:, None], self._bits, odd=True)], axis=1)
        relevant, total = distance_histograms(
            sets, self._label_words[rows], self._databases[book], self._label_words, 2 * self._bits + 1
        )
        return np.stack([total - relevant, relevant], axis=1).reshape(len(rows), 2, -1, 2)

    def own_counts(self, rows: NDArray[np.int64], version: NDArray[np.int64], book: int) -> NDArray[np.int64]:
        """Count the training images at each distance from versions (n,) of images' own codes, (n, 2, bits + 1).

        Every version of an image is counted once.
        """
        new = ~self._counted[version, book, rows]
        if new.any():
            which, image = np.unique(np.stack([version[new], rows[new]]), axis=1)
            counts = self.count(self.images[which, image][:, None], image, book)[..., 0]
            self._own_counts[which, book, image], self._counted[which, book, image] = counts, True
        return self._own_counts[version, book, rows]


class RegionKeepCore(BatchedCore):
    """Simulator of n environments, each on one image with m of its regions offered in turn.

    Attributes:
        book: the version of the training images' codes that the reward compares with.
        version: int64 (n,), the version of the image's own code and of its regions' codes.
        regions: int64 (n, m), which regions, in the order in which they are offered.
        offered: number of regions decided on so far.
        decisions: int8 (n, m), 1 keep, 0 discard, -1 no decision yet.
        kept: uint64 (n, 1 + m, W), the image's own code, then that of every region; entries not kept repeat the first.
        region_code, new: uint64 (n, W), the code of the offered region, and bool (n,), whether no kept code equals it.
        counts: int64 (n, 2, bits + 1), training images at each distance from the codes kept so far, [:, 1] the similar
            ones; ``counts_if_kept``: the same if the offered region's code is kept.
        keep_parts: components of the reward for keeping the offered region's code, float64 (n,) each.
        nearer: int64 (n, 2), numbers of dissimilar and similar training images that keeping it brings nearer.
    """

    OPTIONS = ("index", "regions")
    CHANGEABLE = ("price",)
    ENCODER = "hashgym.encode_regions"

    def __init__(self, num_envs: int, dataset: str | Path | HashingDataset, task: RegionKeepTask) -> None:
        super().__init__(num_envs, dataset)
        task.check_regions(self.dataset)
        assert self.dataset.train_regions is not None
        _ = self.dataset_index.sampler  # raises DataError if no image has both a similar and a dissimilar one
        self.task, self.available = task, self.dataset.train_regions.shape[1]
        self.base = fitted_base(self.dataset_index, task)
        self.bits = self.base.bits
        self.table = loss_table(self.base, task)
        self.training_codes = _TrainingCodes.of(self.dataset, self.base, task)
        self.eligible = np.arange(len(self.dataset.train))
        self.book, self.version = 0, np.zeros(num_envs, np.int64)

    def spaces(self) -> tuple[spaces.Dict, spaces.Space[Any]]:
        """Return the observation and action space of one environment."""
        return self.task.observation_space(self.dataset.dim, self.bits), spaces.Discrete(2)

    @property
    def settings(self) -> dict[str, Any]:
        """What an episode's state depends on."""
        return {"base": type(self.base).__name__, "bits": self.bits}

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the state's attributes."""
        m = self.task.regions_per_episode
        regions, kept = (self.num_envs, m), (self.num_envs, 1 + m, codes.word_count(self.bits))
        shapes = super().state_shapes | {"regions": regions, "offered": (), "decisions": regions, "kept": kept}
        return shapes | {"book": (), "version": (self.num_envs,)} if self.task.code_dropout else shapes

    def requested(self, options: dict[str, Any]) -> dict[str, NDArray[np.int64]]:
        """Return the options of a reset as arrays; ``regions`` as (n, m)."""
        found = super().requested(options)
        if options.get("regions") is not None:
            found["regions"] = self._requested_regions(options["regions"])
        return found

    def reset_episode(self, rng: np.random.Generator, requested: dict[str, NDArray[np.int64]]) -> None:
        """Begin an episode in every environment: an image, and m of its regions."""
        m = self.task.regions_per_episode
        super().reset_episode(rng, requested)
        drawn = rng.random((self.num_envs, self.available)).argsort(axis=1)[:, :m]
        self.regions = requested.get("regions", drawn)
        if self.task.code_dropout:
            copies = self.task.code_copies
            self.version, self.book = rng.integers(copies, size=self.num_envs), int(rng.integers(copies))
        own = self.training_codes.images[self.version, self.rows]
        self.kept = own[:, None].repeat(1 + m, axis=1)
        self.decisions, self.offered = np.full((self.num_envs, m), -1, np.int8), 0
        self.counts = self.training_codes.own_counts(self.rows, self.version, self.book)
        self._evaluate_offer()

    def update_task(self, **arguments: Any) -> None:
        """Change arguments of the task, from the next step on."""
        super().update_task(**arguments)
        if self.started:
            self._set_price()

    def step(self, action: ArrayLike) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Keep or discard the offered region's code in every environment, offer the next; return rewards and info."""
        array = np.asarray(action)
        if array.shape != (self.num_envs,) or array.dtype.kind not in "iub" or not ((array == 0) | (array == 1)).all():
            raise ValueError(
                f"actions must be integers, 1 to keep or 0 to discard, of shape ({self.num_envs},), got {action!r:.60}"
            )
        keep = array == 1
        added = keep & self.new
        self.kept[added, self.offered + 1] = self.region_code[added]
        self.decisions[:, self.offered] = keep
        self.reward_parts = {name: np.where(keep, part, 0.0) for name, part in self.keep_parts.items()}
        self.offered += 1
        if not self.done:
            self.counts = np.where(added[:, None, None], self.counts_if_kept, self.counts)
            self._evaluate_offer()
        return np.sum(list(self.reward_parts.values()), axis=0), self.info() | {"rewards": self.rewards_info()}

    def observe(self) -> Observation:
        """Return the observations of all environments."""
        assert self.dataset.train_regions is not None
        region = self.dataset.train_regions[self.dataset.train[self.rows], self.regions[:, self.position]]
        sequential = self.task.regions_per_episode > 1
        return observation(self.image, region, self.kept, self.region_code, self.bits, sequential=sequential)

    def info(self) -> dict[str, Any]:
        """Return the info of an observation: image, region and, unless done, the effect of keeping its code."""
        info = super().info() | {"region": self.regions[:, self.position].copy()}
        if self.done:
            return info
        nearer = {"similar": self.nearer[:, 1], "dissimilar": self.nearer[:, 0]}
        return info | {"keep_reward": np.sum(list(self.keep_parts.values()), axis=0), "nearer": nearer}

    def set_state(self, state: dict[str, Any], rng: np.random.Generator) -> None:
        """Restore a state of :meth:`get_state`."""
        if max(int(state.get("book", 0)), *np.ravel(state.get("version", 0))) >= len(self.training_codes.images):
            raise ValueError("the state is of an environment with other arguments: it has more code_copies")
        super().set_state(state, rng)
        self.counts = self.training_codes.count(self.kept[:, : self.position + 1], self.rows, self.book)[..., 0]
        self._evaluate_offer()

    @property
    def done(self) -> bool:
        """Whether all regions have been offered."""
        return self.offered == self.task.regions_per_episode

    @property
    def position(self) -> int:
        """Position in ``regions`` of the offered region; at the end, of the last one."""
        return min(self.offered, self.task.regions_per_episode - 1)

    def scene(self, index: int) -> RegionScene:
        """Return the content of one environment's rendering."""
        image, region = int(self.dataset.train[self.rows[index]]), int(self.regions[index, self.position])
        image_bits, region_bits = codes.unpack(np.stack([self.kept[index, 0], self.region_code[index]]), self.bits)
        boxes = self.dataset.train_boxes
        return RegionScene(
            dataset=self.dataset,
            index=image,
            rewards={name: float(part[index]) for name, part in self.reward_parts.items()},
            region=region,
            box=None if boxes is None else boxes[image, region],
            image_bits=image_bits,
            region_bits=region_bits,
            decisions=self.decisions[index].tolist(),
            keep_reward=float(sum(part[index] for part in self.keep_parts.values())),
            similar_nearer=int(self.nearer[index, 1]),
            dissimilar_nearer=int(self.nearer[index, 0]),
        )

    def _evaluate_offer(self) -> None:
        """Set the attributes of the offered regions, ``region_code`` to ``nearer`` (eq. 5 and 6)."""
        place = self.regions[:, self.position]
        self.region_code = code = self.training_codes.regions[self.version, self.rows, place]
        kept = self.kept[:, : self.position + 1]
        self.new = (kept != code[:, None]).any(axis=2).all(axis=1)
        others, nearer = np.moveaxis(self.training_codes.count(kept, self.rows, self.book, code), -1, 0)
        self.counts_if_kept, self.nearer = others + nearer, nearer.sum(axis=-1)
        value = ((self.counts - self.counts_if_kept) * self.table).sum(axis=-1)
        if self.task.reduction == "mean":
            value /= len(self.dataset.train)
        self.keep_parts = {"similar": value[:, 1], "dissimilar": value[:, 0]}
        self._set_price()

    def _set_price(self) -> None:
        """Set the price of keeping the offered region's code."""
        self.keep_parts["price"] = np.where(self.new, 0.0 - self.task.price, 0.0)

    def _requested_regions(self, regions: ArrayLike) -> NDArray[np.int64]:
        m = self.task.regions_per_episode
        array = np.asarray(regions)
        if self.num_envs == 1 and array.ndim == 1:
            array = array[None]
        if array.shape != (self.num_envs, m) or array.dtype.kind not in "iu":
            raise ValueError(f"options['regions'] must name {m} region(s) an image by integers, got {regions!r}")
        if array.min() < 0 or array.max() >= self.available:
            raise ValueError(f"options['regions'] must be from 0 to {self.available - 1}, got {regions!r}")
        if (np.diff(np.sort(array, axis=1), axis=1) == 0).any():
            raise ValueError(f"options['regions'] must name different regions of an image, got {regions!r}")
        return array.astype(np.int64)


class RegionKeepMixin(BaseMixin):
    """Attributes of the core that both environments expose."""

    _core: RegionKeepCore

    @property
    def task(self) -> RegionKeepTask:
        """The arguments of the environment."""
        return self._core.task


class RegionKeepEnv(RegionKeepMixin, ScalarEnv):
    """Keep or discard the hash codes of regions of one image.

    ## Description
    Several codes for an image, after "Multiple Code Hashing for Efficient Image Retrieval" (MCH; Li, Jiang and Li). A
    base hasher, fitted on whole images and then frozen, gives one code to an image and one to each of its regions.
    The distance of two images is the least over their codes, so keeping a region's code brings other images nearer:
    good if they share a label, bad if they do not. An episode is one training image and m random
    regions of it, offered in turn; the paper has m = 1. The agent observes only what is available at search time.

    ## Action Space
    `Discrete(2)`: **1 keeps** the offered region's code, **0 discards** it.

    ## Observation Space
    `Dict` of
    - `image`, `region`: `Box(-inf, inf, (D,), float32)`, features of the image and of the offered region;
    - `image_code`, `region_code`: `Box(-1, 1, (bits,), float32)`, their codes as -1 and +1;
    - `kept`, only with `regions_per_episode` > 1: `Box(-1, 1, (bits,), float32)`, among the codes kept so far (the
      image's own included) the one closest to the region's, the first on ties.

    Flattened without `kept` this is the paper's state vector of 2 D + 2 q numbers. The final observation shows the
    last region again.

    ## Rewards
    0 for discarding. For keeping, the mean (`reduction="sum"`: the sum, as in eq. 6) over all training images j of
    L(d_ij, s_ij) - L(min(d_ij, d*_ij), s_ij), minus `price`. d_ij is the least distance over the codes kept so far,
    d*_ij that of the region's code, s_ij is 1 if i and j share a label, and L is the base's loss with its pair weights:
    `base.loss_table()`, or the table given as `loss`. Rewards of an episode add up to the reward of all kept codes
    together. A code equal to a kept one changes nothing: its reward is exactly 0, without the price, and it is not
    kept a second time.

    ## Info
    The info that `reset` or `step` returns with an observation holds, for the region in it,
    - `index`, `region`: the image's row in the dataset, and which of its `train_regions`;
    - `keep_reward`: the reward for keeping it. As discarding has reward 0, the exact policy gradient is
      grad p(keep) * keep_reward (eq. 7 without sampling);
    - `nearer`: `similar` and `dissimilar`, numbers of training images that keeping it brings nearer.

    The info of a step also holds `rewards`, the components `similar`, `dissimilar` and `price` of its reward, which add
    up to it. At the end no region is offered: `keep_reward` and `nearer` are absent.

    ## Codes that are too good
    A base has learnt the training images' labels, so that their codes are better than those of new images, and those of
    their regions have little left to give. With `code_dropout` the environment uses `code_copies` versions of all
    codes, each from features of which this share is left out at random. An episode's image and regions have a random
    version of their codes, and are compared with a random version of all images. Encoding uses all features.

    ## Starting State
    The images come in shuffled passes over the training set, with regions drawn without replacement.
    `reset(options={"index": i, "regions": [r, ...]})` chooses the image, the m regions, or both. A reset with a seed
    determines everything after it.

    ## Episode End
    `terminated` after m steps; never truncated.

    ## Arguments
    | argument | default | meaning |
    |---|---|---|
    | `dataset` | `"digit-scenes"` | name, cache folder, or `HashingDataset`; standardised if loaded here |
    | `base` | `"dch"` | a hasher's name, fitted here with seed 0; a fitted hasher; or the path of a saved one |
    | `bits` | `None` | length q of the codes: 32 for a base that is fitted here, else that of the base |
    | `regions_per_episode` | 1 | m |
    | `price` | 0.0 | subtracted from the reward for every kept code |
    | `reduction` | `"mean"` | `"mean"` or `"sum"` over the training images |
    | `loss` | `None` | L as a table (2, bits + 1), row 1 for similar pairs; by default that of the base |
    | `code_dropout`, `code_copies` | 0.0, 4 | share of the features left out of training codes, and their versions |
    | `render_mode` | `None` | `"rgb_array"` or `"ansi"` |
    | `flat` | `False` | `True`: observations are one float32 `Box`, the parts in the order above |
    | `info` | `"nested"` | `"flat"`: infos without nested dicts, `info["rewards/similar"]`, `info["nearer/similar"]` |
    | `autoreset_mode` | `"SameStep"` | of the vector environment: `"SameStep"`, `"NextStep"` or `"Disabled"` |

    Wrong arguments raise `ValueError`, data that cannot be used `hashgym.data.DataError` (a `ValueError`). A base
    given by name is fitted once for each dataset and length, also if several processes make environments: it is
    stored in the user's cache folder (`HASHGYM_CACHE` chooses another, empty for none). Codes are shared by all
    environments of a process that have the same dataset and base.
    A curriculum may set the price at any time: `env.unwrapped.price = 0.01` takes effect at the next step, and in
    `keep_reward` with the next info.

    ```python
    import gymnasium as gym
    import hashgym

    env = gym.make("RegionKeep-v0", regions_per_episode=4, price=0.01)
    ```

    ## Vectorized environment
    `gym.make_vec("RegionKeep-v0", num_envs=N)` is native: N images a step. `autoreset_mode` is `"SameStep"`,
    `"NextStep"` or `"Disabled"`. With N = 1 it equals this environment step for step.

    ## Version History
    * v0: initial version; `flat`, `info`, `autoreset_mode` and `code_dropout` came later and change nothing by default
    """

    def __init__(
        self,
        dataset: str | Path | HashingDataset = "digit-scenes",
        *,
        render_mode: str | None = None,
        flat: bool = False,
        info: Info = "nested",
        **task: Any,
    ) -> None:
        super().__init__(RegionKeepCore(1, dataset, RegionKeepTask(**task)), render_mode, flat, info)


class RegionKeepVectorEnv(RegionKeepMixin, LockstepVectorEnv):
    """``num_envs`` images a step; arguments as for :class:`RegionKeepEnv`.

    Episodes end together. With ``autoreset_mode="SameStep"``, the default, the returned observation and the info's
    `index`, `region`, `keep_reward` and `nearer` at the last step are those of the next images; the last ones are in
    ``info["final_obs"]`` (an object array of dicts) and ``info["final_info"]``. With "NextStep" the step after the last
    one ignores its actions, has reward 0 and returns the next images; with "Disabled" ``reset`` returns them.
    ``reset(options={"index": [...], "regions": [[...], ...]})`` chooses the images (n,) and the regions (n, m) of all.
    With "SameStep" every observation of an episode holds the same ``image`` array, which is written once and never
    modified. No batch holds an image twice unless ``num_envs`` exceeds the number of training images.
    """

    def __init__(
        self,
        num_envs: int = 1,
        dataset: str | Path | HashingDataset = "digit-scenes",
        *,
        render_mode: str | None = None,
        flat: bool = False,
        info: Info = "nested",
        autoreset_mode: str | AutoresetMode = AutoresetMode.SAME_STEP,
        **task: Any,
    ) -> None:
        super().__init__(
            RegionKeepCore(num_envs, dataset, RegionKeepTask(**task)), render_mode, flat, info, autoreset_mode
        )


def _doubled(words: Words, bits: int, *, odd: bool = False) -> Words:
    """Return packed codes (..., W) repeated twice, plus the bit ``odd``: distances double, and odd ones add 1."""
    once = codes.unpack(words, bits)
    return codes.pack(np.concatenate([once, once, np.full((*once.shape[:-1], 1), odd)], axis=-1))
