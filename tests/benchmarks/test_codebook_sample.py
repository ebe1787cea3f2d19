"""The benchmark of sampled codebooks, run for real on digits."""

import json

import pytest
from rich.console import Console

from benchmarks import codebook_sample
from benchmarks.common import cells, methods
from benchmarks.common.results import Results

SMALL = {"variant": "norec", "updates": 20, "num_envs": 32, "holdout": 0.0}


@pytest.mark.usefixtures("in_this_process")
def test_costs_and_rows_of_each_sample(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(methods, "AGENTS", {**methods.AGENTS, "drlih-norec": SMALL})
    sizes = {"samples": (0, 60), "images": (50, 400), "num_envs": 8, "rounds": 1}
    args = codebook_sample.Args(out=tmp_path, bits=8, seeds=1, **sizes)
    console = Console(record=True, width=200)
    assert codebook_sample.main(args, console) == 0
    rows = Results(tmp_path, codebook_sample.ROWS, (*codebook_sample.KEY, "settings")).rows()
    assert [json.loads(row["config"])["codebook_sample"] for row in rows if "60" in row["settings"]] == [60]
    assert [row["settings"] for row in rows] == ['{"codebook_sample": null}', '{"codebook_sample": 60}']
    assert all(0.1 < float(row["map"]) < 1 for row in rows)
    assert len({row["map"] for row in rows}) == 2  # the sample changes what is learnt
    text = (tmp_path / "cost.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in text[1:]] == [["50", "0"], ["400", "0"], ["400", "60"]]
    assert "whole" in capsys.readouterr().out
    monkeypatch.setattr(cells, "_in_fresh_process", lambda work, cell: pytest.fail(f"{cell} was run again"))
    assert codebook_sample.main(args, Console(record=True)) == 0


def test_wrong_arguments_are_rejected_before_anything_is_measured(tmp_path):
    for change, message in (
        ({"method": "itq"}, "there is no agent 'itq': choose one of drlih"),
        ({"samples": ()}, "samples must not be empty"),
        ({"method": "drlih-paper"}, "codebook_sample has no use for paper"),
    ):
        with pytest.raises(ValueError, match=message):
            codebook_sample.main(codebook_sample.Args(**{"out": tmp_path, "seeds": 1, **change}))
    assert not list(tmp_path.iterdir())
