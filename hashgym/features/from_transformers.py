"""Models of the library transformers as backbones: ``hf:NAME_OR_PATH``, such as CLIP, SigLIP and DINOv2."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn

from hashgym.features.backbone import INTERPOLATIONS, Fit, Stretch
from hashgym.features.library_models import LibraryModel, explained, frozen, state_digest
from hashgym.optional import require
from hashgym.storage.errors import DataError

__all__ = ["load", "preprocess_of"]

_LEVELS = 1.0  # of 256: greatest mean difference from the library's preprocessing, which may resize with torch


def load(name: str, size: int | None, weights: str | None) -> LibraryModel:
    """Return a model of transformers: its features of pictures, and of texts if it is an image-text model.

    The features are ``get_image_features``, L2-normalised, if the model has these and ``get_text_features``; else the
    pooler's output; else the mean of the last hidden state.

    Args:
        name: of a model on the Hugging Face Hub, or a folder that save_pretrained wrote, with its image processor.
        size: side of the picture in pixels; None for the model's own.
        weights: a folder that save_pretrained wrote, instead of the name.

    Raises:
        ValueError: for preprocessing that cannot be expressed.
        DataError: for a model or weights that cannot be loaded.
    """
    full, place = f"hf:{name}", weights or name
    transformers = require("transformers", f"the backbone {full}")
    if weights is not None and not Path(weights).is_dir():
        raise DataError(f"no model at {weights}: name a folder that save_pretrained wrote")
    remedy = (
        "Without internet access, save the model and its processor on another machine with save_pretrained, and name "
        "the folder: hf:FOLDER, or --weights FOLDER"
    )
    with explained(full, remedy), _without_progress(transformers.utils.logging):
        processor = transformers.AutoImageProcessor.from_pretrained(place)
        model, report = transformers.AutoModel.from_pretrained(
            place, attn_implementation="eager", output_loading_info=True
        )
    missing = sorted(report["missing_keys"])
    if others := [key for key in missing if not key.startswith("pooler.")]:
        raise DataError(f"the weights of {full} lack {', '.join(others)[:200]}: get them again")
    if missing:  # a classifier's weights have no pooler, which would be drawn at random
        model.pooler = None
    if report.get("mismatched_keys"):
        raise DataError(f"{full} holds weights of another model than its configuration: get it again")
    preprocess, mean, std = preprocess_of(processor, size, full)
    model = frozen(model)
    is_image_text = hasattr(model, "get_image_features") and hasattr(model, "get_text_features")

    @cache
    def tokenizer() -> Any:
        with explained(f"the tokenizer of {full}", remedy):
            return transformers.AutoTokenizer.from_pretrained(place)

    def texts(batch: Sequence[str]) -> Tensor:
        length = model.config.text_config.max_position_embeddings
        tokens = tokenizer()(list(batch), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        known = inspect.signature(model.get_text_features).parameters
        return _tensor(model.get_text_features(**{key: value for key, value in tokens.items() if key in known}))

    return LibraryModel(
        name=full,
        images=_Embedding(model) if is_image_text else _Features(model),
        preprocess=preprocess,
        mean=mean,
        std=std,
        weights=Path(place).name if Path(place).is_dir() else place,
        digest=state_digest(model.state_dict(), full),
        texts=texts if is_image_text else None,
    )


@contextmanager
def _without_progress(logging: Any) -> Iterator[None]:
    """Hide the progress bars of transformers."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _tensor(found: Any) -> Tensor:
    """Return an embedding: of transformers 5 in an output object, before it the tensor itself."""
    embedded: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return embedded


class _Embedding(nn.Module):
    """The embedding of pictures of an image-text model, L2-normalised: float32 (n, 3, size, size) -> (n, D)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pictures: Tensor) -> Tensor:
        return nn.functional.normalize(_tensor(self.model.get_image_features(pixel_values=pictures)))


class _Features(nn.Module):
    """The pooler's output, else the mean of the last hidden state: float32 (n, 3, size, size) -> (n, D)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pictures: Tensor) -> Tensor:
        output = self.model(pixel_values=pictures)
        pooled: Tensor | None = getattr(output, "pooler_output", None)
        if pooled is not None:
            return pooled.flatten(1)
        hidden: Tensor = output.last_hidden_state  # tokens (n, T, D) or maps (n, D, H, W)
        return hidden.mean(1) if hidden.ndim == 3 else hidden.flatten(2).mean(2)


def preprocess_of(processor: Any, size: int | None, name: str) -> tuple[Stretch | Fit, list[float], list[float]]:
    """Return the preprocessing of an image processor, and mean and deviation of values in [0, 1].

    It is compared with the processor's own result on a picture, since some processors give their settings a meaning
    of their own.

    Raises:
        ValueError: if it is neither :class:`Stretch` nor :class:`Fit`.
    """
    own, unit = _own_preprocess(processor), 255.0
    if getattr(processor, "do_rescale", True):
        unit = 255.0 * processor.rescale_factor
    mean, std = [0.0] * 3, [1 / unit] * 3
    if getattr(processor, "do_normalize", True):
        mean, std = ([float(x) / unit for x in values] for values in (processor.image_mean, processor.image_std))
    if own is None or not _agrees(processor, own, mean, std):
        raise ValueError(
            f"the preprocessing of {name} ({type(processor).__name__}) is not one that hashgym has, which is a square "
            "of three channels, stretched, or fitted and cropped: choose another model"
        )
    if size is None:
        return own, mean, std
    if isinstance(own, Fit):
        return Fit(size, round(size * own.short_side / own.size), own.interpolation), mean, std
    return Stretch(size, own.interpolation), mean, std


def _own_preprocess(processor: Any) -> Stretch | Fit | None:
    """Return the preprocessing that the settings of an image processor describe; None for any other."""
    resample = getattr(processor, "resample", None)
    if resample is None or not getattr(processor, "do_resize", False):
        return None
    # An enumeration of Pillow or its number, or one of torchvision whose values are names.
    interpolation = resample.value if hasattr(resample, "value") else resample
    if isinstance(interpolation, int):
        interpolation = Image.Resampling(interpolation).name.lower()
    if interpolation not in INTERPOLATIONS:
        return None
    size = _sides(processor.size)
    crop = _sides(processor.crop_size) if getattr(processor, "do_center_crop", False) else None
    if set(size) == {"shortest_edge"} and crop is not None and crop.get("height") == crop.get("width"):
        return Fit(crop["height"], size["shortest_edge"], interpolation)
    if set(size) == {"height", "width"} and size["height"] == size["width"] and crop in (None, size):
        return Stretch(size["height"], interpolation)
    return None


def _sides(size: Any) -> dict[str, int]:
    """Return a size of an image processor: the entries that are set."""
    entries = size if isinstance(size, Mapping) else vars(size) if hasattr(size, "__dict__") else {}
    return {key: int(value) for key, value in entries.items() if value is not None}


def _agrees(processor: Any, preprocess: Stretch | Fit, mean: Sequence[float], std: Sequence[float]) -> bool:
    """Return whether an image processor makes of a picture what the preprocessing makes, but for rounding."""
    small = np.random.default_rng(0).integers(0, 256, (5, 9, 3), np.uint8)
    picture = Image.fromarray(small).resize((4 * preprocess.size, 2 * preprocess.size), Image.Resampling.BICUBIC)
    try:
        theirs = np.asarray(processor(images=picture, return_tensors="np")["pixel_values"])[0]
    except (KeyError, RuntimeError, TypeError, ValueError):
        return False
    ours = preprocess(picture).transpose(2, 0, 1)
    if theirs.shape != ours.shape:
        return False
    scale, offset = (np.array(values, np.float32).reshape(3, 1, 1) * 255 for values in (std, mean))
    return float(np.abs(theirs * scale + offset - ours).mean()) < _LEVELS
