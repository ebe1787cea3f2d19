"""Speed of training the last blocks of a network, as ratios within one run: ``python -m benchmarks.backbones``.

Each network is cut, and the blocks after the cut make passes forward and backward over random activations: in float32
and in bfloat16, with the filters of depthwise convolutions frozen, and trained as well. Because of these numbers
``hashgym.features.trainable`` freezes them, and trains in bfloat16 where the device computes in it.
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from benchmarks.common.arguments import MeasureArgs, check_not_empty
from benchmarks.common.machine import seconds
from benchmarks.common.results import publish
from hashgym import features
from hashgym.console import Table
from hashgym.features.trainable import TrainableBackbone
from hashgym.features.trainable import parse as parse_spec
from hashgym.terminal import command_line, parse
from hashgym.threads import use_threads

KEY = ("backbone", "size", "depthwise", "precision")


@dataclass(frozen=True, kw_only=True)
class Args(MeasureArgs):
    """Images per second of training the blocks of a network after a cut, on one thread."""

    backbones: tuple[str, ...] = ("efficientnet_lite2:16", "alexnet_conv:2")
    """networks and cuts, NAME:CUT"""
    size: int = 160
    """side of the pictures, in pixels"""
    batch_size: int = 64
    """images of a pass"""
    rounds: int = 5
    """passes of each kind, in turn; the median is shown"""


def measure(args: Args) -> list[dict[str, Any]]:
    """Return a row for each network, with depthwise filters frozen or trained, and each precision.

    Raises:
        ValueError: for a network or a cut that does not exist.
    """
    check_not_empty(args, "backbones", "size", "batch_size", "rounds")
    rows = []
    for spec in args.backbones:
        name, cut, _ = parse_spec(spec)
        body = features.load_network(name, pretrained=False).network.until(cut).eval()
        with torch.inference_mode():
            shape = tuple(body(torch.zeros(1, 3, args.size, args.size)).shape[1:])
        images = torch.rand(args.batch_size, *shape).contiguous(memory_format=torch.channels_last)
        backbone = TrainableBackbone(spec, shape, pretrained=False)
        if all(parameter.requires_grad for parameter in backbone.parameters()):
            backbones = {"none": backbone}
        else:
            backbones = {"frozen": backbone, "trained": copy.deepcopy(backbone).requires_grad_(True)}
        kinds = list(itertools.product(backbones, (torch.float32, torch.bfloat16)))
        times: dict[Any, list[float]] = {kind: [] for kind in kinds}
        for _ in range(1 + args.rounds):  # the first pass also compiles
            for depthwise, precision in kinds:
                times[depthwise, precision].append(seconds(_learn, backbones[depthwise], images, precision))
        for depthwise, precision in kinds:
            taken = median(times[depthwise, precision][1:])
            key = {"backbone": spec, "size": args.size, "depthwise": depthwise}
            speed = {"images_per_second": args.batch_size / taken}
            rows.append({**key, "precision": str(precision).removeprefix("torch."), **speed})
    return rows


def _learn(backbone: TrainableBackbone, images: torch.Tensor, precision: torch.dtype) -> None:
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        loss = backbone.network(images).float().square().mean()
    loss.backward()


def table(rows: list[dict[str, Any]]) -> Table:
    """Return a table of speeds, with ratios to training in float32, all filters where some can be frozen."""
    shown = Table("network after the cut", "depthwise filters", "precision", "images/s", "ratio", title="One thread")
    plain = {row["backbone"]: row["images_per_second"] for row in rows if row["precision"] == "float32"}  # the last
    for row in rows:
        speed, ratio = row["images_per_second"], row["images_per_second"] / plain[row["backbone"]]
        shown.add_row(row["backbone"], row["depthwise"], row["precision"], f"{speed:.0f}", f"{ratio:.2f}")
    return shown


def main(args: Args) -> list[dict[str, Any]]:
    """Measure, print the table, and add the rows to backbones.csv."""
    with use_threads(1):
        rows = measure(args)
    config = {"batch_size": args.batch_size, "rounds": args.rounds, "cpu": torch.backends.cpu.get_cpu_capability()}
    publish(rows, table(rows), args.out, "backbones.csv", KEY, config)
    return rows


if __name__ == "__main__":
    with command_line():
        main(parse(Args, "benchmarks.backbones"))
