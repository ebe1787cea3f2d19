"""Batched simulator core, exposed as a scalar Env and a native VectorEnv."""

from __future__ import annotations

import itertools
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
from hashgym.data import HashingDataset, cache
from hashgym.envs.partners import PartnerSampler
from hashgym.envs.rendering import Scene
from hashgym.hashers import Hasher

__all__ = [
    "BatchedCore",
    "DatasetIndex",
    "EnvMixin",
    "LockstepVectorEnv",
    "Observation",
    "ScalarEnv",
    "flatten",
    "image_space",
    "standardized",
    "task_property",
]

GRID = 4  # cells on each side of a map, whose means make the first codes
_MAPS_AT_ONCE = 64  # read from a file to be averaged

Observation: TypeAlias = dict[str, Any]
Info: TypeAlias = Literal["nested", "flat"]


class DatasetIndex:
    """Per-dataset lookup tables, shared by all environments of a dataset, so that thousands of scalar ones are cheap.

    Attributes:
        dataset: the dataset.
        row_of: int64 (n,), each image's row of ``dataset.train``, -1 for images outside the training split.
        bases: hashers fitted to the training images, by name and number of bits.
    """

    shared: ClassVar[WeakValueDictionary[int, DatasetIndex]] = WeakValueDictionary()

    def __init__(self, dataset: HashingDataset) -> None:
        self.dataset = dataset  # keeps the object alive: ``shared`` is keyed by its id
        self.row_of = np.full(len(dataset), -1)
        self.row_of[dataset.train] = np.arange(len(dataset.train))
        self.bases: dict[tuple[str, int], Hasher] = {}

    @classmethod
    def of(cls, dataset: HashingDataset) -> DatasetIndex:
        """Return the index of a dataset; environments with the same dataset share one."""
        if (dataset_index := cls.shared.get(id(dataset))) is None:
            dataset_index = cls.shared[id(dataset)] = cls(dataset)
        return dataset_index

    @cached_property
    def label_words(self) -> Words:
        """Packed labels of the training images, uint64 (N, ceil(L / 64))."""
        return codes.pack(self.dataset.labels[self.dataset.train])

    @cached_property
    def cell_means(self) -> NDArray[np.float32]:
        """Means of each channel of the training images' maps over a grid of cells, float32 (N, C, GRID, GRID).

        Cell i of a side of s pixels covers those from s i // GRID on, at least one.
        """
        train, (channels, *sides) = self.dataset.train, self.dataset.image_shape
        edges = [[side * i // GRID for i in range(GRID + 1)] for side in sides]
        rows, columns = ([slice(a, max(a + 1, b)) for a, b in itertools.pairwise(side)] for side in edges)
        means = np.empty((len(train), channels, GRID, GRID), np.float32)
        for start in range(0, len(train), _MAPS_AT_ONCE):
            block = slice(start, start + _MAPS_AT_ONCE)
            images = self.dataset.features[train[block]].astype(np.float32)
            for y, x in itertools.product(range(GRID), repeat=2):
                means[block, :, y, x] = images[..., rows[y], columns[x]].mean(axis=(2, 3))
        return means

    @cached_property
    def sampler(self) -> PartnerSampler:
        """The partner sampler of the training images; DataError if no image has a similar and a dissimilar one."""
        return PartnerSampler(self.label_words)


class BatchedCore(ABC):
    """Simulator of n environments, each on one training image, whose episodes begin and end together.

    Subclasses set ``eligible`` and ``task``, extend :meth:`reset_run`, :meth:`reset_episode`, :meth:`info` and
    ``state_shapes``, and implement the abstract methods. Arrays are batches with one row for each environment.

    Attributes:
        num_envs: n.
        eligible: int64, the rows of ``dataset.train`` that have episodes.
        task: the arguments of the environment, a frozen dataclass that checks them.
        dataset: the dataset, with features as they are observed.
        dataset_index: lookup tables of the dataset.
        started: whether :meth:`reset_run` has been called.
        order, cursor: the current shuffled pass over the images, and the position in it.
        rows: int64 (n,), the image of each environment, as a row of ``dataset.train``.
        views: int64 (n,), the view of each image that is shown; only for a dataset with views.
        image: those images: features, float32 (n, D); activations, float32 (n, C, H, W); or pixels, uint8
            (n, 3, H, W). Written once an episode and never modified.
        reward_parts: the weighted components of the last reward, float64 (n,) each.
        state_shapes: names of the attributes that form the state, and the shape of each.
    """

    OPTIONS: ClassVar[tuple[str, ...]] = ("index",)
    CHANGEABLE: ClassVar[tuple[str, ...]]  # arguments of the task that may change between steps, a part of the state
    ENCODER: ClassVar[str] = "hashgym.encode"  # the function for images that have no episode, named in messages
    eligible: NDArray[np.int64]
    views: NDArray[np.int64] | None = None
    task: Any
    started = False

    def __init__(self, num_envs: int, dataset: str | Path | HashingDataset) -> None:
        self.num_envs = check_integer("num_envs", num_envs)
        self.dataset = _checked(dataset)
        self.dataset_index = DatasetIndex.of(self.dataset)

    @abstractmethod
    def spaces(self) -> tuple[spaces.Dict, spaces.Space[Any]]:
        """Return the observation and action space of one environment."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What an episode's state depends on, besides its shapes: numbers and text by name."""

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """See the class."""
        shapes: dict[str, tuple[int, ...]] = {"order": (len(self.eligible),), "cursor": (), "rows": (self.num_envs,)}
        return shapes if self.dataset.views is None else shapes | {"views": (self.num_envs,)}

    def reset_run(self, rng: np.random.Generator) -> None:
        """Shuffle the images; called at the first reset and at each reset with a seed."""
        self.order, self.cursor, self.started = rng.permutation(self.eligible), 0, True

    def requested(self, options: dict[str, Any]) -> dict[str, NDArray[np.int64]]:
        """Return the options of a reset as arrays for :meth:`reset_episode`; ``index`` as rows of ``dataset.train``.

        Raises:
            ValueError: for options that cannot be met; nothing has changed.
        """
        if unknown := options.keys() - {*self.OPTIONS}:
            known = " and ".join(map(repr, self.OPTIONS))
            raise ValueError(f"unknown reset options {sorted(unknown)}: the options are {known}")
        return {"index": self._requested_rows(options["index"])} if options.get("index") is not None else {}

    def reset_episode(self, rng: np.random.Generator, requested: dict[str, NDArray[np.int64]]) -> None:
        """Begin an episode in every environment, on the requested images or the next ones of the shuffled pass."""
        rows = requested["index"] if "index" in requested else self._next_rows(rng)
        if self.dataset.views is not None:
            self.views = rng.integers(self.dataset.num_views, size=self.num_envs)
        self.set_images(rows)
        self.reward_parts: dict[str, NDArray[np.float64]] = {}

    def set_images(self, rows: NDArray[np.int64]) -> None:
        """Assign an image, a row of ``dataset.train``, to every environment, in the view that ``views`` has for it."""
        self.rows: Any = rows
        self.image: Any = self.dataset.images(self.dataset.train[rows], self.views)

    def update_task(self, **arguments: Any) -> None:
        """Change arguments of the task, from the next step on; validates like the constructor."""
        self.task = replace(self.task, **arguments)

    @abstractmethod
    def step(self, action: ArrayLike) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Act in every environment; return rewards and info. Actions are validated before anything changes."""

    @abstractmethod
    def observe(self) -> Observation:
        """Return the observations of all environments; their arrays are not modified afterwards."""

    def flatten(self, observation: Observation) -> Any:
        """Return observations as one array; see :func:`flatten`."""
        return flatten(observation, self.spaces()[0])

    def info(self) -> dict[str, Any]:
        """Return the info of an observation: ``index``, its image's row of the dataset."""
        return {"index": self.dataset.train[self.rows]}

    def rewards_info(self) -> dict[str, Any]:
        """Return the weighted components of the last reward as the caller's own arrays, (n,) each."""
        return {name: _copy(part) for name, part in self.reward_parts.items()}

    @property
    @abstractmethod
    def done(self) -> bool:
        """Whether the episodes have ended."""

    @abstractmethod
    def scene(self, index: int) -> Scene:
        """Return the content of one environment's rendering."""

    def get_state(self, rng: np.random.Generator) -> dict[str, Any]:
        """Return the complete state: copies of arrays, numbers, and the random generator's state as JSON."""
        state = {key: getattr(self, key) for key in self.state_shapes}
        state |= {f"reward/{name}": part for name, part in self.reward_parts.items()}
        state |= {f"task/{name}": getattr(self.task, name) for name in self.CHANGEABLE}
        texts = {"settings": json.dumps(self.settings), "generator": json.dumps(rng.bit_generator.state)}
        return {key: _copy(part) for key, part in state.items()} | texts

    def set_state(self, state: dict[str, Any], rng: np.random.Generator) -> None:
        """Restore a state of :meth:`get_state`; numbers and text may be arrays, as ``np.load`` returns them."""
        if missing := {*self.state_shapes, "generator"} - state.keys():
            raise ValueError(f"the state was not saved by this environment: {', '.join(sorted(missing))} missing")
        if any(np.shape(state[key]) != shape for key, shape in self.state_shapes.items()):
            raise ValueError("the state is of an environment with other arguments, another dataset or another num_envs")
        saved_by = json.loads(str(state.get("settings", "{}")))  # none by earlier versions
        for name, value in saved_by.items():
            if value != self.settings.get(name):
                raise ValueError(
                    f"the state is of an environment with other arguments: {name} was {value!r} there, but is "
                    f"{self.settings.get(name)!r} here"
                )
        generator = json.loads(str(state["generator"]))
        saved = {name: state.get(f"task/{name}") for name in self.CHANGEABLE}  # none by earlier versions
        self.task = replace(self.task, **{name: float(value) for name, value in saved.items() if value is not None})
        for key, shape in self.state_shapes.items():
            setattr(self, key, np.array(state[key]) if shape else int(state[key]))
        self.reward_parts = {k.removeprefix("reward/"): v.copy() for k, v in state.items() if k.startswith("reward/")}
        self.set_images(self.rows)
        self.started = True
        rng.bit_generator.state = generator

    def _next_rows(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Take the next images of the shuffled pass; a new pass begins when all have been taken."""
        taken = np.empty(0, np.int64)
        while len(taken) < self.num_envs:
            if self.cursor == len(self.order):
                order = rng.permutation(self.eligible)
                again = np.isin(order, taken)  # images of this batch go last: no batch holds an image twice
                self.order, self.cursor = np.concatenate([order[~again], order[again]]), 0
            stop = self.cursor + self.num_envs - len(taken)
            taken = np.concatenate([taken, self.order[self.cursor : stop]])
            self.cursor = min(stop, len(self.order))
        return taken

    def _requested_rows(self, index: ArrayLike) -> NDArray[np.int64]:
        images = np.atleast_1d(np.asarray(index))
        if images.shape != (self.num_envs,) or images.dtype.kind not in "iu":
            raise ValueError(f"options['index'] must name {self.num_envs} image(s) by integers, got {index!r}")
        if images.min() < 0 or images.max() >= len(self.dataset):
            raise ValueError(f"options['index'] must be from 0 to {len(self.dataset) - 1}, got {index!r}")
        rows: NDArray[np.int64] = self.dataset_index.row_of[images]
        if not np.isin(rows, self.eligible).all():
            kind = "" if len(self.eligible) == len(self.dataset.train) else " that have a similar and a dissimilar one"
            raise ValueError(
                f"options['index'] must name training images (dataset.train){kind}; got {index!r}. "
                f"To encode other images use {self.ENCODER}"
            )
        return rows


def _checked(source: Any) -> HashingDataset:
    """Return the dataset of an environment: a ``HashingDataset`` unchanged, a name or folder loaded and standardised.

    Raises:
        DataError: for any other source, and for a dataset without labels.
    """
    dataset = source if isinstance(source, HashingDataset) else standardized(data.checked_source(source))
    dataset.require("labels")
    dataset.check_scale()
    return dataset


def task_property(name: str, meaning: str) -> Any:
    """Return a property of an environment that reads and sets an argument of its task, from the next step on."""

    def get(self: EnvMixin) -> Any:
        return getattr(self._core.task, name)

    def set_(self: EnvMixin, value: Any) -> None:
        self._core.update_task(**{name: value})

    return property(get, set_, doc=f"{meaning}; a new value takes effect at the next step.")


class EnvMixin:
    """Methods shared by the scalar and the vector environment."""

    _core: BatchedCore
    _flat: bool
    _info: Info
    np_random: np.random.Generator
    metadata: dict[str, Any]

    @property
    def dataset(self) -> HashingDataset:
        """The dataset, with features as they are observed."""
        return self._core.dataset

    def get_state(self) -> dict[str, Any]:
        """Return the complete state, random generator included, for ``set_state``: arrays, numbers and text.

        ``np.savez(file, **state)`` saves it, and ``set_state`` takes ``np.load(file)``.
        """
        self._require_reset()
        return self._core.get_state(self.np_random)

    def set_state(self, state: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Restore a state of ``get_state``, also in another process; return observation and info, as ``reset`` does.

        Raises:
            ValueError: if the state is of an environment with other arguments.
        """
        self._core.set_state(state, self.np_random)
        return self._reset_result()

    @property
    def slices(self) -> dict[str, slice]:
        """The slice of each part in an observation with ``flat=True``: name -> slice of the last axis.

        ``observation[..., env.unwrapped.slices["image"]]`` is the image. A ``Discrete`` part is one-hot.
        """
        parts = self._core.spaces()[0]
        stops = np.cumsum([spaces.flatdim(space) for space in parts.values()]).tolist()
        return dict(zip(parts, map(slice, [0, *stops[:-1]], stops), strict=True))

    def _set_up(self, core: BatchedCore, render_mode: str | None, flat: bool, info: Info) -> spaces.Space[Any]:
        """Check and store the arguments of both environments; return the space of one observation."""
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"render_mode must be one of {self.metadata['render_modes']} or None, got {render_mode!r}")
        if not isinstance(flat, bool):
            raise ValueError(f"flat must be True or False, got {flat!r}")
        if info not in ("nested", "flat"):
            raise ValueError(f"info must be 'nested' or 'flat', got {info!r}")
        self._core, self.render_mode, self._flat, self._info = core, render_mode, flat, info
        parts, _ = core.spaces()
        return _flat_space(parts) if flat else parts

    @abstractmethod
    def _reset_result(self) -> tuple[Any, dict[str, Any]]:
        """Return observation and info of the current episode, as ``reset`` does."""

    def _observe(self) -> Any:
        """Return the observations of all environments in the form of the observation space."""
        observation = self._core.observe()
        return self._core.flatten(observation) if self._flat else observation

    def _format_info(self, info: dict[str, Any]) -> dict[str, Any]:
        """Return an info in the form that the argument ``info`` chooses."""
        return _flat_info(info) if self._info == "flat" else info

    def _reset(self, seed: int | None, requested: dict[str, NDArray[np.int64]]) -> None:
        if seed is not None or not self._core.started:
            self._core.reset_run(self.np_random)
        self._core.reset_episode(self.np_random, requested)

    def _require_reset(self) -> None:
        if not self._core.started:
            raise gym.error.ResetNeeded("call reset() first")

    def _require_episode(self) -> None:
        self._require_reset()
        if self._core.done:
            raise gym.error.ResetNeeded("the episode has ended: call reset()")

    def _render(self, index: int, mode: str) -> Any:
        scene = self._core.scene(index)
        return scene.write() if mode == "ansi" else scene.draw()


class ScalarEnv(EnvMixin, gym.Env[Observation, Any]):
    """A core of one environment as a Gymnasium ``Env``."""

    metadata = {"render_modes": ["rgb_array", "ansi"], "render_fps": 2}  # noqa: RUF012  # Gymnasium's own form

    def __init__(self, core: BatchedCore, render_mode: str | None, flat: bool = False, info: Info = "nested") -> None:
        self.observation_space = self._set_up(core, render_mode, flat, info)
        self.action_space = core.spaces()[1]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode; ``options={"index": i}`` chooses the image. The class describes the effect of a seed."""
        requested = self._core.requested(dict(options or {}))
        super().reset(seed=seed)
        self._reset(seed, requested)
        return self._reset_result()

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Run one step.

        Raises:
            ValueError: for an action outside the action space.
            gymnasium.error.ResetNeeded: before the first reset and after the end of an episode.
        """
        self._require_episode()
        reward, info = self._core.step(np.asarray(action)[None])
        return _first(self._observe()), float(reward[0]), self._core.done, False, _first(self._format_info(info))

    def _reset_result(self) -> tuple[Any, dict[str, Any]]:
        return _first(self._observe()), _first(self._format_info(self._core.info()))

    def render(self) -> Any:
        """Return the episode as a picture or as text, by ``render_mode``."""
        self._require_reset()
        if self.render_mode is None:
            gym.logger.warn("render() returns None: make the environment with render_mode='rgb_array' or 'ansi'")
            return None
        return self._render(0, self.render_mode)


class LockstepVectorEnv(EnvMixin, VectorEnv[Observation, Any, NDArray[Any]]):
    """A core of n environments as a native Gymnasium ``VectorEnv``, whose episodes end together.

    Attributes:
        autoreset_mode: when the next episode begins, also in ``metadata["autoreset_mode"]``: SAME_STEP, NEXT_STEP
            or DISABLED.
    """

    metadata = ScalarEnv.metadata | {"autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(
        self,
        core: BatchedCore,
        render_mode: str | None,
        flat: bool = False,
        info: Info = "nested",
        autoreset_mode: str | AutoresetMode = AutoresetMode.SAME_STEP,
    ) -> None:
        self.num_envs = core.num_envs
        self.single_observation_space = self._set_up(core, render_mode, flat, info)
        self.single_action_space = core.spaces()[1]
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.autoreset_mode = _autoreset_mode(autoreset_mode)
        self.metadata = type(self).metadata | {"autoreset_mode": self.autoreset_mode}
        self._all = np.ones(self.num_envs, np.bool_)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode in every environment; ``options={"index": [...]}`` chooses the images.

        ``options={"reset_mask": mask}``, bool (num_envs,), is Gymnasium's for ``autoreset_mode="Disabled"``; it must be
        True for all environments, as their episodes end together.
        """
        options = dict(options or {})
        if (mask := options.pop("reset_mask", None)) is not None:
            self._check_mask(mask)
        requested = self._core.requested(options)
        super().reset(seed=seed)
        self._reset(seed, requested)
        return self._reset_result()

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Run one step in every environment.

        The first observations of the next episodes are returned by the last step with SAME_STEP, and by the step after
        it, which ignores its actions and has reward 0, with NEXT_STEP.

        Raises:
            ValueError: for actions outside the action space.
            gymnasium.error.ResetNeeded: before the first reset, and with DISABLED after the end of the episodes.
        """
        self._require_reset()
        if self._core.done and self.autoreset_mode is AutoresetMode.NEXT_STEP:
            self._core.reset_episode(self.np_random, {})
            observation, info = self._reset_result()
            return observation, self._full(0.0), self._full(False), self._full(False), info
        self._require_episode()
        reward, info = self._core.step(actions)
        observation, info, done = self._observe(), self._format_info(info), self._core.done
        if done and self.autoreset_mode is AutoresetMode.SAME_STEP:
            last = self._split(observation)
            self._core.reset_episode(self.np_random, {})
            info = {"final_obs": last, "final_info": info} | self._format_info(self._core.info())
            observation = self._observe()
        return observation, reward, self._full(done), self._full(False), self._with_masks(info)

    def render(self) -> tuple[Any, ...] | None:
        """Return one rendering for each environment, as the scalar environment's ``render``."""
        self._require_reset()
        if self.render_mode is None:
            return None
        return tuple(self._render(index, self.render_mode) for index in range(self.num_envs))

    def _observe(self) -> Any:
        observation = super()._observe()
        shared = not self._flat and isinstance(observation["image"], np.ndarray)
        if shared and self.autoreset_mode is not AutoresetMode.SAME_STEP:
            # Gymnasium's observation wrappers, which support only these modes, write into the arrays they get.
            observation["image"] = observation["image"].copy()
        return observation

    def _reset_result(self) -> tuple[Any, dict[str, Any]]:
        return self._observe(), self._with_masks(self._format_info(self._core.info()))

    def _check_mask(self, mask: Any) -> None:
        if not isinstance(mask, np.ndarray) or mask.shape != (self.num_envs,) or mask.dtype != np.bool_:
            raise ValueError(f"options['reset_mask'] must be a bool array of shape ({self.num_envs},), got {mask!r}")
        if not mask.all():
            raise ValueError(
                "episodes of all environments end together: options['reset_mask'] must be True for all "
                f"{self.num_envs} of them, got {int(mask.sum())}"
            )

    def _full(self, value: float | bool) -> Any:
        """Return an array with one value for every environment: float64 or bool (n,)."""
        return np.full(self.num_envs, value)

    def _split(self, observation: Any) -> Any:
        """Return final observations as Gymnasium's info has them: an object array, one observation per environment."""
        return _split_batch(observation, self.num_envs)

    def _with_masks(self, info: dict[str, Any]) -> dict[str, Any]:
        """Return Gymnasium's vector form of an info: with every key a mask of the environments that have it (all)."""
        masked: dict[str, Any] = {}
        for key, part in info.items():
            masked[key] = self._with_masks(part) if isinstance(part, dict) else part
            masked[f"_{key}"] = self._all.copy()
        return masked


# All datasets in use; the cache of _standardized also keeps the last two alive.
_LOADED: WeakValueDictionary[tuple[Any, ...], HashingDataset] = WeakValueDictionary()


def standardized(source: str) -> HashingDataset:
    """Return a dataset by name or folder, standardised. All environments share it, as it is immutable.

    A folder that was written again is read again.
    """
    key = source, *cache.version(source)
    if (dataset := _LOADED.get(key)) is None:
        dataset = _LOADED[key] = _standardized(*key)
    return dataset


@lru_cache(maxsize=2)
def _standardized(source: str, *version: Any) -> HashingDataset:
    return data.load(source).standardized()


def _autoreset_mode(mode: str | AutoresetMode) -> AutoresetMode:
    """Return the member of Gymnasium's enum for a member, name or value: "next_step", "NextStep"."""
    members = {text.lower().replace("_", ""): each for each in AutoresetMode for text in (each.name, each.value)}
    found = mode if isinstance(mode, AutoresetMode) else members.get(str(mode).lower().replace("_", ""))
    if found is None:
        names = ", ".join(repr(each.value) for each in AutoresetMode)
        raise ValueError(f"autoreset_mode must be one of {names}, or a gymnasium.vector.AutoresetMode, got {mode!r}")
    return found


def image_space(shape: tuple[int, ...], dtype: Any) -> spaces.Box:
    """Return the space of one image: float32, or uint8 for pixels, which libraries take for a picture.

    Args:
        shape: (D,), or (C, H, W) of activations or pixels.
        dtype: of the dataset's features.
    """
    if np.dtype(dtype) == np.uint8:
        return spaces.Box(0, 255, shape, np.uint8)
    return spaces.Box(-np.inf, np.inf, shape, np.float32)


def flatten(observation: Observation, space: spaces.Dict) -> NDArray[np.float32]:
    """Return observations as one array (n, width): parts in the order of the space, ``Discrete`` one-hot."""
    parts = []
    for key, part in space.items():
        values = observation[key]
        if isinstance(part, spaces.Discrete):
            values = values[:, None] == np.arange(part.n)
        parts.append(values.reshape(len(values), -1))
    return np.concatenate(parts, axis=1, dtype=np.float32)


def _flat_space(parts: spaces.Dict) -> spaces.Box:
    """Return the space of flat observations."""
    flat = spaces.flatten_space(parts)  # float64, because of the Discrete part
    assert isinstance(flat, spaces.Box)
    return spaces.Box(flat.low.astype(np.float32), flat.high.astype(np.float32), dtype=np.float32)


def _flat_info(info: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return an info without nested dicts: ``{"nearer": {"similar": x}}`` becomes ``{"nearer/similar": x}``."""
    flat: dict[str, Any] = {}
    for key, part in info.items():
        flat |= _flat_info(part, f"{prefix}{key}/") if isinstance(part, dict) else {prefix + key: part}
    return flat


def _split_batch(batch: Any, num_envs: int) -> NDArray[np.object_]:
    """Return a batch as an object array of one observation for each environment, views of the batch's arrays."""
    array = np.empty(num_envs, object)
    if not isinstance(batch, dict):
        for i, one in enumerate(batch):
            array[i] = one
        return array
    split: list[Observation] = [{} for _ in range(num_envs)]
    for key, parts in batch.items():  # looping over keys takes a third of the time of looping over environments
        for one, part in zip(split, parts, strict=True):
            one[key] = part
    array[:] = split
    return array


def _first(batch: Any) -> Any:
    """Return the observation or info of a batch of one, as copies."""
    return {key: _first(part) for key, part in batch.items()} if isinstance(batch, dict) else batch[0].copy()


def _copy(part: Any) -> Any:
    """Return a copy of an array or a tensor, and anything else unchanged."""
    if isinstance(part, np.ndarray):
        return part.copy()
    return part.clone() if hasattr(part, "clone") else part
