"""Shared by all jobs over many images: prefetching in threads, and a progress bar."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from hashgym.moved import keep_old_names

__all__ = ["UnreadableImage", "prefetch", "progress_bar"]

PREFETCH = 2  # batches that are prepared while the network works on another
T = TypeVar("T")
Tick = Callable[[int], None]


@dataclass(frozen=True)
class UnreadableImage:
    """An image that cannot be read, and why."""

    index: int
    reason: str


def prefetch(
    prepare: Callable[[int], T], batches: Mapping[int, Sequence[int]], workers: int, depth: int = PREFETCH
) -> Generator[tuple[int, list[T]]]:
    """Yield the number of every batch with its prepared images; threads prepare a few batches in advance.

    Args:
        prepare: called with the index of an image.
        batches: number of a batch -> indices of its images.
        workers: threads.
        depth: batches that are in preparation or ready.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="images")
    waiting = iter(batches.items())
    queue: deque[tuple[int, list[Future[T]]]] = deque()

    def submit(count: int) -> None:
        for b, batch in islice(waiting, count):
            queue.append((b, [pool.submit(prepare, index) for index in batch]))

    try:
        submit(depth)
        while queue:
            b, futures = queue.popleft()
            images = [future.result() for future in futures]
            submit(1)
            yield b, images
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def progress_bar(
    total: int, done: int, show: bool, doing: str = "extracting", of: str = "images", stderr: bool = False
) -> Iterator[Tick]:
    """Show a progress bar with images per second and time left; yields a function to call with each batch's size.

    Args:
        total: number of images.
        done: number of images that an earlier run has finished.
        show: False for no bar.
        doing: name of the activity, one word.
        of: name of the things counted.
        stderr: draw on standard error, which leaves standard output to results.
    """
    if not show:
        yield lambda count: None
        return
    from rich.progress import TimeRemainingColumn

    from hashgym import console

    columns = (console.Field("rate"), TimeRemainingColumn(elapsed_when_finished=True))
    started, first = time.monotonic(), done
    with console.bar(*columns, console=console.Console(stderr=stderr)) as bar:
        task = bar.add_task(doing, total=total, completed=done, rate="")

        def tick(count: int) -> None:
            nonlocal done
            done += count
            rate = (done - first) / max(time.monotonic() - started, 1e-9)
            bar.update(task, advance=count, rate=f"{rate:,.0f} {of}/s")

        yield tick


keep_old_names(__name__)
