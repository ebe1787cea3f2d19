"""One step from photos to an index: an encoder that is fitted to them, updates, and runs that are stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hashgym import codes, hashers, load_encoder
from hashgym.data import DataError, HashingDataset
from hashgym.data.pictures import open_image
from hashgym.encoders import build
from hashgym.features import make
from hashgym.gallery import index as index_module
from hashgym.gallery import index_photos, open_codes, open_gallery
from hashgym.gallery import photos as photos_module
from hashgym.gallery.encode import EncodingSettings
from hashgym.gallery.fit import EncoderFit
from hashgym.index import faiss as faiss_backend
from tests.gallery.small import content, write_encoder, write_pictures

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

NAMES = [f"{album}/{i}.png" for album in ("june", "july") for i in range(20)]


def index(photos: Path, out: Path, **options: Any) -> Any:
    settings = EncodingSettings(skip_bad=True, batch_size=8, progress=False)
    return index_photos([photos], out, **{"bits": 12, "backbone": "pixels", "size": 4, "settings": settings, **options})


def test_codes_are_those_of_a_hasher_that_is_fitted_to_the_photos(tmp_path):
    photos = write_pictures(tmp_path / "photos", NAMES)
    done = index(photos, tmp_path / "index")
    assert (done.new, done.changed, done.removed, done.unchanged) == (40, 0, 0, 0)
    found = open_codes(tmp_path / "index" / "codes")
    assert not (tmp_path / "index" / "codes" / "features.npy").exists()

    backbone = make("pixels", size=4)
    features = backbone(np.stack([backbone.preprocess(open_image(photos / name)) for name in found.names]))
    every = np.arange(len(features))
    dataset = HashingDataset("all", features, np.zeros((40, 0), np.uint8), every[:0], every, every).standardized()
    expected = hashers.fitted("itq", dataset, bits=12).encode(dataset.features)
    np.testing.assert_array_equal(codes.unpack(found.words[:, 0], 12), expected)

    encoder = load_encoder(tmp_path / "index" / "codes" / "encoder.onnx")  # of pictures, for those that come later
    own = np.stack([encoder.encode_pictures(encoder.prepare(open_image(photos / name))).words[0] for name in NAMES])
    np.testing.assert_array_equal(own, found.words[[found.names.index(name) for name in NAMES]])
    with open_gallery(tmp_path / "index") as gallery:
        for name in NAMES[::7]:
            distances = (expected != expected[found.names.index(name)]).sum(axis=1)
            assert [m.distance for m in gallery.search(photos / name, k=40)] == sorted(distances.tolist())


def test_an_update_encodes_what_is_new_and_drops_what_is_gone(tmp_path, monkeypatch):
    photos, out = write_pictures(tmp_path / "photos", NAMES), tmp_path / "index"
    index(photos, out)
    before = dict(zip(*contents(out), strict=True))
    first = load_encoder(out / "codes" / "encoder.onnx").digest
    assert index(photos, out).unchanged == 40
    write_pictures(photos, ["august/new.png", "june/3.png"], first=100)
    for name in ("june/1.png", "july/2.png", "july/5.png"):
        (photos / name).unlink()
    monkeypatch.setattr(EncoderFit, "finish", lambda *_: pytest.fail("the encoder is fitted again"))
    done = index(photos, out)
    assert (done.new, done.changed, done.removed, done.unchanged) == (1, 1, 3, 36)
    assert load_encoder(out / "codes" / "encoder.onnx").digest == first
    after = dict(zip(*contents(out), strict=True))
    assert sorted(after) == sorted({*NAMES, "august/new.png"} - {"june/1.png", "july/2.png", "july/5.png"})
    assert all(after[name] == before[name] for name in after if name != "august/new.png")  # ids stay
    assert after["august/new.png"] not in before.values()
    with open_gallery(out) as gallery:
        assert gallery.search(photos / "june/3.png", k=1)[0].name == "june/3.png"
        assert gallery.search(photos / "august/new.png", k=1)[0].distance == 0


def contents(out: Path) -> tuple[list[str], list[int]]:
    """Names and ids of the pictures of an index."""
    own = index_module._Content.of(out)
    return own.names, own.ids.tolist()


@pytest.mark.parametrize("place", ["compute", "finish", "index"])
def test_a_run_that_is_stopped_continues_to_the_same_bytes(place, tmp_path, monkeypatch):
    photos = write_pictures(tmp_path / "photos", NAMES)
    index(photos, tmp_path / "whole")

    calls = []

    def stop(*args: Any, **options: Any) -> Any:
        calls.append(args)
        if len(calls) > (2 if place == "compute" else 0):
            raise KeyboardInterrupt
        return original(*args, **options)

    owner, name = (index_module.backends, "make") if place == "index" else (EncoderFit, place)
    original = getattr(owner, name)
    monkeypatch.setattr(owner, name, stop)
    with pytest.raises(KeyboardInterrupt):
        index(photos, tmp_path / "stopped")
    monkeypatch.undo()
    done = index(photos, tmp_path / "stopped")
    assert done.new + done.unchanged == 40
    assert comparable(tmp_path / "whole") == comparable(tmp_path / "stopped")


def comparable(out: Path) -> dict[str, bytes]:
    """The files of an index, without its folder's name, and without the number of its content."""
    return {name: data for name, data in content(out).items() if not name.endswith(("meta.json", ".hashgym"))}


def test_new_photos_between_a_stopped_run_and_the_next(tmp_path, monkeypatch):
    photos, out = write_pictures(tmp_path / "photos", NAMES), tmp_path / "index"
    original, calls = EncoderFit.compute, []

    def stop(*args: Any) -> Any:
        calls.append(args)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(EncoderFit, "compute", stop)
    with pytest.raises(KeyboardInterrupt):
        index(photos, out)
    monkeypatch.undo()
    write_pictures(photos, ["august/new.png"], first=100)
    assert index(photos, out).new == 41
    assert len(contents(out)[0]) == 41


def test_an_agent_that_learns_which_photos_are_neighbours(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "AGENT", {**build.AGENT, "updates": 20, "num_envs": 16})
    names = [f"{i}.png" for i in range(150)]
    photos = write_pictures(tmp_path / "photos", names)
    index(photos, tmp_path / "index", method="neighbours")
    encoder = load_encoder(tmp_path / "index" / "codes" / "encoder.onnx")
    assert encoder.metadata["source"]["agent"] == "drlih"
    found = open_codes(tmp_path / "index" / "codes")
    own = np.stack([encoder.encode_pictures(encoder.prepare(open_image(photos / name))).words[0] for name in names])
    np.testing.assert_array_equal(own, found.words[[found.names.index(name) for name in names]])
    assert index(photos, tmp_path / "index", method="neighbours").unchanged == 150
    before = content(tmp_path / "index" / "codes")
    index(photos, tmp_path / "again", method="neighbours")
    few = write_pictures(tmp_path / "few", NAMES[:6])
    assert index(few, tmp_path / "of-few", method="neighbours").new == 6
    assert comparable(tmp_path / "again" / "codes") == {
        name: data for name, data in before.items() if not name.endswith(("meta.json", ".hashgym"))
    }


@pytest.mark.parametrize("count", [1, 2, 12])
def test_few_photos_have_random_hyperplanes(count, tmp_path, capsys):
    photos = write_pictures(tmp_path / "photos", NAMES[:count])
    index(photos, tmp_path / "index")
    encoder = load_encoder(tmp_path / "index" / "codes" / "encoder.onnx")
    assert encoder.metadata["source"]["hasher"] == "LSH"
    assert len(open_codes(tmp_path / "index" / "codes")) == count
    assert "these pictures are encoded by lsh: " in " ".join(capsys.readouterr().err.split())


def test_photos_that_cannot_be_read_are_left_out(tmp_path):
    photos = write_pictures(tmp_path / "photos", NAMES)
    (photos / "june" / "broken.jpg").write_bytes(b"nothing")
    assert index(photos, tmp_path / "index").new == 40
    assert list(open_codes(tmp_path / "index" / "codes").left_out) == ["june/broken.jpg"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"backend": "foo"}, ValueError, "unknown back end"),
        ({"options": {"uri": "http://localhost:1"}}, ValueError, "takes no options, got uri"),
        ({"backend": "faiss"}, ImportError, "faiss"),
        (
            {"backend": "buckets", "method": "pca", "bits": 64},
            ValueError,
            "at most a bit for each of the 48 features of pixels",
        ),
    ],
)
def test_what_cannot_be_indexed_is_refused_before_photos_are_encoded(options, error, message, tmp_path, monkeypatch):
    monkeypatch.setattr(faiss_backend, "require", _missing)
    photos = write_pictures(tmp_path / "photos", NAMES[:3])
    with pytest.raises(error, match=message):
        index(photos, tmp_path / "index", **options)
    assert not (tmp_path / "index").exists()


def _missing(module: str, user: str) -> None:
    raise ImportError(f"{user} needs {module}")


def test_another_method_continues_with_the_features_of_a_run_that_failed(tmp_path, monkeypatch):
    photos = write_pictures(tmp_path / "photos", NAMES[:10])
    with pytest.raises(ValueError, match="ITQ gives a bit for each"):
        index(photos, tmp_path / "index", method="itq")
    monkeypatch.setattr(EncoderFit, "compute", lambda *_: pytest.fail("features are computed again"))
    assert index(photos, tmp_path / "index", method="lsh").new == 10


def test_a_pattern_may_match_other_folders_later(tmp_path):
    photos = write_pictures(tmp_path / "photos", [f"june/{i}.png" for i in range(20)])
    assert index(photos / "*", tmp_path / "index").new == 20
    write_pictures(photos, [f"july/{i}.png" for i in range(20)], first=100)
    assert index(photos / "*", tmp_path / "index").new == 20
    for photo in (photos / "june").iterdir():
        photo.unlink()
    (photos / "june").rmdir()
    done = index(photos / "*", tmp_path / "index")
    assert (done.removed, done.unchanged) == (20, 20)


@pytest.mark.parametrize("method", ["lsh", "itq"])
def test_the_same_command_continues_and_updates(method, tmp_path, monkeypatch):
    photos = write_pictures(tmp_path / "photos", NAMES)
    with monkeypatch.context() as stopped:
        stopped.setattr(photos_module, "build", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            index(photos, tmp_path / "index", method=method)
    assert index(photos, tmp_path / "index", method=method).unchanged == 40
    write_pictures(photos, ["new.png"], first=100)
    assert index(photos, tmp_path / "index", method=method).new == 1


def _interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_photos_that_are_excluded_later_are_dropped(tmp_path):
    photos = write_pictures(tmp_path / "photos", NAMES)
    index(photos, tmp_path / "index")
    settings = EncodingSettings(skip_bad=True, progress=False, exclude=["july", "3.png"])
    done = index(photos, tmp_path / "index", settings=settings)
    assert (done.removed, done.unchanged) == (21, 19)
    assert set(contents(tmp_path / "index")[0]) == {name for name in NAMES if "june" in name} - {"june/3.png"}


def test_patterns_are_relative_to_each_of_several_folders(tmp_path):
    first, second = (write_pictures(tmp_path / name, ["a/1.png", "a/b/2.png", "b/3.png"]) for name in ("x", "y"))
    settings = {"skip_bad": True, "progress": False}
    options: dict[str, Any] = {"bits": 4, "backbone": "pixels", "size": 4}
    index_photos([first, second], tmp_path / "index", **options, settings=EncodingSettings(**settings))
    excluding = EncodingSettings(**settings, exclude=["a/b"])
    assert index_photos([first, second], tmp_path / "index", **options, settings=excluding).removed == 2
    assert set(contents(tmp_path / "index")[0]) == {"x/a/1.png", "x/b/3.png", "y/a/1.png", "y/b/3.png"}


def test_folders_can_be_added_to_an_index_and_left_out_again(tmp_path):
    write_pictures(tmp_path / "photos", ["a/1.png", "a/b/2.png", "c/3.png"])
    options: dict[str, Any] = {"bits": 4, "backbone": "pixels", "size": 4}
    options["settings"] = EncodingSettings(skip_bad=True, progress=False)
    out = tmp_path / "index"

    def update(*places: str) -> tuple[tuple[int, ...], dict[str, int]]:
        done = index_photos([tmp_path / "photos" / place for place in places], out, **options)
        with open_gallery(out) as gallery:
            return (done.new, done.changed, done.removed, done.unchanged), {
                gallery.names[i]: i for i in gallery.ids.tolist()
            }

    assert update("a") == ((2, 0, 0, 0), {"1.png": 0, "b/2.png": 1})
    assert update("a", "c") == ((1, 0, 0, 2), {"a/1.png": 0, "a/b/2.png": 1, "c/3.png": 2})
    assert update("a", "c") == ((0, 0, 0, 3), {"a/1.png": 0, "a/b/2.png": 1, "c/3.png": 2})
    with pytest.raises(DataError, match=r"1 pictures that still exist and were not named, such as \.\./c/3\.png"):
        update("a")
    (tmp_path / "photos" / "c" / "3.png").unlink()
    assert update("a") == ((0, 0, 1, 2), {"a/1.png": 0, "a/b/2.png": 1})  # names stay relative to the common parent


def test_one_place_is_not_taken_apart(tmp_path, monkeypatch):
    write_pictures(tmp_path / "photos", ["1.png", "2.png", "thumb.png"])
    monkeypatch.chdir(tmp_path)
    settings = EncodingSettings(progress=False, exclude="thumb.png")  # type: ignore[arg-type]
    done = index_photos("photos", "index", bits=2, backbone="pixels", size=4, settings=settings)  # type: ignore[arg-type]
    assert done.new == 2
    assert index_photos(Path("photos"), "index", settings=settings).unchanged == 2  # type: ignore[arg-type]


def test_an_index_that_was_moved_and_linked_is_updated(tmp_path):
    photos = write_pictures(tmp_path / "photos", NAMES)
    index(photos, tmp_path / "disk")
    (tmp_path / "index").symlink_to(tmp_path / "disk")
    write_pictures(photos, ["new.png"], first=100)
    assert index(photos, tmp_path / "index").new == 1
    assert (tmp_path / "index").is_symlink()
    assert len(open_codes(tmp_path / "disk" / "codes")) == 41


def test_a_photo_that_can_no_longer_be_read_counts_as_removed(tmp_path):
    photos = write_pictures(tmp_path / "photos", NAMES)
    index(photos, tmp_path / "index")
    (photos / NAMES[3]).write_bytes(b"nothing")
    done = index(photos, tmp_path / "index")
    assert (done.new, done.changed, done.removed, done.unchanged) == (0, 0, 1, 39)
    assert list(open_codes(tmp_path / "index" / "codes").left_out) == [NAMES[3]]


def test_bad_input_changes_nothing(tmp_path):
    photos = write_pictures(tmp_path / "photos", NAMES)
    with pytest.raises(DataError, match="does not exist"):
        index(tmp_path / "nowhere", tmp_path / "index")
    with pytest.raises(ValueError, match="unknown backbone"):
        index(photos, tmp_path / "index", backbone="efficient")
    with pytest.raises(ValueError, match="'dch' is not a method without labels: choose neighbours, lsh, itq"):
        index(photos, tmp_path / "index", method="dch")
    assert not (tmp_path / "index").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(DataError, match=r"exists already and is not an index; it has letter\.txt"):
        index(photos, tmp_path / "mine")
    index(photos, tmp_path / "index")
    before = content(tmp_path / "index")
    encoder = write_encoder(tmp_path / "encoder.onnx")
    for options, message in (
        ({"bits": 16}, "has codes of 12 bits: leave out --bits"),
        ({"bits": None, "backbone": None, "size": None, "encoder": encoder}, "another encoder"),
        ({"encoder": encoder}, "bits and backbone and size: only for an encoder that is fitted here"),
        ({"backbone": "efficientnet_lite0"}, "has an encoder with --backbone pixels: leave out --backbone"),
        ({"size": 8}, "has an encoder with --size 4: leave out --size"),
        ({"method": "lsh"}, "has an encoder by itq: leave out --method"),
        ({"weights": "none.pth"}, "takes neither weights"),
        ({"backend": "buckets"}, "leave out --backend to update it"),
    ):
        with pytest.raises(ValueError, match=message):
            index(photos, tmp_path / "index", **options)
    others = write_pictures(tmp_path / "others", NAMES[:3])
    with pytest.raises(DataError, match="pictures in another folder"):
        index(others, tmp_path / "index")
    with pytest.raises(DataError, match=r"is made of the photos below .*build another index for others"):
        index_module.build([tmp_path / "index" / "codes"], tmp_path / "index", add=True, progress=False)
    with pytest.raises(DataError, match="the next update would add them again: move them away or --exclude them"):
        index_module.remove(tmp_path / "index", [NAMES[0]], progress=False)
    assert content(tmp_path / "index") == before
    index_module.build([tmp_path / "index" / "codes"], tmp_path / "of codes", progress=False)
    with pytest.raises(DataError, match="was made of folders of codes"):
        index(photos, tmp_path / "of codes")
