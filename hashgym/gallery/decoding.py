"""Decode pictures in worker processes, with limits on memory, time and their number, whatever the file is.

A worker decodes one picture at a time and returns pixels only: a thumbnail, and for a query the encoder's input. Its
address space is limited, it is killed when a picture takes too long, and its memory is freed with it; a decoder that
crashes does not end the server. Messages are JSON and raw bytes, so that nothing from a worker is unpickled.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import traceback
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hashgym.data.pictures import open_image
from hashgym.features.backbone import preprocess_of
from hashgym.gallery.page import small
from hashgym.storage.errors import DataError

__all__ = ["Decoded", "Decoders"]

BASE_BYTES = 512 * 2**20  # address space of the interpreter and its libraries, with a reserve
BYTES_PER_PIXEL = 16  # a picture with an alpha channel, a copy of it turned upright, and one as RGB take 12
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(2**20),  # glibc then returns a picture's memory at once
    "MALLOC_TRIM_THRESHOLD_": str(2**20),
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class Decoded:
    """A decoded picture.

    Attributes:
        thumbnail: RGB, its longer side at most as long as requested; without any metadata of the file.
        view: uint8 (size, size, 3), the picture as an encoder reads it; None if no preprocessing was given.
    """

    thumbnail: Image.Image
    view: NDArray[np.uint8] | None


class Decoders:
    """Worker processes, started at first use. Calls from several threads are safe.

    Args:
        max_bytes: size limit of an uploaded file.
        max_pixels: size limit of any picture.
        seconds: time limit of one picture.
        processes: number of pictures that are decoded at the same time.
        memory: address space of a worker in bytes; by default enough for ``max_pixels`` and ``max_bytes``. It is
            enforced where the system can do so (Linux).
    """

    def __init__(
        self, *, max_bytes: int, max_pixels: int, seconds: float = 20, processes: int = 2, memory: int | None = None
    ) -> None:
        self.max_bytes, self.max_pixels, self.seconds = max_bytes, max_pixels, seconds
        self.memory = memory or BASE_BYTES + BYTES_PER_PIXEL * max_pixels + 2 * max_bytes
        self._workers = [_Worker(self.memory) for _ in range(processes)]
        self._closed = False
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()  # the last one used is warm
        for worker in self._workers:
            self._idle.put(worker)

    def __call__(
        self,
        source: Path | IO[bytes],
        name: str,
        *,
        longer: int,
        preprocess: Mapping[str, Any] | None = None,
    ) -> Decoded:
        """Decode a picture.

        Args:
            source: a file, or the stream of an upload.
            name: name of the picture, for error messages.
            longer: longer side of the thumbnail, in pixels.
            preprocess: an encoder's preprocessing, from its metadata; its result is returned too.

        Raises:
            DataError: for a file that :func:`hashgym.data.pictures.open_image` does not open, or that takes too long.
            MemoryError: if the picture needs more memory than a worker may use or the machine has.
            TimeoutError: if all workers remain busy, or after :meth:`close`.
        """
        request = {
            "path": str(source) if isinstance(source, Path) else None,
            "name": name,
            "max_bytes": None if isinstance(source, Path) else self.max_bytes,
            "max_pixels": self.max_pixels,
            "longer": longer,
            "preprocess": None if preprocess is None else dict(preprocess),
        }
        try:
            worker = self._idle.get(timeout=2 * self.seconds)
        except queue.Empty:
            raise TimeoutError("all decoders are busy") from None
        try:
            if self._closed:
                raise TimeoutError("the decoders are closed")
            answer, body = worker.send(request, None if isinstance(source, Path) else source, self.seconds)
        finally:
            self._idle.put(worker)
        match answer.get("error"):
            case None:
                pass
            case "data":
                raise DataError(answer["message"])
            case "slow":
                raise DataError(f"image {name} takes more than {self.seconds:g} s to decode; save it as PNG or JPEG")
            case "memory":
                raise MemoryError(f"image {name} needs more memory than is available")
            case _:
                raise RuntimeError(answer["message"])
        width, height = answer["thumbnail"]
        thumbnail = Image.frombytes("RGB", (width, height), body[: 3 * width * height])
        view = None
        if answer["view"] is not None:
            view = np.frombuffer(body[3 * width * height :], np.uint8).reshape(answer["view"])
        return Decoded(thumbnail, view)

    def close(self) -> None:
        """End the workers, including busy ones."""
        self._closed = True
        for worker in self._workers:
            worker.close()


class _Worker:
    """One worker process; started with the first request, and again after it has died."""

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._process: subprocess.Popen[bytes] | None = None

    def send(self, request: Mapping[str, Any], data: IO[bytes] | None, seconds: float) -> tuple[dict[str, Any], bytes]:
        """Send a request; return the answer of the process and the bytes that follow it."""
        if self._process is not None and self._process.poll() is not None:  # it was killed while it waited
            self.close()
        process, timed_out = self._process or self._start(), threading.Event()
        assert process.stdin is not None
        assert process.stdout is not None

        def stop() -> None:
            timed_out.set()
            process.kill()

        timer = threading.Timer(seconds, stop)
        timer.daemon = True
        timer.start()
        try:
            length = 0 if data is None else data.seek(0, os.SEEK_END)
            process.stdin.write(json.dumps({**request, "length": length}).encode() + b"\n")
            if data is not None:
                data.seek(0)
                shutil.copyfileobj(data, process.stdin)
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            body = process.stdout.read(answer.get("length", 0))
            if len(body) == answer.get("length", 0):
                return answer, body
        except (OSError, ValueError):  # the process at the other end of the pipe has ended
            pass
        finally:
            timer.cancel()
            if timed_out.is_set():
                self.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(1)  # so that its own exit status is used, if it has ended
        self.close()
        if timed_out.is_set():
            return {"error": "slow"}, b""
        code = process.wait()
        if code == -9:  # killed, as Linux does when memory runs out
            return {"error": "memory"}, b""
        if code < 0:
            return {"error": "data", "message": f"image {request['name']} is damaged: its decoder crashed"}, b""
        return {"error": "failed", "message": f"a decoding process ended with status {code}"}, b""

    def _start(self) -> subprocess.Popen[bytes]:
        # The worker imports the same modules as this process, whatever the current folder is.
        program = f"import sys; sys.path[:] = {sys.path!r}; from hashgym.gallery.decoding import _work; _work()"
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(self._memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **ENVIRONMENT},
            start_new_session=True,  # Ctrl-C is for the server
        )
        self._process, self._stop = process, weakref.finalize(self, _end, process)
        return process

    def close(self) -> None:
        if self._process is not None:
            self._process = None
            self._stop()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()  # before the pipes are closed, so that no thread waits for it
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError, AttributeError):
            pipe.close()  # type: ignore[union-attr]


def _work() -> None:
    """Answer requests from standard input until it ends: the main function of a worker."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]), int(sys.argv[1])))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # when memory runs out, Linux ends this process first
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # C libraries print warnings about pictures
        os.dup2(null, stream)
    while line := requests.readline():
        request = json.loads(line)
        try:
            data = requests.read(request["length"])
            answer, body = _answer(request, data)
        except DataError as error:
            kind = "memory" if isinstance(error.__cause__, MemoryError) else "data"
            answer, body = {"error": kind, "message": str(error)}, b""
        except MemoryError:
            answer, body = {"error": "memory"}, b""
        except Exception:
            answer, body = {"error": "failed", "message": traceback.format_exc()}, b""
        data = b""
        answers.write(json.dumps({**answer, "length": len(body)}).encode() + b"\n" + body)
        answers.flush()


def _answer(request: Mapping[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    """Decode one picture."""
    preprocess = None if request["preprocess"] is None else preprocess_of(request["preprocess"])
    picture = open_image(
        BytesIO(data) if request["path"] is None else Path(request["path"]),
        request["name"],
        max_bytes=request["max_bytes"],
        max_pixels=request["max_pixels"],
        at_least=None if preprocess else request["longer"],  # codes are computed from the full picture
    )
    thumbnail = small(picture, request["longer"])
    view = None if preprocess is None else np.ascontiguousarray(preprocess(picture), np.uint8)
    answer = {"thumbnail": thumbnail.size, "view": None if view is None else view.shape}
    return answer, thumbnail.tobytes() + (b"" if view is None else view.tobytes())
