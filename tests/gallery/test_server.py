"""The web page of an index: what it finds, and what it refuses."""

from __future__ import annotations

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
import urllib.error
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.gallery.served import HOSTILE_NAMES, TOKEN, picture, serving, write_index

pytest.importorskip("flask")
pytest.importorskip("waitress")

from hashgym.gallery.gallery import Gallery, open_gallery
from hashgym.gallery.server import MAX_RESULTS, THUMBNAIL, create_app, serve

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
    """What a page says went wrong."""
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


def png(width: int, height: int, data: bytes) -> bytes:
    """A PNG whose header promises what its data need not hold."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def test_the_page_loads_nothing_from_elsewhere_and_nothing_inline(client: Any) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert "22 images, codes of 48 bits" in page.text
    assert "<style" not in page.text
    assert "style=" not in page.text
    assert not re.search(r"<script(?! src)|\son\w+=|https?://", page.text)
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


def test_json_says_the_same(client: Any, gallery: Gallery) -> None:
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
def test_foreign_host_names_are_refused_without_a_word_of_the_gallery(client: Any, host: str) -> None:
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
def test_what_other_sites_post_is_refused(client: Any, headers: dict[str, str], code: int) -> None:
    for path in ("/", "/search"):
        data = {"picture": (io.BytesIO(encoded(picture(0))), "a.png")}
        assert client.post(path, data=data, headers=headers).status_code == code


GREY16 = Image.fromarray(np.full((40, 40), 40_000, np.uint16))
BAD = {
    "nothing": (b"", "damaged or no picture"),
    "html.jpg": (b"<!doctype html><script>alert(1)</script>", "damaged or no picture: none of BMP, GIF, JPEG"),
    "active.svg": (b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', "none of BMP"),
    "postscript.png": (encoded(picture(0), "EPS"), "none of BMP"),
    "truncated.png": (encoded(picture(0))[:150], "damaged"),
    "truncated.jpg": (encoded(picture(0), "JPEG")[:900], "damaged"),
    "truncated.webp": (encoded(picture(0), "WEBP", lossless=True)[:90], "damaged"),
    "truncated.gif": (encoded(picture(0), "GIF")[:500], "damaged"),
    "only-header.png": (b"\x89PNG\r\n\x1a\n", "damaged"),
    "huge.png": (png(100_000, 100_000, b""), "pixels"),
    "very-huge.png": (png(2**31 - 1, 2**31 - 1, b""), "pixels"),
    "large.png": (png(1_001, 1_000, bytes(1000)), "1001 x 1000 pixels; more than 1,000,000"),
    "bomb.png": (encoded(Image.new("1", (30_000, 30_000))), "pixels"),
    "empty.png": (png(0, 0, b""), "damaged"),
    "too-little.png": (png(900, 900, b"\0" * 10), "damaged"),
    "deep.png": (encoded(GREY16), "more than 8 bits a channel; convert it"),
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
        said = message(answer) if path == "/" else answer.json["error"]
        assert said.startswith(f"image {name} ")
        assert reason in said
        assert len(said) < 600
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
def test_odd_pictures_are_searched_with(client: Any, name: str) -> None:
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
def test_a_request_without_picture_is_told(client: Any, values: dict[str, str]) -> None:
    answer = client.post("/", data=values)
    assert answer.status_code == 400
    assert message(answer) == "No picture came with this request: choose one first."


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


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(["id", "region", "k"]), value=st.text() | st.integers().map(str), path=st.sampled_from("/t")
)
def test_no_value_is_an_error_of_the_server(client: Any, name: str, value: str, path: str) -> None:
    values = {"id": "0", name: value}
    answer = client.get("/" if path == "/" else "/thumbnail", query_string=values)
    assert answer.status_code in (200, 400, 404)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@given(data=st.data())
def test_mutated_pictures_are_searched_with_or_refused(client: Any, data: st.DataObject) -> None:
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


def test_thumbnails_are_small_jpegs_drawn_anew(client: Any, gallery: Gallery) -> None:
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


@pytest.mark.parametrize(
    ("error", "code"), [(RuntimeError("secret"), 500), (MemoryError(), 507), (ValueError("Milvus is gone"), 503)]
)
def test_what_fails_inside_is_told_without_its_inside(
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
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False).stderr
    assert "pip install 'hashgym[serve]'" in said.splitlines()[-1]


def test_ports_that_cannot_be_had_are_told(index: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"port {port} is in use by another program.*--port 0"):
            serve(index, port)
    with pytest.raises(ValueError, match="--port must be from 0 to 65535, got 70000"):
        serve(index, 70_000)
    for bounds in ({"max_bytes": 0}, {"max_pixels": -1}, {"seconds": 0.0}, {"seconds": math.nan}):
        with pytest.raises(ValueError, match="--max-megapixels and --max-seconds must be above 0"):
            serve(index, 0, **bounds)


def fetch(address: str, data: bytes | None = None, kind: str = "application/octet-stream") -> tuple[int, bytes]:
    request = urllib.request.Request(address, data=data, headers={"Content-Type": kind} if data is not None else {})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def form(data: bytes) -> tuple[bytes, str]:
    head = b'--b\r\nContent-Disposition: form-data; name="picture"; filename="a.png"\r\n\r\n'
    return head + data + b"\r\n--b--\r\n", "multipart/form-data; boundary=b"


def test_a_real_server_serves_many_at_once_through_all_nonsense_until_ctrl_c(index: Path) -> None:
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
        assert process.wait(timeout=30) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
