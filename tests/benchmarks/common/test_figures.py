"""The figures are drawn, with the right contents."""

import dataclasses

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

import hashgym.data
from benchmarks.common import figures
from hashgym.codes import CodeSets
from hashgym.data import HashingDataset
from hashgym.data.readers import digits


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


LINES = {
    "mAP": {
        ("dch", "single"): (np.array([16, 32]), np.array([0.5, 0.6])),
        ("dch", "mch"): (np.array([16, 32]), np.array([0.6, 0.7])),
        ("ksh", "mch"): (np.array([16, 64]), np.array([0.3, 0.4])),
    },
    "recall": {("ksh", "single"): (np.array([32]), np.array([0.1]))},
}


@pytest.fixture
def drawn(monkeypatch):
    """Every figure that is written, for inspection."""
    figures_, write = [], figures.write
    monkeypatch.setattr(figures, "write", lambda figure, path: (figures_.append(figure), write(figure, path)))
    return figures_


@pytest.mark.parametrize("draw", [figures.by_code_length, figures.f1_buckets])
def test_lines_by_panel_base_and_method(draw, drawn, tmp_path):
    draw(LINES, tmp_path / "lines.png", "a title")
    (figure,) = drawn
    assert figure.get_suptitle() == "a title"
    assert [axes.get_title() for axes in figure.axes] == list(LINES)
    for axes, lines in zip(figure.axes, LINES.values(), strict=True):
        with_points = [line for line in axes.lines if len(line.get_xdata())]
        for line, ((base, method), (x, y)) in zip(with_points, lines.items(), strict=True):
            np.testing.assert_array_equal(line.get_xdata(), x)
            np.testing.assert_array_equal(line.get_ydata(), y)
            assert line.get_linestyle() == ("--" if method == "single" else "-")
            assert line.get_color() == figures.METHODS[base]
        if draw is figures.by_code_length:
            assert axes.get_xticks().tolist() == sorted({int(b) for x, _ in lines.values() for b in x})
        else:
            assert axes.get_xscale() == "log"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["dch", "ksh"]
    picture = pixels(tmp_path / "lines.png")
    assert has(picture, figures.METHODS["dch"])
    assert has(picture, figures.METHODS["ksh"])


@pytest.mark.parametrize(("count", "columns", "lines"), [(1, 1, 1), (4, 4, 1), (5, 3, 2), (6, 3, 2), (7, 3, 3)])
def test_a_grid_has_a_pane_for_each_panel(count, columns, lines):
    figure, panes = figures.grid(count)
    assert len(panes) == count
    assert panes[0].get_gridspec().get_geometry() == (lines, columns)
    assert [axes.axison for axes in figure.axes] == [True] * count + [False] * (columns * lines - count)


def test_colours():
    assert len(set(figures.METHODS.values())) == len(figures.METHODS)
    assert [figures.color(name, ["drlih", "one", "two"]) for name in ("drlih", "one", "two", "three")] == [
        *("#000000", *figures.COLORS[1:3], figures.COLORS[0])
    ]


def test_examples(small, drawn, tmp_path):
    query, other = (int(q) for q in small.query[:2])
    same = small.database[small.similar(small.query[:1], small.database)][0]
    not_same = small.database[~small.similar(small.query[:1], small.database)][0]
    answers = {
        "drlih": {query: [(same, 0), (not_same, 1)], other: [(same, 3)]},
        "itq": {query: [(not_same, 2)]},
    }
    figures.examples(small, answers, tmp_path / "e.png", "a title")
    grid = np.array(drawn[0].axes).reshape(3, 3)
    assert [row[0].get_ylabel() for row in grid] == ["drlih", "itq", "drlih"]  # both for the first query, then the next
    for row, q in zip(grid, (query, query, other), strict=True):
        np.testing.assert_array_equal(row[0].images[0].get_array(), small.thumbnails[q])
    assert [axes.get_xlabel() for axes in grid[0][1:]] == ["distance 0", "distance 1"]
    frames = [to_hex(axes.spines["left"].get_edgecolor()) for axes in grid[0][1:]]
    assert frames == [figures.RIGHT, figures.WRONG]
    assert [len(axes.images) for axes in grid[1]] == [1, 1, 0]
    with pytest.raises(ValueError, match="no thumbnails"):
        figures.examples(dataclasses.replace(small, thumbnails=None), answers, tmp_path / "no.png")


@pytest.fixture(scope="module")
def searched(folders):
    """Scenes with 60 queries, and 8-bit codes of 400 database images and their 5 regions drawn at random."""
    dataset, rng = hashgym.data.load(folders[0]), np.random.default_rng(0)
    query, bits = rng.integers(0, 2, (60, 8)).astype(bool), rng.integers(0, 2, (400, 6, 8)).astype(bool)
    kept = rng.random((400, 6)) < 0.4
    kept[:, 0] = True
    return dataset, query, bits, CodeSets.of(bits, kept)


def naive_search(dataset, query, bits, kept):
    """For each query to draw, best first: images, distances with one code and with several, which code matched."""
    entries = []
    for q in range(len(query)):
        results = []
        for j, image in enumerate(dataset.database):
            far = [int((query[q] != bits[j, r]).sum()) if kept[j, r] else 99 for r in range(6)]
            results.append((min(far), min(far) - far[0], j, image, far[0], far.index(min(far))))
        results = sorted(results)[:9]
        entries.append((sum(r[1] for r in results), q, results))
    chosen, images, labels = [], set(), set()
    for _, q, results in sorted(entries):
        label = tuple(dataset.labels[dataset.query[q]])
        if not images & {r[3] for r in results} and label not in labels:
            chosen.append((q, results))
            images |= {r[3] for r in results}
            labels.add(label)
    return chosen


@pytest.mark.parametrize("boxes", [True, False])
def test_several_codes(searched, boxes, drawn, tmp_path):
    dataset, query, bits, sets = searched
    if not boxes:
        dataset = dataclasses.replace(dataset, boxes=None)
    figures.several_codes(dataset, query, sets, tmp_path / "s.png", queries=4, title="a title")
    (figure,) = drawn
    assert figure.get_suptitle().startswith("a title\n")
    assert ("blue" in figure.get_suptitle()) == boxes == has(pixels(tmp_path / "s.png"), figures.REGION)
    grid = np.array(figure.axes).reshape(-1, 10)
    expected = naive_search(dataset, query, bits, sets.kept)
    assert len(grid) == min(4, len(expected)) > 1
    framed = 0
    for row, (q, results) in zip(grid, expected, strict=False):
        np.testing.assert_array_equal(row[0].images[0].get_array(), dataset.thumbnails[dataset.query[q]])
        names = [str(d) for d in np.flatnonzero(dataset.labels[dataset.query[q]])]
        assert row[0].get_xlabel().split("\n") == ["query:", *names[:2]]
        for axes, (several, _, _, image, one, which) in zip(row[1:], results, strict=True):
            np.testing.assert_array_equal(axes.images[0].get_array(), dataset.thumbnails[image])
            assert axes.get_xlabel() == f"one code: {one}\nseveral: {several}"
            right = (dataset.labels[image] & dataset.labels[dataset.query[q]]).any()
            color = figures.RIGHT if right else figures.WRONG
            assert to_hex(axes.spines["left"].get_edgecolor()) == color
            assert len(axes.patches) == (boxes and which > 0)
            if axes.patches:
                (frame,), side = axes.patches, len(dataset.thumbnails[image])
                left, top, right_edge, bottom = np.clip(dataset.boxes[image, which - 1], 0.02, 0.98) * side - 0.5
                corners = [frame.get_x(), frame.get_y(), frame.get_width(), frame.get_height()]
                assert corners == pytest.approx([left, top, right_edge - left, bottom - top])
                framed += 1
    assert (framed > 0) == boxes


def test_several_codes_of_a_small_database_and_without_pictures(searched, drawn, tmp_path):
    dataset, query, _, sets = searched
    few = dataclasses.replace(dataset, database=dataset.database[:3])
    figures.several_codes(few, query, sets[:3], tmp_path / "few.png", shown=5)
    shown = [axes for axes in drawn[0].axes if axes.images]
    assert len(shown) == 1 + 3  # one query: the next would find the same images
    with pytest.raises(ValueError, match="no thumbnails"):
        figures.several_codes(dataclasses.replace(dataset, thumbnails=None), query, sets, tmp_path / "no.png")
    assert [path.name for path in tmp_path.iterdir()] == ["few.png"]
