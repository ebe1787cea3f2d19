"""The benchmark of training speeds, run for real on small pictures."""

from __future__ import annotations

import pytest
from rich.console import Console

from benchmarks import backbones


def test_every_kind_is_measured_and_compared_with_plain_training():
    args = backbones.Args(backbones=("efficientnet_lite0:14", "alexnet_conv:3"), size=64, batch_size=2, rounds=1)
    rows = backbones.measure(args)
    kinds = [(row["backbone"], row["depthwise"], row["precision"]) for row in rows]
    assert kinds == [
        *(
            ("efficientnet_lite0:14", depthwise, precision)
            for depthwise in ("frozen", "trained")
            for precision in ("float32", "bfloat16")
        ),
        *(("alexnet_conv:3", "none", precision) for precision in ("float32", "bfloat16")),
    ]
    assert all(row["images_per_second"] > 0 for row in rows)
    console = Console(record=True, width=100)
    console.print(backbones.table(rows))
    lines = [line for line in console.export_text().splitlines() if "float32" in line]
    assert [line.split()[-2] for line in lines if "trained" in line or "alexnet" in line] == ["1.00", "1.00"]


def test_an_unknown_network_is_refused():
    with pytest.raises(ValueError, match="efficientnet_lite9"):
        backbones.measure(backbones.Args(backbones=("efficientnet_lite9:3",)))
