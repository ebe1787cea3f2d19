"""MultiCodeHashing-v0, scalar and native vector: an agent gives an image further codes, each worth what it adds."""

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
from hashgym.data.similarity import shared_labels
from hashgym.envs.base import (
    BatchedCore,
    Info,
    LockstepVectorEnv,
    Observation,
    ScalarEnv,
    image_space,
)
from hashgym.envs.bases import BaseMixin, BaseTask, SharedCodes, encode_versions, fitted_base, loss_table
from hashgym.envs.bit_group_hashing import MAX_INDEX_BITS, HashingTask, action_bits
from hashgym.envs.rendering import CodesScene
from hashgym.hashers import Hasher
from hashgym.registry import named_settings_of
from hashgym.storage.errors import DataError

__all__ = ["MultiCodeHashingEnv", "MultiCodeHashingVectorEnv", "MultiCodeTask", "check_images", "observation"]


@named_settings_of("MultiCodeHashing-v0", "dataset", "flat", "info", "render_mode")
@dataclass(frozen=True, kw_only=True)
class MultiCodeTask(BaseTask):
    """Arguments of the task, shared by both environments; see :class:`MultiCodeHashingEnv`."""

    codes: int = 1
    group_bits: int | None = None
    keep: bool = True
    action: Literal["bits", "multidiscrete", "probability", "index"] = "bits"
    counterfactual: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("codes", self.codes)
        for key in ("keep", "counterfactual"):
            if not isinstance(getattr(self, key), bool):
                raise ValueError(f"{key} must be True or False, got {getattr(self, key)!r}")

    def check_bits(self, bits: int) -> None:
        """Raise ValueError for groups that are longer than the code, or for actions that groups cannot have."""
        self.acting(bits)

    def group_length(self, bits: int) -> int:
        """Return k, the number of bits in a group of a code of ``bits`` bits; all of them by default.

        Raises:
            ValueError: if it is longer than the code.
        """
        k = bits if self.group_bits is None else check_integer("group_bits", self.group_bits)
        if k > bits:
            raise ValueError(f"group_bits={k} is longer than the code: choose group_bits <= bits={bits}")
        return k

    def acting(self, bits: int) -> HashingTask:
        """Return a :class:`HashingTask` whose one group has the bits of an action: k, and with ``keep`` one more.

        Raises:
            ValueError: for groups that are longer than the code, or that have too many indices.
        """
        width = self.group_length(bits) + self.keep
        if self.action == "index" and width > MAX_INDEX_BITS:
            raise ValueError(
                f"action='index' has 2**{width} actions: choose group_bits <= {MAX_INDEX_BITS - self.keep}"
                + (", as one more bit keeps the code" if self.keep else "")
            )
        return HashingTask(bits=width, group_bits=width, action=self.action)

    def action_mask(self, bits: int, start: int) -> NDArray[np.bool_]:
        """Return which actions are valid for the group of a code of ``bits`` bits that begins at bit ``start``.

        As of :meth:`HashingTask.action_mask`; bits that are not read may only be 0.

        Raises:
            ValueError: for ``action="probability"``, whose actions are all valid.
        """
        acting, length = self.acting(bits), min(self.group_length(bits), bits - start)
        read = np.zeros(acting.bits, np.bool_)
        read[:length] = True
        if self.keep:
            read[-1] = start + length == bits
        if self.action == "index":
            numbers = np.arange(2**acting.bits)
            return (numbers & ~int((read << np.arange(len(read))).sum())) == 0
        mask = acting.action_mask(0).reshape(-1, 2)  # raises ValueError for probabilities
        mask[:, 1] = read
        return mask.ravel()

    def observation_space(self, dim: int, bits: int) -> spaces.Dict:
        """Return the space of one observation of images with ``dim`` features and codes of ``bits`` bits."""
        return spaces.Dict(
            image=image_space((dim,), np.float32),
            code=spaces.Box(-1, 1, (bits,), np.float32),
            codes=spaces.Box(-1, 1, (1 + self.codes, bits), np.float32),
            group=spaces.Discrete(self.codes * -(-bits // self.group_length(bits))),
        )


def check_images(dataset: HashingDataset) -> None:
    """Raise DataError for a dataset whose images are pixels or activations."""
    if dataset.has_maps:
        raise DataError(
            f"the images of {dataset.name!r} are pixels or activations for a network that is trained, but "
            "MultiCodeHashing-v0 has a fitted base: extract feature vectors, without --cut"
        )


def observation(
    image: NDArray[np.float32], code: NDArray[np.bool_], emitted: int, words: Words, kept: NDArray[np.bool_], group: int
) -> Observation:
    """Return the observations of n images, in the environment and in encoding.

    Args:
        image: float32 (n, D).
        code: bool (n, q), the code that is being emitted, of which the first ``emitted`` bits are read.
        emitted: number of its bits emitted so far.
        words: uint64 (n, 1 + m, W), packed codes of the image, its own first.
        kept: bool (n, 1 + m), which of them it has.
        group: the group to emit next, counted over all codes.

    Returns:
        ``image`` as given; ``code`` (n, q) and ``codes`` (n, 1 + m, q) float32 of -1, +1, and 0 where there is none;
        ``group`` (n,) int64.
    """
    bits = code.shape[1]
    emitting = np.where(code, np.float32(1), np.float32(-1))
    emitting[:, emitted:] = 0
    signs = codes.unpack(words, bits) * np.float32(2) - np.float32(1)
    return {
        "image": image,
        "code": emitting,
        "codes": np.where(kept[..., None], signs, np.float32(0)),
        "group": np.full(len(image), group, np.int64),
    }


class _BaseCodes(SharedCodes):
    """Codes of the training images by a base hasher.

    Attributes:
        words: uint64 (C, N, W), C versions of them: one, or with ``code_dropout`` as many as there are copies.
        signs: float32 (C, N, q), the same as -1 and +1.
    """

    def __init__(self, dataset: HashingDataset, base: Hasher, task: BaseTask) -> None:
        super().__init__(dataset, base, task)
        self.words = encode_versions(base, dataset.features[dataset.train], task, np.random.default_rng(0))
        self.signs = codes.unpack(self.words, base.bits) * np.float32(2) - np.float32(1)


class MultiCodeHashingCore(BatchedCore):
    """Simulator of n environments, each on one image that gets further codes.

    Attributes:
        book: the version of the training images' codes that the reward compares with.
        words: uint64 (n, 1 + m, W), the image's codes, its own first; only those that are ``kept`` count.
        kept: bool (n, 1 + m).
        code: bool (n, q), the code that is being emitted.
        number, emitted: how many codes and how many bits of the next one have been emitted.
        similar: bool (n, N), the training images that share a label with each image.
        nearest: int16 (n, N), their distances from the kept codes.
        before: float64 (n, N), their losses at that distance.
    """

    CHANGEABLE = ("price",)
    ENCODER = "hashgym.encode_codes"

    def __init__(self, num_envs: int, dataset: str | Path | HashingDataset, task: MultiCodeTask) -> None:
        super().__init__(num_envs, dataset)
        check_images(self.dataset)
        _ = self.dataset_index.sampler  # raises DataError if no image has both a similar and a dissimilar one
        self.task = task
        self.base = fitted_base(self.dataset_index, task)
        self.bits = self.base.bits
        self.table = loss_table(self.base, task)
        # Entry 2 (d + 1) + similar is L(d), extended to d = -1 and q + 1: _credit reads these, but they cancel there.
        self._losses = np.pad(self.table, ((0, 0), (1, 1)), mode="edge").T.ravel()
        self._short_losses = self._losses.astype(np.float32)  # for credit, at half the memory traffic
        self.acting, self.group_bits = task.acting(self.bits), task.group_length(self.bits)
        self.base_codes = _BaseCodes.of(self.dataset, self.base, task)
        self.eligible = np.arange(len(self.dataset.train))

    def spaces(self) -> tuple[spaces.Dict, spaces.Space[Any]]:
        """Return the observation and action space of one environment."""
        return self.task.observation_space(self.dataset.dim, self.bits), self.acting.action_space()

    @property
    def settings(self) -> dict[str, Any]:
        """What an episode's state depends on."""
        named = {"base": type(self.base).__name__, "bits": self.bits, "codes": self.task.codes}
        return named | {"group_bits": self.group_bits, "keep": self.task.keep}

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the state's attributes."""
        n, count = self.num_envs, 1 + self.task.codes
        shapes = {"words": (n, count, codes.word_count(self.bits)), "kept": (n, count), "code": (n, self.bits)}
        return super().state_shapes | shapes | {"book": (), "number": (), "emitted": ()}

    def reset_episode(self, rng: np.random.Generator, requested: dict[str, NDArray[np.int64]]) -> None:
        """Begin an episode in every environment: an image, with its code by the base."""
        super().reset_episode(rng, requested)
        versions, own = self.base_codes.words, np.zeros(self.num_envs, np.int64)
        self.book = 0
        if len(versions) > 1:
            own, self.book = rng.integers(len(versions), size=self.num_envs), int(rng.integers(len(versions)))
        shapes = self.state_shapes
        self.words, self.kept = np.zeros(shapes["words"], np.uint64), np.zeros(shapes["kept"], np.bool_)
        self.words[:, 0], self.kept[:, 0] = versions[own, self.rows], True
        self.code = np.zeros(shapes["code"], np.bool_)
        self.number = self.emitted = 0
        self._measure()

    def step(self, action: ArrayLike) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Emit a group of every environment's code; score the code if it is complete. Return rewards and info."""
        relaxed = action_bits(action, self.acting, self.num_envs) > 0.5
        start, stop = self.emitted, min(self.emitted + self.group_bits, self.bits)
        self.code[:, start:stop] = relaxed[:, : stop - start]
        self.emitted = stop
        info = self.info()
        self.reward_parts = {name: np.zeros(self.num_envs) for name in ("similar", "dissimilar", "price")}
        if stop == self.bits:
            info |= self._finish_code(relaxed[:, self.group_bits] if self.task.keep else np.ones(self.num_envs, bool))
        return np.sum(list(self.reward_parts.values()), axis=0), info | {"rewards": self.rewards_info()}

    def observe(self) -> Observation:
        """Return the observations of all environments."""
        group = min(self.number * self._groups + self.emitted // self.group_bits, self.task.codes * self._groups - 1)
        return observation(self.image, self.code, self.emitted, self.words, self.kept, group)

    def set_state(self, state: dict[str, Any], rng: np.random.Generator) -> None:
        """Restore a state of :meth:`get_state`."""
        if int(state.get("book", 0)) >= len(self.base_codes.words):
            raise ValueError("the state is of an environment with other arguments: it has more code_copies")
        super().set_state(state, rng)
        self._measure()

    @property
    def done(self) -> bool:
        """Whether all codes are emitted."""
        return self.number == self.task.codes

    @property
    def _groups(self) -> int:
        """G = ceil(q / k), the number of groups of a code."""
        return -(-self.bits // self.group_bits)

    def action_mask(self) -> NDArray[np.bool_]:
        """Return which actions are valid now, see :meth:`MultiCodeTask.action_mask`."""
        return self.task.action_mask(self.bits, 0 if self.done else self.emitted)

    def scene(self, index: int) -> CodesScene:
        """Return the content of one environment's rendering."""
        return CodesScene(
            dataset=self.dataset,
            index=int(self.dataset.train[self.rows[index]]),
            rewards={name: float(part[index]) for name, part in self.reward_parts.items()},
            codes=codes.unpack(self.words[index], self.bits),
            kept=[
                None if place > self.number else bool(self.kept[index, place]) for place in range(1 + self.task.codes)
            ],
            bits=self.code[index, : self.emitted].copy(),
        )

    def _measure(self) -> None:
        """Set what follows from the images and their kept codes: ``similar``, ``nearest`` and ``before``."""
        label_words = self.dataset_index.label_words
        self.similar = shared_labels(label_words[self.rows], label_words)
        self._first_entry = self.similar + np.int16(2)  # of each pair in the losses, at distance 0
        self.nearest = np.full(self.similar.shape, self.bits, np.int16)
        for place in range(1 + self.number):
            own = self._distances(codes.unpack(self.words[:, place], self.bits))
            self.nearest = np.where(self.kept[:, place, None], np.minimum(self.nearest, own), self.nearest)
        self.before = self._loss(self.nearest)

    def _distances(self, bits: NDArray[np.bool_]) -> NDArray[np.int16]:
        """Return Hamming distances (n, N) of codes (n, q) from those of all training images."""
        signs = self.base_codes.signs[self.book]
        half_inner = (bits - np.float32(0.5)) @ signs.T  # q / 2 - distance
        return (self.bits / 2 - half_inner).astype(np.int16)

    def _loss(self, distances: NDArray[np.int16], losses: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return the loss of each pair at these distances, (n, N), from float64 or other entries; 0 with itself."""
        found = (self._losses if losses is None else losses).take(2 * distances + self._first_entry, mode="clip")
        found[np.arange(len(found)), self.rows] = 0
        return found

    def _finish_code(self, keep: NDArray[np.bool_]) -> dict[str, Any]:
        """Score the code that is complete, keep it where ``keep`` is set, and begin the next; return its info."""
        words, distances = codes.pack(self.code), self._distances(self.code)
        apart = codes.hamming(self.words, words[:, None])
        is_new = ~(self.kept & (apart == 0)).any(axis=1)
        with_code = self._loss(np.minimum(self.nearest, distances))
        gains = self.before - with_code
        count = len(self.base_codes.words[self.book])
        similar = np.einsum("ij,ij->i", gains, self.similar)
        parts = {
            "similar": similar / count,
            "dissimilar": (gains.sum(axis=1) - similar) / count,
            "price": np.where(is_new, 0.0 - self.task.price, 0.0),
        }
        info: dict[str, Any] = {"keep_reward": np.sum(list(parts.values()), axis=0)}
        if self.task.counterfactual:
            info["code_credit"] = self._credit(with_code, distances, apart, is_new)
        self.reward_parts = {name: np.where(keep, part, 0.0) for name, part in parts.items()}
        added = keep & is_new
        self.number, self.emitted = self.number + 1, 0
        self.words[:, self.number], self.kept[:, self.number] = words, added
        if not self.done:
            self.nearest[added] = np.minimum(self.nearest[added], distances[added])
            self.before[added] = with_code[added]
        return info

    def _credit(
        self,
        with_code: NDArray[np.float64],
        distances: NDArray[np.int16],
        apart: NDArray[np.int64],
        is_new: NDArray[np.bool_],
    ) -> NDArray[np.float64]:
        """Return R(bit = 1) - R(bit = 0) of every bit of the complete code, (n, q), R the reward for keeping it.

        Flipping a bit takes a training image one bit further away where the bits agree, and brings it one nearer where
        they differ. With x and y the signs of the two bits and l the losses with the code at distances d - 1, d and
        d + 1 the loss grows by x y (l(d + 1) - l(d - 1)) / 2 + (l(d + 1) + l(d - 1)) / 2 - l(d), the first part a
        product of matrices.
        """
        nearer, further = (
            self._loss(np.minimum(self.nearest, distances + np.int16(step)), self._short_losses) for step in (-1, 1)
        )
        own, count = np.where(self.code, 1.0, -1.0), with_code.shape[1]
        slope = (further - nearer) @ self.base_codes.signs[self.book] / (2 * count)
        both = nearer.sum(axis=1, dtype=np.float64) + further.sum(axis=1, dtype=np.float64)
        curve = (both / 2 - with_code.sum(axis=1)) / count
        # Codes one bit away from a kept one equal it if that bit is flipped, and are then free.
        differing = codes.unpack(self.words ^ codes.pack(self.code)[:, None], self.bits)
        free = (differing & (self.kept & (apart == 1))[..., None]).any(axis=1)
        price = self.task.price * (is_new[:, None].astype(np.float64) - ~free)
        return slope + own * (curve[:, None] - price)


class MultiCodeHashingMixin(BaseMixin):
    """Attributes of the core that both environments expose."""

    _core: MultiCodeHashingCore

    @property
    def task(self) -> MultiCodeTask:
        """The arguments of the environment."""
        return self._core.task

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which actions are valid now, bool (num_envs, m), in the form MaskablePPO of sb3-contrib expects.

        Raises:
            ValueError: for ``action="probability"``.
        """
        self._require_reset()
        return np.tile(self._core.action_mask(), (self._core.num_envs, 1))


class MultiCodeHashingEnv(MultiCodeHashingMixin, ScalarEnv):
    """Give one image further codes, each worth what it adds to those before.

    ## Description
    Several codes for an image from one look at it. A base hasher, fitted and then frozen, gives every image its first
    code. The distance of two images is the least over their codes, so another code brings images nearer: good if they
    share a label, bad if they do not. "Multiple Code Hashing" (MCH; Li, Jiang and Li; `RegionKeep-v0`) takes further
    codes from regions of the image, which costs a look at each. Here the agent writes them itself, bit by bit. A code
    is worth only what those before it do not give already, so decisions depend on each other: sequence counts.

    An episode is one training image. Its steps emit `codes` further codes, in groups of `group_bits` bits. The agent
    observes only what is available at search time.

    ## Action Space
    `MultiBinary(group_bits + 1)`: the group's bits, and whether the code is kept, **1 keeps, 0 discards**. The last bit
    is read at a code's last group alone; surplus bits of a shorter last group are ignored; `action_masks()` returns
    which are valid. `action="multidiscrete"`, `"probability"` (a bit is 1 where p > 0.5) and `"index"` are other forms
    of the same, as in `BitGroupHashing-v0`. With `keep=False` all codes are kept, and actions have no such bit.

    ## Observation Space
    `Dict` of
    - `image`: `Box(-inf, inf, (D,), float32)`, the image's features;
    - `code`: `Box(-1, 1, (bits,), float32)`, the code that is being emitted: -1 or +1, 0 for bits not emitted;
    - `codes`: `Box(-1, 1, (1 + codes, bits), float32)`, the image's code by the base and those kept so far; 0 for a
      code that was discarded or not emitted yet;
    - `group`: `Discrete`, the group to emit next, counted over all codes (in the final observation: the last one).

    `flat=True` gives one `Box`, see `BitGroupHashing-v0`.

    ## Rewards
    0, except at a code's last group if it is kept: the mean over all training images j of L(d_ij, s_ij) -
    L(min(d_ij, d*_ij), s_ij), minus `price`. d_ij is the least distance of j's code over the codes kept so far, d*_ij
    that of the new code, s_ij is 1 if i and j share a label, and L is the base's loss with its pair weights:
    `base.loss_table()`, or the table given as `loss`. An image's own code is left out. Rewards of an episode add up to
    that of all kept codes together. A code equal to a kept one changes nothing: its reward is exactly 0, without the
    price, and it is not kept a second time. `info["rewards"]` holds the parts `similar`, `dissimilar` and `price`.

    ## Info
    `index`, the image's row in the dataset. At a code's last group also
    - `keep_reward`: the reward for keeping the code, whether it was kept or not;
    - with `counterfactual=True` `code_credit` (bits,): of every bit of the code, R(bit = 1) - R(bit = 0), all other
      bits as emitted and the code kept.

    `info="flat"` gives infos without nested dicts.

    ## Codes that are too good
    A base has learnt the training images' labels, so that their codes are better than those of new images, and further
    codes have nothing left to give. With `code_dropout` the environment uses `code_copies` versions of the training
    codes, each from features of which this share is left out at random. An episode's image has a random version of its
    own, and is compared with a random version of all. Encoding uses all features.

    ## Starting State
    The images come in shuffled passes over the training set. `reset(options={"index": i})` chooses image i of the
    dataset, a training image.

    ## Episode End
    `terminated` after `codes` codes; never truncated. A code that is discarded does not end the episode, so that the
    episodes of a vector environment end together.

    ## Arguments
    | argument | default | meaning |
    |---|---|---|
    | `dataset` | `"digit-scenes"` | name, cache folder, or `HashingDataset`; standardised if loaded here |
    | `base` | `"dch"` | name of a hasher with a pairwise loss, a fitted hasher, or the file of a saved one |
    | `bits` | `None` | length q of the codes; 32 for a base given by name, else the base's |
    | `codes` | 1 | number m of further codes |
    | `group_bits` | `None` | length k of an action group; by default all bits at once |
    | `keep` | `True` | whether an action decides if the code is kept |
    | `action` | `"bits"` | `"bits"`, `"multidiscrete"`, `"probability"` or `"index"` |
    | `price` | 0.0 | subtracted for every kept code |
    | `loss` | `None` | table (2, bits + 1) of L, row 1 for similar pairs; by default that of the base |
    | `counterfactual` | `False` | whether the info holds per-bit credit |
    | `code_dropout`, `code_copies` | 0.0, 4 | share of the features left out of training codes, and their versions |
    | `render_mode` | `None` | `"rgb_array"` or `"ansi"` |
    | `flat` | `False` | `True`: observations are one float32 `Box` |
    | `info` | `"nested"` | `"flat"`: infos without nested dicts |
    | `autoreset_mode` | `"SameStep"` | of the vector environment: `"SameStep"`, `"NextStep"` or `"Disabled"` |

    Wrong arguments raise `ValueError`, data that cannot be used `hashgym.data.DataError` (a `ValueError`). A base given
    by name is fitted once for each dataset and length, as in `RegionKeep-v0`. The price may be set at any time:
    `env.unwrapped.price = 0.01` takes effect at the next step.

    ```python
    import gymnasium as gym
    import hashgym

    env = gym.make("MultiCodeHashing-v0", codes=2, counterfactual=True)
    ```

    ## Vectorized environment
    `gym.make_vec("MultiCodeHashing-v0", num_envs=N)` is native: N images a step. With N = 1 it equals this environment
    step for step.

    ## Version History
    * v0: initial version
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
        super().__init__(MultiCodeHashingCore(1, dataset, MultiCodeTask(**task)), render_mode, flat, info)

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which actions are valid now, bool (m,); see the vector environment."""
        return super().action_masks()[0]


class MultiCodeHashingVectorEnv(MultiCodeHashingMixin, LockstepVectorEnv):
    """``num_envs`` images a step; arguments as for :class:`MultiCodeHashingEnv`.

    Episodes end together. With ``autoreset_mode="SameStep"``, the default, the returned observation and ``index`` at
    the last step are those of the next images; the last ones are in ``info["final_obs"]`` (an object array of dicts)
    and ``info["final_info"]``. With "NextStep" the step after the last one ignores its actions, has reward 0 and
    returns the next images; with "Disabled" ``reset`` returns them. ``reset(options={"index": [...]})`` chooses the
    images. No batch holds an image twice unless ``num_envs`` exceeds the number of training images.
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
        core = MultiCodeHashingCore(num_envs, dataset, MultiCodeTask(**task))
        super().__init__(core, render_mode, flat, info, autoreset_mode)
