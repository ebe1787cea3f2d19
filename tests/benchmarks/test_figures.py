"""The pictures are drawn, and show what they should."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from benchmarks import figures
from hashgym.data import HashingDataset, digits


@pytest.fixture(scope="module")
def small() -> HashingDataset:
    dataset = digits.load()
    return dataclasses.replace(dataset, query=dataset.query[:40], database=dataset.database[:60])


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def has(picture, color):
    rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((np.abs(picture.astype(int) - rgb).max(-1) < 12).any())


def test_precision_recall(tmp_path):
    recall = np.linspace(0, 1, 9)
    figures.precision_recall({"a": (1 - recall / 2, recall), "b": (recall, recall)}, tmp_path / "new" / "pr.png", "t")
    picture = pixels(tmp_path / "new" / "pr.png")
    assert has(picture, figures.COLORS[0])
    assert has(picture, figures.COLORS[1])
    assert not has(picture, figures.COLORS[2])
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["pr.png"]


@pytest.mark.parametrize("right", [True, False])
def test_right_results_are_framed_green_and_wrong_ones_red(small, tmp_path, right):
    labels = small.labels.astype(bool)
    database = labels[small.database]
    query = labels[small.query] if right else np.roll(labels[small.query], 1, axis=1)
    figures.rankings(small, query, database, tmp_path / "r.png", shown=3)
    picture = pixels(tmp_path / "r.png")
    assert has(picture, figures.RIGHT) == right
    assert has(picture, figures.WRONG) != right


def test_rankings_need_pictures_and_take_a_small_database(small, tmp_path):
    code = small.labels.astype(bool)
    few = dataclasses.replace(small, database=small.database[:2])
    figures.rankings(few, code[few.query], code[few.database], tmp_path / "few.png", shown=4)
    with pytest.raises(ValueError, match="no thumbnails"):
        figures.rankings(dataclasses.replace(small, thumbnails=None), code, code, tmp_path / "no.png")


def test_code_strips_show_ones_black_and_groups_apart(small, tmp_path):
    labels = small.labels[small.query]
    ones, zeros = np.ones((40, 12), bool), np.zeros((40, 12), bool)

    def dark(name, **kwargs):
        figures.code_strips(**kwargs, labels=labels, label_names=small.label_names, path=tmp_path / name)
        return (pixels(tmp_path / name).max(-1) < 40).mean()

    black, white = dark("1.png", methods={"m": ones}), dark("0.png", methods={"m": zeros})
    assert black > 0.5
    assert white < 0.05
    assert dark("g.png", methods={"m": ones}, groups={"m": 5}) < black - 0.01  # gaps let paper through
