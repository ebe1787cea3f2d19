"""Encoding images with a trained policy: features in, binary codes out."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from hashgym import codes
from hashgym.checks import check_integer, first_not_finite
from hashgym.codes import CodeSets
from hashgym.data.dataset import REGIONS_COMMAND
from hashgym.envs import multi_code_hashing, region_keep
from hashgym.envs.base import Observation, flatten
from hashgym.envs.bit_group_hashing import DEFAULT_GROUP_BITS, HashingTask, action_bits, observation
from hashgym.envs.multi_code_hashing import MultiCodeTask
from hashgym.hashers import Hasher
from hashgym.storage.errors import DataError, describe

__all__ = ["encode", "encode_codes", "encode_regions", "keep_probabilities"]

VECTORS_AT_ONCE, MAPS_AT_ONCE = 4096, 64  # images; activations of whole pictures take up to 50 MB each
_SAME_NUMBERS = ("FlattenObservation", "DtypeObservation")  # wrappers of Gymnasium that keep all values


def encode(
    policy: Any,
    features: NDArray[Any],
    *,
    bits: int,
    group_bits: int | None = None,
    batch_size: int | None = None,
) -> NDArray[np.bool_]:
    """Encode images with a policy, one group of bits at a time, as in the environment.

    Observations of a Stable-Baselines3 model that was trained under ``VecNormalize`` are normalised with its
    statistics, if the model has its environment: load it with ``PPO.load(path, env=VecNormalize.load(file, envs))``.
    A model without an environment does not record how it was trained.

    Args:
        policy: a Stable-Baselines3 model or anything with its ``predict(observation, state=, episode_start=,
            deterministic=)``, which returns ``(actions, state)``; or a callable that maps a batch of observations to
            actions. Actions are bits or probabilities (n, group_bits), or indices (n,); a bit is 1 where the action is
            above 0.5. A policy whose ``observation_space`` is a ``Box`` gets observations as of an environment with
            ``flat=True``.
        features: (n, D), on the scale the policy was trained on (``env.unwrapped.dataset.features``); for a policy
            with a backbone its activations (n, C, H, W), or pixels, uint8 (n, 3, H, W).
        bits: q, the code length the policy was trained for.
        group_bits: k, the group length the policy was trained for; by default min(12, ``bits``).
        batch_size: images encoded at once; by default 4096 feature vectors, or 64 activations or pictures.

    Returns:
        bool (n, bits).

    Raises:
        ValueError: for features of another shape or not finite, actions of another shape, a policy whose
            ``observation_space`` is of other features or another length of codes or groups, or a model whose
            environment has another wrapper that changes observations.
    """
    policy = _as_trained(policy)
    features = np.asarray(features)
    if features.ndim not in (2, 4):
        raise ValueError(f"features must have shape (n, D), or (n, C, H, W) for a backbone, got {features.shape}")
    if features.dtype.kind not in "fiub":
        raise ValueError(f"features must be real numbers (n, D), got {describe(features)}")
    if batch_size is None:
        batch_size = MAPS_AT_ONCE if features.ndim == 4 else VECTORS_AT_ONCE
    bits, batch_size = check_integer("bits", bits), check_integer("batch_size", batch_size)
    if features.ndim == 2:
        _check_finite(features, 0)
    encoded = np.zeros((len(features), bits), np.bool_)
    group_bits = min(DEFAULT_GROUP_BITS, bits) if group_bits is None else group_bits
    for start in range(0, len(features), batch_size):
        image = features[start : start + batch_size]
        if features.ndim == 4:
            _check_finite(image, start)
        dtype = np.uint8 if features.ndim == 4 and features.dtype == np.uint8 else np.float32
        image = image.astype(dtype, copy=not image.flags.writeable)  # torch takes only writable arrays
        encoded[start : start + batch_size] = _encode_batch(policy, image, bits, group_bits)
    return encoded


def _check_finite(features: NDArray[Any], first: int) -> None:
    """Raise ValueError if the features of an image, from number ``first`` on, hold NaN or infinity."""
    if (row := first_not_finite(features)) is not None:
        raise ValueError(f"features hold NaN or infinity, first in row {first + row}: leave such rows out")


def _encode_batch(policy: Any, image: NDArray[Any], bits: int, group_bits: int) -> NDArray[np.bool_]:
    state, episode_start = None, np.ones(len(image), np.bool_)
    task = HashingTask(bits=bits, group_bits=group_bits)
    code = np.zeros((len(image), bits), np.bool_)
    for group in range(task.groups):
        start, stop = task.span(group)
        seen = _as_observed(
            policy,
            observation(image, code, start, group),
            task.observation_space(image.shape[1:], image.dtype),
            "features, bits and group_bits",
        )
        if hasattr(policy, "predict"):
            masks = _masks(policy, task, group, n=len(image))
            action, state = policy.predict(seen, state=state, episode_start=episode_start, deterministic=True, **masks)
        else:
            action = policy(seen)
        action = np.asarray(action)
        if action.ndim == 2 and action.shape[1] != group_bits:
            raise ValueError(
                f"the policy emits {action.shape[1]} bits at a time, but group_bits is {group_bits}: give the bits and "
                "group_bits that it was trained with"
            )
        if action.ndim == 1:  # one number an image: the index of a group
            acting = HashingTask(bits=bits, group_bits=group_bits, action="index")
        else:
            acting = HashingTask(bits=bits, group_bits=group_bits, action="probability")
        code[:, start:stop] = (action_bits(action, acting, len(image)) > 0.5)[:, : stop - start]
        episode_start = np.zeros(len(image), np.bool_)
    return code


def _masks(policy: Any, task: HashingTask | MultiCodeTask, *place: int, n: int) -> dict[str, NDArray[np.bool_]]:
    """Return ``action_masks`` (n, 2**k) for ``predict`` if the policy has index actions and takes masks, else {}.

    A shorter last group has fewer valid indices, and so has a group whose code is not complete yet; the policy was not
    trained on the others.

    Args:
        policy: it has ``predict``.
        task: its ``action_mask`` tells them.
        place: the arguments of ``action_mask``.
        n: number of images.
    """
    takes = "action_masks" in inspect.signature(getattr(policy, "model", policy).predict).parameters
    if not takes or not isinstance(getattr(policy, "action_space", None), spaces.Discrete):
        return {}
    return {"action_masks": np.tile(dataclasses.replace(task, action="index").action_mask(*place), (n, 1))}


def encode_codes(
    policy: Any,
    base: Hasher,
    features: NDArray[np.float32],
    *,
    codes: int = 1,
    group_bits: int | None = None,
    keep: bool = True,
    threshold: float = 0.5,
    batch_size: int = 4096,
) -> CodeSets:
    """Return every image's code by the base and the further codes that the policy gives it, from one look at it.

    The statistics of ``VecNormalize`` are applied as in :func:`encode`.

    Args:
        policy: anything with ``probabilities(observation)``, which returns for each of n observations of
            ``MultiCodeHashing-v0`` the probabilities of its action's bits, (n, k + 1), the last one that of keeping the
            code, or (n, k) to keep all; a Stable-Baselines3 model or anything with its ``predict``, or a callable that
            maps a batch of observations to actions: bits, or their indices (n,). A policy whose ``observation_space``
            is a ``Box`` gets observations as of an environment with ``flat=True``.
        base: the fitted hasher that the policy was trained with.
        features: float32 (n, D), on the scale the policy was trained on.
        codes: m, number of further codes.
        group_bits: k, the group length the policy was trained for; by default all bits of a code at once.
        keep: whether the policy decides if codes are kept; False keeps all. Actions of k bits keep all too.
        threshold: xi; a code is kept where the probability of keeping it is at least xi. 0 keeps all.
        batch_size: images encoded at once.

    Returns:
        n code sets of at most 1 + m different codes, the base's first; equal codes are kept once.

    Raises:
        ValueError: for a threshold outside [0, 1], features of another shape or not finite, or a policy that returns
            anything else.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is a probability, from 0 to 1, got {threshold}")
    policy, features = _as_trained(policy), np.asarray(features, np.float32)
    if features.ndim != 2 or not len(features):
        raise ValueError(f"features must be (n, D), n at least 1, got {features.shape}")
    _check_finite(features, 0)
    batch_size = check_integer("batch_size", batch_size)
    task = MultiCodeTask(codes=codes, group_bits=group_bits, keep=keep)
    task.group_length(base.bits)  # raises ValueError for groups longer than the code
    parts = [
        _further_codes(policy, base, features[start : start + batch_size], task, threshold)
        for start in range(0, len(features), batch_size)
    ]
    words, kept = (np.concatenate(part) for part in zip(*parts, strict=True))
    return CodeSets(words, kept, base.bits)


def _further_codes(
    policy: Any, base: Hasher, image: NDArray[np.float32], task: MultiCodeTask, threshold: float
) -> tuple[codes.Words, NDArray[np.bool_]]:
    """Return packed codes (n, 1 + m, W), the base's first, and which of them are kept, (n, 1 + m)."""
    n, bits, k = len(image), base.bits, task.group_length(base.bits)
    words = np.zeros((n, 1 + task.codes, codes.word_count(bits)), np.uint64)
    kept = np.zeros(words.shape[:2], np.bool_)
    words[:, 0], kept[:, 0] = codes.pack(base.encode(image)), True
    space, state, group = task.observation_space(image.shape[1], bits), None, 0
    code = np.zeros((n, bits), np.bool_)
    for number in range(1, 1 + task.codes):
        for start in range(0, bits, k):
            seen = multi_code_hashing.observation(image, code, start, words, kept, group)
            shown = _as_observed(policy, seen, space, "features, base, codes and group_bits")
            if hasattr(policy, "probabilities"):
                action = policy.probabilities(shown)
            elif hasattr(policy, "predict"):
                first = np.full(n, group == 0)
                masks = _masks(policy, task, bits, start, n=n)
                action, state = policy.predict(shown, state=state, episode_start=first, deterministic=True, **masks)
            else:
                action = policy(shown)
            p, group = _bit_probabilities(np.asarray(action), n, k, task.keep), group + 1
            code[:, start : start + k] = p[:, : min(k, bits - start)] > 0.5
        words[:, number] = codes.pack(code)
        kept[:, number] = p[:, k] >= threshold if p.shape[1] > k else True
        kept = CodeSets(words, kept, bits).kept  # without a code that equals one before
    return words, kept


def _bit_probabilities(action: NDArray[Any], n: int, k: int, keep: bool) -> NDArray[np.float64]:
    """Return actions of MultiCodeHashing-v0 as probabilities, (n, k) or, if they decide about keeping, (n, k + 1).

    Raises:
        ValueError: for anything else.
    """
    if action.ndim == 1:  # an index of k bits, and of the one that keeps the code
        acting = MultiCodeTask(group_bits=k, keep=keep, action="index").acting(k)
    elif action.ndim == 2 and action.shape[1] in {k, k + keep}:
        acting = HashingTask(bits=action.shape[1], group_bits=action.shape[1], action="probability")
    else:
        raise ValueError(
            f"the policy must return actions of {k} bits, or {k + 1} with the one that keeps the code, for {n} images; "
            f"got shape {action.shape}: give the codes, group_bits and keep that it was trained with"
        )
    p = action_bits(action, acting, n).astype(np.float64)
    if action.ndim == 2:
        p[:, k:] = action[:, k:]  # not rounded to float32, which may be below a threshold that it equals
    return p


def encode_regions(
    policy: Any,
    base: Hasher,
    features: NDArray[np.float32],
    regions: NDArray[np.float32] | None,
    *,
    threshold: float = 0.5,
    sequential: bool = False,
    batch_size: int = 1024,
) -> CodeSets:
    """Return every image's own code and the codes of the regions that the policy keeps (MCH, section 4.3).

    The statistics of ``VecNormalize`` are applied as in :func:`encode`.

    Args:
        policy: anything with ``keep_probability(observation)``, which returns p in [0, 1] for each of n observations; a
            Stable-Baselines3 model or anything with its ``predict``, whose actions are the probabilities 0 and 1; or a
            callable that maps a batch of observations to probabilities or actions (n,). A policy whose
            ``observation_space`` is a ``Box`` gets observations as of an environment with ``flat=True``.
        base: the fitted hasher that the policy was trained with.
        features: float32 (n, D), whole images, on the scale the policy was trained on.
        regions: float32 (n, R, D), their regions (``dataset.regions``: four corners and the centre).
        threshold: xi; a region's code is kept where p >= xi. 0 keeps all.
        sequential: offer the regions in turn and add ``kept`` to the observation, as the environment does with
            ``regions_per_episode`` above 1.
        batch_size: images encoded at once.

    Returns:
        n code sets of at most 1 + R different codes, the image's own first; equal codes are kept once.

    Raises:
        DataError: without regions; the message names the command that extracts them.
        ValueError: for a threshold outside [0, 1], features and regions of shapes that do not match each other or the
            base, or a policy that returns anything but n numbers in [0, 1].
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is a probability, from 0 to 1, got {threshold}")
    words, p = _offer(policy, base, features, regions, threshold if sequential else None, batch_size)
    return CodeSets(words, p >= threshold, base.bits)


def keep_probabilities(
    policy: Any,
    base: Hasher,
    features: NDArray[np.float32],
    regions: NDArray[np.float32] | None,
    *,
    batch_size: int = 1024,
) -> tuple[codes.Words, NDArray[np.float64]]:
    """Return the codes of images and their regions, and the probability of keeping each: one pass for all thresholds.

    ``CodeSets(words, p >= xi, base.bits)`` equals :func:`encode_regions` with ``threshold=xi``. Arguments and errors as
    there; regions are not offered in turn, because observations would then depend on the threshold.

    Returns:
        words: uint64 (n, 1 + R, W), packed codes, the image's own first.
        p: float64 (n, 1 + R), P(keep); 1 for the image's own.
    """
    return _offer(policy, base, features, regions, None, batch_size)


def _offer(
    policy: Any, base: Hasher, features: Any, regions: Any, threshold: float | None, batch_size: int
) -> tuple[codes.Words, NDArray[np.float64]]:
    """Return packed codes (n, 1 + R, W) and keep probabilities (n, 1 + R); with a threshold offer regions in turn."""
    policy = _as_trained(policy)
    if regions is None:
        raise DataError(f"the images have no regions (dataset.regions): {REGIONS_COMMAND} extracts them")
    features, regions = np.asarray(features, np.float32), np.asarray(regions, np.float32)
    if regions.ndim != 3 or features.ndim != 2 or regions.shape[::2] != features.shape:
        raise ValueError(f"features must be (n, D) and regions (n, R, D), got {features.shape} and {regions.shape}")
    if not len(features):
        raise ValueError(f"there is no image to encode: features have shape {features.shape}")
    batch_size = check_integer("batch_size", batch_size)
    (n, count, dim), parts, sequential = regions.shape, [], threshold is not None
    space = region_keep.RegionKeepTask(regions_per_episode=1 + sequential).observation_space(dim, base.bits)
    for start in range(0, n, batch_size):
        image, offered = features[start : start + batch_size], regions[start : start + batch_size]
        words = codes.pack(base.encode(np.concatenate([image[:, None], offered], axis=1).reshape(-1, dim)))
        words = words.reshape(len(image), 1 + count, -1)
        p = np.ones(words.shape[:2])
        for r in range(1, 1 + count):
            kept = words[:, :1]
            if sequential:
                kept = CodeSets(words[:, :r], p[:, :r] >= threshold, base.bits).filled
            seen = region_keep.observation(
                image, offered[:, r - 1], kept, words[:, r], base.bits, sequential=sequential
            )
            p[:, r] = _keep_probability(policy, _as_observed(policy, seen, space, "features and base"), len(image))
        parts.append((words, p))
    words, p = (np.concatenate(part) for part in zip(*parts, strict=True))
    return words, p


def _as_observed(policy: Any, seen: Observation, space: spaces.Dict, arguments: str) -> Any:
    """Return observations in the form that the policy was trained on: a dict, or an array as with ``flat=True``.

    Raises:
        ValueError: for a policy that was trained on others; the message names the ``arguments`` that decide.
    """
    trained = getattr(policy, "observation_space", None)
    if isinstance(trained, spaces.Box):
        if trained.shape[-1:] != (spaces.flatdim(space),):
            raise _other_observations(f"of shape {trained.shape}", f"({spaces.flatdim(space)},)", arguments)
        return flatten(seen, space)
    if isinstance(trained, spaces.Dict):
        for key in space.keys() & trained.keys():
            sizes = [getattr(parts.get(key), "n", getattr(parts.get(key), "shape", None)) for parts in (trained, space)]
            if sizes[0] != sizes[1]:
                raise _other_observations(f"whose {key!r} is of size {sizes[0]}", sizes[1], arguments)
    return seen


def _other_observations(trained: str, given: Any, arguments: str) -> ValueError:
    return ValueError(
        f"the policy was trained on observations {trained}, but here it is {given}: give the {arguments} that it was "
        "trained with"
    )


def _keep_probability(policy: Any, seen: Any, n: int) -> NDArray[np.float64]:
    if hasattr(policy, "keep_probability"):
        p = policy.keep_probability(seen)
    elif hasattr(policy, "predict"):
        p, _ = policy.predict(seen, deterministic=True)
    else:
        p = policy(seen)
    p = np.asarray(p, np.float64)
    if p.shape != (n,):
        raise ValueError(f"the policy must return {n} probabilities or actions, got shape {p.shape}")
    if not ((p >= 0) & (p <= 1)).all():
        wrong = p[~((p >= 0) & (p <= 1))][0]
        raise ValueError(f"the policy must return numbers from 0 to 1, got {wrong}")
    return p


class _Normalizing:
    """A Stable-Baselines3 model with the VecNormalize statistics under which it was trained."""

    def __init__(self, model: Any, statistics: Any) -> None:
        self.model, self.statistics = model, statistics
        self.observation_space, self.action_space = model.observation_space, model.action_space

    def predict(self, observation: Any, **rest: Any) -> Any:
        """Return the model's prediction for observations that are not normalised yet."""
        return self.model.predict(self.statistics.normalize_obs(observation), **rest)


def _as_trained(policy: Any) -> Any:
    """Return the policy with the normalisation of its training environment, so that it takes unwrapped observations.

    Raises:
        ValueError: for a model whose environment has a wrapper that changes observations in another way.
    """
    if not (hasattr(policy, "get_env") and hasattr(policy, "get_vec_normalize_env")):
        return policy
    venv = policy.get_env()
    while hasattr(venv, "venv"):  # the wrappers of Stable-Baselines3
        venv = venv.venv
    layer = getattr(venv, "envs", None)  # a vector environment in HashVecEnv, a list in DummyVecEnv
    layer = layer[0] if isinstance(layer, list) else layer
    wrappers = (gym.ObservationWrapper, gym.vector.VectorObservationWrapper)
    while isinstance(layer, (gym.Wrapper, gym.vector.VectorWrapper)):
        name = type(layer).__name__
        if isinstance(layer, wrappers) and name not in _SAME_NUMBERS:
            raise ValueError(
                f"the model was trained on observations changed by {name}, which encoding does not apply: give a "
                "function that changes observations in the same way and calls model.predict"
            )
        layer = layer.env
    statistics = policy.get_vec_normalize_env()
    return policy if statistics is None else _Normalizing(policy, statistics)
