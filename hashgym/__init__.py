"""Learning to hash as reinforcement learning: environments, rewards, agents, hash functions and metrics.

``import hashgym`` registers ``BitGroupHashing-v0`` and ``RegionKeep-v0`` with Gymnasium. It is light: torch,
scikit-learn and matplotlib are imported by the parts that need them.
"""

from __future__ import annotations

from hashgym.encoding import encode, encode_regions, keep_probabilities
from hashgym.envs import register_envs

__version__ = "0.1.0"
__all__ = ["__version__", "encode", "encode_regions", "keep_probabilities", "register_envs"]

register_envs()
