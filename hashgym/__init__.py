"""Learning to hash as reinforcement learning: environments, rewards, agents, hash functions and metrics.

``import hashgym`` registers ``BitGroupHashing-v0``, ``MultiCodeHashing-v0`` and ``RegionKeep-v0`` with Gymnasium.
torch, scikit-learn, matplotlib and ONNX Runtime are imported only by the parts that need them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hashgym import startup  # noqa: F401 - before imports that take time
from hashgym.envs import register_envs
from hashgym.moved import install
from hashgym.policies import encode, encode_codes, encode_regions, keep_probabilities

if TYPE_CHECKING:
    from hashgym.encoders import load_encoder

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "encode",
    "encode_codes",
    "encode_regions",
    "keep_probabilities",
    "load_encoder",
    "register_envs",
]

register_envs()
install()


def __getattr__(name: str) -> Any:
    if name == "load_encoder":
        from hashgym.encoders import load_encoder

        return load_encoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
