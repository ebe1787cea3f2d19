"""Image-text models of OpenCLIP as backbones: ``open_clip:NAME/TAG``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hashgym.checks import closest
from hashgym.features.backbone import Fit, Stretch
from hashgym.features.library_models import LibraryModel, explained, frozen, state_digest
from hashgym.optional import require

__all__ = ["load", "preprocess_of"]

_ELSEWHERE = ("hf-hub:", "local-dir:")  # open_clip's own prefixes of names, which have no tag


def load(name: str, size: int | None, weights: str | None) -> LibraryModel:
    """Return a model of OpenCLIP: its L2-normalised embeddings of pictures, and of texts.

    Args:
        name: ``NAME/TAG``: a model, such as ViT-B-32, and the tag of its weights, or the file of a checkpoint; or
            ``hf-hub:OWNER/NAME`` or ``local-dir:FOLDER``.
        size: side of the picture in pixels; None for the model's own.
        weights: the file of a checkpoint, instead of the tag.

    Raises:
        ValueError: for an unknown model or tag, or preprocessing that cannot be expressed.
        DataError: for weights that cannot be loaded.
    """
    full = f"open_clip:{name}"
    open_clip = require("open_clip", f"the backbone {full}")
    elsewhere = name.startswith(_ELSEWHERE)
    model_name, _, tag = (name, "", "") if elsewhere else name.partition("/")
    if not elsewhere:
        models = open_clip.list_models()
        if model_name not in models:
            raise ValueError(
                f"open_clip has no model {model_name!r}{closest(model_name, models)}: `open_clip.list_models()` lists "
                "them; write open_clip:NAME/TAG"
            )
        tag = weights or tag
        tags = open_clip.list_pretrained_tags_by_model(model_name)
        if tag.lower() not in tags and not Path(tag).is_file():
            problem = f"there is no tag or file {tag!r}" if tag else "there is no tag"
            raise ValueError(
                f"{full} has no weights, as {problem}: write open_clip:{model_name}/FILE or --weights FILE with the "
                "file of a checkpoint"
                + (f", or open_clip:{model_name}/TAG with one of {', '.join(tags)}" if tags else "")
            )
    elif weights is not None:
        raise ValueError(f"{full} has its weights with it: leave out --weights")
    remedy = (
        "Without internet access, get its checkpoint on another machine and name the file: "
        "open_clip:NAME/FILE, or --weights FILE"
    )
    with explained(full, remedy):
        model = open_clip.create_model(
            model_name, pretrained=tag or None, device="cpu", force_image_size=size, require_pretrained=True
        )
    model = frozen(model)
    config = model.visual.preprocess_cfg

    @cache
    def tokenizer() -> Any:
        with explained(f"the tokenizer of {full}", "Run it once with internet access, which stores it"):
            return open_clip.get_tokenizer(model_name)

    def texts(batch: Sequence[str]) -> Tensor:
        embedded: Tensor = model.encode_text(tokenizer()(list(batch)))
        return embedded

    return LibraryModel(
        name=full,
        images=_Images(model),
        preprocess=preprocess_of(config, full),
        mean=[float(x) for x in config["mean"]],
        std=[float(x) for x in config["std"]],
        weights=Path(tag).name if Path(tag).is_file() else tag or name,
        digest=state_digest(model.state_dict(), full),
        texts=texts,
    )


class _Images(nn.Module):
    """The embedding of pictures, L2-normalised: float32 (n, 3, size, size) -> (n, D)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.visual = model.visual

    def forward(self, pictures: Tensor) -> Tensor:
        embedded = self.visual(pictures)
        if not isinstance(embedded, torch.Tensor):  # CoCa also returns its tokens
            embedded = embedded[0]
        return nn.functional.normalize(embedded)


def preprocess_of(config: dict[str, Any], name: str) -> Stretch | Fit:
    """Return the preprocessing for evaluation that an OpenCLIP model's configuration asks for.

    Raises:
        ValueError: if it is neither :class:`Stretch` nor :class:`Fit`.
    """
    size, mode = config["size"], config["resize_mode"]
    sides = set(size) if isinstance(size, Sequence) else {size}
    interpolation = "bilinear" if config["interpolation"] == "bilinear" else "bicubic"  # random means bicubic here
    if len(sides) == 1:
        side = int(sides.pop())
        if mode == "shortest":
            return Fit(side, side, interpolation)
        if mode == "squash":
            return Stretch(side, interpolation)
    raise ValueError(
        f"the preprocessing of {name} (size {size}, resize mode {mode!r}) is not one that hashgym has, which is a "
        "square by resize mode 'shortest' or 'squash': choose another model"
    )
