"""The web page of an image index, for this machine alone: drop a picture, see the nearest.

It needs ``pip install 'hashgym[serve]'``. Whatever comes in is taken for hostile: only requests that name this machine
are answered (a foreign name may have been rebound to it), none that another site posts; uploads are bounded in bytes
and in pixels; images are addressed by id and leave as JPEGs drawn anew.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import re
import threading
import time
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hashgym.console import say
from hashgym.data.dataset import DataError
from hashgym.data.files import MAX_PIXELS, open_image
from hashgym.gallery.gallery import REGIONS, Gallery, open_gallery

try:
    import flask
    import waitress
    from werkzeug.exceptions import (
        BadRequest,
        HTTPException,
        NotFound,
        RequestEntityTooLarge,
        ServiceUnavailable,
        UnprocessableEntity,
    )
except ImportError as missing:
    raise ValueError(f"{missing}: the web page needs pip install 'hashgym[serve]'") from missing

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["create_app", "serve"]

HOST = "127.0.0.1"
MAX_BYTES = 32 * 2**20
MAX_RESULTS = 200
RESULTS = 12
THUMBNAIL = 384  # longer side in pixels; shown at half of that, sharp on a dense screen too
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",  # with no-referrer a form's Origin is null
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def create_app(gallery: Gallery, *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS) -> flask.Flask:
    """The web application of a gallery.

    ``GET /`` is the page; ``POST /`` is the page with the images nearest to the uploaded ``picture`` (or to the image
    ``id``), at most ``k``; ``POST /search`` takes the same and answers in JSON; ``GET /thumbnail?id=`` is an image of
    the gallery, small, with the ``region`` that matched framed.

    Args:
        gallery: what is searched.
        max_bytes: of an uploaded picture.
        max_pixels: of any picture, uploaded or in the gallery.
    """
    app = flask.Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = max_bytes + 2**16  # the form around the picture
    app.jinja_env.filters["text"] = _text
    # One picture at a time is decoded and encoded: that bounds the memory, and back ends need not be safe for threads.
    searching = threading.Lock()

    @app.before_request
    def guard() -> Any:
        request = flask.request
        host = request.headers.get("Host", "")
        if not re.fullmatch(r"(127\.0\.0\.1|localhost)(:[0-9]{1,5})?", host, re.IGNORECASE):
            return _plain("This page answers to 127.0.0.1 and localhost alone.", 403)
        own = f"http://{host}".lower()
        site = request.headers.get("Sec-Fetch-Site")
        if request.method == "POST" and (
            request.headers.get("Origin", own).lower() != own or site in ("cross-site", "same-site")
        ):
            return _plain("Another site's requests are refused.", 403)

    @app.after_request
    def secure(response: flask.Response) -> flask.Response:
        for name, value in HEADERS.items():
            response.headers[name] = value
        return response

    @app.errorhandler(HTTPException)
    def failed(error: HTTPException) -> Any:
        code, message = error.code or 500, error.description or error.name
        if code == 413:
            message = f"The picture is too large: {max_bytes / 2**20:.3g} MB at most."
        if code == 500:
            message = "The search failed; the terminal where hashgym serve runs says why."
        if flask.request.path == "/search":
            return {"error": _text(message)}, code
        return page(error=message), code

    @app.errorhandler(MemoryError)
    def too_large(_: MemoryError) -> Any:
        return failed(RequestEntityTooLarge())

    @app.get("/")
    def home() -> Any:
        return page(**search()) if "id" in flask.request.args else page()

    @app.post("/")
    def home_with_results() -> Any:
        return page(**search())

    @app.post("/search")
    def answer() -> Any:
        found = search()
        return {
            "bits": gallery.encoder.bits,
            "images": len(gallery.names),
            "matches": [
                {
                    "id": int(match.id),
                    "name": match.name,
                    "distance": int(match.distance),
                    "region": int(match.region),
                    "box": None if match.box is None else [int(side) for side in match.box],
                    "thumbnail": flask.url_for("thumbnail", id=match.id, region=match.region),
                }
                for match in found["matches"]
            ],
        }

    @app.get("/thumbnail")
    def thumbnail() -> Any:
        request = flask.request
        path = image_path(_number("id", 0, 2**62))
        region = _number("region", 0, len(REGIONS) - 1, 0)
        try:
            state = path.stat()
        except OSError:
            raise NotFound("The image is no longer there.") from None
        identity = f"{path}\0{state.st_mtime_ns}\0{state.st_size}\0{region}\0{gallery.encoder.sigma}"
        tag = hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()[:32]
        response = flask.Response(status=304) if tag in request.if_none_match else flask.Response()
        response.set_etag(tag)
        if response.status_code == 200:
            try:
                picture = _small(open_image(path, max_pixels=max_pixels, at_least=THUMBNAIL))
            except (DataError, MemoryError):
                raise NotFound("The image is damaged.") from None
            response.mimetype = "image/jpeg"
            response.data = _jpeg(_framed(picture, gallery.encoder.boxes(*picture.size)[region]) if region else picture)
        return response

    @app.get("/<any('serve.css', 'serve.js'):name>")
    def static(name: str) -> Any:
        return flask.send_from_directory(Path(__file__).parent / "templates", name)

    def image_path(identifier: int) -> Path:
        try:
            return gallery.path(identifier)
        except (LookupError, ValueError, OSError):
            raise NotFound("There is no such image in this index.") from None

    def opened(source: Any, name: str, most: int | None = None) -> Image:
        try:
            return open_image(source, name, max_bytes=most, max_pixels=max_pixels)
        except DataError as error:
            raise UnprocessableEntity(f"{_text(str(error))[:500]}.") from None

    def search() -> dict[str, Any]:
        request, began = flask.request, time.perf_counter()
        k = _number("k", 1, MAX_RESULTS, RESULTS)
        upload, identifier = request.files.get("picture"), None
        if not (upload and upload.filename) and not request.values.get("id"):
            raise BadRequest("No picture came with this request: choose one first.")
        with searching:
            if upload and upload.filename:
                name = upload.filename
                picture = opened(upload.stream, name, max_bytes)
            else:
                identifier = _number("id", 0, 2**62)
                path, name = image_path(identifier), gallery.names[identifier]
                picture = opened(path, name)
            try:
                matches = gallery.search(picture, k)
            except (ValueError, OSError) as error:  # a back end that is a server of its own may be gone
                raise ServiceUnavailable(f"The index cannot be searched: {_text(str(error))[:500]}.") from error
            preview = "data:image/jpeg;base64," + base64.b64encode(_jpeg(_small(picture))).decode()
        seconds = time.perf_counter() - began
        return {"k": k, "id": identifier, "name": name, "preview": preview, "matches": matches, "seconds": seconds}

    def page(**values: Any) -> str:
        limits = {"max_bytes": max_bytes, "max_results": MAX_RESULTS, "regions": REGIONS}
        defaults = {"k": RESULTS, "id": None, "matches": None, "error": None}
        return flask.render_template("serve.html", gallery=gallery, **limits, **{**defaults, **values})

    return app


def serve(
    folder: str | Path,
    port: int = 8000,
    *,
    root: str | Path | None = None,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
) -> None:
    """Serve the web page of an index at http://127.0.0.1:PORT until Ctrl-C.

    Args:
        folder: the index.
        port: a free port; 0 for any that is free.
        root: the folder where the images are now, if they were moved.
        max_bytes: of an uploaded picture.
        max_pixels: of any picture.

    Raises:
        ValueError: for a port that is taken or not allowed, bounds below 1, or what is no index.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"--port must be from 0 to 65535, got {port}")
    if max_bytes < 1 or max_pixels < 1:
        raise ValueError("--max-megabytes and --max-megapixels must be above 0")
    gallery = open_gallery(Path(folder), root=None if root is None else Path(root))
    app = create_app(gallery, max_bytes=max_bytes, max_pixels=max_pixels)
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # a browser asks for many thumbnails at once
    # Somewhat larger uploads than allowed are read, for a browser shows no answer that comes before it has sent all.
    bounds = {"max_request_body_size": 2 * max_bytes + 2**20, "max_request_header_size": 2**15, "channel_timeout": 30}
    try:
        server = waitress.create_server(app, host=HOST, port=port, threads=4, ident=None, **bounds)
    except OSError as error:
        raise ValueError(f"port {port} cannot be used ({error.strerror}): choose another with --port") from error
    say(f"{len(gallery.names):,} images at http://{HOST}:{server.effective_port}/ - Ctrl-C ends it")
    try:
        server.run()
    finally:
        server.close()
        gallery.close()


def _number(name: str, low: int, high: int, default: int | None = None) -> int:
    """A whole number among the request's values.

    Raises:
        BadRequest: if it is something else.
    """
    text = flask.request.values.get(name, "")
    if not text and default is not None:
        return default
    if not re.fullmatch("[0-9]{1,19}", text) or not low <= int(text) <= high:
        raise BadRequest(f"{name} must be a whole number from {low:,} to {high:,}.")
    return int(text)


def _small(picture: Image) -> Image:
    """The picture, at most a thumbnail's size."""
    small = picture.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return small


def _framed(picture: Image, box: tuple[int, int, int, int]) -> Image:
    """The picture with a frame around ``box``, all else darkened."""
    from PIL import Image, ImageDraw

    framed = Image.blend(picture, Image.new("RGB", picture.size), 0.5)
    framed.paste(picture.crop(box), box[:2])
    left, top, right, bottom = box
    draw = ImageDraw.Draw(framed)
    draw.rectangle((left, top, right - 1, bottom - 1), outline="white", width=max(1, min(picture.size) // 48))
    return framed


def _jpeg(picture: Image) -> bytes:
    out = BytesIO()
    picture.save(out, "JPEG", quality=85)
    return out.getvalue()


def _plain(message: str, code: int) -> flask.Response:
    return flask.Response(message + "\n", code, mimetype="text/plain")


def _text(text: str) -> str:
    """The text as UTF-8 can hold it: bytes of a file name that are none become question marks."""
    return text.encode(errors="replace").decode()
