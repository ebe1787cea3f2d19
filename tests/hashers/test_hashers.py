"""The contract of every hasher: fit, transform, encode, save and load."""

import dataclasses
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from sklearn import exceptions
from sklearn.base import clone

from hashgym.data.readers import digits
from hashgym.hashers import Hasher, NotFittedError, available, load, make, register
from hashgym.hashers.deep import DeepHasher

NAMES = list(available())
DEEP = [name for name in NAMES if isinstance(make(name), DeepHasher)]
QUICK = {
    "ksh": {"anchors": 50, "labelled": 200},
    "sdh": {"anchors": 50},
    **{name: {"hidden": 32, "updates": 20, "batch_size": 64} for name in DEEP},
}


@pytest.fixture(scope="module")
def data():
    dataset = digits.load().standardized()
    return dataset.features[dataset.train], dataset.labels[dataset.train]


def fitted(name, data, bits=8, **kwargs) -> Hasher:
    return make(name, bits=bits, **QUICK.get(name, {}), **kwargs).fit(*data)


@pytest.mark.parametrize("name", NAMES)
def test_shapes_types_and_that_fit_returns_the_hasher(name, data):
    hasher = make(name, bits=8, **QUICK.get(name, {}))
    assert hasher.fit(*data) is hasher
    values, bits = hasher.transform(data[0][:50]), hasher.encode(data[0][:50])
    assert values.shape == bits.shape == (50, 8)
    assert (values.dtype, bits.dtype) == (np.float32, np.bool_)
    assert (bits == (values > 0)).all()
    assert 0 < bits.mean() < 1
    assert hasher.n_features_in_ == 64


@pytest.mark.parametrize("name", NAMES)
def test_seeds_reproduce_a_fit_to_the_bit_and_other_seeds_do_not(name, data):
    first, again, other = (fitted(name, data, seed=seed).transform(data[0]) for seed in (3, 3, 4))
    assert first.tobytes() == again.tobytes()
    assert (first != other).any() == (name != "sh")  # which draws nothing


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_hasher_loads_to_the_same_values(name, data, tmp_path):
    hasher = fitted(name, data, seed=5)
    hasher.save(tmp_path / "file")
    loaded = load(tmp_path / "file")
    assert type(loaded) is type(hasher)
    assert loaded.get_params() == hasher.get_params()
    assert loaded.transform(data[0]).tobytes() == hasher.transform(data[0]).tobytes()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]  # nothing temporary stays


@pytest.mark.parametrize("name", DEEP)
def test_a_linear_head_is_one_matrix_that_learns_and_is_saved(name, data, tmp_path):
    X, y = data[0] * 3 + 1, data[1]  # not standardised: mean and deviation belong to the matrix
    hasher = make(name, bits=8, hidden=0, updates=100, seed=2).fit(X, y)
    assert hasher.code_weight_.shape == (64, 8)
    assert not hasattr(hasher, "hidden_weight_")
    assert np.allclose(hasher.transform(X), X @ hasher.code_weight_ + hasher.code_bias_)
    hasher.save(tmp_path / "linear")
    assert load(tmp_path / "linear").transform(X).tobytes() == hasher.transform(X).tobytes()
    hamming = (hasher.encode(X)[:, None] != hasher.encode(X)[None]).sum(-1)
    similar = y.astype(int) @ y.T > 0
    assert hamming[similar].mean() < hamming[~similar].mean() - 0.5


@pytest.mark.parametrize("name", NAMES)
def test_codes_do_not_depend_on_the_block_they_were_encoded_in(name, data):
    hasher = fitted(name, data)
    many = np.tile(data[0], (9, 1))  # 9,000 rows: two blocks
    assert np.allclose(hasher.transform(many)[-1000:], hasher.transform(data[0]), atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_scikit_learn_clones_the_settings_and_not_the_fit(name, data):
    hasher = fitted(name, data, seed=9)
    copy = clone(hasher)
    assert copy.get_params() == hasher.get_params()
    for error in (NotFittedError, exceptions.NotFittedError):
        with pytest.raises(error, match="not fitted yet") as caught:
            copy.transform(data[0])
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), NotFittedError)


@pytest.mark.parametrize("before", [1, 4])
def test_codes_of_another_length_than_was_fitted_are_not_made(data, before):
    hasher = make("lsh", bits=before).fit(data[0]).set_params(bits=8)
    with pytest.raises(ValueError, match=f"LSH was fitted with {before} bits, and bits is now 8: fit it again"):
        hasher.transform(data[0])


@pytest.mark.parametrize("name", NAMES)
def test_a_failed_fit_keeps_the_old_one(name, data):
    hasher = fitted(name, data)
    before = hasher.transform(data[0])
    with pytest.raises(ValueError, match="NaN"):
        hasher.fit(np.full((10, 64), np.nan), data[1][:10])
    assert (hasher.transform(data[0]) == before).all()


@pytest.mark.parametrize("name", NAMES)
def test_bad_input_is_rejected_by_name(name, data, tmp_path):
    X, y = data
    with pytest.raises(NotFittedError, match="call fit first"):
        make(name).transform(X)
    with pytest.raises(NotFittedError, match="call fit first"):
        make(name).save(tmp_path / "never")
    assert not list(tmp_path.iterdir())
    hasher = fitted(name, data)
    with pytest.raises(ValueError, match=r"X has 63 features, but .* is expecting 64 features"):
        hasher.transform(X[:, 1:])
    with pytest.raises(ValueError, match="single image is X"):
        hasher.encode(X[0])
    with pytest.raises(ValueError, match="real numbers"):
        hasher.fit(X.astype(str), y)
    damaged = X.copy()
    damaged[7, 3] = np.inf
    for call in (lambda: hasher.fit(damaged, y), lambda: hasher.encode(damaged)):
        with pytest.raises(ValueError, match="row 7 hold NaN or infinity"):
            call()
    for bits in (0, -1, 2.5, True, "8"):
        with pytest.raises(ValueError, match="bits must be"):
            make(name, bits=bits)


def test_bad_labels_are_rejected_by_name(data):
    X, y = data
    hasher = make("noseq", **QUICK["noseq"])
    with pytest.raises(ValueError, match="learns from labels"):
        hasher.fit(X)
    with pytest.raises(ValueError, match="999 labels for 1000 features"):
        hasher.fit(X, y[1:])
    with pytest.raises(ValueError, match=r"must be classes, got real numbers"):
        hasher.fit(X, np.linspace(0, 1, 1000))
    with pytest.raises(ValueError, match=r"multi-hot of shape \(n, L\), or classes \(n,\), got uint8 \(1, 1000, 10\)"):
        hasher.fit(X, y[None])
    with pytest.raises(ValueError, match="integers 0 and 1"):
        hasher.fit(X, y * 2)
    triangle = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1]], np.uint8)[np.arange(1000) % 3]  # no label is everywhere
    for same in (np.ones_like(y), triangle, np.eye(1000, dtype=np.uint8)):
        with pytest.raises(ValueError, match="share a label, so there is no"):
            hasher.fit(X, same)


@pytest.mark.parametrize(
    ("names", "least"),
    [(("noseq", "ninh"), 3), (("dch", "mmhh", "hashnet", "dsh", "ksh-relaxed", "cibhash", "orthohash"), 2)],
)
def test_a_batch_holds_the_images_that_the_loss_compares(names, least):
    for name in names:
        make(name, batch_size=least)
        with pytest.raises(ValueError, match=f"batch_size must be at least {least}"):
            make(name, batch_size=least - 1)


def test_seeds_are_numbers_from_0_up():
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        make("lsh", seed=-1)


def test_errors_for_unknown_names_and_settings_list_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown hasher .lhs. .did you mean 'lsh'.*; there are adsh, cibhash, cnnh"):
        make("lhs")
    with pytest.raises(ValueError, match="itq has no setting margin: it has bits, seed, iterations"):
        make("itq", margin=3)
    assert all(line for line in available().values())


def test_the_registry_takes_users_hashers_and_rejects_a_taken_name(data, tmp_path, monkeypatch):
    (tmp_path / "users_own.py").write_text(
        "from hashgym.hashers.lsh import LSH\nclass Own(LSH):\n    'A hyperplane hasher.'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    register("own", "users_own:Own", "mine")
    assert available()["own"] == "mine"
    hasher = make("own", bits=4).fit(data[0])
    hasher.save(tmp_path / "own.npz")
    assert type(load(tmp_path / "own.npz")).__name__ == "Own"
    with pytest.raises(ValueError, match="registered already, users_own:Own: choose another name"):
        register("own", "elsewhere:Own")
    with pytest.raises(ValueError, match=r"package.module:Name"):
        register("new", "users_own.Own")


def test_files_that_are_not_a_saved_hasher_are_rejected(data, tmp_path):
    good, bad = tmp_path / "good.npz", tmp_path / "bad.npz"
    fitted("itq", data).save(good)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "absent")

    def rejected(match="not a saved hasher|not hold a complete|not registered|no setting"):
        with pytest.raises(ValueError, match=match):
            load(bad)

    bad.write_bytes(good.read_bytes()[:-200])
    rejected()
    bad.write_bytes(b"")
    rejected()
    np.save(open(bad, "wb"), np.zeros(3))  # noqa: SIM115
    rejected()
    np.savez(bad, meta=np.array([object()], dtype=object))  # would need pickle
    rejected()
    meta = {"format": "hashgym.hasher/1", "hasher": "lsh", "parameters": {"bits": 2, "seed": 0}}
    state = {"center_": np.zeros(3), "planes_": np.zeros((3, 2)), "n_features_in_": np.array(3)}
    for change, arrays in [
        ({}, {**state, "planes_": np.zeros((4, 2))}),
        ({}, {**state, "fit": np.zeros(1)}),
        ({}, {"center_": np.zeros(3)}),
        ({"hasher": "os.system"}, state),
        ({"parameters": {"bites": 2}}, state),
        ({"format": "hashgym.hasher/99"}, state),
    ]:
        np.savez(bad, meta=np.array(json.dumps(meta | change)), **arrays)
        rejected()
    np.savez(bad, meta=np.array(json.dumps(meta)), **state)
    assert load(bad).encode(np.ones((1, 3))).shape == (1, 2)


def test_saving_replaces_no_file_but_a_saved_hasher(data, tmp_path):
    path = tmp_path / "hasher.npz"
    fitted("lsh", data).save(path)
    fitted("itq", data).save(path)
    assert type(load(path)).__name__ == type(fitted("itq", data)).__name__
    np.savez(tmp_path / "mine.npz", x=np.zeros(3))
    before = (tmp_path / "mine.npz").read_bytes()
    with pytest.raises(ValueError, match=r"mine\.npz exists already and is not a saved hasher"):
        fitted("lsh", data).save(tmp_path / "mine.npz")
    assert (tmp_path / "mine.npz").read_bytes() == before


def test_an_interrupted_save_leaves_the_old_file(data, tmp_path, monkeypatch):
    path = tmp_path / "hasher.npz"
    fitted("lsh", data).save(path)
    before = path.read_bytes()

    def full(file, **arrays):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space"):
        fitted("lsh", data, seed=1).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["hasher.npz"]


def test_importing_hashers_imports_neither_torch_nor_scikit_learn():
    code = "import hashgym.hashers, sys; assert not {'torch', 'sklearn', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", available())
def test_images_that_are_all_alike_are_rejected(name):
    """Also a single image; LSH learns nothing in any case."""
    alike, y = np.full((12, 6), 3, np.float32), np.eye(2, dtype=np.uint8)[np.arange(12) % 2]
    if name == "lsh":
        assert not make(name, bits=4).fit(alike).encode(alike).any()
        return
    for X, labels, message in ((alike, y, "all 12 training images are equal"), (alike[:1], y[:1], "one sample is")):
        with pytest.raises(ValueError, match=message):
            make(name, bits=4).fit(X, labels)


@pytest.mark.parametrize("name", available())
def test_settings_that_measure_are_finite_numbers(name):
    """Integers are taken as they are, so that scikit-learn clones the hasher, and NumPy's numbers can be saved."""
    hasher = make(name)
    for field in dataclasses.fields(hasher):
        if field.type not in ("float", "float | None"):
            continue
        for value in (float("nan"), float("inf"), "0.1"):
            with pytest.raises(ValueError, match=rf"{field.name} must be (finite|a number), got"):
                make(name, **{field.name: value})
        default = getattr(hasher, field.name)
        if default is not None:
            assert type(getattr(make(name, **{field.name: np.float32(default)}), field.name)) is float


def test_numpy_numbers_in_settings_of_any_kind_can_be_saved():
    """A field of a user's hasher may be declared as something else than a float."""

    @dataclasses.dataclass(kw_only=True, eq=False)
    class Mine(type(make("lsh"))):
        """My own."""

        share: "int | float" = 1

    assert type(Mine(share=np.float32(0.5)).share) is float


@pytest.mark.parametrize("name", available())
def test_a_fit_that_fails_leaves_the_hasher_as_it_was(name, monkeypatch):
    """Also one that fails in its midst, when some of what it learns is set."""
    rng = np.random.default_rng(0)
    features, labels = rng.standard_normal((60, 8)).astype(np.float32), np.eye(3, dtype=np.uint8)[np.arange(60) % 3]
    quick = {"updates": 2} if hasattr(make(name), "updates") else {}
    hasher = make(name, bits=4, **quick).fit(features, labels)
    before = dict(vars(hasher))
    fit = type(hasher)._fit

    def fails(self, X, y):
        fit(self, X, y)
        raise RuntimeError("stopped")

    monkeypatch.setattr(type(hasher), "_fit", fails)
    with pytest.raises(RuntimeError, match="stopped"):
        hasher.fit(features[::-1], labels)
    assert vars(hasher).keys() == before.keys()
    assert all(vars(hasher)[key] is value for key, value in before.items())


def test_a_fit_keeps_nothing_of_the_one_before():
    rng = np.random.default_rng(0)
    features, labels = rng.standard_normal((60, 8)).astype(np.float32), np.eye(3, dtype=np.uint8)[np.arange(60) % 3]
    hasher = make("dch", bits=4, hidden=8, updates=2).fit(features, labels)
    again = make("dch", bits=4, hidden=0, updates=2).fit(features, labels)
    hasher.set_params(hidden=0).fit(features, labels)
    assert vars(hasher).keys() == vars(again).keys()
    np.testing.assert_array_equal(hasher.transform(features), again.transform(features))


@pytest.mark.parametrize("name", available())
def test_settings_that_count_are_integers(name):
    """Floats and bools are rejected by name; NumPy's integers are taken, and can be saved."""
    hasher = make(name)
    counts = [field.name for field in dataclasses.fields(hasher) if field.type in ("int", "int | None")]
    assert {"bits", "seed"} <= set(counts)
    for count in counts:
        for value in (2.5, 2.0, True, "2"):
            with pytest.raises(ValueError, match=f"{count} must be an integer, got {value!r}"):
                make(name, **{count: value})
        value = np.int64(getattr(hasher, count) or 2)
        assert type(getattr(make(name, **{count: value}), count)) is int


@pytest.mark.parametrize("changed", [{"planes_": (4, 1)}, {"n_features_in_": 10**9}, {"n_features_in_": -1}])
def test_arrays_that_do_not_fit_are_rejected(tmp_path, changed):
    """One column would be taken for all bits, a giant dimension would take the memory."""
    X = np.random.default_rng(0).random((20, 4)).astype(np.float32)
    hasher = make("lsh", bits=8).fit(X)
    for name, value in changed.items():
        setattr(hasher, name, np.ones(value, np.float32) if isinstance(value, tuple) else value)
    hasher.save(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="does not hold a complete LSH"):
        load(tmp_path / "a.npz")


def test_settings_out_of_an_array_are_saved(tmp_path):
    features = np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32)
    labels = np.eye(3, dtype=np.uint8)[np.arange(30) % 3]
    for dtype in (np.float16, np.float32, np.float64):
        hasher = make("dch", bits=np.int64(4), gamma=dtype(3), updates=1).fit(features, labels)
        hasher.save(tmp_path / "dch.npz")
        loaded = load(tmp_path / "dch.npz")
        assert loaded.get_params() == hasher.get_params()
        assert type(loaded.gamma) is float
        assert np.array_equal(loaded.encode(features), hasher.encode(features))
