"""The quickstart writes all of its files."""

import dataclasses

import pytest
from PIL import Image
from rich.console import Console

from benchmarks import mch, quickstart
from benchmarks.common import methods
from benchmarks.common.results import Results

AGENT = {"updates": 4, "num_envs": 32, "hidden": 16}


@pytest.fixture(scope="module")
def start(folders, quick, tmp_path_factory):
    """Run a quickstart with few updates; returns its folder and output."""
    args = quickstart.Args(
        out=tmp_path_factory.mktemp("quickstart") / "q",
        methods=("lsh", "itq", "drlih"),
        bits=14,
        scenes=folders[0],
        scene_bits=16,
    )

    def run():
        console = Console(record=True, width=120)
        quickstart.main(args, console)
        return args.out, console.export_text()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mch, "settings", quick)
        patch.setattr(quickstart, "WRITER", dataclasses.replace(quickstart.WRITER, updates=20, num_envs=16))
        patch.setattr(methods, "AGENTS", {name: {**settings, **AGENT} for name, settings in methods.AGENTS.items()})
        yield run


@pytest.fixture(scope="module")
def first(start):
    return start()


def test_one_code_per_image(first):
    out, text = first
    names = {path.name for path in out.iterdir()}
    assert {"precision_recall.png", "codes.png", "results.png", "results.csv", "drlih", "mch"} <= names
    rows = {row["method"]: float(row["map"]) for row in Results(out).rows()}
    assert list(rows) == ["lsh", "itq", "drlih"]
    assert rows["itq"] > rows["lsh"]
    assert all(f"{score:.3f}" in text for score in rows.values())


def test_several_codes_per_image(first):
    out, text = first
    rows = {row["xi"]: row for row in Results(out / "mch", mch.COLUMNS, mch.KEY).rows()}
    assert list(rows) == ["", "0.0", "0.5"]
    assert 1 == float(rows[""]["anhc"]) < float(rows["0.5"]["anhc"]) < float(rows["0.0"]["anhc"])
    for name, views, xi in (("one (dch)", "1", ""), ("several (MCH)", "6", "0.5"), ("all regions", "6", "0.0")):
        line = next(line for line in text.splitlines() if name in line)
        measures = [f"{float(rows[xi][m]):.3f}" for m in ("map", "recall_radius0", "precision_radius0")]
        assert [cell.strip() for cell in line.split("│")[2:-1]] == [views, f"{float(rows[xi]['anhc']):.2f}", *measures]
    line = next(line for line in text.splitlines() if "several (multicode)" in line)
    views, codes, score, *_ = (cell.strip() for cell in line.split("│")[2:-1])
    assert (views, 1 <= float(codes) <= 2, 0 < float(score) < 1) == ("1", True, True)
    assert (out / "mch" / "multicode" / "policy.pt").exists()
    points = Results(out / "mch", mch.CURVES, mch.CURVE_KEY, "curves.csv").rows()
    assert {point["method"] for point in points} == {"single", "mch"}
    assert (out / "mch" / "agent" / "base.npz").exists()


def test_pictures_open_and_files_are_named(first):
    out, text = first
    for path in [*out.glob("*.png"), *out.glob("mch/*.png")]:
        with Image.open(path) as picture:
            picture.verify()
    assert {path.name for path in (out / "mch").glob("*.png")} == {"f1_buckets.png", "searches.png"}
    text = text.replace("\n", "")
    assert all(str(path) in text for path in [*out.glob("[!.]*"), *out.glob("mch/[!.]*")])


def test_the_next_steps_are_printed(first):
    _, text = first
    for advice in (
        "tensorboard --logdir",
        "hashgym:BitGroupHashing-v0",
        "hashgym:RegionKeep-v0",
        "hashgym features --dataset cifar10",
        "--regions 5 --train-regions 4",
        "python -m benchmarks.drlih",
        "python -m benchmarks.mch",
    ):
        assert advice in text


def test_another_quickstart_keeps_earlier_agents_and_rows_once(first, start):
    out, _ = first
    before = Results(out / "mch", mch.COLUMNS, mch.KEY).rows()
    start()
    for folder in ("drlih", "drlih-2", "mch/agent", "mch/agent-2"):
        assert (out / folder / "policy.pt").exists()
        assert list((out / folder).glob("events.out.tfevents.*"))
    assert len(Results(out).rows()) == 3
    after = Results(out / "mch", mch.COLUMNS, mch.KEY).rows()
    assert [row["map"] for row in after] == [row["map"] for row in before]  # trained again, and the same


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scenes": "digits"}, "'digits' has no regions"),
        ({"base": "itq"}, "itq has no (loss of pairs|pairwise loss)"),
        ({"base": "nosuch"}, "nosuch"),
        ({"methods": ("nosuch",)}, "no method 'nosuch'"),
    ],
)
def test_wrong_arguments_stop_before_anything_runs(folders, tmp_path, change, message):
    args = {"out": tmp_path, "methods": ("lsh",), "bits": 12, "scenes": folders[0], **change}
    with pytest.raises(ValueError, match=message):
        quickstart.main(quickstart.Args(**args), Console(quiet=True))
    assert not list(tmp_path.iterdir())
