"""Learning to hash as reinforcement learning."""

__version__ = "0.1.0"
