"""Random damage to files, and limits on reading them."""

from __future__ import annotations

import mmap
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

# What parsers stumble over: ends of numbers, of nests, of texts, of paths.
TOKENS = (
    *(b"\0", b"\xff", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0\0\0\0\0", b"\n", b"\r", b" " * 40, b","),
    *(b"-1", b"0", b"9" * 20, b"1e999", b"NaN", b"null", b"true", b"[" * 4000, b"{}", b"[]", b'"', b"\\u0000", b"\\"),
    *(b"../", b"/", b".", b"a" * 5000, b"\xed\xa0\x80", "é".encode(), b"\xe2\x80\xa8", b"(" * 50, b"0 1", b"\\ud800"),
)


@st.composite
def damaged(draw: Any, content: bytes) -> bytes:
    """A file's content after one to three accidents."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        if not data:
            return draw(st.binary(max_size=40))
        last = len(data) - 1  # headers and what stands at the end are read most
        at = draw(
            st.one_of(st.integers(0, last), st.integers(0, min(last, 200)), st.integers(max(0, last - 200), last))
        )
        length = draw(st.one_of(st.integers(1, 8), st.integers(1, len(data))))
        how = draw(st.sampled_from(("change", "cut", "insert", "remove", "overwrite", "repeat", "move")))
        if how == "change":
            data[at] ^= draw(st.integers(1, 255))
        elif how == "cut":
            del data[at:]
        elif how == "insert":
            data[at:at] = draw(st.one_of(st.sampled_from(TOKENS), st.binary(min_size=1, max_size=40)))
        elif how == "remove":
            del data[at : at + length]
        elif how == "overwrite":
            new = draw(st.sampled_from(TOKENS))
            data[at : at + len(new)] = new
        elif how == "repeat":
            data[at:at] = data[at : at + length]
        else:
            part = data[at : at + length]
            del data[at : at + length]
            data += part
    return bytes(data)


class Hangs(BaseException):
    """Reading takes too long."""


@contextmanager
def bounded(seconds: float = 20.0, octets: int = 3 << 29) -> Iterator[None]:
    """Limit CPU time and memory.

    Raises:
        Hangs: where it does. Too large an allocation raises MemoryError.
    """

    def stop(*args: object) -> None:
        raise Hangs

    before = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    handler = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    resource.setrlimit(resource.RLIMIT_AS, (taken + octets, before[1]))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)
