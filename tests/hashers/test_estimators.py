"""Hashers are estimators of scikit-learn: its own checks, Pipeline, clone and GridSearchCV."""

from __future__ import annotations

import subprocess
import sys
import warnings
from contextlib import suppress
from typing import Any
from unittest import SkipTest

import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.fixes import parse_version

from hashgym import hashers
from hashgym.data.readers import digits
from hashgym.retrieval import evaluate

MODERN = parse_version(sklearn.__version__) >= parse_version("1.6")  # before, expected failures are not known
QUICK = {"anchors": 5, "labelled": 20, "iterations": 2, "passes": 1, "hidden": 8, "updates": 2, "batch_size": 16}
EXPECTED_FAILURES = {
    "check_do_not_raise_errors_in_init_or_set_params": "a bad setting is reported before any work, when the hasher is "
    "made: by make(), by environments that name a base, and by the command line",
}


def small(name: str, **settings: Any) -> hashers.Hasher:
    """A hasher that is fitted in milliseconds, on as few as one feature."""
    hasher = hashers.make(name, bits=1 if name in ("itq", "pca") else 2)
    return hasher.set_params(**{key: value for key, value in QUICK.items() if key in hasher.parameters()} | settings)


@pytest.fixture(scope="module")
def data():
    dataset = digits.load()
    return dataset.features[dataset.train[:300]], dataset.labels[dataset.train[:300]]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", hashers.available())
def test_scikit_learns_estimator_checks(name):
    if not MODERN:
        for estimator, check in check_estimator(small(name), generate_only=True):
            if check.func.__name__ not in EXPECTED_FAILURES:
                with suppress(SkipTest):
                    check(estimator)
        return
    results = check_estimator(small(name), expected_failed_checks=EXPECTED_FAILURES, on_skip=None, on_fail=None)
    by_status = {
        status: {result["check_name"]: result["exception"] for result in results if result["status"] == status}
        for status in ("passed", "failed", "xfail")
    }
    assert not by_status["failed"]
    assert by_status["xfail"].keys() == EXPECTED_FAILURES.keys()
    assert len(by_status["passed"]) > 30


@pytest.mark.parametrize("name", hashers.available())
def test_a_pipeline_gives_what_its_steps_give(name, data):
    X, y = data
    pipeline = make_pipeline(StandardScaler(), small(name))
    found = pipeline.fit_transform(X.astype(float).tolist(), y)
    scaled = StandardScaler().fit_transform(X.astype(float))
    np.testing.assert_array_equal(found, small(name).fit(scaled, y).transform(scaled))
    np.testing.assert_array_equal(pipeline.transform(X.astype(float)), found)
    assert found.dtype == np.float32
    assert clone(pipeline)[-1].get_params() == pipeline[-1].get_params()


def mean_average_precision(pipeline, X, y) -> float:
    """mAP of images that each search all the others of a fold."""
    codes = pipeline.transform(X) > 0
    return evaluate(codes, y, codes, y).map


def test_a_grid_search_finds_settings_by_map(data):
    pipeline = make_pipeline(StandardScaler(), hashers.make("itq", seed=0))
    search = GridSearchCV(pipeline, {"itq__bits": [1, 2, 16]}, scoring=mean_average_precision, cv=2).fit(*data)
    assert search.best_params_ == {"itq__bits": 16}
    assert (np.diff(search.cv_results_["mean_test_score"]) > 0).all()
    assert search.transform(data[0]).shape == (300, 16)


def test_settings_are_changed_all_or_not_at_all():
    hasher = hashers.make("hashnet", bits=8)
    assert hasher.set_params(bits=np.int64(16), beta=3.0) is hasher
    assert (hasher.bits, hasher.beta, type(hasher.bits)) == (16, 3.0, int)
    for bad, message in (
        ({"bits": 4, "beta": 0.5}, "beta and stages at least 1"),
        ({"bits": 4, "betta": 2.0}, r"HashNet has no setting betta \(did you mean 'beta'\?\): it has bits, seed"),
    ):
        with pytest.raises(ValueError, match=message):
            hasher.set_params(**bad)
        assert (hasher.bits, hasher.beta) == (16, 3.0)


@pytest.mark.parametrize("classes", [lambda c: c, lambda c: c.astype(float), lambda c: c.astype(str).tolist()])
def test_classes_are_labels(data, classes):
    X, y = data
    one = small("sdh", anchors=30).fit(X, y)
    other = small("sdh", anchors=30).fit(X, classes(y.argmax(1)))
    np.testing.assert_array_equal(one.transform(X), other.transform(X))
    np.testing.assert_array_equal(small("sdh", anchors=30).fit(X, y.astype(float)).transform(X), one.transform(X))


def test_columns_of_data_frames_keep_their_names(data, tmp_path):
    X, y = data
    frame = pd.DataFrame(X, columns=[f"f{i}" for i in range(64)])
    hasher = small("dch").fit(frame, y)
    values = hasher.transform(frame)
    np.testing.assert_array_equal(values, small("dch").fit(X, y).transform(X))
    with (
        pytest.warns(UserWarning, match="X does not have valid feature names") if MODERN else warnings.catch_warnings()
    ):
        np.testing.assert_array_equal(hasher.transform(X), values)
    if MODERN:
        assert hasher.feature_names_in_.tolist() == frame.columns.tolist()
        with pytest.raises(ValueError, match="feature names should match"):
            hasher.transform(frame[frame.columns[::-1]])
    hasher.save(tmp_path / "dch.npz")
    loaded = hashers.load(tmp_path / "dch.npz")
    np.testing.assert_array_equal(loaded.transform(frame), values)
    assert hasher.is_saved_in(tmp_path / "dch.npz")
    assert loaded.head() is not None
    assert not hasattr(hasher.fit(X, y), "feature_names_in_")


def test_arrays_need_no_scikit_learn():
    code = (
        "import sys, numpy as np, hashgym.hashers as h; X = np.random.default_rng(0).random((20, 4));"
        "h.make('itq', bits=2).fit(X).encode(X); h.make('itq').set_params(bits=3).get_params();"
        "assert not {'torch', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
