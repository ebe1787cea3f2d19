"""Encoding of pictures: which ones, their codes, and stopped jobs."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashgym import gallery, load_encoder
from hashgym.data import DataError
from hashgym.data.pictures import open_image
from hashgym.gallery import encode as encode_module
from hashgym.gallery import encode_images, find_images, open_codes
from hashgym.gallery.encode import EncodingReport, EncodingSettings, update_codes
from hashgym.storage import owned, sealed
from hashgym.storage.job_store import JobStore
from tests.gallery.small import content, picture, write_encoder, write_pictures

NAMES = ["b/10.png", "b/9.png", "a.png", "b/c/1.PNG", "z z.jpg"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "encoder.onnx")


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "regions.onnx", regions=True)


def encode(encoder: Path, images: list[Path | str], out: Path, **options: object) -> Path:
    return encode_images(encoder, images, out, progress=False, **options)


@pytest.mark.parametrize("kind", ["encoder", "several"])
@pytest.mark.parametrize(("batch_size", "workers"), [(64, 1), (2, 3)])
def test_every_row_is_its_picture(kind, batch_size, workers, request, tmp_path):
    path = request.getfixturevalue(kind)
    write_pictures(tmp_path / "photos", NAMES)
    codes = open_codes(encode(path, [tmp_path / "photos"], tmp_path / "out", batch_size=batch_size, workers=workers))
    run = load_encoder(path)
    assert codes.names == ["a.png", "b/9.png", "b/10.png", "b/c/1.PNG", "z z.jpg"]
    assert (codes.root, codes.encoder, codes.bits, len(codes)) == (tmp_path / "photos", run.digest, 48, 5)
    for row, name in enumerate(codes.names):
        image = open_image(tmp_path / "photos" / name)
        views = [run.encode_pictures(run.prepare(image.crop(box), regions=False)) for box in run.boxes(*image.size)]
        assert [view.words[0, 0].tolist() for view in views] == codes.words[row].tolist()
        assert codes.sizes[row].tolist() == [32, 24]
    assert codes.words.shape[1] == (6 if kind == "several" else 1)
    assert codes.kept[:, 0].all()
    assert load_encoder(tmp_path / "out" / "encoder.onnx").digest == run.digest
    assert (codes.sets(slice(1, 3)).words == codes.words[1:3]).all()


def test_sizes_are_of_the_upright_picture(encoder, tmp_path):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    picture(0, 30, 20).save(tmp_path / "turned.jpg", exif=exif)
    assert open_codes(encode(encoder, [tmp_path / "turned.jpg"], tmp_path / "out")).sizes.tolist() == [[20, 30]]


def test_the_same_pictures_however_they_are_named(encoder, tmp_path, monkeypatch):
    photos = write_pictures(tmp_path / "photos", NAMES)
    (photos / ".hidden").mkdir()
    write_pictures(photos, [".hidden/x.png", ".y.png"])
    (photos / "notes.txt").write_text("no picture")
    monkeypatch.chdir(tmp_path)
    wanted = content(encode(encoder, [photos], tmp_path / "0"))
    for i, places in enumerate(
        [
            ["photos", "photos/a.png", "photos/b"],
            ["photos/b/../b", "photos/*.png", "photos/z z.jpg"],
            ["./photos/**/*", "photos"],
            ["photos/*"],
        ],
        1,
    ):
        assert content(encode(encoder, places, tmp_path / str(i))) == wanted
    root, names = find_images(["photos/b/c", "photos/b/9.png"])
    assert (root, names) == (photos / "b", ["9.png", "c/1.PNG"])
    assert find_images(["photos/b/9.png"]) == (photos / "b", ["9.png"])
    os.symlink(photos, tmp_path / "link")
    assert find_images(["link/b", "photos/b"]) == (photos / "b", ["9.png", "10.png", "c/1.PNG"])


def test_places_without_pictures(encoder, tmp_path):
    (tmp_path / "empty").mkdir()
    for place, message in [
        ("empty", "holds no images"),
        ("absent", "does not exist"),
        ("empty/*.png", "no image or folder matches"),
        (os.fsdecode(b"\xff"), "does not exist"),
    ]:
        with pytest.raises(DataError, match=message):
            encode(encoder, [tmp_path / place], tmp_path / "out")
    with pytest.raises(DataError, match="there are no images"):
        encode(encoder, [], tmp_path / "out")
    with pytest.raises(ValueError, match="at least 1"):
        encode(encoder, [tmp_path], tmp_path / "out", workers=0)
    assert not list(tmp_path.glob("out*"))


NAME = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=12)


@settings(max_examples=25, deadline=None)
@given(st.lists(NAME, min_size=1, max_size=4, unique_by=str.casefold), st.binary(min_size=1, max_size=4))
def test_names_of_any_characters(encoder, tmp_path_factory, names, octets):
    folder = tmp_path_factory.mktemp("any")
    names = ["x" + name + ".png" for name in names]
    if b"/" not in octets and b"\0" not in octets:
        names.append("y" + os.fsdecode(octets) + ".png")
    write_pictures(folder / "photos", names)
    codes = open_codes(encode(encoder, [folder / "photos"], folder / "out"))
    assert sorted(codes.names) == sorted(names)
    (folder / "photos" / "[x].png").write_bytes((folder / "photos" / names[0]).read_bytes())
    assert find_images([folder / "photos" / "[x].png"])[1] == ["[x].png"]  # a file before a pattern


def test_unreadable_files_stop_or_are_left_out(encoder, tmp_path):
    photos = write_pictures(tmp_path / "photos", [f"{i}.png" for i in range(9)])
    os.truncate(photos / "3.png", 20)
    (photos / "5.jpg").write_text("no picture")
    (photos / "6.png").unlink()
    os.mkfifo(photos / "6.png")
    os.mkfifo(photos / "7.webp")
    with pytest.raises(DataError, match=r"3\.png.*same command again; --skip-bad"):
        encode(encoder, [photos], tmp_path / "out", batch_size=2)
    codes = open_codes(encode(encoder, [photos], tmp_path / "out", batch_size=2, skip_bad=True))
    assert codes.names == ["0.png", "1.png", "2.png", "4.png", "5.png", "7.png", "8.png"]
    assert list(codes.left_out) == ["3.png", "5.jpg", "6.png", "7.webp"]
    assert "is not a file" in codes.left_out["7.webp"]
    alone = open_codes(encode(encoder, [photos / name for name in codes.names], tmp_path / "alone"))
    for key in ("words", "kept", "sizes"):
        np.testing.assert_array_equal(getattr(codes, key), getattr(alone, key))
    with pytest.raises(DataError, match="none of the 1 images can be read"):
        encode(encoder, [photos / "5.jpg"], tmp_path / "none", skip_bad=True)


def test_a_finished_folder_is_left_alone(encoder, several, tmp_path):
    photos = write_pictures(tmp_path / "photos", NAMES)
    out = encode(encoder, [photos], tmp_path / "out")
    before = content(out)
    (out / "journal.jsonl").write_text("of a run that was killed at its very end")
    encode(encoder, [photos], out)
    assert content(out) == before
    with pytest.raises(DataError, match=r"codes of another encoder.*another --out"):
        encode(several, [photos], out)
    write_pictures(tmp_path / "else", NAMES)
    with pytest.raises(DataError, match=r"codes of pictures in another folder, .*photos: .*index --add"):
        encode(encoder, [tmp_path / "else"], out)
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="exists already"):
        encode(encoder, [photos], tmp_path / "other")
    assert content(out) == before


def test_killed_at_any_moment_it_ends_with_the_same_bytes(several, tmp_path):
    photos = write_pictures(tmp_path / "photos", [f"{i}.png" for i in range(40)])
    (photos / "x.png").write_text("no picture")
    wanted = content(encode(several, [photos], tmp_path / "whole", batch_size=3, skip_bad=True))
    slow = (
        "import sys, time\nfrom hashgym.gallery import encode\nreal = encode.open_image\n"
        "def call(*args, **options):\n    time.sleep(0.02)\n    return real(*args, **options)\n"
        "encode.open_image = call\nencode.encode_images(*sys.argv[1:2], sys.argv[2:3], sys.argv[3], batch_size=3, "
        "skip_bad=True, progress=False)\nassert 'torch' not in sys.modules"
    )
    args = [sys.executable, "-c", slow, str(several), str(photos), str(tmp_path / "out")]
    journal = tmp_path / "out.partial" / "journal.jsonl"
    for lines in (2, 6):
        process = subprocess.Popen(args)
        while not (journal.exists() and journal.read_text().count("\n") > lines):
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with pytest.raises(DataError, match="is not finished"):
        open_codes(tmp_path / "out")
    with pytest.raises(DataError, match="another, unfinished job"):
        encode(several, [photos / "1.png"], tmp_path / "out")
    subprocess.run(args, check=True)
    assert content(tmp_path / "out") == wanted


def update(encoder: Path, images: list[Path | str], out: Path, **options: Any) -> EncodingReport:
    return update_codes(encoder, images, out, EncodingSettings(progress=False, **options))


def paint(photos: Path, name: str, seed: int) -> None:
    """Another picture under a name."""
    picture(seed).save(photos / name, "PNG")


def same(a: Path, b: Path) -> None:
    """Two folders have the same codes of the same pictures."""
    one, two = open_codes(a), open_codes(b)
    assert (one.names, one.left_out) == (two.names, two.left_out)
    for key in ("words", "kept", "sizes", "stamps", "digests"):
        np.testing.assert_array_equal(getattr(one, key), getattr(two, key))


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != owned.MARKER)


def test_only_changed_pictures_are_encoded_again(encoder, tmp_path, monkeypatch):
    photos, out = write_pictures(tmp_path / "photos", NAMES), tmp_path / "out"
    (photos / "bad.png").write_text("no picture")
    assert update(encoder, [photos], out, skip_bad=True) == EncodingReport(out, new=5)
    first = open_codes(out)
    read = []
    real = encode_module.open_image
    monkeypatch.setattr(encode_module, "open_image", lambda path, name: read.append(name) or real(path, name))
    assert update(encoder, [photos], out) == EncodingReport(out, unchanged=5)
    assert read == []

    paint(photos, "b/9.png", 99)  # changed
    (photos / "a.png").unlink()  # removed
    write_pictures(photos, ["b/new.png"], first=50)  # new
    paint(photos, "bad.png", 77)  # can be read now
    os.utime(photos / "b/10.png", ns=(1, 1))  # another time, the same picture
    assert update(encoder, [photos], out) == EncodingReport(out, new=2, changed=1, removed=1, unchanged=3)
    assert sorted(read) == ["b/9.png", "b/new.png", "bad.png"]
    same(out, encode(encoder, [photos], tmp_path / "again"))
    assert entries(out) == ["2", "encoder.onnx", "meta.json"]
    assert (first.words.shape, first.names[0]) == ((5, 1, 1), "a.png")  # what was open stays open

    paint(photos, "b/9.png", 100)
    assert update(encoder, [photos], out, batch_size=2) == EncodingReport(out, changed=1, unchanged=5)
    same(out, encode(encoder, [photos], tmp_path / "third"))
    assert entries(out) == ["3", "encoder.onnx", "meta.json"]
    os.truncate(photos / "b/9.png", 20)
    with pytest.raises(DataError, match=r"b/9\.png.*--skip-bad"):
        update(encoder, [photos], out)
    same(out, tmp_path / "third")
    assert update(encoder, [photos], out, skip_bad=True) == EncodingReport(out, removed=1, unchanged=5)
    assert list(open_codes(out, verify=True).left_out) == ["b/9.png"]
    assert update(encoder, [photos], out) == EncodingReport(out, unchanged=5)


def test_an_index_takes_the_new_codes_under_the_same_ids(encoder, tmp_path):
    photos, out = write_pictures(tmp_path / "photos", NAMES), tmp_path / "out"
    gallery.build([encode(encoder, [photos], out)], tmp_path / "index", "brute-force", progress=False)
    paint(photos, "b/9.png", 99)
    encode(encoder, [photos], out)
    gallery.build([out], tmp_path / "index", add=True, progress=False)
    with gallery.open_gallery(tmp_path / "index") as found:
        match = found.search(photos / "b/9.png", k=1)[0]
        assert (match.name, match.distance, len(found)) == ("b/9.png", 0, 5)
        assert [found.names[i] for i in range(5)] == open_codes(out).names


def test_the_same_size_and_time_need_a_checksum(encoder, tmp_path):
    photos, out = write_pictures(tmp_path / "photos", NAMES), tmp_path / "out"
    for name in NAMES:
        picture(1).save(photos / name, "BMP")
    encode(encoder, [photos], out)
    before = (photos / "a.png").stat()
    picture(2).save(photos / "a.png", "BMP")
    os.utime(photos / "a.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (photos / "a.png").stat().st_size == before.st_size
    assert update(encoder, [photos], out) == EncodingReport(out, unchanged=5)
    assert update(encoder, [photos], out, checksum=True) == EncodingReport(out, changed=1, unchanged=4)
    same(out, encode(encoder, [photos], tmp_path / "again"))
    assert update(encoder, [photos], out, checksum=True) == EncodingReport(out, unchanged=5)


def test_pictures_that_are_there_and_not_named_stay(encoder, tmp_path):
    photos, out = write_pictures(tmp_path / "photos", NAMES), tmp_path / "out"
    before = content(encode(encoder, [photos], out))
    for places, options in (([photos / "a.png", photos / "z z.jpg"], {}), ([photos], {"exclude": ["b"]})):
        with pytest.raises(DataError, match=r"codes of 3 pictures that still exist.*name all its pictures"):
            encode(encoder, places, out, **options)
    assert content(out) == before


def test_codes_of_an_older_version(encoder, tmp_path):
    """They open; a note says that changes since then cannot be recognised."""
    photos, out = write_pictures(tmp_path / "photos", NAMES), tmp_path / "out"
    encode(encoder, [photos], out)
    meta = json.loads((out / "meta.json").read_text())
    for name in ("stamps.npy", "digests.npy"):
        (out / name).unlink()
        del meta["files"][name]
    del meta["left_out_stamps"], meta["digest"]
    (out / "meta.json").write_text(json.dumps(meta | {"digest": sealed.digest(meta)}))
    paint(photos, "a.png", 99)
    before = content(out)
    done = update(encoder, [photos], out)
    assert (done.unchanged, len(open_codes(out))) == (5, 5)
    assert "did not record sizes and modification times" in done.note
    write_pictures(photos, ["new.png"])
    with pytest.raises(DataError, match=r"codes of other pictures, and .*did not record.*encode to another --out"):
        update(encoder, [photos], out)
    assert content(out) == before


@pytest.mark.parametrize("after", range(0, 48, 4))
def test_an_update_that_is_stopped_leaves_the_old_codes_or_the_new(encoder, tmp_path, monkeypatch, after):
    """The power may fail at every sync to disk: fail at the ``after``-th, check, then resume."""
    photos, out = write_pictures(tmp_path / "photos", NAMES), tmp_path / "out"
    encode(encoder, [photos], out, batch_size=2)
    encode(encoder, [photos], tmp_path / "old")
    (photos / "a.png").unlink()
    paint(photos, "b/9.png", 99)
    paint(photos, "z z.jpg", 98)
    encode(encoder, [photos], tmp_path / "new")
    count, real = iter(range(10**9)), os.fsync

    def failing(descriptor: int) -> None:
        if next(count) == after:
            raise KeyboardInterrupt
        real(descriptor)

    with monkeypatch.context() as power:
        power.setattr(os, "fsync", failing)
        with suppress(KeyboardInterrupt):
            encode(encoder, [photos], out, batch_size=2)
    same(out, tmp_path / ("old" if len(open_codes(out, verify=True)) == 5 else "new"))
    encode(encoder, [photos], out, batch_size=2)
    encode(encoder, [photos], out, batch_size=2)
    same(out, tmp_path / "new")
    assert len([path for path in out.iterdir() if path.name.isdecimal()]) == 1
    assert not (out / "words.npy").exists()
    assert not list(tmp_path.glob("*.partial"))


def test_an_unfinished_job_detects_changes(encoder, tmp_path):
    photos = write_pictures(tmp_path / "photos", [f"{i}.png" for i in range(9)])
    (photos / "7.png").write_text("no picture")
    with pytest.raises(DataError, match=r"7\.png.*Fix or remove it and run the same command again"):
        encode(encoder, [photos], tmp_path / "out", batch_size=2)
    paint(photos, "1.png", 99)  # of a batch that was finished
    paint(photos, "7.png", 98)
    encode(encoder, [photos], tmp_path / "out", batch_size=2)
    same(tmp_path / "out", encode(encoder, [photos], tmp_path / "whole", batch_size=2))


def test_an_unfinished_job_goes_on_though_pictures_came_and_went(encoder, tmp_path, monkeypatch):
    photos = write_pictures(tmp_path / "photos", [f"{i}.png" for i in range(9)])
    (photos / "7.png").write_text("no picture")
    with pytest.raises(DataError, match=r"7\.png.*Fix or remove it and run the same command again"):
        encode(encoder, [photos], tmp_path / "out", batch_size=2)
    (photos / "7.png").unlink()
    (photos / "0.png").unlink()
    write_pictures(photos, ["5a.png", "new.png"], first=60)
    read = []
    real = encode_module.open_image
    with monkeypatch.context() as watch:
        watch.setattr(encode_module, "open_image", lambda path, name: read.append(name) or real(path, name))
        done = update(encoder, [photos], tmp_path / "out", batch_size=2)
    assert sorted(read) == ["1.png", "5a.png", "6.png", "8.png", "new.png"]  # 1.png is in the batch of 0.png
    assert (done.new, len(open_codes(tmp_path / "out"))) == (9, 9)
    same(tmp_path / "out", encode(encoder, [photos], tmp_path / "whole"))
    assert entries(tmp_path / "out") == ["2", "encoder.onnx", "meta.json"]
    wanted = ["digests.npy", "kept.npy", "names.json", "sizes.npy", "stamps.npy", "words.npy"]
    assert entries(tmp_path / "out" / "2") == wanted


def test_a_picture_that_changes_while_it_is_read(encoder, tmp_path, monkeypatch):
    photos = write_pictures(tmp_path / "photos", NAMES)
    real = encode_module.open_image

    def slow(path, name):
        image = real(path, name)
        if name == "a.png":
            paint(photos, "a.png", 99)
            os.utime(photos / "a.png", ns=(1, 1))
        return image

    with monkeypatch.context() as edits:
        edits.setattr(encode_module, "open_image", slow)
        with pytest.raises(DataError, match=r"image a\.png changed while it was read"):
            encode(encoder, [photos], tmp_path / "out")
    encode(encoder, [photos], tmp_path / "out")
    same(tmp_path / "out", encode(encoder, [photos], tmp_path / "whole"))


def test_links_are_counted_or_followed_to_where_they_lead(encoder, tmp_path):
    photos = write_pictures(tmp_path / "album" / "photos", ["1.png", "sub/2.png"])
    other = write_pictures(tmp_path / "album" / "other", ["3.png", "deep/4.png"])
    for link, target in (("5.png", other / "3.png"), ("o", other), ("loop", photos), ("6.png", photos / "1.png")):
        (photos / link).symlink_to(target)
    for place in (photos, f"{photos}/*", f"{photos}/**/*.png"):
        done = update(encoder, [place], tmp_path / "out")
        codes = open_codes(tmp_path / "out")
        assert (codes.root, codes.names) == (photos, ["1.png", "sub/2.png"])
        assert "links (--follow-links follows them)" in done.passed_over
    everything = encode(encoder, [photos], tmp_path / "followed", follow_links=True)
    codes = open_codes(everything)
    assert codes.root == tmp_path / "album"
    assert codes.names == ["other/3.png", "other/deep/4.png", "photos/1.png", "photos/sub/2.png"]
    with pytest.raises(DataError, match=r"no images to encode \(skipped: 1 link \(--follow-links"):
        encode(encoder, [photos / "5.png"], tmp_path / "one")
    assert find_images([photos / "5.png"], follow_links=True) == (other, ["3.png"])
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "1.png").symlink_to(photos / "1.png")
    with pytest.raises(DataError, match=r"links holds no images \(skipped: 1 link \(--follow-links"):
        encode(encoder, [tmp_path / "links"], tmp_path / "one")


def test_a_link_put_in_place_of_a_listed_picture_is_not_followed_out(encoder, tmp_path, monkeypatch):
    photos = write_pictures(tmp_path / "photos", NAMES)
    picture(0).save(tmp_path / "secret.png")
    real = encode_module.list_places

    def late(*args):
        found = real(*args)
        (photos / "a.png").unlink()
        (photos / "a.png").symlink_to(tmp_path / "secret.png")
        return found

    monkeypatch.setattr(encode_module, "list_places", late)
    with pytest.raises(DataError, match=r"image a\.png lies outside"):
        encode(encoder, [photos], tmp_path / "out")


def test_skipped_files_are_counted(encoder, tmp_path, monkeypatch):
    photos = write_pictures(tmp_path / "photos", [*NAMES, "@eaDir/a.png", "raw/x.png", "b/raw.png", "bare"])
    for name in ("b/1.psd", "notes.txt", "Thumbs.db"):
        (photos / name).touch()
    done = update(encoder, [photos], photos / "codes", exclude=["raw"])
    assert done.new == 7
    assert done.passed_over == (
        "2 files that are not read: 1 .psd (pictures of a format that is not read here: convert them to JPEG), 1 .txt; "
        "1 by --exclude; 1 hidden"
    )
    monkeypatch.chdir(photos)
    for places in (["."], ["*"], ["**/*"]):  # with its own output in it
        assert update(encoder, places, "codes", exclude=["raw"]).unchanged == 7
    (photos / "codes" / "words.npy").unlink()
    (photos / "codes").rename(photos / "codes.partial")
    (photos / "codes.partial" / "journal.jsonl").touch()
    assert len(find_images(["."], exclude=["raw"])[1]) == 7


def test_what_is_excluded_does_not_depend_on_how_it_is_found(tmp_path, monkeypatch):
    write_pictures(
        tmp_path / "photos", ["1.png", "thumb_2.png", "sub/3.png", "sub/private/4.png", "sub/private/x/5.png"]
    )
    monkeypatch.chdir(tmp_path)
    wanted = ["1.png", "sub/3.png"]
    for places in (["photos"], ["photos/*"], ["photos/**"], ["photos/1.png", "photos/thumb_2.png", "photos/sub"]):
        exclude = ["thumb_*", "private" if places[-1] == "photos/sub" else "sub/private"]
        assert find_images(places, exclude=exclude)[1] == wanted, places


def test_a_photo_from_the_far_future_is_a_photo(encoder, tmp_path):
    photos = write_pictures(tmp_path / "photos", NAMES)
    os.utime(photos / NAMES[0], (10_500_000_000, 10_500_000_000))  # in 2302; int64 holds ns until 2262
    assert update(encoder, [photos], tmp_path / "out").new == len(NAMES)
    assert update(encoder, [photos], tmp_path / "out").unchanged == len(NAMES)


def test_other_folders_and_damaged_ones_are_rejected(encoder, tmp_path, monkeypatch):
    out = encode(encoder, [write_pictures(tmp_path / "photos", NAMES)], tmp_path / "out")
    with pytest.raises(DataError, match=r"not a folder of codes.*hashgym encode"):
        open_codes(tmp_path / "photos")
    words, meta = (out / "words.npy").read_bytes(), (out / "meta.json").read_text()
    (out / "words.npy").write_bytes(words[:-8] + b"\0" * 8)
    with monkeypatch.context() as large:
        large.setattr(sealed, "SMALL", 0)
        open_codes(out, verify=False)
        for verify in ("once", "once", True):
            with pytest.raises(DataError, match=r"words\.npy has changed"):
                open_codes(out, verify=verify)
    with pytest.raises(DataError, match=r"words\.npy has changed"):
        open_codes(out)
    (out / "words.npy").write_bytes(words[:-8])
    with pytest.raises(DataError, match=r"words\.npy has \d+ of \d+ bytes"):
        open_codes(out)
    (out / "meta.json").write_text(meta.replace('"bits": 48', '"bits": 40'))
    with pytest.raises(DataError, match="damaged or was edited"):
        open_codes(out)
    changed = json.loads(meta) | {"version": 99}
    (out / "meta.json").write_text(json.dumps(changed))
    with pytest.raises(DataError, match="version 99"):
        open_codes(out)
    (out / "meta.json").write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        open_codes(out)


def test_encoders_of_features_are_rejected(encoder, tmp_path):
    torch = pytest.importorskip("torch")
    from hashgym.encoders import write

    write.write(tmp_path / "features.onnx", torch.nn.Identity(), dim=4, bits=4, source={})
    with pytest.raises(ValueError, match=r"takes features.*hashgym export"):
        encode(tmp_path / "features.onnx", [tmp_path], tmp_path / "out")


def test_links_as_output(encoder, tmp_path, monkeypatch):
    """One to nothing fails before any work; one to codes has the work beside them, where it can be renamed."""
    photos = write_pictures(tmp_path / "photos", NAMES)
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(DataError, match="dangling exists already"):
        update(encoder, [photos], tmp_path / "dangling")
    assert not list(tmp_path.glob("*.partial"))
    out = encode(encoder, [photos], tmp_path / "disk" / "out")
    (tmp_path / "link").symlink_to(out)
    paint(photos, "b/9.png", 99)
    begun, publish = [], JobStore.publish
    monkeypatch.setattr(JobStore, "publish", lambda self, *args: (begun.append(self.folder), publish(self, *args)))
    assert update(encoder, [photos], tmp_path / "link").changed == 1
    assert begun == [Path(os.path.realpath(out)).with_name("out.partial")]
    same(out, encode(encoder, [photos], tmp_path / "new"))


@pytest.mark.skipif(os.name == "nt", reason="folders cannot be locked")
def test_two_updates_at_once(encoder, tmp_path, monkeypatch):
    """The second must not delete what the first has published and not named yet as left by a killed run."""
    photos, out = write_pictures(tmp_path / "photos", NAMES), tmp_path / "out"
    encode(encoder, [photos], out)
    paint(photos, "b/9.png", 99)
    publish, refused = JobStore.publish, []

    def published(self: JobStore, *args: Any) -> None:
        publish(self, *args)
        with pytest.raises(DataError, match=r"another process is writing to .*out: wait for it") as error:
            update(encoder, [photos], out)
        refused.append(error)

    monkeypatch.setattr(JobStore, "publish", published)
    assert update(encoder, [photos], out).changed == 1
    monkeypatch.undo()
    assert len(refused) == 1
    same(out, encode(encoder, [photos], tmp_path / "new"))
    assert update(encoder, [photos], out).unchanged == 5


def test_only_leftovers_of_an_update_are_deleted(encoder, tmp_path):
    """Other results may lie in the folder under a number, also with our marker; so may the user's files."""
    photos, out = write_pictures(tmp_path / "photos", NAMES), tmp_path / "out"
    encode(encoder, [photos], out)
    other = encode(encoder, [photos / "a.png"], out / "2")
    (out / "3").mkdir()
    (out / "4").write_text("mine")
    before = content(other)
    for seed in (98, 99):
        paint(photos, "b/9.png", seed)
        with pytest.warns(UserWarning, match="is no longer needed, but is kept"):
            assert update(encoder, [photos], out).changed == 1
        (out / json.loads((out / "meta.json").read_text())["content"] / "mine.png").write_bytes(b"mine")
    assert content(other) == before
    assert entries(out) == ["2", "3", "4", "5", "6", "encoder.onnx", "meta.json"]
    paint(photos, "b/9.png", 97)
    with pytest.warns(UserWarning, match="is kept"):
        update(encoder, [photos], out)
    assert all((out / number / "mine.png").is_file() for number in "56")
    same(out, encode(encoder, [photos], tmp_path / "new"))


@pytest.mark.parametrize("name", ["../out/pipe", "/dev/zero", "pipe"])
def test_no_file_elsewhere_and_no_device_is_read(encoder, tmp_path, name):
    """Their size is 0, and reading may not end."""
    out = encode(encoder, [write_pictures(tmp_path / "photos", NAMES)], tmp_path / "out")
    os.mkfifo(out / "pipe")
    meta = json.loads((out / "meta.json").read_text())
    del meta["digest"]
    meta["files"][name] = {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    (out / "meta.json").write_text(json.dumps(meta | {"digest": sealed.digest(meta)}))
    with pytest.raises(DataError, match="is damaged"):
        open_codes(out)


def test_a_picture_that_comes_back_after_a_killed_update_has_its_codes(encoder, tmp_path, monkeypatch):
    photos, out = write_pictures(tmp_path / "photos", ["a.png", "b.png"]), tmp_path / "out"
    encode(encoder, [photos], out)
    kept = (photos / "b.png").read_bytes()
    (photos / "b.png").unlink()
    write_pictures(photos, ["c.png"], first=50)
    with monkeypatch.context() as killed:
        killed.setattr(encode_module._Job, "_publish", _killed)
        with pytest.raises(KeyboardInterrupt):
            encode(encoder, [photos], out)
    (photos / "b.png").write_bytes(kept)
    encode(encoder, [photos], out)
    assert open_codes(out).names == ["a.png", "b.png", "c.png"]
    same(out, encode(encoder, [photos], tmp_path / "again"))


def _killed(*_, **__):
    raise KeyboardInterrupt
