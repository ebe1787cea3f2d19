"""Rankings by real numbers: their mAP, and what they reach on digits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from benchmarks import limits
from benchmarks.common import cells
from benchmarks.common.results import Results
from hashgym.data.readers import digits
from hashgym.retrieval import mean_average_precision


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 30))
def test_map_of_a_ranking_equals_a_loop(seed, queries, images):
    rng = np.random.default_rng(seed)
    scores, relevant = rng.permutation(queries * images).reshape(queries, images), rng.random((queries, images)) < 0.3
    relevant[0, 0] = True
    expected = []
    for numbers, right in zip(scores, relevant, strict=True):
        order, hits, total = sorted(range(images), key=lambda i: -numbers[i]), 0, 0.0
        for rank, image in enumerate(order, 1):
            if right[image]:
                hits += 1
                total += hits / rank
        if hits:
            expected.append(total / hits)
    found = limits.ranking_map(lambda rows: scores[rows].astype(np.float32), relevant)
    assert found == pytest.approx(np.mean(expected))


@pytest.fixture
def _quick(in_this_process, monkeypatch):
    monkeypatch.setitem(limits.SETTINGS, "updates", 300)


@pytest.mark.usefixtures("_quick")
def test_rankings_of_digits(tmp_path, monkeypatch):
    args = limits.Args(out=tmp_path, seeds=1)
    assert limits.main(args, Console(record=True)) == 0
    rows = {row["method"]: row for row in Results(tmp_path).rows()}
    assert list(rows) == list(limits.METHODS)
    dataset = digits.load().standardized()
    classify = limits.train_classifier(dataset.features[dataset.train], dataset.labels[dataset.train], 0, single=True)
    p = classify(dataset.features)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)
    codes = p == p.max(axis=1, keepdims=True)
    query, database, labels = dataset.query, dataset.database, dataset.labels
    expected = mean_average_precision(codes[query], labels[query], codes[database], labels[database])
    assert float(rows["predicted class"]["map"]) == pytest.approx(expected, abs=0.02)
    assert float(rows["class probabilities"]["map"]) > expected
    assert float(rows["float cosine"]["map"]) < 0.8
    monkeypatch.setattr(cells, "_in_fresh_process", lambda work, cell: pytest.fail(f"{cell} was run again"))
    assert limits.main(args, Console(record=True)) == 0


@pytest.mark.usefixtures("_quick")
def test_rankings_of_images_with_several_labels(tmp_path):
    args = limits.Args(features=("digit-scenes",), out=tmp_path, seeds=1, queries=100, train=400)
    assert limits.main(args, Console(record=True)) == 0
    rows = {row["method"]: float(row["map"]) for row in Results(tmp_path).rows()}
    assert rows["class probabilities"] > rows["predicted class"] > 0.5
    assert rows["class probabilities"] > rows["float cosine"]
