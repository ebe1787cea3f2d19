"""The quickstart writes what it promises."""

from rich.console import Console

from benchmarks import quickstart
from benchmarks.results import Results


def test_quickstart_with_rivals_only(tmp_path):
    console = Console(record=True, width=120)
    quickstart.main(quickstart.Args(out=tmp_path / "q", methods=("lsh", "itq"), bits=12), console)
    names = {path.name for path in (tmp_path / "q").iterdir()}
    assert {"precision_recall.png", "codes.png", "results.png", "results.csv"} <= names
    rows = {row["method"]: float(row["map"]) for row in Results(tmp_path / "q").rows()}
    assert rows["itq"] > rows["lsh"]
    text = console.export_text()
    assert f"{rows['itq']:.3f}" in text
    for advice in ("tensorboard --logdir", "hashgym features --dataset cifar10", "hashgym:BitGroupHashing-v0"):
        assert advice in text
    for name in names - {".results.lock"}:
        assert name in text.replace("\n", "")
