import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hashgym.features.regions import corner_and_centre, random_boxes

SIDES = st.integers(1, 5000)
RATIOS = st.floats(0, 1, exclude_min=True)


def test_worked_example():
    assert corner_and_centre(100, 60, 0.5) == [
        (0, 0, 50, 30),
        (50, 0, 100, 30),
        (0, 30, 50, 60),
        (50, 30, 100, 60),
        (25, 15, 75, 45),
    ]


@given(SIDES, SIDES)
def test_ratio_one_is_the_whole_image(width, height):
    assert corner_and_centre(width, height, 1) == [(0, 0, width, height)] * 5
    assert random_boxes(np.random.default_rng(0), width, height, 1, 3) == [(0, 0, width, height)] * 3


@given(SIDES, SIDES, RATIOS, st.integers(0, 2**32))
def test_boxes_lie_inside_and_have_the_asked_sides(width, height, sigma, seed):
    fixed = corner_and_centre(width, height, sigma)
    drawn = random_boxes(np.random.default_rng(seed), width, height, sigma, 4)
    assert (len(fixed), len(drawn)) == (5, 4)
    for left, top, right, bottom in fixed + drawn:
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        assert abs((right - left) - max(1, sigma * width)) <= 0.5
        assert abs((bottom - top) - max(1, sigma * height)) <= 0.5
    left, top, right, bottom = fixed[4]
    assert abs(left - (width - right)) <= 1
    assert abs(top - (height - bottom)) <= 1
    assert drawn == random_boxes(np.random.default_rng(seed), width, height, sigma, 4)


def test_random_places_are_uniform():
    lefts = [box[0] for box in random_boxes(np.random.default_rng(0), 8, 4, 0.5, 5_000)]
    counts = np.bincount(lefts)
    assert len(counts) == 5  # 0 to 4, both ends included
    assert abs(counts - 1_000).max() < 150


@pytest.mark.parametrize(
    ("width", "height", "sigma"), [(10, 10, 0), (10, 10, 1.01), (10, 10, float("nan")), (0, 10, 0.5)]
)
def test_wrong_arguments(width, height, sigma):
    with pytest.raises(ValueError, match=r"sigma|pixel"):
        corner_and_centre(width, height, sigma)
    with pytest.raises(ValueError, match=r"sigma|pixel"):
        random_boxes(np.random.default_rng(0), width, height, sigma)
