"""Speed of ``hashgym encode`` and ``hashgym index`` against the backbone alone, which does nearly all the arithmetic.

    python -m benchmarks.encoding                          # generated pictures
    python -m benchmarks.encoding --pictures DIR --out DIR

``hashgym encode`` reads, decodes, resizes and encodes files and records them as finished; ``hashgym index`` also fits
the encoder to them and indexes their codes. The backbone alone gets the same pictures, decoded and resized, from
memory. All are measured in turn, so that other load affects all.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.common.arguments import MeasureArgs
from benchmarks.common.machine import load_average, package_versions, revision, seconds
from benchmarks.common.results import Results, describe
from hashgym import gallery, hashers
from hashgym.console import Console
from hashgym.data.pictures import open_image
from hashgym.encoders import load_encoder
from hashgym.encoders.heads import hasher_head
from hashgym.encoders.write import add_backbone, write
from hashgym.features import Backbone, make
from hashgym.gallery.encode import EncodingSettings
from hashgym.terminal import command_line, parse

KEY = ("backbone", "size", "images", "round")
COLUMNS, INDEX_COLUMNS = (
    (*KEY, "backbone_images_per_second", f"{what}_images_per_second", "ratio", "load", "versions", "revision", "config")
    for what in ("encode", "index")
)


@dataclass(frozen=True, kw_only=True)
class Args(MeasureArgs):
    """Images per second of `hashgym encode`, of `hashgym index` with photos, and of the backbone alone."""

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


def make_encoder(backbone: Backbone, bits: int, folder: Path) -> Path:
    """Write an encoder of random projections, whose speed is that of any other, and return its path."""
    rows = np.random.default_rng(0).standard_normal((bits, backbone.dim), np.float32)
    head = hasher_head(hashers.make("lsh", bits=bits).fit(rows))
    write(folder / "head.onnx", head, dim=backbone.dim, bits=bits, source={}, backbone=backbone.provenance)
    add_backbone(folder / "head.onnx", folder / "encoder.onnx", backbone)
    return folder / "encoder.onnx"


def main(args: Args) -> list[dict[str, Any]]:
    """Measure, print rates and ratios, and add the rows to encoding.csv and indexing.csv; return the former."""
    console = Console()
    files_of_rows = {"encode": (COLUMNS, "encoding.csv"), "index": (INDEX_COLUMNS, "indexing.csv")}
    results = {
        what: Results(args.out, columns, KEY, name) for what, (columns, name) in files_of_rows.items() if args.out
    }
    for each in results.values():
        each.rows()  # raises for a file of another benchmark before work starts
    backbone = make(args.backbone, size=args.size, device="cpu")
    with TemporaryDirectory() as place:
        folder = Path(place)
        pictures = args.pictures or _generated(folder / "pictures", args.images)
        encoder = make_encoder(backbone, args.bits, folder)
        root, names = gallery.find_images([pictures])
        files = [root / name for name in names[:: max(1, len(names) // args.images)][: args.images]]
        prepare = load_encoder(encoder).prepare
        prepared = np.concatenate([prepare(open_image(file)) for file in files])

        def alone() -> None:
            for start in range(0, len(prepared), 64):
                backbone(prepared[start : start + 64])

        def encode() -> None:
            shutil.rmtree(folder / "codes", ignore_errors=True)
            gallery.encode_images(encoder, files, folder / "codes", workers=args.workers, progress=False)

        def index() -> None:
            shutil.rmtree(folder / "index", ignore_errors=True)
            settings = EncodingSettings(workers=args.workers, progress=False)
            fitted: dict[str, Any] = {"bits": args.bits, "backbone": args.backbone, "size": args.size}
            gallery.index_photos(files, folder / "index", **fitted, settings=settings)

        rows: dict[str, list[dict[str, Any]]] = {"encode": [], "index": []}
        for number in range(-1, args.rounds):  # the first is a warm-up
            rates = {what: len(files) / seconds(do) for what, do in (("encode", encode), ("index", index))}
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
    console.print(f"{' and '.join(ratios)} of the backbone's own speed, the medians")
    for what, each in results.items():
        each.append(*rows[what])
    return rows["encode"]


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
