"""Small models of timm, OpenCLIP and transformers with random weights, saved as their users save them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hashgym.features.torchvision_compat import import_torchvision

CLIP_NAME = "hashgym-test"


def randomized(model: nn.Module) -> nn.Module:
    """Draw all weights again, so that none are 0 and features of different pictures differ."""
    generator = torch.Generator().manual_seed(0)
    for key, tensor in sorted(model.state_dict().items()):
        if not tensor.is_floating_point():
            continue
        if key.endswith("running_var"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        elif tensor.ndim > 1:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * tensor[0].numel() ** -0.5)
        elif tensor.ndim == 1:
            noise = torch.randn(tensor.shape, generator=generator) * 0.2
            tensor.copy_(noise + (1 if key.endswith("weight") else 0))
    return model.eval()


def timm_file(name: str, folder: Path, suffix: str = ".pth", **options: Any) -> tuple[nn.Module, Path]:
    """A model of timm with a classifier, and the file of its weights."""
    import_torchvision()
    timm = pytest.importorskip("timm", reason="timm is not installed")
    model = randomized(timm.create_model(name, pretrained=False, num_classes=7, **options))
    path = folder / f"{name}{suffix}"
    if suffix == ".safetensors":
        pytest.importorskip("safetensors.torch", reason="safetensors is not installed").save_file(
            model.state_dict(), path
        )
    else:
        torch.save(model.state_dict(), path)
    return model, path


def open_clip_file(folder: Path) -> tuple[Any, Path]:
    """An image-text model of OpenCLIP whose name is CLIP_NAME, and the file of its checkpoint."""
    import_torchvision()
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed")
    config = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    (folder / f"{CLIP_NAME}.json").write_text(json.dumps(config), "utf-8")
    open_clip.add_model_config(folder / f"{CLIP_NAME}.json")
    model = randomized(open_clip.create_model(CLIP_NAME))
    path = folder / "clip.pt"
    torch.save(model.state_dict(), path)
    return model, path


VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
WORDS = ["a", "red", "blue", "green", "car", "tree", "dog", "sky", "photo", "of"]


def transformers_folder(kind: str, folder: Path) -> tuple[Any, Path]:
    """A model of transformers in a folder: ``clip``, ``siglip``, ``dinov2``, ``vit``, ``masked`` or ``convnext``."""
    import_torchvision()
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    image = {**VISION, "image_size": 32, "patch_size": 8}
    text = {**VISION, "vocab_size": 32, "max_position_embeddings": 16}
    square = {"height": 32, "width": 32}
    fit = {"size": {"shortest_edge": 32}, "crop_size": square}
    path = folder / kind
    if kind == "clip":
        words = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        config = transformers.CLIPConfig(text_config={**text, **words}, vision_config=image, projection_dim=24)
        model, processor = transformers.CLIPModel(config), transformers.CLIPImageProcessor(**fit)
    elif kind == "siglip":
        config = transformers.SiglipConfig(text_config=text, vision_config=image)
        model, processor = transformers.SiglipModel(config), transformers.SiglipImageProcessor(size=square)
    elif kind == "dinov2":
        config = transformers.Dinov2Config(**{**image, "mlp_ratio": 2})
        model = transformers.Dinov2Model(config)
        processor = transformers.BitImageProcessor(size={"shortest_edge": 36}, crop_size=square)
    elif kind == "vit":
        config = transformers.ViTConfig(**image)
        model = transformers.ViTForImageClassification(config)
        processor = transformers.ViTImageProcessor(size=square, resample=2)
    elif kind == "masked":
        model = transformers.ViTMAEModel(transformers.ViTMAEConfig(**image))
        processor = transformers.ViTImageProcessor(size=square)
    else:
        config = transformers.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])
        model = transformers.ConvNextModel(config)
        processor = transformers.ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=0.5)
    randomized(model)
    model.save_pretrained(path)
    processor.save_pretrained(path)
    if kind in ("clip", "siglip"):
        tokenizer(transformers).save_pretrained(path)
    return model, path


def tokenizer(transformers: Any) -> Any:
    """A tokenizer of whole words."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<start>", "<end>", "<unknown>", *WORDS])}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unknown>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.post_processor = tokenizers.processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<start>", eos_token="<end>", pad_token="<pad>", unk_token="<unknown>"
    )
