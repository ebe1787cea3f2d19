"""Networks of timm as backbones: ``timm:NAME``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from hashgym.checks import closest
from hashgym.features.backbone import Fit, Stretch
from hashgym.features.library_models import LibraryModel, explained, frozen, state_digest
from hashgym.features.weights import fill, read
from hashgym.optional import require

__all__ = ["load", "preprocess_of"]

_ELSEWHERE = ("hf-hub:", "hf_hub:", "local-dir:")  # timm's own prefixes of names


def load(name: str, size: int | None, weights: str | None) -> LibraryModel:
    """Return a network of timm without its classifier: the pooled features.

    Args:
        name: of a model of timm, such as ``vit_small_patch14_dinov2.lvd142m``.
        size: side of the picture in pixels; None for the model's own.
        weights: a file of a state_dict; None for timm's pretrained weights.

    Raises:
        ValueError: for an unknown model, a size it does not take, or preprocessing that cannot be expressed.
        DataError: for weights that cannot be loaded.
    """
    full = f"timm:{name}"
    timm = require("timm", f"the backbone {full}")
    if not name.startswith(_ELSEWHERE) and not timm.is_model(name):
        close = closest(name.partition(".")[0], timm.list_models())
        raise ValueError(f"timm has no model {name!r}{close}: `timm.list_models()` lists them")
    remedy = "Without internet access, get its weights on another machine and name the file with --weights"
    with explained(full, remedy):
        model = timm.create_model(name, pretrained=weights is None, num_classes=0)
    if weights is not None:
        state = read(Path(weights))
        heads = model.pretrained_cfg.get("classifier") or ()
        for head in (heads,) if isinstance(heads, str) else heads:
            for key in [key for key in state if key.startswith(f"{head}.")]:
                del state[key]
        fill(model, state, Path(weights), full)
    model = frozen(model)
    digest = state_digest(model.state_dict(), full)
    config = timm.data.resolve_model_data_config(model)
    if size not in (None, config["input_size"][-1]) and model.pretrained_cfg.get("fixed_input_size"):
        if not hasattr(model, "set_input_size"):
            raise ValueError(f"{full} takes pictures of {config['input_size'][-1]} pixels only: leave out the size")
        try:
            model.set_input_size(img_size=size)
        except (AssertionError, RuntimeError, ValueError) as error:
            raise ValueError(f"{full} does not take pictures of {size} x {size} pixels: {error}") from error
    return LibraryModel(
        name=full,
        images=model,
        preprocess=preprocess_of(config, size, full),
        mean=[float(x) for x in config["mean"]],
        std=[float(x) for x in config["std"]],
        weights=name if weights is None else Path(weights).name,
        digest=digest,
    )


def preprocess_of(config: dict[str, Any], size: int | None, name: str) -> Stretch | Fit:
    """Return the preprocessing for evaluation that a timm model's data configuration asks for.

    Raises:
        ValueError: if it is neither :class:`Stretch` nor :class:`Fit`.
    """
    (channels, *sides), mode, part = config["input_size"], config["crop_mode"], config["crop_pct"]
    if channels == 3 and sides[0] == sides[1]:
        side = size or sides[0]
        if mode == "center":
            return Fit(side, math.floor(side / part), config["interpolation"])
        if mode == "squash" and math.floor(side / part) == side:
            return Stretch(side, config["interpolation"])
    raise ValueError(
        f"the preprocessing of {name} (input {config['input_size']}, crop mode {mode!r}, crop {part}) is not one that "
        "hashgym has, which is a square of three channels, fitted or stretched: choose another model"
    )
