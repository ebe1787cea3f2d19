"""The environments and their registration with Gymnasium."""

from __future__ import annotations

import gymnasium as gym

__all__ = ["register_envs"]

_ENVS = {
    "BitGroupHashing-v0": (
        "hashgym.envs.bit_group_hashing:BitGroupHashingEnv",
        "hashgym.envs.vector:make_vector_env",
    ),
    "MultiCodeHashing-v0": (
        "hashgym.envs.multi_code_hashing:MultiCodeHashingEnv",
        "hashgym.envs.multi_code_hashing:MultiCodeHashingVectorEnv",
    ),
    "RegionKeep-v0": ("hashgym.envs.region_keep:RegionKeepEnv", "hashgym.envs.region_keep:RegionKeepVectorEnv"),
}


def register_envs() -> None:
    """Register every environment under its plain id and under ``hashgym/``; calling it again does nothing."""
    for name, (scalar, vector) in _ENVS.items():
        for env_id in (name, f"hashgym/{name}"):
            if env_id not in gym.registry:
                # No max_episode_steps: the horizon is part of the task, so episodes terminate, never truncated.
                gym.register(id=env_id, entry_point=scalar, vector_entry_point=vector)
