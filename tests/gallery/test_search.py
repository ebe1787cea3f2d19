"""Searches by the name of an indexed picture and by margins, compared with loops over all pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hashgym.codes import hamming, unpack
from hashgym.data import DataError
from hashgym.gallery import Gallery, Names, build, encode_images, open_gallery
from tests.gallery.small import picture, write_encoder, write_pictures


def write_multicode_encoder(path: Path, bits: int = 12) -> Path:
    """An encoder of three codes an image: bright pixels, red ones and blue ones, all from the picture as a whole."""
    torch = pytest.importorskip("torch")
    from hashgym.encoders import write
    from hashgym.features import make

    class Head(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            margin = torch.stack([x[..., i * bits : (i + 1) * bits] - 0.5 for i in range(3)], dim=-2)
            return margin, torch.stack([torch.ones_like(x[..., 0]), x[..., 0], x[..., 1]], dim=-1)

    backbone, work = make("pixels", size=4), path.with_name("features.onnx")
    several: dict[str, Any] = {"codes": 2, "threshold": 0.5}
    write.write(work, Head(), dim=48, bits=bits, source={}, backbone=backbone.provenance, **several)
    write.add_backbone(work, path, backbone)
    work.unlink()
    return path


@pytest.fixture(scope="module", params=["one code", "regions", "further codes"])
def gallery(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    """40 pictures, some of them noisy copies."""
    folder = tmp_path_factory.mktemp("search")
    if request.param == "further codes":
        encoder = write_multicode_encoder(folder / "encoder.onnx")
    else:
        encoder = write_encoder(folder / "encoder.onnx", regions=request.param == "regions", bits=12)
    photos = write_pictures(folder / "photos", [*(f"a/{i}.png" for i in range(30)), *(f"b/{i}.png" for i in range(10))])
    picture(3).save(photos / "b" / "9.png")
    encode_images(encoder, [photos], folder / "codes", progress=False)
    return open_gallery(build([folder / "codes"], folder / "index", "brute-force", progress=False))


def soft(seed: int) -> Image.Image:
    """A picture whose margins differ."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 4, 3)).astype(np.uint8)).resize((32, 24))


def naive(gallery: Gallery, margins: np.ndarray, among: list[int]) -> dict[int, tuple[float, int]]:
    """Asymmetric distance and Hamming distance of some pictures, by id."""
    found = {}
    for id in among:
        row = gallery.ids.tolist().index(id)
        sums, gaps = [], []
        for word, kept in zip(gallery.words[row], gallery.kept[row], strict=True):
            if kept:
                differ = [bool(bit) != (m > 0) for bit, m in zip(unpack(word, 12), margins.tolist(), strict=True)]
                sums.append(sum(abs(m) for m, d in zip(margins.tolist(), differ, strict=True) if d))
                gaps.append(sum(differ))
        found[id] = min(sums), min(gaps)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_reranking_is_a_loop_over_margins(gallery, seed):
    query = soft(seed)
    margins = gallery.encoder.margins(gallery.encoder.prepare(query, regions=False))[0, 0]
    for k, radius in ((1, None), (7, None), (40, None), (5, 4), (None, 4), (None, 12), (50, 0)):
        near = [match.id for match in gallery.search(query, None if k is None else max(10 * k, 100), radius)]
        wanted = naive(gallery, margins, near)
        found = gallery.search(query, k, radius, rerank="margins")
        assert len(found) == len(near[:k])
        order = [(match.weighted, match.distance, match.id) for match in found]
        assert order == sorted(order)  # sums of other bits may be equal but for rounding
        for match in found:
            assert match.weighted == pytest.approx(wanted[match.id][0], abs=1e-9)
            assert match.distance == wanted[match.id][1]
        others = [wanted[id][0] for id in near if id not in {match.id for match in found}]
        assert not others or order[-1][0] <= min(others) + 1e-9
        for match in found:
            row, weights = int(gallery.rows(np.array([match.id]))[0]), np.abs(margins)
            sums = [
                weights[unpack(word, 12) != (margins > 0)].sum() if kept else np.inf
                for word, kept in zip(gallery.words[row], gallery.kept[row], strict=True)
            ]
            assert match.region == (int(np.argmin(sums)) if gallery.encoder.regions else 0)
            assert match.box == (gallery.encoder.boxes(*gallery.size(match.id))[match.region] if match.region else None)


def test_margins_change_the_order_only(gallery):
    orders = set()
    for seed in range(9):
        plain, again = gallery.search(soft(seed), 40), gallery.search(soft(seed), 40, rerank="margins")
        assert {match.id: match.distance for match in plain} == {match.id: match.distance for match in again}
        assert all(match.weighted is None for match in plain)
        orders.add([match.id for match in plain] == [match.id for match in again])
    assert False in orders
    with pytest.raises(ValueError, match=r"rerank must be one of margins, got 'margin' \(did you mean 'margins'\?\)"):
        gallery.search(soft(0), rerank="margin")
    for rerank in (None, "margins"):
        for wrong in ({"k": 0}, {"radius": -1}, {"k": None}):
            with pytest.raises(ValueError, match=r"at least|give k"):
                gallery.search(soft(0), **wrong, rerank=rerank)


def test_only_the_nearest_are_ranked_again(gallery, monkeypatch):
    from hashgym.gallery import search

    monkeypatch.setattr(search, "LEAST_CANDIDATES", 1)
    monkeypatch.setattr(search, "CANDIDATES", 2)
    for seed in range(5):
        nearest = {match.id for match in gallery.search(soft(seed), 6)}
        assert {match.id for match in gallery.search(soft(seed), 3, rerank="margins")} <= nearest


def test_search_by_name_is_that_by_its_own_code_without_itself(gallery, monkeypatch):
    monkeypatch.setattr("hashgym.gallery.search.open_image", lambda *_: pytest.fail("a picture was read"))
    for name in ("a/0.png", "a/3.png", "b/9.png", "a/17.png"):
        row = gallery.names.row(name)
        own = gallery.words[row, 0]
        wanted = []
        for other, id in enumerate(gallery.ids.tolist()):
            gaps = [int(hamming(word, own)) for word in gallery.words[other][gallery.kept[other]]]
            if other != row:
                wanted.append((min(gaps), id))
        wanted.sort()
        for k, radius in ((1, None), (39, None), (99, None), (3, 5), (None, 5), (None, 0)):
            expected = [pair for pair in wanted if radius is None or pair[0] <= radius][:k]
            found = gallery.search_name(name, k, radius)
            assert [(match.distance, match.id) for match in found] == expected
    assert gallery.search_name("a/3.png", 1)[0].distance == 0  # its copy
    for name, hint in (
        ("17.png", r" \(did you mean 'a/17.png'\?\)"),
        ("a/0.jpg", r" \(did you mean 'a/0.png'"),
        ("zz", ""),
    ):
        with pytest.raises(DataError, match=rf"has no picture {name}{hint}"):
            gallery.search_name(name)
    with pytest.raises(ValueError, match="at least 1"):
        gallery.search_name("a/0.png", 0)


def test_a_picture_with_many_copies_before_it_is_left_out_and_k_are_found(tmp_path):
    encoder = write_encoder(tmp_path / "encoder.onnx")
    for i in range(8):
        (tmp_path / "photos").mkdir(exist_ok=True)
        picture(1).save(tmp_path / "photos" / f"{i}.png")
    encode_images(encoder, [tmp_path / "photos"], tmp_path / "codes", progress=False)
    with open_gallery(build([tmp_path / "codes"], tmp_path / "index", "brute-force", progress=False)) as gallery:
        assert [match.name for match in gallery.search_name("7.png", 3)] == ["0.png", "1.png", "2.png"]
        assert [match.name for match in gallery.search_name("0.png", 3)] == ["1.png", "2.png", "3.png"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=4), unique=True))
def test_rows_of_names(octets):
    names = [name.decode("utf-8", "surrogateescape") for name in octets]
    known = Names(
        np.arange(len(names)),
        np.frombuffer(b"".join(octets), np.uint8),
        np.cumsum([len(name) for name in octets], dtype=np.int64),
    )
    for row, name in enumerate(names):
        assert known.row(name) == row
        assert known.row(f"{name}x") == (names.index(f"{name}x") if f"{name}x" in names else None)
    assert known.row("not in the index") is None
