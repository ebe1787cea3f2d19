"""The jobs that are killed."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.reliability.kill import Job

TENSORBOARD = "events.out.tfevents.*"
REGIONS = ("--regions", "5", "--train-regions", "2", "--thumbnail", "6", "--batch-size", "4")
VIEWS = ("--cut", "5", "--views", "3", "--thumbnail", "6", "--batch-size", "4")
TIMES = ("train_seconds", "peak_mb", "encode_seconds")
BACKENDS = ("brute-force", "faiss", "faiss-hash", "buckets", "milvus")
REMOVED = ("red/3.png", "blue/0.png", "green/19.png")


def make_inputs(folder: Path, large: bool = False) -> None:
    """Inputs of the jobs: pictures, features of them, a hasher, an encoder, codes and indices."""
    from hashgym import gallery, hashers
    from hashgym.data import load, read_images
    from hashgym.encoders import build
    from hashgym.features import extract, make

    folder.mkdir(parents=True)
    make_pictures(folder / "pictures", 20)
    if large:
        make_pictures(folder / "photos", 200)
    options: dict[str, Any] = {"regions": 5, "train_regions": 2, "thumbnail": 0, "progress": False}
    collection = read_images(f"folder:{folder / 'pictures'}")
    cache = extract(collection, make("pixels", size=4), folder / "features", **options)
    data = load(cache).standardized()
    hashers.make("ksh", bits=12).fit(data.features[data.train], data.labels[data.train]).save(folder / "base.npz")
    encoder = folder / "encoder.onnx"
    build.build_encoder("itq", encoder, features=cache, bits=12)
    gallery.encode_images(encoder, [folder / "pictures" / "red"], folder / "red", progress=False)
    gallery.encode_images(encoder, [folder / "pictures"], folder / "all", progress=False)
    changing = folder / "changing"
    make_pictures(changing, 10)
    gallery.encode_images(encoder, [changing], folder / "before", progress=False)
    for number, name in enumerate(("red/3.png", "green/4.png", "green/5.png", "blue/new.png")):  # changed, and new
        shutil.copyfile(folder / "pictures" / "red" / f"{number}.png", changing / name)
    (changing / "blue" / "0.png").unlink()
    for backend in BACKENDS if large else BACKENDS[:1]:
        gallery.build([folder / "all"], folder / f"index-{backend}", backend, progress=False)
        gallery.build([folder / "red"], folder / f"red-{backend}", backend, progress=False)


def make_pictures(folder: Path, count: int) -> None:
    """``count`` pictures of noise around a colour in each of three class folders."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for label, colour in {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}.items():
        (folder / label).mkdir(parents=True)
        for i in range(count):
            height, width = rng.integers(12, 40, 2)
            pixels = np.clip(colour + rng.normal(0, 40, (height, width, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{i}.png")


def jobs(large: bool = False) -> dict[str, Job]:
    """Every job by name: those that are quick, or all."""
    found = {
        "features-pixels": _features("pixels", "pictures", "4", *REGIONS),
        "training-drlih": _training(
            *(
                "agents.drlih",
                "--dataset",
                "../../inputs/features",
                "--bits",
                "16",
                "--hidden",
                "32",
                "--rnn-hidden",
                "8",
            ),
            *("--num-envs", "8", "--updates", "40", "--checkpoint-every", "5", "--evaluate-every", "10"),
        ),
        "encode": _encode("pictures", "4"),
        "encode-update": Job(
            *("hashgym", ("encode", "../../inputs/encoder.onnx", "../../inputs/changing", "--out", "out")),
            readers={"out": _codes},
            refused={"out.partial": _codes},
            prepare=partial(_copy, "before"),
        ),
        "index-add-brute-force": _index_add("brute-force"),
    }
    if large:
        found |= {
            "features-efficientnet": _features("efficientnet_lite0", "photos", "64", *REGIONS),
            "features-views": _features("efficientnet_lite0", "pictures", "32", *VIEWS),
            "training-mch": _training(
                *("agents.mch", "hashgym", "--dataset", "../../inputs/features", "--base", "../../inputs/base.npz"),
                *("--num-envs", "8", "--updates", "20", "--checkpoint-every", "4", "--evaluate-every", "5"),
            ),
            "training-sb3-ppo": _training(
                *("agents.sb3", "--algo", "ppo", "--dataset", "digits", "--bits", "16", "--group-bits", "8"),
                *("--num-envs", "32", "--steps", "1024", "--evaluations", "4", "--checkpoints", "4"),
            ),
            "training-sb3-dqn": _training(
                *("agents.sb3", "--algo", "dqn", "--dataset", "digits", "--bits", "16", "--group-bits", "4"),
                *("--steps", "6000", "--evaluations", "4", "--checkpoints", "6"),
            ),
            "training-sb3-regions": _training(
                *("agents.sb3", "--env", "RegionKeep-v0", "--algo", "ppo", "--dataset", "../../inputs/features"),
                *("--base", "../../inputs/base.npz", "--num-envs", "16", "--steps", "2048", "--checkpoints", "6"),
            ),
            "export": _export(),
            "words": _words(),
            "encode-photos": _encode("photos", "16"),
            **{f"index-{name}": _index(name) for name in BACKENDS},
            **{f"index-add-{name}": _index_add(name) for name in BACKENDS[1:]},
            **{f"index-remove-{name}": _index_remove(name) for name in BACKENDS},
            "benchmark-cells": _benchmark("drlih", "--methods", "lsh", "itq", "--bits", "8", "16", "--seeds", "1"),
        }
    return found


def _features(backbone: str, pictures: str, size: str, *options: str) -> Job:
    words = ("features", "--dataset", f"folder:../../inputs/{pictures}", "--backbone", backbone, "--size", size)
    return Job(
        "hashgym",
        (*words, "--out", "out", *options),
        readers={"out": _cache},
        refused={"out.partial": _cache, ".out*": _cache},
        finished=lambda folder: (folder / "out").exists(),
        progress=_batches,
        ignored=("out/journal.jsonl", "out/stamps.npy"),  # left by a kill at the very end, and not part of the cache
    )


def _training(module: str, *words: str) -> Job:
    return Job(
        module,
        (*words, "--out", "out"),
        readers={"out/*.pt": _torch, "out/*.npz": _hasher, "out/*.onnx": _encoder},
        again=lambda folder: ["--resume"] if (folder / "out" / "checkpoint.pt").exists() else [],
        progress=_updates,
        ignored=(TENSORBOARD,),
        compared="all files but TensorBoard's, tensor by tensor where bytes differ",
    )


def _export() -> Job:
    words = ("export", "itq", "--bits", "12", "--features", "../../inputs/features", "--out", "out.onnx")
    return Job("hashgym", words, readers={"out.onnx": _encoder}, finished=lambda folder: (folder / "out.onnx").exists())


def _words() -> Job:
    words = ("words", "--dataset", "folder:../../inputs/pictures", "--words", "20", "--size", "32", "--out", "out.npy")
    return Job(
        "hashgym", words, readers={"out.npy": _visual_words}, finished=lambda folder: (folder / "out.npy").exists()
    )


def _encode(pictures: str, batch: str) -> Job:
    places = ("../../inputs/encoder.onnx", f"../../inputs/{pictures}")
    return Job(
        "hashgym",
        ("encode", *places, "--out", "out", "--batch-size", batch),
        readers={"out": _codes},
        refused={"out.partial": _codes, ".out*": _codes},
        progress=_batches,
    )


def _index(backend: str) -> Job:
    words = ("index", "../../inputs/all", "--out", "out", "--backend", backend)
    return Job("hashgym", words, readers={"out/meta.json": _gallery}, refused={"out": _opens}, **_compared(backend))


def _index_add(backend: str) -> Job:
    words = ("index", "../../inputs/all", "--out", "out", "--add")
    before = partial(_copy, f"red-{backend}")
    return Job("hashgym", words, readers={"out": _opens}, prepare=before, **_compared(backend))


def _index_remove(backend: str) -> Job:
    return Job(
        "hashgym",
        ("index", "--out", "out", "--remove", *REMOVED),
        readers={"out": _opens},
        prepare=partial(_copy, f"index-{backend}"),
        **_compared(backend),
    )


def _compared(backend: str) -> dict[str, Any]:
    """Milvus writes no two files alike: there its answers are compared."""
    if backend != "milvus":
        return {}
    said = "all files but Milvus' own and those that name their digests, and all its answers"
    return {"ignored": ("engine/*", "meta.json"), "answers": _answers, "compared": said}


def _benchmark(module: str, *words: str) -> Job:
    from benchmarks.common.results import Results

    def rows(path: Path) -> int:
        return len(Results(path.parent).rows())

    return Job(
        f"benchmarks.{module}",
        (*words, "--out", "out"),
        readers={"out/results.csv": rows},
        progress=lambda folder: rows(folder / "out" / "results.csv"),
        volatile=TIMES,
        compared=f"all rows but the columns {', '.join(TIMES)}",
    )


def _copy(source: str, folder: Path) -> None:
    shutil.copytree(folder.parents[1] / "inputs" / source, folder / "out")


def _cache(path: Path) -> Any:
    from hashgym.data import cache

    return cache.open_cache(path, verify=True)


def _torch(path: Path) -> Any:
    from agents import checkpoint

    return checkpoint.load(path)


def _hasher(path: Path) -> Any:
    from hashgym import hashers

    return hashers.load(path)


def _encoder(path: Path) -> Any:
    from hashgym.encoders import load_encoder

    return load_encoder(path)


def _visual_words(path: Path) -> Any:
    from hashgym.features.bow import read_words

    return read_words(path)


def _codes(path: Path) -> Any:
    from hashgym.gallery import open_codes

    return open_codes(path, verify=True).sets()


def _opens(path: Path) -> None:
    """Open an index, and search it."""
    from hashgym.gallery import open_gallery

    gallery = open_gallery(path)
    try:
        assert gallery.search_code(gallery.words[0, 0], k=1)[0].distance == 0
    finally:
        gallery.close()


def _gallery(meta: Path) -> None:
    _opens(meta.parent)


def _answers(folder: Path) -> list[Any]:
    """All distances between an index's images, and what is known of them."""
    from hashgym.gallery import open_gallery

    gallery = open_gallery(folder / "out")
    try:
        found = gallery.index.search(gallery.words[:, 0], len(gallery))
        return [part.tolist() for part in (*found, gallery.ids, gallery.index.ids)]
    finally:
        gallery.close()


def _batches(folder: Path) -> float:
    """Batches that the journal has; all of them in the end."""
    journal = folder / "out.partial" / "journal.jsonl"
    if (folder / "out").exists():
        return float("inf")
    return journal.read_text().count('"batch":') if journal.exists() else 0


def _updates(folder: Path) -> float:
    path = folder / "out" / "checkpoint.pt"
    if not path.exists():
        return 0
    saved = _torch(path)
    return saved["update"] if "update" in saved else saved["counters"]["num_timesteps"]
