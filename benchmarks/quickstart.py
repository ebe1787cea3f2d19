"""A first run: agents learn to hash handwritten digits, and scenes of several digits, in two or three minutes.

make quickstart        (or: python -m benchmarks.quickstart)
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from dataclasses import dataclass
from pathlib import Path

from agents import multicode
from agents.bases import make_base
from benchmarks import drlih, mch
from benchmarks.common import figures, methods
from benchmarks.common.results import Results, require_replaceable
from hashgym import hashers
from hashgym.console import Console, Table, Text, styled
from hashgym.data import HashingDataset
from hashgym.retrieval import evaluate
from hashgym.terminal import command_line, parse
from hashgym.text import quote

__all__ = ["WRITER", "Args", "main"]

WRITER = multicode.Args(updates=500, hidden=256, holdout=0.0)
"""Settings of the agent that writes further codes: a short run."""

NEXT = r"""
  show the agent's training curves
    tensorboard --logdir {out}
  use the environments
    env = gymnasium.make("hashgym:BitGroupHashing-v0", dataset="digits", bits=24, render_mode="ansi")
    env = gymnasium.make("hashgym:RegionKeep-v0", dataset="digit-scenes", base="dch", bits=32, render_mode="ansi")
    env = gymnasium.make("hashgym:MultiCodeHashing-v0", dataset="digit-scenes", base="dch", bits=32, render_mode="ansi")
  hash real pictures (CIFAR-10 as Python batches or class folders in DIR), then compare all methods on them
    hashgym features --dataset cifar10 --root DIR --backbone efficientnet_lite0 --size 160 --out features/cifar10
    python -m benchmarks.drlih --features features/cifar10 --out runs/cifar10
  several codes per image need regions: add `--regions 5 --train-regions 4` to `hashgym features`, then
    python -m benchmarks.mch --features features/cifar10 --out runs/cifar10-mch"""


@dataclass(frozen=True)
class Args:
    """Train agents and hashers on digits and on scenes of digits, measure them and draw figures."""

    out: Path = Path("runs/quickstart")
    """folder of all results"""
    features: str = "digits"
    """an embedded dataset's name, or a folder that `hashgym features` wrote"""
    bits: int = 24
    """code length"""
    methods: tuple[str, ...] = ("lsh", "itq", "noseq", "drlih")
    """hashers and agents, see `benchmarks.drlih`; the last one's search results are drawn"""
    scenes: str = "digit-scenes"
    """an embedded dataset with regions, or a folder that `hashgym features --regions 5 --train-regions 4` wrote"""
    base: str = "dch"
    """the hasher whose codes of regions an agent keeps or discards, see `benchmarks.mch`"""
    scene_bits: int = 32
    """code length of the base"""
    seed: int = 0
    """seed of every method"""


def main(args: Args, console: Console | None = None) -> None:
    """Train, measure and draw: one code per image first, then several.

    Raises:
        ValueError: for unknown methods, data that cannot be read, or an unsupported code length.
    """
    console = console or Console()
    require_replaceable(args.out, "precision_recall.png", "codes.png", "results.png")
    require_replaceable(args.out / "mch", "f1_buckets.png", "searches.png")
    cell = mch.Cell(args.scenes, args.base, args.scene_bits, args.seed, xi=(0.0, 0.5))
    make_base(args.base, args.scene_bits, args.seed)  # raises for wrong arguments before the first part runs
    scenes = cell.load().standardized()
    _digits(args, console)
    _scenes(cell, scenes, args.out / "mch", console)
    console.print(styled("\nWritten", "bold"))
    for path in [*sorted(args.out.iterdir()), *sorted((args.out / "mch").iterdir())]:
        if not path.name.startswith("."):
            console.print(f"  {path}{'/' if path.is_dir() else ''}")
    console.print(Text.assemble(styled("\nNext", "bold"), NEXT.format(out=quote(args.out))))


def _digits(args: Args, console: Console) -> None:
    """Train and measure methods with one code per image: an agent and hashers."""
    dataset = methods.load(args.features).standardized()
    cells = [methods.Cell(args.features, method, args.bits, args.seed) for method in args.methods]
    groups = {cell.method: k for cell in cells if (k := methods.group_bits(cell))}
    _introduce(dataset, args.bits, console)
    results = Results(args.out)
    table = Table(caption="mAP is the mean over all orders of images at the same distance; bounds: worst to best order")
    for heading in ("method", "mAP", "bounds", "precision, radius 2", "training"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    codes, curves = {}, {}
    for cell in cells:
        console.print(f"training {cell.method}")
        encode, seconds = methods.fit(cell, dataset, out=_free(args.out / cell.method), progress=True)
        codes[cell.method], result = methods.measure(encode, dataset)
        curves[cell.method] = result.precision_by_radius, result.recall_by_radius
        (name,) = drlih.names(cell, dataset)
        results.append(drlih.row(name, result, seconds))  # peak_mb: of this process so far
        bounds = f"{result.map_pessimistic:.3f} to {result.map_optimistic:.3f}"
        table.add_row(cell.method, f"{result.map:.3f}", bounds, f"{result.precision_within:.3f}", f"{seconds:.1f} s")
    console.print(table)

    title, best = f"{dataset.name}, {args.bits} bits", args.methods[-1]
    figures.precision_recall(curves, args.out / "precision_recall.png", title)
    queries = {method: query for method, (query, _) in codes.items()}
    labels = dataset.labels[dataset.query]
    figures.code_strips(queries, labels, dataset.label_names, args.out / "codes.png", groups=groups, title=title)
    if dataset.thumbnails is not None:
        figures.rankings(dataset, *codes[best], args.out / "results.png", title=f"{title}, {best}")


def _scenes(cell: mch.Cell, dataset: HashingDataset, out: Path, console: Console) -> None:
    """Train and measure several codes per image: an agent that keeps codes of regions, and one that writes them."""
    console.print()
    _introduce(dataset, cell.bits, console)
    count = 0 if dataset.regions is None else dataset.regions.shape[1]
    console.print(f"training {cell.base}, then an agent that keeps or discards the codes of {count} regions per image")
    folder = _free(out / "agent")
    codes = mch.fit(cell, dataset, out=folder, progress=True)
    console.print("training an agent that writes a further code for an image, from one look at it")
    base = hashers.load(folder / "base.npz")
    start = time.perf_counter()
    writer = multicode.train(dataset, base, dataclasses.replace(WRITER, seed=cell.seed), out=_free(out / "multicode"))
    seconds = time.perf_counter() - start
    written = multicode.encode(writer, base, dataset.features[dataset.database])
    rows, points = mch.measure(cell, dataset, codes), mch.curves(cell, dataset, codes)
    Results(out, mch.COLUMNS, mch.KEY).append(*rows)
    Results(out, mch.CURVES, mch.CURVE_KEY, "curves.csv").append(*points)

    table = Table(
        caption=f"trained in {codes.base_seconds:.1f} s, {codes.agent_seconds:.1f} s and {seconds:.1f} s; "
        "views: of an image that are encoded; radius 0: only images with the query's own code are found"
    )
    for heading in ("codes", "views", "an image", "mAP", "recall, radius 0", "precision, radius 0"):
        table.add_column(heading, justify="left" if heading == "codes" else "right")
    by_xi = {row["xi"]: row for row in rows}
    for name, views, xi in (
        (f"one ({cell.base})", 1, ""),
        ("several (MCH)", 1 + count, 0.5),
        ("all regions", 1 + count, 0.0),
    ):
        measures = [f"{by_xi[xi][measure]:.3f}" for measure in ("map", "recall_radius0", "precision_radius0")]
        table.add_row(name, str(views), f"{by_xi[xi]['anhc']:.2f}", *measures)
    found = evaluate(codes.query, dataset.labels[dataset.query], written, dataset.labels[dataset.database])
    measures = [f"{x:.3f}" for x in (found.map, found.recall_by_radius[0], found.precision_by_radius[0])]
    table.add_row("several (multicode)", "1", f"{written.anhc:.2f}", *measures)
    console.print(table)

    title = f"{dataset.name}, {cell.base} of {cell.bits} bits"
    figures.f1_buckets(mch.f1_curves(points), out / "f1_buckets.png", f"{title}\ndashed: one code per image")
    if dataset.thumbnails is not None:
        figures.several_codes(dataset, codes.query, codes.database[0.5], out / "searches.png", title=f"{title}, MCH")


def _introduce(dataset: HashingDataset, bits: int, console: Console) -> None:
    console.print(
        Text.assemble(
            styled(dataset.name, "bold"),
            f": {len(dataset):,} images of {dataset.dim} features, {len(dataset.train):,} training images, "
            f"{len(dataset.query):,} queries, {len(dataset.database):,} in the database; codes of {bits} bits",
        )
    )


def _free(folder: Path) -> Path:
    """Return the folder, with a number appended if an earlier quickstart wrote an agent there."""
    numbered = (folder.with_name(f"{folder.name}-{i}") for i in itertools.count(2))
    return next(path for path in itertools.chain([folder], numbered) if not path.exists())


if __name__ == "__main__":
    with command_line():
        main(parse(Args, "benchmarks.quickstart"))
