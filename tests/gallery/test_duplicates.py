"""Groups of pictures that look alike, compared with a search through all pairs."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashgym import index
from hashgym.codes import CodeSets, hamming
from hashgym.data import DataError
from hashgym.gallery import Gallery, build, encode_images, find_duplicates, open_gallery, page
from hashgym.gallery.duplicates import _connected
from tests.gallery.small import picture, write_encoder, write_pictures
from tests.gallery.test_page import Reader

BACKENDS = {"brute-force": "numpy", "faiss": "faiss", "faiss-hash": "faiss", "buckets": "numpy", "prefix": "numpy"}


@dataclass
class Codes:
    """The part of a gallery that grouping reads: code sets under ids with gaps, in a back end."""

    codes: CodeSets
    index: index.Index
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    rows = Gallery.rows


def naive(codes: CodeSets, radius: int) -> set[frozenset[int]]:
    """The groups, by walking from picture to picture."""
    n = len(codes)

    def near(i: int, j: int) -> bool:
        a, b = (codes.words[row][codes.kept[row]] for row in (i, j))
        return bool((hamming(a[:, None], b[None]) <= radius).any())

    left, groups = set(range(n)), set()
    while left:
        group, border = set(), [left.pop()]
        while border:
            group.add(i := border.pop())
            found = {j for j in left if near(i, j)}
            left -= found
            border += found
        if len(group) > 1:
            groups.add(frozenset(group))
    return groups


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 3), st.integers(1, 20), st.integers(0, 4))
def test_groups_are_those_of_all_pairs(backend, seed, n, views, bits, radius):
    if importlib.util.find_spec(BACKENDS[backend]) is None:
        pytest.skip(f"{BACKENDS[backend]} is not installed")
    rng, radius = np.random.default_rng(seed), min(radius, bits)
    own = rng.random((rng.integers(1, n + 1), views, bits)) < 0.5
    bits_of = own[rng.integers(0, len(own), n)] ^ (rng.random((n, views, bits)) < rng.choice([0, 0.05, 0.5]))
    kept = rng.random((n, views)) < 0.6
    kept[:, 0] = True
    codes, ids = CodeSets.of(bits_of, kept), np.sort(rng.choice(10 * n, n, replace=False)).astype(np.int64)
    with index.make(backend, bits) as images:
        images.add(ids, codes)
        groups = list(_connected(Codes(codes, images, ids), radius, False))
    assert {frozenset(group.tolist()) for group in groups} == naive(codes, radius)
    assert all(len(group) == len(set(group.tolist())) for group in groups)


def test_many_pictures_and_crowded_codes():
    """Blocks of changing size: 3,000 pictures in three crowds, a chain of 400, and 2,000 others."""
    rng = np.random.default_rng(0)
    crowds = np.repeat(rng.random((3, 64)) < 0.5, 1000, axis=0)
    crowds[np.arange(3000), np.arange(3000) % 64] ^= True  # within 2 of each other
    chain = np.repeat(rng.random((1, 64)) < 0.5, 400, axis=0)
    for i in range(1, 60):
        chain[i:, i] ^= True  # ends at a distance of 59
    others = rng.random((2000, 64)) < 0.5
    codes = CodeSets.of(np.concatenate([crowds, chain, others]))
    with index.make("brute-force", 64) as images:
        ids = np.arange(5400)
        images.add(ids, codes)
        gallery = Codes(codes, images, ids)
        found = sorted((int(group[0]), len(group)) for group in _connected(gallery, 2, False))
        assert found == [(0, 1000), (1000, 1000), (2000, 1000), (3000, 400)]
        exact = [len(group) for group in _connected(gallery, 0, False)]
        assert sorted(exact) == sorted([len(range(i, 1000, 64)) for i in range(64)] * 3 + [341])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Pictures 0 to 9; copies of 2 in three sizes, one older; a copy of 5."""
    folder = write_pictures(tmp_path / "photos", [f"{i}.png" for i in range(10)])
    for name, size in (("2 small.png", (16, 12)), ("b/2 large.png", (64, 48)), ("b/2 also large.bmp", (64, 48))):
        (folder / name).parent.mkdir(exist_ok=True)
        picture(2, *size).save(folder / name)
    picture(5).save(folder / "5 copy.png")
    for path in folder.rglob("*.*"):
        os.utime(path, (2_000_000_000, 2_000_000_000))
    os.utime(folder / "2 small.png", (1_000_000_000, 1_000_000_000))
    return folder


@pytest.fixture
def gallery(photos: Path, tmp_path: Path) -> Gallery:
    encoder = write_encoder(tmp_path / "encoder.onnx")
    encode_images(encoder, [photos], tmp_path / "codes", progress=False)
    return open_gallery(build([tmp_path / "codes"], tmp_path / "index", "brute-force", progress=False))


def test_groups_sizes_and_marks(gallery, photos):
    first, second = find_duplicates(gallery)
    names = ["2 small.png", "2.png", "b/2 also large.bmp", "b/2 large.png"]
    assert [picture.name for picture in first.pictures] == names
    assert [picture.size for picture in first.pictures] == [(16, 12), (32, 24), (64, 48), (64, 48)]
    assert [picture.bytes for picture in first.pictures] == [(photos / name).stat().st_size for name in names]
    assert [picture.modified for picture in first.pictures] == [1e9, 2e9, 2e9, 2e9]
    assert [picture.marks for picture in first.pictures] == [["oldest"], [], ["largest"], []]
    assert [picture.path for picture in first.pictures] == [photos / name for name in names]
    assert [(picture.name, picture.marks) for picture in second.pictures] == [
        ("5 copy.png", ["largest", "oldest"]),  # the first of equals
        ("5.png", []),
    ]
    assert [len(group) for group in find_duplicates(gallery, 0)] == [4, 2]
    (everything,) = find_duplicates(gallery, 48)
    assert len(everything) == len(gallery) == 14


def test_missing_pictures_are_listed_and_never_marked(gallery, photos):
    (photos / "b" / "2 also large.bmp").unlink()
    (photos / "2 small.png").unlink()
    first, second = find_duplicates(gallery)
    assert [(p.bytes is None, p.modified is None, p.time == "", p.marks) for p in first.pictures] == [
        (True, True, True, []),
        (False, False, False, ["oldest"]),
        (True, True, True, []),
        (False, False, False, ["largest"]),
    ]
    assert [picture.size for picture in first.pictures] == [(16, 12), (32, 24), (64, 48), (64, 48)]
    for copy in second.pictures:
        (photos / copy.name).unlink()
    assert [picture.marks for picture in find_duplicates(gallery)[1].pictures] == [[], []]
    (photos / "5.png").symlink_to("/etc/hostname")  # outside the root
    assert [picture.path for picture in find_duplicates(gallery)[1].pictures] == [photos / "5 copy.png", None]


@pytest.mark.parametrize("radius", [-1, 49, 1.0, True, None])
def test_a_wrong_radius(gallery, radius):
    with pytest.raises(ValueError, match="radius must be"):
        find_duplicates(gallery, radius)


def test_a_back_end_of_other_pictures(gallery):
    gallery.index.remove([13])
    gallery.index.add([99], gallery.codes[13:])
    with pytest.raises(DataError, match="found images that the index does not have"):
        find_duplicates(gallery)


def test_the_page(gallery, photos, tmp_path, monkeypatch):
    (photos / "b" / "2 also large.bmp").unlink()
    groups = find_duplicates(gallery)
    reader = Reader(page.duplicates(gallery, groups, 2))
    assert "2 groups of 6 pictures, of 14 images, by codes of 48 bits" in reader.text
    assert "1. 4 pictures 2 small.png 16 x 12 pixels," in reader.text
    assert "missing or damaged b/2 also large.bmp 64 x 48 pixels, unknown size, unknown time b/2 large" in reader.text
    assert reader.text.count("largest") == 2
    images = [attributes["src"] for tag, attributes in reader.tags if tag == "img"]
    assert len(images) == 5
    assert all(image.startswith("data:image/jpeg;base64,") for image in images)
    assert "more are not" not in reader.text
    monkeypatch.setattr(page, "SHOWN", 3)
    reader = Reader(page.duplicates(gallery, groups, 2))
    assert sum(tag == "figure" for tag, _ in reader.tags) == 3
    assert "The first 3 pictures are shown here, 3 more are not; --json lists all." in reader.text
    assert "No two pictures have codes that are this near." in page.duplicates(gallery, [], 0)
    page.write(page.duplicates(gallery, [], 0), tmp_path / "page.html")
    page.require_writable(tmp_path / "page.html", "duplicates")
    with pytest.raises(DataError, match="is not a page of search results"):
        page.require_writable(tmp_path / "page.html")
    page.write(page.results(gallery, None, []), tmp_path / "page.html")
    with pytest.raises(DataError, match="is not a page of duplicates"):
        page.require_writable(tmp_path / "page.html", "duplicates")


def test_names_on_the_page_are_text(tmp_path):
    hostile = ["<script>alert(1)<!--.png", "{{ 7*7 }}.png"]
    folder = write_pictures(tmp_path / "photos", hostile)
    for name in hostile:
        picture(1).save(folder / name)
    encode_images(write_encoder(tmp_path / "encoder.onnx"), [folder], tmp_path / "codes", progress=False)
    with open_gallery(build([tmp_path / "codes"], tmp_path / "index", "brute-force", progress=False)) as gallery:
        reader = Reader(page.duplicates(gallery, find_duplicates(gallery), 2))
    assert all(name in reader.text for name in hostile)
    allowed = "html head meta title style body header img div h1 h2 p ol li figure figcaption b span"
    assert {tag for tag, _ in reader.tags} <= set(allowed.split())
