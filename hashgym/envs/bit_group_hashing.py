"""BitGroupHashing-v0: an agent emits an image's binary code in groups of bits (DRLIH). Scalar and native vector."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike, NDArray

from hashgym import codes, data, rewards
from hashgym.data import HashingDataset
from hashgym.envs.partners import PartnerSampler
from hashgym.envs.rendering import Scene, draw, write
from hashgym.rewards import Codebook, RewardLike, RewardView, Weighted

__all__ = ["BitGroupHashingEnv", "BitGroupHashingVectorEnv", "HashingTask", "action_bits", "observation"]

Observation: TypeAlias = dict[str, Any]
MAX_INDEX_BITS = 10
NEAREST = 6  # neighbours shown in a rendering
_STATE = ("order", "cursor", "rows", "positive_rows", "negative_rows", "code", "emitted", "group")


@dataclass(frozen=True, kw_only=True)
class HashingTask:
    """What is to be emitted and what it is worth: the arguments both environments share (see their docstring)."""

    bits: int = 24
    group_bits: int = 12
    partners: int = 8
    action: Literal["bits", "probability", "index"] = "bits"
    reward: RewardLike = "triplet"
    group_weight: float = 1.0
    global_weight: float = 1.0
    counterfactual: bool = False

    def __post_init__(self) -> None:
        for key in ("bits", "group_bits", "partners"):
            number = getattr(self, key)
            if not isinstance(number, int | np.integer) or number < 1:
                raise ValueError(f"{key} must be an integer of at least 1, got {number!r}")
        if self.group_bits > self.bits:
            raise ValueError(
                f"group_bits={self.group_bits} is longer than the code: choose group_bits <= bits={self.bits}"
            )
        if self.action not in ("bits", "probability", "index"):
            raise ValueError(f"action must be 'bits', 'probability' or 'index', got {self.action!r}")
        if self.action == "index" and self.group_bits > MAX_INDEX_BITS:
            raise ValueError(
                f"action='index' has 2**k actions: choose group_bits <= {MAX_INDEX_BITS}, not {self.group_bits}"
            )
        for key in ("group_weight", "global_weight"):
            if not np.isfinite(getattr(self, key)):
                raise ValueError(f"{key} must be finite, got {getattr(self, key)}")

    @property
    def groups(self) -> int:
        """G = ceil(q / k), the number of steps of an episode."""
        return -(-self.bits // self.group_bits)

    def span(self, group: int) -> tuple[int, int]:
        """First bit and end of a group (0-based); the last group may be shorter than ``group_bits``."""
        return group * self.group_bits, min((group + 1) * self.group_bits, self.bits)

    def observation_space(self, dim: int) -> spaces.Dict:
        """Space of one observation of images with ``dim`` features."""
        return spaces.Dict(
            image=spaces.Box(-np.inf, np.inf, (dim,), np.float32),
            code=spaces.Box(-1, 1, (self.bits,), np.float32),
            group=spaces.Discrete(self.groups),
        )

    def action_space(self) -> spaces.Space[Any]:
        """Space of one action: a group of bits, of probabilities, or its index."""
        if self.action == "probability":
            return spaces.Box(0, 1, (self.group_bits,), np.float32)
        if self.action == "index":
            return spaces.Discrete(2**self.group_bits)
        return spaces.MultiBinary(self.group_bits)


def observation(image: NDArray[np.float32], bits: NDArray[np.bool_], emitted: int, group: int) -> Observation:
    """The observation of n lanes: what the environment shows, and what an encoder shows at search time.

    Args:
        image: float32 (n, D).
        bits: bool (n, q); the first ``emitted`` of them count.
        emitted: number of bits emitted so far.
        group: the group to emit next.

    Returns:
        ``image`` (n, D) float32, ``code`` (n, q) float32 of -1, +1 and 0 for bits not emitted, ``group`` (n,) int64.
    """
    code = np.where(bits, np.float32(1), np.float32(-1))
    code[:, emitted:] = 0
    return {"image": image, "code": code, "group": np.full(len(image), group, np.int64)}


def action_bits(action: ArrayLike, task: HashingTask, lanes: int) -> NDArray[np.float32]:
    """Read a batch of actions as relaxed bits, float32 (lanes, group_bits) in [0, 1].

    Raises:
        ValueError: for another shape, or values outside the action space.
    """
    array = np.asarray(action)
    wanted = (lanes,) if task.action == "index" else (lanes, task.group_bits)
    if array.shape != wanted:
        raise ValueError(f"actions must have shape {wanted} for action={task.action!r}, got {array.shape}")
    if task.action == "index":
        if array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= 2**task.group_bits:
            raise ValueError(f"an index action must be an integer from 0 to {2**task.group_bits - 1}")
        return (array[:, None] >> np.arange(task.group_bits) & 1).astype(np.float32)
    relaxed = array.astype(np.float32)
    if task.action == "bits" and not ((relaxed == 0) | (relaxed == 1)).all():
        raise ValueError("bit actions must be 0 or 1; for probabilities make the environment with action='probability'")
    if not ((relaxed >= 0) & (relaxed <= 1)).all():
        raise ValueError("probability actions must be numbers from 0 to 1")
    return relaxed


class _Lanes:
    """The game itself: n images emitted in lockstep over one codebook. Both environments are a skin over it."""

    def __init__(self, lanes: int, dataset: str | Path | HashingDataset, task: HashingTask) -> None:
        self.task, self.lanes = task, lanes
        self.dataset = dataset if isinstance(dataset, HashingDataset) else _standardized(str(dataset))
        train = self.dataset.train
        self.label_words = codes.pack(self.dataset.labels[train])
        self.sampler = PartnerSampler(self.label_words)
        reward = rewards.make(task.reward)
        self.terms = reward.terms if isinstance(reward, Weighted) else [(1.0, reward)]
        self.names = _term_names([term for _, term in self.terms])
        self.row_of = np.full(len(self.dataset), -1)  # row of the codebook by image, -1 where it is no training image
        self.row_of[train] = np.arange(len(train))
        self.codebook: Codebook | None = None

    def start(self, rng: np.random.Generator) -> None:
        """Begin anew: a codebook of signed random projections, and a new order of the images."""
        features = self.dataset.features[self.dataset.train]
        planes = rng.standard_normal((self.dataset.dim, self.task.bits), np.float32)
        bits = (features - features.mean(0)) @ planes > 0
        self.codebook = Codebook(codes.pack(bits), self.label_words, self.task.bits)
        self.order = rng.permutation(self.sampler.eligible)
        self.cursor = 0

    def begin(self, rng: np.random.Generator, index: ArrayLike | None = None) -> None:
        """Begin an episode in every lane, of the given images or the next of a shuffled pass over all."""
        self.rows = self._next(rng) if index is None else self._rows(index)
        self.positive_rows, self.negative_rows = self.sampler.draw(self.rows, self.task.partners, rng)
        self.image = self.dataset.features[self.dataset.train[self.rows]]
        self.code = np.zeros((self.lanes, self.task.bits), np.float32)
        self.emitted = self.group = 0
        self.reward_parts: dict[str, NDArray[np.float64]] = {}

    def emit(self, action: ArrayLike) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Emit a group in every lane: write all of them into the codebook, then score them. Returns reward, info."""
        assert self.codebook is not None
        task, (start, stop) = self.task, self.task.span(self.group)
        last = self.group == task.groups - 1
        self.code[:, start:stop] = action_bits(action, task, self.lanes)[:, : stop - start]
        self.codebook.write(self.rows, self.code[:, start:stop] > 0.5, start)
        info: dict[str, Any] = self.info()
        self.reward_parts, credit = self._score("group", start, stop, last)
        if task.counterfactual:
            info["bit_credit"] = np.zeros((self.lanes, task.group_bits))
            info["bit_credit"][:, : stop - start] = credit
        if last:
            parts, credit = self._score("global", 0, task.bits, last)
            self.reward_parts |= parts
            if task.counterfactual:
                info["code_credit"] = credit
        info["rewards"] = self.reward_parts
        self.emitted, self.group = stop, min(self.group + 1, task.groups - 1)
        return np.sum(list(self.reward_parts.values()), axis=0), info

    def observe(self) -> Observation:
        """Observations of all lanes."""
        return observation(self.image, self.code > 0.5, self.emitted, self.group)

    def info(self) -> dict[str, Any]:
        """Which image each lane encodes: its row in the dataset."""
        return {"index": self.dataset.train[self.rows]}

    def get_state(self, rng: np.random.Generator) -> dict[str, Any]:
        """Everything that decides what comes next: copies of arrays, numbers, and the generator's state as JSON."""
        state = {key: getattr(self, key) for key in _STATE}
        state |= {f"reward/{name}": part for name, part in self.reward_parts.items()}
        state = {key: part.copy() if isinstance(part, np.ndarray) else part for key, part in state.items()}
        assert self.codebook is not None
        return state | {"codebook": self.codebook.words.copy(), "generator": json.dumps(rng.bit_generator.state)}

    def set_state(self, state: dict[str, Any], rng: np.random.Generator) -> None:
        """Take up where :meth:`get_state` was called."""
        wanted = {**dict.fromkeys(_STATE), "codebook": None, "generator": None}
        if missing := wanted.keys() - state.keys():
            raise ValueError(f"this is no state of this environment: {', '.join(sorted(missing))} missing")
        shapes = [np.shape(state[key]) for key in ("codebook", "rows", "positive_rows", "code")]
        words = codes.word_count(self.task.bits)
        lanes = [(len(self.label_words), words), (self.lanes,), (self.lanes, self.task.partners)]
        if shapes != [*lanes, (self.lanes, self.task.bits)]:
            raise ValueError("the state is of an environment with other arguments, another dataset or other lanes")
        for key in _STATE:
            part = state[key]
            setattr(self, key, part.copy() if isinstance(part, np.ndarray) else part)
        self.codebook = Codebook(state["codebook"].copy(), self.label_words, self.task.bits)
        self.reward_parts = {k.removeprefix("reward/"): v.copy() for k, v in state.items() if k.startswith("reward/")}
        self.image = self.dataset.features[self.dataset.train[self.rows]]
        rng.bit_generator.state = json.loads(state["generator"])

    @property
    def done(self) -> bool:
        """Whether all bits are emitted."""
        return self.emitted == self.task.bits

    def scene(self, lane: int) -> Scene:
        """What a rendering shows of one lane."""
        assert self.codebook is not None
        nearest, distance = np.array([], int), np.array([], int)
        if self.emitted:
            words = self.codebook.span(0, self.emitted).words
            distances = codes.hamming(words, words[self.rows[lane]])
            distances[self.rows[lane]] = self.emitted + 1  # not its own neighbour
            nearest = np.argsort(distances, kind="stable")[:NEAREST]
            distance = distances[nearest]
        image, others = self.dataset.train[self.rows[lane]], self.dataset.train[nearest]
        return Scene(
            dataset=self.dataset,
            index=int(image),
            bits=self.code[lane, : self.emitted] > 0.5,
            task_bits=self.task.bits,
            group_bits=self.task.group_bits,
            rewards={name: float(part[lane]) for name, part in self.reward_parts.items()},
            nearest=[
                (int(i), int(d), bool(s))
                for i, d, s in zip(others, distance, self.dataset.similar(others, image), strict=True)
            ],
        )

    def _score(
        self, scope: Literal["group", "global"], start: int, stop: int, last: bool
    ) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.float64]]:
        """Weighted rewards of a span by component, and the credit of its bits (0 where nobody asks for it)."""
        assert self.codebook is not None
        scope_weight = self.task.group_weight if scope == "group" else self.task.global_weight
        parts, total_credit = {}, np.zeros((self.lanes, stop - start))
        view = RewardView(
            code=self.code[:, start:stop],
            codebook=self.codebook.span(start, stop),
            rows=self.rows,
            positive_rows=self.positive_rows,
            negative_rows=self.negative_rows,
            labels=self.dataset.labels[self.dataset.train[self.rows]],
            start=start,
            scope=scope,
            last=last,
        )
        for name, (term_weight, reward) in zip(self.names, self.terms, strict=True):
            weight = scope_weight * term_weight
            if weight == 0:  # asked for nothing: not even computed
                parts[f"{scope}/{name}"] = np.zeros(self.lanes)
            elif self.task.counterfactual:
                value, credit = rewards.value_and_credit(reward, view)
                parts[f"{scope}/{name}"] = weight * value
                total_credit += weight * credit
            else:
                parts[f"{scope}/{name}"] = weight * rewards.value(reward, view)
        return parts, total_credit

    def _next(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """The next images of the shuffled pass, shuffled anew each time all have had their turn."""
        taken = np.empty(0, np.int64)
        while len(taken) < self.lanes:
            if self.cursor == len(self.order):
                order = rng.permutation(self.sampler.eligible)
                again = np.isin(order, taken)  # images of this very batch go last: no batch holds an image twice
                self.order, self.cursor = np.concatenate([order[~again], order[again]]), 0
            stop = self.cursor + self.lanes - len(taken)
            taken = np.concatenate([taken, self.order[self.cursor : stop]])
            self.cursor = min(stop, len(self.order))
        return taken

    def _rows(self, index: ArrayLike) -> NDArray[np.int64]:
        images = np.atleast_1d(np.asarray(index))
        if images.shape != (self.lanes,) or images.dtype.kind not in "iu":
            raise ValueError(f"options['index'] must name {self.lanes} image(s) by integers, got {index!r}")
        if images.min() < 0 or images.max() >= len(self.dataset):
            raise ValueError(f"options['index'] must be from 0 to {len(self.dataset) - 1}, got {index!r}")
        rows: NDArray[np.int64] = self.row_of[images]
        if not np.isin(rows, self.sampler.eligible).all():
            raise ValueError(
                "options['index'] must name training images (dataset.train) that have a similar and a dissimilar one; "
                f"got {index!r}. To encode other images use hashgym.encode"
            )
        return rows


class _OverLanes:
    """What both environments show of their game."""

    _lanes: _Lanes

    @property
    def task(self) -> HashingTask:
        """The arguments of the environment."""
        return self._lanes.task

    @property
    def dataset(self) -> HashingDataset:
        """The dataset, with features as they are observed."""
        return self._lanes.dataset

    @property
    def codebook(self) -> Codebook:
        """The freshest code of every training image, in the order of ``dataset.train``; there after a reset."""
        return _started(self._lanes)


class BitGroupHashingEnv(_OverLanes, gym.Env[Observation, Any]):
    """Emit the binary code of one image, a group of bits at a time.

    ## Description
    Learning to hash as a Markov decision process, after "Deep Reinforcement Learning for Image Hashing" (DRLIH; Peng,
    Zhang and Ye, 2018). An episode is one training image, given by its features; it lasts G = ceil(bits / group_bits)
    steps, and step g emits the next group of its code. The code is good when images that share a label lie near in
    Hamming distance and others far. An observation holds one image and the code so far, nothing of any other image,
    of labels or of roles in the reward: what an agent sees is what it will have at search time.

    ## Action Space
    | `action` | space | meaning |
    |---|---|---|
    | `"bits"` | `MultiBinary(group_bits)` | the group's bits |
    | `"probability"` | `Box(0, 1, (group_bits,), float32)` | a relaxed code; a bit is 1 where p > 0.5 |
    | `"index"` | `Discrete(2**group_bits)`, `group_bits` <= 10 | bit j of the group is bit j of the number |

    Where `group_bits` does not divide `bits` the last group is shorter and the surplus action bits are ignored.

    ## Observation Space
    `Dict` of
    - `image`: `Box(-inf, inf, (D,), float32)`, the image's features;
    - `code`: `Box(-1, 1, (bits,), float32)`, -1 or +1 for bits emitted, 0 for the rest;
    - `group`: `Discrete(G)`, the group to emit next (in the final observation: the last one).

    ## Rewards
    `group_weight * R(group)` at every step, plus `global_weight * R(whole code)` at the last. R is `reward`: a name of
    `hashgym.rewards.available()`, a mapping `{"name": ..., option: ...}`, or any callable on a
    `hashgym.rewards.RewardView`. The default `"triplet"` is minus the mean over pairs of a similar and a dissimilar
    partner of max(0, margin + d(x, x+) - d(x, x-)), d the Hamming distance (with `action="probability"` the squared
    distance of the relaxed group to the partners' bits). `info["rewards"]` holds the weighted components
    (`"group/triplet"`, `"global/triplet"`), which add up to the reward.

    Partners are `partners` similar and as many dissimilar training images, drawn at reset and never shown. Their codes
    come from the codebook, the freshest code of every training image, which every emitted group updates.

    With `counterfactual=True` the info also says what each bit was worth, R(bit = 1) - R(bit = 0) with all other bits
    as emitted, in units of the reward: `info["bit_credit"]` (group_bits,) for the group's reward (0 for surplus
    bits), and at the last step `info["code_credit"]` (bits,) for the global one.

    ## Starting State
    No bit emitted; the images come in shuffled passes over the training set (those without a similar or a dissimilar
    image are left out). `reset(options={"index": i})` encodes image i of the dataset, a training image. A reset with
    a seed also starts the codebook anew, from signed random projections, so that a seed determines everything after.

    ## Episode End
    `terminated` after G steps; never truncated.

    ## Arguments
    | argument | default | meaning |
    |---|---|---|
    | `dataset` | `"digits"` | name, cache folder, or `HashingDataset`; one loaded here is standardised |
    | `bits` | 24 | length q of the code |
    | `group_bits` | 12 | length k of an action group |
    | `partners` | 8 | positives, and as many negatives, per episode |
    | `action` | `"bits"` | `"bits"`, `"probability"` or `"index"` |
    | `reward` | `"triplet"` | R |
    | `group_weight`, `global_weight` | 1.0 | weights of the group's and the whole code's reward |
    | `counterfactual` | `False` | whether the info holds per-bit credit |
    | `render_mode` | `None` | `"rgb_array"` or `"ansi"` |

    Wrong arguments raise `ValueError`, data that cannot be used `hashgym.data.DataError` (a `ValueError`).

    ```python
    import gymnasium as gym
    import hashgym

    env = gym.make("BitGroupHashing-v0", bits=32, reward={"name": "triplet", "margin": 4})
    ```

    ## Vectorized environment
    `gym.make_vec("BitGroupHashing-v0", num_envs=N)` is native: N images in lockstep over one codebook, which a step
    writes for all lanes before it scores any. Autoreset is SAME_STEP. One lane equals this environment step for step.

    ## Version History
    * v0: initial version
    """

    metadata = {"render_modes": ["rgb_array", "ansi"], "render_fps": 2}  # noqa: RUF012  # Gymnasium's own form

    def __init__(
        self, dataset: str | Path | HashingDataset = "digits", *, render_mode: str | None = None, **task: Any
    ) -> None:
        self._lanes = _Lanes(1, dataset, HashingTask(**task))
        self.render_mode = _render_mode(render_mode, self.metadata)
        self.observation_space = self.task.observation_space(self.dataset.dim)
        self.action_space = self.task.action_space()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode; ``options={"index": i}`` chooses the image. See the class for what a seed does."""
        super().reset(seed=seed)
        _reset(self._lanes, self.np_random, seed, options)
        return _first(self._lanes.observe()), _first(self._lanes.info())

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Emit the next group of bits.

        Raises:
            ValueError: for an action outside the action space.
            gymnasium.error.ResetNeeded: before the first reset and after the end of an episode.
        """
        _need_episode(self._lanes)
        reward, info = self._lanes.emit(np.asarray(action)[None])
        return _first(self._lanes.observe()), float(reward[0]), self._lanes.done, False, _first(info)

    def get_state(self) -> dict[str, Any]:
        """The episode, the codebook and the generator: arrays, numbers and text, for :meth:`set_state`."""
        _started(self._lanes)
        return self._lanes.get_state(self.np_random)

    def set_state(self, state: dict[str, Any]) -> tuple[Observation, dict[str, Any]]:
        """Restore what :meth:`get_state` returned, also in another process; returns what a reset there would.

        Raises:
            ValueError: for a state of an environment with other arguments.
        """
        self._lanes.set_state(state, self.np_random)
        return _first(self._lanes.observe()), _first(self._lanes.info())

    def render(self) -> Any:
        """The image, its code so far by groups, the rewards, and the nearest codes."""
        _started(self._lanes)
        if self.render_mode is None:
            gym.logger.warn("render() shows nothing: make the environment with render_mode='rgb_array' or 'ansi'")
            return None
        return (write if self.render_mode == "ansi" else draw)(self._lanes.scene(0))


class BitGroupHashingVectorEnv(_OverLanes, VectorEnv[Observation, Any, NDArray[Any]]):
    """``num_envs`` images in lockstep over one codebook; arguments as for :class:`BitGroupHashingEnv`.

    A step writes the emitted groups of all lanes into the codebook before it scores any, so that partners in the same
    batch are always current. Episodes end together; autoreset is SAME_STEP: at the last step the returned observation
    and ``info["index"]`` are those of the next images, the last ones are in ``info["final_obs"]`` (an object array of
    dicts) and ``info["final_info"]``. ``reset(options={"index": [...]})`` chooses the images of all lanes. Within an
    episode every observation holds the same ``image`` array, which is written once and never changed after. More
    lanes than training images repeat images; the last lane of an image is the one the codebook keeps.
    """

    metadata = {  # noqa: RUF012  # Gymnasium's own form
        "render_modes": ["rgb_array", "ansi"],
        "render_fps": 2,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        dataset: str | Path | HashingDataset = "digits",
        *,
        render_mode: str | None = None,
        **task: Any,
    ) -> None:
        if not isinstance(num_envs, int | np.integer) or num_envs < 1:
            raise ValueError(f"num_envs must be an integer of at least 1, got {num_envs!r}")
        self.num_envs = int(num_envs)
        self._lanes = _Lanes(self.num_envs, dataset, HashingTask(**task))
        self.render_mode = _render_mode(render_mode, self.metadata)
        self.single_observation_space = self.task.observation_space(self.dataset.dim)
        self.single_action_space = self.task.action_space()
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._all = np.ones(self.num_envs, np.bool_)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode in every lane; ``options={"index": [...]}`` chooses the images."""
        super().reset(seed=seed)
        options = dict(options or {})
        if not np.all(options.pop("reset_mask", True)):
            raise ValueError("lanes run in lockstep and are reset together: leave options['reset_mask'] out")
        _reset(self._lanes, self.np_random, seed, options)
        return self._lanes.observe(), self._masked(self._lanes.info())

    def step(self, actions: Any) -> tuple[Observation, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Emit the next group of bits in every lane. Raises as the scalar environment's ``step``."""
        _need_episode(self._lanes)
        reward, info = self._lanes.emit(actions)
        if done := self._lanes.done:
            final_obs = np.empty(self.num_envs, object)  # Gymnasium wants one dict for each finished lane
            image, code, group = self._lanes.observe().values()
            final_obs[:] = [{"image": i, "code": c, "group": g} for i, c, g in zip(image, code, group, strict=True)]
            self._lanes.begin(self.np_random)
            info = {"final_obs": final_obs, "final_info": info} | self._lanes.info()
        ended = np.full(self.num_envs, done)
        return self._lanes.observe(), reward, ended, np.zeros(self.num_envs, np.bool_), self._masked(info)

    def get_state(self) -> dict[str, Any]:
        """The episode, the codebook and the generator: arrays, numbers and text, for :meth:`set_state`."""
        _started(self._lanes)
        return self._lanes.get_state(self.np_random)

    def set_state(self, state: dict[str, Any]) -> tuple[Observation, dict[str, Any]]:
        """Restore what :meth:`get_state` returned, also in another process; returns what a reset there would.

        Raises:
            ValueError: for a state of an environment with other arguments.
        """
        self._lanes.set_state(state, self.np_random)
        return self._lanes.observe(), self._masked(self._lanes.info())

    def render(self) -> tuple[Any, ...] | None:
        """One rendering for each lane, as the scalar environment's ``render``."""
        _started(self._lanes)
        if self.render_mode is None:
            return None
        show = write if self.render_mode == "ansi" else draw
        return tuple(show(self._lanes.scene(lane)) for lane in range(self.num_envs))

    def _masked(self, info: dict[str, Any]) -> dict[str, Any]:
        """Gymnasium's vector form of an info: beside every key a mask of the lanes that have it (here all)."""
        masked: dict[str, Any] = {}
        for key, part in info.items():
            masked[key] = self._masked(part) if isinstance(part, dict) else part
            masked[f"_{key}"] = self._all.copy()
        return masked


@lru_cache(maxsize=2)
def _standardized(source: str) -> HashingDataset:
    """Datasets are immutable, so that all environments of a process share one."""
    return data.load(source).standardized()


def _term_names(terms: list[Any]) -> list[str]:
    """A name for each reward; equal ones are numbered."""
    names: list[str] = []
    for term in terms:
        name = getattr(term, "name", None) or getattr(term, "__name__", None) or type(term).__name__
        same = sum(other.split("#")[0] == name for other in names)
        names.append(f"{name}#{same + 1}" if same else name)
    return names


def _render_mode(mode: str | None, metadata: dict[str, Any]) -> str | None:
    if mode is not None and mode not in metadata["render_modes"]:
        raise ValueError(f"render_mode must be one of {metadata['render_modes']} or None, got {mode!r}")
    return mode


def _reset(lanes: _Lanes, rng: np.random.Generator, seed: int | None, options: dict[str, Any] | None) -> None:
    options = options or {}
    if unknown := set(options) - {"index"}:
        raise ValueError(f"unknown reset options {sorted(unknown)}; there is 'index'")
    if seed is not None or lanes.codebook is None:
        lanes.start(rng)
    lanes.begin(rng, options.get("index"))


def _started(lanes: _Lanes) -> Codebook:
    if lanes.codebook is None:
        raise gym.error.ResetNeeded("call reset() first")
    return lanes.codebook


def _need_episode(lanes: _Lanes) -> None:
    _started(lanes)
    if lanes.done:
        raise gym.error.ResetNeeded("the episode has ended: call reset()")


def _first(batch: dict[str, Any]) -> dict[str, Any]:
    """The only lane's part of a batch, in arrays of its own."""
    return {key: _first(part) if isinstance(part, dict) else part[0].copy() for key, part in batch.items()}
