"""The benchmark of an agent's second code, and its beam search."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from agents import drlih
from benchmarks import second_codes
from benchmarks.common import cells
from benchmarks.common.results import Results, gain
from benchmarks.second_codes import Args, beam_search, main

BITS, GROUP, DIM = 7, 3, 4


def policy(variant: str) -> drlih.Policy:
    torch.manual_seed(0)
    made = drlih.build((DIM,), drlih.Args(variant=variant, bits=BITS, group_bits=GROUP, hidden=16, rnn_hidden=5))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return made.eval()


def log_probability(of: drlih.Policy, image: torch.Tensor, code: tuple[int, ...]) -> float:
    """Of one code of one image, bit by bit."""
    total, so_far, state = 0.0, torch.zeros(1, BITS), None
    for group, (start, stop) in enumerate(of.groups):
        logits, state = of.act(image[None], so_far, group, state)
        for bit in range(start, stop):
            p = float(torch.sigmoid(logits[0, bit - start].double()))
            total += np.log(p if code[bit] > 0 else 1 - p)
            so_far[0, bit] = code[bit]
    return total


@pytest.mark.parametrize("variant", ["norec", "hashgym"])
def test_two_of_the_most_probable_codes_are_found(variant: str) -> None:
    agent, images = policy(variant), torch.randn(6, DIM, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        codes, log_p = beam_search(agent, images)
        for n, image in enumerate(images):
            every = {code: log_probability(agent, image, code) for code in itertools.product((-1, 1), repeat=BITS)}
            found = [tuple(map(int, code)) for code in codes[:, n]]
            assert found[0] != found[1]
            np.testing.assert_allclose([every[code] for code in found], log_p[:, n], atol=1e-5)
            ranks = [sum(other > every[code] + 1e-9 for other in every.values()) for code in found]
            if variant == "norec":  # bits do not depend on each other, and the search is exact
                assert ranks == [0, 1]
            else:
                assert ranks[0] < ranks[1] < 2**BITS / 8


@pytest.mark.usefixtures("in_this_process")
def test_every_kind_has_a_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = Args(features="digits", bits=(8,), seeds=1, updates=60, share=0.25, out=tmp_path)
    console = Console(record=True, width=200)
    assert main(args, console) == 0
    rows = Results(tmp_path, second_codes.COLUMNS, second_codes.KEY).rows()
    assert [(row["method"], row["codes"]) for row in rows] == [
        (method, codes) for method in second_codes.METHODS for codes in second_codes.CODES
    ]
    for row in rows:
        assert 0.1 < float(row["map_pessimistic"]) <= float(row["map"]) <= float(row["map_optimistic"]) < 1
        assert float(row["anhc"]) == pytest.approx(1 if row["codes"] == "one" else 1.25, abs=1e-3)
        assert json.loads(row["config"]).get("share") == (None if row["codes"] == "one" else 0.25)
    one, beam, _ = (float(row["recall_radius0"]) for row in rows[:3])
    assert beam > one  # further codes can only add to what a lookup finds
    assert all(codes in console.export_text(clear=False) for codes in second_codes.CODES)

    monkeypatch.setattr(cells, "_in_fresh_process", lambda work, cell: pytest.fail(f"{cell} was run again"))
    assert main(args, Console(record=True)) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("drlih-paper",)}, "methods must be one of drlih, drlih-norec"),
        ({"share": 0.0}, "share must be above 0"),
        ({"share": float("nan")}, "share must be finite"),
        ({"bits": ()}, "bits must not be empty"),
    ],
)
def test_wrong_arguments_are_rejected_before_a_run(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        main(Args(**{"features": "digits", "out": tmp_path / "none", **changes}))
    assert not (tmp_path / "none").exists()


def test_a_gain_has_an_interval_where_it_can() -> None:
    assert gain([]) == ""
    assert gain([0.25]) == "+0.2500"
    assert gain([0.1, -0.3]) == "-0.1000 [-0.3000, +0.1000]"
