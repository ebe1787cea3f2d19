"""Every back end against a double loop over images and codes; saving, loading, invalid arguments."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashgym import codes, index
from hashgym.codes import CodeSets
from hashgym.index.brute_force import BruteForceIndex
from hashgym.storage import atomic, owned, sealed
from hashgym.storage.checksums import sha256

LOCAL = ["brute-force", "buckets", "prefix", *(["faiss", "faiss-hash"] if find_spec("faiss") else [])]
TABLES = {
    "buckets": "hashgym.index.buckets",
    "prefix": "hashgym.index.buckets",
    "faiss-hash": "hashgym.index.faiss",
}
local = pytest.mark.parametrize("backend", LOCAL)


def make_sets(rng, n, bits, most, spread):
    """Codes near one centre, so that many tie and some repeat."""
    kept = rng.random((n, most)) < 0.5
    kept[:, 0] = True
    return CodeSets.of((rng.random(bits) < 0.5) ^ (rng.random((n, most, bits)) < spread), kept)


class Naive:
    """A naive index: a dict from id to codes, and loops."""

    def __init__(self):
        self.images = {}

    def add(self, ids, sets):
        for i, words, kept in zip(ids.tolist(), sets.words, sets.kept, strict=True):
            self.images[i] = [code for code, keep in zip(words, kept, strict=True) if keep]

    def remove(self, ids):
        for i in ids.tolist():
            del self.images[i]

    def ranking(self, query):
        """(distance, id) of all images."""
        found = []
        for i, own in self.images.items():
            found.append(
                (min(sum(int(a ^ b).bit_count() for a, b in zip(code, query, strict=True)) for code in own), i)
            )
        return sorted(found)


def assert_same(found, naive, queries, ks, radii):
    words = codes.pack(queries)
    assert found.ids.tolist() == sorted(naive.images)
    assert len(found) == len(naive.images)
    rankings = [naive.ranking(query) for query in words]
    for k in ks:
        ids, distances = found.search(queries, k)
        assert ids.dtype == distances.dtype == np.int64
        assert distances.shape == (len(queries), min(k, len(naive.images)))
        assert [list(zip(d, i, strict=True)) for d, i in zip(distances.tolist(), ids.tolist(), strict=True)] == [
            ranking[:k] for ranking in rankings
        ]
    for radius in radii:
        offsets, ids, distances = found.within(words, radius)
        assert ids.dtype == distances.dtype == np.int64
        rows = list(zip(distances.tolist(), ids.tolist(), strict=True))
        got = [rows[offsets[i] : offsets[i + 1]] for i in range(len(queries))]
        assert got == [[hit for hit in ranking if hit[0] <= radius] for ranking in rankings]


def exercise(found, seed, n, bits, most, spread, folder):
    """Add, search, remove, add, save, load, searching after each; the naive index goes along."""
    rng, naive = np.random.default_rng(seed), Naive()
    queries = codes.unpack(make_sets(rng, 3, bits, 1, spread).words[:, 0], bits)
    pool = rng.permutation(4 * n)
    for start, stop in ((0, n), (n, n + n // 2)):
        ids, sets = pool[start:stop], make_sets(rng, stop - start, bits, most, spread) if stop > start else None
        if sets is not None:
            near = codes.unpack(sets.words[:, -1], bits)[0]
            queries = np.concatenate([queries, near[None]])
            found.add(ids, sets)
            naive.add(ids, sets)
        ks, radii = (1, 3, n, 4 * n), (0, 2, bits // 3, bits, bits + 5)
        assert_same(found, naive, queries, ks, radii)
        gone = rng.permutation(sorted(naive.images))[: rng.integers(0, len(naive.images) + 1) // 2]
        found.remove(gone)
        naive.remove(gone)
        assert_same(found, naive, queries, ks[:2], radii[1:3])
    found.save(folder)
    with index.load(folder) as loaded:
        assert (type(loaded), loaded.bits) == (type(found), bits)
        assert_same(loaded, naive, queries, ks[1:2], radii[1:2])


shapes = {
    "seed": st.integers(0, 2**32),
    "n": st.integers(1, 30),
    "bits": st.sampled_from([1, 5, 8, 12, 32, 33, 64, 65, 128, 192, 300, 600]),
    "most": st.integers(1, 4),
    "spread": st.sampled_from([0.0, 0.02, 0.2, 0.5]),
}


@local
@settings(max_examples=15)
@given(eager=st.booleans(), **shapes)
def test_every_back_end_equals_a_loop(backend, eager, tmp_path_factory, seed, n, bits, most, spread):
    with pytest.MonkeyPatch.context() as patch, index.make(backend, bits) as found:
        if eager and backend in TABLES:  # tables are used also where comparing all codes would be quicker
            patch.setattr(import_module(TABLES[backend]), "_COMPARED", 1e-9)
        exercise(found, seed, n, bits, most, spread, tmp_path_factory.mktemp("index") / "made")


@pytest.mark.parametrize("backend", LOCAL[1:])
@settings(max_examples=4)
@given(
    seed=st.integers(0, 2**32),
    bits=st.sampled_from([16, 32, 64, 128]),
    most=st.sampled_from([1, 3]),
    spread=st.sampled_from([0.02, 0.1, 0.5]),
)
def test_back_ends_agree_with_brute_force_on_many_codes(backend, seed, bits, most, spread):
    rng = np.random.default_rng(seed)
    sets, ids = make_sets(rng, 20_000, bits, most, spread), rng.permutation(50_000)[:20_000]
    queries = codes.unpack(sets.words[:6, 0], bits) ^ (rng.random((6, bits)) < 0.05)
    plain, found = index.make("brute-force", bits), index.make(backend, bits)
    for one in (plain, found):
        one.add(ids, sets)
    for k in (1, 10, 700, 9_000):
        for ours, theirs in zip(plain.search(queries, k), found.search(queries, k), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    for radius in (0, 1, 2, 3, 5, 8, 13):
        for ours, theirs in zip(plain.within(queries, radius), found.within(queries, radius), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def filled(backend="brute-force", **options):
    made = index.make(backend, 3, **options)
    made.add([4, 7], CodeSets.of([[1, 0, 0], [0, 1, 1]]))
    return made


@local
def test_an_empty_index_finds_nothing(backend, tmp_path):
    empty = index.make(backend, 12)
    empty.save(tmp_path / "index")
    emptied = filled(backend)
    emptied.remove([7, 4])
    for made, bits in ((empty, 12), (index.load(tmp_path / "index"), 12), (emptied, 3)):
        queries = np.ones((2, bits), bool)
        assert len(made) == 0
        assert made.ids.tolist() == []
        assert [x.shape for x in made.search(queries, 5)] == [(2, 0), (2, 0)]
        assert [x.tolist() for x in made.within(queries, 2)] == [[0, 0, 0], [], []]
    emptied.add(np.array([1], np.uint8), CodeSets.of([[1, 1, 1]]))
    assert emptied.search(np.ones((1, 3), bool), 5)[0].tolist() == [[1]]


BITS = np.array([[1, 0, 0]])


@local
@pytest.mark.parametrize(
    ("do", "reason"),
    [
        (lambda i: i.add([1, 1], CodeSets.of([[1, 0, 0], [0, 1, 1]])), "given more than once: 1"),
        (lambda i: i.add([1, 7], CodeSets.of([[1, 0, 0], [0, 1, 1]])), "ids already: 7; remove them"),
        (lambda i: i.add([1], CodeSets.of([[1, 0, 0], [0, 1, 1]])), "2 images need 2 ids, got 1"),
        (lambda i: i.add([-1], CodeSets.of(BITS)), "0 or more, got -1"),
        (lambda i: i.add([0.5], CodeSets.of(BITS)), "ids must be integers"),
        (lambda i: i.add(np.array([2**63], np.uint64), CodeSets.of(BITS)), r"ids must be below 2\*\*63"),
        (lambda i: i.add([[1]], CodeSets.of(BITS)), r"shape \(n,\)"),
        (lambda i: i.add([1], CodeSets.of([[1, 0, 0, 1]])), "codes of 3 bits, got 4"),
        (lambda i: i.add([1], BITS), "CodeSets"),
        (lambda i: i.remove([4, 5, *range(10, 20)]), "no images with these ids: 5, 10, 11, 12, 13 and 6 more"),
        (lambda i: i.remove([4, 4]), "more than once: 4"),
        (lambda i: i.search(BITS, 0), "k must be at least 1, got 0"),
        (lambda i: i.search(BITS[:, :2], 1), "codes of 3 bits"),
        (lambda i: i.search(BITS[0], 1), "codes of 3 bits"),
        (lambda i: i.search(np.array([[8]], np.uint64), 1), "longer code"),
        (lambda i: i.within(BITS, -1), "radius must be at least 0, got -1"),
        (lambda i: i.search(BITS, 2.0), "k must be an integer, got 2.0"),
        (lambda i: i.search(BITS, True), "k must be an integer, got True"),
        (lambda i: i.within(BITS, 1.5), "radius must be an integer, got 1.5"),
        (lambda i: i.within(np.zeros((1, 2), np.uint64), 1), "codes of 3 bits"),
    ],
)
def test_invalid_arguments_are_rejected_and_change_nothing(backend, do, reason):
    made = filled(backend)
    with pytest.raises(ValueError, match=reason):
        do(made)
    assert made.ids.tolist() == [4, 7]
    assert made.search(BITS, 2)[1].tolist() == [[0, 3]]


def test_back_ends_are_named():
    assert list(index.backends()) == ["brute-force", "faiss", "faiss-hash", "prefix", "buckets", "milvus"]
    with pytest.raises(ValueError, match="unknown back end 'flann'; there are brute-force, buckets, "):
        index.make("flann", 8)
    with pytest.raises(ValueError, match="takes no options, got uri"):
        index.make("brute-force", 8, uri="http://localhost:19530")
    with pytest.raises(ValueError, match=r"unknown back end 'fais' \(did you mean 'faiss'\?\)"):
        index.make("fais", 8)
    for bits in (0, 8.0, True):
        with pytest.raises(ValueError, match="bits must be"):
            index.make("brute-force", bits)
    assert index.make("brute-force", np.int64(8)).bits == 8


@pytest.fixture(autouse=True)
def registry():
    """The registry of back ends; names that a test adds are removed."""
    before = dict(index.base.BACKENDS.entries), dict(index.base.BACKENDS.descriptions)
    yield index.base.BACKENDS
    index.base.BACKENDS.entries, index.base.BACKENDS.descriptions = before


def test_a_back_end_of_ones_own_is_made_saved_and_loaded_by_its_name(tmp_path, registry):
    @index.register("mine")
    class Mine(BruteForceIndex):
        """A back end of my own."""

    assert index.backends()["mine"] == "A back end of my own."
    made = filled("mine")
    assert (type(made), made.backend) == (Mine, "mine")
    made.save(tmp_path)
    assert type(index.load(tmp_path)) is Mine
    with pytest.raises(ValueError, match="a back end 'mine' is registered already"):
        index.register("mine", FlatIndex)
    registry.entries.pop("mine")
    with pytest.raises(ValueError, match=r"'mine', which is not registered: call hashgym\.index\.register before"):
        index.load(tmp_path)
    with pytest.raises(ValueError, match="Mine is not registered, and no module holds it"):
        made.save(tmp_path)


class FlatIndex(BruteForceIndex):
    """A back end of a module."""


def test_a_back_end_that_is_not_registered_is_known_by_its_module(tmp_path):
    place = f"{__name__}:FlatIndex"
    filled(place).save(tmp_path)
    assert type(index.load(tmp_path)) is FlatIndex
    reseal(tmp_path, lambda meta: meta.update(backend="antigravity:FlatIndex"))
    with pytest.raises(ValueError, match="not registered: import antigravity before loading it"):
        index.load(tmp_path)
    assert "antigravity" not in sys.modules
    with pytest.raises(ValueError, match=r"must be a subclass of hashgym\.index\.Index"):
        index.make("pathlib:Path", 8)
    with pytest.raises(ValueError, match=r"must be a subclass of hashgym\.index\.Index"):
        index.register("list", list)


@pytest.mark.parametrize(
    ("backend", "package"), [("faiss", "faiss"), ("milvus", "pymilvus"), ("milvus", "milvus_lite.server")]
)
def test_a_missing_package_is_named_with_its_extra(backend, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"pip install 'hashgym\\[{backend}\\]'"):
        index.make(backend, 8)


def test_searching_needs_no_torch():
    script = (
        "import sys, numpy as np; from hashgym.codes import CodeSets; from hashgym import index\n"
        f"for backend in {LOCAL!r}:\n"
        "    made = index.make(backend, 2); made.add([3], CodeSets.of(np.eye(2, dtype=bool)[:1]))\n"
        "    made.search(np.eye(2, dtype=bool), 1)\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_saving_again_replaces_the_old_version_and_leaves_other_files(tmp_path):
    made = filled()
    made.save(tmp_path)
    before = {file.name for file in tmp_path.iterdir()}
    (tmp_path / "names.json").write_text("[]")
    made.save(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {*before, "names.json"}
    made.remove([4])
    made.save(tmp_path)
    assert len(list(tmp_path.iterdir())) == len(before) + 1
    assert index.load(tmp_path).ids.tolist() == [7]


def test_equal_indices_are_equal_bytes(tmp_path):
    made, again = filled(), index.make("brute-force", 3)
    again.add([7], CodeSets.of([[0, 1, 1]]))
    again.add([4], CodeSets.of([[1, 0, 0]]))
    made.save(tmp_path / "a")
    again.save(tmp_path / "b")
    contents = [{f.name: f.read_bytes() for f in (tmp_path / name).iterdir()} for name in "ab"]
    assert contents[0] == contents[1]


def test_the_format_is_that_of_older_versions(tmp_path):
    """Names of files have the digests of their contents, so that equal names are equal bytes."""
    filled().save(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "counts-bf786772bf2f1f44.npy",
        "ids-3998e1bc522f1119.npy",
        "index.json",
        "words-4236816d1d9df353.npy",
    ]
    assert sha256(tmp_path / "index.json") == "9086654296d24d3c0d1c78c3427865631c241985c767f556afc0157badfcba0f"


def test_an_unfinished_save_leaves_the_old_version(tmp_path, monkeypatch):
    made = filled()
    made.save(tmp_path)
    made.remove([4])
    monkeypatch.setattr(type(made), "_write", lambda self, folder: (folder / "words.npy").write_bytes(b"half") / 0)
    with pytest.raises(ZeroDivisionError):
        made.save(tmp_path)
    monkeypatch.undo()
    assert index.load(tmp_path).ids.tolist() == [4, 7]
    owned.create(tmp_path / ".saving")  # as a killed process leaves it
    (tmp_path / ".saving" / "words.npy").write_bytes(b"half")
    whole = b"whole, but index.json does not name it yet"
    (tmp_path / f"words-{hashlib.sha256(whole).hexdigest()[:16]}.npy").write_bytes(whole)
    with atomic.atomic_write(tmp_path / "index.json") as file:
        file.write((tmp_path / "index.json").read_bytes())
        (temporary,) = atomic.temporaries(tmp_path / "index.json")
    temporary.write_bytes(b"half")
    assert index.load(tmp_path).ids.tolist() == [4, 7]
    assert index.foreign(tmp_path) == []
    made.save(tmp_path)
    assert index.load(tmp_path).ids.tolist() == [7]
    assert len(list(tmp_path.iterdir())) == 4


def test_saving_deletes_nothing_that_it_did_not_write(tmp_path):
    """Names are not enough: neither the work folder's, nor those like the files of an old version."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "words-0123456789abcdef.npy").write_bytes(b"mine")
    made = filled()
    made.save(tmp_path)
    made.remove([4])
    made.save(tmp_path)
    assert (tmp_path / "words-0123456789abcdef.npy").read_bytes() == b"mine"
    assert index.foreign(tmp_path) == ["photos", "words-0123456789abcdef.npy"]
    (tmp_path / ".saving").mkdir()
    (tmp_path / ".saving" / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"\.saving was not written by hashgym"):
        made.save(tmp_path)
    assert (tmp_path / ".saving" / "photo.jpg").read_bytes() == b"mine"
    assert index.load(tmp_path).ids.tolist() == [7]


def data_file(folder, name):
    return next(folder.glob(f"{name}-*"))


def reseal(folder, change):
    """A changed index.json with a digest that fits."""
    meta = json.loads((folder / "index.json").read_text())
    change(meta)
    meta.pop("digest")
    (folder / "index.json").write_text(json.dumps(meta | {"digest": sealed.digest(meta)}))


def another_words(folder):
    """Files whose checksums fit, of arrays that do not fit each other."""
    np.save(folder / "words-0000000000000000.npy", np.zeros((5, 1), np.uint64))
    file = folder / "words-0000000000000000.npy"
    entry = {"file": file.name, "bytes": file.stat().st_size, "sha256": sha256(file)}
    reseal(folder, lambda meta: meta["files"].update({"words.npy": entry}))


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda f: data_file(f, "words").unlink(), "words-.*npy is missing; .* build it again"),
        (lambda f: data_file(f, "words").write_bytes(data_file(f, "words").read_bytes()[:-3]), "has 141 of 144 bytes"),
        (
            lambda f: data_file(f, "ids").write_bytes(data_file(f, "ids").read_bytes()[:-1] + b"!"),
            "ids-.*npy has changed",
        ),
        (lambda f: (f / "index.json").unlink(), "is not a saved index: .* `hashgym index"),
        (lambda f: (f / "index.json").write_text("{"), "index.json is damaged"),
        (lambda f: (f / "index.json").write_bytes(b"\xff\xfe\x00"), "index.json is damaged"),
        (lambda f: (f / "index.json").write_text("[" * 100_000), "index.json is damaged"),
        (lambda f: (f / "index.json").write_text("[]"), "is of another format"),
        (lambda f: (f / "index.json").write_text('{"format": "hashgym-cache"}'), "is of another format"),
        (lambda f: (f / "index.json").write_text((f / "index.json").read_text().replace(": 3", ": 4")), "was edited"),
        (lambda f: reseal(f, lambda meta: meta.update(version=9)), "version 9, this hashgym reads version 1"),
        (lambda f: reseal(f, lambda meta: meta.update(bits=2)), "not hold codes of 2 bits"),
        (lambda f: reseal(f, lambda meta: meta.update(images=9)), "holds 2 of 9 images"),
        (
            lambda f: reseal(f, lambda meta: meta.update(backend="flann")),
            "back end 'flann', which is not registered: call hashgym.index.register",
        ),
        (another_words, "not hold codes of 3 bits"),
        (lambda f: reseal(f, lambda meta: meta["files"]["ids.npy"].update(file="../ids.npy")), "was edited"),
        (lambda f: reseal(f, lambda meta: meta.update(files=[])), "was edited"),
        (lambda f: reseal(f, lambda meta: meta.pop("options")), "was edited"),
    ],
)
def test_damage_is_found_before_anything_is_searched(tmp_path, harm, reason):
    filled().save(tmp_path / "index")
    harm(tmp_path / "index")
    with pytest.raises(ValueError, match=reason):
        index.Index.load(tmp_path / "index")


def test_names_that_could_not_be_read_again_are_not_saved(tmp_path):
    class Numbered(BruteForceIndex):
        def _write(self, folder):
            np.save(folder / "table-1.npy", self._words)
            return {}

    index.register("numbered", Numbered)
    filled().save(tmp_path)
    before = {file.name for file in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"sealed files have names like words\.npy, .*, got table-1\.npy"):
        filled("numbered").save(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == before
    assert index.load(tmp_path).ids.tolist() == [4, 7]


def test_a_foreign_folder_is_not_written_to(tmp_path):
    (tmp_path / "index.json").write_text('{"format": "something"}')
    with pytest.raises(ValueError, match="not that of a saved index: choose another folder"):
        filled().save(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["index.json"]


def test_options_are_checked_when_an_index_is_opened(tmp_path):
    filled().save(tmp_path)
    with pytest.raises(ValueError, match="takes no options, got uri"):
        index.load(tmp_path, uri="http://localhost:19530")
