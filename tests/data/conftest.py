"""Small pictures for the readers' tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def picture() -> Callable[..., Path]:
    """Writes a small picture of one colour, with the folders above it."""

    def write(path: Path, colour: tuple[int, int, int] = (200, 30, 30), size: tuple[int, int] = (6, 4)) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, colour).save(path)
        return path

    return write
