"""The folder cache: a saved dataset is read back unchanged, and damage is reported."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hashgym.data import DataError, HashingDataset, cache
from hashgym.storage import checksums, owned, sealed


def dataset(regions: bool = True, **changes) -> HashingDataset:
    rng = np.random.default_rng(0)
    n, dim = 12, 5
    fields = {
        "name": "twelve",
        "features": rng.normal(size=(n, dim)).astype(np.float32),
        "labels": rng.integers(0, 2, (n, 3)).astype(np.uint8),
        "query": np.array([0, 1]),
        "database": np.arange(2, n),
        "train": np.array([3, 5, 7]),
        "names": tuple(f"bilder/grün {i}.jpg" for i in range(n)),
        "label_names": ("sky", "sea", "été"),
        "provenance": {"backbone": {"name": "pixels"}, "split": "random", "list": [1, 2]},
    }
    if regions:
        fields |= {
            "regions": rng.normal(size=(n, 5, dim)).astype(np.float32),
            "train_regions": rng.normal(size=(n, 2, dim)).astype(np.float32),
            "boxes": rng.random((n, 5, 4), np.float32),
            "train_boxes": rng.random((n, 2, 4), np.float32),
            "thumbnails": rng.integers(0, 256, (n, 4, 4, 3)).astype(np.uint8),
        }
    return HashingDataset(**(fields | changes))


def assert_same(a: HashingDataset, b: HashingDataset) -> None:
    for key in cache.ARRAYS:
        x, y = getattr(a, key), getattr(b, key)
        assert (x is None) == (y is None), key
        if x is not None:
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y, err_msg=key)
    assert (a.name, tuple(a.names), tuple(a.label_names)) == (b.name, tuple(b.names), tuple(b.label_names))
    assert dict(a.provenance) == dict(b.provenance)


def with_views(**changes) -> HashingDataset:
    """Activations of 12 images, and three views of five of them."""
    rng = np.random.default_rng(1)
    maps = {
        "features": rng.normal(size=(12, 4, 2, 3)).astype(np.float16),
        "views": rng.normal(size=(5, 3, 4, 2, 3)).astype(np.float16),
        "viewed": np.array([2, 3, 5, 7, 11]),
    }
    return dataset(regions=False, **(maps | changes))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    cache.save(dataset(), tmp_path / "features")
    return tmp_path / "features"


@pytest.mark.parametrize("regions", [True, False])
def test_saved_is_what_opens(tmp_path, regions):
    original = dataset(regions)
    cache.save(original, tmp_path / "deep" / "features")
    opened = cache.open_cache(tmp_path / "deep" / "features", verify=True)
    assert_same(original, opened)
    assert isinstance(opened.features, np.memmap)
    assert not opened.features.flags.writeable


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.uint8])
def test_maps_and_views_are_saved_in_their_type(tmp_path, kind):
    original = with_views()
    maps = {"features": original.features, "views": original.views}
    if kind is np.uint8:  # pixels have three channels
        maps = {key: np.abs(array[..., :3, :, :] * 90) for key, array in maps.items()}
    original = with_views(**{key: array.astype(kind) for key, array in maps.items()})
    cache.save(original, tmp_path / "features")
    opened = cache.open_cache(tmp_path / "features", verify=True)
    assert_same(original, opened)
    assert isinstance(opened.views, np.memmap)
    assert opened.features.dtype == opened.views.dtype == kind
    meta = cache.read_meta(tmp_path / "features")
    assert (meta["dim"], meta["files"]["views.npy"]["shape"]) == (opened.dim, [5, 3, *opened.image_shape])


def test_maps_of_another_type_in_a_sealed_folder_are_an_error(tmp_path):
    cache.save(with_views(), tmp_path / "features")
    np.save(tmp_path / "features" / "features.npy", np.zeros((12, 4, 2, 3)))
    opened = with_views()
    cache.seal(tmp_path / "features", "twelve", opened.names, opened.label_names, {})
    with pytest.raises(DataError, match=r"features\.npy .* is float64, but must be float16 or float32 or uint8"):
        cache.open_cache(tmp_path / "features")


def test_standardised_data_keep_their_centre_and_scale(tmp_path):
    original = dataset().standardized()
    cache.save(original, tmp_path / "features")
    opened = cache.open_cache(tmp_path / "features")
    assert_same(original, opened)
    assert opened.standardized() is opened


def test_saving_leaves_nothing_beside(folder):
    assert [p.name for p in folder.parent.iterdir()] == ["features"]


def test_an_existing_folder_is_not_overwritten_unless_asked(folder):
    other = dataset(regions=False, name="other")
    with pytest.raises(DataError, match="exists already"):
        cache.save(other, folder)
    assert_same(dataset(), cache.open_cache(folder))
    cache.save(other, folder, overwrite=True)
    assert_same(other, cache.open_cache(folder, verify=True))
    assert [p.name for p in folder.parent.iterdir()] == ["features"]


def test_only_a_cache_is_overwritten(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "im1.jpg").write_bytes(b"precious")
    with pytest.raises(DataError, match="exists already"):
        cache.save(dataset(), tmp_path / "photos", overwrite=True)
    assert (tmp_path / "photos" / "im1.jpg").read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["photo.jpg", "sub/photo.jpg", "features.npy/photo.jpg"])
def test_a_cache_with_files_of_others_in_it_is_not_overwritten(folder, name):
    if name.startswith("features"):
        (folder / "features.npy").unlink()
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"precious")
    with pytest.raises(DataError, match=f"hashgym did not write {name.partition('/')[0]} in it"):
        cache.save(dataset(name="other"), folder, overwrite=True)
    assert (folder / name).read_bytes() == b"precious"
    assert [p.name for p in folder.parent.iterdir()] == ["features"]


def test_a_folder_with_some_meta_json_is_not_overwritten(tmp_path):
    """Other programs have files of that name too."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "meta.json").write_text('{"format": "other"}')
    (tmp_path / "data" / "features.npy").write_bytes(b"precious")
    with pytest.raises(DataError, match="exists already"):
        cache.save(dataset(), tmp_path / "data", overwrite=True)
    assert (tmp_path / "data" / "features.npy").read_bytes() == b"precious"


def test_a_link_is_not_overwritten(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(DataError, match="exists already"):
        cache.save(dataset(name="other"), tmp_path / "link", overwrite=True)
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match="exists already"):
        cache.save(dataset(name="other"), tmp_path / "link")
    assert_same(dataset(), cache.open_cache(folder))


def test_an_interruption_between_the_two_renames_keeps_the_old_one(folder, monkeypatch):
    rename = Path.rename

    def interrupted(path, target):
        if path.name.endswith(".partial"):
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cache.save(dataset(name="other"), folder, overwrite=True)
    assert_same(dataset(), cache.open_cache(folder))
    assert [p.name for p in folder.parent.iterdir()] == ["features"]


def test_a_cache_of_an_older_version_is_overwritten_if_asked(folder):
    (folder / ".hashgym").unlink()
    cache.save(dataset(name="other"), folder, overwrite=True)
    assert_same(dataset(name="other"), cache.open_cache(folder))


def test_a_failed_save_keeps_the_old_one(folder, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        cache.save(dataset(name="other"), folder, overwrite=True)
    monkeypatch.undo()
    assert_same(dataset(), cache.open_cache(folder, verify=True))
    assert [p.name for p in folder.parent.iterdir()] == ["features"]


def test_labels_that_do_not_count_are_kept_for_another_split(tmp_path):
    original = dataset()
    cache.save(original, tmp_path / "features")
    columns = [0, 2]
    cache.seal(tmp_path / "features", "twelve", original.names, original.label_names, original.provenance, columns)
    counted = cache.open_cache(tmp_path / "features", verify=True)
    assert counted.label_names == ("sky", "été")
    np.testing.assert_array_equal(counted.labels, original.labels[:, columns])
    assert_same(original, cache.open_cache(tmp_path / "features", all_labels=True))


@pytest.mark.parametrize(
    "name", [f"{key}.npy" for key in cache.ARRAYS if key not in ("center", "scale")] + ["names.json"]
)
def test_a_missing_file_is_named(folder, name):
    if name.startswith("view"):
        cache.save(with_views(), folder, overwrite=True)
    (folder / name).unlink()
    for act in (cache.open_cache, cache.verify):
        with pytest.raises(DataError, match=name):
            act(folder)


@pytest.mark.parametrize("name", ["features.npy", "regions.npy", "labels.npy", "names.json"])
@pytest.mark.parametrize("left", [0, 7, -1])
def test_a_truncated_file_is_named(folder, name, left):
    os.truncate(folder / name, left if left >= 0 else (folder / name).stat().st_size - 1)
    for act in (cache.open_cache, cache.verify):
        with pytest.raises(DataError, match=name):
            act(folder)


def test_all_damaged_files_are_named(folder):
    for name in ("features.npy", "thumbnails.npy"):
        content = bytearray((folder / name).read_bytes())
        content[-1] ^= 1
        (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=r"features\.npy has changed.*thumbnails\.npy has changed"):
        cache.verify(folder)
    with pytest.raises(DataError, match="is damaged"):
        cache.open_cache(folder, verify=True)


def test_a_pickle_is_never_loaded(folder, tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    name = folder / "train.npy"
    np.save(name, np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"train\.npy"):
        cache.open_cache(folder)
    # even with a valid digest in meta.json
    meta = json.loads((folder / "meta.json").read_text())
    meta.pop("digest")
    meta["files"]["train.npy"] |= {"bytes": name.stat().st_size, "sha256": checksums.sha256(name)}
    (folder / "meta.json").write_text(json.dumps(meta | {"digest": sealed.digest(meta)}))
    with pytest.raises(DataError, match=r"train\.npy.*not an array of numbers"):
        cache.open_cache(folder, verify=True)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("replacement", [np.zeros((12, 5)), np.zeros((5, 12), np.float32), np.zeros((12, 5), ">f4")])
def test_an_array_of_another_kind_is_rejected(folder, replacement):
    np.save(folder / "features.npy", replacement)
    with pytest.raises(DataError, match=r"features\.npy"):
        cache.open_cache(folder)


def test_another_version_is_rejected(folder):
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"version": 99}))
    with pytest.raises(DataError, match="version 99"):
        cache.open_cache(folder)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"format": "something else"}', "\x00\xff", "[" * 100_000])
def test_a_broken_meta_is_rejected(folder, content):
    (folder / "meta.json").write_text(content, encoding="latin-1")
    with pytest.raises(DataError, match=r"meta\.json"):
        cache.open_cache(folder)


def test_a_folder_that_is_not_a_cache_is_described(tmp_path):
    for path in (tmp_path, tmp_path / "absent", Path(__file__)):
        with pytest.raises(DataError, match="is not a cache"):
            cache.open_cache(path)


def test_features_that_are_not_finite_are_rejected_on_opening(tmp_path):
    original = dataset()
    cache.save(original, tmp_path / "features")
    features = np.load(tmp_path / "features" / "features.npy")
    features[4, 2] = np.nan
    np.save(tmp_path / "features" / "features.npy", features)
    with pytest.raises(DataError, match="has changed"):
        cache.open_cache(tmp_path / "features")
    cache.seal(tmp_path / "features", "twelve", original.names, original.label_names, original.provenance)
    with pytest.raises(DataError, match="image 4"):
        cache.open_cache(tmp_path / "features")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_changed_byte_passes_verification(folder, tmp_path_factory, data):
    """A byte changed, a piece cut off or added anywhere: verification raises, and so does opening small files."""
    damaged = tmp_path_factory.mktemp("damaged") / "features"
    shutil.copytree(folder, damaged)
    file = damaged / data.draw(st.sampled_from(sorted({p.name for p in folder.iterdir()} - {owned.MARKER})))
    content = bytearray(file.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    how = data.draw(st.sampled_from(["change", "cut", "insert"]))
    if how == "change":
        content[at] ^= data.draw(st.integers(1, 255))
    elif how == "cut":
        del content[at:]
    else:
        content[at:at] = data.draw(st.binary(min_size=1, max_size=40))
    file.write_bytes(content)
    try:
        cache.verify(damaged)
    except DataError as error:
        assert "features" in str(error)  # the folder's name at least  # noqa: PT017
        with pytest.raises(DataError):
            cache.open_cache(damaged)
    else:  # only white space in a JSON file can go unnoticed
        assert file.name == "meta.json"
        assert_same(dataset(), cache.open_cache(damaged))
