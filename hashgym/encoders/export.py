"""Writing encoders: a trained head becomes an ONNX file, to which its backbone can be added."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hashgym.data.cache import sync
from hashgym.encoders.encoder import FORMAT, KEY, seal
from hashgym.features.runtime import TOLERANCE, open_session

if TYPE_CHECKING:
    import torch
    from onnx import ModelProto

__all__ = ["write"]

_PACKAGES = ("hashgym", "numpy", "onnx", "onnxruntime", "torch")


def write(
    path: str | Path,
    head: torch.nn.Module,
    *,
    dim: int,
    bits: int,
    group_bits: int | None = None,
    regions: int = 0,
    sigma: float | None = None,
    threshold: float | None = None,
    source: Mapping[str, Any],
    center: NDArray[np.float32] | None = None,
    scale: NDArray[np.float32] | None = None,
    backbone: Mapping[str, Any] | None = None,
) -> None:
    """Write an encoder of features: standardisation and head in one ONNX file, atomically.

    Args:
        path: the file to write; one that exists is replaced.
        head: maps standardised features, float32 (n, D), to margins (n, q), above 0 where a bit is 1; with regions
            (n, V, D), the whole image first, V from 1 to 1 + regions, to margins (n, V, q) and probabilities to keep
            (n, V), 1 for the whole image.
        dim: D, the number of features.
        bits: q, the length of a code.
        group_bits: k, the group length of a policy that acts on groups.
        regions: number of an image's regions besides the whole: 0 or 5.
        sigma: ratio of a region's side to the image's, in (0, 1], with regions.
        threshold: xi, in [0, 1]: from which probability on a code is kept, with regions.
        source: where the head comes from (method, settings, data), as JSON knows it.
        center: float32 (D,), subtracted from the features; None where the head takes them as extracted.
        scale: float32 (D,), divided by, above 0.
        backbone: the provenance of the backbone that made the features, where it is known.

    Raises:
        ValueError: for arguments that contradict each other or the head, or where onnx is not installed.
    """
    _require_onnx()
    if regions not in (0, 5):
        raise ValueError(f"regions must be 5 (corners and centre) or 0, got {regions}")
    if (regions > 0) != (sigma is not None) or (regions > 0) != (threshold is not None):
        raise ValueError(f"sigma and threshold belong to regions: got {regions=}, {sigma=}, {threshold=}")
    if sigma is not None and not 0 < sigma <= 1:
        raise ValueError(f"sigma must be in (0, 1], got {sigma}")
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be in [0, 1], got {threshold}")
    described = {
        "format": FORMAT,
        "takes": "features",
        "bits": bits,
        "group_bits": group_bits,
        "dim": dim,
        "regions": regions,
        "sigma": sigma,
        "threshold": threshold,
        "backbone": None if backbone is None else dict(backbone),
        "preprocess": None,
        "source": dict(source),
        "versions": _versions(),
    }
    _save(path, _head_model(head, dim, bits, regions, center, scale), described)


def _head_model(
    head: torch.nn.Module,
    dim: int,
    bits: int,
    regions: int,
    center: NDArray[np.float32] | None,
    scale: NDArray[np.float32] | None,
) -> ModelProto:
    import onnx
    import torch

    from hashgym.features.engines import to_onnx

    if (center is None) != (scale is None):
        raise ValueError("center and scale belong together: give both or neither")
    for name, values in (("center", center), ("scale", scale)):
        if values is not None and (np.shape(values) != (dim,) or not np.isfinite(values).all()):
            raise ValueError(f"{name} must be {dim} finite numbers, float32 ({dim},), got shape {np.shape(values)}")
    if scale is not None and not (np.asarray(scale) > 0).all():
        raise ValueError("scale must be above 0")

    class Whole(torch.nn.Module):
        """From features as extracted to bits, margins, and with regions keep probabilities."""

        def __init__(self) -> None:
            super().__init__()
            self.head = copy.deepcopy(head).cpu()
            if center is not None:
                self.register_buffer("center", torch.tensor(np.asarray(center, np.float32)))
                self.register_buffer("scale", torch.tensor(np.asarray(scale, np.float32)))

        def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
            if center is not None:
                features = (features - self.get_buffer("center")) / self.get_buffer("scale")
            result = self.head(features)
            margin, *keep = result if regions else (result,)
            margin = margin.float()
            return margin > 0, margin, *(p.float() for p in keep)

    whole = Whole().eval()
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 1 + regions), (1, 1), (2, regions)] if regions else [(3,), (1,)]
    examples = [torch.randn(*shape, dim, generator=generator) for shape in shapes]
    outputs, axes = ("bits", "margin", "keep")[: 3 if regions else 2], {0: "n", 1: "V"} if regions else {0: "n"}
    try:
        model = to_onnx(whole, examples[0], {"features": axes}, dict.fromkeys(outputs, axes))
        session = open_session(model, 1)
        for example in examples:
            with torch.inference_mode():
                expected = [y.numpy() for y in whole(example)]
            found = session.run(None, {"features": example.numpy()})
            _compare_outputs(expected[1:], found[1:], tuple(example.shape[:-1]), bits)
    except Exception as error:  # exporters and runtimes raise all sorts
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{type(head).__name__} cannot be exported: {reason}") from error
    return onnx.load_from_string(model)


def _compare_outputs(
    expected: Sequence[NDArray[np.float32]], found: Sequence[NDArray[np.float32]], shape: tuple[int, ...], bits: int
) -> None:
    """Refuse a head of other outputs than it must have, or one that ONNX Runtime understands otherwise."""
    for name, wanted, x, y in zip(("margin", "keep"), ((*shape, bits), shape), expected, found, strict=False):
        if x.shape != wanted:
            raise ValueError(f"its {name} has shape {x.shape} for features {(*shape, 'D')}, {wanted} is wanted")
        if not np.isfinite(x).all():
            raise ValueError(f"its {name} is NaN or infinite")
        if y.shape != wanted or np.abs(x - y).max() > TOLERANCE * max(np.abs(x).max(), 1e-6):
            raise ValueError(f"its {name} from ONNX Runtime differs from torch's for features {(*shape, 'D')}")
    if len(expected) > 1 and not (expected[1][:, 0] == 1).all():
        raise ValueError("its keep is not 1 for the whole image")


def _save(path: str | Path, model: ModelProto, described: Mapping[str, Any]) -> None:
    """Seal a model with its description and put it in place at once."""
    import onnx

    target = Path(path)
    onnx.checker.check_model(model)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {KEY: json.dumps(described, sort_keys=True, allow_nan=False)})
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(seal(model.SerializeToString(deterministic=True)))
        sync(temporary)
        os.replace(temporary, target)
        sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _require_onnx() -> None:
    if absent := [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]:
        raise ValueError(f"encoders need {' and '.join(absent)}: pip install 'hashgym[onnx]'")


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
