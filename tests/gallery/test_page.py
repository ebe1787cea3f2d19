"""The page of results: what it shows, and that nothing on it comes from elsewhere."""

from __future__ import annotations

import base64
import io
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hashgym.data import DataError
from hashgym.gallery import build, encode_images, open_gallery, page
from hashgym.gallery.search import Gallery
from tests.gallery.small import picture, write_encoder, write_pictures

HOSTILE = ["<script>alert(1)<!--.png", '"><img src=x onerror=alert(1)>.png', "{{ 7*7 }}.png", "\x1b[2J\n\u202e.png"]


class Reader(HTMLParser):
    """Tags with their attributes, and the text outside the style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] != "style":
            self.texts.append(data)


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    folder = tmp_path_factory.mktemp("page")
    photos = write_pictures(folder / "photos", [*(f"{i}.png" for i in range(4)), *HOSTILE, os.fsdecode(b"\xff.png")])
    collage = picture(99, 64, 48)
    collage.paste(picture(2), (0, 24))
    collage.save(photos / "9.png")
    encode_images(write_encoder(folder / "encoder.onnx", regions=True), [photos], folder / "codes", progress=False)
    return open_gallery(build([folder / "codes"], folder / "index", "brute-force", progress=False))


def thumbnails(reader: Reader) -> list[Image.Image]:
    found = [attributes["src"] for tag, attributes in reader.tags if tag == "img"]
    assert all(source.startswith("data:image/jpeg;base64,") for source in found)
    return [Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in found]


def test_what_the_page_shows(gallery):
    query = picture(2)
    matches = gallery.search(query, 3)
    reader = Reader(page.results(gallery, query, matches, "my photo.png"))
    assert "Nearest to my photo.png 3 of 10 images" in reader.text
    assert "1. 2.png distance 0 2. 9.png distance 0, matched in the bottom left 3." in reader.text
    assert f"distance {matches[2].distance}" in reader.text
    frames = [attributes["style"] for tag, attributes in reader.tags if tag == "span"]
    framed = [match for match in matches if match.region]
    assert len(frames) == len(framed)
    assert frames[0] == "left: 0.000%; top: 50.000%; width: 50.000%; height: 50.000%"
    shown = thumbnails(reader)
    assert [image.size for image in shown[:3]] == [(32, 24), (32, 24), (64, 48)]
    for image in shown[:2]:
        assert np.abs(np.subtract(query.resize((4, 4)), image.resize((4, 4)), dtype=int)).max() < 60


def test_nothing_comes_from_elsewhere_and_names_are_text(gallery):
    reader = Reader(page.results(gallery, picture(0), gallery.search(picture(0), None, 48), HOSTILE[1]))
    allowed = "html head meta title style body header img div h1 p ol li figure figcaption b span"
    assert {tag for tag, _ in reader.tags} <= set(allowed.split())
    for _, attributes in reader.tags:
        assert not any(name.startswith("on") or name in ("href", "action") for name in attributes)
        assert attributes.get("src", "data:").startswith("data:")
    for name in HOSTILE[:3]:
        assert name in reader.text
    assert "\x1b" not in reader.text
    assert "\u202e" not in reader.text
    policy = [attributes["content"] for tag, attributes in reader.tags if attributes.get("http-equiv")]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    style = re.search("<style>(.*?)</style>", page.results(gallery, picture(0), []), re.DOTALL)
    assert style is not None
    assert "url" not in style[1]


def test_a_page_without_matches_or_with_pictures_that_are_gone(gallery, tmp_path):
    assert "No image is within this distance." in page.results(gallery, picture(0), [])
    (match,) = gallery.search(picture(3), 1)
    path = gallery.path(match.id)
    content = path.read_bytes()
    path.write_text("no picture")
    try:
        assert "missing or damaged" in page.results(gallery, picture(0), [match])
        path.unlink()
        html = page.results(gallery, picture(0), [match])
        assert "missing or damaged" in html
    finally:
        path.write_bytes(content)
    page.write(html, tmp_path / "new" / "page.html")
    page.write(html, tmp_path / "new" / "page.html")
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["page.html"]
    page.require_writable(tmp_path / "new" / "page.html")
    for mine in (b"<html>my page</html>", b"", b" " * 2000 + page.generator("search"), page.generator("duplicates")):
        (tmp_path / "mine.html").write_bytes(mine)
        with pytest.raises(DataError, match=r"mine\.html exists already and is not a page of search results"):
            page.require_writable(tmp_path / "mine.html")
    assert (tmp_path / "new" / "page.html").read_text("utf-8") == html


def test_large_pictures_become_thumbnails(gallery):
    reader = Reader(page.results(gallery, Image.new("RGB", (3000, 30)), []))
    assert [image.size for image in thumbnails(reader)] == [(256, 3)]


@pytest.mark.parametrize(
    ("name", "shown"),
    [("a b.png", "a b.png"), ("ü日本.png", "ü日本.png"), ("\x1b[31m\n\udcff", "\ufffd[31m\ufffd\ufffd"), ("", "")],
)
def test_printable(name: str, shown: str):
    assert page.printable(name) == shown


def test_a_template_is_part_of_the_package():
    assert (Path(page.__file__).parent / "templates" / "results.html").is_file()
