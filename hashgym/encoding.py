"""Running a trained policy over images: features in, binary codes out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashgym.envs.bit_group_hashing import HashingTask, action_bits, observation

__all__ = ["encode"]


def encode(
    policy: Any,
    features: NDArray[np.float32],
    *,
    bits: int,
    group_bits: int = 12,
    batch_size: int = 4096,
) -> NDArray[np.bool_]:
    """Encode images group by group, as the environment would ask for their codes.

    Args:
        policy: a Stable-Baselines3 model or anything with its ``predict(observation, state=, episode_start=,
            deterministic=)``, which returns ``(actions, state)``; or a callable that maps a batch of observations to
            actions. Actions are bits or probabilities (n, group_bits), or indices (n,), whichever the policy emits;
            a bit is 1 where the action is above 0.5.
        features: float32 (n, D), on the scale the policy was trained on (``env.unwrapped.dataset.features``).
        bits: q, the code length the policy was trained for.
        group_bits: k, the group length the policy was trained for.
        batch_size: images encoded at once.

    Returns:
        bool (n, bits).

    Raises:
        ValueError: for features of another shape or not finite, or actions of another shape.
    """
    features = np.asarray(features)
    if features.ndim != 2:
        raise ValueError(f"features must have shape (n, D), got {features.shape}")
    if not np.isfinite(features).all():
        raise ValueError("features hold NaN or infinity")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    encoded = np.zeros((len(features), bits), np.bool_)
    for start in range(0, len(features), batch_size):
        image = np.asarray(features[start : start + batch_size], np.float32)
        encoded[start : start + batch_size] = _encode_batch(policy, image, bits, group_bits)
    return encoded


def _encode_batch(policy: Any, image: NDArray[np.float32], bits: int, group_bits: int) -> NDArray[np.bool_]:
    state, episode_start = None, np.ones(len(image), np.bool_)
    task = HashingTask(bits=bits, group_bits=group_bits)
    code = np.zeros((len(image), bits), np.bool_)
    for group in range(task.groups):
        start, stop = task.span(group)
        seen = observation(image, code, start, group)
        if hasattr(policy, "predict"):
            action, state = policy.predict(seen, state=state, episode_start=episode_start, deterministic=True)
        else:
            action = policy(seen)
        action = np.asarray(action)
        if action.ndim == 1:  # one number a lane: the index of a group
            acting = HashingTask(bits=bits, group_bits=group_bits, action="index")
        else:
            acting = HashingTask(bits=bits, group_bits=group_bits, action="probability")
        code[:, start:stop] = (action_bits(action, acting, len(image)) > 0.5)[:, : stop - start]
        episode_start = np.zeros(len(image), np.bool_)
    return code
