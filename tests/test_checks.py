"""Integers and misspelt names."""

import numpy as np
import pytest

from hashgym.checks import check_choice, check_integer, check_number, closest, counted, finite_rows


@pytest.mark.parametrize("value", [1, 5, np.int64(5), np.uint8(1)])
def test_integers_are_taken(value):
    checked = check_integer("k", value, 1, 5)
    assert checked == value
    assert type(checked) is int


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, "k must be at least 1, got 0"),
        (-3, "k must be at least 1, got -3"),
        (6, "k must be at most 5, got 6"),
        (2.0, "k must be an integer, got 2.0"),
        (True, "k must be an integer, got True"),
        (np.bool_(True), "k must be an integer"),
        (np.float32(2), "k must be an integer"),
        ("2", "k must be an integer, got '2'"),
        (None, "k must be an integer, got None"),
    ],
)
def test_all_else_is_named(value, message):
    with pytest.raises(ValueError, match=message):
        check_integer("k", value, 1, 5)


@pytest.mark.parametrize(
    ("typed", "suggested"),
    [("itqq", "itq"), ("ITQ", "itq"), ("efficientnet-lite0", "efficientnet_lite0"), ("moon", ""), ("", ""), (3, "")],
)
def test_the_closest_name_is_suggested(typed, suggested):
    wanted = f" (did you mean {suggested!r}?)" if suggested else ""
    assert closest(typed, ["itq", "lsh", "efficientnet_lite0"]) == wanted


@pytest.mark.parametrize("value", [1, 0.5, np.float32(0.5), np.int8(1), True])
def test_numbers_are_taken(value):
    checked = check_number("x", value, 0.5)
    assert checked == value
    assert type(checked) is float


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1, "x must be a finite number of at least 0, got -1"),
        (float("inf"), "x must be a finite number of at least 0, got inf"),
        ("1", "x must be a number, got '1'"),
        (None, "x must be a number, got None"),
        ([1.0], r"x must be a number, got \[1.0\]"),
        (1j, "x must be a number, got 1j"),
    ],
)
def test_invalid_numbers_are_named(value, message):
    with pytest.raises(ValueError, match=message):
        check_number("x", value, 0)


def test_one_is_singular():
    assert [counted(n, "picture") for n in (0, 1, 2_000)] == ["0 pictures", "1 picture", "2,000 pictures"]
    assert counted(1, "query", "queries") == "1 query"
    assert counted(2, "query", "queries") == "2 queries"


@pytest.mark.parametrize("dtype", [np.float16, ">f2", np.float32, np.float64])
def test_rows_that_are_not_finite_are_found(dtype):
    largest = np.finfo(dtype).max
    rows = [[0, -0.0], [np.nan, 1], [1, -np.nan], [np.inf, 0], [0, -np.inf], [largest, -largest], [6e-8, -1]]
    array = np.array(rows, dtype)
    expected = [True, False, False, False, False, True, True]
    assert finite_rows(array).tolist() == expected
    assert finite_rows(array[:, :, None, None]).tolist() == expected
    assert finite_rows(np.repeat(array, 2, axis=1)[:, ::2]).tolist() == expected
    assert finite_rows(np.full((3, 2), 7, np.uint8)).all()
    assert finite_rows(array[:0]).tolist() == []


def test_a_choice_is_one_of_the_known_names():
    check_choice("mode", "average", ("average", "largest"))
    with pytest.raises(
        ValueError, match=r"^mode must be one of average, largest, got 'averge' \(did you mean 'average'\?\)$"
    ):
        check_choice("mode", "averge", ("average", "largest"))
