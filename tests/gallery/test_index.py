"""An index of pictures compared with brute force over their codes, after changes and kills."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hashgym import load_encoder
from hashgym.codes import hamming
from hashgym.data import DataError
from hashgym.gallery import build, encode_images, open_codes, open_gallery, read_meta, remove, verify
from hashgym.gallery.index import _Content, _replace
from hashgym.gallery.search import REGIONS, Gallery
from hashgym.storage import owned, sealed
from tests.gallery.small import content, picture, write_encoder, write_pictures

BACKENDS = {
    "brute-force": "numpy",
    "faiss": "faiss",
    "faiss-hash": "faiss",
    "buckets": "numpy",
    "prefix": "numpy",
    "milvus": "milvus_lite",
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "encoder.onnx", regions=True)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders a, b and c of ten pictures; in c/8.png number 3 of b is the top right quarter, c/9.png is a/9.png."""
    folder = tmp_path_factory.mktemp("photos")
    for first, kind in enumerate("abc"):
        write_pictures(folder, [f"{kind}/{i}.png" for i in range(10)], first=10 * first)
    collage = picture(99, 64, 48)
    collage.paste(picture(13), (32, 0))
    collage.save(folder / "c" / "8.png")
    shutil.copyfile(folder / "a" / "9.png", folder / "c" / "9.png")
    return folder


@pytest.fixture(scope="module")
def codes(encoder: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Codes of each folder, of all, and of the first two."""
    folder = tmp_path_factory.mktemp("codes")
    for name in ("a", "b", "c"):
        encode_images(encoder, [photos / name], folder / name, progress=False)
    encode_images(encoder, [photos], folder / "all", progress=False)
    return folder


def make(codes: list[Path], out: Path, backend: str | None = "brute-force", **options: object) -> Path:
    return build(codes, out, backend, progress=False, **options)


def naive(gallery: Gallery, encoder: Path, image: object) -> list[tuple[int, int, int]]:
    """Distance, id and region of every picture of a gallery, in order."""
    run = load_encoder(encoder)
    query = run.encode_pictures(run.prepare(image, regions=False)).words[0, 0]
    found = []
    for row, id in enumerate(gallery.ids.tolist()):
        gaps = [
            int(hamming(word, query)) if kept else 999
            for word, kept in zip(gallery.words[row], gallery.kept[row], strict=True)
        ]
        found.append((min(gaps), id, gaps.index(min(gaps))))
    return sorted(found)


def same(a: Gallery, b: Gallery) -> bool:
    """Whether two galleries have the same pictures with the same codes, whatever their ids."""

    def described(gallery: Gallery) -> dict[str, object]:
        names = [gallery.names.at(row) for row in range(len(gallery))]
        return {n: (w.tolist(), k.tolist()) for n, w, k in zip(names, gallery.words, gallery.kept, strict=True)}

    return described(a) == described(b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_search_is_brute_force(backend, encoder, photos, codes, tmp_path):
    if importlib.util.find_spec(BACKENDS[backend]) is None:
        pytest.skip(f"{BACKENDS[backend]} is not installed")
    gallery = open_gallery(make([codes / "all"], tmp_path / "index", backend))
    assert (len(gallery), gallery.encoder.bits, gallery.root) == (30, 48, photos)
    for image in (picture(13), picture(77), photos / "c" / "8.png"):
        wanted = naive(gallery, encoder, _opened(image))
        for k in (1, 7, 30, 50):
            found = gallery.search(image, k)
            assert [(m.distance, m.id, m.region) for m in found] == wanted[:k]
        for radius in (0, 9, 48):
            within = [match for match in wanted if match[0] <= radius]
            assert [(m.distance, m.id, m.region) for m in gallery.search(image, None, radius)] == within
            assert len(gallery.search(image, 2, radius)) == min(2, len(within))
    gallery.close()


def _opened(image):
    from hashgym.data.pictures import open_image

    return open_image(image) if isinstance(image, Path) else image


def test_the_region_that_matched(photos, codes, tmp_path):
    gallery = open_gallery(make([codes / "all"], tmp_path / "index"))
    own, collage = gallery.search(picture(13), 2)
    assert (own.name, own.region, own.box, own.distance) == ("b/3.png", 0, None, 0)
    assert (collage.name, REGIONS[collage.region], collage.distance) == ("c/8.png", "top right", 0)
    assert collage.box == (32, 0, 64, 24)
    assert collage.path == photos / "c" / "8.png" == gallery.path(collage.id)
    assert gallery.size(collage.id) == (64, 48)
    for wrong in ({"k": 0}, {"radius": -1}, {"k": None}):
        with pytest.raises(ValueError, match=r"at least|give k"):
            gallery.search(picture(0), **wrong)
    with pytest.raises(KeyError, match="no image 30"):
        gallery.path(30)


def test_codes_are_the_images(codes, tmp_path):
    gallery, source = open_gallery(make([codes / "all"], tmp_path / "index")), open_codes(codes / "all")
    assert (gallery.codes.words == source.words).all()
    assert (gallery.codes.kept == source.kept).all()
    assert list(gallery.names.values()) == source.names
    twice = open_gallery(make([codes / "a", codes / "a", codes / "b", codes / "all"], tmp_path / "twice"))
    assert len(twice) == 30
    assert same(twice, gallery)


def test_adding_and_removing_keep_ids(encoder, photos, codes, tmp_path):
    index = make([codes / "b"], tmp_path / "index")
    assert open_gallery(index).names[3] == "3.png"
    make([codes / "a", codes / "c"], index, None, add=True)
    gallery = open_gallery(index)
    assert (gallery.root, gallery.names[3], gallery.names[10], gallery.names[29]) == (
        *(photos, "b/3.png", "a/0.png", "c/9.png"),
    )
    assert same(gallery, open_gallery(make([codes / "all"], tmp_path / "whole")))
    remove(index, ["b/3.png", "c/9.png"], progress=False)
    gallery = open_gallery(index)
    assert gallery.ids.tolist() == [i for i in range(30) if i not in (3, 29)]
    assert [match.name for match in gallery.search(picture(13), 1)] == ["c/8.png"]
    remove(index, ["c/9.png", "b/3.png"])  # as after a kill at its end
    assert read_meta(index) == gallery.meta
    with pytest.raises(DataError, match=r"no image c/9\.png"):
        remove(index, ["c/9.png"])
    make([codes / "all"], index, None, add=True)
    gallery = open_gallery(index)
    assert gallery.ids.tolist() == [*(i for i in range(30) if i not in (3, 29)), 30, 31]  # no id is given twice
    assert {gallery.names[30], gallery.names[31]} == {"b/3.png", "c/9.png"}
    assert same(gallery, open_gallery(tmp_path / "whole"))
    with pytest.raises(DataError, match=r"no image moon\.png"):
        remove(index, ["a/0.png", "moon.png"])
    with pytest.raises(DataError, match="no image would be left"):
        remove(index, list(gallery.names.values()))
    assert sorted(path.name for path in index.iterdir()) == [".hashgym", "4", "meta.json"]


def test_the_id_of_a_removed_picture_is_never_given_again(encoder, photos, codes, tmp_path):
    index = remove(make([codes / "a"], tmp_path / "index"), ["9.png"], progress=False)
    known = encode_images(encoder, [photos / "a" / "0.png"], tmp_path / "known", progress=False)
    assert read_meta(make([known], index, None, add=True))["next_id"] == 10
    gallery = open_gallery(make([codes / "a"], index, None, add=True))
    assert gallery.ids.tolist() == [*range(9), 10]
    assert gallery.names[10] == "9.png"


def test_options_of_a_back_end_stay_when_the_index_changes(codes, tmp_path):
    options = {"prefix": 4, "candidates": 7}
    index = make([codes / "a"], tmp_path / "index", "prefix", options=options)
    for change in (lambda: make([codes / "b"], index, None, add=True), lambda: remove(index, ["b/3.png"], False)):
        gallery = open_gallery(index)
        assert {key: getattr(gallery.index, key) for key in options} == options
        change()
    assert {key: getattr(open_gallery(index).index, key) for key in options} == options


def test_a_changed_picture_gets_new_codes_under_its_id(encoder, codes, photos, tmp_path):
    place = shutil.copytree(photos / "a", tmp_path / "a")
    encode_images(encoder, [place], tmp_path / "before", progress=False)
    index = make([tmp_path / "before"], tmp_path / "index")
    write_pictures(place, ["4.png"], first=50)
    encode_images(encoder, [place / "4.png"], tmp_path / "after", progress=False)
    make([tmp_path / "after"], index, add=True)
    gallery = open_gallery(index)
    (match,) = gallery.search(picture(50), 1)
    assert (match.id, match.name, match.distance, len(gallery)) == (4, "4.png", 0, 10)
    twice = open_gallery(make([tmp_path / "before", tmp_path / "after"], tmp_path / "twice"))
    assert (twice.words == gallery.words).all()


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["a", "b", "c", "all"]), min_size=1, max_size=4), st.integers(0, 1 << 30))
def test_any_order_of_changes(codes, photos, tmp_path_factory, order, seed):
    """The index has the images that were added and not removed, and no id changes."""
    index = tmp_path_factory.mktemp("index") / "index"
    rng, ids, there = np.random.default_rng(seed), {}, set()
    for step, name in enumerate(order):
        make([codes / name], index, add=step > 0)
        there |= {photos / (name if name != "all" else ".") / n for n in open_codes(codes / name).names}
        if len(there) > 3:
            gone = rng.choice(sorted(there), 2, replace=False).tolist()
            remove(index, [path.relative_to(read_meta(index)["root"]).as_posix() for path in gone], progress=False)
            there -= set(gone)
        gallery = open_gallery(index)
        found = {gallery.root / name: id for id, name in gallery.names.items()}
        assert set(found) == there
        assert all(ids.get(path, id) == id for path, id in found.items() if path in ids)
        ids = found


def test_invalid_arguments_are_rejected_before_work(encoder, codes, photos, tmp_path):
    other = write_encoder(tmp_path / "other.onnx", bits=40)
    encode_images(other, [photos / "a"], tmp_path / "other", progress=False)
    index = make([codes / "a"], tmp_path / "index")
    before = content(index)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    for given_codes, out, options, message in [
        ([codes / "a", tmp_path / "other"], tmp_path / "new", {}, "another encoder.*40 bits.*48 bits"),
        ([tmp_path / "other"], index, {"add": True}, "another encoder.*cannot be compared"),
        ([codes / "b"], index, {}, "exists already: --add"),
        ([codes / "b"], index, {"add": True, "backend": "buckets"}, "has the back end brute-force"),
        ([codes / "b"], tmp_path / "none", {"add": True}, "leave out --add"),
        ([codes / "b"], tmp_path / "full", {}, "is not an index"),
        ([], tmp_path / "new", {}, "nothing to index"),
        ([photos], tmp_path / "new", {}, "not a folder of codes"),
        ([codes / "a"], tmp_path / "new", {"backend": "abacus"}, "abacus"),
        ([codes / "a"], tmp_path / "new", {"options": {"uri": "x"}}, "uri"),
    ]:
        with pytest.raises(ValueError, match=message):
            make(given_codes, out, **options)
    assert content(index) == before
    assert not (tmp_path / "new").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full", "index", "other", "other.onnx"]
    with pytest.raises(DataError, match="is not an index"):
        remove(photos, ["a/0.png"])


def test_building_again_does_nothing(codes, tmp_path):
    index = make([codes / "a"], tmp_path / "index")
    before = content(index)
    owned.create(index / "2")  # of a run that was killed
    make([codes / "a"], index)
    assert not (index / "2").exists()
    assert content(index) == before
    make([codes / "b"], index, add=True)
    after = content(index)
    make([codes / "b"], index, add=True)
    assert content(index) == after != before


def test_damaged_indices(codes, tmp_path):
    index = make([codes / "a"], tmp_path / "index")

    def broken(change) -> str:
        copy = shutil.copytree(index, tmp_path / "copy")
        change(copy)
        with pytest.raises(ValueError, match=r"again|(no|not an) index") as error:
            open_gallery(copy)
        shutil.rmtree(copy)
        return str(error.value)

    assert "ids.npy" in broken(lambda copy: (copy / "1" / "ids.npy").unlink())
    assert "bytes" in broken(lambda copy: os.truncate(copy / "1" / "words.npy", 200))
    assert "meta.json" in broken(lambda copy: os.truncate(copy / "meta.json", 200))
    assert "not an index" in broken(lambda copy: (copy / "meta.json").unlink())
    assert "engine" in broken(lambda copy: shutil.rmtree(copy / "1" / "engine"))

    def edited(copy: Path) -> None:
        meta = json.loads((copy / "meta.json").read_text())
        (copy / "meta.json").write_text(json.dumps(meta | {"root": "/"}))

    assert "edited" in broken(edited)

    def swapped(copy: Path) -> None:
        other = make([codes / "b", codes / "c"], tmp_path / "other")
        shutil.rmtree(copy / "1" / "engine")
        shutil.copytree(other / "1" / "engine", copy / "1" / "engine")

    assert "do not fit together" in broken(swapped)


def test_moved_pictures_are_found_by_root(encoder, photos, tmp_path):
    shutil.copytree(photos, tmp_path / "here")
    encode_images(encoder, [tmp_path / "here"], tmp_path / "codes", progress=False)
    index = make([tmp_path / "codes"], tmp_path / "index")
    (tmp_path / "here").rename(tmp_path / "there")
    with pytest.raises(DataError, match="with --root"):
        open_gallery(index)
    (tmp_path / "here").mkdir()
    with pytest.raises(DataError, match=r"such as a/0\.png, are not in .* with --root"):
        open_gallery(index)
    with pytest.raises(DataError, match="--root"):
        open_gallery(index, tmp_path / "nowhere")
    gallery = open_gallery(index, tmp_path / "there")
    assert gallery.search(picture(13), 1)[0].path == tmp_path / "there" / "b" / "3.png"
    (tmp_path / "there" / "b" / "3.png").unlink()
    (tmp_path / "secret.png").write_bytes(b"")
    (tmp_path / "there" / "b" / "3.png").symlink_to(tmp_path / "secret.png")
    gallery = open_gallery(index, tmp_path / "there")
    (match,) = gallery.search(picture(13), 1)
    assert (match.name, match.path) == ("b/3.png", None)
    with pytest.raises(DataError, match="lies outside"):
        gallery.path(match.id)


def test_two_processes_never_change_an_index_together(codes, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    index = make([codes / "a"], tmp_path / "index")
    descriptor = os.open(index, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(DataError, match="another process"):
        make([codes / "b"], index, add=True)
    os.close(descriptor)
    make([codes / "b"], index, add=True)


def killed(left: int, change) -> bool:
    """Whether a process is killed, at its write to the disk number ``left``, before a change is done."""

    def dying(real):
        def call(*args, **options):
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        return call

    if not (child := os.fork()):
        for module, name in ((os, "replace"), (os, "fsync"), (os, "mkdir"), (os, "unlink"), (os, "rmdir")):
            setattr(module, name, dying(getattr(module, name)))
        try:
            change()
        except BaseException:
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or status == 0
    return os.WIFSIGNALED(status)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_any_moment_it_leaves_the_old_index_or_the_new(codes, tmp_path, monkeypatch):
    """At every write to the disk of a build, and at every other one of adding and of removing."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # slow, and no power is lost here

    def added(name: str, **options: object):
        return lambda index: make([codes / name], index, **options)

    index, copy = tmp_path / "index", tmp_path / "copy"
    gone = ["a/0.png", "b/9.png"]
    for change in (added("a"), added("b", add=True), lambda index: remove(index, gone, progress=False)):
        old, before = (open_gallery(index), content(index)) if index.exists() else (None, None)
        undisturbed = tmp_path / "undisturbed"
        if old is not None:
            shutil.copytree(index, undisturbed)
        change(undisturbed)
        new, wanted = open_gallery(undisturbed), content(undisturbed)
        states = []
        for left in range(0, 1000, 1 if old is None else 2):
            if before is not None:
                shutil.copytree(index, copy)
            if not killed(left, partial(change, copy)):
                break
            if old is None and not (copy / "meta.json").exists():
                assert not copy.exists() or not list(copy.rglob("meta.json"))
                states.append("old")
                change(copy)
            else:
                found = open_gallery(copy)
                assert same(found, new) or (old is not None and same(found, old))
                states.append("new" if same(found, new) else "old")
                if states[-1] == "old":
                    change(copy)
                else:
                    _written(copy)
            assert content(copy) == wanted
            shutil.rmtree(copy)
        assert states == sorted(states, reverse=True)
        assert states.count("old") > 10
        assert "new" in states
        shutil.rmtree(copy)
        shutil.rmtree(index, ignore_errors=True)
        undisturbed.rename(index)


def _written(index: Path) -> None:
    """The first step of every writer."""
    with pytest.raises(DataError, match="no image moon"):
        remove(index, ["moon.png"])


def test_searching_while_another_process_changes_the_index(codes, tmp_path):
    """A reader sees one index or another, whole."""
    index = make([codes / "a"], tmp_path / "index")
    program = (
        "import sys\nfrom hashgym import gallery\nindex, a, b = sys.argv[1:]\n"
        "for _ in range(1000):\n"
        "    gallery.build([b], index, add=True, progress=False)\n"
        "    gallery.remove(index, [f'b/{i}.png' for i in range(10)], progress=False)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(index), str(codes / "a"), str(codes / "b")])
    try:
        until = time.monotonic() + 3
        seen = set()
        while len(seen) < 2 or time.monotonic() < until:
            assert process.poll() is None
            gallery = open_gallery(index)
            seen.add(len(gallery))
            assert gallery.search(picture(3), 1)[0].name.endswith("3.png")
        assert seen == {10, 20}
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_torch_is_never_imported(codes, tmp_path):
    code = (
        "import sys\nfrom hashgym import gallery\nfrom hashgym.gallery import page\nfrom PIL import Image\n"
        "codes, index = sys.argv[1:]\ngallery.build([codes], index, 'brute-force', progress=False)\n"
        "found, query = gallery.open_gallery(index), Image.new('RGB', (9, 9))\n"
        "page.results(found, query, found.search(query))\n"
        "print([m for m in ('torch', 'sklearn', 'onnx', 'flask') if m in sys.modules])"
    )
    args = [sys.executable, "-c", code, str(codes / "a"), str(tmp_path / "index")]
    assert subprocess.run(args, capture_output=True, text=True, check=True).stdout.strip() == "[]"


PHOTOS = (["2023/photo.jpg", "2024/photo.jpg"], ["0/a.png", "1/b.png", "2/c.png"], ["1/a.png"])


def foreign(folder: Path, names: list[str]) -> dict[str, bytes]:
    """Files that hashgym did not write."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(f"mine: {name}".encode())
    return content(folder)


@pytest.mark.parametrize("names", [*PHOTOS, ["meta.json.new"], ["1"], [".hashgym.txt"], ["1/engine/x"]])
@pytest.mark.parametrize("options", [{}, {"backend": "abacus"}, {"add": True}, {"options": {"uri": "x"}}])
def test_folders_of_others_are_neither_taken_nor_deleted(codes, tmp_path, names, options):
    before = foreign(tmp_path / "Pictures", names)
    with pytest.raises(ValueError, match=r"is not an index|abacus|takes no options") as error:
        make([codes / "a"], tmp_path / "Pictures", **options)
    assert content(tmp_path / "Pictures") == before
    if not options:
        assert f"it has {names[0].partition('/')[0]}" in str(error.value)
        assert "choose another --out" in str(error.value)


def test_other_folders_of_hashgym_are_not_used_for_an_index(encoder, codes, photos, tmp_path):
    """Each carries the marker, but is not an unfinished index."""
    places = [shutil.copytree(codes / "a", tmp_path / "codes"), tmp_path / "codes.partial", tmp_path / "begun"]
    owned.mark(places[0])
    (owned.create(places[1]) / "journal.jsonl").write_text("{}")
    (owned.create(places[2]) / "1").mkdir()
    foreign(places[2], ["2/photo.jpg"])
    for place in places:
        before = content(place)
        with pytest.raises(DataError, match="is not an index"):
            make([codes / "a"], place)
        assert content(place) == before


@pytest.mark.parametrize("names", [["42/photo.jpg", "7"], ["2/photo.jpg", "3", "4/x/y"], ["photo.jpg", "x/2"]])
def test_files_of_others_in_an_index_are_left_alone(codes, tmp_path, names):
    index = make([codes / "a"], tmp_path / "index")
    foreign(index, names)
    (index / "9").mkdir()

    def kept() -> bool:
        return all((index / name).read_bytes() == f"mine: {name}".encode() for name in names) and (index / "9").is_dir()

    make([codes / "b"], index, add=True)
    assert kept()
    remove(index, ["a/0.png"], progress=False)
    assert kept()
    assert len(open_gallery(index)) == 19
    assert not (index / "1").exists()


def test_files_of_others_in_a_content_of_an_index_are_left_alone(codes, tmp_path):
    index = make([codes / "a"], tmp_path / "index")
    foreign(index, ["1/photo.jpg", "1/engine/notes.txt"])
    with pytest.warns(UserWarning, match=r"holds photo\.jpg, engine/notes\.txt, which hashgym did not write"):
        make([codes / "b"], index, add=True)
    assert (index / "1" / "photo.jpg").read_bytes() == b"mine: 1/photo.jpg"
    assert (index / "1" / "engine" / "notes.txt").exists()
    assert len(open_gallery(index)) == 20


def test_what_a_killed_run_left_of_meta_json_is_removed(codes, tmp_path):
    index = make([codes / "a"], tmp_path / "index")
    (index / "meta.json.new").write_bytes((index / "meta.json").read_bytes()[:50])
    make([codes / "b"], index, add=True)
    assert sorted(path.name for path in index.iterdir()) == [".hashgym", "2", "meta.json"]
    begun = owned.create(tmp_path / "begun")
    owned.create(begun / "1")
    (begun / "meta.json.new").write_bytes(b"{")
    (begun / f".meta.json.{'a' * 8}.{'0' * 16}.hashgym-tmp").write_bytes(b"{")
    assert len(open_gallery(make([codes / "a"], begun))) == 10


def test_a_folder_that_was_empty_before_a_failure_is_there_after_it(codes, tmp_path, monkeypatch):
    from hashgym.index import brute_force

    monkeypatch.setattr(brute_force.BruteForceIndex, "_write", lambda self, folder: 1 / 0)
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new"):
        with pytest.raises(ZeroDivisionError):
            make([codes / "a"], tmp_path / name)
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


@pytest.mark.parametrize("late", [False, True])
def test_an_interruption_while_meta_json_is_replaced_leaves_an_index(codes, tmp_path, monkeypatch, late):
    index = make([codes / "a"], tmp_path / "index")
    replace = os.replace

    def interrupted(source, target):
        if Path(target).name == "meta.json":
            if late:
                replace(source, target)
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make([codes / "b"], index, add=True)
    assert len(open_gallery(index)) == (20 if late else 10)
    make([codes / "b"], index, add=True)
    assert len(open_gallery(index)) == 20
    assert sorted(path.name for path in index.iterdir()) == [".hashgym", "2", "meta.json"]


def unmarked(index: Path) -> Path:
    """An index as older versions wrote it."""
    for marker in index.rglob(owned.MARKER):
        marker.unlink()
    return index


def test_indices_of_older_versions_are_changed_like_others(codes, tmp_path):
    index = unmarked(make([codes / "a"], tmp_path / "index"))
    assert len(open_gallery(index)) == 10
    foreign(index, ["7/photo.jpg", "2/words.npy"])  # 2 looks like what a killed run of an older version has left
    make([codes / "b"], index, add=True)
    unmarked(index)
    remove(index, ["a/0.png"], progress=False)
    assert len(open_gallery(index)) == 19
    assert sorted(path.name for path in index.iterdir()) == ["2", "4", "7", "meta.json"]


def test_files_of_others_in_an_index_of_an_older_version_are_left_alone(codes, tmp_path):
    index = unmarked(make([codes / "a"], tmp_path / "index"))
    foreign(index, ["1/photo.jpg"])
    make([codes / "b"], index, add=True)
    assert (index / "1" / "photo.jpg").read_bytes() == b"mine: 1/photo.jpg"
    assert len(open_gallery(index)) == 20


@pytest.mark.parametrize("number", ["../codes", "1/../1", "", "x", "0", "-1", "²"])
def test_a_content_elsewhere_is_rejected(codes, tmp_path, number):
    index = make([codes / "a"], tmp_path / "index")
    meta = json.loads((index / "meta.json").read_text())
    changed = {key: value for key, value in meta.items() if key != "digest"} | {"content": number}
    (index / "meta.json").write_text(json.dumps(changed | {"digest": sealed.digest(changed)}))
    for use in (open_gallery, verify, lambda folder: remove(folder, ["0.png"], progress=False)):
        with pytest.raises(DataError, match="not named by a number"):
            use(index)


def test_every_file_is_compared_with_its_checksum_however_large(codes, encoder, photos, tmp_path):
    """Names of more than 16 MB, which are not read when an index is opened."""
    names = ["0.png", *(f"{i:05}/{'x' * 200}/{'y' * 200}" for i in range(42_000))]
    words, ones = np.zeros((len(names), 1, 1), np.uint64), np.ones((len(names), 1), np.bool_)
    sizes = np.ones((len(names), 2), np.int32)
    new = _Content(photos / "a", names, np.arange(len(names)), words, ones, sizes, 48, len(names), {})
    index = owned.create(tmp_path / "index")
    meta = {"backend": "brute-force", "encoder": load_encoder(encoder).digest, "codes": []}
    _replace(index, None, new, encoder, meta, {}, False)
    assert (index / "1" / "text.npy").stat().st_size > sealed.SMALL
    assert len(open_gallery(index)) == len(names)
    rng, size = np.random.default_rng(0), (index / "1" / "text.npy").stat().st_size
    for place in rng.integers(200, size, 5).tolist():
        with (index / "1" / "text.npy").open("r+b") as file:
            file.seek(place)
            octet = file.read(1)[0]
            file.seek(place)
            file.write(bytes([octet ^ 1]))
            file.flush()
            for use in (open_gallery, verify):
                with pytest.raises(DataError, match=r"text\.npy has changed"):
                    use(index)
            file.seek(place)
            file.write(bytes([octet]))
    open_gallery(index)


@pytest.mark.parametrize("next_id", [-7, 0, 1, 2**70])
def test_an_index_that_would_give_an_id_twice_is_damaged(codes, tmp_path, next_id):
    out = make([codes / "a"], tmp_path / "index")
    meta = json.loads((out / "meta.json").read_text())
    del meta["digest"]
    meta["next_id"] = next_id
    (out / "meta.json").write_text(json.dumps(meta | {"digest": sealed.digest(meta)}))
    before = content(out)
    for change in (lambda: open_gallery(out), lambda: build([codes / "b"], out, add=True, progress=False)):
        with pytest.raises(DataError, match="do not fit together"):
            change()
    assert content(out) == before
