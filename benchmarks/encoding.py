"""Speed of ``hashgym encode`` and ``hashgym index`` against the backbone alone, which does nearly all the arithmetic.

    python -m benchmarks.encoding                          # generated pictures
    python -m benchmarks.encoding --pictures DIR --out DIR
    python -m benchmarks.encoding --pictures DIR --what encode multicode regions --out DIR

``hashgym encode`` reads, decodes, resizes and encodes files and records them as finished; ``hashgym index`` also fits
the encoder to them and indexes their codes. ``multicode`` and ``regions`` are ``hashgym encode`` with encoders of
several codes: two from one view of a picture, and those of the whole and of five regions, six views. The backbone alone
gets the same pictures, decoded and resized, from memory, one view of each. All are measured in turn, so that other load
affects all.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from agents import mch, multicode
from benchmarks.common.arguments import MeasureArgs, check_not_empty
from benchmarks.common.machine import load_average, package_versions, revision, seconds
from benchmarks.common.results import Results, describe
from hashgym import gallery, hashers
from hashgym.checks import check_choice
from hashgym.console import Console
from hashgym.data.pictures import open_image, to_rgb
from hashgym.encoders.heads import CodesHead, RegionsHead, hasher_head
from hashgym.encoders.write import add_backbone, write
from hashgym.features import Backbone, make
from hashgym.gallery.encode import EncodingSettings
from hashgym.terminal import command_line, parse

KEY = ("backbone", "size", "images", "round")
FILES = {"encode": "encoding.csv", "index": "indexing.csv", "multicode": "multicode.csv", "regions": "regions.csv"}
"""Where the rows of what is measured are kept."""


def columns(what: str) -> tuple[str, ...]:
    """The columns of a file of :data:`FILES`."""
    rates = ("backbone_images_per_second", f"{what}_images_per_second", "ratio")
    return (*KEY, *rates, "load", "versions", "revision", "config")


@dataclass(frozen=True, kw_only=True)
class Args(MeasureArgs):
    """Images per second of `hashgym encode`, of `hashgym index` with photos, and of the backbone alone."""

    what: tuple[str, ...] = ("encode", "index")
    """what to measure beside the backbone: encode, index, multicode, regions"""
    pictures: Path | None = None
    """a folder of pictures; generated ones of 32 x 32 pixels by default"""
    images: int = 512
    """number of pictures"""
    backbone: str = "efficientnet_lite0"
    """name of the backbone"""
    size: int = 160
    """side in pixels of its input"""
    bits: int = 64
    """code length"""
    rounds: int = 5
    """rounds of all, in turn"""
    workers: int = 2
    """batches in progress at a time"""


def make_encoder(backbone: Backbone, bits: int, what: str, folder: Path) -> Path:
    """Write an encoder of random projections, with policies that were not trained, and return its path.

    Its speed is that of any other. Only multicode and regions give several codes an image.
    """
    rows = np.random.default_rng(0).standard_normal((bits, backbone.dim), np.float32)
    head = hasher_head(hashers.make("lsh", bits=bits).fit(rows))
    several: dict[str, Any] = {}
    if what == "multicode":
        writer = multicode.Policy(backbone.dim, bits, multicode.Args()).eval()
        head, several = CodesHead(head, writer, codes=1, threshold=0.5), {"codes": 1, "threshold": 0.5}
    elif what == "regions":
        head = RegionsHead(head, mch.Policy(backbone.dim, bits, mch.Args()).eval())
        several = {"regions": 5, "sigma": 0.5, "threshold": 0.5}
    path, alone = folder / f"{what}.onnx", folder / f"{what}-head.onnx"
    write(alone, head, dim=backbone.dim, bits=bits, source={}, backbone=backbone.provenance, **several)
    add_backbone(alone, path, backbone)
    return path


def main(args: Args) -> dict[str, list[dict[str, Any]]]:
    """Measure, print rates and ratios, and add the rows to the files of what is measured; return all of them."""
    console = Console()
    check_not_empty(args, "what", "images", "rounds")
    for what in args.what:
        check_choice("what", what, tuple(FILES))
    results = {what: Results(args.out, columns(what), KEY, FILES[what]) for what in args.what if args.out}
    for each in results.values():
        each.rows()  # raises for a file of another benchmark before work starts
    backbone = make(args.backbone, size=args.size, device="cpu")
    with TemporaryDirectory() as place:
        folder = Path(place)
        pictures = args.pictures or _generated(folder / "pictures", args.images)
        encoders = {what: make_encoder(backbone, args.bits, what, folder) for what in args.what if what != "index"}
        root, names = gallery.find_images([pictures])
        files = [root / name for name in names[:: max(1, len(names) // args.images)][: args.images]]
        prepared = np.stack([backbone.preprocess(to_rgb(open_image(file))) for file in files])

        def alone() -> None:
            for start in range(0, len(prepared), 64):
                backbone(prepared[start : start + 64])

        def encode(what: str) -> None:
            made = folder / "made"
            shutil.rmtree(made, ignore_errors=True)
            if what == "index":
                settings = EncodingSettings(workers=args.workers, progress=False)
                fitted: dict[str, Any] = {"bits": args.bits, "backbone": args.backbone, "size": args.size}
                gallery.index_photos(files, made, **fitted, settings=settings)
            else:
                gallery.encode_images(encoders[what], files, made, workers=args.workers, progress=False)

        rows: dict[str, list[dict[str, Any]]] = {what: [] for what in args.what}
        for number in range(-1, args.rounds):  # the first is a warm-up
            rates = {what: len(files) / seconds(encode, what) for what in args.what}
            own = len(files) / seconds(alone)
            if number < 0:
                continue
            shown = (f"{what} {rate:.1f}: {rate / own:.1%}" for what, rate in rates.items())
            console.print(f"backbone {own:.1f} images/s, {', '.join(shown)}")
            row: dict[str, Any] = {"backbone": args.backbone, "size": args.size, "images": len(files), "round": number}
            row |= {"backbone_images_per_second": own, "load": round(load_average(), 2)}
            config = describe({**asdict(args), "pictures": str(args.pictures or "generated"), "out": None})
            row |= {"versions": package_versions(), "revision": revision(), "config": config}
            for what, rate in rates.items():
                rows[what].append({**row, f"{what}_images_per_second": rate, "ratio": rate / own})
    ratios = (f"{what} at {np.median([row['ratio'] for row in each]):.1%}" for what, each in rows.items())
    console.print(f"{', '.join(ratios)} of the backbone's own speed, the medians")
    for what, each in results.items():
        each.append(*rows[what])
    return rows


def _generated(folder: Path, count: int) -> Path:
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{i}.png")
    return folder


if __name__ == "__main__":
    with command_line():
        main(parse(Args, "benchmarks.encoding"))
