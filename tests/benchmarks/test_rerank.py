"""Rankings by margins: their mAP against a loop, and what they reach on digits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from benchmarks import rerank
from benchmarks.common import cells
from benchmarks.common.results import Results


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 70), st.integers(1, 25), st.integers(1, 8))
def test_map_by_asymmetric_distance_equals_a_loop(seed, queries, images, bits):
    rng = np.random.default_rng(seed)
    margins, codes = rng.normal(size=(queries, bits)), rng.random((images, bits)) < 0.5
    relevant = rng.random((queries, images)) < 0.4
    relevant[0, 0] = True
    found = rerank.asymmetric_scores(margins, codes, relevant)
    best, worst = [], []
    for weights, right in zip(margins, relevant, strict=True):
        distances = [
            round(sum(abs(m) for m, bit in zip(weights, code, strict=True) if bit != (m > 0)), 9) for code in codes
        ]
        for into, sign in ((best, -1), (worst, 1)):
            order, hits, total = sorted(range(images), key=lambda i: (distances[i], sign * right[i])), 0, 0.0
            for rank, image in enumerate(order, 1):
                if right[image]:
                    hits += 1
                    total += hits / rank
            if hits:
                into.append(total / hits)
    assert found["map_optimistic"] == pytest.approx(np.mean(best))
    assert found["map_pessimistic"] == pytest.approx(np.mean(worst))
    assert found["map_pessimistic"] - 1e-12 <= found["map"] <= found["map_optimistic"] + 1e-12


def test_equal_margins_give_the_hamming_ranking():
    from hashgym.retrieval import evaluate

    rng = np.random.default_rng(0)
    codes, labels = rng.random((200, 40)) < 0.5, np.eye(5, dtype=np.uint8)[rng.integers(0, 5, 200)]
    query = rng.random((9, 40)) < 0.5
    wanted = evaluate(query, labels[:9], codes, labels)
    relevant = (labels[:9] @ labels.T) > 0
    bounds = rerank.asymmetric_scores(np.where(query, 0.5, -0.5), codes, relevant)
    assert wanted.map_pessimistic <= bounds["map"] <= wanted.map_optimistic


@pytest.mark.usefixtures("in_this_process")
def test_rankings_of_digits(tmp_path, monkeypatch):
    args = rerank.Args(out=tmp_path, seeds=1, hashers=("itq",), bits=(12,))
    assert rerank.main(args, Console(record=True)) == 0
    rows = {row["method"]: float(row["map"]) for row in Results(tmp_path).rows()}
    assert list(rows) == [f"itq, {ranking}" for ranking in rerank.RANKINGS]
    assert rows["itq, margins"] > rows["itq, Hamming"]
    monkeypatch.setattr(cells, "_in_fresh_process", lambda work, cell: pytest.fail(f"{cell} was run again"))
    assert rerank.main(args, Console(record=True)) == 0
