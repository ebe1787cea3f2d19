"""SH: which waves become bits, and that the bits are those waves' signs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashgym.hashers import load, make


def rectangle(*sides, n=20_000, seed=0):
    """Points uniform on a box with these sides around the origin, its corners among them, so that ranges are exact."""
    rng = np.random.default_rng(seed)
    corners = np.stack(np.meshgrid(*[(-side / 2, side / 2) for side in sides]), -1).reshape(-1, len(sides))
    return np.concatenate([rng.uniform(-0.5, 0.5, (n, len(sides))) * sides, corners]).astype(np.float32)


def test_a_rectangle_gives_its_longer_side_the_first_modes():
    # Sides 5 and 1.9: k / side is .2, .4, .53 (the short side's first), .6, .8, 1, and then 1.05 on the short side.
    sh = make("sh", bits=6, trim=0).fit(rectangle(5, 1.9))
    assert sh.directions_.tolist() == [0, 0, 1, 0, 0, 0]
    assert sh.modes_.tolist() == [1, 2, 1, 3, 4, 5]
    assert np.abs(np.diag(sh.components_)).min() > 0.999
    assert sh.range_ == pytest.approx([5, 1.9], rel=0.02)
    grid = np.stack(np.meshgrid(np.linspace(-2.45, 2.45, 40), np.linspace(-0.9, 0.9, 40)), -1).reshape(-1, 2)
    position = (grid * np.sign(np.diag(sh.components_)) / [5, 1.9] + 0.5)[:, [0, 0, 1, 0, 0, 0]]
    waves = np.sin(np.pi / 2 + np.pi * position * [1, 2, 1, 3, 4, 5])
    clear = np.abs(waves) > 0.2
    assert (sh.encode(grid) == (waves > 0))[clear].all()
    assert clear.mean() > 0.8


def test_a_long_thin_box_is_cut_along_its_length_only():
    sh = make("sh", bits=8, trim=0).fit(rectangle(100, 3, 2))
    assert sh.directions_.tolist() == [0] * 8
    assert sh.modes_.tolist() == list(range(1, 9))


def test_bits_of_uniform_data_are_balanced_and_uncorrelated():
    X = rectangle(7, 5, 3)
    sh = make("sh", bits=10, trim=0).fit(X)
    codes = 2.0 * sh.encode(X) - 1
    assert np.abs(codes.mean(0)).max() < 0.05
    # Modes of different directions are independent; odd and even ones along one direction too.
    products = codes.T @ codes / len(codes)
    apart = (sh.directions_[:, None] != sh.directions_) | ((sh.modes_[:, None] + sh.modes_) % 2 == 1)
    assert np.abs(products[apart]).max() < 0.05


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 5), st.integers(6, 40))
def test_bits_are_those_of_a_naive_loop(seed, bits, dim, n):
    rng = np.random.default_rng(seed)
    X = (rng.standard_normal((n, dim)) * rng.uniform(0.5, 3, dim) + 4).astype(np.float32)
    sh = make("sh", bits=bits, trim=0).fit(X)
    wide = X.astype(float) - X.mean(0, dtype=float)
    directions = np.linalg.svd(wide, full_matrices=False)[2][: min(bits, dim)]
    modes = []
    for d, direction in enumerate(directions):
        along = wide @ direction
        for k in range(1, bits + 1):
            omega = k * np.pi / (along.max() - along.min())
            modes.append((1 - np.exp(-0.5 * (0.01 * omega) ** 2), d, k, omega, along, along.min()))
    modes.sort(key=lambda mode: mode[0])
    values = sh.transform(X)
    assert values.shape == (n, bits)
    for bit, (_, d, k, omega, along, low) in enumerate(modes[:bits]):
        assert (sh.directions_[bit], sh.modes_[bit]) == (d, k)
        wave = np.array([np.sin(np.pi / 2 + omega * (x - low)) for x in along])
        turned = np.array([np.sin(np.pi / 2 + omega * (along.max() - x)) for x in along])  # a direction has no sign
        assert np.allclose(values[:, bit], wave, atol=2e-3) or np.allclose(values[:, bit], turned, atol=2e-3)


def test_more_bits_than_dimensions_and_a_single_dimension_work(tmp_path):
    line = np.linspace(0, 8, 801, dtype=np.float32)[:, None]
    sh = make("sh", bits=4, trim=0).fit(line)
    assert sh.components_.shape == (1, 1)
    # Mode k has k sign changes: k + 1 runs of equal bits.
    assert [(np.diff(bit) != 0).sum() for bit in sh.encode(line + 1e-3).T.astype(int)] == [1, 2, 3, 4]
    sh.save(tmp_path / "sh.npz")
    assert load(tmp_path / "sh.npz").transform(line).tobytes() == sh.transform(line).tobytes()


def test_components_limit_the_directions_and_trim_leaves_outliers_out():
    X = rectangle(5, 4, 3)
    assert set(make("sh", bits=6, components=1).fit(X).directions_) == {0}
    assert make("sh", bits=2, components=9).fit(X).components_.shape == (3, 3)
    far = np.concatenate([X, [[0, 40, 0]]]).astype(np.float32)
    whole, trimmed = (make("sh", bits=6, trim=trim).fit(far) for trim in (0, 0.01))
    assert whole.range_.max() > 40
    assert trimmed.range_ == pytest.approx([5, 4, 3], rel=0.03)
    mostly_zero = np.zeros((100, 2), np.float32)
    mostly_zero[0] = 1  # trimmed ranges would be empty
    assert make("sh", bits=2, trim=0.1).fit(mostly_zero).encode(mostly_zero)[[0, 1], 0].sum() == 1


def test_settings_and_features_that_cannot_work_are_rejected():
    for same, message in (
        (np.ones((5, 3)), "are equal, so there is nothing to learn"),
        (np.ones((1, 3)), "one sample"),
    ):
        with pytest.raises(ValueError, match=message):
            make("sh").fit(same)
    with pytest.raises(ValueError, match="components must be at least 1"):
        make("sh", components=0)
    for trim in (-0.1, 0.5):
        with pytest.raises(ValueError, match="trim must be"):
            make("sh", trim=trim)
