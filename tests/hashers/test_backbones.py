"""Deep hashers that train a backbone, on activations, views of them, and pixels."""

from __future__ import annotations

import json
import pickle
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.base import clone

from hashgym import checks, features, hashers
from hashgym.data import HashingDataset
from hashgym.features.torchvision_compat import import_torchvision
from hashgym.hashers.deep import DeepHasher, _Maps
from tests.features import tiny

N, CLASSES, BITS = 24, 3, 8
RNG = np.random.default_rng(0)
LABELS = np.eye(CLASSES, dtype=np.uint8)[np.arange(N) % CLASSES]
PIXELS = (RNG.integers(0, 100, (N, 3, 8, 8)) + 70 * LABELS[:, :, None, None]).astype(np.uint8)
VIEWS = RNG.standard_normal((N, 4, 64, 2, 2)).astype(np.float16)
VIEWS[:, :, :CLASSES] += 4 * LABELS[:, None, :, None, None]
IMAGES = {"pixels": PIXELS, "activations": VIEWS[:, 0], "views": VIEWS, "float32": VIEWS.astype(np.float32)}
DEEP = [name for name in hashers.available() if issubclass(type(hashers.make(name)), DeepHasher)]


CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(autouse=True)
def networks(monkeypatch):
    monkeypatch.setitem(features.NETWORKS.entries, "tiny", tiny.load)


def make(name: str = "csq", kind: str = "views", **settings: Any) -> Any:
    backbone = "convnet" if kind == "pixels" else "tiny:2"
    quick = {"bits": BITS, "hidden": 16, "updates": 3, "batch_size": 8, "backbone": backbone, "device": "cpu"}
    return hashers.make(name, **(quick | settings))


def plain(kind: str) -> NDArray[Any]:
    """The images without augmentation, as ``transform`` takes them."""
    return IMAGES[kind][:, 0] if IMAGES[kind].ndim == 5 else IMAGES[kind]


def dataset(images: NDArray[Any], views: NDArray[Any] | None = None, **backbone: Any) -> HashingDataset:
    rows = np.arange(N)
    provenance = {"backbone": backbone} if backbone else {}
    viewed = None if views is None else rows[4:]
    return HashingDataset(
        "maps", images, LABELS, rows[:4], rows[4:], rows[4:], provenance=provenance, views=views, viewed=viewed
    )


def test_all_deep_hashers_are_tested():
    assert set(DEEP) >= {"noseq", "hashnet", "dch", "adsh", "orthohash", "csq", "dsh", "ninh", "cnnh", "mmhh"}
    assert set(DEEP) >= {"ksh-relaxed"}


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("name", DEEP)
def test_they_fit_save_and_load(name, kind, tmp_path):
    state = torch.get_rng_state()
    hasher = make(name, kind).fit(IMAGES[kind], LABELS)
    images = plain(kind)
    values = hasher.transform(images)
    assert values.shape == (N, BITS)
    assert np.isfinite(values).all()
    assert np.isfinite(hasher.losses_).all()
    assert hasher.n_features_in_ == images[0].size
    hasher.save(tmp_path / "hasher.npz")
    loaded = hashers.load(tmp_path / "hasher.npz")
    np.testing.assert_array_equal(loaded.transform(images), values)
    np.testing.assert_array_equal(loaded.encode(images), values > 0)
    assert hasher.is_saved_in(tmp_path / "hasher.npz")
    assert torch.equal(torch.get_rng_state(), state)  # neither fitting nor loading draws from the global generator


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
@pytest.mark.parametrize("kind", ["pixels", "views"])
def test_training_separates_the_classes(kind, device, tmp_path):
    settings = {"updates": 60, "hidden": 0, "input_dropout": 0.0, "device": device}
    hasher = make("orthohash", kind, **settings).fit(IMAGES[kind], LABELS)
    codes = hasher.encode(plain(kind))
    hasher.save(tmp_path / "hasher.npz")
    on_cpu = hashers.load(tmp_path / "hasher.npz").set_params(device="cpu").encode(plain(kind))
    assert (on_cpu != codes).mean() <= (0 if device == "cpu" else 0.05)
    distance = (codes[:, None] != codes[None]).sum(2)
    same = LABELS @ LABELS.T > 0
    assert distance[same].mean() < distance[~same].mean() / 3


@pytest.mark.parametrize("name", DEEP)
def test_the_head_is_trained_first(name):
    """One update of both after it changes little of what the head has learnt."""
    settings = {"hidden": 0, "input_dropout": 0.0} if name != "ninh" else {"input_dropout": 0.0, "dropout": 0.0}
    margins = []
    for head_updates in (0, 200):
        hasher = make(name, updates=1, head_updates=head_updates, learning_rate=3e-3, **settings).fit(VIEWS, LABELS)
        codes = hasher.encode(VIEWS[:, 0])
        distance, same = (codes[:, None] != codes[None]).sum(2), LABELS @ LABELS.T > 0
        margins.append(distance[~same].mean() - distance[same].mean())
    assert margins[1] > margins[0] + 0.5


def test_orthohash_normalises_over_the_images_without_augmentation():
    hasher = make("orthohash").fit(VIEWS, LABELS)
    values = hasher.transform(VIEWS[:, 0])
    np.testing.assert_allclose(values.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(values.std(0), 1, atol=1e-2)


@pytest.mark.parametrize("kind", ["pixels", "views"])
def test_the_seed_decides(kind):
    first, again, other = (make(kind=kind, seed=seed).fit(IMAGES[kind], LABELS) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.backbone_state_, again.backbone_state_)
    np.testing.assert_array_equal(first.transform(plain(kind)), again.transform(plain(kind)))
    assert not np.array_equal(first.transform(plain(kind)), other.transform(plain(kind)))


def test_augmentation_changes_what_is_learnt():
    losses = [make(kind="pixels", augment=augment).fit(PIXELS, LABELS).losses_ for augment in ("crop-flip", "none")]
    assert not np.array_equal(*losses)


def test_the_backbone_has_its_own_learning_rate():
    untouched = make(backbone_learning_rate=1e-12, weight_decay=0.0).fit(VIEWS, LABELS)
    trained = make(backbone_learning_rate=1e-2).fit(VIEWS, LABELS)
    weight = {hasher: hasher._backbone.network.blocks["3"][0].weight.detach() for hasher in (untouched, trained)}
    initial = untouched._new_backbone((64, 2, 2), pretrained=True).network.blocks["3"][0].weight.detach()
    torch.testing.assert_close(weight[untouched], initial, atol=1e-9, rtol=0)
    assert (weight[trained] - initial).abs().max() > 1e-3


def test_copies_pickles_and_settings():
    hasher = make(augment="none").fit(VIEWS, LABELS)
    values = hasher.transform(VIEWS[:, 0])
    copied = pickle.loads(pickle.dumps(hasher))
    assert not hasattr(copied, "_backbone")  # which may be on a GPU
    np.testing.assert_array_equal(copied.transform(VIEWS[:, 0]), values)
    fresh = clone(hasher)
    assert fresh.get_params() == hasher.get_params()
    assert not hasattr(fresh, "backbone_state_")
    np.testing.assert_array_equal(fresh.fit(VIEWS, LABELS).transform(VIEWS[:, 0]), values)
    assert hasher.set_params(backbone_learning_rate=1e-3).backbone_learning_rate == 1e-3
    json.dumps(make(backbone_weights=Path("weights.pth")).get_params())


def test_fitted_again_without_a_backbone_nothing_of_it_remains(tmp_path):
    hasher = make().fit(VIEWS, LABELS).set_params(backbone=None)
    vectors = VIEWS[:, 0, :, 0, 0].astype(np.float32)
    hasher.fit(vectors, LABELS).save(tmp_path / "hasher.npz")
    loaded = hashers.load(tmp_path / "hasher.npz")
    np.testing.assert_array_equal(loaded.transform(vectors), hasher.transform(vectors))
    assert not any("backbone" in name or "image" in name for name in loaded._state())


def test_each_batch_draws_one_view_of_each_image():
    n, count = 5, 3
    numbered = np.arange(n * count, dtype=np.float32).reshape(n, count, 1, 1, 1)
    maps = _Maps(numbered, torch.device("cpu"))
    rows = torch.arange(n).repeat(40)
    torch.manual_seed(0)
    found = maps.batch(rows).reshape(-1).long()
    assert torch.equal(found // count, rows)
    times = torch.bincount(found, minlength=n * count)
    assert times.min() >= 5  # each view of each image, 13 times on average
    assert not torch.equal(maps.batch(rows).reshape(-1).long(), found)
    single = _Maps(numbered[:, 1], torch.device("cpu"))
    assert torch.equal(single.batch(rows).reshape(-1).long(), rows * count + 1)


def test_a_mapped_file_is_never_read_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "BLOCK", 1 << 18)
    path = tmp_path / "views.npy"
    views = np.lib.format.open_memmap(path, "w+", np.float16, (48, 4, 64, 24, 24))
    views[:] = RNG.standard_normal((48, 4, 64, 1, 1))
    views.flush()
    del views
    mapped = np.load(path, mmap_mode="r")
    labels = np.eye(CLASSES, dtype=np.uint8)[np.arange(48) % CLASSES]
    hasher = make("orthohash", updates=2, batch_size=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of arrays that cannot be written to
        tracemalloc.start()
        hasher.fit(mapped, labels)
        hasher.transform(mapped[:, 1])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < mapped.nbytes / 3


def test_images_that_are_equal_or_not_finite_are_rejected(monkeypatch):
    monkeypatch.setattr(checks, "BLOCK", 1000)  # several blocks
    with pytest.raises(ValueError, match="all 24 training images are equal"):
        make().fit(np.zeros_like(VIEWS), LABELS)
    last = np.zeros_like(VIEWS)
    last[-1, 0, 0, 0, 0] = 1
    make().fit(last, LABELS)
    last[20, 3, 1, 1, 1] = np.inf
    with pytest.raises(ValueError, match="image 20 holds NaN or infinity: leave it out"):
        make().fit(last, LABELS)
    fitted = make().fit(VIEWS, LABELS)
    with pytest.raises(ValueError, match="image 20 holds NaN or infinity"):
        fitted.transform(last[:, 3])


@pytest.mark.parametrize(
    ("settings", "images", "message"),
    [
        ({}, VIEWS[:, 0, :, 0, 0], r"takes images \(n, C, H, W\).*got float16 \(24, 64\).*leave out backbone"),
        ({}, VIEWS.astype(float), r"activations of float16 or float32, got float64"),
        ({}, VIEWS[:0], r"there is no image"),
        ({}, PIXELS, r"tiny:2 takes activations after block 2, float16 or float32; got uint8 \(24, 3, 8, 8\)"),
        ({"backbone": "convnet"}, VIEWS, r"convnet takes pixels, uint8 \(n, 3, H, W\); got float16"),
        ({"backbone": "convnet"}, PIXELS.transpose(0, 2, 3, 1), r"\(8, 8, 3\), are not what convnet takes as pixels"),
        ({"backbone": "tiny:3"}, VIEWS, "tiny can be cut at 0"),
        ({"backbone": "tiny:1"}, VIEWS, r"\(64, 2, 2\), are not what tiny takes after block 1"),
        ({"backbone": "gist"}, PIXELS, "gist' is not a network"),
        ({"backbone": None}, VIEWS, r"feature vectors \(n, D\), got images of shape \(24, 4, 64, 2, 2\): .*backbone="),
        ({"backbone_weights": "absent.pth"}, VIEWS, "convnet has no pretrained weights"),
        ({"augment": "flop", "backbone": "convnet"}, PIXELS, "augment must be one of"),
    ],
)
def test_images_that_do_not_fit_are_rejected(settings, images, message):
    with pytest.raises(ValueError, match=message):
        make(**settings).fit(images, LABELS[: len(images)])


def test_a_negative_number_of_updates_of_the_head_is_rejected():
    with pytest.raises(ValueError, match="head_updates must be at least 0, got -1"):
        make(head_updates=-1)


def test_batches_of_one_image_are_rejected():
    with pytest.raises(ValueError, match="batch_size must be at least 2, since a backbone normalises batches; got 1"):
        make(batch_size=1)


@pytest.mark.parametrize("name", ["lsh", "itq", "sdh", "ksh", "sh", "hashnet"])
@pytest.mark.parametrize("kind", ["pixels", "activations", "views"])
def test_hashers_of_vectors_say_what_takes_images(name, kind):
    with pytest.raises(ValueError, match=r"takes feature vectors.*extract features without --cut"):
        hashers.make(name, bits=4).fit(IMAGES[kind], LABELS)


def test_other_images_than_those_fitted_on_are_rejected():
    fitted = make().fit(VIEWS, LABELS)
    with pytest.raises(ValueError, match=r"transform takes one view of each image.*got \(24, 4, 64, 2, 2\)"):
        fitted.transform(VIEWS)
    with pytest.raises(ValueError, match=r"CSQ was fitted on images of shape \(64, 2, 2\), got \(64, 4, 1\)"):
        fitted.encode(VIEWS[:, 0].reshape(N, 64, 4, 1))
    with pytest.raises(ValueError, match=r"takes images \(n, C, H, W\)"):
        fitted.transform(VIEWS[:, 0].reshape(N, -1))


def test_weights_from_a_file_are_needed_for_training_only(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "alexnet.pth"
    state = import_torchvision().models.alexnet(weights=None, num_classes=2).features.state_dict()
    torch.save(state, path)
    images = RNG.standard_normal((N, 384, 3, 3)).astype(np.float16)
    settings = {"backbone": "alexnet_conv:3", "backbone_weights": str(path), "updates": 1}
    hasher = make(**settings, backbone_learning_rate=1e-12, weight_decay=0.0).fit(images, LABELS)
    weight = hasher._backbone.network.blocks["4"][0].weight.detach()
    torch.testing.assert_close(weight, state["8.weight"], atol=1e-9, rtol=0)
    hasher.save(tmp_path / "hasher.npz")
    path.unlink()
    loaded = hashers.load(tmp_path / "hasher.npz")
    np.testing.assert_array_equal(loaded.transform(images), hasher.transform(images))
    assert loaded.backbone_weights == str(path)
    with pytest.raises(ValueError, match="no weights at"):
        loaded.fit(images, LABELS)


def test_a_dataset_gives_its_backbone():
    cached = dataset(VIEWS[:, 0], VIEWS[4:], name="tiny", cut=2, digest=tiny.DIGEST, weights="tiny.pth")
    hasher = make(backbone=None)
    assert hashers.fitted(hasher, cached) is hasher
    assert hasher.backbone == "tiny:2"
    expected = make().fit(VIEWS[4:], LABELS[4:])
    np.testing.assert_array_equal(hasher.transform(VIEWS[:, 0]), expected.transform(VIEWS[:, 0]))
    assert hashers.fitted(hasher, cached) is hasher
    photos = dataset(PIXELS, name="efficientnet_lite0", cut=0)
    assert hashers.fitted(make(kind="pixels"), photos).backbone == "convnet"


def test_a_dataset_of_maps_rejects_what_cannot_read_it(tmp_path):
    cached = dataset(VIEWS[:, 0], name="tiny", cut=2, digest=tiny.DIGEST, weights="tiny.pth")
    for name in ("lsh", "itq", "sdh"):
        with pytest.raises(ValueError, match="takes feature vectors, and the images of 'maps' are maps of shape"):
            hashers.fitted(name, cached, bits=4)
    with pytest.raises(ValueError, match="are activations for the backbone tiny:2, got 'tiny:1'"):
        hashers.fitted(make(backbone="tiny:1"), cached)
    with pytest.raises(ValueError, match="does not name the network"):
        hashers.fitted(make(backbone=None), dataset(VIEWS[:, 0]))
    fitted = make(kind="pixels").fit(PIXELS, LABELS)
    with pytest.raises(ValueError, match=r"fitted on images of shape \(3, 8, 8\), those of 'maps' .* \(64, 2, 2\)"):
        hashers.fitted(fitted, cached)
    deeper = dataset(VIEWS[:, 0], name="tiny", cut=1, digest=tiny.DIGEST)  # of the same shape
    with pytest.raises(ValueError, match="are activations for the backbone tiny:1, got 'tiny:2'"):
        hashers.fitted(make().fit(VIEWS, LABELS), deeper)
    vectors = hashers.make("lsh", bits=4).fit(VIEWS[:, 0].reshape(N, -1).astype(np.float32))
    with pytest.raises(ValueError, match=r"fitted on images of shape \(256,\), those of 'maps'"):
        hashers.fitted(vectors, cached)


def test_a_damaged_file_is_rejected(tmp_path):
    hasher = make().fit(VIEWS, LABELS)
    hasher.save(tmp_path / "whole.npz")
    arrays = dict(np.load(tmp_path / "whole.npz"))
    for change in ({"backbone_state_": arrays["backbone_state_"][:-1]}, {"image_shape_": np.array([256, 1, 1])}):
        np.savez(tmp_path / "damaged.npz", **(arrays | change))
        with pytest.raises(ValueError, match="does not hold a complete CSQ"):
            hashers.load(tmp_path / "damaged.npz")
