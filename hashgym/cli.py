"""The command line: features of datasets, training, and encoding and searching one's own pictures.

Heavy packages are imported inside the commands, so that help is quick.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import tyro

from hashgym.checks import closest, counted
from hashgym.terminal import arguments, command_line, wants_version
from hashgym.text import printable, quote

if TYPE_CHECKING:
    from hashgym.data import HashingDataset

__all__ = ["main"]

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
Patterns = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="PATTERN")]

SHOWN = 24  # labels of a split that are printed

DESCRIPTION = """Learning to hash as reinforcement learning.

From images to features:
`hashgym datasets` lists the datasets and where they are read from,
`hashgym features --dataset cifar10 --root DIR --backbone efficientnet_lite0 --size 160 --out FEATURES`
extracts features once, `hashgym info FEATURES` shows what a folder of features contains.
The dataset `digits` is embedded and needs no extraction.

`hashgym train drlih --dataset FEATURES --out RUN` trains an agent on them, `hashgym train itq` fits a hasher.

Search your own photos, without labels:
`hashgym index PHOTOS --out INDEX` makes them searchable, and updates the index when it is run again,
`hashgym search INDEX photo.jpg --html out.html` finds the nearest, `hashgym serve INDEX` does so in a browser,
`hashgym duplicates INDEX` lists groups of photos that look alike.

The same with a hasher or a run that was trained on your features:
`hashgym export RUN --out encoder.onnx` writes it as one file, an encoder,
`hashgym index PHOTOS --encoder encoder.onnx --out INDEX` encodes and indexes with it; or, step by step,
`hashgym encode encoder.onnx PHOTOS --out CODES` and `hashgym index CODES --out INDEX`.

`hashgym COMMAND --help` shows the options of a command, `hashgym --version` the version."""


def datasets() -> None:
    """List the datasets, where they are read from, and their splits."""
    from hashgym.console import Text
    from hashgym.data import datasets

    table = _table("dataset", "description and where it is read from", "splits, the default first", padding_below=1)
    for info in datasets():
        name = Text(info.name)
        if info.embedded:
            name.append("\nembedded", "dim")
        source = Text(info.description).append(f"\n{info.reads_from}", "dim")
        splits = (Text.assemble((key, "bold"), f": {text}") for key, text in info.splits.items())
        table.add_row(name, source, Text("\n").join(splits))
    _print(table)


def backbones() -> None:
    """List the backbones that extract features of images, and after which blocks their networks can be cut."""
    from hashgym.features import LIBRARIES, NETWORKS, backbones

    table = _table("backbone", "features", "--cut")
    for name, description in backbones().items():
        table.add_row(name, description, NETWORKS.descriptions.get(name, ""))
    others = "a classifier of torchvision.models by name, such as resnet50"
    table.add_row(_styled("any other", "dim"), others, "resnet, vgg, mobilenet, efficientnet")
    for prefix, description in LIBRARIES.descriptions.items():
        table.add_row(f"{prefix}:", description, "")
    _print(table)


def hashers() -> None:
    """List the hash functions that learn without reinforcement learning."""
    from hashgym.hashers import available

    table = _table("hasher", "method")
    for name, description in dict(available()).items():
        table.add_row(name, description)
    _print(table)


def info(folder: tyro.conf.Positional[str], /) -> None:
    """Show what a folder of features, a folder of codes or an index contains, and verify its checksums.

    The exit code is 1 if it is damaged.

    Args:
        folder: a folder that `hashgym features`, `hashgym encode` or `hashgym index` wrote.
    """
    from pathlib import Path

    from hashgym.data import cache
    from hashgym.data.image_files import is_own
    from hashgym.gallery.encode import unfinished
    from hashgym.gallery.encoded_images import CODES
    from hashgym.gallery.search import INDEX
    from hashgym.storage.errors import DataError

    kinds = ((INDEX, _index_facts), (CODES, _codes_facts), (cache.CACHE, _features_facts))
    known = [facts for kind, facts in kinds if kind.matches(folder)]
    if not known and not cache.is_cache(folder):
        if is_own(Path(folder)) and Path(folder).suffix == ".partial":
            raise DataError(f"{folder} is not finished: run its command again, which resumes it")
        partial = unfinished(Path(folder))
        hint = f"; {partial} is not finished: run its command again" if partial.is_dir() else ""
        raise DataError(
            f"{folder} is not a folder of features, a folder of codes or an index: it has no {cache.CACHE.manifest}; "
            f"`hashgym features`, `hashgym encode` and `hashgym index` write such folders{hint}"
        )
    while True:
        before = _state_of(os.path.join(folder, cache.CACHE.manifest))
        try:
            rows, files = (known[0] if known else _features_facts)(folder)
            break
        except (OSError, ValueError) as error:
            if _state_of(os.path.join(folder, cache.CACHE.manifest)) != before:
                continue  # it was replaced in the meantime
            if not isinstance(error, DataError):
                raise
            _error(str(error))
            raise SystemExit(1) from None
    table = _table("file", "type", "shape", "MB")
    for name, entry in files.items():
        shape = " x ".join(f"{length:,}" for length in entry.get("shape", ()))
        kind = entry.get("dtype", "text" if name.endswith(".json") else "binary")
        table.add_row(name, kind, shape, f"{entry['bytes'] / 1e6:,.1f}")
    facts = _table("", "")
    facts.show_header = False
    for key, value in rows.items():  # thousands of labels are cut off on a terminal, but not in a file
        facts.add_row(key, f"{value[:2_000]} ..." if len(value) > 2_000 and _is_terminal() else value)
    _print(facts, table, _styled(f"all {len(files)} checksums are right", "green"))


def _state_of(file: str) -> tuple[int, int] | None:
    """Return a value that changes when a file is replaced; None if there is no file."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino


def _features_facts(folder: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the description of a folder of features, and its files, after comparing them with their checksums."""
    from hashgym.data import cache

    meta = cache.read_meta(folder)
    cache.verify(folder)
    dataset = cache.open_cache(folder)
    return {
        "dataset": dataset.name,
        "images": f"{len(dataset):,}, {_described_images(dataset)}",
        "labels": f"{len(dataset.label_names)}: {', '.join(dataset.label_names)}",
        "roles": f"{counted(len(dataset.query), 'query', 'queries')}, {len(dataset.database):,} in the database, "
        f"{len(dataset.train):,} to train",
        **{key.replace("_", " "): _lines(value) for key, value in dataset.provenance.items() if value is not None},
    }, meta["files"]


def _codes_facts(folder: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the description of a folder of codes, and its files, after comparing them with their checksums."""
    from hashgym.gallery.encoded_images import CODES, open_codes

    codes = open_codes(folder, verify=True)
    left_out = [f"{name}: {reason}" for name, reason in codes.left_out.items()]
    return {
        "codes": f"of {counted(len(codes), 'picture')}, {counted(codes.bits, 'bit')} each, "
        f"{counted(codes.words.shape[1], 'view')} of a picture",
        "pictures": f"below {codes.root}",
        "left out": "\n".join([counted(len(left_out), "picture"), *left_out]) if left_out else "none",
        "encoder": codes.encoder,
        **{key: _lines(value) for key, value in CODES.read(folder)["job"].items() if key == "versions"},
    }, CODES.read(folder)["files"]


def _index_facts(folder: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the description of an index, and its files with those of its back end; no server is contacted."""
    from pathlib import Path

    from hashgym import index as backends
    from hashgym.gallery.search import BACKEND, verify
    from hashgym.storage.addresses import without_password

    meta = verify(folder)
    place = Path(folder, meta["content"], BACKEND)
    saved = backends.read_meta(place)
    files = {f"{meta['content']}/{BACKEND}/{entry['file']}": entry for entry in saved["files"].values()}
    uri = str(saved["options"].get("uri", ""))
    return {
        "index": f"of {counted(meta['images'], 'picture')}, codes of {meta['bits']} bits",
        "pictures": f"below {meta['root']}",
        "back end": f"{meta['backend']} at {without_password(uri)}" if uri else meta["backend"],
        "encoder": meta["encoder"],
    }, meta["files"] | files


def _described_images(dataset: HashingDataset) -> str:
    """Describe the images of a dataset in a few words: "1,280 features each"."""
    if not dataset.has_maps:
        return f"{dataset.dim:,} features each"
    kind = "pixels" if dataset.features.dtype == "uint8" else "activations"
    views = "" if dataset.views is None else f", {dataset.num_views} views of each training image"
    return f"{kind} {' x '.join(map(str, dataset.image_shape))} each{views}"


def features(
    *,
    dataset: str,
    backbone: str,
    out: str,
    root: str | None = None,
    size: int | None = None,
    weights: str | None = None,
    split: str | None = None,
    seed: int = 0,
    queries: int | None = None,
    train: int | None = None,
    regions: int = 0,
    sigma: float = 0.5,
    train_regions: int = 0,
    cut: int | None = None,
    views: int = 1,
    thumbnail: int = 32,
    skip_bad: Flag = False,
    allow_missing: Flag = False,
    follow_links: Flag = False,
    exclude: Patterns = (),
    batch_size: int = 64,
    workers: int = 2,
    executor: Literal["local", "ray"] = "local",
    device: str = "auto",
    runtime: Annotated[str, tyro.conf.arg(aliases=["--engine"])] = "auto",
) -> None:
    """Extract features of a dataset's images into a folder. An interrupted run resumes where it stopped.

    Args:
        dataset: a name that `hashgym datasets` lists, such as cifar10, folder:PATH or list:FILE.
        backbone: a name that `hashgym backbones` lists, any torchvision classifier, timm:NAME, open_clip:NAME/TAG or
            hf:NAME.
        out: the folder to write; until it is finished it is called OUT.partial.
        root: the folder of the dataset.
        size: side in pixels of the network's input; by default that of its training.
        weights: a file of weights, or with hf: a folder, instead of the backbone's own.
        split: the query / database / train split; the dataset's first split by default.
        seed: seed of the split and of the random regions and views.
        queries: number of queries, instead of the split's own.
        train: number of training images, instead of the split's own.
        regions: 5 to extract the four corners and the centre of every image too, for RegionKeep.
        sigma: ratio of a region's sides to the image's.
        train_regions: number of random regions of every image to extract, for training on RegionKeep.
        cut: write the activations after this block of the network instead of features, so that the rest of it can be
            trained with an agent or a hasher; 0 for pixels. `hashgym backbones` lists the blocks.
        views: number of views of every training image to keep with --cut: the first plain, the others cropped and
            mirrored at random.
        thumbnail: side in pixels of the thumbnails stored for rendering; 0 for none.
        skip_bad: leave out and list images that cannot be read, instead of stopping at the first one.
        allow_missing: leave out images that are listed but missing (NUS-WIDE, COCO, lists).
        follow_links: for folder:PATH and list:FILE, also read the targets of links, or of `..` in a list; by default
            links are skipped.
        exclude: for folder:PATH and list:FILE, a pattern of names or relative paths to leave out; may be repeated.
        batch_size: images that are read, and recorded as finished, together.
        workers: threads that read images, of the executor local.
        executor: ray distributes the batches over the Ray cluster at RAY_ADDRESS, or over one started here.
        device: a torch device; by default a GPU if there is one.
        runtime: onnx or torch; by default the one that suits the network and the device. --engine is its old name.
    """
    from hashgym.data import cache, read_images
    from hashgym.features import extract, make
    from hashgym.storage.errors import DataError

    if os.path.lexists(out):
        remedy = "remove it, or choose" if cache.is_cache(out) else "choose"
        raise DataError(f"{out} exists already: {remedy} another --out")
    collection = read_images(dataset, root, allow_missing=allow_missing, follow_links=follow_links, exclude=exclude)
    network = make(backbone, size=size, weights=weights, device=device, runtime=runtime, cut=cut)
    try:
        extract(
            collection,
            network,
            out,
            split=split,
            seed=seed,
            queries=queries,
            train=train,
            regions=regions,
            sigma=sigma,
            train_regions=train_regions,
            views=views,
            thumbnail=thumbnail,
            batch_size=batch_size,
            workers=workers,
            executor=executor,
            skip_bad=skip_bad,
        )
    except KeyboardInterrupt:
        _stopped(out)
    provenance = cache.read_meta(out)["provenance"]
    if left_out := provenance["left_out"]:
        _print(
            _styled(f"{counted(len(left_out), 'image was', 'images were')} left out:", "yellow"),
            *map(printable, left_out.values()),
        )
    if passed := provenance.get("passed_over"):
        _print(f"skipped: {printable(passed)}")
    _print(printable(provenance["source"]))
    _print_split(provenance["split_counts"])
    _say(
        _styled(out, "green"),
        f": {provenance['split_description']}. Look at it with `hashgym info {quote(out)}`.",
    )


def words(
    *,
    dataset: str,
    out: str,
    root: str | None = None,
    words: int = 500,
    images: int = 2000,
    size: int | None = None,
    split: str | None = None,
    seed: int = 0,
    queries: int | None = None,
    train: int | None = None,
    skip_bad: Flag = False,
    allow_missing: Flag = False,
    follow_links: Flag = False,
    exclude: Patterns = (),
) -> None:
    """Learn the visual words of the backbone `bow` from the training images of the split.

    Args:
        dataset: a name that `hashgym datasets` lists, such as cifar10, folder:PATH or list:FILE.
        out: the file to write, such as words.npy.
        root: the folder of the dataset.
        words: number of words to learn, which is the number of features.
        images: number of training images to learn from.
        size: side of the pictures in pixels, as for the features; 128 by default.
        split: the query / database / train split; the dataset's first split by default.
        seed: seed of the split, of the sampling of images and patches, and of the clustering.
        queries: number of queries, instead of the split's own.
        train: number of training images, instead of the split's own.
        skip_bad: leave out images that cannot be read, instead of stopping at the first one.
        allow_missing: leave out images that are listed but missing (NUS-WIDE, COCO, lists).
        follow_links: for folder:PATH and list:FILE, also read the targets of links, or of `..` in a list; by default
            links are skipped.
        exclude: for folder:PATH and list:FILE, a pattern of names or relative paths to leave out; may be repeated.
    """
    from hashgym.data import read_images
    from hashgym.features.bow import learn_words

    learn_words(
        read_images(dataset, root, allow_missing=allow_missing, follow_links=follow_links, exclude=exclude),
        out,
        words=words,
        images=images,
        size=size,
        split=split,
        seed=seed,
        queries=queries,
        train=train,
        skip_bad=skip_bad,
    )
    _say(
        _styled(out, "green"),
        f": {words:,} words. Extract features with `hashgym features --backbone bow --weights {quote(out)}`.",
    )


def train(
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")],
    options: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="OPTIONS...")] = (),
    /,
) -> None:
    """Train an agent or fit a hasher, and measure its codes.

    NAME is an agent or a hasher that `hashgym hashers` lists. The agents are drlih, which emits codes group by group,
    mch, which keeps codes of regions, multicode, which gives an image further codes, and sb3, an algorithm of
    Stable-Baselines3. `hashgym train NAME --help` shows the options.

    Example: `hashgym train drlih --dataset FEATURES --bits 32 --out runs/photos`.

    Args:
        name: the agent or hasher.
        options: its options, such as --dataset and --out.
    """
    from hashgym.train import read

    read([name, *options])()


def export(
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")],
    /,
    *,
    out: str,
    features: str | None = None,
    bits: int | None = None,
    seed: int = 0,
    features_only: Flag = False,
    unstandardized: Flag = False,
    weights: str | None = None,
    train: Literal["split", "all"] = "split",
    threads: int | None = None,
    quiet: Flag = False,
) -> None:
    """Write a trained run or a hasher as an encoder: one ONNX file that encodes pictures without torch.

    Examples: `hashgym export runs/drlih --out encoder.onnx` from a training run;
    `hashgym export itq --bits 64 --features FEATURES --out encoder.onnx` from a hasher fitted here.

    Args:
        source: the folder of a training run; a saved hasher, such as itq.npz; or a name that `hashgym hashers` lists,
            which is fitted here to the training images of --features.
        out: the file to write.
        features: the folder of features that the source was trained on. A hasher's codes are compared with the
            encoder's on up to 10,000 of its images.
        bits: code length of a hasher that is fitted here.
        seed: seed of a hasher that is fitted here.
        features_only: leave out the backbone: the encoder takes features instead of pictures.
        unstandardized: the saved hasher was fitted to features as extracted, not to standardised ones.
        weights: the file of the backbone's weights, if they are not its own.
        train: the images that a hasher is fitted to here: the training images of the split, so that its queries measure
            it fairly, or all images of --features (with a label, if it needs labels), for use.
        threads: number of threads for fitting, at most; by default the libraries' own choice.
        quiet: show no progress bar.
    """
    from hashgym.encoders import build

    written = build.build_encoder(
        source,
        out,
        features=features,
        bits=bits,
        seed=seed,
        standardized=not unstandardized,
        features_only=features_only,
        weights=weights,
        train=train,
        threads=threads,
        progress=not quiet,
    )
    encoder, agreement = written.encoder, written.agreement
    if agreement is not None:
        _print(
            f"{agreement.bits:,} bits of {agreement.images:,} images: {agreement.different:,} differ from those of "
            f"{source}; {agreement.ties:,} are ties, which rounding may decide either way"
        )
    regions = f", with {encoder.regions} regions" if encoder.regions else ""
    *shorter, _ = encoder.lengths
    lengths = f", of which the first {' or '.join(map(str, shorter))} are codes too (--bits)" if shorter else ""
    use = "`hashgym.load_encoder` opens it."
    if encoder.takes == "pictures":
        use = f"Encode pictures with `hashgym encode {quote(out)} PHOTOS --out CODES`."
    _say(_styled(out, "green"), f": {encoder.bits} bits from {encoder.takes}{regions}{lengths}. {use}")


def encode(
    encoder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ENCODER")],
    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES...")],
    /,
    *,
    out: str,
    skip_bad: Flag = False,
    follow_links: Flag = False,
    exclude: Patterns = (),
    checksum: Flag = False,
    bits: int | None = None,
    batch_size: int = 64,
    workers: int = 2,
) -> None:
    """Compute the codes of pictures. An interrupted run resumes where it stopped.

    Run again after it has finished, it encodes new and changed pictures, and drops those that no longer exist.

    Example: `hashgym encode encoder.onnx ~/Pictures 'scans/*.tif' --out CODES`.

    Args:
        encoder: a file that `hashgym export` wrote.
        images: files, folders with all pictures below them (except hidden files and links), and patterns in quotes; a
            picture that is named twice is encoded once.
        out: the folder to write; until it is finished it is called OUT.partial.
        skip_bad: leave out and list pictures that cannot be read, instead of stopping at the first one.
        follow_links: also encode the pictures that links lead to, under the paths of the targets.
        exclude: a pattern of names, or of paths relative to a folder, to leave out; may be repeated.
        checksum: recognise changed pictures by their content, instead of their size and modification time.
        bits: number of first bits of each code to keep, for an encoder of nestable codes; all by default.
        batch_size: pictures that are read, and recorded as finished, together.
        workers: batches processed at a time, each in its own thread; the cores are divided among them.
    """
    from pathlib import Path

    from hashgym.gallery import open_codes
    from hashgym.gallery.encode import EncodingSettings, update_codes

    settings = EncodingSettings(
        skip_bad=skip_bad,
        batch_size=batch_size,
        workers=workers,
        follow_links=follow_links,
        exclude=exclude,
        checksum=checksum,
        bits=bits,
    )
    finished = Path(out).exists()
    try:
        done = update_codes(encoder, images, out, settings)
    except KeyboardInterrupt:
        _stopped(out)
    codes = open_codes(out)
    _print_left_out(codes.left_out)
    if done.passed_over:
        _print(f"skipped: {printable(done.passed_over)}")
    if done.note:
        _print(printable(done.note))
    has, use = ":", f"Make them searchable with `hashgym index {quote(out)} --out INDEX`."
    if done.new or done.changed or done.removed:
        if finished:
            has = f": {done.new:,} new, {done.changed:,} changed, {done.removed:,} removed, the others unchanged;"
            use = f"Update an index with `hashgym index {quote(out)} --out INDEX --add`."
            if done.removed:
                use += " The index keeps removed pictures until `--remove` names them."
    elif finished:
        has = " is finished already:" if done.note else " is finished already and no picture has changed: it has"
    _say(
        _styled(out, "green"),
        f"{has} codes of {counted(len(codes), 'picture')}, {counted(codes.bits, 'bit')} each. {use}",
    )


def index(
    places: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PHOTOS|CODES...")] = (),
    /,
    *,
    out: str,
    encoder: str | None = None,
    bits: int | None = None,
    method: str | None = None,
    backbone: str | None = None,
    size: int | None = None,
    weights: str | None = None,
    follow_links: Flag = False,
    exclude: Patterns = (),
    checksum: Flag = False,
    workers: int = 2,
    backend: str | None = None,
    uri: str | None = None,
    add: Flag = False,
    remove: tuple[str, ...] = (),
) -> None:
    """Make an index of photos, or of folders of codes. If interrupted, the same command continues.

    Of photos: `hashgym index ~/Pictures --out INDEX` fits an encoder to them, which needs no labels, and encodes and
    indexes them. Run again, it encodes new and changed photos, and drops those that no longer exist.

    Of codes that `hashgym encode` wrote: `hashgym index CODES --out INDEX`; `hashgym index MORE --out INDEX --add`;
    `hashgym index --out INDEX --remove cats/tom.jpg`.

    Args:
        places: photos (files, folders with all below them, patterns in quotes), or folders of codes, all with the same
            encoder.
        out: the folder of the index.
        encoder: of photos, a file that `hashgym export` wrote; by default one is fitted to the photos.
        bits: length of the codes of an encoder that is fitted; by default 64.
        method: by which an encoder is fitted: itq (the default), neighbours (an agent that learns which photos are
            neighbours: better at kinds of photos, worse at telling similar ones apart), cibhash, pca, sh or lsh.
        backbone: of an encoder that is fitted, by default efficientnet_lite0; `hashgym backbones` lists them. An index
            by open_clip:NAME/TAG, or by hf:NAME of a CLIP or SigLIP model, can be searched by texts.
        size: side in pixels of the backbone's input; by default that of its training.
        weights: a file of weights, or with hf: a folder, instead of the backbone's own.
        follow_links: also read the photos that links lead to.
        exclude: a pattern of names, or of paths relative to a folder, to leave out; may be repeated.
        checksum: recognise changed photos by their content, instead of their size and modification time.
        workers: batches of photos processed at a time, each in its own thread; the cores are divided among them.
        backend: faiss (the default), faiss-hash, prefix, buckets, brute-force or milvus. All return the same results.
        uri: the address of the Milvus server, such as http://localhost:19530; by default the environment variable
            MILVUS_URI, else the server that the index is on already, else Milvus is embedded. The token in MILVUS_TOKEN
            is sent only to an address that is given in one of the first two ways.
        add: add codes to the existing index. Pictures that it has already get their new codes and keep their ids.
        remove: names of pictures to remove, as `hashgym search` shows them; one that begins with a dash is written
            `--remove=-name.jpg`.
    """
    from hashgym import gallery

    options = {} if uri is None else {"uri": uri}
    fit = {"encoder": encoder, "bits": bits, "method": method, "backbone": backbone, "size": size, "weights": weights}
    flags = {"follow-links": follow_links or None, "exclude": exclude or None, "checksum": checksum or None}
    needless = [f"--{name}" for name, value in {**fit, **flags}.items() if value is not None]
    if remove:
        if places or add or backend or needless:
            raise ValueError("--remove can be combined with --out and --uri only: add codes in a separate command")
        gallery.remove(out, remove, options=options)
    elif places and not _are_codes(places):
        if add:
            raise ValueError("--add is for folders of codes: the command that made an index of photos also updates it")
        find = {"follow_links": follow_links, "exclude": exclude, "checksum": checksum, "workers": workers}
        _index_photos(places, out, {**fit, "backend": backend}, find, options)
    else:
        if needless:
            raise ValueError(f"{', '.join(needless)}: only for photos, and codes have been encoded already")
        gallery.build(places, out, backend, add, options=options)
    meta = gallery.read_meta(out)
    _say(
        _styled(out, "green"),
        f": {counted(meta['images'], 'picture')}, codes of {meta['bits']} bits, back end {meta['backend']}. "
        f"Search it with `hashgym search {quote(out)} photo.jpg`, or in a browser with `hashgym serve {quote(out)}`.",
    )


def _are_codes(places: Sequence[str]) -> bool:
    """Return whether the arguments of `hashgym index` are folders that hashgym wrote, rather than photos.

    Raises:
        ValueError: if some are, and some are not.
    """
    from pathlib import Path

    from hashgym.data.image_files import is_own
    from hashgym.gallery.encode import unfinished

    def is_codes(place: Path) -> bool:
        return is_own(place) or (not place.exists() and is_own(unfinished(place)))

    are = [is_codes(Path(place)) for place in places]
    if any(are) and not all(are):
        photos, codes = places[are.index(False)], places[are.index(True)]
        raise ValueError(f"{codes} was written by hashgym, and {photos} was not: index photos, or folders of codes")
    return any(are)


def _index_photos(
    photos: Sequence[str], out: str, fit: dict[str, Any], find: dict[str, Any], options: dict[str, Any]
) -> None:
    """Make an index of photos or update it, and print what was done."""
    from hashgym import gallery
    from hashgym.gallery.encode import EncodingSettings
    from hashgym.gallery.index import CODES_OF_PHOTOS
    from hashgym.gallery.search import INDEX

    existed = INDEX.matches(out)
    settings = EncodingSettings(skip_bad=True, **find)
    try:
        done = gallery.index_photos(photos, out, **fit, settings=settings, options=options)
    except KeyboardInterrupt:
        _error("stopped; the same command continues")
        raise SystemExit(130) from None
    codes = gallery.open_codes(os.path.join(out, CODES_OF_PHOTOS))
    _print_left_out(codes.left_out)
    if done.passed_over:
        _print(f"skipped: {printable(done.passed_over)}")
    if existed:
        _print(f"{done.new:,} new, {done.changed:,} changed, {done.removed:,} removed, {done.unchanged:,} unchanged")


def _print_left_out(left_out: Mapping[str, str]) -> None:
    """Print which pictures could not be read, and why."""
    if left_out:
        were = counted(len(left_out), "picture was", "pictures were")
        _print(_styled(f"{were} left out:", "yellow"), *map(printable, left_out.values()))


def search(
    index: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="INDEX")],
    photo: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[PHOTO]")] = None,
    /,
    *,
    text: str | None = None,
    weights: str | None = None,
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 10,
    radius: int | None = None,
    rerank: Literal["margins"] | None = None,
    json: Flag = False,
    html: str | None = None,
    root: str | None = None,
    uri: str | None = None,
) -> None:
    """Find the pictures nearest to one, or to a text, by the Hamming distance of their codes.

    Examples: `hashgym search INDEX photo.jpg -k 10 --html out.html`;
    `hashgym search INDEX --text "a red car"`, with an index by an image-text model.

    Args:
        index: a folder that `hashgym index` wrote.
        photo: the file of a picture, which need not be in the index; or, if there is no such file, the name of a
            picture of the index as a search shows it. Its own code is then the query, no picture is read, and the
            results leave it out.
        text: words that describe the pictures wanted, instead of a photo. The index must have been made with
            `--backbone open_clip:NAME/TAG`, or hf:NAME of a CLIP or SigLIP model, whose library must be installed.
        weights: with --text, a file or folder of the backbone's weights, if they are not where its name says.
        k: number of pictures to find, at most.
        radius: largest Hamming distance, in bits.
        rerank: margins ranks the nearest pictures again, by the sum of the query's margins over the bits in which the
            codes differ; the first 10 times as many as wanted, 100 at least.
        json: write JSON and nothing else to the standard output.
        html: also write a page, one file with thumbnails and the regions that matched. Only such a page is overwritten.
        root: the folder where the pictures are now, if they were moved.
        uri: the Milvus server that the index is on; by default the environment variable MILVUS_URI, else the address
            in the index. The token in MILVUS_TOKEN is sent only to an address that is given in one of the first two
            ways.
    """
    from pathlib import Path

    from hashgym.data.pictures import open_image
    from hashgym.gallery import open_gallery, page
    from hashgym.gallery.search import REGIONS

    if (photo is None) == (text is None):
        raise ValueError("give the file of a photo (or the name of a picture of the index), or --text, not both")
    if text is None and weights is not None:
        raise ValueError("--weights is for --text: an index has all that it needs to search by a photo")
    if html is not None:
        page.require_writable(html)
    picture = open_image(Path(photo)) if photo is not None and _is_file(index, photo) else None
    with open_gallery(index, root, uri) as gallery:
        if photo is None:
            assert text is not None
            name, matches = text, gallery.search_text(text, k, radius, rerank, weights)
        elif picture is not None:
            name, matches = Path(photo).name, gallery.search(picture, k, radius, rerank)
        elif (row := gallery.names.row(photo)) is None:
            raise ValueError(
                f"the photo {photo} does not exist: name the index, then the file of a photo, or the name of a picture "
                f"of the index{gallery.names.suggestion(photo)}"
            )
        elif rerank is not None:
            raise ValueError("--rerank needs the file of a photo, as an index keeps no margins: name one")
        else:
            name, matches = photo, gallery.search_name(photo, k, radius)
            picture = None if html is None else page.indexed_picture(gallery, int(gallery.ids[row]))
        if html is not None:
            page.write(page.results(gallery, picture, matches, name), html)
    if json:
        _print_json(
            {
                "query": photo if text is None else text,
                "bits": gallery.encoder.bits,
                "images": len(gallery),
                "matches": [
                    {
                        "id": match.id,
                        "name": match.name,
                        "path": None if match.path is None else str(match.path),
                        "distance": match.distance,
                        **({} if rerank is None else {"weighted": match.weighted}),
                        "region": REGIONS[match.region],
                        "box": match.box,
                    }
                    for match in matches
                ],
            }
        )
        return
    if not matches:
        if radius is None:
            _print("there is no other picture in the index")
        else:
            _print(f"none of {len(gallery):,} pictures is within {radius} bits: increase --radius, or leave it out")
    else:
        weighted = () if rerank is None else ("weighted",)
        table = _table("rank", "distance", *weighted, "picture", "region that matched")
        for rank, match in enumerate(matches, 1):
            weight = () if match.weighted is None else (f"{match.weighted:.4f}",)
            table.add_row(str(rank), str(match.distance), *weight, printable(match.name), REGIONS[match.region])
        _print(table)
    if html is not None:
        _say(_styled(html, "green"), " shows these pictures.")


def _is_file(index: str, photo: str) -> bool:
    """Return whether the photo of `hashgym search` is a file; otherwise it may be a name in the index.

    Raises:
        ValueError: if the index does not exist, or the two are in the wrong order.
    """
    if os.path.isdir(photo) and not os.path.isdir(index):
        missing = "" if os.path.exists(index) else f", and there is no file {index}"
        raise ValueError(
            f"the arguments are in the wrong order: {photo} is a folder{missing}; the index comes first, then the "
            f"photo: `hashgym search {quote(photo)} {quote(index)}`"
        )
    if not os.path.exists(index):
        raise ValueError(f"the index {index} does not exist: name the folder that `hashgym index` wrote, then a photo")
    return os.path.exists(photo)


def duplicates(
    index: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="INDEX")],
    /,
    *,
    radius: int = 2,
    json: Flag = False,
    html: str | None = None,
    root: str | None = None,
    uri: str | None = None,
) -> None:
    """List groups of pictures in an index that look alike: their codes are near each other. Nothing is deleted.

    Near codes do not prove that files are equal. In each group the largest picture (most pixels, then most bytes) and
    the one that was changed the longest ago are marked.

    Example: `hashgym duplicates INDEX --radius 2 --html alike.html`.

    Args:
        index: a folder that `hashgym index` wrote.
        radius: largest Hamming distance of two pictures that are put into one group, in bits; 0 for equal codes.
        json: write JSON and nothing else to the standard output.
        html: also write a page, one file with thumbnails. Only such a page is overwritten.
        root: the folder where the pictures are now, if they were moved.
        uri: the Milvus server that the index is on, as for `hashgym search`.
    """
    from hashgym.gallery import find_duplicates, open_gallery, page

    if html is not None:
        page.require_writable(html, "duplicates")
    with open_gallery(index, root, uri) as gallery:
        groups = find_duplicates(gallery, radius, progress=not json and _is_terminal())
        if html is not None:
            page.write(page.duplicates(gallery, groups, radius), html)
    if json:
        _print_json(
            {
                "radius": radius,
                "bits": gallery.encoder.bits,
                "images": len(gallery),
                "groups": [
                    {
                        "pictures": [
                            {
                                "id": picture.id,
                                "name": picture.name,
                                "path": None if picture.path is None else str(picture.path),
                                "width": picture.size[0],
                                "height": picture.size[1],
                                "bytes": picture.bytes,
                                "modified": picture.modified,
                                "largest": picture.largest,
                                "oldest": picture.oldest,
                            }
                            for picture in group.pictures
                        ]
                    }
                    for group in groups
                ],
            }
        )
        return
    if not groups:
        _print(f"no two of {counted(len(gallery), 'picture')} have codes within {counted(radius, 'bit')} of each other")
    else:
        table = _table("group", "picture", "pixels", "kB", "changed", "")
        for number, group in enumerate(groups, 1):
            for picture in group.pictures:
                size = "unknown" if picture.bytes is None else f"{picture.bytes / 1000:,.1f}"
                table.add_row(
                    *(str(number), printable(picture.name), f"{picture.size[0]} x {picture.size[1]}", size),
                    *(picture.time or "unknown", ", ".join(picture.marks)),
                )
        alike = counted(sum(map(len, groups)), "picture")
        _print(table, f"{counted(len(groups), 'group')} of {alike} that look alike, of {len(gallery):,}")
    if html is not None:
        _say(_styled(html, "green"), " shows these pictures.")


def serve(
    index: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="INDEX")],
    /,
    *,
    port: int = 8000,
    root: str | None = None,
    uri: str | None = None,
    max_megabytes: int = 32,
    max_megapixels: int = 50,
    max_seconds: float = 20,
    token: str | None = None,
    weights: str | None = None,
) -> None:
    """Search in a browser: serve a page on this machine, to users who have its address, until Ctrl-C.

    Example: `hashgym serve INDEX`, then open the address that it prints.

    Args:
        index: a folder that `hashgym index` wrote.
        port: a free port; 0 for any.
        root: the folder where the pictures are now, if they were moved.
        uri: the Milvus server that the index is on, as for `hashgym search`.
        max_megabytes: size limit of an uploaded file.
        max_megapixels: size limit of an uploaded picture, and of pictures in the index.
        max_seconds: time limit for decoding one picture.
        token: the secret in the address; random by default. Other users can see the arguments of a command, but not the
            environment variable HASHGYM_TOKEN. With `--token ""` every user of this machine can search.
        weights: for searching by words, a file or folder of the backbone's weights, as for `hashgym search --text`.
    """
    from hashgym.gallery.server import serve as run

    limits = {"max_bytes": max_megabytes * 2**20, "max_pixels": max_megapixels * 10**6}
    run(index, port, root=root, uri=uri, **limits, seconds=max_seconds, token=token, weights=weights)


COMMANDS: dict[str, Callable[..., Any]] = {
    "datasets": datasets,
    "features": features,
    "words": words,
    "info": info,
    "train": train,
    "backbones": backbones,
    "hashers": hashers,
    "export": export,
    "encode": encode,
    "index": index,
    "search": search,
    "duplicates": duplicates,
    "serve": serve,
}


def main(args: Sequence[str] | None = None) -> None:
    """Run a command.

    Args:
        args: the words after ``hashgym``; those of this process by default.

    Raises:
        SystemExit: with 2 for wrong arguments or data, 1 for a damaged folder, 130 for Ctrl-C, 141 if the reader of the
            output is gone.
    """
    from hashgym.storage.atomic import explain_full_disk

    words = list(sys.argv[1:] if args is None else args)
    with command_line():
        wants_version(words)
        if words and not words[0].startswith("-") and words[0] not in COMMANDS:
            raise ValueError(
                f"there is no command {words[0]!r}{closest(words[0], COMMANDS)}: choose one of {', '.join(COMMANDS)}"
            )
        if words[:1] == ["train"] and len(words) > 1 and words[1] not in ("-h", "--help"):
            COMMANDS["train"](words[1], tuple(words[2:]))  # the options depend on the agent or hasher
            return
        with arguments(words):
            run = tyro.extras.subcommand_cli_from_dict(
                {name: _deferred(command) for name, command in COMMANDS.items()},
                prog="hashgym",
                description=DESCRIPTION,
                args=_escape_dashes(words),
            )
        with explain_full_disk("the output"):
            run()


def _deferred(command: Callable[..., Any]) -> Callable[..., Callable[[], Any]]:
    """Return a function that takes a command's arguments and returns the call, which is made later."""

    @functools.wraps(command)
    def bind(*args: Any, **options: Any) -> Callable[[], Any]:
        return functools.partial(command, *args, **options)

    return bind


def _escape_dashes(words: list[str]) -> list[str]:
    """Return the words of a command, with ``./-dash.jpg`` for ``-dash.jpg`` if that is a file and not an option."""
    if not words or words[0] not in COMMANDS:
        return words
    names = inspect.signature(COMMANDS[words[0]]).parameters
    options = {"-h", "-k", "--", "--help"} | {f"--{name.replace('_', mark)}" for name in names for mark in "_-"}
    return [
        f"./{word}" if word.startswith("-") and word.split("=")[0] not in options and os.path.lexists(word) else word
        for word in words
    ]


def _lines(value: Any) -> str:
    """Return an entry of the provenance as text, a dictionary with one line for each key."""
    if isinstance(value, dict):
        return "\n".join(f"{key}: {entry}" for key, entry in value.items()) or "none"
    return str(value)


def _print_split(counts: Mapping[str, str]) -> None:
    """Print the counts of every label in a split, or of the first ones if there are many."""
    lines = [f"  {printable(label)}: {count}" for label, count in counts.items()]
    more = [f"  ... and {len(lines) - SHOWN:,} more, which `hashgym info` shows"] if len(lines) > SHOWN else []
    _print(*lines[:SHOWN], *more)


# Short names for hashgym.console, which is imported at first use so that help is quick.


def _table(*columns: str, padding_below: int = 0) -> Any:
    from hashgym.console import plain_table

    return plain_table(*columns, padding_below=padding_below)


def _styled(text: object, style: str) -> Any:
    from hashgym.console import styled

    return styled(text, style)


def _print(*things: Any) -> None:
    """Print tables and strings, each in lines of its own."""
    from hashgym.console import Console

    console = Console()
    for thing in things:
        console.print(thing)


def _say(*parts: Any) -> None:
    """Print one line of several parts."""
    from hashgym.console import say

    say(*parts)


def _is_terminal() -> bool:
    """Return whether the standard output is a terminal; it may be closed."""
    return sys.stdout is not None and sys.stdout.isatty()


def _print_json(content: Any) -> None:
    from hashgym.console import say_json

    say_json(content)


def _stopped(out: str) -> NoReturn:
    """Print after Ctrl-C how to resume, and exit."""
    from pathlib import Path

    from hashgym.gallery.encode import unfinished

    partial = unfinished(Path(out))
    _error(f"stopped; the same command resumes from {partial}" if partial.is_dir() else "stopped; nothing was written")
    raise SystemExit(130) from None


def _error(message: str) -> None:
    from hashgym.console import error

    error(message)


if __name__ == "__main__":
    main()
