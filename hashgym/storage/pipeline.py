"""What every job over many images shares: reading ahead of the network, and a progress bar."""

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

__all__ = ["Bad", "ahead", "progress_bar"]

AHEAD = 2  # batches that are read and preprocessed while the network works on another
T = TypeVar("T")
Tick = Callable[[int], None]


@dataclass(frozen=True)
class Bad:
    """An image that cannot be read, and why."""

    index: int
    reason: str


def ahead(
    prepare: Callable[[int], T], batches: Mapping[int, Sequence[int]], workers: int, depth: int = AHEAD
) -> Generator[tuple[int, list[T]]]:
    """Every batch with what ``prepare`` makes of its images, in threads and a few batches before they are asked for.

    Args:
        prepare: takes an image's index.
        batches: number of a batch -> indices of its images.
        workers: threads.
        depth: batches that are under way, or wait to be asked for.
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
    """A progress bar with images a second and time left; its value is called with every batch's number of images.

    Args:
        total: images in all.
        done: those that an earlier run has done.
        show: False for no bar.
        doing: what is done, in a word.
        of: what is counted.
        stderr: whether to draw on the standard error, leaving the standard output to results.
    """
    if not show:
        yield lambda count: None
        return
    from rich.progress import TimeRemainingColumn

    from hashgym import console

    columns = (console.Field("rate"), TimeRemainingColumn(elapsed_when_finished=True))
    begun, first = time.monotonic(), done
    with console.bar(*columns, console=console.Console(stderr=stderr)) as bar:
        task = bar.add_task(doing, total=total, completed=done, rate="")

        def tick(count: int) -> None:
            nonlocal done
            done += count
            rate = (done - first) / max(time.monotonic() - begun, 1e-9)
            bar.update(task, advance=count, rate=f"{rate:,.0f} {of}/s")

        yield tick


keep_old_names(__name__)
