"""The web page of an index: its results, and the requests that it rejects."""

from __future__ import annotations

import base64
import html
import io
import math
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from tests.gallery import small
from tests.gallery.served import HOSTILE_NAMES, TOKEN, picture, serving, write_index

pytest.importorskip("flask")
pytest.importorskip("waitress")

from hashgym import cli
from hashgym.data.pictures import open_image
from hashgym.gallery import build, encode_images, page, remove
from hashgym.gallery.search import Gallery, open_gallery
from hashgym.gallery.server import MAX_RESULTS, PATIENCE, THUMBNAIL, _LiveGallery, _Server, create_app, serve

MAX_BYTES, MAX_PIXELS = 200_000, 1_000_000


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_index(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def gallery(index: Path) -> Gallery:
    return open_gallery(index)


@pytest.fixture(scope="module")
def client(gallery: Gallery) -> Any:
    return create_app(gallery, max_bytes=MAX_BYTES, max_pixels=MAX_PIXELS).test_client()


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def post(client: Any, data: bytes, name: str = "a.png", to: str = "/", **values: Any) -> Any:
    return client.post(to, data={"picture": (io.BytesIO(data), name), **values})


def message(answer: Any) -> str:
    """The error message on a page."""
    found = re.search(r'<p class="error" role="alert">(.*?)</p>', answer.text)
    assert found, answer.text
    return html.unescape(found[1])


def names(answer: Any) -> list[str]:
    """Names of the images that a page shows."""
    return [html.unescape(name) for name in re.findall(r'<bdi class="name" title=".*?">(.*?)</bdi>', answer.text)]


def shown(name: str) -> str:
    """A name as UTF-8 can hold it."""
    return name.encode(errors="replace").decode()


def still_serves(client: Any) -> bool:
    return post(client, encoded(picture(0)), to="/search").json["matches"][0]["distance"] == 0


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes, depth: int = 8, color: int = 2) -> bytes:
    """A PNG whose data need not fit its header."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def test_the_page_loads_nothing_from_elsewhere_and_nothing_inline(client: Any) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert "22 images, codes of 48 bits" in page.text
    assert "<style" not in page.text
    assert "style=" not in page.text
    assert not re.search(r"<script(?! src)|\son\w+=|https?://", page.text)
    assert 'name="text"' not in page.text  # pixels embed no words
    assert "cannot be searched by words: pictures were encoded by pixels" in message(client.get("/?text=a+car"))
    for path, kind in [("/serve.css", "text/css"), ("/serve.js", "text/javascript")]:
        assert client.get(path).mimetype == kind
        assert f'"{path}"' in page.text
        assert not re.search("https?:|url\\(|@import|innerHTML|eval", client.get(path).text)


@pytest.mark.parametrize("path", ["/", "/serve.js", "/thumbnail?id=0", "/thumbnail?id=99", "/nothing", "/?id=0"])
def test_every_answer_has_the_security_headers(client: Any, path: str) -> None:
    headers = client.get(path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Cache-Control"] == "no-cache"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]


def test_the_page_shows_what_the_gallery_finds(client: Any, gallery: Gallery) -> None:
    for seed in (0, 7, 14):
        page = post(client, encoded(picture(seed)), k=5)
        found = gallery.search(picture(seed), 5)
        assert names(page) == [shown(match.name) for match in found]
        assert found[0].name == f"{seed}.png"
        assert [int(d) for d in re.findall(r"<b>(\d+)</b> of 48 bits differ", page.text)] == [m.distance for m in found]
        bars = re.findall(r'<meter min="0" max="48" value="(\d+)"', page.text)
        assert [int(d) for d in bars] == [m.distance for m in found]


def test_pages_of_results_follow_each_other(client: Any, gallery: Gallery) -> None:
    found = [shown(match.name) for match in gallery.search(picture(3), 22)]
    pages = [post(client, encoded(picture(3)), k=8, page=page) for page in (1, 2, 3)]
    assert [names(page) for page in pages] == [found[:8], found[8:16], found[16:]]
    headings = [re.sub("<.*?>", "", re.findall("<h2>(.*?)</h2>", page.text)[0]) for page in pages]
    assert headings == [
        f"{first} to a.png" for first in ("8 nearest", "9 to 16 of the nearest", "17 to 22 of the nearest")
    ]
    buttons = [re.findall(r'name="page" value="(\d)">(\w+)', page.text) for page in pages]
    assert buttons == [[("2", "Next")], [("1", "Previous"), ("3", "Next")], [("2", "Previous")]]
    assert names(client.get("/?id=3&k=8&page=3")) == names(client.post("/", data={"id": 3, "k": 8, "page": 3}))
    assert not re.findall('name="page"', post(client, encoded(picture(3)), k=22).text)
    beyond = post(client, encoded(picture(3)), k=8, page=4, to="/search")
    assert beyond.json["matches"] == []
    assert "page must be a whole number from 1 to 50" in message(post(client, encoded(picture(3)), k=200, page=51))


def test_json_has_the_same_results(client: Any, gallery: Gallery) -> None:
    answer = post(client, encoded(picture(3)), to="/search", k=22).json
    found = gallery.search(picture(3), 22)
    assert answer["bits"] == 48
    assert answer["images"] == len(answer["matches"]) == 22
    for got, match in zip(answer["matches"], found, strict=True):
        assert got["name"] == match.name
        assert [got[key] for key in ("id", "distance", "region")] == [match.id, match.distance, match.region]
        assert got["box"] == (list(match.box) if match.box else None)
        assert client.get(got["thumbnail"]).status_code == 200
    assert post(client, b"no picture", "b.jpg", to="/search").json["error"].startswith("image b.jpg is damaged")


def test_an_image_of_the_gallery_can_be_the_query(client: Any, gallery: Gallery) -> None:
    for id, name in gallery.names.items():
        page = client.get(f"/?id={id}&k=4")
        assert names(page) == [shown(m.name) for m in gallery.search(gallery.path(id), 4)]
        assert f'<input type="hidden" name="id" value="{id}">' in page.text
        assert name not in names(page) or names(page)[0] == name


def test_the_region_that_matched_is_framed_and_the_rest_darkened(client: Any) -> None:
    first, second = post(client, encoded(picture(3)), to="/search", k=2).json["matches"]
    assert (first["name"], first["region"], first["distance"]) == ("3.png", 0, 0)
    assert (second["name"], second["region"], second["distance"]) == ("20.png", 2, 0)
    assert second["box"] == [160, 0, 320, 120]
    assert "matched: top right" in post(client, encoded(picture(3)), k=2).text
    plain, framed = (
        np.asarray(Image.open(io.BytesIO(client.get(f"/thumbnail?id={second['id']}&region={region}").data)), int)
        for region in (0, 2)
    )
    assert plain.shape == framed.shape == (240, 320, 3)
    assert framed[10:110, [160, 319]].min() > 200  # left and right sides of the frame
    assert framed[[0, 119], 170:310].min() > 200
    assert abs(framed[20:100, 180:300] - plain[20:100, 180:300]).mean() < 8
    assert framed[130:].mean() < 0.7 * plain[130:].mean()
    assert framed[:, :150].mean() < 0.7 * plain[:, :150].mean()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8000", "localhost", "LocalHost:1"])
def test_this_machines_own_names_are_answered(client: Any, host: str) -> None:
    assert client.get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.com", "evil.com:8000", "127.0.0.1.evil.com", "localhost.evil.com", "127.0.0.1@evil.com", "127.0.0.2", "",
     "[::1]", "[", "127.0.0.1:x", "localhost:8000\\@evil.com", "0.0.0.0"],
)  # fmt: skip
def test_foreign_host_names_are_rejected_without_details_of_the_gallery(client: Any, host: str) -> None:
    for answer in (client.get("/?id=0", headers={"Host": host}), client.get("/thumbnail?id=0", headers={"Host": host})):
        assert answer.status_code == 403
        assert len(answer.data) < 100
        assert answer.mimetype == "text/plain"


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, 200),
        ({"Origin": "http://localhost"}, 200),
        ({"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "http://evil.com"}, 403),
        ({"Origin": "https://localhost"}, 403),
        ({"Origin": "http://localhost:3000"}, 403),  # another server of this machine is another site
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_posts_of_other_sites_are_rejected(client: Any, headers: dict[str, str], code: int) -> None:
    for path in ("/", "/search"):
        data = {"picture": (io.BytesIO(encoded(picture(0))), "a.png")}
        assert client.post(path, data=data, headers=headers).status_code == code


GREY16 = Image.fromarray(np.full((40, 40), 40_000, np.uint16))
BAD = {
    "nothing": (b"", "damaged or not a picture"),
    "html.jpg": (
        b"<!doctype html><script>alert(1)</script>",
        "damaged or not a picture: it is not one of BMP, GIF, JPEG",
    ),
    "active.svg": (b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', "not one of BMP"),
    "postscript.png": (encoded(picture(0), "EPS"), "not one of BMP"),
    "truncated.png": (encoded(picture(0))[:150], "damaged"),
    "truncated.jpg": (encoded(picture(0), "JPEG")[:900], "damaged"),
    "truncated.webp": (encoded(picture(0), "WEBP", lossless=True)[:90], "damaged"),
    "truncated.gif": (encoded(picture(0), "GIF")[:500], "damaged"),
    "only-header.png": (b"\x89PNG\r\n\x1a\n", "damaged"),
    "huge.png": (png(100_000, 100_000, b""), "pixels"),
    "very-huge.png": (png(2**31 - 1, 2**31 - 1, b""), "pixels"),
    "large.png": (png(1_001, 1_000, bytes(1000)), "1001 x 1000 pixels, more than the limit of 1,000,000"),
    "bomb.png": (png(30_000, 30_000, bytes(30_000 * 3_751), depth=1, color=0), "pixels"),
    "empty.png": (png(0, 0, b""), "damaged"),
    "too-little.png": (png(900, 900, b"\0" * 10), "damaged"),
    "deep.png": (encoded(GREY16), "more than 8 bits per channel: convert it"),
    "float.tiff": (encoded(Image.new("F", (8, 8)), "TIFF"), "more than 8 bits"),
    "wide.gif": (b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02\x02D\x01\0;", "pixels"),
    "large.ppm": (b"P6 99999 99999 255 ", "pixels"),
    "negative.bmp": (b"BM" + bytes(12) + struct.pack("<IiiHHI", 40, -5, -5, 1, 24, 0) + bytes(24), "pixels"),
}


@pytest.mark.parametrize("name", BAD)
def test_damaged_and_hostile_pictures_get_a_message(client: Any, name: str) -> None:
    data, reason = BAD[name]
    for path in ("/", "/search"):
        answer = post(client, data, name, to=path)
        assert answer.status_code == 422
        text = message(answer) if path == "/" else answer.json["error"]
        assert text.startswith(f"image {name} ")
        assert reason in text
        assert len(text) < 600
    assert still_serves(client)


ROTATED = Image.Exif()
ROTATED[0x0112] = 6
TURNED = picture(5).transpose(Image.Transpose.ROTATE_90)  # counter-clockwise; the orientation turns it back
GOOD = {
    "cmyk.jpg": encoded(picture(5).convert("CMYK"), "JPEG", quality=95),
    "grey.jpg": encoded(picture(5).convert("L"), "JPEG"),
    "wrong.gif": encoded(picture(5)),
    "no-suffix": encoded(picture(5), "WEBP", lossless=True),
    "animated.gif": encoded(picture(5), "GIF", save_all=True, append_images=[picture(6), picture(7)]),
    "animated.webp": encoded(picture(5), "WEBP", save_all=True, append_images=[picture(6)], lossless=True),
    "pages.tiff": encoded(picture(5), "TIFF", save_all=True, append_images=[picture(6)]),
    "two.mpo.jpg": encoded(picture(5), "MPO", save_all=True, append_images=[picture(6)], quality=95),
    "transparent.png": encoded(picture(5).convert("RGBA")),
    "palette.png": encoded(picture(5).quantize(64)),
    "rotated.jpg": encoded(TURNED, "JPEG", exif=ROTATED, quality=95),
    "progressive.jpg": encoded(picture(5), "JPEG", progressive=True, quality=95),
    "one.png": encoded(Image.new("RGB", (1, 1))),
    "tall.png": encoded(Image.new("RGB", (1, 60_000))),
    "wide.png": encoded(Image.new("RGB", (60_000, 1))),
    "bits.png": encoded(Image.new("1", (999, 999))),
    "icc.jpg": encoded(picture(5), "JPEG", icc_profile=b"no profile", quality=95),
    "../../../etc/passwd": encoded(picture(5)),
    "<script>alert(1)</script>.png": encoded(picture(5)),
    "{{7*7}}.png": encoded(picture(5)),
    "x" * 5_000: encoded(picture(5)),
}


@pytest.mark.parametrize("name", GOOD, ids=lambda name: name[:20])
def test_unusual_pictures_can_be_searched_for(client: Any, name: str) -> None:
    page = post(client, GOOD[name], name, k=3)
    assert page.status_code == 200
    assert len(names(page)) == 3
    assert f"<h2>3 nearest to <bdi>{html.escape(name).replace('&#x27;', '&#39;')}</bdi></h2>" in page.text
    if name.partition(".")[0] not in ("grey", "one", "tall", "wide", "bits"):
        assert names(page)[0] == "5.png"


def test_limits_are_what_is_allowed(client: Any, gallery: Gallery) -> None:
    fits = encoded(picture(0)).ljust(MAX_BYTES, b"\0")  # a PNG ends before its file does
    assert post(client, fits).status_code == 200
    over = post(client, fits + b"\0")
    assert over.status_code == 422
    assert "more than 200,000 bytes" in message(over)
    far = post(client, fits + bytes(2**17))
    assert far.status_code == 413
    assert "too large" in message(far)
    assert "too large" in post(client, fits + bytes(2**17), to="/search").json["error"]
    assert post(client, encoded(Image.new("L", (1000, 1000)))).status_code == 200
    assert still_serves(client)


@pytest.mark.parametrize("values", [{}, {"picture": "text"}, {"id": ""}, {"other": "1"}])
def test_a_request_without_picture_gets_a_message(client: Any, values: dict[str, str]) -> None:
    answer = client.post("/", data=values)
    assert answer.status_code == 400
    assert message(answer) == "This request has no picture: choose one first."


@pytest.mark.parametrize("k", ["0", str(MAX_RESULTS + 1), "-1", "ten", "1.5", "9" * 5000, "٣", " 3", "<b>"])
def test_k_is_a_number_in_bounds(client: Any, k: str) -> None:
    answer = post(client, encoded(picture(0)), k=k)
    assert answer.status_code == 400
    assert message(answer) == f"k must be a whole number from 1 to {MAX_RESULTS}."
    assert "<b>" not in answer.text.partition("<main>")[2].replace("<b>choose a file</b>", "")


@pytest.mark.parametrize(
    "path",
    ["/../../../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/serve.html", "/server.py", "/0.png", "/pictures/0.png",
     "/thumbnail/0.png", "/static/serve.css", "/serve.css/../server.py", "/thumbnail?id=99", "/?id=99",
     "/thumbnail?id=4611686018427387904"],
)  # fmt: skip
def test_no_other_file_is_there(client: Any, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code in (400, 404)
    assert b"root:" not in answer.data
    assert b"\x89PNG" not in answer.data


VALUES = st.one_of(
    st.sampled_from(["", "0", "5", "21", "22", "-1", "+1", "1_0", "0x1", "1e3", "1.0", " 3", "3\n", "٣", "²", "nan",
                     "9" * 19, "9" * 20, "9" * 5000, str(2**62), str(2**63), "\0", "%00", "\ud800"]),
    st.integers().map(str),
    st.text(max_size=8),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.sampled_from(["id", "region", "k", "token", "picture", "x"]), VALUES), max_size=5),
    posted=st.lists(st.tuples(st.sampled_from(["id", "k", "picture"]), VALUES), max_size=3),
    path=st.sampled_from(["/", "/thumbnail", "/search", "/serve.js"]),
    method=st.sampled_from(["GET", "POST", "HEAD", "PUT"]),
)
def test_no_value_is_an_error_of_the_server(
    client: Any, pairs: list[tuple[str, str]], posted: list[tuple[str, str]], path: str, method: str
) -> None:
    query, body = (urllib.parse.urlencode(values, errors="surrogatepass") for values in (pairs, posted))
    form = "application/x-www-form-urlencoded"
    answer = client.open(path, method=method, query_string=query, data=body, content_type=form)
    assert answer.status_code in (200, 400, 404, 405)


@pytest.mark.parametrize("query", ["", "id=", "id=0&id=99", "region=1", "id=-1", "id=0&region=6", "id=0&region=-1"])
def test_thumbnails_that_are_not_there_are_client_errors(client: Any, query: str) -> None:
    assert client.get(f"/thumbnail?{query}").status_code == (200 if query == "id=0&id=99" else 400)


def test_an_index_without_regions_has_no_framed_thumbnails(tmp_path: Path) -> None:
    photos = small.write_pictures(tmp_path / "photos", ["0.png", "1.png"])
    encode_images(small.write_encoder(tmp_path / "encoder.onnx"), [photos], tmp_path / "codes", progress=False)
    build([tmp_path / "codes"], tmp_path / "index", "brute-force", progress=False)
    client = create_app(open_gallery(tmp_path / "index")).test_client()
    assert client.get("/thumbnail?id=0&region=0").status_code == 200
    for region in range(1, 6):
        answer = client.get(f"/thumbnail?id=0&region={region}")
        assert answer.status_code == 404
        assert answer.text == "The images of this index have no regions.\n"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@given(data=st.data())
def test_mutated_pictures_are_searched_for_or_rejected(client: Any, data: st.DataObject) -> None:
    whole = data.draw(
        st.sampled_from([*GOOD.values(), *(b for b, _ in BAD.values() if b)]).filter(lambda b: len(b) < 9_000)
    )
    mutated = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, min(len(whole) - 1, 600)) | st.integers(0, len(whole) - 1))
        match data.draw(st.sampled_from(["set", "cut", "insert", "drop"])):
            case "set" if place < len(mutated):
                mutated[place] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
            case "cut":
                del mutated[max(place, 20) :]
            case "insert":
                mutated[place:place] = data.draw(st.binary(min_size=1, max_size=20))
            case _:
                del mutated[place : place + data.draw(st.integers(1, 20))]
    answer = post(client, bytes(mutated), "mutated.jpg", to="/search", k=2)
    assert answer.status_code in (200, 422), answer.text
    assert len(answer.json["matches"]) == 2 if answer.status_code == 200 else "mutated.jpg" in answer.json["error"]


def test_names_are_shown_as_they_are(client: Any) -> None:
    page = post(client, encoded(picture(0)), k=22)
    assert page.status_code == 200
    assert set(HOSTILE_NAMES) <= set(names(page))
    assert "not-utf8-?.png" in names(page)
    assert "<img src=x" not in page.text


def test_thumbnails_are_small_jpegs_encoded_again(client: Any, gallery: Gallery) -> None:
    answer = client.get("/thumbnail?id=0")
    assert answer.mimetype == "image/jpeg"
    assert Image.open(io.BytesIO(answer.data)).size == (160, 120)
    again = client.get("/thumbnail?id=0", headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
    assert client.get("/thumbnail?id=1", headers={"If-None-Match": answer.headers["ETag"]}).status_code == 200
    assert client.get("/thumbnail?id=0&region=6").status_code == 400


def test_an_image_that_changed_after_indexing_leaks_nothing(index: Path, tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    shutil.copytree(index.parent / "pictures", root)
    picture(77).save(tmp_path / "secret.png")
    moved = open_gallery(index, root=root)
    client = create_app(moved, max_pixels=MAX_PIXELS).test_client()
    ids = {name: id for id, name in moved.names.items()}
    for name, change in {
        "0.png": lambda path: path.symlink_to(tmp_path / "secret.png"),
        "1.png": lambda path: path.symlink_to("/etc/passwd"),
        "2.png": lambda path: path.write_text("<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>"),
        "3.png": lambda path: path.mkdir(),
        "4.png": lambda path: path.symlink_to(path),
        "5.png": lambda path: path.write_bytes(png(50_000, 50_000, b"")),
        "6.png": lambda path: None,
        "7.png": lambda path: os.mkfifo(path),
    }.items():
        (root / name).unlink()
        change(root / name)
        assert client.get(f"/thumbnail?id={ids[name]}").status_code == 404, name
        assert client.get(f"/?id={ids[name]}").status_code in (404, 422), name
    (root / "8.png").unlink()
    (root / "8.png").symlink_to(root / "9.png")  # inside the folder
    assert client.get(f"/thumbnail?id={ids['8.png']}").data == client.get(f"/thumbnail?id={ids['9.png']}").data
    page = post(client, encoded(picture(0)), k=22)
    assert page.status_code == 200
    assert len(names(page)) == 22


def test_large_images_have_small_thumbnails_that_stand_upright(index: Path, tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    shutil.copytree(index.parent / "pictures", root)
    large = picture(0, 1600, 800).transpose(Image.Transpose.ROTATE_90)
    large.save(root / "0.png", "JPEG", exif=ROTATED)
    moved = open_gallery(index, root=root)
    id = next(id for id, name in moved.names.items() if name == "0.png")
    answer = create_app(moved).test_client().get(f"/thumbnail?id={id}")
    shown = Image.open(io.BytesIO(answer.data))
    assert shown.size == (THUMBNAIL, THUMBNAIL // 2)
    assert not shown.getexif()
    assert abs(np.asarray(shown, int) - np.asarray(picture(0, *shown.size), int)).mean() < 6


def commented(form: str, secret: bytes) -> bytes:
    """A picture whose file carries a secret wherever its format can hold one."""
    exif = Image.Exif()
    exif[0x010E] = exif[0x9286] = secret.decode()  # ImageDescription, UserComment
    exif.get_ifd(0x8825)[29] = secret.decode()  # a place's date
    options: dict[str, Any] = {"exif": exif, "icc_profile": b"profile " + secret}
    image = picture(5)
    if form == "JPEG":
        options |= {"comment": secret, "xmp": b"<x:xmpmeta>" + secret, "quality": 95}
        iptc = b"\x1c\x02\x78" + len(secret).to_bytes(2, "big") + secret
        block = b"8BIM\x04\x04\0\0" + len(iptc).to_bytes(4, "big") + iptc
        options["extra"] = b"".join(
            b"\xff" + marker + (len(data) + 2).to_bytes(2, "big") + data
            for marker, data in [(b"\xed", b"Photoshop 3.0\0" + block), (b"\xe9", secret), (b"\xfe", secret)]
        )
    elif form == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_text("Comment", secret.decode())
        text.add_text("Packed", secret.decode(), zip=True)
        text.add_itxt("Author", secret.decode())
        text.add_itxt("XML:com.adobe.xmp", secret.decode(), zip=True)
        options["pnginfo"] = text
    elif form == "GIF":
        options = {"comment": secret}
    elif form == "WEBP":
        options |= {"xmp": secret, "lossless": True}
    elif form == "TIFF":
        options = {"tiffinfo": {270: secret.decode(), 700: secret, 33723: secret, 34675: secret}}
    return encoded(image, form, **options)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "TIFF"])
def test_what_is_sent_has_the_pixels_of_a_picture_and_none_of_its_metadata(
    index: Path, tmp_path: Path, form: str
) -> None:
    secret = b"secret-place-59.91N-10.75E"
    data = commented(form, secret)
    assert secret in data  # else the test proves nothing
    root = tmp_path / "pictures"
    shutil.copytree(index.parent / "pictures", root)
    (root / "5.png").write_bytes(data)
    moved = open_gallery(index, root=root)
    id = next(id for id, name in moved.names.items() if name == "5.png")
    client = create_app(moved, max_pixels=MAX_PIXELS).test_client()
    sent = [client.get(f"/thumbnail?id={id}&region={region}").data for region in (0, 2)]
    html = [post(client, data, "a.png").text, client.get(f"/?id={id}").text]
    html.append(page.results(moved, open_image(root / "5.png"), moved.search(root / "5.png", 2)))
    sent += [base64.b64decode(part) for text in html for part in re.findall('data:image/jpeg;base64,([^"]+)"', text)]
    assert len(sent) == 2 + 1 + 1 + 3
    for content in sent:
        shown = Image.open(io.BytesIO(content))
        assert secret not in content
        assert secret[::2] not in content[::2]  # UTF-16 too
        assert set(shown.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
        assert {kind for kind, _ in shown.applist} == {"APP0"}
    assert np.abs(np.subtract(Image.open(io.BytesIO(sent[0])), picture(5), dtype=int)).mean() < 6


@pytest.mark.parametrize(
    ("error", "code"), [(RuntimeError("secret"), 500), (MemoryError(), 507), (ValueError("Milvus is gone"), 503)]
)
def test_internal_errors_are_reported_without_details(
    client: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(Gallery, "search_code", fail)
        answer = post(client, encoded(picture(0)))
        assert answer.status_code == code
        assert "secret" not in answer.text
        assert (str(error) if code == 503 else "") in message(answer)
    assert still_serves(client)


def test_a_missing_package_is_named() -> None:
    program = "import sys; sys.modules['waitress'] = None; import hashgym.gallery.server"
    errors = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False).stderr
    assert "pip install 'hashgym[serve]'" in errors.splitlines()[-1]


SECRET = "0123456789-_.~abcXYZ"


@pytest.fixture(scope="module")
def locked(gallery: Gallery) -> Any:
    return create_app(gallery, max_pixels=MAX_PIXELS, token=SECRET)


PATHS = ("/", "/?id=0", "/thumbnail?id=0", "/thumbnail?id=99", "/serve.js", "/serve.css", "/nothing")


@pytest.mark.parametrize(
    "given",
    ["", "token=", "token=x", f"token={SECRET[:-1]}", f"token={SECRET}x", f"token={SECRET.upper()}",
     "token=%F0%9F%98%80", f"token=x&token={SECRET}", f"Token={SECRET}"],
)  # fmt: skip
def test_without_the_token_nothing_is_answered(locked: Any, given: str) -> None:
    for path in PATHS:
        answer = locked.test_client().get(path + ("&" if "?" in path else "?") + given)
        assert answer.status_code == 403
        assert answer.mimetype == "text/plain"
        assert answer.text.startswith("This page needs its token: open the address that `hashgym serve` printed")
        assert "Set-Cookie" not in answer.headers
    for path in ("/", "/search"):
        data = {"picture": (io.BytesIO(encoded(picture(0))), "a.png")}
        assert locked.test_client().post(f"{path}?{given}", data=data).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [{"Authorization": "Bearer x"}, {"Authorization": SECRET}, {"Authorization": f"Basic {SECRET}"},
     {"Cookie": f"hashgym-80={SECRET}"}, {"Cookie": "hashgym-80="}, {"Cookie": "hashgym-80=\xff"}],
)  # fmt: skip
def test_wrong_credentials_are_rejected(locked: Any, headers: dict[str, str]) -> None:
    assert locked.test_client().get("/", headers=headers).status_code == 403


def test_the_token_is_exchanged_for_a_cookie_of_this_port(locked: Any) -> None:
    client = locked.test_client()
    at = {"base_url": "http://127.0.0.1:8123"}
    answer = client.get(f"/?token={SECRET}&id=3&k=4&_external=1&_scheme=javascript", **at)
    assert answer.status_code == 303
    assert answer.headers["Location"] == "/?id=3&k=4"  # without the token
    cookie = answer.headers["Set-Cookie"]
    assert cookie.startswith("hashgym-8123=")
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    assert SECRET not in cookie
    for path, code in zip(PATHS, (200, 200, 200, 404, 200, 200, 404), strict=True):
        answer = client.get(path, **at)
        assert answer.status_code == code
        assert SECRET.encode() not in answer.data
        assert SECRET not in str(answer.headers)
        assert answer.headers["Referrer-Policy"] == "same-origin"
    assert client.post("/search", data={"id": "0"}, **at).status_code == 200
    value = cookie.partition("=")[2].partition(";")[0]
    for host, name in [("127.0.0.1:8124", "hashgym-8123"), ("127.0.0.1:8124", "hashgym-8124")]:
        headers = {"Host": host, "Cookie": f"{name}={value}"}
        assert locked.test_client().get("/", headers=headers).status_code == 403


def test_programs_give_the_token_with_each_request(locked: Any) -> None:
    client = locked.test_client()
    for path in ("/", "/search"):
        assert client.post(f"{path}?token={SECRET}", data={"id": "0"}).status_code == 200
        assert client.post(path, data={"id": "0"}, headers={"Authorization": f"Bearer {SECRET}"}).status_code == 200
        assert client.post(path, data={"id": "0", "token": SECRET}).status_code == 403  # forms come from elsewhere
    assert client.get(f"/thumbnail?id=0&token={SECRET}").status_code == 200
    assert SECRET not in client.post(f"/search?token={SECRET}", data={"id": "0"}).text
    for headers in ({"Host": "evil.com"}, {"Origin": "http://evil.com"}):  # the token does not replace other checks
        assert client.post(f"/search?token={SECRET}", data={"id": "0"}, headers=headers).status_code == 403


@pytest.mark.parametrize("token", ["short", "x" * 201, "with a space in it", "percent%20percent", "a" * 15, "ü" * 20])
def test_tokens_that_are_weak_or_not_allowed_in_an_address_are_rejected(index: Path, token: str) -> None:
    with pytest.raises(ValueError, match="must be 16 to 200 letters, digits or") as told:
        serve(index, 0, token=token)
    assert token not in str(told.value)


def test_the_command_prints_a_new_token_each_time_unless_one_is_given(index: Path, monkeypatch: Any) -> None:
    printed: list[str] = []
    monkeypatch.setattr("hashgym.gallery.server._Server.run", lambda _: None)
    monkeypatch.setattr("hashgym.gallery.server.say", printed.append)
    monkeypatch.setenv("HASHGYM_TOKEN", "")
    for options in ([], [], ["--token", SECRET], ["--token", ""]):
        cli.main(["serve", str(index), "--port", "0", *options])
    monkeypatch.setenv("HASHGYM_TOKEN", SECRET[::-1])
    cli.main(["serve", str(index), "--port", "0"])
    pattern = r"22 images at http://127\.0\.0\.1:\d+/(?:\?token=(\S+))? - press Ctrl-C to end"
    tokens = [re.fullmatch(pattern, text)[1] for text in printed]  # type: ignore[index]
    assert tokens[0] != tokens[1]
    assert min(map(len, tokens[:2])) >= 32
    assert tokens[2:] == [SECRET, None, SECRET[::-1]]


def test_changes_of_the_index_are_followed(index: Path, tmp_path: Path) -> None:
    shutil.copytree(index.parent / "index", tmp_path / "index")
    shutil.copytree(index.parent / "pictures", tmp_path / "added")
    client = create_app(open_gallery(tmp_path / "index"), max_pixels=MAX_PIXELS).test_client()
    first = post(client, encoded(picture(3)), to="/search", k=1).json["matches"][0]
    assert first["name"] == "3.png"
    remove(tmp_path / "index", ["3.png"], progress=False)
    assert client.get(first["thumbnail"]).status_code == 404
    assert client.get(f"/?id={first['id']}").status_code == 404
    assert "3.png" not in names(post(client, encoded(picture(3)), k=22))
    assert "21 images" in client.get("/").text
    build([index.parent / "codes"], tmp_path / "index", add=True, progress=False)
    assert "3.png" in names(post(client, encoded(picture(3)), k=2))
    meta = tmp_path / "index" / "meta.json"
    whole = meta.read_text()
    for change in (lambda: meta.write_text("{"), meta.unlink):
        change()
        for path in ("/", f"/thumbnail?id={first['id']}"):
            answer = client.get(path)
            assert answer.status_code == 503
            assert answer.text.startswith("The index cannot be opened: ")
        assert "cannot be opened" in post(client, encoded(picture(0)), to="/search").json["error"]
    meta.write_text(whole)
    assert still_serves(client)


def test_pictures_that_were_moved_are_found_after_a_change_too(index: Path, tmp_path: Path) -> None:
    shutil.copytree(index.parent / "index", tmp_path / "index")
    shutil.copytree(index.parent / "pictures", tmp_path / "moved")
    moved = open_gallery(tmp_path / "index", tmp_path / "moved")
    picture(77).save(tmp_path / "moved" / "0.png")
    client = create_app(moved, max_pixels=MAX_PIXELS).test_client()
    before = client.get("/thumbnail?id=0").data
    remove(tmp_path / "index", ["9.png"], progress=False)
    assert client.get("/thumbnail?id=0").data == before
    assert "21 images" in client.get("/").text


def test_a_gallery_is_closed_after_its_last_request(index: Path, tmp_path: Path, monkeypatch: Any) -> None:
    closed: list[Gallery] = []
    monkeypatch.setattr(Gallery, "close", lambda gallery: closed.append(gallery))
    shutil.copytree(index.parent / "index", tmp_path / "index")
    live = _LiveGallery(first := open_gallery(tmp_path / "index"))
    with live.use() as one, live.use() as two:
        assert one is two is first
        remove(tmp_path / "index", ["0.png"], progress=False)
        with live.use() as second:
            assert len(second) == 21
            assert len(one.search(picture(0), 3)) == 3  # what began goes on with the index as it was
            assert closed == []
    assert [id(gallery) for gallery in closed] == [id(first)]
    remove(tmp_path / "index", ["1.png"], progress=False)
    with live.use() as third:
        assert len(third) == 20
        assert third.root == first.root
    assert [id(gallery) for gallery in closed] == [id(first), id(second)]
    late = open_gallery(tmp_path / "index")
    remove(tmp_path / "index", ["2.png"], progress=False)
    with _LiveGallery(late).use() as fourth:  # opened before that change, served after it
        assert len(fourth) == 19


def test_ports_that_cannot_be_used_are_rejected(index: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"port {port} is in use by another program.*--port 0"):
            serve(index, port)
    with pytest.raises(ValueError, match="--port must be from 0 to 65535, got 70000"):
        serve(index, 70_000)
    for bounds in ({"max_bytes": 0}, {"max_pixels": -1}):
        with pytest.raises(ValueError, match="--max-megabytes and --max-megapixels must be above 0"):
            serve(index, 0, **bounds)
    for seconds in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"--max-seconds must be above 0 and at most 3600, got {seconds}"):
            serve(index, 0, seconds=seconds)


def fetch(
    address: str, data: bytes | None = None, kind: str = "application/octet-stream", timeout: float = 60
) -> tuple[int, bytes]:
    request = urllib.request.Request(address, data=data, headers={"Content-Type": kind} if data is not None else {})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=timeout) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def form(data: bytes) -> tuple[bytes, str]:
    head = b'--b\r\nContent-Disposition: form-data; name="picture"; filename="a.png"\r\n\r\n'
    return head + data + b"\r\n--b--\r\n", "multipart/form-data; boundary=b"


def test_a_real_server_serves_many_at_once_and_survives_malformed_requests_until_ctrl_c(index: Path) -> None:
    with serving(index, max_bytes=MAX_BYTES, max_pixels=MAX_PIXELS) as (address, process):
        host, port = address.removeprefix("http://").split(":")
        sent = [encoded(picture(seed)) for seed in range(15)] + [data for data, _ in BAD.values()]

        def ask(data: bytes) -> tuple[int, bytes]:
            return fetch(f"{address}/search?token={TOKEN}", *form(data))

        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(ask, sent * 2))
            thumbnails = list(pool.map(fetch, [f"{address}/thumbnail?token={TOKEN}&id={id}" for id in range(22)]))
        for i, (code, body) in enumerate(answers):
            assert code == (200 if i % len(sent) < 15 else 422)
            if code == 200:
                assert f'"name":"{i % len(sent)}.png"'.encode() in body.partition(b"}")[0]
        assert all(code == 200 and body.startswith(b"\xff\xd8") for code, body in thumbnails)
        for nonsense in (
            b"\0" * 100,
            b"GET / HTTP/9.9\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999\r\n\r\n",
        ):
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(nonsense)
        assert ask(bytes(MAX_BYTES + 2**17))[0] == 413
        assert ask(encoded(picture(0)))[0] == 200
        with pytest.raises(OSError, match="refused"):  # no other address of this machine is served
            socket.create_connection(("127.0.0.2", int(port)), timeout=10)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=300) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_slow_connections_do_not_keep_others_out(index: Path) -> None:
    with serving(index) as (address, _), ExitStack() as slow:
        host, port = address.removeprefix("http://").split(":")
        for i in range(150):
            connection = slow.enter_context(socket.create_connection((host, int(port))))
            connection.sendall(
                (b"", b"GET / HTTP/1.1\r\nHost: ", b"POST / HTTP/1.1\r\nContent-Length: 99\r\n\r\n")[i % 3]
            )
        assert fetch(f"{address}/serve.js?token={TOKEN}", timeout=20)[0] == 200
        assert fetch(f"{address}/search?token={TOKEN}", *form(encoded(picture(0))), timeout=20)[0] == 200


def test_silent_and_endless_connections_are_closed(client: Any) -> None:
    server = _Server(client.application, 0, MAX_BYTES)
    connections = [socket.create_connection(("127.0.0.1", server.effective_port)) for _ in range(3)]
    try:
        for connection, sent in zip(connections, (b"", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\n"), strict=True):
            connection.sendall(sent)
        while (
            len(server.active_channels) < 3 or sum(c.request is not None for c in server.active_channels.values()) < 2
        ):
            server.asyncore.loop(timeout=0.1, map=server._map, count=1)
        ports = [connection.getsockname()[1] for connection in connections]
        silent, half, drip = sorted(server.active_channels.values(), key=lambda channel: ports.index(channel.addr[1]))
        now = time.time()
        server.maintenance(now)
        assert not any(channel.will_close for channel in (silent, half, drip))
        drip.last_activity = now + PATIENCE  # another byte
        server.maintenance(now + PATIENCE + 1)
        assert [channel.will_close for channel in (silent, half, drip)] == [True, True, False]
        drip.last_activity = now + 4 * PATIENCE
        server.maintenance(now + 4 * PATIENCE + 1)
        assert drip.will_close
        drip.will_close, drip.request, drip.requests = False, None, [object()]
        server.maintenance(now + 9 * PATIENCE)
        assert not drip.will_close  # its request is being answered
    finally:
        for connection in connections:
            connection.close()
        server.task_dispatcher.shutdown()
        server.close()


def test_a_picture_that_takes_long_does_not_block_other_requests(gallery: Gallery) -> None:
    app = create_app(gallery, max_pixels=MAX_PIXELS, seconds=120)
    clients = [app.test_client() for _ in range(3)]
    decoders = app.extensions["hashgym"].decoders
    with closing(decoders), ThreadPoolExecutor(2) as pool:
        assert still_serves(clients[0])
        warm = decoders._idle.queue[-1]
        os.kill(warm._process.pid, signal.SIGSTOP)  # as slow as can be
        stuck = pool.submit(post, clients[1], encoded(picture(1)), to="/search")
        while warm in decoders._idle.queue:
            time.sleep(0.01)
        assert still_serves(clients[0])
        assert clients[2].get("/thumbnail?id=0").status_code == 200
        assert not stuck.done()
        os.kill(warm._process.pid, signal.SIGKILL)  # as Linux does when memory runs out
        answer = stuck.result(timeout=600)
        assert answer.status_code == 507
        assert answer.json["error"] == "There is not enough memory for this picture: choose a smaller one."
        assert still_serves(clients[1])


def test_a_time_limit_ends_decoding_with_a_message(gallery: Gallery) -> None:
    client = create_app(gallery, max_pixels=MAX_PIXELS, seconds=0.01).test_client()  # a process takes longer to start
    answer = post(client, encoded(picture(0)), "slow.png")
    assert answer.status_code == 422
    assert message(answer) == "image slow.png takes more than 0.01 s to decode; save it as PNG or JPEG."
    assert client.get("/thumbnail?id=0").status_code == 404
    assert client.get("/").status_code == 200
