"""Serve the web page of an image index to one user of this machine: drop a picture, see the nearest ones.

It needs ``pip install 'hashgym[serve]'``. All input is untrusted. A request needs the token of the printed address, or
the cookie that the page sets for it; it must name this machine (another name may be rebound to its address), and other
sites may not post. Uploads are bounded in bytes and in pixels and are decoded in worker processes
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
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from hashgym.codes import Words, pack
from hashgym.console import say
from hashgym.gallery.decoding import Decoded, Decoders
from hashgym.gallery.page import jpeg
from hashgym.gallery.search import INDEX, REGIONS, Gallery, open_gallery, read_meta
from hashgym.optional import MissingPackageError, install_command
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
except ModuleNotFoundError as error:
    raise MissingPackageError(
        f"the web page needs {error.name}: {install_command('flask')}", name=error.name
    ) from error

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["create_app", "serve"]

HOST = "127.0.0.1"
MAX_BYTES = 32 * 2**20
MAX_PIXELS = 50_000_000
MAX_RESULTS = 200  # on a page
MAX_RANK = 10_000  # of the last result
MAX_TEXT = 300  # characters
SECONDS = 20.0  # time limit for decoding a picture
RESULTS = 12
THUMBNAIL = 384  # longer side in pixels; shown at half that size, for screens of high density
TOKEN = "HASHGYM_TOKEN"
CONNECTIONS = 500  # open at once
PATIENCE = 30.0  # seconds without a byte after which a connection is closed; a request may take four times as long
CROWDED_PATIENCE = 5.0  # the same while more than half of all connections are open
THREADS = 32
SLOW_REQUESTS = 28  # requests at once that may wait for a decoder or the index; other threads answer the rest
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
    weights: str | None = None,
    reopen: Callable[[], Gallery] | None = None,
) -> flask.Flask:
    """Return the web application of a gallery.

    ``GET /`` is the page; ``POST /`` is the page with the ``k`` images nearest to the uploaded ``picture``, or to the
    words ``text`` where the images were encoded by an image-text model, or to the image ``id``; ``page`` is the number
    of the page of results, from 1. ``POST /search`` takes the same and answers in JSON; ``GET /thumbnail?id=`` is an
    image of the gallery, small, with the ``region`` that matched framed.

    When the index changes on the disk it is opened again, and the previous gallery is closed after its last request.
    ``app.extensions["hashgym"].close()`` closes the gallery and ends the decoders.

    Args:
        gallery: the index to search.
        max_bytes: size limit of an uploaded picture.
        max_pixels: size limit of any picture, uploaded or in the gallery.
        seconds: time limit for decoding a picture.
        token: required in every request, as ``?token=``, as ``Authorization: Bearer``, or by the cookie that
            ``GET /?token=`` sets; empty to answer all requests.
        weights: for searching by words, see :meth:`hashgym.gallery.Gallery.search_text`.
        reopen: opens the gallery again after a change; by default :func:`hashgym.gallery.open_gallery` on its folder.
    """
    app = flask.Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = max_bytes + 2**16  # the form around the picture
    app.jinja_env.filters["text"] = _text
    decoders = Decoders(max_bytes=max_bytes, max_pixels=max_pixels, seconds=seconds)
    site = app.extensions["hashgym"] = _Site(_LiveGallery(gallery, reopen), decoders, token, weights)

    for check in (site.check_origin, site.check_token, site.open_gallery):
        app.before_request(check)
    app.after_request(_secure)
    app.teardown_request(site.release_gallery)
    app.register_error_handler(HTTPException, site.failed)
    app.register_error_handler(MemoryError, lambda _: site.failed(_InsufficientMemory()))

    app.get("/")(site.home)
    app.post("/")(site.results)
    app.post("/search")(site.search)
    app.get("/thumbnail")(site.thumbnail)
    app.get("/<any('serve.css', 'serve.js'):name>")(site.static)
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
    weights: str | None = None,
) -> None:
    """Serve the web page of an index at http://127.0.0.1:PORT until Ctrl-C; the address is printed.

    Args:
        folder: the index.
        port: a free port; 0 for any that is free.
        root: the folder where the images are now, if they were moved.
        uri: of the Milvus server that the index is on, see :func:`hashgym.gallery.open_gallery`.
        max_bytes: size limit of an uploaded picture.
        max_pixels: size limit of any picture.
        seconds: time limit for decoding a picture.
        token: required in every request, see :func:`create_app`. By default the environment variable HASHGYM_TOKEN, or
            a random one; empty to answer every user of this machine.
        weights: for searching by words, see :func:`create_app`.

    Raises:
        ValueError: for a port that is taken or not allowed, limits below 1, or a token that is short or has characters
            with a meaning in addresses.
        DataError: as :func:`hashgym.gallery.open_gallery`.
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
    app = create_app(gallery := reopen(), **limits, seconds=seconds, token=token, weights=weights, reopen=reopen)
    with closing(app.extensions["hashgym"]):
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # a browser requests many thumbnails at once
        try:
            server = _Server(app, port, max_bytes)
        except OSError as error:
            reason = {
                errno.EADDRINUSE: f"port {port} is in use by another program",
                errno.EACCES: f"port {port} needs administrator rights",
            }.get(error.errno or 0, f"port {port} cannot be used ({error.strerror})")
            raise ValueError(f"{reason}: choose another with --port, or --port 0 for any free one") from None
        address = f"http://{HOST}:{server.effective_port}/" + (f"?token={token}" if token else "")
        try:
            say(f"{len(gallery.names):,} images at {address} - press Ctrl-C to end")
            server.run()
        finally:
            app.extensions["hashgym"].decoders.close()  # so that no request waits for a picture
            server.task_dispatcher.shutdown()
            server.close()


class _Site:
    """The request handlers of an application, in the order of their calls: checks, then answers.

    Args:
        live: the gallery.
        decoders: decode uploaded pictures and thumbnails.
        token: required in every request; empty for none.
        weights: of the network for texts.
    """

    def __init__(self, live: _LiveGallery, decoders: Decoders, token: str, weights: str | None) -> None:
        self.decoders = decoders
        self._live, self._token, self._weights = live, token, weights
        self._searching = threading.Lock()  # back ends may not be thread-safe
        self._reading = threading.Lock()  # the network for texts, which is loaded at the first one
        self._working = threading.BoundedSemaphore(SLOW_REQUESTS)

    def check_origin(self) -> flask.Response | None:
        """Reject requests that name another host, and posts of other sites."""
        request, host = flask.request, flask.request.headers.get("Host", "")
        if not re.fullmatch(r"(127\.0\.0\.1|localhost)(:[0-9]{1,5})?", host, re.IGNORECASE):
            return _plain("This page is served at 127.0.0.1 and localhost only.", 403)
        own, site = f"http://{host}".lower(), request.headers.get("Sec-Fetch-Site")
        foreign = request.headers.get("Origin", own).lower() != own or site in ("cross-site", "same-site")
        return _plain("Requests of other sites are rejected.", 403) if request.method == "POST" and foreign else None

    def check_token(self) -> Any:
        """Reject requests without the token; one for the page with the token in its address gets a cookie instead."""
        if not self._token:
            return None
        request = flask.request
        cookie, value = _cookie(self._token, request.headers.get("Host", ""))
        if _equal(request.args.get("token", ""), self._token):
            if request.method != "GET" or request.path != "/":
                return None
            query: dict[str, Any] = {key: request.args[key] for key in ("id", "text", "k") if key in request.args}
            answer = flask.redirect(flask.url_for("home", **query), 303)  # removes the token from the address bar
            answer.set_cookie(cookie, value, httponly=True, samesite="Strict")
            return answer
        if _equal(request.headers.get("Authorization", ""), f"Bearer {self._token}"):
            return None
        if _equal(request.cookies.get(cookie, ""), value):
            return None
        return _plain(
            "This page needs its token: open the address that `hashgym serve` printed, with ?token= in it.", 403
        )

    def open_gallery(self) -> None:
        """Open the gallery as it is now, for this request."""
        flask.g.resources = ExitStack()
        flask.g.gallery = flask.g.resources.enter_context(self._live.use())

    def release_gallery(self, _: BaseException | None) -> None:
        """Release the gallery after the request."""
        if resources := flask.g.pop("resources", None):
            resources.close()

    def failed(self, error: HTTPException) -> Any:
        """Return the answer to a request that failed: JSON, plain text or the page, depending on its path."""
        code, message = error.code or 500, error.description or error.name
        if code == 413:
            message = f"The picture is too large: {self.decoders.max_bytes / 2**20:.3g} MB at most."
        if code == 500:
            message = "The search failed; the terminal where hashgym serve runs shows the error."
        if flask.request.path == "/search":
            return {"error": _text(message)}, code
        if flask.request.path == "/thumbnail" or "gallery" not in flask.g:
            return _plain(_text(message), code)
        return self._page(error=message), code

    def home(self) -> str:
        """Return the page, with the images nearest to one of the gallery, or to words, if the address has these."""
        return self._page(**self._matches()) if {"id", "text"} & set(flask.request.args) else self._page()

    def results(self) -> str:
        """Return the page with the images nearest to what was sent."""
        return self._page(**self._matches())

    def search(self) -> dict[str, Any]:
        """Return the nearest images, for JSON."""
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
                for match in self._matches()["matches"]
            ],
        }

    def thumbnail(self) -> flask.Response:
        """Return a small JPEG of an image of the gallery."""
        request, gallery = flask.request, flask.g.gallery
        identifier, path = self._requested_image()
        region = _number("region", 0, len(REGIONS) - 1, 0)
        if region > gallery.encoder.regions:
            raise NotFound("The images of this index have no regions.")
        try:
            state = path.stat()
        except OSError:
            raise NotFound("The file of the image no longer exists.") from None
        identity = f"{path}\0{state.st_mtime_ns}\0{state.st_size}\0{region}\0{gallery.encoder.sigma}"
        tag = hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()[:32]
        response = flask.Response(status=304) if tag in request.if_none_match else flask.Response()
        response.set_etag(tag)
        if response.status_code == 200:
            with self._slot():
                try:
                    picture = self._decoded(path, gallery.names[identifier]).thumbnail
                except UnprocessableEntity:
                    raise NotFound("The image is damaged, or beyond the limits of this server.") from None
            response.mimetype = "image/jpeg"
            response.data = jpeg(_framed(picture, gallery.encoder.boxes(*picture.size)[region]) if region else picture)
        return response

    def static(self, name: str) -> flask.Response:
        """Return the style sheet or the script of the page."""
        return flask.send_from_directory(Path(__file__).parent / "templates", name)

    def close(self) -> None:
        """End the decoders and close the gallery."""
        self.decoders.close()
        self._live.close()

    def _matches(self) -> dict[str, Any]:
        """Return the images nearest to the picture, the words or the image id that was sent, as values of the page."""
        request, start_time, gallery = flask.request, time.perf_counter(), flask.g.gallery
        k = _number("k", 1, MAX_RESULTS, RESULTS)
        page = _number("page", 1, MAX_RANK // k, 1)
        upload, text = request.files.get("picture"), request.values.get("text", "").strip()
        identifier, preview = None, None
        with self._slot():
            if upload and upload.filename:
                name, text = upload.filename, ""
                query, preview = self._code_of_picture(upload.stream, name)
            elif text:
                name, query = f"“{text}”", self._code_of_text(text)
            elif request.values.get("id"):
                identifier, path = self._requested_image()
                name = gallery.names[identifier]
                query, preview = self._code_of_picture(path, name)
            else:
                raise BadRequest("This request has no picture: choose one first.")
            with self._searching, _explained("The index cannot be searched"):
                matches = gallery.search_code(query, min(k * page, len(gallery)))[k * (page - 1) :]
        return {
            **{"k": k, "page": page, "id": identifier, "text": text, "name": name, "preview": preview},
            **{"matches": matches, "seconds": time.perf_counter() - start_time},
            "has_more": k * page < min(len(gallery), MAX_RANK // k * k),
        }

    def _code_of_picture(self, source: Path | IO[bytes], name: str) -> tuple[Words, str]:
        """Return the packed code of a picture, and its thumbnail as the address of an <img>."""
        encoder = flask.g.gallery.encoder
        picture = self._decoded(source, name, preprocess=encoder.metadata.get("preprocess"))
        if picture.view is None:
            raise ServiceUnavailable("The encoder of this index takes features, not pictures.")
        with self._searching, _explained("The picture cannot be encoded"):
            query = encoder.encode_pictures(picture.view[None]).words[0, 0]
        return query, "data:image/jpeg;base64," + base64.b64encode(jpeg(picture.thumbnail)).decode()

    def _code_of_text(self, text: str) -> Words:
        """Return the packed code of words."""
        if len(text) > MAX_TEXT:
            raise BadRequest(f"The text is too long: {MAX_TEXT} characters at most.")
        with self._reading, _explained("This index cannot be searched by words"):
            return pack(flask.g.gallery.text_margins(text, self._weights) > 0)

    def _page(self, **values: Any) -> str:
        limits = {"max_bytes": self.decoders.max_bytes, "max_results": MAX_RESULTS, "max_text": MAX_TEXT}
        defaults = {"k": RESULTS, "id": None, "text": "", "matches": None, "error": None, "regions": REGIONS}
        return flask.render_template("serve.html", gallery=flask.g.gallery, **limits, **{**defaults, **values})

    def _requested_image(self) -> tuple[int, Path]:
        """Return id and file of the image of the gallery that the request names."""
        identifier = _number("id", 0, 2**62)
        try:
            return identifier, flask.g.gallery.path(identifier)
        except (LookupError, ValueError, OSError):
            raise NotFound("There is no such image in this index.") from None

    @contextmanager
    def _slot(self) -> Iterator[None]:
        """Reserve a slot for slow work; there are fewer slots than threads, so other requests are always answered."""
        if not self._working.acquire(blocking=False):
            raise ServiceUnavailable("The server is busy: try again in a moment.")
        try:
            yield
        finally:
            self._working.release()

    def _decoded(self, source: Path | IO[bytes], name: str, **options: Any) -> Decoded:
        try:
            return self.decoders(source, name, longer=THUMBNAIL, **options)
        except DataError as error:
            raise UnprocessableEntity(f"{_text(str(error))[:500]}.") from None
        except TimeoutError:
            raise ServiceUnavailable("The server is busy: try again in a moment.") from None


class _LiveGallery:
    """The gallery of an index, opened again when the index has changed on the disk.

    Args:
        gallery: an open gallery; it is closed when another has replaced it and no request uses it.
        reopen: opens the index again; by default with its pictures where they are now.
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
        """Yield the gallery in the current state of the index.

        Raises:
            ServiceUnavailable: if the index is damaged or missing, since removed pictures must not be shown.
        """
        with self._lock:
            state = self._stat()
            if state is None or state != self._state:
                with _explained("The index cannot be opened"):
                    reopened = self._reopen()
                previous, self._gallery, self._state = self._gallery, reopened, state
                reopened.share_text_encoders(previous)
                if not self._users.get(id(previous)):
                    previous.close()
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
            status = (self._folder / INDEX.manifest).stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino, status.st_size


class _Server(TcpWSGIServer):
    """The server waitress, which reads all requests in one thread, with limits for slow connections."""

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
            log_socket_errors=False,  # clients may disconnect at any time
            asyncore_use_poll=hasattr(select, "poll"),
            inbuf_overflow=2**16,  # bytes of a request in memory; the rest goes to a temporary file
            max_request_header_size=2**15,
            # Uploads somewhat above the limit are read, as a browser shows no answer before it has sent everything.
            max_request_body_size=2 * max_bytes + 2**20,
        )

    def run(self) -> None:
        """Answer requests until Ctrl-C."""
        with suppress(KeyboardInterrupt):
            self.asyncore.loop(self.adj.asyncore_loop_timeout, self.adj.asyncore_use_poll, self._map)

    def maintenance(self, now: float) -> None:
        """Close connections that are silent or whose request does not end."""
        patience = CROWDED_PATIENCE if len(self.active_channels) > self._limit / 2 else PATIENCE
        for channel in self.active_channels.values():
            started = now if channel.request is None else self._seen.setdefault(channel.request, now)
            if not channel.requests and (now - channel.last_activity > patience or now - started > 4 * patience):
                channel.will_close = True


class _InsufficientMemory(HTTPException):
    code = 507
    description = "There is not enough memory for this picture: choose a smaller one."


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Answer that something is unavailable, and why, where files, a library or another server fail."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise ServiceUnavailable(f"{what}: {_text(str(error))[:500]}.") from error


def _secure(response: flask.Response) -> flask.Response:
    """Add the security headers to an answer."""
    response.headers.update(HEADERS)
    return response


def _cookie(token: str, host: str) -> tuple[str, str]:
    """Return name and value of the cookie at a port: browsers send a cookie to all ports of a host."""
    name = f"hashgym-{host.partition(':')[2] or '80'}"
    return name, hmac.new(token.encode(), name.encode(), "sha256").hexdigest()


def _equal(given: str, wanted: str) -> bool:
    """Compare two secrets in a time that does not depend on where they differ."""
    return hmac.compare_digest(given.encode(errors="replace"), wanted.encode())


def _number(name: str, low: int, high: int, default: int | None = None) -> int:
    """Return an integer parameter of the request.

    Raises:
        BadRequest: if it is missing or out of bounds.
    """
    text = flask.request.values.get(name, "")
    if not text and default is not None:
        return default
    if not re.fullmatch("[0-9]{1,19}", text) or not low <= int(text) <= high:
        raise BadRequest(f"{name} must be a whole number from {low:,} to {high:,}.")
    return int(text)


def _framed(picture: Image, box: tuple[int, int, int, int]) -> Image:
    """Return the picture with a frame around ``box`` and the rest darkened."""
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
    """Return the text with question marks for bytes of a file name that are not UTF-8."""
    return text.encode(errors="replace").decode()
