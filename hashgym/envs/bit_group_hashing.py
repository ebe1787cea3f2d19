"""BitGroupHashing-v0, scalar and native vector: an agent emits an image's binary code in groups of bits (DRLIH)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal
from weakref import WeakValueDictionary

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from numpy.typing import ArrayLike, NDArray

from hashgym import codes, rewards
from hashgym.checks import check_choice, check_integer, check_number, plain_numbers
from hashgym.data import HashingDataset
from hashgym.envs.base import (
    GRID,
    BatchedCore,
    DatasetIndex,
    EnvMixin,
    Info,
    LockstepVectorEnv,
    Observation,
    ScalarEnv,
    image_space,
    task_property,
)
from hashgym.envs.rendering import CodeScene
from hashgym.moved import keep_old_names
from hashgym.registry import named_settings_of
from hashgym.rewards import Codebook, RewardLike, RewardView, Weighted
from hashgym.rewards.view import Scope

__all__ = [
    "BitGroupHashingCore",
    "BitGroupHashingEnv",
    "BitGroupHashingMixin",
    "BitGroupHashingVectorEnv",
    "HashingTask",
    "action_bits",
    "observation",
]

BINARY = ("bits", "multidiscrete")  # actions that are bits
MAX_INDEX_BITS = 10
DEFAULT_GROUP_BITS = 12
NEAREST = 6  # neighbours shown in a rendering

keep_old_names(__name__)


@named_settings_of("BitGroupHashing-v0", "dataset", "flat", "info", "render_mode")
@dataclass(frozen=True, kw_only=True)
class HashingTask:
    """Arguments of the task, shared by both environments; see :class:`BitGroupHashingEnv`."""

    bits: int = 24
    group_bits: int = None  # type: ignore[assignment]  # set below
    partners: int = 8
    action: Literal["bits", "multidiscrete", "probability", "index"] = "bits"
    reward: RewardLike = "triplet"
    group_scope: Literal["group", "prefix"] = "group"
    group_weight: float = 1.0
    global_weight: float = 1.0
    counterfactual: bool = False
    codebook: str | None = None
    codebook_sample: int | None = None

    def __post_init__(self) -> None:
        plain_numbers(self)
        if self.group_bits is None:
            most = MAX_INDEX_BITS if self.action == "index" else DEFAULT_GROUP_BITS
            object.__setattr__(self, "group_bits", min(most, check_integer("bits", self.bits)))
        for key in ("bits", "group_bits", "partners"):
            check_integer(key, getattr(self, key))
        if self.group_bits > self.bits:
            raise ValueError(
                f"group_bits={self.group_bits} is longer than the code: choose group_bits <= bits={self.bits}"
            )
        if self.action not in (*BINARY, "probability", "index"):
            raise ValueError(f"action must be 'bits', 'multidiscrete', 'probability' or 'index', got {self.action!r}")
        if self.action == "index" and self.group_bits > MAX_INDEX_BITS:
            raise ValueError(
                f"action='index' has 2**k actions: choose group_bits <= {MAX_INDEX_BITS}, not {self.group_bits}"
            )
        if self.codebook_sample is not None:
            check_integer("codebook_sample", self.codebook_sample)
        check_choice("group_scope", self.group_scope, ("group", "prefix"))
        for key in ("group_weight", "global_weight"):
            object.__setattr__(self, key, check_number(key, getattr(self, key)))
        if not isinstance(self.counterfactual, bool):
            raise ValueError(f"counterfactual must be True or False, got {self.counterfactual!r}")
        name = self.codebook
        if name is not None and not (isinstance(name, str) and (name in ("own", "shared") or name[:7] == "shared:")):
            raise ValueError(f"codebook must be 'own', 'shared' or 'shared:NAME', got {name!r}")

    @property
    def groups(self) -> int:
        """G = ceil(q / k), the number of steps of an episode."""
        return -(-self.bits // self.group_bits)

    def span(self, group: int) -> tuple[int, int]:
        """Return the first bit and the end of a group (0-based); the last group may be shorter than ``group_bits``."""
        return group * self.group_bits, min((group + 1) * self.group_bits, self.bits)

    def scored_span(self, group: int) -> tuple[int, int]:
        """Return the first bit and the end of the bits that the reward of a group scores."""
        start, stop = self.span(group)
        return (0 if self.group_scope == "prefix" else start), stop

    def observation_space(self, image_shape: tuple[int, ...], dtype: Any = np.float32) -> spaces.Dict:
        """Return the space of one observation of images of this shape, (D,) or (C, H, W), and type."""
        return spaces.Dict(
            image=image_space(image_shape, dtype),
            code=spaces.Box(-1, 1, (self.bits,), np.float32),
            group=spaces.Discrete(self.groups),
        )

    def action_space(self) -> spaces.Space[Any]:
        """Return the space of one action: a group of bits, a group of probabilities, or the index of a group."""
        if self.action == "probability":
            return spaces.Box(0, 1, (self.group_bits,), np.float32)
        if self.action == "index":
            return spaces.Discrete(2**self.group_bits)
        if self.action == "multidiscrete":
            return spaces.MultiDiscrete([2] * self.group_bits)
        return spaces.MultiBinary(self.group_bits)

    def action_mask(self, group: int) -> NDArray[np.bool_]:
        """Return which actions of a group are valid: bool (2 k,) for bits, 0 and 1 of each bit, (2**k,) for an index.

        Surplus bits of a shorter last group may only be 0.

        Raises:
            ValueError: for ``action="probability"``, whose actions are all valid.
        """
        start, stop = self.span(group)
        if self.action == "probability":
            raise ValueError("probabilities have no action mask: make the environment with action='bits' or 'index'")
        if self.action == "index":
            return np.arange(2**self.group_bits) < 2 ** (stop - start)
        mask = np.ones((self.group_bits, 2), np.bool_)
        mask[stop - start :, 1] = False
        return mask.ravel()


def observation(image: NDArray[np.float32], bits: NDArray[np.bool_], emitted: int, group: int) -> Observation:
    """Return the observations of n images, in the environment and in encoding.

    Args:
        image: (n, D), or (n, C, H, W).
        bits: bool (n, q), of which the first ``emitted`` are read.
        emitted: number of bits emitted so far.
        group: the group to emit next.

    Returns:
        ``image`` as given, ``code`` (n, q) float32 of -1, +1 and 0 for bits not emitted, ``group`` (n,) int64.
    """
    code = np.where(bits, np.float32(1), np.float32(-1))
    code[:, emitted:] = 0
    return {"image": image, "code": code, "group": np.full(len(image), group, np.int64)}


def action_bits(action: Any, task: HashingTask, num_envs: int, xp: Any = np) -> Any:
    """Return a batch of actions as relaxed bits, float32 (num_envs, group_bits) in [0, 1].

    Args:
        action: array-like, or a tensor where ``xp`` is torch.
        task: its ``action`` and ``group_bits`` define an action.
        num_envs: number of actions.
        xp: numpy or torch, whose arrays are returned; tensors stay on the device of ``action``.

    Raises:
        ValueError: for another shape, or values outside the action space.
    """
    array = xp.asarray(action)
    wanted = (num_envs,) if task.action == "index" else (num_envs, task.group_bits)
    if array.shape != wanted:
        raise ValueError(f"actions must have shape {wanted} for action={task.action!r}, got {tuple(array.shape)}")
    if task.action == "index":
        # "int64" and "torch.int64": the two libraries have no check of integer types in common
        if "int" not in str(array.dtype) or not ((array >= 0) & (array < 2**task.group_bits)).all():
            most = 2**task.group_bits - 1
            raise ValueError(f"an index action must be an integer from 0 to {most}, got {array.tolist()!s:.60}")
        places = xp.arange(task.group_bits, device=array.device)
        return xp.asarray(xp.asarray(array[:, None], dtype=xp.int64) >> places & 1, dtype=xp.float32)
    relaxed = xp.asarray(array, dtype=xp.float32)
    if task.action in BINARY and not ((relaxed == 0) | (relaxed == 1)).all():
        raise ValueError(
            f"bit actions must be 0 or 1, got {array.tolist()!s:.60}; for probabilities make the environment with "
            "action='probability'"
        )
    if task.action == "probability" and not ((relaxed >= 0) & (relaxed <= 1)).all():
        raise ValueError(f"probability actions must be numbers from 0 to 1, got {array.tolist()!s:.60}")
    return relaxed


def summaries(dataset: HashingDataset) -> NDArray[np.float32]:
    """Return vectors of the training images for the first codes, float32 (N, D).

    They are the features; for activations and pixels :attr:`DatasetIndex.cell_means`, with D = 16 C.
    """
    if dataset.has_maps:
        return DatasetIndex.of(dataset).cell_means.reshape(len(dataset.train), -1)
    return dataset.features[dataset.train]


class CodebookWords:
    """The array behind a codebook, of one environment or of all that share it.

    Attributes:
        words: the codes, packed; unpacked on a device in the torch back end. Set after :meth:`restart`.
        task, dataset: of the environments; kept alive, because ``shared`` is keyed by their ids.
    """

    shared: ClassVar[WeakValueDictionary[tuple[Any, ...], CodebookWords]] = WeakValueDictionary()

    def __init__(self, task: HashingTask, dataset: HashingDataset) -> None:
        self.task, self.dataset = task, dataset
        self._words: Any = None
        self._book: Codebook | None = None
        self._planes: NDArray[np.float32] | None = None

    @classmethod
    def of(cls, task: HashingTask, dataset: HashingDataset, arrays: str) -> CodebookWords:
        """Return new words, or those shared by all environments with the same dataset, arguments and kind of arrays."""
        if task.codebook in (None, "own"):
            return cls(task, dataset)
        reward = task.reward if isinstance(task.reward, str) else id(task.reward)
        if isinstance(task.reward, Mapping):
            reward = repr(sorted(task.reward.items()))
        rest = (getattr(task, field.name) for field in fields(task) if field.name != "reward")
        key = (id(dataset), arrays, reward, *rest)
        if (words := cls.shared.get(key)) is None:
            words = cls.shared[key] = cls(task, dataset)
        return words

    def restart(self, planes: NDArray[np.float32]) -> None:
        """Replace all codes by the signs of projections onto ``planes``, float32 (D, q), of :func:`summaries`.

        They are computed when first read: if N environments are seeded one after another, only once, for the last seed.
        """
        self._planes = planes

    @property
    def words(self) -> Any:
        """The codes; see the class."""
        if self._planes is not None:
            features = summaries(self.dataset)
            self.words = codes.pack((features - features.mean(0)) @ self._planes > 0)
        return self._words

    @words.setter
    def words(self, words: Any) -> None:
        self._words, self._planes = words, None

    def book(self, label_words: codes.Words) -> Codebook:
        """Return the codes in the form that rewards read: one object, which notices all that is written through it."""
        if self._book is None or self._book.words is not self.words:
            self._book = Codebook(self.words, label_words, self.task.bits)
        return self._book


class BitGroupHashingCore(BatchedCore):
    """Simulator of n environments over one codebook.

    Implements step(); a subclass for other arrays than NumPy's overrides the helpers from ``host`` on.
    """

    CHANGEABLE = ("group_weight", "global_weight")
    xp: ClassVar[Any] = np  # the module of the arrays
    array_kind = "numpy"  # environments share a codebook only if its arrays are of the same kind
    code: Any  # float32 (n, q), the bits or probabilities emitted so far
    positive_rows: Any  # int64 (n, P), only if the reward reads partners
    negative_rows: Any

    def __init__(self, num_envs: int, dataset: str | Path | HashingDataset, task: HashingTask) -> None:
        super().__init__(num_envs, dataset)
        self.task = task
        self._words = CodebookWords.of(task, self.dataset, self.array_kind)
        self.label_words, self.sampler = self.dataset_index.label_words, self.dataset_index.sampler
        self.eligible = self.sampler.eligible
        reward = rewards.make(task.reward)
        self.terms = reward.terms if isinstance(reward, Weighted) else [(1.0, reward)]
        self.names = _term_names([term for _, term in self.terms])
        self.reads_partners: bool = getattr(reward, "reads_partners", True)
        self.samples = task.codebook_sample is not None and task.codebook_sample < len(self.label_words)
        if task.codebook_sample is not None and self.reads_partners:
            raise ValueError(
                "codebook_sample is for rewards that compare with the whole codebook, such as 'average_precision' and "
                "'nca': this one reads partners, which are few already, or does not say reads_partners = False"
            )

    def spaces(self) -> tuple[spaces.Dict, spaces.Space[Any]]:
        """Return the observation and action space of one environment."""
        return self.task.observation_space(
            self.dataset.image_shape, self.dataset.features.dtype
        ), self.task.action_space()

    @property
    def settings(self) -> dict[str, Any]:
        """What an episode's state depends on."""
        task = self.task
        named = {"bits": task.bits, "group_bits": task.group_bits, "group_scope": task.group_scope}
        return named | {"reward": " + ".join(self.names)}

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the state's attributes."""
        task, n = self.task, self.num_envs
        names = ("positive_rows", "negative_rows") if self.reads_partners else ()
        partners = dict.fromkeys(names, (n, task.partners))
        rest: dict[str, tuple[int, ...]] = {"code": (n, task.bits), "emitted": (), "group": ()}
        if self.samples:
            rest["sample"] = (task.codebook_sample or 0,)
        return (
            super().state_shapes | partners | rest | {"codebook": (len(self.label_words), codes.word_count(task.bits))}
        )

    @property
    def codebook(self) -> Any:
        """The codebook's array, which is part of the state."""
        return self._words.words

    @codebook.setter
    def codebook(self, words: Any) -> None:
        self._words.words = words

    @property
    def book(self) -> Codebook:
        """The codebook in the form that rewards read."""
        return self._words.book(self.label_words)

    def reset_run(self, rng: np.random.Generator) -> None:
        """Start a new codebook from signed random projections, and shuffle the images."""
        dim = self.dataset.image_shape[0] * (GRID**2 if self.dataset.has_maps else 1)
        self._words.restart(rng.standard_normal((dim, self.task.bits), np.float32))
        super().reset_run(rng)

    def reset_episode(self, rng: np.random.Generator, requested: dict[str, NDArray[np.int64]]) -> None:
        """Begin an episode in every environment: an image, and its partners."""
        super().reset_episode(rng, requested)
        if self.reads_partners:
            self.positive_rows, self.negative_rows = self.sampler.draw(self.rows, self.task.partners, rng)
        else:
            self.sampler.skip(self.num_envs, self.task.partners, rng)
        self.code = self.zeros(self.task.bits, dtype="float32")
        self.emitted = self.group = 0
        if self.samples:
            self.sample = self.dataset_index.sampler.sample(self.task.codebook_sample or 0, rng)
            self._find_sample()

    def set_state(self, state: dict[str, Any], rng: np.random.Generator) -> None:
        """Restore a state of :meth:`get_state`."""
        super().set_state(state, rng)
        if self.samples:
            self._find_sample()

    def _find_sample(self) -> None:
        """Set the rows of the codebook that rewards compare with, and the images' own places among them."""
        own = self.host(self.rows)
        rows = np.union1d(self.sample, own)  # rewards leave an image's own code out, so that it must be there
        self.sampled_rows, self.own_places = rows, self.array(np.searchsorted(rows, own))

    def step(self, action: ArrayLike) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Write the emitted groups of all environments into the codebook, then score them; return rewards and info."""
        task, (start, stop) = self.task, self.task.span(self.group)
        last = self.group == task.groups - 1
        self.code[:, start:stop] = self.read_action(action)[:, : stop - start]
        self.book.write(self.rows, self.code[:, start:stop] > 0.5, start)
        info: dict[str, Any] = self.info()
        first, _ = task.scored_span(self.group)
        self.reward_parts, credit = self._score(task.group_scope, first, stop, last)
        if task.counterfactual:
            info["bit_credit"] = self.zeros(task.group_bits)
            info["bit_credit"][:, : stop - start] = credit[:, start - first :]
            if task.group_scope == "prefix":
                info["prefix_credit"] = self.zeros(task.bits)
                info["prefix_credit"][:, :stop] = credit
        if last:
            parts, credit = self._score("global", 0, task.bits, last)
            self.reward_parts |= parts
            if task.counterfactual:
                info["code_credit"] = credit
        info["rewards"] = self.rewards_info()
        self.emitted, self.group = stop, min(self.group + 1, task.groups - 1)
        return sum(self.reward_parts.values(), self.zeros()), info

    def observe(self) -> Observation:
        """Return the observations of all environments."""
        return observation(self.image, self.code > 0.5, self.emitted, self.group)

    @property
    def done(self) -> bool:
        """Whether all bits are emitted."""
        return self.emitted == self.task.bits

    def scene(self, index: int) -> CodeScene:
        """Return the content of one environment's rendering."""
        nearest, distance, row = np.array([], int), np.array([], int), int(self.rows[index])
        if self.emitted:
            emitted = self.host(self.book.read(np.arange(len(self.book))))[:, : self.emitted]
            distances = (emitted != emitted[row]).sum(1)
            distances[row] = self.emitted + 1  # an image is not its own neighbour
            nearest = np.argsort(distances, kind="stable")[:NEAREST]
            distance = distances[nearest]
        image, others = self.dataset.train[row], self.dataset.train[nearest]
        return CodeScene(
            dataset=self.dataset,
            index=int(image),
            bits=self.host(self.code[index, : self.emitted] > 0.5),
            task_bits=self.task.bits,
            group_bits=self.task.group_bits,
            rewards={name: float(part[index]) for name, part in self.reward_parts.items()},
            nearest=[
                (int(i), int(d), bool(s))
                for i, d, s in zip(others, distance, self.dataset.similar(others, image), strict=True)
            ],
        )

    @staticmethod
    def host(array: Any) -> NDArray[Any]:
        """Return an array as a NumPy array."""
        return array

    def array(self, array: NDArray[Any]) -> Any:
        """Return a NumPy array as one of the core's kind."""
        return array

    def compared(self) -> tuple[Any, Any]:
        """Return the codebook that rewards compare with, and the images' own rows in it, (n,)."""
        return (self.book.take(self.sampled_rows), self.own_places) if self.samples else (self.book, self.rows)

    def zeros(self, *shape: int, dtype: str = "float64") -> Any:
        """Return zeros (n, *shape)."""
        return np.zeros((self.num_envs, *shape), dtype)

    def read_action(self, action: Any) -> Any:
        """Return the actions as relaxed bits, float32 (n, group_bits)."""
        return action_bits(action, self.task, self.num_envs, self.xp)

    def partner_rows(self) -> tuple[Any, Any]:
        """Return the rows of positive and negative partners, (n, P) each; (n, 0) if the reward reads none."""
        if self.reads_partners:
            return self.positive_rows, self.negative_rows
        return self.zeros(0, dtype="int64"), self.zeros(0, dtype="int64")

    def view(self, start: int, stop: int, scope: Scope, last: bool) -> Any:
        """Return the view of a span of bits, the argument of rewards."""
        positive_rows, negative_rows = self.partner_rows()
        book, rows = self.compared()
        return RewardView(
            code=self.code[:, start:stop],
            codebook=book.span(start, stop),
            rows=rows,
            positive_rows=positive_rows,
            negative_rows=negative_rows,
            labels=self.dataset.labels[self.dataset.train[self.rows]],
            start=start,
            scope=scope,
            last=last,
        )

    def _score(
        self, scope: Scope, start: int, stop: int, last: bool
    ) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.float64]]:
        """Return the weighted rewards of a span by component, and the credit of its bits (0 without counterfactual)."""
        scope_weight = self.task.global_weight if scope == "global" else self.task.group_weight
        parts, total_credit = {}, self.zeros(stop - start)
        view = self.view(start, stop, scope, last)
        for name, (term_weight, reward) in zip(self.names, self.terms, strict=True):
            weight = scope_weight * term_weight
            if weight == 0:  # not computed
                parts[f"{scope}/{name}"] = self.zeros()
            elif self.task.counterfactual:
                value, credit = rewards.value_and_credit(reward, view)
                parts[f"{scope}/{name}"] = weight * value
                total_credit += weight * credit
            else:
                parts[f"{scope}/{name}"] = weight * rewards.value(reward, view)
        return parts, total_credit


class BitGroupHashingMixin(EnvMixin):
    """Attributes of the core that both environments expose."""

    _core: BitGroupHashingCore
    group_weight = task_property("group_weight", "Weight of the groups' rewards")
    global_weight = task_property("global_weight", "Weight of the whole code's reward")

    @property
    def task(self) -> HashingTask:
        """The arguments of the environment."""
        return self._core.task

    @property
    def codebook(self) -> Codebook:
        """The latest code of every training image, in the order of ``dataset.train``; set after a reset."""
        self._require_reset()
        return self._core.book

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which actions are valid now, bool (num_envs, m), in the form MaskablePPO of sb3-contrib expects.

        m is 2 k for ``action="bits"`` and "multidiscrete", 0 and 1 of each bit, and 2**k for ``action="index"``.

        Raises:
            ValueError: for ``action="probability"``.
        """
        mask = self.task.action_mask(self._core.group if self._core.started else 0)
        return np.tile(mask, (self._core.num_envs, 1))


class BitGroupHashingEnv(BitGroupHashingMixin, ScalarEnv):
    """Emit the binary code of one image, a group of bits at a time.

    ## Description
    Learning to hash as a Markov decision process, after "Deep Reinforcement Learning for Image Hashing" (DRLIH; Peng,
    Zhang and Ye, 2018). An episode is one training image, given by its features; it lasts G = ceil(bits / group_bits)
    steps, and step g emits the next group of its code. The code is good when images that share a label lie near in
    Hamming distance and others far. An observation holds one image and the code so far, nothing of any other image,
    of labels or of roles in the reward: the agent observes only what is available at search time.

    ## Action Space
    | `action` | space | meaning |
    |---|---|---|
    | `"bits"` | `MultiBinary(group_bits)` | the group's bits |
    | `"multidiscrete"` | `MultiDiscrete([2] * group_bits)` | the same, for libraries without `MultiBinary` |
    | `"probability"` | `Box(0, 1, (group_bits,), float32)` | a relaxed code; a bit is 1 where p > 0.5 |
    | `"index"` | `Discrete(2**group_bits)`, `group_bits` <= 10 | bit j of the group is bit j of the number |

    If `group_bits` does not divide `bits`, the last group is shorter and the surplus action bits are ignored;
    `action_masks()` returns which actions are valid, in the form that MaskablePPO expects.

    ## Observation Space
    `Dict` of
    - `image`: `Box(-inf, inf, (D,), float32)`, the image's features. On a dataset of activations it is
      `Box(-inf, inf, (C, H, W), float32)`, one of the image's augmented views if the dataset has views, drawn at reset;
      on a dataset of pixels `Box(0, 255, (3, H, W), uint8)`, which libraries take for a picture;
    - `code`: `Box(-1, 1, (bits,), float32)`, -1 or +1 for bits emitted, 0 for the rest;
    - `group`: `Discrete(G)`, the group to emit next (in the final observation: the last one).

    With `flat=True` one `Box` (D + bits + G,) of float32: image, code, and the group one-hot, in this order, so that
    `observation[..., :D]` is the image (D = C x H x W for activations and pixels), `observation[..., D:D + bits]` the
    code and the rest the group; `env.unwrapped.slices` holds the three slices by name.

    ## Rewards
    `group_weight * R(group)` at every step, plus `global_weight * R(whole code)` at the last. R is `reward`: a name in
    `hashgym.rewards.available()`, a mapping `{"name": ..., option: ...}`, or any callable on a
    `hashgym.rewards.RewardView`. The default `"triplet"` is minus the mean over pairs of a similar and a dissimilar
    partner of max(0, margin + d(x, x+) - d(x, x-)), d the Hamming distance (with `action="probability"` the squared
    distance of the relaxed group to the partners' bits). `info["rewards"]` holds the weighted components
    (`"group/triplet"`, `"global/triplet"`), which add up to the reward.

    With `group_scope="prefix"` R of a step is that of all bits emitted so far, compared with as many bits of the other
    codes, and the component is named `"prefix/triplet"`. Every prefix of the code that ends at a group is then a good
    code itself: a code of 48 bits is cut to 24 or 12 by leaving out the rest. The last prefix is the whole code, so
    that with `global_weight=0` all prefixes have equal weight.

    Partners are `partners` similar and as many dissimilar training images, drawn at reset and never observed. Their
    codes come from the codebook, the latest code of every training image, which every emitted group updates.

    `info="flat"` gives infos without nested dicts: `info["rewards/group/triplet"]`.

    With `counterfactual=True` the info also holds the credit of each bit, R(bit = 1) - R(bit = 0) with all other bits
    as emitted, in units of the reward: `info["bit_credit"]` (group_bits,) for the group's reward (0 for surplus
    bits), and at the last step `info["code_credit"]` (bits,) for the global one. With `group_scope="prefix"` a step's
    reward depends on the bits of earlier groups too: `info["prefix_credit"]` (bits,) is the credit of all bits so far,
    0 beyond, and `info["bit_credit"]` its part for this group.

    ## Codebook
    By default every environment has a codebook of its own, so that a seed determines all its results. **Several scalar
    environments in one process, as `make_vec_env`, `SyncVectorEnv`, `DummyVecEnv` and the runners of TorchRL and RLlib
    make them, should share one with `codebook="shared"`**: each of N codebooks gets one in N of the updates, so that
    partners' codes are out of date. PPO on 64 of them reached mAP .57 on digits, sharing a codebook .82, and the native
    vector environment, which always has one codebook for all of its images, .85
    (`python -m benchmarks.codebook`, 100,000 steps, mean of three seeds). A warning is given once if
    environments step in turn without sharing.

    `"shared"` joins all environments of the process with the same dataset (one name, or one `HashingDataset` object)
    and the same arguments, `"shared:NAME"` those of this name, for several training runs in one process. The first
    reset of each of them, and each reset with a seed, restarts the codebook for all; so give an environment that only
    evaluates `codebook="own"`. A pickled or copied environment has a copy of the codebook; environments copied
    together share it. It is freed with the last environment. Processes do not share: with `AsyncVectorEnv` or
    `SubprocVecEnv` each worker has a codebook of its own.

    ## Starting State
    No bit emitted; the images come in shuffled passes over the training set (those without a similar or a dissimilar
    image are left out). `reset(options={"index": i})` encodes image i of the dataset, a training image. A reset with
    a seed also restarts the codebook from signed random projections, so that a seed determines everything after it; of
    activations and pixels the means over a grid of 4 x 4 cells are projected.

    ## Episode End
    `terminated` after G steps; never truncated.

    ## Arguments
    | argument | default | meaning |
    |---|---|---|
    | `dataset` | `"digits"` | name, cache folder, or `HashingDataset`; standardised if loaded here |
    | `bits` | 24 | length q of the code |
    | `group_bits` | `None` | length k of an action group; by default min(12, `bits`), for an index min(10, `bits`) |
    | `partners` | 8 | number of positives, and of negatives, per episode |
    | `action` | `"bits"` | `"bits"`, `"multidiscrete"`, `"probability"` or `"index"` |
    | `reward` | `"triplet"` | R |
    | `group_scope` | `"group"` | bits that a step's reward scores: `"group"`, or all so far, `"prefix"` |
    | `group_weight`, `global_weight` | 1.0 | weights of the group's and the whole code's reward |
    | `counterfactual` | `False` | whether the info holds per-bit credit |
    | `codebook` | `None` | `"own"`, `"shared"` or `"shared:NAME"`; `None` is `"own"` with the warning above |
    | `codebook_sample` | `None` | number of training images that rewards compare with, drawn for each episode |
    | `render_mode` | `None` | `"rgb_array"` or `"ansi"` |
    | `flat` | `False` | `True`: observations are one float32 `Box` |
    | `info` | `"nested"` | `"flat"`: infos without nested dicts |
    | `autoreset_mode` | `"SameStep"` | of the vector environment: `"SameStep"`, `"NextStep"` or `"Disabled"` |

    With `codebook_sample` each label pattern has its share of the images that are drawn, and the batch's own images
    are added. It is for rewards that compare with all training images, whose cost grows with their number.

    Wrong arguments raise `ValueError`, data that cannot be used `hashgym.data.DataError` (a `ValueError`).
    A curriculum may set the two weights at any time: `env.unwrapped.group_weight = 0.5` takes effect at the next step.

    ```python
    import gymnasium as gym
    import hashgym

    env = gym.make("BitGroupHashing-v0", bits=32, reward={"name": "triplet", "margin": 4})
    ```

    ## Vectorized environment
    `gym.make_vec("BitGroupHashing-v0", num_envs=N)` is native: N images over one codebook, which a step updates for
    all of them before it scores any. `autoreset_mode` is `"SameStep"`, `"NextStep"` (RLlib, and
    observation wrappers of Gymnasium) or `"Disabled"`. With N = 1 it equals this environment step for step.

    With `backend="torch"` (and `device`, `"auto"`, `"cpu"` or `"cuda"`) a step reads and returns only tensors on that
    device; see `hashgym.envs.torch_backend`.

    ## Version History
    * v0: initial version; `codebook`, `flat`, `info`, `autoreset_mode`, `group_scope`, `codebook_sample` and
      `action="multidiscrete"` came later and change nothing by default, `group_bits` may be left out for codes shorter
      than 12 bits, and datasets may be of activations and pixels
    """

    def __init__(
        self,
        dataset: str | Path | HashingDataset = "digits",
        *,
        render_mode: str | None = None,
        flat: bool = False,
        info: Info = "nested",
        **task: Any,
    ) -> None:
        super().__init__(BitGroupHashingCore(1, dataset, HashingTask(**task)), render_mode, flat, info)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Run one step; warns once if environments step in turn without sharing a codebook."""
        _InterleavedSteps.check(self._core)
        return super().step(action)

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which actions are valid now, bool (m,); see the vector environment."""
        return super().action_masks()[0]


class BitGroupHashingVectorEnv(BitGroupHashingMixin, LockstepVectorEnv):
    """``num_envs`` images over one codebook; arguments as for :class:`BitGroupHashingEnv`.

    A step writes the emitted groups of all images into the codebook before it scores any, so that partners in the same
    batch are always current. Episodes end together. With ``autoreset_mode="SameStep"``, the default, the returned
    observation and ``info["index"]`` at the last step are those of the next images; the last ones are in
    ``info["final_obs"]`` (an object array of dicts) and ``info["final_info"]``. With "NextStep" the step after the last
    one ignores its actions, has reward 0 and returns the next images; with "Disabled" ``reset`` returns them.
    ``reset(options={"index": [...]})`` chooses the images. With "SameStep" every observation of an episode holds the
    same ``image`` array, which is written once and never modified. With more environments than training images
    some images repeat; the codebook keeps the code of the last one.
    """

    def __init__(
        self,
        num_envs: int = 1,
        dataset: str | Path | HashingDataset = "digits",
        *,
        render_mode: str | None = None,
        flat: bool = False,
        info: Info = "nested",
        autoreset_mode: str | AutoresetMode = AutoresetMode.SAME_STEP,
        **task: Any,
    ) -> None:
        super().__init__(
            BitGroupHashingCore(num_envs, dataset, HashingTask(**task)), render_mode, flat, info, autoreset_mode
        )


class _InterleavedSteps:
    """Detection of scalar environments of one training run that step in turn, each with a codebook of its own."""

    ENOUGH = 3  # A, B, A, B: an environment for evaluation steps several times in a row
    words: ClassVar[int] = 0  # id of the codebook that the last step wrote
    kind: ClassVar[tuple[Any, ...]] = ()  # properties that environments of one training run have in common
    switches: ClassVar[int] = 0
    warned: ClassVar[bool] = False

    @classmethod
    def check(cls, core: BitGroupHashingCore) -> None:
        """Warn, once a process, if environments step in turn and each writes a codebook that no other reads."""
        task, dataset, words = core.task, core.dataset, id(core._words)
        if cls.warned or task.codebook == "own":
            return
        kind = (dataset.name, len(dataset), task.bits, task.group_bits, task.codebook)
        cls.switches = cls.switches + 1 if kind == cls.kind and words != cls.words else 0
        cls.words, cls.kind = words, kind
        if cls.switches < cls.ENOUGH:
            return
        cls.warned = True
        fix = (
            "make them with codebook='shared', or all at once with gym.make_vec('BitGroupHashing-v0', num_envs=...)"
            if task.codebook is None
            else "give all of them one HashingDataset object, the same arguments and one reward object"
        )
        warnings.warn(
            "environments of BitGroupHashing-v0 step in turn in this process and each writes a codebook of its own, so "
            f"that each codebook gets only a part of the updates and training learns much less: {fix}; "
            "codebook='own' declares separate codebooks intended and silences this warning",
            stacklevel=4,
        )


def _term_names(terms: list[Any]) -> list[str]:
    """Return a name for each reward; equal names are numbered."""
    names: list[str] = []
    for term in terms:
        name = getattr(term, "name", None) or getattr(term, "__name__", None) or type(term).__name__
        same = sum(other.split("#")[0] == name for other in names)
        names.append(f"{name}#{same + 1}" if same else name)
    return names
