"""Costs of a million, a hundred million and ten billion images, computed from measured rates.

    python -m benchmarks.scale benchmarks/results/scale

Reads ``encoding.csv`` and ``engines.csv`` of the folder, and writes ``table.md`` and ``engines.md`` to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from benchmarks import encoding, engines
from benchmarks.common.results import Results, require_replaceable
from hashgym.console import say
from hashgym.storage.atomic import write_text
from hashgym.terminal import command_line, parse

__all__ = ["Costs", "backend_table", "costs", "main", "table"]

IMAGES = (1_000_000, 100_000_000, 10_000_000_000)
CODES = 1.6  # of an image, on average
VIEWS = 6  # of an encoder of regions: the image and five regions
DIM = 1280  # features of a view
ID = 8  # bytes of an id, stored with every code
NAME = 40  # bytes of a picture's name, about


@dataclass(frozen=True)
class Costs:
    """Rates measured on one machine.

    Attributes:
        views_per_second: pictures or regions encoded, with all cores of the machine.
        codes_per_second: codes that faiss compares with a query on one thread, by code length in bits.
    """

    views_per_second: float
    codes_per_second: Mapping[int, float]


def costs(folder: Path) -> Costs:
    """Return medians over the rows of a folder: of encoding, and of faiss's ten nearest among random codes.

    Raises:
        ValueError: if one of the two files is missing.
    """
    encoded = Results(folder, encoding.columns("encode"), encoding.KEY, encoding.FILES["encode"]).rows()
    searched = [
        row
        for row in Results(folder, engines.COLUMNS, engines.KEY, "engines.csv").rows()
        if (row["data"], row["backend"], row["task"]) == ("random", "faiss", "nearest 10")
    ]
    if not encoded or not searched:
        raise ValueError(
            f"{folder} needs encoding.csv and engines.csv: `python -m benchmarks.encoding` and "
            "`python -m benchmarks.engines` write them with --out"
        )
    return Costs(
        float(np.median([float(row["encode_images_per_second"]) for row in encoded])),
        {int(row["bits"]): float(row["codes"]) / float(row["median_ms"]) * 1e3 for row in searched},
    )


def table(measured: Costs) -> Iterator[str]:
    """Yield lines of Markdown, a row for every quantity."""
    yield "| | " + " | ".join(f"{_count(n)} images" for n in IMAGES) + " |"
    yield "|---" * (1 + len(IMAGES)) + "|"

    def row(name: str, *values: str) -> str:
        return f"| {name} | " + " | ".join(values) + " |"

    yield row("codes, 1.6 an image", *(_count(n * CODES) for n in IMAGES))
    yield row("features of whole images, if they were kept", *(_bytes(n * DIM * 4) for n in IMAGES))
    yield row("features of six views, if they were kept", *(_bytes(n * VIEWS * DIM * 4) for n in IMAGES))
    rate = measured.views_per_second
    yield row(f"encoding, one view, {rate:.0f} a second", *(_time(n / rate) for n in IMAGES))
    yield row("encoding, six views", *(_time(n * VIEWS / rate) for n in IMAGES))
    stored = VIEWS * 8 + VIEWS + 8 + NAME  # a word and a flag for every view, width and height
    yield row("folder of codes, up to 64 bits, with names", *(_bytes(n * stored) for n in IMAGES))
    for bits, speed in sorted(measured.codes_per_second.items()):
        each = bits // 8
        yield row(f"{bits} bits: codes alone", *(_bytes(n * CODES * each) for n in IMAGES))
        yield row(f"{bits} bits: codes and ids in memory", *(_bytes(n * CODES * (each + ID)) for n in IMAGES))
        scan = (_time(n * CODES / speed) for n in IMAGES)
        yield row(f"{bits} bits: a scan by one thread, {_count(speed)} codes a second", *scan)


def backend_table(folder: Path) -> Iterator[str]:
    """Yield lines of Markdown with the measured rows, one for every back end on every data."""
    yield "| codes | back end | 10 nearest, ms | times brute force | recall | within radius 2, ms | build, s | MB |"
    yield "|---" * 8 + "|"
    rows = Results(folder, engines.COLUMNS, engines.KEY, "engines.csv").rows()
    of = {tuple(row[key] for key in engines.KEY): row for row in rows}
    for row in rows:
        if row["task"].startswith("nearest"):
            same = (row["data"], row["codes"], row["bits"], row["backend"])
            near = next(of[key] for key in of if key[:-1] == same and key[-1].startswith("within"))
            cells = [f"{row['data']}, {row['bits']} bits", row["backend"], f"{float(row['median_ms']):.2f}"]
            cells += [f"{float(row['times_brute_force']):.1f}", f"{float(row['recall']):.3f}"]
            cells += [f"{float(near['median_ms']):.2f}"]
            cells += [f"{float(row['build_seconds']):.1f}", f"{float(row['index_mb']):.0f}"]
            yield "| " + " | ".join(cells) + " |"


def main(folder: Annotated[Path, tyro.conf.Positional] = Path("benchmarks/results/scale"), /) -> None:
    """Write and print the tables of a folder with encoding.csv and engines.csv."""
    require_replaceable(folder, "table.md", "engines.md")
    for name, lines in (("table.md", table(costs(folder))), ("engines.md", backend_table(folder))):
        text = "\n".join(lines) + "\n"
        write_text(folder / name, text)
        say(text)


def _count(number: float) -> str:
    for unit, word in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= unit:
            return f"{number / unit:.3g}{word}"
    return f"{number:.3g}"


def _bytes(number: float) -> str:
    return _count(number) + "B"


def _time(seconds: float) -> str:
    for unit, word in ((365.25 * 86400, "years"), (86400, "days"), (3600, "hours"), (60, "minutes"), (1, "s")):
        if seconds >= 1.5 * unit:
            return f"{seconds / unit:,.3g} {word}"
    return f"{1e3 * seconds:.3g} ms"


if __name__ == "__main__":
    with command_line():
        parse(main, "benchmarks.scale")
