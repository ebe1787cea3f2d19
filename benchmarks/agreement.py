"""Agreement of exported encoders with their hasher or agent, bit by bit, for every method.

    python -m benchmarks.agreement --out DIR                                    # the embedded datasets
    python -m benchmarks.agreement --features features/cifar10 --regions features/mirflickr --out DIR

Each method is trained briefly, exported, and run by ONNX Runtime on features of training images, queries and others. A
bit may differ where its margin is so near 0 that the order of a sum decides: such ties are counted.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

import hashgym
from agents import drlih, mch, sb3
from benchmarks.common.arguments import MeasureArgs
from benchmarks.common.machine import package_versions, revision
from benchmarks.common.results import Results, describe
from hashgym import hashers
from hashgym.codes import CodeSets
from hashgym.console import Console
from hashgym.data import HashingDataset
from hashgym.encoders.heads import hasher_head
from hashgym.encoders.write import compare, write
from hashgym.terminal import command_line, parse

KEY = ("features", "method", "bits")
COUNTS = ("images", "compared", "different", "ties", "different_ties", "different_keeps")
COLUMNS = (*KEY, *COUNTS, "versions", "revision", "config")
CODES = (
    *(f"hasher {name}" for name in hashers.available()),
    *(f"drlih {variant}" for variant in drlih.PRESETS),
    *(f"sb3 {algo}" for algo in sb3.PRESETS["BitGroupHashing-v0"]),
)
REGIONS = ("mch apart", "mch in-turn", *(f"mch-sb3 {algo}" for algo in sb3.PRESETS["RegionKeep-v0"]))
METHODS = CODES + REGIONS
UPDATES = 20  # of hashers and of mch: enough to move far from the initial weights


@dataclass(frozen=True, kw_only=True)
class Args(MeasureArgs):
    """Compare the bits of exported encoders with those of their hashers and agents."""

    features: str = "digits"
    """a dataset, for hashers and agents that emit codes"""
    regions: str = "digit-scenes"
    """a dataset with regions, for agents that keep them"""
    images: int = 10_000
    """number of images of each dataset, evenly spread; all where there are fewer"""
    bits: int = 48
    """code length"""
    methods: tuple[str, ...] = ()
    """methods by name; all by default. Those in OUT/agreement.csv are not compared again"""
    seed: int = 0
    """seed of all training"""


def main(args: Args) -> list[dict[str, Any]]:
    """Compare, print a line for each method, and add the rows to agreement.csv.

    Raises:
        ValueError: for an unknown method, or one that was compared with another seed or number of images.
    """
    console, rows = Console(), []
    results = Results(args.out, COLUMNS, KEY, "agreement.csv") if args.out else None
    if unknown := set(args.methods) - set(METHODS):
        raise ValueError(f"there is no {', '.join(sorted(unknown))} to compare: choose from {', '.join(METHODS)}")
    config = describe({"images": args.images, "seed": args.seed, "updates": UPDATES})
    for method in args.methods or METHODS:
        plain, dataset = _data(args.regions if method in REGIONS else args.features)
        names = {"features": plain.name, "method": method, "bits": args.bits}
        if results and results.done({**names, "config": config}):
            continue
        chosen = np.linspace(0, len(plain.features) - 1, min(args.images, len(plain.features))).astype(np.int64)
        inputs = plain.features[chosen]
        if method in REGIONS and plain.regions is not None:
            inputs = np.concatenate([inputs[:, None], plain.regions[chosen]], axis=1)
        with TemporaryDirectory() as folder:
            found = compare(*_train_and_export(method, args, dataset, chosen, Path(folder)), inputs)
        console.print(
            f"{plain.name} {method}: {found.different:,} of {found.bits:,} bits differ, {found.different_ties} of them "
            f"ties ({found.ties} ties in all); {found.different_keeps:,} different keep decisions"
        )
        row: dict[str, Any] = {**names, "compared": found.bits}
        row |= {name: getattr(found, name) for name in COUNTS if name != "compared"}
        rows.append(row | {"versions": package_versions(), "revision": revision(), "config": config})
        if results:
            results.append(rows[-1])
    return rows


@lru_cache(maxsize=1)  # methods on the same data follow each other
def _data(name: str) -> tuple[HashingDataset, HashingDataset]:
    """Return a dataset as extracted, and standardised."""
    plain = hashgym.data.load(name)
    return plain, plain.standardized()


def _train_and_export(
    method: str, args: Args, dataset: HashingDataset, rows: NDArray[np.int64], folder: Path
) -> tuple[Path, NDArray[np.bool_] | CodeSets]:
    """Train and export a method; return the encoder's file and the trained model's codes, which it must reproduce."""
    kind, name = method.split()
    features, run, file = dataset.features[rows], folder / "run", folder / "run" / "policy.onnx"
    code: dict[str, Any] = {"bits": args.bits, "seed": args.seed}
    if kind == "hasher":
        hasher = _fitted(name, args, dataset)
        write(
            folder / "hasher.onnx",
            hasher_head(hasher),
            dim=dataset.dim,
            image_shape=dataset.image_shape,
            bits=args.bits,
            source={},
            center=dataset.center,
            scale=dataset.scale,
        )
        return folder / "hasher.onnx", hasher.encode(features)
    if kind == "drlih":
        settings = dataclasses.replace(drlih.PRESETS[name], **code, updates=3, num_envs=64)
        policy = drlih.train(dataset, settings, out=run, progress=False)
        return file, hashgym.encode(policy, features, bits=args.bits, group_bits=settings.group_bits)
    base = _fitted("dch", args, dataset) if kind.startswith("mch") else None
    if kind == "mch" and base is not None:
        offered = 1 if name == "apart" else 3
        mch_args = mch.Args(seed=args.seed, updates=UPDATES, regions_per_episode=offered, num_envs=64)
        keep_policy = mch.train(dataset, base, mch_args, out=run, progress=False)
        return file, mch.encode(keep_policy, base, dataset, rows)
    task = sb3.Args(algo=name, env="RegionKeep-v0" if base else "BitGroupHashing-v0", **code, num_envs=64, steps=512)
    brief: dict[str, int | float] = {"gradient_steps": 2, "learning_starts": 128}
    brief = {key: value for key, value in brief.items() if key in task.preset.settings}
    task = dataclasses.replace(task, evaluations=1, checkpoints=1, settings=brief)
    model = sb3.train(dataset, task, base=base, out=run, progress=False)
    return file, sb3.encode(model, task, dataset, rows, base)


def _fitted(name: str, args: Args, dataset: HashingDataset) -> hashers.Hasher:
    own: dict[str, Any] = {"updates": UPDATES} if "updates" in hashers.make(name).parameters() else {}
    hasher = hashers.make(name, bits=args.bits, seed=args.seed, **own)
    return hasher.fit(dataset.features[dataset.train], dataset.labels[dataset.train])


if __name__ == "__main__":
    with command_line():
        main(parse(Args, "benchmarks.agreement"))
