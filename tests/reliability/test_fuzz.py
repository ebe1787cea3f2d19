"""Damage every kind of file at random: its reader raises an error with a message, or returns valid data.

Never another exception than the documented ones, a crash, a hang or a huge allocation; and where the file has a digest,
never other data than were written.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, features

from hashgym.data import DataError
from tests.reliability.damage import bounded, damaged

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="bounds are those of Linux")


@dataclass(frozen=True)
class Reader:
    """A function that reads files.

    Attributes:
        make: writes sound files into a folder.
        read: reads them, and gives all that they say, to be compared.
        files: patterns of the files that are damaged.
        refuses: what it raises for damaged ones.
        sealed: whether a digest vouches for the files, so that nothing but what was written may be given.
        fresh: whether reading changes the folder.
        examples: how many damages are tried.
    """

    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    files: tuple[str, ...] = ("*",)
    refuses: type[Exception] = DataError
    sealed: bool = False
    fresh: bool = False
    examples: int = 60


def plain(value: Any) -> Any:
    """Nested contents in a form that ``==`` can compare."""
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return value


# -- datasets ---------------------------------------------------------------------------------------------------------


def picture(path: Path, colour: tuple[int, int, int] = (200, 30, 60)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), colour).save(path)
    return path


def collected(dataset: str) -> Callable[[Path], Any]:
    """Reads a dataset as far as the images' names and labels, and opens the first."""

    def read(folder: Path) -> Any:
        from hashgym.data import read_images

        images = read_images(dataset.format(folder), folder, allow_missing=not dataset.startswith("folder"))
        images.read(0)
        return plain([list(images.names), images.labels, list(images.label_names)])

    return read


def make_list(folder: Path) -> None:
    for i in range(6):
        picture(folder / "images" / f"{i} photo.png")
    lines = [f"images/{i} photo.png {i % 2} 1 0" for i in range(6)]
    (folder / "list.txt").write_text("\n".join(lines) + "\n")


def make_lists(folder: Path) -> None:
    for i in range(6):
        picture(folder / "images" / f"{i}.png")
    for part, rows in {"test": range(2), "train": range(2, 4), "database": range(2, 6)}.items():
        (folder / f"{part}.txt").write_text("".join(f"images/{i}.png {i % 2} 1\n" for i in rows))


def make_cifar_python(folder: Path) -> None:
    from tests.data.readers.test_cifar10 import BATCHES, python2_pickle

    for number, name in enumerate(BATCHES):
        pixels = np.full((2, 3072), number, np.uint8)
        (folder / name).write_bytes(python2_pickle(pixels, np.array([number, 9], np.uint8)))


def make_cifar_binary(folder: Path) -> None:
    from tests.data.readers.test_cifar10 import BATCHES

    for number, name in enumerate(BATCHES):
        (folder / f"{name}.bin").write_bytes(bytes([number, *[7] * 3072]) * 2)


def make_coco(folder: Path) -> None:
    from tests.data.readers.test_coco import write

    write(folder, picture)


def make_nuswide(folder: Path) -> None:
    from tests.data.readers.test_nuswide21 import write

    write(folder, picture)


def make_mirflickr(folder: Path) -> None:
    from tests.data.readers.test_mirflickr25k import write

    write(folder, folder / "annotations", picture)


def make_images(folder: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
    image = Image.fromarray(noise)
    exif = Image.Exif()
    exif[0x0112] = 6
    for suffix in ("bmp", "gif", "jpg", "png", "ppm", "tif", "webp"):
        image.save(folder / f"image.{suffix}")
    image.save(folder / "turned.jpg", exif=exif)
    image.save(folder / "several.gif", save_all=True, append_images=[image.transpose(Image.Transpose.ROTATE_180)])
    image.convert("P").save(folder / "palette.png")
    image.convert("LA").save(folder / "alpha.webp")
    see_through = image.convert("RGBA")
    see_through.putalpha(Image.fromarray(noise[..., 0]))
    see_through.save(folder / "alpha.png")
    see_through.quantize(16).save(folder / "palette and alpha.png")
    image.save(folder / "several.mpo", save_all=True, append_images=[image])
    image.save(folder / "progressive.jpg", progressive=True)
    (folder / "text.ppm").write_bytes(b"P3\n# noise\n11 9\n255\n" + b" ".join(b"%d" % value for value in noise.flat))
    (folder / "other largest value.ppm").write_bytes(b"P5 11 9 254\n" + noise[..., 0].clip(0, 254).tobytes())
    if features.check("avif"):
        see_through.save(folder / "image.avif", exif=exif)
    image.save(folder / "packed.tif", compression="tiff_lzw")


def read_image(folder: Path) -> None:
    from hashgym.data.pictures import open_image

    for path in sorted(folder.iterdir()):
        image = open_image(path)
        assert (image.mode, image.info) == ("RGB", {})
        assert np.asarray(image).shape == (image.height, image.width, 3)


# -- caches, jobs -----------------------------------------------------------------------------------------------------


def make_cache(folder: Path) -> None:
    from hashgym.data import cache
    from tests.data.test_cache import dataset

    cache.save(dataset(), folder / "features")


def make_cache_of_views(folder: Path) -> None:
    from hashgym.data import cache
    from tests.data.test_cache import with_views

    cache.save(with_views(), folder / "features")


def read_cache(verify: bool) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        from hashgym.data import cache

        data = cache.open_cache(folder / "features", verify=verify)
        return plain({name: getattr(data, name) for name in (*cache.ARRAYS, "name", "names", "label_names")})

    return read


def make_job(folder: Path) -> None:
    """An extraction that was stopped in its third batch of five."""
    from hashgym.data import read_images

    for i in range(15):
        picture(folder / "photos" / "ab"[i % 2] / f"{i}.png", (10 * i, 0, 0))
    photos = read_images(f"folder:{folder / 'photos'}")

    def read(index: int) -> Image.Image:
        if index == 8:
            raise KeyboardInterrupt
        return photos.read(index)

    with pytest.raises(KeyboardInterrupt):
        resume(folder, dataclasses.replace(photos, read=read))


def read_job(folder: Path) -> Any:
    from hashgym.data import cache, read_images

    data = cache.open_cache(resume(folder, read_images(f"folder:{folder / 'photos'}")), verify=True)
    return plain([data.features, data.thumbnails, data.labels, list(data.names), data.query, data.train])


def resume(folder: Path, photos: Any) -> Path:
    from hashgym.features import extract, make

    return extract(photos, make("pixels", size=2), folder / "out", batch_size=3, thumbnail=2, workers=1, progress=False)


def make_words(folder: Path) -> None:
    np.save(folder / "words.npy", np.random.default_rng(0).random((3, 128), np.float32) / 20)


def read_words(folder: Path) -> Any:
    from hashgym.features.bow import read_words

    return plain(read_words(folder / "words.npy"))


def make_array_pickle(folder: Path) -> None:
    import pickle

    layers = {f"Conv_{i}": {"kernel": np.ones((2, 2, 1, 3), np.float32), "bias": np.zeros(3, "f4")} for i in range(3)}
    (folder / "network.ckpt").write_bytes(pickle.dumps({"network": layers}, 2))


def read_array_pickle(folder: Path) -> Any:
    from hashgym.storage.array_pickles import parse

    return plain(parse(folder / "network.ckpt"))


def make_weights(folder: Path) -> None:
    import torch

    torch.manual_seed(0)
    torch.save(torch.nn.Linear(3, 2).state_dict(), folder / "weights.pth")


def read_weights(folder: Path) -> None:
    import torch

    from hashgym.features import weights

    weights.fill(torch.nn.Linear(3, 2), weights.read(folder / "weights.pth"), folder / "weights.pth", "linear")


# -- what was learnt --------------------------------------------------------------------------------------------------


def make_hasher(folder: Path) -> None:
    from hashgym import hashers

    rng = np.random.default_rng(0)
    hashers.make("itq", bits=4).fit(rng.standard_normal((40, 6)).astype(np.float32)).save(folder / "itq.npz")


def read_hasher(folder: Path) -> Any:
    from hashgym import hashers

    return plain(vars(hashers.load(folder / "itq.npz")))


def make_policies(folder: Path) -> None:
    import torch

    from agents import checkpoint, drlih, mch
    from tests.conftest import small_dataset

    data = small_dataset(seed=0).standardized()
    for name, agent, args in (
        ("drlih", drlih, drlih.Args(bits=8, group_bits=4, hidden=3, rnn_hidden=2)),
        ("mch", mch, mch.Args()),
    ):
        torch.manual_seed(0)
        policy = (
            agent.VARIANTS["hashgym"].network(data.dim, args) if agent is drlih else agent.Policy(data.dim, 8, args)
        )
        content = checkpoint.policy_payload(policy, data, args, dim=data.dim, bits=8)
        if agent is mch:  # 3 MB of weights: what they are does not matter here
            content["weights"] = {
                key: part[:1].clone() if part.ndim else part for key, part in content["weights"].items()
            }
        checkpoint.save(content, folder / f"{name}.pt")


def read_policies(folder: Path) -> Any:
    from agents import checkpoint, drlih, mch

    policy = drlih.load(folder / "drlih.pt")
    weights = {key: part.numpy() for key, part in policy.state_dict().items()}
    other, _ = checkpoint.load_policy(folder / "mch.pt", mch.Args)
    return plain([weights, policy.args.__dict__, {key: part.numpy() for key, part in other["weights"].items()}])


# -- results ----------------------------------------------------------------------------------------------------------


def make_results(folder: Path) -> None:
    from benchmarks.common.results import COLUMNS, Results, describe

    for seed in range(3):
        Results(folder).append({**dict.fromkeys(COLUMNS, 1), "seed": seed, "config": describe({"hidden": 8})})


def read_results(folder: Path) -> None:
    from benchmarks.common.results import Results, describe, markdown, table

    results = Results(folder)
    rows = results.rows()
    for row in rows:
        results.done({**row, "config": describe({"hidden": 9})}, replace=True)
    if rows:
        markdown(rows)
        table(rows)


def read_rows(folder: Path) -> None:
    from benchmarks.report import rows

    rows.read(folder)


# -- encoders, codes, indices -----------------------------------------------------------------------------------------

BACKENDS = ("brute-force", "faiss", "faiss-hash", "buckets")


def make_encoder(folder: Path) -> None:
    from tests.gallery.small import write_encoder

    write_encoder(folder / "encoder.onnx", regions=True)


def read_encoder(folder: Path) -> Any:
    from hashgym import load_encoder

    encoder = load_encoder(folder / "encoder.onnx")
    sets = encoder.encode_pictures(np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3))
    return plain([encoder.metadata, encoder.digest, sets.words, sets.kept])


def make_codes(folder: Path) -> None:
    from hashgym.gallery import encode_images
    from tests.gallery.small import write_pictures

    make_encoder(folder)
    write_pictures(folder / "pictures", [f"{i}.png" for i in range(5)])
    encode_images(folder / "encoder.onnx", [folder / "pictures"], folder / "codes", progress=False)


def read_codes(verify: bool) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        from hashgym.gallery import open_codes

        codes = open_codes(folder / "codes", verify=verify)
        return plain([codes.names, codes.words, codes.kept, codes.sizes, codes.bits, codes.encoder, codes.left_out])

    return read


def make_gallery(folder: Path) -> None:
    from hashgym.gallery import build

    make_codes(folder)
    build([folder / "codes"], folder / "index", "brute-force", progress=False)


def read_gallery(folder: Path) -> Any:
    from hashgym.gallery import open_gallery

    gallery = open_gallery(folder / "index")
    found = [gallery.search_code(words, k=5) for words in gallery.words[:, 0]]
    return [[(match.id, match.name, match.distance, match.region, match.box) for match in row] for row in found]


def make_index(backend: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        from hashgym import index
        from hashgym.codes import CodeSets

        rng = np.random.default_rng(0)
        with index.make(backend, 70) as images:
            images.add(np.arange(9) * 3, CodeSets.of(rng.random((9, 2, 70)) < 0.5, rng.random((9, 2)) < [2.0, 0.5]))
            images.save(folder / "index")

    return make


def read_index(folder: Path) -> Any:
    from hashgym import index

    with index.load(folder / "index") as images:
        return plain([images.ids, images.search(np.eye(70, dtype=np.bool_), 9)])


READERS = {
    "list": Reader(make_list, collected("list:{}/list.txt"), ("list.txt",), examples=150),
    "lists": Reader(make_lists, collected("list:{}"), ("*.txt",)),
    "cifar10, Python": Reader(make_cifar_python, collected("cifar10"), examples=150),
    "cifar10, binary": Reader(make_cifar_binary, collected("cifar10")),
    "coco": Reader(make_coco, collected("coco"), ("annotations/*",), examples=150),
    "nuswide21": Reader(make_nuswide, collected("nuswide21"), ("*/*.txt", "*/*/*concept00.txt")),
    "mirflickr25k": Reader(make_mirflickr, collected("mirflickr25k"), ("annotations/*.txt",)),
    "images": Reader(make_images, read_image, examples=300),
    "cache": Reader(make_cache, read_cache(False), ("features/*",), examples=150, sealed=True),
    "cache, verified": Reader(make_cache, read_cache(True), ("features/*",), sealed=True),
    "cache of views": Reader(make_cache_of_views, read_cache(False), ("features/*",), sealed=True),
    "job": Reader(make_job, read_job, ("out.partial/[!.]*",), sealed=True, fresh=True, examples=100),
    "words": Reader(make_words, read_words),
    "array pickle": Reader(make_array_pickle, read_array_pickle, examples=150),
    "weights": Reader(make_weights, read_weights, examples=150),
    "hasher": Reader(make_hasher, read_hasher, refuses=ValueError, sealed=True, examples=150),
    "policies": Reader(make_policies, read_policies, refuses=ValueError, sealed=True, examples=150),
    "encoder": Reader(make_encoder, read_encoder, sealed=True, examples=150),
    "codes": Reader(make_codes, read_codes(False), ("codes/*",), sealed=True, examples=100),
    "codes, verified": Reader(make_codes, read_codes(True), ("codes/*",), sealed=True, examples=100),
    "gallery": Reader(make_gallery, read_gallery, ("index/*", "index/1/*"), refuses=ValueError, sealed=True),
    **{
        f"index {name}": Reader(make_index(name), read_index, ("index/*",), refuses=ValueError, sealed=True)
        for name in BACKENDS
    },
    "results": Reader(make_results, read_results, refuses=ValueError, examples=150),
    "rows": Reader(make_results, read_rows, refuses=ValueError),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Sound files of a reader."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("sound") / "sound"
            made[name].mkdir()
            READERS[name].make(made[name])
        return made[name]

    return folder


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_rejected_or_sound(name: str, sound: Callable[[str], Path], tmp_path: Path) -> None:
    reader, folder = READERS[name], tmp_path / "damaged"
    shutil.copytree(sound(name), folder)
    before = reader.read(folder)
    files = sorted(path for pattern in reader.files for path in sound(name).glob(pattern) if path.is_file())
    places = [path.relative_to(sound(name)) for path in files]

    @settings(max_examples=reader.examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        if reader.fresh or not folder.exists():
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(sound(name), folder)
        place = data.draw(st.sampled_from(places))
        content = (sound(name) / place).read_bytes()
        how = data.draw(st.sampled_from(["damage"] * 8 + ["swap", "empty", "missing", "folder"]))
        file = folder / place
        if how in ("missing", "folder"):
            file.unlink()
            if how == "folder":
                file.mkdir()
        elif how == "swap":
            file.write_bytes((sound(name) / data.draw(st.sampled_from(places))).read_bytes())
        else:
            file.write_bytes(b"" if how == "empty" else data.draw(damaged(content)))
        allowed = (reader.refuses, OSError) if how in ("missing", "folder") else reader.refuses
        try:
            with bounded():
                after = reader.read(folder)
        except allowed as error:
            assert str(error)  # noqa: PT017
        else:
            assert not reader.sealed or after == before
        finally:
            if how == "folder":
                file.rmdir()
            if not reader.fresh:
                file.write_bytes(content)

    check()
