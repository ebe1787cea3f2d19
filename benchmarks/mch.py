"""MCH's tables and figures: base hashers with one code per image, and with the codes of regions that an agent keeps.

    python -m benchmarks.mch --features DIR --bases ksh hashnet adsh dch mmhh --bits 16 32 48 64 --seeds 3 --out DIR

Every run fits a base, trains the agent on it, and measures both in its own process; it adds its rows to
``results.csv`` and ``curves.csv`` when it is finished. Called again, the benchmark runs only what is missing, and draws
the figures of all rows. Seeds change the methods' random numbers, never the split. Nothing is chosen on the queries.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import hashgym
import hashgym.data
from benchmarks.common import figures
from benchmarks.common.arguments import Split, SplitArgs, check_not_empty
from benchmarks.common.cells import CONTINUES, data_digest, features_name, run_cells, unfinished
from benchmarks.common.machine import import_optimizers, peak_mb
from benchmarks.common.methods import settings_of
from benchmarks.common.results import Results, costs, describe, estimate, lookups, means, require_replaceable, scores
from hashgym.codes import CodeSets
from hashgym.console import Console, Table
from hashgym.data import HashingDataset
from hashgym.retrieval import evaluate, f1_bucket_curve
from hashgym.retrieval.metrics import check_labels
from hashgym.storage.atomic import write_text
from hashgym.terminal import command_line, parse

__all__ = ["Args", "BaseCell", "Cell", "MethodCodes", "fit", "main", "measure", "run", "settings"]

KEY = ("dataset", "features", "sigma", "base", "method", "bits", "seed", "xi")
MEASURES = ("map", "recall_radius0", "precision_radius0", "anhc")
COLUMNS = (
    *KEY,
    "map",
    "map_optimistic",
    "map_pessimistic",
    "recall_radius0",
    "precision_radius0",
    "anhc",
    "train_seconds",
    "peak_mb",
    "version",
    "revision",
    "config",
)
CURVE_KEY = ("dataset", "features", "sigma", "base", "method", "bits", "seed", "k")
CURVES = (*CURVE_KEY, "f1", "buckets")
POINTS = 16  # of an F1-bucket curve
IMAGES = 2048  # in a block whose regions are encoded together

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Args(SplitArgs):
    """Recall, precision, mAP and F1-bucket curves with one code per image and with codes of regions."""

    features: str = "digit-scenes"
    """an embedded dataset with regions, or a folder that `hashgym features --regions 5 --train-regions 4` wrote"""
    bases: tuple[str, ...] = ("ksh", "hashnet", "adsh", "dch", "mmhh")
    """hashers (`hashgym hashers`): the agent needs a pairwise loss; others are measured with one code per image"""
    bits: tuple[int, ...] = (16, 32, 48, 64)
    """code lengths"""
    seeds: int = 3
    """runs of each cell, with the seeds 0, 1, ..."""
    preset: str = "hashgym"
    """the agent's settings: hashgym or paper"""
    xi: tuple[float, ...] = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
    """thresholds of the keep probability; 0 keeps all regions, .5 is always measured"""
    sigma_features: tuple[str, ...] = ()
    """folders of the same images with regions of other sizes, for the table of sigma and xi"""
    sigma_base: str = "dch"
    """base of that table"""
    sigma_bits: int = 32
    """code length of that table"""


@dataclass(frozen=True)
class BaseCell(Split):
    """One run on a base; its data have regions."""

    features: str
    base: str
    bits: int
    seed: int

    def __str__(self) -> str:
        return f"{Path(self.features).name}: {self.base} {self.bits} bits seed {self.seed}"

    def load(self) -> HashingDataset:
        """The dataset, with this cell's split.

        Raises:
            DataError: if it has no regions; the message names the command that extracts them.
            ValueError: for labels with which all codes have the same score.
        """
        dataset = hashgym.data.load(self.features, split=self.split, queries=self.queries, train=self.train)
        dataset.require("regions", "train_regions")
        check_labels(dataset.labels[dataset.query], dataset.labels[dataset.database])
        return dataset


@dataclass(frozen=True)
class Cell(BaseCell):
    """One run: a base and the agent on it."""

    xi: tuple[float, ...] = (0.5,)
    preset: str = "hashgym"
    curves: bool = False
    """measure F1-bucket curves and, for seed 0, draw searches"""
    out: Path | None = None
    """folder of the drawing"""

    @property
    def method(self) -> str:
        """The agent's name in the rows, where ``single`` is a base with one code per image."""
        return "mch" if self.preset == "hashgym" else f"mch-{self.preset}"


@dataclass(frozen=True)
class MethodCodes:
    """Codes of the queries, and of the database by xi; None is the base, one code per image."""

    query: np.ndarray
    database: dict[float | None, CodeSets]
    base_seconds: float
    agent_seconds: float
    base_mb: float  # the most memory that was used until the base was fitted


def settings(cell: Cell) -> tuple[Any, Any]:
    """The unfitted base, and the agent's ``Args``, or None for a base without a pairwise loss.

    Raises:
        ValueError: for an unknown base or preset.
    """
    from agents import mch
    from hashgym.hashers.pairwise import PairwiseHasher

    if cell.preset not in mch.PRESETS:
        raise ValueError(f"there is no preset {cell.preset!r}: choose from {', '.join(mch.PRESETS)}")
    base = hashgym.hashers.make(cell.base, bits=cell.bits, seed=cell.seed)
    args = dataclasses.replace(mch.PRESETS[cell.preset], seed=cell.seed, holdout=0.0)
    return base, args if isinstance(base, PairwiseHasher) else None


def fit(cell: Cell, dataset: HashingDataset, *, out: Path | None = None, progress: bool = False) -> MethodCodes:
    """Fit the base and train the agent on the training split of a standardised dataset, then encode.

    Args:
        cell: the run.
        dataset: see :meth:`HashingDataset.standardized`; with regions.
        out: folder for the agent's checkpoint and TensorBoard files.
        progress: show progress bars.
    """
    from agents import mch

    base, args = settings(cell)
    database: dict[float | None, CodeSets]
    if hasattr(base, "verbose"):
        base.verbose = progress
    if args is not None:
        import_optimizers()
    start = time.perf_counter()
    base.fit(dataset.features[dataset.train], dataset.labels[dataset.train])
    fitted, memory = time.perf_counter(), peak_mb()
    query = base.encode(dataset.features[dataset.query])
    if args is None:
        database = {None: CodeSets.of(base.encode(dataset.features[dataset.database]))}
        return MethodCodes(query, database, fitted - start, 0.0, memory)
    policy = mch.train(dataset, base, args, out=out, progress=progress)
    trained = time.perf_counter()
    assert dataset.regions is not None
    blocks = [dataset.database[i : i + IMAGES] for i in range(0, len(dataset.database), IMAGES)]  # regions take memory
    offered = [
        hashgym.keep_probabilities(policy, base, dataset.features[rows], dataset.regions[rows]) for rows in blocks
    ]
    words, p = (np.concatenate(parts) for parts in zip(*offered, strict=True))
    database = {None: CodeSets(words[:, :1], p[:, :1] == 1, cell.bits)}
    database |= {xi: CodeSets(words, p >= xi, cell.bits) for xi in cell.xi}
    return MethodCodes(query, database, fitted - start, trained - fitted, memory)


def measure(cell: Cell, dataset: HashingDataset, codes: MethodCodes) -> list[dict[str, Any]]:
    """Search the database for every query with its own code: a row for the base, and one for each xi."""
    rows, labels = [], (dataset.labels[dataset.query], dataset.labels[dataset.database])
    for xi, sets in codes.database.items():
        result = evaluate(codes.query, labels[0], sets, labels[1])
        rows.append(
            {
                **_names(cell, dataset, xi),
                **scores(result),
                **lookups(result),
                "anhc": sets.anhc,
                **(costs(codes.base_seconds, codes.base_mb) if xi is None else costs(codes.agent_seconds)),
            }
        )
    return rows


def curves(cell: Cell, dataset: HashingDataset, codes: MethodCodes) -> list[dict[str, Any]]:
    """F1 against buckets visited, of the base and of the agent at xi = .5: a row for each number of images to find."""
    ks = np.unique(np.geomspace(1, len(dataset.database), POINTS).astype(int)).tolist()
    rows = []
    for xi in (xi for xi in (None, 0.5) if xi in codes.database):
        points = f1_bucket_curve(
            codes.query,
            dataset.labels[dataset.query],
            codes.database[xi],
            dataset.labels[dataset.database],
            ks,
        )
        names = {key: part for key, part in _names(cell, dataset, xi).items() if key in CURVE_KEY}
        rows += [{**names, "k": k, "f1": f1, "buckets": n} for k, f1, n in zip(ks, *points, strict=True)]
    return rows


def run(cell: Cell) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Load, train, measure and draw, in this process; returns the rows of results.csv and of curves.csv."""
    dataset = cell.load().standardized()
    codes = fit(cell, dataset)
    rows = measure(cell, dataset, codes)
    drawn = cell.curves and cell.seed == 0 and 0.5 in codes.database
    if drawn and cell.out is not None and dataset.thumbnails is not None:
        name, sets = f"{cell.method}-{cell.base}", codes.database[0.5]
        path, title = cell.out / f"searches-{name}-{cell.bits}.png", f"{dataset.name}, {name}, {cell.bits} bits"
        figures.several_codes(dataset, codes.query, sets, path, title=title)
    return rows, curves(cell, dataset, codes) if cell.curves else []


def main(args: Args, console: Console | None = None) -> int:
    """Run what is missing, then print the tables and draw the curves; returns the number of runs that failed.

    Raises:
        ValueError: for arguments that cannot be run, before any run starts.
    """
    console = console or Console()
    check_not_empty(args, "seeds", "jobs", "bits", "bases")
    if args.sigma_features:
        from agents.bases import make_base

        make_base(args.sigma_base, args.sigma_bits, 0)
    if wrong := [xi for xi in args.xi if not 0 <= xi <= 1]:
        raise ValueError(f"xi is a probability, from 0 to 1, got {wrong[0]}")
    require_replaceable(args.out, "table.md", "radius0.png", "f1_buckets.png", "searches-*.png")
    runs = cells(args)
    datasets = {folder: cell.load() for folder, cell in {cell.features: cell for cell in runs}.items()}
    results = Results(args.out, COLUMNS, KEY)
    drawn = Results(args.out, CURVES, CURVE_KEY, "curves.csv")
    names = {
        cell: [_names(cell, datasets[cell.features], xi) for xi in (None, *(cell.xi if settings(cell)[1] else ()))]
        for cell in runs
    }

    results.check_distinct(itertools.chain(*names.values()))
    identity = [column for column in CURVE_KEY if column != "k"]
    with_curves = {tuple(row[column] for column in identity) for row in drawn.rows()}

    def done(cell: Cell) -> bool:
        whole = tuple(str(names[cell][0][column]) for column in identity)
        has_curves = not cell.curves or whole in with_curves
        return has_curves and all(results.done(name, replace=args.replace) for name in names[cell])

    def finish(outcome: tuple[list[dict[str, Any]], list[dict[str, Any]]]) -> str:
        rows, points = outcome
        if points:
            drawn.append(*points, replacing=identity)  # of another split there are other numbers of images
        results.append(*rows)  # last: a run whose rows are here is finished
        shown = [row for row in rows if row["xi"] in ("", 0.5)]
        return ", ".join(f"{m} {' -> '.join(f'{row[m]:.4f}' for row in shown)}" for m in MEASURES)

    waiting = unfinished(runs, done, results.path, console)
    failed = run_cells(waiting, run, finish, jobs=args.jobs, executor=args.executor, console=console)
    first = names[runs[0]][0]
    report(_same_features(first, results.rows()), _same_features(first, drawn.rows()), args.out, console)
    return failed


def cells(args: Args) -> list[Cell]:
    """Return all runs: every base, code length and seed, and those of the table of sigma and xi."""
    common = args.data
    common |= {"xi": tuple(sorted({*map(float, args.xi), 0.5})), "preset": args.preset}
    grid = [(b, q, s) for b in args.bases for q in args.bits for s in range(args.seeds)]
    sigma_grid = [(args.sigma_base, args.sigma_bits, s) for s in range(args.seeds)]
    others = [(folder, *which) for folder in args.sigma_features for which in sigma_grid]
    return [
        *(Cell(args.features, *which, **common, curves=True, out=args.out) for which in grid),
        *(Cell(*which, **common) for which in others if which not in {(args.features, *w) for w in grid}),
    ]


def _same_features(name: Row, rows: Sequence[Row]) -> list[Row]:
    """Return the rows of the same dataset and features, those of the same sigma first."""
    own = [row for row in rows if (row["dataset"], row["features"]) == (name["dataset"], name["features"])]
    return sorted(own, key=lambda row: row["sigma"] != str(name["sigma"]))


def report(rows: Sequence[Row], points: Sequence[Row], out: Path, console: Console) -> None:
    """Print the tables, write them to ``table.md``, and draw the figures, of the sigma of the first row."""
    if not rows:
        return
    main = {int(row["bits"]) for row in rows if row["sigma"] == rows[0]["sigma"]}
    tables = [gains(rows, bits) for bits in sorted(main)]
    if (thresholds := by_threshold(rows)) is not None:
        tables.append(thresholds)
    for table in tables:
        console.print(table)
    write_text(out / "table.md", "\n\n".join(map(_markdown, tables)) + "\n", "backslashreplace")
    title = f"{rows[0]['dataset']}\none code per image (dashed) and MCH at xi = .5"
    figures.by_code_length(_by_code_length(rows), out / "radius0.png", title=title)
    if points:
        figures.f1_buckets(f1_curves(points), out / "f1_buckets.png", title=title)


def gains(rows: Sequence[Row], bits: int) -> Table:
    """Gains of the agent's codes at xi = .5 over one code per image, paired by seed, and mAP with all regions kept."""
    here = [row for row in rows if int(row["bits"]) == bits and row["sigma"] == rows[0]["sigma"]]
    table = Table(title=f"{rows[0]['dataset']}, {bits} bits: one code per image -> MCH at xi = .5")
    headings = (
        "base",
        "agent",
        "recall, radius 0",
        "precision, radius 0",
        "mAP",
        "codes per image",
        "all regions: mAP",
    )
    for heading in headings:
        table.add_column(heading, justify="left" if heading in headings[:2] else "right")

    def of(measure: str, base: str, method: str, xi: str) -> dict[str, float]:
        own = [row for row in here if (row["base"], row["method"], row["xi"]) == (base, method, xi)]
        return {row["seed"]: float(row[measure]) for row in own}

    for base, method in dict.fromkeys((row["base"], row["method"]) for row in here if row["xi"] == "0.5"):
        cells = []
        for measure in ("recall_radius0", "precision_radius0", "map"):
            before, after = of(measure, base, "single", ""), of(measure, base, method, "0.5")
            one, several = np.array([(before[seed], after[seed]) for seed in after]).T
            cell, change, form = f"{one.mean():.3f} -> {several.mean():.3f}", several - one, "+.3f"
            if measure == "recall_radius0":  # differs by orders of magnitude between bases: its gain is relative
                with np.errstate(divide="ignore", invalid="ignore"):
                    change, form = several / one - 1, "+.0%"
            if np.isfinite(change).all():
                gain = estimate([change])
                interval = f" [{gain.low:{form}}, {gain.high:{form}}]" if len(change) > 1 else ""
                cell += f" ({gain.mean:{form}}{interval})"
            cells.append(cell)
        for measure, xi, form in (("anhc", "0.5", ".2f"), ("map", "0.0", ".3f")):
            values = list(of(measure, base, method, xi).values())
            cells.append(f"{np.mean(values):{form}}" if values else "")
        table.add_row(base, method, *cells)
    with_agent = {row["base"] for row in here if row["xi"] == "0.5"}
    for base in dict.fromkeys(row["base"] for row in here if row["base"] not in with_agent):  # no pairwise loss
        cells = []
        for measure in ("recall_radius0", "precision_radius0", "map"):
            cells.append(f"{np.mean(list(of(measure, base, 'single', '').values())):.3f}")
        table.add_row(base, "", *cells, "", "")
    return table


def by_threshold(rows: Sequence[Row]) -> Table | None:
    """The paper's Table 3: codes per image by sigma and xi, with recall within radius 0 and mAP; None for one sigma."""
    several = [row for row in rows if row["xi"] not in ("", "0.0")]
    which = next(((r["base"], r["method"], r["bits"]) for r in several if r["sigma"] != rows[0]["sigma"]), None)
    if which is None:
        return None
    own = [row for row in several if (row["base"], row["method"], row["bits"]) == which]
    thresholds = sorted({row["xi"] for row in own}, key=float)
    base, method, bits = which
    table = Table(title=f"{method} on {base}, {bits} bits: codes per image / recall within radius 0 / mAP")
    for heading in ("sigma", *(f"xi = {xi}" for xi in thresholds)):
        table.add_column(heading, justify="right")
    for sigma in sorted({row["sigma"] for row in own}):
        cells = []
        for xi in thresholds:
            at = [row for row in own if row["sigma"] == sigma and row["xi"] == xi]
            codes, recall, score = (sum(float(r[m]) for r in at) for m in ("anhc", "recall_radius0", "map"))
            n = len(at)
            cells.append(f"{codes / n:.2f} / {recall / n:.3f} / {score / n:.3f}" if at else "")
        table.add_row(sigma, *cells)
    return table


def _names(cell: Cell, dataset: HashingDataset, xi: float | None) -> dict[str, Any]:
    """The columns of a row that are known before the run."""
    base, args = settings(cell)
    config: dict[str, Any] = {"base": settings_of(base, dataset), "data": data_digest(dataset)}
    if xi is not None:
        config["agent"] = settings_of(args, dataset)
    return {
        "dataset": dataset.name,
        "features": features_name(dataset),
        "sigma": dataset.provenance.get("sigma", ""),
        "base": cell.base,
        "method": "single" if xi is None else cell.method,
        "bits": cell.bits,
        "seed": cell.seed,
        "xi": "" if xi is None else xi,
        "config": describe(config),
    }


def _by_code_length(rows: Sequence[Row]) -> figures.Panels:
    """Means over seeds by code length, for each measure, base and method (the agent at xi = .5)."""
    panels: figures.Panels = {}
    wanted = [row for row in rows if row["xi"] in ("", "0.5") and row["sigma"] == rows[0]["sigma"]]
    for measure, name in zip(MEASURES[:3], ("mAP", "recall within radius 0", "precision within radius 0"), strict=True):
        lines = panels.setdefault(name, {})
        for base, method in dict.fromkeys((row["base"], row["method"]) for row in wanted):
            own = [row for row in wanted if (row["base"], row["method"]) == (base, method)]
            lines[base, method] = means(own, "bits", measure)
    return panels


def f1_curves(points: Sequence[Row]) -> figures.Panels:
    """Means over seeds of F1 against buckets visited, for each code length, base and method."""
    panels: figures.Panels = {}
    points = [point for point in points if point["sigma"] == points[0]["sigma"]]
    for which in dict.fromkeys((int(point["bits"]), point["base"], point["method"]) for point in points):
        bits, *line = which
        own = [point for point in points if (int(point["bits"]), point["base"], point["method"]) == which]
        (_, f1), (_, buckets) = means(own, "k", "f1"), means(own, "k", "buckets")
        panels.setdefault(f"{bits} bits", {})[line[0], line[1]] = buckets, f1
    return dict(sorted(panels.items(), key=lambda panel: int(panel[0].split()[0])))


def _markdown(table: Table) -> str:
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    lines = [[str(column.header) for column in table.columns], ["---"] * len(columns), *zip(*columns, strict=True)]
    return f"{table.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    with command_line(CONTINUES):
        sys.exit(min(main(parse(Args, "benchmarks.mch")), 1))
