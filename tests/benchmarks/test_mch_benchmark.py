"""The MCH benchmark, run for real on a part of digit-scenes: rows against naive loops over the codes measured."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import pickle

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import hashgym
from benchmarks import mch
from benchmarks.common import cells
from benchmarks.common.results import Results
from hashgym.codes import unpack
from hashgym.data import cache
from hashgym.data.readers import digits
from hashgym.retrieval import evaluate

BASES, BITS, SEEDS, XI = ("dch", "ksh-relaxed"), 16, 2, (0.0, 0.3, 0.5, 0.7, 1.0)
SETTINGS = mch.settings


def here(work, cell):
    """Run in this process, which is quicker; arguments and results are still pickled."""
    return pickle.loads(pickle.dumps(work(pickle.loads(pickle.dumps(cell)))))


def never(work, cell):
    pytest.fail(f"{cell} was run")


@pytest.fixture(autouse=True)
def _quick(quick, monkeypatch):
    monkeypatch.setattr(mch, "settings", quick)
    monkeypatch.setattr(cells, "_in_fresh_process", here)


@pytest.fixture(scope="module")
def ran(folders, quick, tmp_path_factory):
    """The arguments of a finished benchmark, its output, and the codes of every run."""
    args = mch.Args(
        out=tmp_path_factory.mktemp("mch"),
        features=folders[0],
        bases=BASES,
        bits=(BITS,),
        seeds=SEEDS,
        xi=XI,
        sigma_features=tuple(folders),  # the first is in the grid already, and not run twice
        sigma_bits=BITS,
    )
    codes, fit, console = {}, mch.fit, Console(record=True, width=250)

    def fit_and_keep(cell, dataset, **kwargs):
        assert cell not in codes
        codes[cell] = fit(cell, dataset, **kwargs)
        return codes[cell]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mch, "settings", quick)
        patch.setattr(cells, "_in_fresh_process", here)
        patch.setattr(mch, "fit", fit_and_keep)
        assert mch.main(args, console) == 0
    return args, console.export_text(), codes


def rows_of(args):
    return Results(args.out, mch.COLUMNS, mch.KEY).rows()


def number(code):
    """A code as a Python integer."""
    return int("".join("01"[bit] for bit in code.tolist()), 2)


def naive(codes, xi, dataset):
    """Recall and precision within radius 0, best and worst mAP, codes per image: loops over images and their codes."""
    sets = codes.database[xi]
    bits = unpack(sets.words, sets.bits)
    own = [[number(code) for code in bits[j][sets.kept[j]]] for j in range(len(sets))]
    recalls, precisions, best, worst = [], [], [], []
    for q, query in enumerate(dataset.query):
        code = number(codes.query[q])
        distance = [min((code ^ other).bit_count() for other in kept) for kept in own]
        relevant = [bool((dataset.labels[query] & dataset.labels[j]).any()) for j in dataset.database]
        found = [relevant[j] for j in range(len(own)) if code in own[j]]
        recalls.append(sum(found) / sum(relevant))
        precisions.append(sum(found) / len(found) if found else 0.0)
        for scores, sign in ((best, -1), (worst, 1)):
            order = sorted(range(len(own)), key=lambda j, sign=sign: (distance[j], sign * relevant[j]))
            hits = np.array([relevant[j] for j in order])
            scores.append(np.mean((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits]))
    return {
        "recall_radius0": np.mean(recalls),
        "precision_radius0": np.mean(precisions),
        "map_optimistic": np.mean(best),
        "map_pessimistic": np.mean(worst),
        "anhc": np.mean([len(kept) for kept in own]),
    }


def test_rows_agree_with_naive_loops(ran):
    args, _, codes = ran
    rows = {(r["sigma"], r["base"], r["seed"], r["xi"]): r for r in rows_of(args)}
    grid = [("0.5", base, str(s)) for base in BASES for s in range(SEEDS)] + [("0.25", "dch", str(s)) for s in range(2)]
    assert set(rows) == {(*which, xi) for which in grid for xi in ("", *map(str, XI))}
    assert len(codes) == len(grid)
    for cell, found in codes.items():
        dataset = cell.load()
        for xi in (None, 0.0, 0.5) if cell.seed == 0 else (0.5,):
            sigma = str(dataset.provenance["sigma"])
            row = rows[sigma, cell.base, str(cell.seed), "" if xi is None else str(xi)]
            for measure, value in naive(found, xi, dataset).items():
                assert float(row[measure]) == pytest.approx(value, rel=1e-9), measure
            assert float(row["map_pessimistic"]) < float(row["map"]) < float(row["map_optimistic"])
            assert (row["dataset"], row["bits"], row["version"]) == ("digit-scenes", str(BITS), hashgym.__version__)
            assert row["method"] == ("single" if xi is None else "mch")
            assert float(row["train_seconds"]) > 0


def test_thresholds_keep_from_all_regions_to_none(ran):
    _, _, codes = ran
    for found in codes.values():
        single, *several = (found.database[xi] for xi in (None, *XI))
        assert single.anhc == 1
        np.testing.assert_array_equal(single.words[:, 0], several[0].words[:, 0])
        distinct = [len({code.tobytes() for code in image}) for image in several[0].words]
        np.testing.assert_array_equal(several[0].kept.sum(axis=1), distinct)
        assert several[0].anhc > several[XI.index(0.5)].anhc + 1 > 2.2
        assert several[-1].anhc < 1.01
        for more, fewer in itertools.pairwise(several):
            assert fewer.anhc <= more.anhc
            # kept at the higher threshold, kept at the lower, or there as an equal code that came first
            assert all(
                {c.tobytes() for c in a[k]} <= {c.tobytes() for c in b[m]}
                for a, k, b, m in zip(fewer.words, fewer.kept, more.words, more.kept, strict=True)
            )


def test_training_is_repeatable(ran):
    _, _, codes = ran
    cell = next(cell for cell in codes if cell.base == "dch")
    again = mch.fit(cell, cell.load().standardized())
    np.testing.assert_array_equal(again.query, codes[cell].query)
    for xi, sets in codes[cell].database.items():
        np.testing.assert_array_equal(again.database[xi].filled, sets.filled)


def test_curves_reach_all_images_in_fewer_buckets(ran):
    args, _, codes = ran
    points = Results(args.out, mch.CURVES, mch.CURVE_KEY, "curves.csv").rows()
    lines = {}
    for point in points:
        lines.setdefault((point["base"], point["seed"], point["method"]), []).append(point)
    assert set(lines) == {(b, str(s), m) for b in BASES for s in range(SEEDS) for m in ("single", "mch")}
    dataset = next(iter(codes)).load()
    shares = [dataset.similar(q, dataset.database).mean() for q in dataset.query]
    for (base, seed, method), line in lines.items():
        k, f1, buckets = (np.array([float(p[key]) for p in line]) for key in ("k", "f1", "buckets"))
        assert (k[0], k[-1]) == (1, 400)
        assert (np.diff(k) > 0).all()
        assert (np.diff(buckets) >= 0).all()
        assert f1[-1] == pytest.approx(np.mean([2 * s / (1 + s) for s in shares]))  # recall 1, precision the share
        if method == "mch":
            one = [float(p["buckets"]) for p in lines[base, seed, "single"]]
            assert (buckets <= one).all()


def cells_of(table, *starts):
    """The cells of a Markdown table's line that begins so."""
    line = next(line for line in table.splitlines() if line.startswith(f"| {' | '.join(starts)} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][len(starts) :]


def test_tables_hold_the_means_of_the_rows(ran):
    args, text, _ = ran
    rows, table = rows_of(args), (args.out / "table.md").read_text()

    def of(measure, base, xi, sigma="0.5"):
        own = [r for r in rows if (r["sigma"], r["base"], r["xi"]) == (sigma, base, xi)]
        return np.array([float(r[measure]) for r in sorted(own, key=lambda r: r["seed"])])

    for base in BASES:
        recall, precision, score, anhc, everything = cells_of(table, base, "mch")
        for cell, measure in ((recall, "recall_radius0"), (precision, "precision_radius0"), (score, "map")):
            one, several = of(measure, base, ""), of(measure, base, "0.5")
            assert cell.startswith(f"{one.mean():.3f} -> {several.mean():.3f} (")
        one, several = of("recall_radius0", base, ""), of("recall_radius0", base, "0.5")
        gains = several / one - 1
        assert recall.endswith(f"({gains.mean():+.0%} [{gains.min():+.0%}, {gains.max():+.0%}])")  # of two seeds
        assert anhc == f"{of('anhc', base, '0.5').mean():.2f}"
        assert everything == f"{of('map', base, '0.0').mean():.3f}"
        assert recall in text
    for sigma in ("0.5", "0.25"):
        expected = [
            f"{of('anhc', 'dch', str(xi), sigma).mean():.2f} / {of('recall_radius0', 'dch', str(xi), sigma).mean():.3f}"
            f" / {of('map', 'dch', str(xi), sigma).mean():.3f}"
            for xi in XI[1:]
        ]
        assert cells_of(table, sigma) == expected


def test_pictures_are_written(ran):
    args, _, _ = ran
    names = {"radius0.png", "f1_buckets.png", *(f"searches-mch-{base}-{BITS}.png" for base in BASES)}
    assert {path.name for path in args.out.glob("*.png")} == names
    for name in names:
        with Image.open(args.out / name) as picture:
            picture.verify()
            assert min(picture.size) > 300


def test_finished_runs_are_not_run_again(ran, monkeypatch):
    args, _, _ = ran
    monkeypatch.setattr(cells, "_in_fresh_process", never)
    before = {path: path.read_bytes() for path in args.out.glob("*.[cm][sd]*")}
    assert {path.name for path in before} == {"results.csv", "curves.csv", "table.md"}
    console = Console(record=True, width=250)
    assert mch.main(args, console) == 0
    assert "6 of 6 runs are in" in console.export_text()
    assert {path: path.read_bytes() for path in before} == before


def copy_of(args, tmp_path):
    """The same benchmark in another folder."""
    for name in ("results.csv", "curves.csv"):
        (tmp_path / name).write_bytes((args.out / name).read_bytes())
    return dataclasses.replace(args, out=tmp_path)


def test_a_run_with_missing_rows_is_run_again(ran, tmp_path):
    args, _, _ = ran
    copy = copy_of(args, tmp_path)
    lines = (args.out / "results.csv").read_text().splitlines(keepends=True)
    gone = next(i for i, line in enumerate(lines) if ",ksh-relaxed,mch,16,1,0.7," in line)
    (tmp_path / "results.csv").write_text("".join(lines[:gone] + lines[gone + 1 :]))
    console = Console(record=True, width=250)
    assert mch.main(copy, console) == 0
    assert "5 of 6 runs are in" in (text := console.export_text())
    assert text.count("bits seed") == 1
    same = ("map", "recall_radius0", "anhc", "config")
    before, after = ({tuple(r[c] for c in (*mch.KEY, *same)) for r in rows_of(a)} for a in (args, copy))
    assert before == after


def test_another_configuration_stops_before_anything_runs(ran, folders, tmp_path, monkeypatch):
    args, _, _ = ran
    copy = copy_of(args, tmp_path)
    monkeypatch.setattr(cells, "_in_fresh_process", never)
    before = (tmp_path / "results.csv").read_bytes()
    with pytest.raises(ValueError, match=r"digit-scenes .* dch .*another configuration .*data: .*--replace"):
        mch.main(dataclasses.replace(copy, queries=50))
    monkeypatch.setattr(mch, "settings", SETTINGS)
    with pytest.raises(ValueError, match=r"another configuration .*updates"):
        mch.main(copy)
    assert (tmp_path / "results.csv").read_bytes() == before


def test_one_failing_run_does_not_cost_the_others(folders, tmp_path, monkeypatch):
    fit = mch.fit

    def fails_once(cell, dataset, **kwargs):
        if cell.base == "dch":
            raise ValueError("[/oops] no luck")
        return fit(cell, dataset, **kwargs)

    monkeypatch.setattr(mch, "fit", fails_once)
    console = Console(record=True, width=200)
    args = mch.Args(out=tmp_path, features=folders[0], bases=BASES, bits=(8,), seeds=1, xi=())
    assert mch.main(args, console) == 1
    assert "dch 8 bits seed 0 failed: ValueError: [/oops] no luck" in console.export_text()
    assert {(r["base"], r["xi"]) for r in rows_of(args)} == {("ksh-relaxed", ""), ("ksh-relaxed", "0.5")}
    assert cells_of((tmp_path / "table.md").read_text(), "ksh-relaxed", "mch")[4] == ""  # all regions: not measured
    monkeypatch.setattr(mch, "fit", fit)
    console = Console(record=True, width=200)
    assert mch.main(args, console) == 0
    assert "1 of 2 runs are in" in console.export_text()
    assert {r["base"] for r in rows_of(args)} == set(BASES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bases": ("dch", "nosuch")}, "nosuch.*dch"),
        ({"preset": "nosuch"}, "no preset 'nosuch': choose from hashgym, paper"),
        ({"xi": (0.5, 1.5)}, r"xi is a probability, from 0 to 1, got 1\.5"),
        ({"xi": (-0.1,)}, "xi is a probability"),
        ({"xi": (float("nan"),)}, "xi is a probability"),
        ({"bits": (0,)}, "bits must be"),
        ({"bits": ()}, "bits must not be empty"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"jobs": 0}, "jobs must be at least 1, got 0"),
        ({"features": "no/such/folder"}, "no/such/folder"),
        ({"features": "digits"}, r"'digits' has no regions: `hashgym features .*--train-regions 4"),
        ({"sigma_features": ("digits",)}, "'digits' has no regions"),
        ({"sigma_features": ("other",), "sigma_base": "lsh"}, "lsh has no (loss of pairs|pairwise loss)"),
        ({"queries": 10**6}, "quer"),
    ],
)
def test_bad_arguments_stop_before_anything_runs(folders, tmp_path, monkeypatch, change, message):
    monkeypatch.setattr(cells, "_in_fresh_process", never)
    if change.get("sigma_features") == ("other",):
        change = {**change, "sigma_features": (folders[1],)}
    args = {"out": tmp_path, "features": folders[0], "bases": ("dch",), "bits": (8,), "seeds": 1, **change}
    with pytest.raises(ValueError, match=message):
        mch.main(mch.Args(**args))
    assert not list(tmp_path.iterdir())


def test_regions_to_learn_from_are_needed_too(tmp_path):
    part = dataclasses.replace(digits.load(), regions=np.zeros((1797, 5, 64), np.float32))
    cache.save(part, tmp_path / "half")
    with pytest.raises(ValueError, match="has no train_regions: `hashgym features"):
        mch.Cell(str(tmp_path / "half"), "dch", 8, 0).load()


def test_presets_have_different_rows():
    ours, paper = (SETTINGS(mch.Cell("f", "dch", 8, 3, preset=preset))[1] for preset in ("hashgym", "paper"))
    assert (ours.seed, ours.holdout, paper.seed, paper.holdout) == (3, 0, 3, 0)
    assert (paper.estimator, paper.optimizer) == ("reinforce", "sgd")
    assert ours.estimator == "exact"
    assert [mch.Cell("f", "dch", 8, 0, preset=preset).method for preset in ("hashgym", "paper")] == ["mch", "mch-paper"]


def fake(**changes):
    names = {"dataset": "d", "features": "f", "sigma": "0.5", "base": "dch", "bits": "8", "seed": "0"}
    row = {**names, "map": "0.5", "recall_radius0": "0.5", "precision_radius0": "0.5", "anhc": "1.0", **changes}
    return {"method": "mch" if row["xi"] else "single", **row}


def body(table):
    return [[str(cell) for cell in line] for line in zip(*(column.cells for column in table.columns), strict=True)]


def test_gains_are_paired_by_seed():
    """Another preset has fewer seeds, in another order; recall of 0 has no relative gain."""
    rows = [
        *(fake(xi="", seed=str(s), recall_radius0=str(r), map=str(m)) for s, r, m in ((2, 0.2, 0.4), (0, 0.1, 0.6))),
        fake(xi="0.5", seed="0", recall_radius0="0.3", map="0.7", anhc="1.5"),
        fake(xi="0.5", seed="0", sigma="0.3", map="0.9"),
        fake(xi="", seed="0", base="ksh", recall_radius0="0.0"),
        fake(xi="0.5", seed="0", base="ksh", recall_radius0="0.25"),
    ]
    assert body(mch.gains(rows, 8)) == [
        ["dch", "mch", "0.100 -> 0.300 (+200%)", "0.500 -> 0.500 (+0.000)", "0.600 -> 0.700 (+0.100)", "1.50", ""],
        ["ksh", "mch", "0.000 -> 0.250", "0.500 -> 0.500 (+0.000)", "0.500 -> 0.500 (+0.000)", "1.00", ""],
    ]


def test_table_of_sigma_and_xi():
    rows = [
        fake(xi=xi, sigma=sigma, seed=str(seed), anhc=str(anhc + seed))
        for sigma, xi, anhc in (
            ("0.5", "", 1),
            ("0.5", "0.0", 5),
            ("0.5", "0.5", 2),
            ("0.3", "0.5", 3),
            ("0.3", "0.9", 1),
        )
        for seed in range(2)
    ]
    assert body(mch.by_threshold(rows)) == [
        ["0.3", "3.50 / 0.500 / 0.500", "1.50 / 0.500 / 0.500"],
        ["0.5", "2.50 / 0.500 / 0.500", ""],
    ]
    assert mch.by_threshold([row for row in rows if row["sigma"] == "0.5"]) is None


def test_other_data_in_the_folder_are_left_out_of_the_tables(ran, tmp_path, monkeypatch):
    args, _, _ = ran
    copy = copy_of(args, tmp_path)
    for name in ("results.csv", "curves.csv"):
        with open(tmp_path / name, newline="") as file:
            first, *rest = csv.reader(file)
        foreign = [["other-data", *row[1:]] for row in rest]
        with open(tmp_path / name, "w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([first, *foreign, *rest[::-1]])
    monkeypatch.setattr(cells, "_in_fresh_process", never)
    assert mch.main(copy, Console(quiet=True)) == 0
    table, before = ((folder / "table.md").read_text() for folder in (tmp_path, args.out))
    assert "other-data" not in table
    assert sorted(table.splitlines()) == sorted(before.splitlines())


def test_a_hasher_without_a_loss_of_pairs_has_one_code_per_image(folders, tmp_path):
    args = mch.Args(out=tmp_path, features=folders[0], bases=("itq",), bits=(BITS,), seeds=1)
    console = Console(record=True, width=200)
    assert mch.main(args, console) == 0
    (row,) = rows_of(args)
    assert (row["base"], row["method"], row["xi"], row["anhc"]) == ("itq", "single", "", "1.0")
    dataset = cache.open_cache(folders[0]).standardized()
    hasher = hashgym.hashers.make("itq", bits=BITS, seed=0).fit(dataset.features[dataset.train])
    query, database = (hasher.encode(dataset.features[part]) for part in (dataset.query, dataset.database))
    result = evaluate(query, dataset.labels[dataset.query], database, dataset.labels[dataset.database])
    assert float(row["map"]) == pytest.approx(result.map)
    assert float(row["recall_radius0"]) == pytest.approx(result.recall_by_radius[0])
    drawn = Results(tmp_path, mch.CURVES, mch.CURVE_KEY, "curves.csv")
    assert {p["method"] for p in drawn.rows()} == {"single"}
    shown = (
        f"| itq |  | {result.recall_by_radius[0]:.3f} | {float(row['precision_radius0']):.3f} | {result.map:.3f} |  |"
    )
    assert shown in (tmp_path / "table.md").read_text()
    assert mch.main(args, console) == 0
    assert "1 of 1 runs are in" in console.export_text()
    drawn.append({**drawn.rows()[-1], "k": "9999"})  # as of a larger database
    assert mch.main(dataclasses.replace(args, queries=50, replace=True), console) == 0
    assert max(int(point["k"]) for point in drawn.rows()) == len(dataset.database)
