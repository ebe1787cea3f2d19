"""Datasets: features, labels and splits."""

from __future__ import annotations

from pathlib import Path

from hashgym.data.dataset import DataError, HashingDataset

__all__ = ["DataError", "HashingDataset", "load"]


def load(source: str | Path | HashingDataset) -> HashingDataset:
    """Load a dataset."""
    if isinstance(source, HashingDataset):
        return source
    from hashgym.data import digits

    return digits.load()
