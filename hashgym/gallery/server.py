"""The web page of an image index, for one user of this machine: drop a picture, see the nearest.

It needs ``pip install 'hashgym[serve]'``. All input is untrusted. A request needs the token of the printed address, or
the cookie that the page sets for it; it must name this machine (a foreign name may be rebound to its address), and no
other site may post. Uploads are bounded in bytes and in pixels and are decoded in worker processes
(``hashgym.gallery.decoding``); pictures are addressed by id and sent as JPEG thumbnails without their metadata.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import hmac
import logging
import os
import re
import secrets
import select
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from hashgym.console import say
from hashgym.gallery.decoding import Decoded, Decoders
from hashgym.gallery.gallery import INDEX, REGIONS, Gallery, open_gallery, read_meta
from hashgym.gallery.page import jpeg
from hashgym.storage.errors import DataError

try:
    import flask
    from waitress.server import TcpWSGIServer
    from werkzeug.exceptions import (
        BadRequest,
        HTTPException,
        NotFound,
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
MAX_PIXELS = 50_000_000
MAX_RESULTS = 200
SECONDS = 20.0  # that a picture may take to decode
RESULTS = 12
THUMBNAIL = 384  # longer side in pixels; shown at half of that, sharp on a dense screen too
TOKEN = "HASHGYM_TOKEN"
CONNECTIONS = 500  # open at once
PATIENCE = 30.0  # seconds without a byte after which a connection is closed; a request may take four times as long
CROWDED_PATIENCE = 5.0  # the same while more than half of the connections are open
THREADS = 32
WORKING = 28  # requests at once that may wait for a decoder or the index; the other threads answer all the rest
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",  # with no-referrer a form's Origin is null
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def create_app(
    gallery: Gallery,
    *,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
    seconds: float = SECONDS,
    token: str = "",
    reopen: Callable[[], Gallery] | None = None,
) -> flask.Flask:
    """The web application of a gallery.

    ``GET /`` is the page; ``POST /`` is the page with the images nearest to the uploaded ``picture`` (or to the image
    ``id``), at most ``k``; ``POST /search`` takes the same and answers in JSON; ``GET /thumbnail?id=`` is an image of
    the gallery, small, with the ``region`` that matched framed.

    When the index changes on the disk it is opened again, and the gallery before is closed after its last request.
    ``app.extensions["hashgym"].close()`` closes the gallery and ends the decoders.

    Args:
        gallery: what is searched.
        max_bytes: of an uploaded picture.
        max_pixels: of any picture, uploaded or in the gallery.
        seconds: that a picture may take to decode.
        token: required in every request, as ``?token=``, as ``Authorization: Bearer``, or by the cookie that
            ``GET /?token=`` sets; empty: all requests are answered.
        reopen: opens the gallery again after a change; by default :func:`hashgym.gallery.open_gallery` of its folder.
    """
    app = flask.Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = max_bytes + 2**16  # the form around the picture
    app.jinja_env.filters["text"] = _text
    live = _LiveGallery(gallery, reopen)
    decode = Decoders(max_bytes=max_bytes, max_pixels=max_pixels, seconds=seconds)
    searching = threading.Lock()  # back ends need not be safe for threads
    working = threading.BoundedSemaphore(WORKING)
    app.extensions["hashgym"] = _Resources(live, decode)

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
        if token:
            cookie, value = _cookie(token, host)
            if _same(request.args.get("token", ""), token):
                if request.method == "GET" and request.path == "/":  # the token leaves the address bar
                    kept: dict[str, Any] = {key: request.args[key] for key in ("id", "k") if key in request.args}
                    answer = flask.redirect(flask.url_for("home", **kept), 303)
                    answer.set_cookie(cookie, value, httponly=True, samesite="Strict")
                    return answer
            elif not (
                _same(request.headers.get("Authorization", ""), f"Bearer {token}")
                or _same(request.cookies.get(cookie, ""), value)
            ):
                return _plain(
                    "This page needs its token: open the address that `hashgym serve` printed, with ?token= in it.", 403
                )
        flask.g.using = ExitStack()
        flask.g.gallery = flask.g.using.enter_context(live.use())

    @app.teardown_request
    def done(_: BaseException | None) -> None:
        if using := flask.g.pop("using", None):
            using.close()

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
        if flask.request.path == "/thumbnail" or "gallery" not in flask.g:
            return _plain(_text(message), code)
        return page(error=message), code

    @app.errorhandler(MemoryError)
    def memory_ended(_: MemoryError) -> Any:
        return failed(_InsufficientMemory())

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
            "bits": flask.g.gallery.encoder.bits,
            "images": len(flask.g.gallery.names),
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
        request, gallery = flask.request, flask.g.gallery
        path = image_path(_number("id", 0, 2**62))
        region = _number("region", 0, len(REGIONS) - 1, 0)
        if region > gallery.encoder.regions:
            raise NotFound("The images of this index have no regions.")
        try:
            state = path.stat()
        except OSError:
            raise NotFound("The image is no longer there.") from None
        identity = f"{path}\0{state.st_mtime_ns}\0{state.st_size}\0{region}\0{gallery.encoder.sigma}"
        tag = hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()[:32]
        response = flask.Response(status=304) if tag in request.if_none_match else flask.Response()
        response.set_etag(tag)
        if response.status_code == 200:
            with work():
                try:
                    picture = decoded(path, gallery.names[_number("id", 0, 2**62)]).thumbnail
                except UnprocessableEntity:
                    raise NotFound("The image is damaged, or beyond the limits of this server.") from None
            response.mimetype = "image/jpeg"
            response.data = jpeg(_framed(picture, gallery.encoder.boxes(*picture.size)[region]) if region else picture)
        return response

    @app.get("/<any('serve.css', 'serve.js'):name>")
    def static(name: str) -> Any:
        return flask.send_from_directory(Path(__file__).parent / "templates", name)

    def image_path(identifier: int) -> Path:
        try:
            path: Path = flask.g.gallery.path(identifier)
        except (LookupError, ValueError, OSError):
            raise NotFound("There is no such image in this index.") from None
        return path

    @contextmanager
    def work() -> Iterator[None]:
        """A turn at what takes time; there are fewer turns than threads, so that plain requests are always answered."""
        if not working.acquire(blocking=False):
            raise ServiceUnavailable("The server is busy: try again in a moment.")
        try:
            yield
        finally:
            working.release()

    def decoded(source: Any, name: str, **options: Any) -> Decoded:
        try:
            return decode(source, name, longer=THUMBNAIL, **options)
        except DataError as error:
            raise UnprocessableEntity(f"{_text(str(error))[:500]}.") from None
        except TimeoutError:
            raise ServiceUnavailable("The server is busy: try again in a moment.") from None

    def search() -> dict[str, Any]:
        request, began, gallery = flask.request, time.perf_counter(), flask.g.gallery
        k = _number("k", 1, MAX_RESULTS, RESULTS)
        upload, identifier = request.files.get("picture"), None
        source: Path | IO[bytes]
        if upload and upload.filename:
            source, name = upload.stream, upload.filename
        elif request.values.get("id"):
            identifier = _number("id", 0, 2**62)
            source, name = image_path(identifier), gallery.names[identifier]
        else:
            raise BadRequest("No picture came with this request: choose one first.")
        with work():
            picture = decoded(source, name, preprocess=gallery.encoder.metadata.get("preprocess"))
            if picture.view is None:
                raise ServiceUnavailable("The encoder of this index takes features, not pictures.")
            try:
                with searching:
                    query = gallery.encoder.encode_pictures(picture.view[None]).words[0, 0]
                    matches = gallery.search_code(query, k)
            except (ValueError, OSError) as error:  # a back end that is a server of its own may be gone
                raise ServiceUnavailable(f"The index cannot be searched: {_text(str(error))[:500]}.") from error
        preview = "data:image/jpeg;base64," + base64.b64encode(jpeg(picture.thumbnail)).decode()
        seconds = time.perf_counter() - began
        return {"k": k, "id": identifier, "name": name, "preview": preview, "matches": matches, "seconds": seconds}

    def page(**values: Any) -> str:
        limits = {"max_bytes": max_bytes, "max_results": MAX_RESULTS, "regions": REGIONS}
        defaults = {"k": RESULTS, "id": None, "matches": None, "error": None}
        return flask.render_template("serve.html", gallery=flask.g.gallery, **limits, **{**defaults, **values})

    return app


def serve(
    folder: str | Path,
    port: int = 8000,
    *,
    root: str | Path | None = None,
    uri: str | None = None,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
    seconds: float = SECONDS,
    token: str | None = None,
) -> None:
    """Serve the web page of an index at http://127.0.0.1:PORT until Ctrl-C; the address is printed.

    Args:
        folder: the index.
        port: a free port; 0 for any that is free.
        root: the folder where the images are now, if they were moved.
        uri: of the Milvus server that the index is on, see :func:`hashgym.gallery.open_gallery`.
        max_bytes: of an uploaded picture.
        max_pixels: of any picture.
        seconds: that a picture may take to decode.
        token: required of every request, see :func:`create_app`. By default that of the environment variable
            HASHGYM_TOKEN, or a random one; empty: every user of this machine is answered.

    Raises:
        ValueError: for a port that is taken or not allowed, limits below 1, a token that is short or has characters
            with a meaning in addresses, or what is no index.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"--port must be from 0 to 65535, got {port}")
    if max_bytes < 1 or max_pixels < 1:
        raise ValueError("--max-megabytes and --max-megapixels must be above 0")
    if not 0 < seconds <= 3600:
        raise ValueError(f"--max-seconds must be above 0 and at most 3600, got {seconds}")
    if token is None:
        token = os.environ.get(TOKEN) or secrets.token_urlsafe(24)
    if token and not re.fullmatch(r"[A-Za-z0-9_.~-]{16,200}", token):
        raise ValueError(f"--token or {TOKEN} must be 16 to 200 letters, digits or -._~, got {len(token)} characters")
    reopen = partial(open_gallery, Path(folder), None if root is None else Path(root), uri)
    limits = {"max_bytes": max_bytes, "max_pixels": max_pixels}
    app = create_app(gallery := reopen(), **limits, seconds=seconds, token=token, reopen=reopen)
    with closing(app.extensions["hashgym"]):
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # a browser asks for many thumbnails at once
        try:
            server = _Server(app, port, max_bytes)
        except OSError as error:
            reason = {
                errno.EADDRINUSE: f"port {port} is in use by another program",
                errno.EACCES: f"port {port} needs the rights of an administrator",
            }.get(error.errno or 0, f"port {port} cannot be used ({error.strerror})")
            raise ValueError(f"{reason}: choose another with --port, or --port 0 for any free one") from None
        address = f"http://{HOST}:{server.effective_port}/" + (f"?token={token}" if token else "")
        try:
            say(f"{len(gallery.names):,} images at {address} - Ctrl-C ends it")
            server.run()
        finally:
            app.extensions["hashgym"].decoders.close()  # so that no request waits for a picture
            server.task_dispatcher.shutdown()
            server.close()


class _LiveGallery:
    """The gallery of an index, opened again when the index has changed on the disk.

    Args:
        gallery: of the index, open; it is closed when another takes its place and no request uses it.
        reopen: opens the index again; by default where its pictures are now.
    """

    def __init__(self, gallery: Gallery, reopen: Callable[[], Gallery] | None = None) -> None:
        moved = Path(os.path.realpath(gallery.meta["root"])) != gallery.root
        self._reopen = reopen or partial(open_gallery, gallery.folder, gallery.root if moved else None)
        self._folder = gallery.folder
        self._lock = threading.Lock()
        self._users: dict[int, int] = {}  # requests that use a gallery, by its identity
        self._gallery, self._state = gallery, self._stat()
        if read_meta(self._folder) != gallery.meta:  # changed since it was opened
            self._state = None

    @contextmanager
    def use(self) -> Iterator[Gallery]:
        """The gallery as the index is now.

        Raises:
            ServiceUnavailable: if the index is damaged or gone: what was removed must not be shown.
        """
        with self._lock:
            state = self._stat()
            if state is None or state != self._state:
                try:
                    opened = self._reopen()
                except (ValueError, OSError) as error:
                    raise ServiceUnavailable(f"The index cannot be opened: {_text(str(error))[:500]}.") from error
                before, self._gallery, self._state = self._gallery, opened, state
                if not self._users.get(id(before)):
                    before.close()
            gallery = self._gallery
            self._users[id(gallery)] = self._users.get(id(gallery), 0) + 1
        try:
            yield gallery
        finally:
            with self._lock:
                self._users[id(gallery)] -= 1
                if not self._users[id(gallery)]:
                    del self._users[id(gallery)]
                    if gallery is not self._gallery:
                        gallery.close()

    def close(self) -> None:
        """Close the gallery."""
        self._gallery.close()

    def _stat(self) -> tuple[int, ...] | None:
        try:
            found = (self._folder / INDEX.manifest).stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size


@dataclass(frozen=True)
class _Resources:
    """What an application holds until it is closed."""

    gallery: _LiveGallery
    decoders: Decoders

    def close(self) -> None:
        self.decoders.close()
        self.gallery.close()


class _Server(TcpWSGIServer):
    """waitress, which reads all requests in one thread, with limits that keep slow connections from blocking others."""

    def __init__(self, app: flask.Flask, port: int, max_bytes: int) -> None:
        limit = CONNECTIONS
        with suppress(ImportError):
            import resource

            soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            limit = min(limit, soft // 2) if soft > 0 else limit
        self._limit = limit
        self._seen: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()
        super().__init__(
            app,
            host=HOST,
            port=port,
            threads=THREADS,
            ident=None,
            connection_limit=limit,
            cleanup_interval=1,
            log_socket_errors=False,  # a client that goes away is no news
            asyncore_use_poll=hasattr(select, "poll"),
            inbuf_overflow=2**16,  # what a connection may hold in memory; the rest is in a temporary file
            max_request_header_size=2**15,
            # Somewhat larger uploads than allowed are read, for a browser shows no answer that comes before it has
            # sent all.
            max_request_body_size=2 * max_bytes + 2**20,
        )

    def run(self) -> None:
        """Answer requests until Ctrl-C."""
        with suppress(KeyboardInterrupt):
            self.asyncore.loop(self.adj.asyncore_loop_timeout, self.adj.asyncore_use_poll, self._map)

    def maintenance(self, now: float) -> None:
        """Close connections that are silent, or whose request does not come to an end."""
        patience = CROWDED_PATIENCE if len(self.active_channels) > self._limit / 2 else PATIENCE
        for channel in self.active_channels.values():
            begun = now if channel.request is None else self._seen.setdefault(channel.request, now)
            if not channel.requests and (now - channel.last_activity > patience or now - begun > 4 * patience):
                channel.will_close = True


class _InsufficientMemory(HTTPException):
    code = 507
    description = "There is not enough memory for this picture: choose a smaller one."


def _cookie(token: str, host: str) -> tuple[str, str]:
    """Name and value of the cookie at a port: browsers send a cookie to all ports of a host."""
    name = f"hashgym-{host.partition(':')[2] or '80'}"
    return name, hmac.new(token.encode(), name.encode(), "sha256").hexdigest()


def _same(given: str, wanted: str) -> bool:
    """Whether two secrets are equal, in a time that says nothing about where they differ."""
    return hmac.compare_digest(given.encode(errors="replace"), wanted.encode())


def _number(name: str, low: int, high: int, default: int | None = None) -> int:
    """The whole number that the request gives under a name.

    Raises:
        BadRequest: if there is none, or it is out of bounds.
    """
    text = flask.request.values.get(name, "")
    if not text and default is not None:
        return default
    if not re.fullmatch("[0-9]{1,19}", text) or not low <= int(text) <= high:
        raise BadRequest(f"{name} must be a whole number from {low:,} to {high:,}.")
    return int(text)


def _framed(picture: Image, box: tuple[int, int, int, int]) -> Image:
    """The picture with a frame around ``box``, all else darkened."""
    from PIL import Image, ImageDraw

    framed = Image.blend(picture, Image.new("RGB", picture.size), 0.5)
    framed.paste(picture.crop(box), box[:2])
    left, top, right, bottom = box
    draw = ImageDraw.Draw(framed)
    draw.rectangle((left, top, right - 1, bottom - 1), outline="white", width=max(1, min(picture.size) // 48))
    return framed


def _plain(message: str, code: int) -> flask.Response:
    return flask.Response(message + "\n", code, mimetype="text/plain")


def _text(text: str) -> str:
    """The text with question marks for what UTF-8 cannot encode: bytes of a file name that are no UTF-8."""
    return text.encode(errors="replace").decode()
