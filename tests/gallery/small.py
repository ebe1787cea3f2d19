"""Small encoders and pictures for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


def write_encoder(path: Path, regions: bool = False, bits: int = 48) -> Path:
    """An encoder whose bits say which of the first pixels of a picture of 4 x 4 are bright."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from hashgym.encoders import write
    from hashgym.features import make

    class Head(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            margin = x[..., :bits] - 0.5
            return (margin, torch.ones_like(x[..., 0])) if regions else margin

    backbone, work = make("pixels", size=4), path.with_name(f"{path.name}.features")
    several: dict[str, Any] = {"regions": 5, "sigma": 0.5, "threshold": 0.5} if regions else {}
    write.write(work, Head(), dim=48, bits=bits, source={}, backbone=backbone.provenance, **several)
    write.add_backbone(work, path, backbone)
    work.unlink()
    return path


def picture(seed: int, width: int = 32, height: int = 24) -> Image.Image:
    """Sixteen fields of loud colours, as bits of the encoder."""
    fields = np.random.default_rng(seed).integers(0, 2, (4, 4, 3)).astype(np.uint8) * 200 + 20
    return Image.fromarray(fields).resize((width, height), Image.Resampling.NEAREST)


def write_pictures(folder: Path, names: list[str], first: int = 0) -> Path:
    """Different pictures under these names."""
    for seed, name in enumerate(names, first):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("wb") as file:
            picture(seed).save(file, "PNG")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its bytes."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
