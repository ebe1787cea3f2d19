"""Bags of visual words against loops, and words that are learnt."""

import sys
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
from PIL import Image

from hashgym import features
from hashgym.data import DataError, ImageCollection, splits
from hashgym.features import bow
from hashgym.storage.atomic import atomic_write
from hashgym.storage.checksums import sha256

cv2 = pytest.importorskip("cv2")


def texture(kind: int, seed: int, side: int = 64) -> Image.Image:
    """Diagonal stripes, or blobs, of a random phase and grain."""
    rng = np.random.default_rng([kind, seed])
    y, x = np.mgrid[:side, :side] + rng.uniform(0, 20, (2, 1, 1))
    grey = np.sin((x + y) * 0.7) if kind else np.sin(x * 0.5) * np.sin(y * 0.5)
    grey = 128 + 90 * grey + rng.normal(0, 8, (side, side))
    return Image.fromarray(np.repeat(grey[:, :, None], 3, axis=2).clip(0, 255).astype(np.uint8))


def collection(n: int = 40) -> tuple[ImageCollection, list[int]]:
    """``n`` pictures of two textures in turn, and a list that says which have been read."""
    seen: list[int] = []

    def read(index: int) -> Image.Image:
        seen.append(index)
        return texture(index % 2, index)

    names = tuple(f"{i}.png" for i in range(n))
    return ImageCollection(
        "textures", names, np.eye(2, dtype=np.uint8)[np.arange(n) % 2], ("blobs", "stripes"), read
    ), seen


@pytest.fixture(scope="module")
def learnt(tmp_path_factory) -> Path:
    return bow.learn_words(
        collection()[0], tmp_path_factory.mktemp("words") / "w.npy", words=20, size=64, progress=False
    )


def random_words(path: Path, count: int = 30) -> Path:
    words = np.random.default_rng(0).random((count, 128)).astype(np.float32)
    np.save(path, words / np.linalg.norm(words, axis=1, keepdims=True))
    return path


def test_histogram_against_a_loop(tmp_path):
    path = random_words(tmp_path / "w.npy")
    backbone = features.make("bow", weights=str(path), size=64)
    words = np.load(path)
    picture = backbone.preprocess(texture(1, 3))
    descriptors = bow.DenseSift(64)(picture)
    counts = [0] * 30
    for d in descriptors:
        counts[min(range(30), key=lambda w: float(((d - words[w]) ** 2).sum()))] += 1
    values = backbone(picture[None])
    assert (values.shape, values.dtype, backbone.dim) == ((1, 30), np.float32, 30)
    np.testing.assert_allclose(values[0], np.array(counts) / 512, rtol=1e-6)
    assert values[0].sum() == pytest.approx(1)
    assert len(np.unique(values)) > 3
    assert (backbone.weights, backbone.digest) == ("w.npy", sha256(path))


def test_descriptors_are_roots_of_opencvs_sift_at_the_grids_points():
    picture = np.asarray(texture(0, 5))
    descriptors = bow.DenseSift(64)(picture)
    assert (descriptors.shape, descriptors.dtype) == ((512, 128), np.float32)
    np.testing.assert_allclose(np.linalg.norm(descriptors, axis=1), 1, rtol=1e-5)
    row, column = 9, 4
    point = cv2.KeyPoint(column * 4 + 1.5, row * 4 + 1.5, 4 / 1.5, 0)
    sift = cv2.SIFT.create().compute(picture[:, :, 0], [point])[1][0]
    np.testing.assert_allclose(descriptors[row * 16 + column], np.sqrt(sift / sift.sum()), rtol=1e-5)
    turned = bow.DenseSift(64)(np.ascontiguousarray(picture.swapaxes(0, 1)))
    assert not np.allclose(turned, descriptors, atol=0.1)  # upright: directions count


def test_the_second_scale_sees_twice_as_far():
    picture = np.asarray(texture(0, 5))
    changed = picture.copy()
    changed[42:] = 128  # 12 pixels and more below the points in the middle
    before, after = (bow.DenseSift(64)(x).reshape(2, 16, 16, 128)[:, 7] for x in (picture, changed))
    near, far = np.abs(after - before).max((1, 2))
    assert near < 0.05
    assert far > 5 * near


def test_a_flat_picture_does_not_crash(learnt):
    flat = np.full((64, 64, 3), 77, np.uint8)
    assert not bow.DenseSift(64)(flat).any()
    values = features.make("bow", weights=str(learnt), size=64)(flat[None])[0]
    assert (values.max(), values.sum()) == (1, 1)


def test_goes_to_another_process(learnt):
    backbone = features.make("bow", weights=str(learnt), size=64)
    copy = cloudpickle.loads(cloudpickle.dumps(backbone))
    picture = backbone.preprocess(texture(0, 9))[None]
    np.testing.assert_array_equal(copy(picture), backbone(picture))


def test_alone_as_in_a_batch_and_every_time(learnt):
    backbone = features.make("bow", weights=str(learnt), size=64)
    batch = np.stack([backbone.preprocess(texture(i % 2, i)) for i in range(4)])
    values = backbone(batch)
    np.testing.assert_array_equal(features.make("bow", weights=str(learnt), size=64)(batch), values)
    for picture, row in zip(batch, values, strict=True):
        np.testing.assert_array_equal(backbone(picture[None])[0], row)


@pytest.mark.parametrize("shape", [(2, 64, 64), (0, 64, 64, 3), (1, 128, 128, 3)])
def test_a_batch_of_another_shape_is_rejected(learnt, shape):
    with pytest.raises(ValueError, match=r"bow takes preprocessed pictures, uint8 \(n, 64, 64, 3\)"):
        features.make("bow", weights=str(learnt), size=64)(np.zeros(shape, np.uint8))


def test_learnt_words_separate_textures(learnt):
    words = bow.read_words(learnt)
    assert (words.shape, words.dtype) == ((20, 128), np.float32)
    backbone = features.make("bow", weights=str(learnt), size=64)
    values = backbone(np.stack([backbone.preprocess(texture(i % 2, 100 + i)) for i in range(12)]))
    apart = np.abs(values[:, None] - values).sum(2)
    same = np.equal.outer(np.arange(12) % 2, np.arange(12) % 2)
    assert apart[same].max() < 0.5 * apart[~same].min()


def test_words_are_the_same_every_time_and_differ_by_seed(learnt, tmp_path):
    options = {"words": 20, "size": 64, "progress": False}
    assert bow.learn_words(collection()[0], tmp_path / "a.npy", **options).read_bytes() == learnt.read_bytes()
    other = bow.learn_words(collection()[0], tmp_path / "b.npy", seed=1, **options)
    assert other.read_bytes() != learnt.read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.npy", "b.npy"]


@pytest.mark.parametrize("images", [3, 1000])
def test_words_are_learnt_from_training_images_alone(tmp_path, images):
    photos, seen = collection(60)
    bow.learn_words(
        photos, tmp_path / "w.npy", words=5, images=images, size=32, seed=4, queries=9, train=12, progress=False
    )
    drawn = splits.make(
        photos.name,
        labels=photos.labels,
        label_names=photos.label_names,
        names=photos.names,
        seed=4,
        queries=9,
        train=12,
    )
    assert len(seen) == len(set(seen)) == min(images, 12)
    assert set(seen) <= set(drawn.train.tolist())


def test_a_bad_image_stops_or_is_left_out(tmp_path):
    photos, _ = collection()

    def read(index: int) -> Image.Image:
        if index % 4 == 0:
            raise DataError(f"{index}.png is truncated")
        return texture(1, index)

    damaged = ImageCollection(photos.name, photos.names, photos.labels, photos.label_names, read)
    options = {"words": 8, "size": 64, "train": 30, "progress": False}
    with pytest.raises(DataError, match=r"\.png is truncated.*--skip-bad"):
        bow.learn_words(damaged, tmp_path / "w.npy", **options)
    assert not list(tmp_path.iterdir())
    bow.learn_words(damaged, tmp_path / "w.npy", skip_bad=True, **options)
    assert len(bow.read_words(tmp_path / "w.npy")) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"words": 1}, "words must be at least 2"),
        ({"images": 0}, "images at least 1"),
        ({"size": 15}, "at least 16"),
        ({"split": "moon"}, "no split 'moon'"),
        ({"out": "words.txt"}, r"ends in \.npy"),
        ({"words": 5_000}, "10 training images give at most 1,000 patches, too few for 5,000 words"),
        ({"seed": 2**32}, "seed must be at most 4294967295"),
    ],
)
def test_words_that_cannot_be_learnt(tmp_path, options, message):
    out = tmp_path / options.pop("out", "w.npy")
    with pytest.raises(ValueError, match=message):
        bow.learn_words(collection()[0], out, **{"size": 32, "progress": False, **options})
    assert not list(tmp_path.iterdir())


def test_words_are_not_written_over(learnt):
    with pytest.raises(DataError, match="exists already"):
        bow.learn_words(collection()[0], learnt, progress=False)


def test_words_that_another_process_is_learning_are_rejected_at_once(tmp_path):
    with atomic_write(tmp_path / "w.npy", new=True), pytest.raises(DataError, match="another process is writing"):
        bow.learn_words(collection()[0], tmp_path / "w.npy", size=32, progress=False)


def test_wrong_files_of_words(tmp_path):
    path = tmp_path / "w.npy"
    good = np.load(random_words(path))
    whole = path.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"w\.npy is damaged"):
            bow.read_words(path)
    for wrong, message in [
        (good.astype(np.float64), "holds float64 .*but visual words are float32"),
        (good[:, :100], r"holds float32 \(30, 100\)"),
        (good[0], r"holds float32 \(128,\)"),
        (np.float32(1), r"holds float32 \(\)"),
        (good[:1], "fewer than 2"),
        (good * 512, "length 512"),
        (np.where(np.eye(30, 128) > 0, np.float32(np.nan), good), "NaN"),
    ]:
        np.save(path, wrong)
        with pytest.raises(DataError, match=message):
            features.make("bow", weights=str(path))
    with path.open("wb") as file:
        np.savez(file, good)
    with pytest.raises(DataError, match="several arrays"):
        bow.read_words(path)


def test_a_file_of_words_runs_no_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    np.save(tmp_path / "w.npy", np.array([Trap()], object))
    with pytest.raises(DataError, match=r"w\.npy is damaged"):
        bow.read_words(tmp_path / "w.npy")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": None}, r"`hashgym words --dataset NAME --root DIR --out words\.npy`"),
        ({"weights": "absent.npy"}, r"no visual words at absent\.npy: `hashgym words"),
        ({"size": 8}, "at least 16, got 8"),
        ({"runtime": "onnx"}, "neither a device nor a runtime"),
        ({"device": "cuda"}, "neither a device nor a runtime"),
    ],
)
def test_wrong_arguments(learnt, options, message):
    with pytest.raises(ValueError, match=message):
        features.make("bow", **{"weights": str(learnt), **options})


def test_without_opencv(learnt, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ValueError, match=r"pip install 'hashgym\[sift\]'"):
        features.make("bow", weights=str(learnt))
