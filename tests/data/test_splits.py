from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hashgym.checks import counted
from hashgym.data import DataError, HashingDataset, splits
from hashgym.data.readers import mirflickr25k

Labels = NDArray[np.uint8]


def draw(dataset: str, split: str | None, labels: Labels, names: Sequence[str] = (), **options: int) -> splits.Split:
    label_names = mirflickr25k.LABELS if dataset == "mirflickr25k" else [str(i) for i in range(labels.shape[1])]
    names = names or [f"im{i}.jpg" for i in range(len(labels))]
    return splits.make(dataset, split, labels=labels, label_names=label_names, names=names, **options)  # type: ignore[arg-type]


def classes(images: int, count: int = 10) -> Labels:
    """Single labels in turn."""
    return np.eye(count, dtype=np.uint8)[np.arange(images) % count]


def multi(images: int, count: int, share: float = 0.1, seed: int = 0) -> Labels:
    return (np.random.default_rng(seed).random((images, count)) < share).astype(np.uint8)


def sizes(split: splits.Split) -> tuple[int, int, int]:
    return len(split.query), len(split.train), len(split.database)


def check(split: splits.Split, labels: Labels) -> None:
    """Check the properties of every split."""
    for index in (split.query, split.train, split.database, split.labels):
        assert index.dtype == np.int64
        assert (np.diff(index) > 0).all()
        assert len(index)
    searched = np.concatenate([split.train, split.database])
    assert not np.isin(split.query, searched).any()
    used = np.concatenate([split.query, searched])
    assert labels[used][:, split.labels].any(axis=1).all()
    assert used.min() >= 0
    assert used.max() < len(labels)


def test_cifar10() -> None:
    labels = classes(60_000)
    names = [f"train/{i:05d}" for i in range(50_000)] + [f"test/{i:05d}" for i in range(10_000)]
    expected = {None: (1_000, 5_000, 59_000), "cifar10": (1_000, 5_000, 54_000), "cifar10-2": (10_000, 50_000, 50_000)}
    for name, counts in expected.items():
        split = draw("cifar10", name, labels, names)
        check(split, labels)
        assert sizes(split) == counts
        np.testing.assert_array_equal(labels[split.query].sum(axis=0), counts[0] // 10)
        np.testing.assert_array_equal(labels[split.train].sum(axis=0), counts[1] // 10)
        assert np.isin(split.train, split.database).all() == (name != "cifar10")
    default, without = draw("cifar10", None, labels, names), draw("cifar10", "cifar10", labels, names)
    assert default.name == "cifar10-1"
    np.testing.assert_array_equal(default.query, without.query)
    np.testing.assert_array_equal(default.train, without.train)
    np.testing.assert_array_equal(default.database, np.union1d(without.train, without.database))
    np.testing.assert_array_equal(draw("cifar10", "cifar10-2", labels, names).query, np.arange(50_000, 60_000))
    part = draw("cifar10", "cifar10-2", labels, names, queries=70, train=900)
    assert sizes(part) == (70, 900, 50_000)
    assert part.query.min() >= 50_000


def test_the_split_is_the_same_everywhere() -> None:
    """Numbers as drawn when this test was written: they may not change with machine, Python or NumPy."""
    split = draw("cifar10", None, classes(60_000), [f"train/{i:05d}" for i in range(60_000)])
    assert split.query[:6].tolist() == [69, 98, 198, 282, 312, 386]
    assert split.train[:6].tolist() == [3, 12, 48, 56, 64, 81]


# dataset, split, labels, options, and what is drawn, as before splits kept an image of every label
DRAWN = [
    ("cifar10", "cifar10-1", lambda: classes(60_000), {}, "1e3e11e48a0b"),
    ("cifar10", "cifar10", lambda: classes(6_000), {"seed": 1}, "43ecef37bbec"),
    ("digits", "digits", lambda: classes(1_797), {}, "ce0ddd3ca650"),
    ("mirflickr25k", "drlih", lambda: multi(25_000, 38), {}, "5ed6dbe17b6e"),
    ("mirflickr25k", "mch", lambda: multi(25_000, 38), {"seed": 3}, "ce0738c8d1fe"),
    ("mirflickr25k", "deephash", lambda: multi(25_000, 38), {}, "728f5512983e"),
    ("nuswide21", "drlih", lambda: multi(40_000, 21, 0.15), {}, "aaf88bcd8b06"),
    ("coco", "mch", lambda: multi(20_000, 80, 0.05), {}, "aa3cb6164aba"),
    ("folder:x", "random", lambda: classes(2_000, 7), {}, "a8da66da08b9"),
    ("folder:x", "random", lambda: classes(300, 20), {"queries": 100, "train": 150}, "4be1598bf96c"),
    ("list:x", "random", lambda: multi(3_000, 30, 0.1), {"queries": 500}, "61e3a49127b5"),
]


@pytest.mark.parametrize(("dataset", "split", "labels", "options", "digest"), DRAWN)
def test_balanced_data_are_drawn_as_ever(
    dataset: str, split: str, labels: Callable[[], Labels], options: dict[str, int], digest: str
) -> None:
    drawn = draw(dataset, split, labels(), **options)
    octets = b"".join(index.astype("<i8").tobytes() for index in (drawn.query, drawn.train, drawn.database))
    assert hashlib.sha256(octets).hexdigest()[:12] == digest


def long_tail(*each: int) -> Labels:
    """Single labels, so many images of each."""
    return np.repeat(np.eye(len(each), dtype=np.uint8), each, axis=0)


@pytest.mark.parametrize("each", [(600, 300, 60, 25, 15), (900, 60, 40), (500, 20, 3, 2), (30, 1), (1_000, 1, 1, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_a_long_tail_keeps_every_class(each: tuple[int, ...], seed: int) -> None:
    labels = long_tail(*each)
    split = draw("folder:pets", None, labels, seed=seed)
    check(split, labels)
    query, train, database = (
        labels[index].sum(axis=0, dtype=int) for index in (split.query, split.train, split.database)
    )
    assert (train >= 1).all()
    assert (database >= 1).all()
    assert ((query >= 1) | (np.array(each) == 1)).all()
    assert (query <= np.array(each) // 2).all()
    assert sizes(split)[:2] == (min(sum(each) // 10, len(split.query)), sum(each) // 4)
    for name, count in split.counts.items():
        assert count == (query[int(name)], train[int(name)], database[int(name)])
    assert split.described_counts["0"] == (
        f"{counted(int(query[0]), 'query', 'queries')}, {train[0]:,} to train, {database[0]:,} in the database"
    )
    assert ("no queries of" in split.description) == (1 in each)


def test_a_class_without_images_in_a_part_is_named() -> None:
    names = [f"{part}/{i}.jpg" for part, count in (("train", 6), ("test", 4)) for i in range(count)]
    labels = np.eye(4, dtype=np.uint8)[[0, 1, 2, 0, 1, 2, 0, 1, 2, 3]]  # 3 only in test
    split = draw("folder:x", None, labels, names)
    assert "no training images of 3; no images in the database of 3" in split.description


def test_a_rare_label_is_learnt_from_and_searched_for() -> None:
    """Of many labels each: one that three images hold, and one that only one holds."""
    for seed in range(4):
        labels = np.pad(multi(2_000, 10, 0.3), ((0, 0), (0, 2)))
        labels[[5, 6, 7], 10] = 1
        labels[8, 11] = 1
        split = draw("list:x", "random", labels, seed=seed)
        check(split, labels)
        assert labels[split.train].any(axis=0).all()
        assert labels[split.database].any(axis=0).all()
        assert labels[split.query][:, :11].any(axis=0).all()
        assert len(split.train) == labels.any(axis=1).sum() // 4
        apart = draw("mirflickr25k", "deephash", np.pad(labels, ((0, 0), (0, 26))), seed=seed, queries=200, train=300)
        for index in (apart.train, apart.database):
            assert labels[index][:, :11].any(axis=0).all()


@pytest.mark.parametrize(
    "spelling", [("Train", "VAL", "Test"), ("training", "valid", "query"), ("train", "validation", "testing")]
)
def test_parts_in_any_spelling(spelling: tuple[str, str, str]) -> None:
    names = [f"{part}/{i}.jpg" for part in spelling for i in range(8)]
    split = draw("folder:x", None, classes(24, 2), names)
    assert (split.name, sizes(split)) == ("given", (8, 8, 8))
    assert np.array_equal(split.query, np.arange(16, 24))
    assert np.array_equal(split.train, np.arange(8))
    assert "8 validation images held out: neither searched nor learnt from" in split.description
    split = draw("folder:x", None, classes(16, 2), names[:16])  # without test, validation is for queries
    assert np.array_equal(split.query, np.arange(8, 16))
    assert "held out" not in split.description
    split = draw("folder:x", None, classes(24, 2), [*names[:16], *(f"Gallery/{i}.jpg" for i in range(8))])
    assert np.array_equal(split.database, np.arange(16, 24))


def test_a_single_part_is_not_a_split() -> None:
    for part in ("train", "test", "val"):
        assert splits.default("folder:x", [f"{part}/{i}.jpg" for i in range(9)]) == "random"


def test_mirflickr25k_complete_and_in_part() -> None:
    labels = multi(25_000, 38)
    for name, counts, columns in (
        ("drlih", (1_000, 5_000), 38),
        ("mch", (5_000, 10_000), 24),
        ("deephash", (1_000, 4_000), 38),
    ):
        split = draw("mirflickr25k", name, labels)
        check(split, labels)
        assert split.labels.tolist() == list(range(columns))
        usable = int(labels[:, :columns].any(axis=1).sum())
        assert usable < 25_000
        database = usable - counts[0] - (counts[1] if name == "deephash" else 0)
        assert sizes(split) == (*counts, database)
        assert f"{25_000 - usable:,} images without a label left out" in split.description
        assert "scaled" not in split.description

        split = draw("mirflickr25k", name, labels[:20_000])
        assert sizes(split)[:2] == (counts[0] * 4 // 5, counts[1] * 4 // 5)
        assert "scaled down, as 20,000 of 25,000 images are present" in split.description
        assert sizes(draw("mirflickr25k", name, labels[:24_900]))[:2] == counts  # a few damaged ones change nothing

    split = draw("mirflickr25k", "mch", labels[:20_000], queries=2_000, train=5_000)
    assert sizes(split)[:2] == (2_000, 5_000)
    assert split.asked == (2_000, 5_000)


def test_nuswide21_takes_turns_between_concepts() -> None:
    labels = multi(195_834, 21, 0.1)
    labels[:, 0] = 0
    labels[:700, 0] = 1  # rare: 100 of them query, 500 train
    labels = labels[labels.any(axis=1)]
    split = draw("nuswide21", "drlih", labels)
    check(split, labels)
    scale = len(labels) / 195_834
    assert sizes(split)[:2] == ((2_100, 10_500) if scale >= 0.99 else (round(2_100 * scale), round(10_500 * scale)))
    each = len(split.query) // 21
    assert (labels[split.query].sum(axis=0) >= each).all()
    assert labels[split.query, 0].sum() >= each
    assert labels[split.train, 0].sum() >= len(split.train) // 21
    assert np.isin(split.train, split.database).all()


def test_coco() -> None:
    labels = multi(123_287, 80, 0.03)
    split = draw("coco", None, labels)
    check(split, labels)
    assert sizes(split) == (5_000, 10_000, int(labels.any(axis=1).sum()) - 5_000)


def test_other_datasets() -> None:
    split = draw("folder:pets", None, classes(200, 4))
    assert (split.name, sizes(split)) == ("random", (20, 50, 180))
    np.testing.assert_array_equal(classes(200, 4)[split.query].sum(axis=0), 5)
    split = draw("list:nus", "random", multi(100_000, 6, 0.5), queries=7)
    assert sizes(split)[:2] == (7, 5_000)
    assert sizes(draw("mine", None, classes(3, 1))) == (1, 1, 2)


def test_left_out_images_move_hardly_any_other() -> None:
    labels, names = multi(5_000, 24, 0.3), [f"im{i}.jpg" for i in range(5_000)]
    whole = draw("list:x", "random", labels, names, queries=500, train=1_000)
    bad = np.random.default_rng(1).choice(5_000, 25, replace=False)
    kept = np.setdiff1d(np.arange(5_000), bad)
    part = draw("list:x", "random", labels[kept], [names[i] for i in kept], queries=500, train=1_000)
    assert np.isin(kept[part.query], whole.query).mean() > 0.98
    assert np.isin(kept[part.train], whole.train).mean() > 0.95


def test_another_seed_draws_other_images() -> None:
    labels = classes(60_000)
    a, b = draw("cifar10", None, labels), draw("cifar10", None, labels, seed=1)
    assert np.isin(a.query, b.query).mean() < 0.1
    assert b.provenance["split_seed"] == 1


def test_errors() -> None:
    labels = classes(100)
    for options, reason in (
        ({"split": "mch"}, "cifar10 has no split 'mch'; it has cifar10-1, cifar10, cifar10-2"),
        ({"queries": 0}, "queries must be at least 1, got 0"),
        ({"train": -1}, "train must be at least 1, got -1"),
        ({"queries": 101}, "101 query images requested, but there are 100"),
        ({"queries": 50, "train": 51}, "51 training images requested, but there are 50"),
        (
            {"queries": 100},
            r"100 query images requested, but only 90 can be drawn with at least 1 of every label left over",
        ),
        ({"split": "cifar10", "queries": 50, "train": 50}, "only 40 can be drawn with at least 1 of every label"),
        ({"split": "cifar10-2"}, "0 query images requested, but there are 0"),
    ):
        with pytest.raises(DataError, match=reason):
            draw("cifar10", **{"split": None, **options}, labels=labels)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="needs 38 labels and found 24"):
        splits.make(
            "mirflickr25k",
            "drlih",
            labels=multi(50, 24),
            label_names=mirflickr25k.LABELS[:24],
            names=[str(i) for i in range(50)],
        )
    with pytest.raises(DataError, match="0 query images requested, but there are 0 in folders or lists for test"):
        draw("folder:x", "given", labels)
    with pytest.raises(DataError, match="0 training images requested, but there are 0 in folders or lists for train"):
        draw("folder:x", None, classes(9, 2), [f"{'query' if i < 3 else 'gallery'}/{i}.jpg" for i in range(9)])
    with pytest.raises(
        DataError, match=r"9 training images requested, which leaves none of class \d: ask for at least 10"
    ):
        draw("folder:x", None, labels, train=9)
    with pytest.raises(DataError, match=r"only 0 can be drawn.*0 has 1, 1 has 1, 2 has 1, .*into one class"):
        draw("folder:x", None, classes(5, 5))
    with pytest.raises(DataError, match="1 query images requested, but there are 0"):
        draw("folder:x", "random", np.zeros((9, 2), np.uint8))


@st.composite
def problems(draw_: st.DrawFn) -> tuple[Labels, list[str], int, int, int]:
    images = draw_(st.integers(6, 60))
    columns = draw_(st.integers(1, 6))
    labels = multi(images, columns, draw_(st.floats(0, 1)), draw_(st.integers(0, 99)))
    names = [f"photo {i * 7 % 101}" for i in range(images)]
    return labels, names, draw_(st.integers(1, 30)), draw_(st.integers(1, 30)), draw_(st.integers(0, 2**40))


@settings(max_examples=150, deadline=None)
@given(problems(), st.sampled_from(["folder:x", "nuswide21", "cifar10", "coco"]))
def test_any_split_is_valid_or_rejected(problem: tuple[Labels, list[str], int, int, int], dataset: str) -> None:
    labels, names, queries, train, seed = problem
    if dataset in ("nuswide21", "coco"):
        labels = np.pad(labels, ((0, 0), (0, {"nuswide21": 21, "coco": 80}[dataset] - labels.shape[1])))
    usable = int(labels.any(axis=1).sum())
    options = {"queries": queries, "train": train, "seed": seed}
    if usable <= queries or queries + train > usable:
        with pytest.raises(DataError):
            draw(dataset, None, labels, names, **options)
        return
    several = (labels.sum(axis=1) > 1).any()
    kept = labels.any(axis=0).sum() if not several else usable  # so many may have to be left to train and to search
    try:
        split = draw(dataset, None, labels, names, **options)
    except DataError:
        assert queries > usable - kept or train < kept
        return
    check(split, labels)
    assert sizes(split) == (queries, train, usable - queries)
    here = labels.any(axis=0)
    assert labels[split.database].any(axis=0)[here].all()
    if dataset in ("cifar10", "folder:x") and (labels.sum(axis=1) <= 1).all() and train >= here.sum():
        assert labels[split.train].any(axis=0)[here].all()
    # the order of the images does not matter
    order = np.random.default_rng(0).permutation(len(names))
    moved = draw(dataset, None, labels[order], [names[i] for i in order], **options)
    np.testing.assert_array_equal(np.sort(order[moved.query]), split.query)
    np.testing.assert_array_equal(np.sort(order[moved.train]), split.train)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 8), st.integers(3, 9), st.data())
def test_single_labels_are_balanced(columns: int, each: int, data: st.DataObject) -> None:
    labels = classes(columns * each, columns)[np.random.default_rng(each).permutation(columns * each)]
    queries = data.draw(st.integers(1, columns * (each - 1)))
    split = draw("cifar10", None, labels, queries=queries, train=1)
    counts = labels[split.query].sum(axis=0, dtype=np.int64)
    assert counts.sum() == queries
    assert counts.max() - counts.min() <= 1


def dataset(images: int = 60) -> HashingDataset:
    labels = multi(images, 38, 0.2)
    labels[:, 0] = 1
    return HashingDataset(
        name="mirflickr25k",
        features=np.random.default_rng(0).random((images, 4)).astype(np.float32),
        labels=labels,
        query=np.arange(5),
        database=np.arange(5, images),
        train=np.arange(10, 20),
        label_names=mirflickr25k.LABELS,
        provenance={"backbone": "pixels"},
    )


def test_apply_keeps_the_labels_that_count() -> None:
    whole = dataset()
    split = draw("mirflickr25k", "mch", whole.labels, whole.names, queries=7, train=9)
    applied = whole.with_split(split)
    assert applied.label_names == mirflickr25k.LABELS[:24]
    np.testing.assert_array_equal(applied.labels, whole.labels[:, :24])
    for key in ("query", "database", "train"):
        np.testing.assert_array_equal(getattr(applied, key), getattr(split, key))
    assert applied.provenance["backbone"] == "pixels"
    assert applied.provenance["split"] == "mch"
    assert applied.provenance["split_queries"] == 7
    assert "split_counts" not in applied.provenance
    counted = dataclasses.replace(whole, provenance={"split_counts": "of the split before"}).with_split(split)
    assert counted.provenance["split_counts"] == split.described_counts
    with pytest.raises(DataError, match="standardised by its training images"):
        whole.standardized().with_split(split)
