"""Rows that survive kills, resuming, intervals, the table."""

import csv
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from benchmarks import results as command
from benchmarks.common import figures
from benchmarks.common.machine import peak_mb, revision
from benchmarks.common.results import (
    COLUMNS,
    REPORT,
    Results,
    describe,
    estimate,
    markdown,
    require_replaceable,
    table,
)


def row(**changes):
    values = dict.fromkeys(COLUMNS, 0.5)
    names = {"dataset": "d", "features": "f", "method": "m", "bits": 8, "seed": 0, "config": describe({"a": 1})}
    return {**values, **names, **changes}


def test_rows_are_read_as_they_were_written(tmp_path):
    results = Results(tmp_path / "new" / "folder")
    assert results.rows() == []
    first, second = row(features='odd, "quoted"\nname', map=1 / 3), row(seed=1, version="1.0")
    results.append(first)
    results.append(second)
    assert results.rows() == [{c: str(r[c]) for c in COLUMNS} for r in (first, second)]
    assert float(results.rows()[0]["map"]) == 1 / 3
    with open(results.path, newline="") as file:
        assert next(csv.reader(file)) == list(COLUMNS)


def test_a_row_replaces_the_one_with_its_key(tmp_path):
    results = Results(tmp_path)
    for change in ({}, {"seed": 1}, {"map": 0.9}):
        results.append(row(**change))
    assert [(r["seed"], r["map"]) for r in results.rows()] == [("1", "0.5"), ("0", "0.9")]


def test_finished_runs_are_found_and_changed_configurations_are_rejected(tmp_path):
    results = Results(tmp_path)
    assert not results.done(row())
    results.append(row())
    assert results.done(row(map=0.1))  # only key and configuration count
    for other in ({"bits": 9}, {"seed": 1}, {"method": "n"}, {"dataset": "e"}, {"features": "g"}):
        assert not results.done(row(**other))
    changed = row(config=describe({"a": 2, "b": None}))
    with pytest.raises(ValueError, match=r"d f m 8 0 run with another configuration \(a: 1 -> 2\)"):
        results.done(changed)
    assert not results.done(changed, replace=True)


def test_two_runs_with_one_row_are_refused(tmp_path):
    results = Results(tmp_path)
    one, other = row(), row(config=describe({"data": "bbbb"}))
    results.check_distinct([one, row(seed=1), one])
    with pytest.raises(ValueError, match=r"two runs are .* \(.*\): give each an --out of its own"):
        results.check_distinct([one, row(seed=1), other])


def test_rows_can_replace_all_of_a_run(tmp_path):
    """Points of a curve: of another run there may be others."""
    results = Results(tmp_path)
    results.append(row(bits=1), row(bits=2), row(method="n"))
    results.append(row(bits=2, map=0.5), row(bits=3), replacing=("dataset", "method"))
    assert [(stored["method"], stored["bits"]) for stored in results.rows()] == [("n", "8"), ("m", "2"), ("m", "3")]


def test_rows_of_another_split_are_refused(tmp_path):
    results = Results(tmp_path)
    first, other = "aaaa+cccc+pppp", "bbbb+dddd+qqqq"
    results.append(row(config=describe({"data": first})))
    more = row(method="n", config=describe({"data": other}))
    with pytest.raises(ValueError, match=r"holds d f m 8 0 of another split or other data"):
        results.check_distinct([more])
    results.check_distinct([more, row(config=describe({"data": other}))])  # the stored row is to be replaced
    results.check_distinct([row(dataset="e", config=more["config"]), row(features="g", config=more["config"])])
    results.check_distinct([row(method="n", config=describe({"data": "rounded+pppp"}))])
    results.check_distinct([row(method="n", config=describe({"a": 1}))])


def test_renamed_settings_and_moved_classes_are_the_same_configuration(tmp_path):
    """Rows that older versions wrote are continued."""
    results = Results(tmp_path)
    results.append(
        row(config=describe({"lanes": 64, "agent": {"lanes": 128, "history": 32}, "net": "<class 'old.place.Net'>"}))
    )
    today = {"num_envs": 64, "agent": {"num_envs": 128, "rnn_hidden": 32}, "net": "<class 'new.Net'>"}
    assert results.done(row(config=describe(today)))
    with pytest.raises(ValueError, match=r"\(num_envs: 64 -> 65\)"):
        results.done(row(config=describe({**today, "num_envs": 65})))
    with pytest.raises(ValueError, match=r"\(agent: "):
        results.done(row(config=describe({**today, "agent": {"num_envs": 128, "rnn_hidden": 33}})))


def test_data_are_the_same_by_their_arrays_or_by_their_provenance(tmp_path):
    results = Results(tmp_path)
    results.append(row(config=describe({"updates": 5, "data": "aaa+bbb"})))
    for data in ("aaa+bbb", "aaa+ccc", "bbb"):
        assert results.done(row(config=describe({"updates": 5, "data": data})))
    for data in ("ccc+ddd", "ddd+bbb", "ddd", "aaa"):
        with pytest.raises(ValueError, match=r"another configuration \(data: 'aaa\+bbb' -> "):
            results.done(row(config=describe({"updates": 5, "data": data})))
    with pytest.raises(ValueError, match=r"another configuration \(updates: 5 -> 6\)"):
        results.done(row(config=describe({"updates": 6, "data": "aaa+ccc"})))


def test_the_old_import_path_warns():
    with pytest.warns(DeprecationWarning, match=r"benchmarks\.common\.results\.Results"):
        from benchmarks.results import Results as old
    assert old is Results
    with pytest.raises(ImportError):
        from benchmarks.results import nothing  # noqa: F401


def test_a_stored_table_is_drawn_with_a_method_in_one_colour_nested_or_not(tmp_path, capsys, monkeypatch):
    figures_ = []
    monkeypatch.setattr(figures, "write", lambda figure, path: figures_.append(figure))
    for bits, seed, quality in ((8, 0, 0.25), (8, 1, 0.75), (12, 0, 0.5)):
        for method, more in (("noseq", 0), ("noseq-nested", 0.125), ("itq", -0.125)):
            Results(tmp_path).append(row(method=method, bits=bits, seed=seed, map=quality + more))
    command.main(command.Args(tmp_path, tmp_path / "map.png"))
    assert "noseq-nested" in capsys.readouterr().out
    (pane,) = figures_[0].axes
    lines = [(line.get_color(), line.get_linestyle(), line.get_ydata().tolist()) for line in pane.lines[:3]]
    noseq, itq = (figures.METHODS[name] for name in ("noseq", "itq"))
    assert lines == [
        *((noseq, "--", [0.5, 0.5]), (noseq, "-", [0.625, 0.625]), (itq, "--", [0.375, 0.375])),
    ]
    assert pane.get_xticks().tolist() == [8, 12]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "map.png").write_bytes(b"a picture")
    with pytest.raises(ValueError, match="a file of yours would be overwritten"):
        command.main(command.Args(tmp_path, tmp_path / "mine" / "map.png"))


def test_a_stored_table_is_printed_again(tmp_path, capsys):
    Results(tmp_path).append(row(bits=8, map=0.25))
    command.main(command.Args(tmp_path))
    assert "| m | .250 |" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"no rows in .*results\.csv: give a folder that a benchmark wrote"):
        command.main(command.Args(tmp_path / "nothing"))


def test_equal_configurations_are_described_equally():
    assert describe({"a": 1, "b": (1, 2)}) == describe({"b": [1, 2], "a": 1})


def test_names_in_any_bytes_are_kept(tmp_path):
    """A folder's name need not be UTF-8; writing its row must not fail after hours of work."""
    results, name = Results(tmp_path), os.fsdecode(b"folder:\xff [/b]")
    results.append(row(dataset=name))
    results.append(row(dataset="other"))
    assert [kept["dataset"] for kept in results.rows()] == [name, "other"]
    assert row(dataset=name) in results
    results.path.write_bytes(results.path.read_bytes().replace(b"other", b"oth\xffr"))
    with pytest.raises(ValueError, match="damaged"):
        results.rows()


def test_rows_with_other_columns_are_rejected(tmp_path):
    results = Results(tmp_path)
    with pytest.raises(ValueError, match="extra"):
        results.append({**row(), "extra": 1})
    with pytest.raises(ValueError, match="map"):
        results.append({name: value for name, value in row().items() if name != "map"})
    assert not results.path.exists()
    results.path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="use another --out"):
        results.append(row())
    assert results.path.read_text() == "a,b\n1,2\n"


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
sys.path.insert(0, {here!r})
from benchmarks.common.results import Results
from test_results import row
results = Results(Path({out!r}))
print("ready", flush=True)
for seed in range({start}, {start} + {count}):
    results.append(row(seed=seed, config="x" * 20000))
"""


def writer(out, start, count):
    here = os.path.dirname(__file__)
    code = WRITER.format(root=str(Path(here).parents[2]), here=here, out=str(out), start=start, count=count)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_a_kill_never_leaves_half_a_row(tmp_path):
    results = Results(tmp_path)
    for attempt in range(3):
        process = writer(tmp_path, 1000 * attempt, 1000)
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.05 * (attempt + 1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        rows = results.rows()
        assert all(r["config"] == "x" * 20000 and r["recall_radius2"] == "0.5" for r in rows)
    count = len(rows)
    results.append(row(seed=-1))  # no lock is left behind
    assert len(results.rows()) == count + 1


def test_two_writers_lose_no_row(tmp_path):
    processes = [writer(tmp_path, start, 15) for start in (0, 100)]
    assert [process.wait() for process in processes] == [0, 0]
    seeds = {int(r["seed"]) for r in Results(tmp_path).rows()}
    assert seeds == {*range(15), *range(100, 115)}


def naive_interval(strata, confidence):
    """Every possible resample, enumerated."""
    per_stratum = [[np.mean(s) for s in itertools.product(stratum, repeat=len(stratum))] for stratum in strata]
    means = [np.mean(choice) for choice in itertools.product(*per_stratum)]
    return np.percentile(means, [50 * (1 - confidence), 50 * (1 + confidence)], method="inverted_cdf")


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(st.floats(0, 1), min_size=2, max_size=3), min_size=1, max_size=2), st.floats(0.5, 0.9))
def test_intervals_are_close_to_all_resamples_enumerated(strata, confidence):
    found = estimate(strata, confidence, resamples=20_000)
    assert found.mean == pytest.approx(np.mean([np.mean(s) for s in strata]))
    # few resamples are possible, so quantiles jump: compare at confidences a little to both sides
    wide_low, wide_high = naive_interval(strata, min(1.0, confidence + 0.03))
    low, high = naive_interval(strata, confidence - 0.03)
    tolerance = 1e-9
    assert wide_low - tolerance <= found.low <= low + tolerance
    assert high - tolerance <= found.high <= wide_high + tolerance


def test_strata_are_resampled_apart():
    """Two strata without spread have an interval without width, however far apart they lie."""
    apart = estimate([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    assert (apart.mean, apart.low, apart.high) == (0.5, 0.5, 0.5)
    assert estimate([[0.0, 0.0, 0.0, 1.0, 1.0, 1.0]]).low < 0.4


def test_intervals_cover_the_mean_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    runs = [estimate([rng.normal(0, 1, 30)], resamples=500) for _ in range(300)]
    assert 0.88 < np.mean([e.low <= 0 <= e.high for e in runs]) < 0.99


def test_one_run_has_no_interval_and_none_no_mean():
    one = estimate([[0.7]])
    assert one.mean == 0.7
    assert np.isnan(one.low)
    assert str(one) == ".700"
    for empty in ([], [[]], [[1.0], []]):
        with pytest.raises(ValueError, match="at least one"):
            estimate(empty)


def shown(rows):
    console = Console(width=140, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(table(rows, "title"))
    return console.export_text()


def test_the_table_has_means_intervals_and_gaps():
    rows = [row(method="a", bits=b, seed=s, map=m, train_seconds=s, peak_mb=100 + s) for b, s, m in [
        (8, 0, 0.5), (8, 1, 0.7), (12, 0, 0.6), (12, 1, 0.6)]] + [row(method="b", bits=8, seed=0, map=1.0)]  # fmt: skip
    text = shown(rows)
    assert ".600" in text
    assert "[.500, .700]" in text
    assert "1.000" in text
    assert "[.550, .650]" in text  # over both lengths
    assert "101" in text
    assert "mean over seeds (1 to 2 a cell)" in text
    line = next(line for line in text.splitlines() if "│ b " in line)
    assert [cell.strip() for cell in line.strip("│").split("│")] == ["b", "1.000", "-", "-", "0.5", "0"]


def test_the_markdown_table_has_a_line_a_method():
    rows = [
        {"dataset": "d", "features": "f", "method": method, "bits": bits, "map": str(score), "train_seconds": "12.4"}
        for method, bits, score in [("a", 12, 0.5), ("a", 12, 0.7), ("b", 12, 0.25), ("b", 24, 0.75)]
    ]
    table = [
        "| method | 12 bits | 24 bits | training, 24 bits |",
        "|---|---|---|---|",
        "| a | .600 [.500, .700] |  |  |",
        "| b | .250 | .750 | 12 s |",
    ]
    assert markdown(rows).splitlines() == table
    both = markdown(rows + [row | {"features": "g"} for row in rows])  # never averaged over features
    assert both.splitlines() == ["d, f:", "", *table, "", "d, g:", "", *table]


def test_an_empty_table_is_drawn():
    assert "title" in shown([])


def test_peak_memory_is_this_process_own():
    code = "import numpy as np; from benchmarks.common.machine import peak_mb; a = np.ones(10**7); print(peak_mb())"
    ballast = np.ones(5 * 10**7)  # 400 MB here must not be counted there
    peak = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 80 < peak < 300
    assert peak_mb() > ballast.nbytes / 1e6


def test_revision_is_one_word():
    assert len(revision().split()) <= 1


def test_foreign_files_are_not_overwritten(tmp_path):
    require_replaceable(tmp_path / "missing", "*.md")
    (tmp_path / "table.md").write_text("mine")
    (tmp_path / "data.csv").write_text("a,b\n1,2\n")
    (tmp_path / "report.md").write_text("# My report\n")
    require_replaceable(tmp_path, "*.png")
    for pattern in ("table.md", "report.md", "*.csv"):
        with pytest.raises(ValueError, match=r"no results of a benchmark, so .* choose another folder"):
            require_replaceable(tmp_path, pattern)
    (tmp_path / "report.md").write_text(f"# Report\n\n{REPORT} Cells.\n")
    require_replaceable(tmp_path, "table.md")
    (tmp_path / "report.md").unlink()
    Results(tmp_path).append(row())
    require_replaceable(tmp_path, "table.md")


def test_the_results_in_this_repository_may_be_written_again():
    folder = Path(__file__).parents[3] / "benchmarks" / "results"
    for path in (folder, *{path.parent for path in folder.rglob("results.csv")}):
        require_replaceable(path, "*.md", "*.png")
