"""What every environment here is: a game of n lanes in lockstep, and two skins over it, scalar and native vector."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias
from weakref import WeakValueDictionary

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike, NDArray

from hashgym import codes, data
from hashgym.checks import check_integer
from hashgym.codes import Words
from hashgym.data import HashingDataset
from hashgym.envs.partners import PartnerSampler
from hashgym.envs.rendering import Scene
from hashgym.hashers import Hasher

__all__ = [
    "Lanes",
    "LockstepVectorEnv",
    "Observation",
    "ScalarEnv",
    "Skin",
    "Tables",
    "flatten",
    "setting",
    "standardized",
]

Observation: TypeAlias = dict[str, Any]
Info: TypeAlias = Literal["nested", "flat"]


class Tables:
    """What a dataset alone decides: environments of one dataset share it, so that thousands of scalar ones are cheap.

    Attributes:
        dataset: the dataset.
        row_of: int64 (n,), the row of ``dataset.train`` by image, -1 where it is no training image.
        bases: hashers fitted to the training images, by name and number of bits.
    """

    shared: ClassVar[WeakValueDictionary[int, Tables]] = WeakValueDictionary()

    def __init__(self, dataset: HashingDataset) -> None:
        self.dataset = dataset  # held, so that no other object takes its id while this is shared
        self.row_of = np.full(len(dataset), -1)
        self.row_of[dataset.train] = np.arange(len(dataset.train))
        self.bases: dict[tuple[str, int], Hasher] = {}

    @classmethod
    def of(cls, dataset: HashingDataset) -> Tables:
        """The tables, from another environment where one has them."""
        if (tables := cls.shared.get(id(dataset))) is None:
            tables = cls.shared[id(dataset)] = cls(dataset)
        return tables

    @cached_property
    def label_words(self) -> Words:
        """Packed labels of the training images, uint64 (N, ceil(L / 64))."""
        return codes.pack(self.dataset.labels[self.dataset.train])

    @cached_property
    def sampler(self) -> PartnerSampler:
        """Draws partners of training images; raises DataError where none has both a similar and a dissimilar one."""
        return PartnerSampler(self.label_words)


class Lanes(ABC):
    """A game on n training images at once, whose episodes begin and end together.

    A subclass sets ``eligible``, the rows of ``dataset.train`` that have episodes, ``task`` and ``shapes``; it extends
    :meth:`start`, :meth:`begin` and :meth:`info`, and brings the rest. Arrays are batches with a row for each lane.

    Attributes:
        lanes: n.
        task: the arguments of the environment, a frozen dataclass that checks them.
        dataset: the dataset, with features as they are observed.
        tables: what follows from it alone.
        started: whether there was a reset.
        order, cursor: the shuffled pass over the images, and the place in it.
        rows: int64 (n,), the lanes' rows of ``dataset.train``.
        image: float32 (n, D), their features; written once an episode and never changed after.
        reward_parts: the weighted components of the last step's reward, float64 (n,) each.
        shapes: the attributes that decide what comes next, and the shape of each.
    """

    OPTIONS: ClassVar[tuple[str, ...]] = ("index",)
    ENCODER: ClassVar[str] = "hashgym.encode"  # what runs a policy over images that have no episode
    eligible: NDArray[np.int64]
    task: Any
    started = False

    def __init__(self, lanes: int, dataset: str | Path | HashingDataset) -> None:
        self.lanes = check_integer("num_envs", lanes)
        self.dataset = _checked(dataset)
        self.tables = Tables.of(self.dataset)

    @abstractmethod
    def spaces(self) -> tuple[spaces.Dict, spaces.Space[Any]]:
        """Observation and action space of one lane."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See the class."""
        return {"order": (len(self.eligible),), "cursor": (), "rows": (self.lanes,)}

    def start(self, rng: np.random.Generator) -> None:
        """Begin anew, at the first reset and at each with a seed: a new order of the images."""
        self.order, self.cursor, self.started = rng.permutation(self.eligible), 0, True

    def begin(self, rng: np.random.Generator, options: dict[str, Any]) -> None:
        """Begin an episode in every lane, of the images of ``options`` or the next of a shuffled pass over all."""
        index = options.get("index")
        self.show(self._next(rng) if index is None else self._rows(index))
        self.reward_parts: dict[str, NDArray[np.float64]] = {}

    def show(self, rows: NDArray[np.int64]) -> None:
        """Give the lanes these images."""
        self.rows: Any = rows
        self.image: Any = self.dataset.features[self.dataset.train[rows]]

    def change(self, **arguments: Any) -> None:
        """Go on with other arguments of the task, from the next step; refuses what its construction refuses."""
        self.task = replace(self.task, **arguments)

    @abstractmethod
    def act(self, action: ArrayLike) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Act in every lane: reward, info. Refuses wrong actions before it changes anything."""

    @abstractmethod
    def observe(self) -> Observation:
        """Observations of all lanes, never written again."""

    def flatten(self, observation: Observation) -> Any:
        """Observations in one array, as :func:`flatten`."""
        return flatten(observation, self.spaces()[0])

    def info(self) -> dict[str, Any]:
        """What goes with an observation: which image it is of, a row of the dataset."""
        return {"index": self.dataset.train[self.rows]}

    @property
    @abstractmethod
    def done(self) -> bool:
        """Whether the episodes have ended."""

    @abstractmethod
    def scene(self, lane: int) -> Scene:
        """What a rendering shows of one lane."""

    def get_state(self, rng: np.random.Generator) -> dict[str, Any]:
        """Everything that decides what comes next: copies of arrays, numbers, and the generator's state as JSON."""
        state = {key: getattr(self, key) for key in self.shapes}
        state |= {f"reward/{name}": part for name, part in self.reward_parts.items()}
        return {key: _copy(part) for key, part in state.items()} | {"generator": json.dumps(rng.bit_generator.state)}

    def set_state(self, state: dict[str, Any], rng: np.random.Generator) -> None:
        """Take up where :meth:`get_state` was called; numbers and text may come as arrays, as ``np.load`` has them."""
        if missing := {*self.shapes, "generator"} - state.keys():
            raise ValueError(f"this is no state of this environment: {', '.join(sorted(missing))} missing")
        if any(np.shape(state[key]) != shape for key, shape in self.shapes.items()):
            raise ValueError("the state is of an environment with other arguments, another dataset or other lanes")
        generator = json.loads(str(state["generator"]))
        for key, shape in self.shapes.items():
            setattr(self, key, np.array(state[key]) if shape else int(state[key]))
        self.reward_parts = {k.removeprefix("reward/"): v.copy() for k, v in state.items() if k.startswith("reward/")}
        self.show(self.rows)
        self.started = True
        rng.bit_generator.state = generator

    def _next(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """The next images of the shuffled pass, shuffled anew each time all have had their turn."""
        taken = np.empty(0, np.int64)
        while len(taken) < self.lanes:
            if self.cursor == len(self.order):
                order = rng.permutation(self.eligible)
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
        rows: NDArray[np.int64] = self.tables.row_of[images]
        if not np.isin(rows, self.eligible).all():
            kind = "" if len(self.eligible) == len(self.dataset.train) else " that have a similar and a dissimilar one"
            raise ValueError(
                f"options['index'] must name training images (dataset.train){kind}; got {index!r}. "
                f"To encode other images use {self.ENCODER}"
            )
        return rows


def _checked(source: Any) -> HashingDataset:
    """The dataset of an environment: as it is given, or by name or folder and standardised.

    Raises:
        DataError: for what is none of these, and for a dataset without labels.
    """
    dataset = source if isinstance(source, HashingDataset) else standardized(data.checked_source(source))
    dataset.require("labels")
    dataset.check_scale()
    return dataset


def setting(name: str, meaning: str) -> Any:
    """A skin's property: an argument of its task that may be set at any time and counts from the next step."""

    def get(self: Skin) -> Any:
        return getattr(self._lanes.task, name)

    def set_(self: Skin, value: Any) -> None:
        self._lanes.change(**{name: value})

    return property(get, set_, doc=f"{meaning}; set, it counts from the next step.")


class Skin:
    """What both skins have in common."""

    _lanes: Lanes
    _flat: bool
    _info: Info
    np_random: np.random.Generator
    metadata: dict[str, Any]

    @property
    def dataset(self) -> HashingDataset:
        """The dataset, with features as they are observed."""
        return self._lanes.dataset

    def get_state(self) -> dict[str, Any]:
        """All that decides what comes next, generator included: arrays, numbers and text, for ``set_state``.

        ``np.savez(file, **state)`` writes it, and ``np.load(file)`` is a state again.
        """
        self._need_reset()
        return self._lanes.get_state(self.np_random)

    @property
    def slices(self) -> dict[str, slice]:
        """Where the parts of an observation are in one made with ``flat=True``: name -> slice of its last axis.

        ``observation[..., env.unwrapped.slices["image"]]`` is the image. A ``Discrete`` part is one-hot there.
        """
        parts = self._lanes.spaces()[0]
        stops = np.cumsum([spaces.flatdim(space) for space in parts.values()]).tolist()
        return dict(zip(parts, map(slice, [0, *stops[:-1]], stops), strict=True))

    def _set_up(self, lanes: Lanes, render_mode: str | None, flat: bool, info: Info) -> spaces.Space[Any]:
        """Check and keep the arguments that both skins take; returns the space of one observation."""
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"render_mode must be one of {self.metadata['render_modes']} or None, got {render_mode!r}")
        if not isinstance(flat, bool):
            raise ValueError(f"flat must be True or False, got {flat!r}")
        if info not in ("nested", "flat"):
            raise ValueError(f"info must be 'nested' or 'flat', got {info!r}")
        self._lanes, self.render_mode, self._flat, self._info = lanes, render_mode, flat, info
        parts, _ = lanes.spaces()
        return _flat_space(parts) if flat else parts

    def _observe(self) -> Any:
        """Observations of all environments, as the space has them."""
        observation = self._lanes.observe()
        return self._lanes.flatten(observation) if self._flat else observation

    def _said(self, info: dict[str, Any]) -> dict[str, Any]:
        """An info as it was asked for."""
        return _flat_info(info) if self._info == "flat" else info

    def _begin(self, seed: int | None, options: dict[str, Any]) -> None:
        known = self._lanes.OPTIONS
        if unknown := options.keys() - {*known}:
            raise ValueError(f"unknown reset options {sorted(unknown)}; there is {' and '.join(map(repr, known))}")
        if seed is not None or not self._lanes.started:
            self._lanes.start(self.np_random)
        self._lanes.begin(self.np_random, options)

    def _need_reset(self) -> None:
        if not self._lanes.started:
            raise gym.error.ResetNeeded("call reset() first")

    def _need_episode(self) -> None:
        self._need_reset()
        if self._lanes.done:
            raise gym.error.ResetNeeded("the episode has ended: call reset()")

    def _show(self, lane: int, mode: str) -> Any:
        scene = self._lanes.scene(lane)
        return scene.write() if mode == "ansi" else scene.draw()


class ScalarEnv(Skin, gym.Env[Observation, Any]):
    """One lane as a Gymnasium environment."""

    metadata = {"render_modes": ["rgb_array", "ansi"], "render_fps": 2}  # noqa: RUF012  # Gymnasium's own form

    def __init__(self, lanes: Lanes, render_mode: str | None, flat: bool = False, info: Info = "nested") -> None:
        self.observation_space = self._set_up(lanes, render_mode, flat, info)
        self.action_space = lanes.spaces()[1]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode; ``options={"index": i}`` chooses the image. See the class for what a seed does."""
        super().reset(seed=seed)
        self._begin(seed, dict(options or {}))
        return self._shown()

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Act.

        Raises:
            ValueError: for an action outside the action space.
            gymnasium.error.ResetNeeded: before the first reset and after the end of an episode.
        """
        self._need_episode()
        reward, info = self._lanes.act(np.asarray(action)[None])
        return _first(self._observe()), float(reward[0]), self._lanes.done, False, _first(self._said(info))

    def set_state(self, state: dict[str, Any]) -> tuple[Observation, dict[str, Any]]:
        """Restore what ``get_state`` returned, also in another process; returns what a reset there would.

        Raises:
            ValueError: for a state of an environment with other arguments.
        """
        self._lanes.set_state(state, self.np_random)
        return self._shown()

    def _shown(self) -> tuple[Any, dict[str, Any]]:
        return _first(self._observe()), _first(self._said(self._lanes.info()))

    def render(self) -> Any:
        """The episode as a picture or as text; see the class."""
        self._need_reset()
        if self.render_mode is None:
            gym.logger.warn("render() shows nothing: make the environment with render_mode='rgb_array' or 'ansi'")
            return None
        return self._show(0, self.render_mode)


class LockstepVectorEnv(Skin, VectorEnv[Observation, Any, NDArray[Any]]):
    """All environments of a batch as a native Gymnasium vector environment, whose episodes end together.

    Attributes:
        autoreset_mode: what follows the end of an episode, also in ``metadata["autoreset_mode"]``: SAME_STEP, NEXT_STEP
            or DISABLED.
    """

    metadata = ScalarEnv.metadata | {"autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(
        self,
        lanes: Lanes,
        render_mode: str | None,
        flat: bool = False,
        info: Info = "nested",
        autoreset_mode: str | AutoresetMode = AutoresetMode.SAME_STEP,
    ) -> None:
        self.num_envs = lanes.lanes
        self.single_observation_space = self._set_up(lanes, render_mode, flat, info)
        self.single_action_space = lanes.spaces()[1]
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.autoreset_mode = _autoreset_mode(autoreset_mode)
        self.metadata = type(self).metadata | {"autoreset_mode": self.autoreset_mode}
        self._all = np.ones(self.num_envs, np.bool_)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode in every environment; ``options={"index": [...]}`` chooses the images.

        ``options={"reset_mask": mask}``, bool (num_envs,), is Gymnasium's for ``autoreset_mode="Disabled"``; episodes
        end together, so all of it must be True.
        """
        options = dict(options or {})
        if (mask := options.pop("reset_mask", None)) is not None:
            self._check_mask(mask)
        super().reset(seed=seed)
        self._begin(seed, options)
        return self._shown()

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Act in every environment.

        After the end of the episodes ``autoreset_mode`` decides: SAME_STEP returns the first observations of the next
        episodes with the last step, NEXT_STEP with the step after it, which ignores its actions and earns 0.

        Raises:
            ValueError: for actions outside the action space.
            gymnasium.error.ResetNeeded: before the first reset, and with DISABLED after the end of the episodes.
        """
        self._need_reset()
        if self._lanes.done and self.autoreset_mode is AutoresetMode.NEXT_STEP:
            self._lanes.begin(self.np_random, {})
            observation, info = self._shown()
            return observation, self._full(0.0), self._full(False), self._full(False), info
        self._need_episode()
        reward, info = self._lanes.act(actions)
        observation, info, done = self._observe(), self._said(info), self._lanes.done
        if done and self.autoreset_mode is AutoresetMode.SAME_STEP:
            last = self._apart(observation)
            self._lanes.begin(self.np_random, {})
            info = {"final_obs": last, "final_info": info} | self._said(self._lanes.info())
            observation = self._observe()
        return observation, reward, self._full(done), self._full(False), self._masked(info)

    def set_state(self, state: dict[str, Any]) -> tuple[Observation, dict[str, Any]]:
        """Restore what ``get_state`` returned, also in another process; returns what a reset there would.

        Raises:
            ValueError: for a state of an environment with other arguments.
        """
        self._lanes.set_state(state, self.np_random)
        return self._shown()

    def render(self) -> tuple[Any, ...] | None:
        """One rendering for each lane, as the scalar environment's ``render``."""
        self._need_reset()
        if self.render_mode is None:
            return None
        return tuple(self._show(lane, self.render_mode) for lane in range(self.num_envs))

    def _observe(self) -> Any:
        observation = super()._observe()
        shared = not self._flat and isinstance(observation["image"], np.ndarray)
        if shared and self.autoreset_mode is not AutoresetMode.SAME_STEP:
            # Gymnasium's observation wrappers, which take these modes alone, write into what they are given.
            observation["image"] = observation["image"].copy()
        return observation

    def _shown(self) -> tuple[Any, dict[str, Any]]:
        return self._observe(), self._masked(self._said(self._lanes.info()))

    def _check_mask(self, mask: Any) -> None:
        if not isinstance(mask, np.ndarray) or mask.shape != (self.num_envs,) or mask.dtype != np.bool_:
            raise ValueError(f"options['reset_mask'] must be a bool array of shape ({self.num_envs},), got {mask!r}")
        if not mask.all():
            raise ValueError(
                "environments run in lockstep, their episodes end together: options['reset_mask'] must be True for all "
                f"{self.num_envs} of them, got {int(mask.sum())}"
            )

    def _full(self, value: float | bool) -> Any:
        """A number or a flag for every environment: float64 or bool (n,)."""
        return np.full(self.num_envs, value)

    def _apart(self, observation: Any) -> Any:
        """Final observations as an info has them: an object array with one of each environment."""
        return _apart(observation, self.num_envs)

    def _masked(self, info: dict[str, Any]) -> dict[str, Any]:
        """Gymnasium's vector form of an info: beside every key a mask of the lanes that have it (here all)."""
        masked: dict[str, Any] = {}
        for key, part in info.items():
            masked[key] = self._masked(part) if isinstance(part, dict) else part
            masked[f"_{key}"] = self._all.copy()
        return masked


_LOADED: WeakValueDictionary[str, HashingDataset] = WeakValueDictionary()


def standardized(source: str) -> HashingDataset:
    """A dataset by name or folder. Datasets are immutable, so that all environments of a process share one."""
    if (dataset := _LOADED.get(source)) is None:  # else it is in use, if perhaps not of late
        dataset = _LOADED[source] = _standardized(source)
    return dataset


@lru_cache(maxsize=2)
def _standardized(source: str) -> HashingDataset:
    return data.load(source).standardized()


def _autoreset_mode(mode: str | AutoresetMode) -> AutoresetMode:
    """Gymnasium's enum, or the name or value of a member: "next_step", "NextStep"."""
    members = {text.lower().replace("_", ""): each for each in AutoresetMode for text in (each.name, each.value)}
    found = mode if isinstance(mode, AutoresetMode) else members.get(str(mode).lower().replace("_", ""))
    if found is None:
        names = ", ".join(repr(each.value) for each in AutoresetMode)
        raise ValueError(f"autoreset_mode must be one of {names}, or a gymnasium.vector.AutoresetMode, got {mode!r}")
    return found


def flatten(observation: Observation, space: spaces.Dict) -> NDArray[np.float32]:
    """A batch of observations in one array (n, width): the parts in the order of the space, ``Discrete`` one-hot."""
    parts = [
        observation[key][:, None] == np.arange(part.n) if isinstance(part, spaces.Discrete) else observation[key]
        for key, part in space.items()
    ]
    return np.concatenate(parts, axis=1, dtype=np.float32)


def _flat_space(parts: spaces.Dict) -> spaces.Box:
    """The space of observations laid out in one array."""
    flat = spaces.flatten_space(parts)  # float64, because of the integers in it
    assert isinstance(flat, spaces.Box)
    return spaces.Box(flat.low.astype(np.float32), flat.high.astype(np.float32), dtype=np.float32)


def _flat_info(info: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """An info without nested dicts: ``{"nearer": {"similar": x}}`` is ``{"nearer/similar": x}``."""
    flat: dict[str, Any] = {}
    for key, part in info.items():
        flat |= _flat_info(part, f"{prefix}{key}/") if isinstance(part, dict) else {prefix + key: part}
    return flat


def _apart(batch: Any, lanes: int) -> NDArray[np.object_]:
    """A batch as one observation for each lane, views of its arrays: what Gymnasium wants of final observations."""
    array = np.empty(lanes, object)
    if not isinstance(batch, dict):
        for i, one in enumerate(batch):
            array[i] = one
        return array
    apart: list[Observation] = [{} for _ in range(lanes)]
    for key, parts in batch.items():  # key by key takes a third of the time of lane by lane
        for lane, part in zip(apart, parts, strict=True):
            lane[key] = part
    array[:] = apart
    return array


def _first(batch: Any) -> Any:
    """The only lane's part of a batch, in arrays of its own."""
    return {key: _first(part) for key, part in batch.items()} if isinstance(batch, dict) else batch[0].copy()


def _copy(part: Any) -> Any:
    return part.copy() if isinstance(part, np.ndarray) else part
