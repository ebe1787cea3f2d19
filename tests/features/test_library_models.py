"""Networks of timm, OpenCLIP and transformers against the libraries' own preprocessing and forward pass."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hashgym import features
from hashgym.data import DataError
from hashgym.features import library_models
from hashgym.features.backbone import Fit, Stretch, describe_preprocess, preprocess_of
from tests.features.small_models import CLIP_NAME, open_clip_file, timm_file, transformers_folder

# Both sides resize with Pillow and compute in float32: they differ by the order of sums.
CLOSE = 2e-4


def pictures(*sizes: tuple[int, int]) -> list[Image.Image]:
    """Smooth random pictures, as photos are."""
    rng = np.random.default_rng(1)
    small = [Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8)) for _ in sizes]
    return [image.resize(size, Image.Resampling.BICUBIC) for image, size in zip(small, sizes, strict=True)]


# After resizing their longer side exceeds the crop by an even number of pixels: at an odd one the libraries round the
# corner of the crop differently.
PICTURES = pictures((80, 40), (40, 80), (64, 64), (200, 200))


def of_pictures(backbone: features.Backbone) -> np.ndarray:
    return backbone(np.stack([backbone.preprocess(image) for image in PICTURES]))


def relative(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.abs(a - b).max() / np.abs(b).max())


def check_onnx(backbone: features.Backbone, expected: np.ndarray) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    session = runtime.InferenceSession(backbone.to_onnx())
    batch = np.stack([backbone.preprocess(image) for image in PICTURES])
    assert relative(session.run(["features"], {"pictures": batch})[0], expected) < CLOSE


@pytest.mark.parametrize("runtime", ["torch", "onnx"])
@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext", "test_efficientnet"])
def test_timm(name: str, runtime: str, tmp_path: Path) -> None:
    model, path = timm_file(name, tmp_path)
    timm = sys.modules["timm"]
    backbone = features.make(f"timm:{name}", weights=str(path), device="cpu", runtime=runtime)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    model.reset_classifier(0)
    with torch.inference_mode():
        expected = model(torch.stack([transform(image) for image in PICTURES])).numpy()
    values = of_pictures(backbone)
    assert values.shape == (4, backbone.dim)
    assert relative(values, expected) < CLOSE
    assert relative(values[:1], values[1:2]) > 10 * CLOSE  # the pictures' features differ
    assert (backbone.name, backbone.weights) == (f"timm:{name}", path.name)
    assert backbone.runtime == {"torch": "torch:cpu", "onnx": "onnx"}[runtime]
    check_onnx(backbone, expected)


def test_timm_at_another_size(tmp_path: Path) -> None:
    model, path = timm_file("test_vit", tmp_path)
    backbone = features.make("timm:test_vit", weights=str(path), size=96, device="cpu", runtime="torch")
    model.reset_classifier(0)
    model.set_input_size(img_size=96)
    assert backbone.preprocess == Fit(96, 101, "bicubic")
    batch = np.stack([backbone.preprocess(image) for image in PICTURES])
    with torch.inference_mode():
        expected = model((torch.from_numpy(batch).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5).numpy()
    assert relative(backbone(batch), expected) < CLOSE
    own = features.make("timm:test_vit", weights=str(path), device="cpu", runtime="torch")
    assert own.digest == backbone.digest  # of the weights as they were read
    with pytest.raises(ValueError, match="97 x 97"):
        features.make("timm:test_vit", weights=str(path), size=97, device="cpu")


def test_timm_reads_safetensors(tmp_path: Path) -> None:
    _, path = timm_file("test_vit", tmp_path)
    _, same = timm_file("test_vit", tmp_path, ".safetensors")
    made = [features.make("timm:test_vit", weights=str(file), device="cpu", runtime="torch") for file in (path, same)]
    assert made[0].digest == made[1].digest
    np.testing.assert_array_equal(of_pictures(made[0]), of_pictures(made[1]))
    same.write_bytes(same.read_bytes()[:100])
    with pytest.raises(DataError, match=r"test_vit\.safetensors is damaged"):
        features.make("timm:test_vit", weights=str(same))


@pytest.mark.parametrize("runtime", ["torch", "onnx"])
def test_open_clip(runtime: str, tmp_path: Path) -> None:
    model, path = open_clip_file(tmp_path)
    open_clip = sys.modules["open_clip"]
    backbone = features.make(f"open_clip:{CLIP_NAME}/{path}", device="cpu", runtime=runtime)
    config = open_clip.transform.PreprocessCfg(**model.visual.preprocess_cfg)
    transform = open_clip.transform.image_transform_v2(config, is_train=False)
    with torch.inference_mode():
        expected = model.encode_image(torch.stack([transform(image) for image in PICTURES]), normalize=True).numpy()
    values = of_pictures(backbone)
    assert values.shape == (4, backbone.dim) == (4, 24)
    assert relative(values, expected) < CLOSE
    np.testing.assert_allclose(np.linalg.norm(values, axis=1), 1, rtol=1e-5)
    check_onnx(backbone, expected)
    again = features.make(f"open_clip:{CLIP_NAME}", weights=str(path), device="cpu", runtime="torch")
    assert (again.digest, again.weights) == (backbone.digest, "clip.pt")


def test_texts_of_open_clip(tmp_path: Path) -> None:
    model, path = open_clip_file(tmp_path)
    network = library_models.load(f"open_clip:{CLIP_NAME}/{path}")
    texts = [f"a photo number {i}" for i in range(70)]
    tokens = sys.modules["open_clip"].get_tokenizer(CLIP_NAME)(texts)
    with torch.inference_mode():
        expected = model.encode_text(tokens, normalize=True).numpy()
    np.testing.assert_allclose(network.embed(texts), expected, atol=1e-5)
    for wrong in ([], [" "], "a red car", [3]):
        with pytest.raises(ValueError, match="give one or more texts"):
            network.embed(wrong)


@pytest.mark.parametrize("runtime", ["torch", "onnx"])
@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2", "vit"])
def test_transformers(kind: str, runtime: str, tmp_path: Path) -> None:
    model, path = transformers_folder(kind, tmp_path)
    transformers = sys.modules["transformers"]
    backbone = features.make(f"hf:{path}", device="cpu", runtime=runtime)
    processor = with_pillow(transformers, path)
    with torch.inference_mode():
        x = processor(images=PICTURES, return_tensors="pt")["pixel_values"]
        if kind in ("clip", "siglip"):
            found: Any = model.get_image_features(pixel_values=x)
            found = found if isinstance(found, torch.Tensor) else found.pooler_output
            expected = torch.nn.functional.normalize(found).numpy()
        elif kind == "vit":  # a classifier has no pooler
            expected = model.vit(pixel_values=x).last_hidden_state.mean(1).numpy()
        else:
            expected = model(pixel_values=x).pooler_output.numpy()
    values = of_pictures(backbone)
    assert values.shape == (4, backbone.dim)
    assert relative(values, expected) < CLOSE
    assert relative(values[:1], values[1:2]) > 10 * CLOSE
    assert backbone.weights == kind
    check_onnx(backbone, expected)
    again = features.make(f"hf:{path}", device="cpu", runtime="torch")
    assert again.digest == backbone.digest
    model.save_pretrained(tmp_path / "moved")
    with_pillow(transformers, path).save_pretrained(tmp_path / "moved")
    moved = features.make(f"hf:{path}", weights=str(tmp_path / "moved"), device="cpu", runtime="torch")
    assert (moved.digest, moved.weights) == (backbone.digest, "moved")


def with_pillow(transformers: Any, path: Path) -> Any:
    """The image processor in a folder, resizing with Pillow."""
    try:
        return transformers.AutoImageProcessor.from_pretrained(path, backend="pil")
    except TypeError:
        return transformers.AutoImageProcessor.from_pretrained(path, use_fast=False)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_texts_of_transformers(kind: str, tmp_path: Path) -> None:
    model, path = transformers_folder(kind, tmp_path)
    network = library_models.load(f"hf:{path}")
    texts = ["a red car", "a photo of a blue sky", "tree", "unknown words " * 20]
    tokenizer = sys.modules["transformers"].AutoTokenizer.from_pretrained(path)
    tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=16, return_tensors="pt")
    with torch.inference_mode():
        inputs = {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}
        found: Any = model.get_text_features(**inputs)
        found = found if isinstance(found, torch.Tensor) else found.pooler_output
    np.testing.assert_allclose(network.embed(texts), torch.nn.functional.normalize(found).numpy(), atol=1e-5)


def test_networks_of_pictures_alone_embed_no_texts(tmp_path: Path) -> None:
    _, path = timm_file("test_vit", tmp_path)
    network = library_models.load("timm:test_vit", weights=str(path))
    with pytest.raises(ValueError, match="timm:test_vit has no network for texts: make an index with"):
        network.embed(["a red car"])


def test_a_network_that_masks_parts_of_a_picture_is_rejected(tmp_path: Path) -> None:
    _, path = transformers_folder("masked", tmp_path)
    with pytest.raises(ValueError, match="gives a picture other features at each call"):
        features.make(f"hf:{path}", device="cpu", runtime="torch")


def test_a_network_without_one_vector_a_picture_is_rejected() -> None:
    network = library_models.LibraryModel(
        "timm:maps", torch.nn.Conv2d(3, 2, 1), Stretch(4), [0.0] * 3, [1.0] * 3, "", ""
    )
    with pytest.raises(ValueError, match=r"timm:maps gives a picture features of shape \(2, 4, 4\), not one vector"):
        network.backbone(device="cpu", runtime="torch")


def test_the_model_stays_where_it_is_when_its_network_moves() -> None:
    """On a GPU the pictures that measure the number of features are on the CPU."""
    images = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 4), torch.nn.Flatten())
    network = library_models.LibraryModel("timm:flat", images.eval(), Stretch(4), [0.0] * 3, [1.0] * 3, "", "")
    assert network.backbone(device="meta", runtime="torch").dim == 2
    assert next(images.parameters()).device.type == "cpu"


def test_a_processor_with_rules_of_its_own_is_rejected(tmp_path: Path) -> None:
    _, path = transformers_folder("convnext", tmp_path)  # below 384 pixels it resizes to size / crop_pct, then crops
    with pytest.raises(ValueError, match=r"the preprocessing of hf:.*ConvNextImageProcessor.* is not one that hashgym"):
        features.make(f"hf:{path}")
    _, path = transformers_folder("clip", tmp_path)
    file = path / "preprocessor_config.json"
    for change in ({"do_center_crop": False}, {"do_resize": False}, {"crop_size": {"height": 32, "width": 24}}):
        whole = json.loads(file.read_text("utf-8"))
        file.write_text(json.dumps(whole | change), "utf-8")
        with pytest.raises(ValueError, match="is not one that hashgym has"):
            features.make(f"hf:{path}")
        file.write_text(json.dumps(whole), "utf-8")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, Fit(160, 168, "bicubic")),
        ({"crop_pct": 0.875, "interpolation": "bilinear"}, Fit(160, 182, "bilinear")),
        ({"crop_mode": "squash", "crop_pct": 1.0, "interpolation": "bilinear"}, Stretch(160, "bilinear")),
        ({"crop_mode": "squash"}, None),
        ({"crop_mode": "border"}, None),
        ({"input_size": (3, 160, 128)}, None),
        ({"input_size": (1, 160, 160)}, None),
        ({"interpolation": "random"}, None),
    ],
)
def test_preprocessing_of_timm(change: dict[str, Any], expected: Stretch | Fit | None) -> None:
    from hashgym.features.from_timm import preprocess_of as of_timm

    config = {"input_size": (3, 160, 160), "crop_mode": "center", "crop_pct": 0.95, "interpolation": "bicubic"}
    if expected is not None:
        assert of_timm(config | change, None, "timm:net") == expected
    else:
        with pytest.raises(ValueError, match=r"choose another model|interpolation must be one of"):
            of_timm(config | change, None, "timm:net")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, Fit(224, 224, "bicubic")),
        ({"size": (256, 256), "interpolation": "bilinear"}, Fit(256, 256, "bilinear")),
        ({"resize_mode": "squash"}, Stretch(224)),
        ({"resize_mode": "longest"}, None),
        ({"size": (224, 256)}, None),
    ],
)
def test_preprocessing_of_open_clip(change: dict[str, Any], expected: Stretch | Fit | None) -> None:
    from hashgym.features.from_open_clip import preprocess_of as of_open_clip

    config = {"size": 224, "resize_mode": "shortest", "interpolation": "bicubic"}
    if expected is not None:
        assert of_open_clip(config | change, "open_clip:net") == expected
    else:
        with pytest.raises(ValueError, match="choose another model"):
            of_open_clip(config | change, "open_clip:net")


def test_stretching_by_another_interpolation_is_described() -> None:
    assert describe_preprocess(Stretch(32)) == {"kind": "stretch", "size": 32}  # as before there was a choice
    for preprocess in (Stretch(32), Stretch(32, "bilinear")):
        assert preprocess_of(describe_preprocess(preprocess)) == preprocess
    image = PICTURES[0]
    expected = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(Stretch(32, "bilinear")(image), expected)
    with pytest.raises(ValueError, match="interpolation must be one of nearest"):
        Stretch(32, "random")


def test_a_digest_is_of_names_shapes_and_bytes() -> None:
    weights = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor(3), "c": torch.tensor([True])}
    digest = library_models.state_digest(weights, "net")
    assert digest == library_models.state_digest(dict(reversed(weights.items())), "net")
    others = [
        weights | {"b": weights["b"].reshape(3, 2)},
        weights | {"b": weights["b"].double()},
        weights | {"b": weights["b"] + 1e-6},
        {("d" if key == "a" else key): value for key, value in weights.items()},
    ]
    assert len({digest, *(library_models.state_digest(other, "net") for other in others)}) == 5
    with pytest.raises(DataError, match="the weights b of net hold NaN or infinity"):
        library_models.state_digest(weights | {"b": torch.tensor([1.0, float("nan")])}, "net")


def test_wrong_names_and_weights(tmp_path: Path) -> None:
    _, weights = timm_file("test_vit", tmp_path)
    open_clip_file(tmp_path)
    _, folder = transformers_folder("clip", tmp_path)
    absent = str(tmp_path / "absent")
    for name, options, message in (
        ("timm:", {}, "the backbone timm: names no model: timm:NAME"),
        ("timm:test_vi", {}, r"timm has no model 'test_vi' \(did you mean 'test_vit'\?\)"),
        ("timm:test_vit", {}, "timm:test_vit could not be loaded .*name the file with --weights"),
        ("timm:test_vit", {"weights": absent}, "no weights at .*absent"),
        ("timm:test_resnet", {"weights": str(weights)}, "holds the weights of another network than timm:test_resnet"),
        ("timm:test_vit", {"cut": 2}, "timm:test_vit is the network of another library, .* cannot be cut"),
        ("timm:test_vit", {"size": 0}, "must be at least 1, got 0"),
        ("efficientnet_lite0", {"size": 200_000}, "must be at most 8192, got 200000"),
        ("open_clip:ViT-B-33/openai", {}, r"open_clip has no model 'ViT-B-33' \(did you mean"),
        ("open_clip:ViT-B-32", {}, "open_clip:ViT-B-32 has no weights, as there is no tag: .*/TAG with one of openai"),
        (f"open_clip:{CLIP_NAME}/x.pt", {}, r"there is no tag or file 'x\.pt'"),
        (f"open_clip:{CLIP_NAME}/{weights}", {}, "could not be loaded .*name the file"),
        ("open_clip:hf-hub:a/b", {"weights": absent}, "has its weights with it: leave out --weights"),
        (f"hf:{absent}", {}, "absent could not be loaded .*save_pretrained"),
        (f"hf:{folder}", {"weights": absent}, "no model at .*absent: name a folder"),
        (f"hf:{folder}", {"size": 40}, "does not take pictures of 40 x 40 pixels"),
    ):
        with pytest.raises(ValueError, match=message):
            features.make(name, device="cpu", **options)


@pytest.mark.parametrize(
    ("module", "name", "extra"),
    [
        ("timm", "timm:test_vit", "timm"),
        ("open_clip", "open_clip:ViT-B-32/openai", "open-clip"),
        ("transformers", "hf:openai/clip", "transformers"),
    ],
)
def test_a_missing_library_names_the_command(
    module: str, name: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf"the backbone {name} needs {module}: pip install 'hashgym\[{extra}\]'"):
        features.make(name)
