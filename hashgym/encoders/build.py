"""Build an encoder from a training run or a hasher, as ``hashgym export`` does."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from hashgym import hashers
from hashgym.checks import check_integer, closest
from hashgym.codes import prefix_lengths
from hashgym.data import load, similarity
from hashgym.data.dataset import HashingDataset
from hashgym.encoders.encoder import Encoder, load_encoder
from hashgym.moved import keep_old_names
from hashgym.optional import find_agent
from hashgym.storage.atomic import atomic_write
from hashgym.storage.errors import DataError

if TYPE_CHECKING:
    from hashgym.encoders.write import Agreement
    from hashgym.features import Backbone

__all__ = ["BuiltEncoder", "Train", "backbone_of", "build_encoder", "fit_encoder"]

keep_old_names(__name__)

Train = Literal["split", "all"]

COMPARED, COMPARED_MAPS = 10_000, 1_000  # most images whose codes are compared: networks of activations are slower
_NUMBERS = 1 << 28  # most numbers of activations that are compared
POLICY = "policy.onnx"

NEIGHBOURS = "neighbours"
# Has the best mAP of the methods without labels in benchmarks.unsupervised.
AGENT: Mapping[str, Any] = {"variant": "norec", "reward": "nca", "logit_scale": 3.0, "updates": 1000, "num_envs": 128}


@dataclass(frozen=True)
class BuiltEncoder:
    """An encoder that was written.

    Attributes:
        encoder: the file, opened.
        agreement: of its codes with those of its hasher; None for a run, whose encoder was compared with its policy
            when the run wrote it.
    """

    encoder: Encoder
    agreement: Agreement | None


def build_encoder(
    source: str | Path,
    out: str | Path,
    *,
    features: str | Path | None = None,
    bits: int | None = None,
    seed: int = 0,
    standardized: bool = True,
    features_only: bool = False,
    weights: str | None = None,
    train: Train = "split",
    threads: int | None = None,
    progress: bool = False,
) -> BuiltEncoder:
    """Build an encoder and write it to a file.

    Args:
        source: the folder of a training run or its ``policy.onnx``; a file that :meth:`hashgym.hashers.Hasher.save`
            wrote; or the name of a hasher, which is fitted here to the training images of ``features``.
        out: the file to write.
        features: the features that the source was trained on; a hasher needs them. Its codes are compared with the
            encoder's on up to 10,000 of them.
        bits: q, code length of a hasher that is fitted here.
        seed: seed of a hasher that is fitted here.
        standardized: whether a saved hasher was fitted to ``dataset.standardized()``, as those of hashgym are.
        features_only: leave out the backbone, so that the encoder takes features.
        weights: the file of the backbone's weights, if they are not its own; a hasher that is fitted here to
            activations trains on from them.
        train: the images that a hasher is fitted to here: the training images of the ``split``, or ``all`` images of
            ``features`` (with a label, if the hasher needs labels); measurements on the split are then meaningless.
        threads: number of threads for fitting and comparing, at most; None for the libraries' own choice.
        progress: whether to show a progress bar, if the hasher that is fitted has one.

    Raises:
        ValueError: for an unknown source, options that it does not take, a backbone that is not available or has other
            weights, an encoder whose bits differ from the hasher's, a file that exists already, or one that another
            process is writing.
    """
    from hashgym.encoders.write import add_backbone

    if train not in get_args(Train):
        raise ValueError(f"train must be one of {', '.join(get_args(Train))}, got {train!r}")
    if threads is not None:
        threads = check_integer("threads", threads)
    target, place = Path(out), Path(source)
    run = place / POLICY if place.is_dir() else place if place.suffix == ".onnx" else None
    with atomic_write(target, new=True) as file, tempfile.TemporaryDirectory() as work:
        head, agreement, backbone = Path(work) / "head.onnx", None, None
        if run is not None:
            _check_run(run, place, bits, train)
            head = run
        else:
            with _limited_threads(threads):
                extracted, dataset, settings = _hasher_data(
                    place, str(source), features, bits, seed, standardized, train, progress, weights
                )
                if not features_only:  # before a fit that may take hours
                    backbone = backbone_of(extracted.provenance.get("backbone"), weights)
                hasher = hashers.fitted(place if place.suffix == ".npz" else str(source), dataset, **settings)
                write_hasher(head, hasher, dataset, train)
                agreement = _compare(head, hasher, extracted, dataset, str(source), threads)
        encoder, final = load_encoder(head), head
        if features is not None and run is not None:
            _check_features(encoder, features)
        if encoder.takes == "features" and not features_only:
            final = Path(work) / "encoder.onnx"
            add_backbone(head, final, backbone or backbone_of(encoder.metadata["backbone"], weights))
        elif encoder.takes == "pictures":
            raise ValueError(f"{run} takes pictures already: copy it")
        with final.open("rb") as finished:
            shutil.copyfileobj(finished, file)
    return BuiltEncoder(load_encoder(target), agreement)


def fit_encoder(
    dataset: HashingDataset,
    backbone: Backbone,
    out: str | Path,
    method: str = "itq",
    *,
    bits: int,
    seed: int = 0,
    progress: bool = False,
) -> Encoder:
    """Fit a hash function without labels to all images of a dataset, and write it with its backbone as one file.

    Args:
        dataset: the features as extracted.
        backbone: extracted them.
        out: the file to write; an existing encoder is replaced.
        method: the name of a hasher that needs no labels, or ``"neighbours"``: the agent ``norec`` of
            ``agents.drlih`` learns which images are neighbours.
        bits: q, the length of the codes.
        seed: of the method.
        progress: whether to show the agent's progress bar.

    Returns:
        The same without its backbone: an encoder of features.

    Raises:
        ValueError: for data that the method cannot learn from, a backbone without an ONNX form, or an encoder whose
            bits differ from the hasher's.
    """
    from hashgym.encoders.write import add_backbone

    extracted = _train_on_all(dataset, labelled=False)
    scaled = extracted.standardized()
    with tempfile.TemporaryDirectory() as work:
        head = Path(work) / POLICY
        if method == NEIGHBOURS:
            agent = find_agent("drlih")
            args = agent.Args(**AGENT, bits=bits, seed=seed, holdout=0.0)
            k = max(2, min(similarity.NEIGHBOURS, len(scaled.train) // 4))  # of a few images not all are neighbours
            learning = scaled.with_similarity("neighbours", k=k, seed=seed)
            agent.train(learning, args, out=Path(work), progress=progress)
        else:
            fitted = hashers.fitted(method, scaled, bits=bits, seed=seed)
            write_hasher(head, fitted, scaled, "all")
            _compare(head, fitted, extracted, scaled, method, None)
        add_backbone(head, out, backbone)
        return load_encoder(head)


def backbone_of(stored: Mapping[str, Any] | None, weights: str | None = None) -> Backbone:
    """Rebuild the backbone that extracted features.

    Args:
        stored: its name, size and digest, as the features' provenance and an encoder's metadata have them.
        weights: the file of its weights; None for its own.

    Raises:
        ValueError: if there is none, or it is not available or has no ONNX form.
        DataError: if its weights have changed.
    """
    from hashgym.features import make

    if not stored:
        raise ValueError(
            "the features of this source do not name the backbone that extracted them, so it cannot be included: "
            "--features-only writes an encoder of features"
        )
    backbone = make(stored["name"], size=stored["size"], weights=weights, device="cpu", cut=stored.get("cut"))
    if backbone.digest != stored["digest"]:
        raise DataError(
            f"{stored['name']} has other weights here ({backbone.weights}, SHA-256 {backbone.digest[:12]}) than those "
            f"that extracted the features ({stored['weights']}, {stored['digest'][:12]}): give it with --weights"
        )
    backbone.to_onnx()  # raises ValueError for a network without an ONNX form, before a fit that may take hours
    return backbone


def _limited_threads(threads: int | None) -> AbstractContextManager[None]:
    """Use at most so many threads in NumPy and torch within a block."""
    if threads is None:
        return nullcontext()
    import torch

    from hashgym.threads import use_threads

    return use_threads(min(threads, torch.get_num_threads()))


def _check_run(run: Path, place: Path, bits: int | None, train: Train) -> None:
    """Reject a run without a policy, and options of hashers."""
    if bits is not None:
        raise ValueError("--bits is for a hasher that is fitted here: a run has its code length already")
    if train != "split":
        raise ValueError("--train is for a hasher that is fitted here: a run is trained already")
    if not run.is_file():
        raise DataError(
            f"{place} has no {POLICY}, which a finished training run writes where onnx is installed "
            "(pip install 'hashgym[onnx]'): finish it with --resume"
        )


def _hasher_data(
    place: Path,
    name: str,
    features: str | Path | None,
    bits: int | None,
    seed: int,
    standardized: bool,
    train: Train,
    progress: bool,
    weights: str | None,
) -> tuple[HashingDataset, HashingDataset, dict[str, Any]]:
    """Return the features as extracted, the features on the hasher's scale, and the settings of one that is fitted.

    Raises:
        ValueError: for an unknown hasher, or options that do not go together.
    """
    saved = place.suffix == ".npz"
    if not saved and name not in hashers.HASHERS:
        raise ValueError(
            f"{name} is neither the folder of a training run, nor a saved hasher (.npz), nor the name of a hasher: "
            f"{', '.join(hashers.available())}{closest(name, hashers.available())}, or package.module:Class"
        )
    if saved and not place.is_file():
        raise DataError(f"the saved hasher {place} does not exist: `Hasher.save` writes one")
    if features is None:
        raise ValueError(f"{name} is a hasher: give --features, the folder of features that it is fitted to")
    if saved == (bits is not None):
        problem = "is fitted already: leave out --bits" if saved else "needs its code length, such as --bits 64"
        raise ValueError(f"the hasher {name} {problem}")
    if not saved and not standardized:
        raise ValueError("--unstandardized is for a saved hasher: one that is fitted here gets standardised features")
    if saved and train != "split":
        raise ValueError("--train is for a hasher that is fitted here: a saved one is fitted already")
    extracted = load(features)
    extracted = dataclasses.replace(extracted, regions=None, train_regions=None, boxes=None, train_boxes=None)
    settings: dict[str, Any] = {} if saved else {"bits": bits, "seed": seed}
    if not saved and progress and "verbose" in hashers.make(name).parameters():
        settings["verbose"] = True
    if not saved and extracted.has_maps and weights is not None:
        settings["backbone_weights"] = weights
    if train == "all":
        extracted = _train_on_all(extracted, labelled=hashers.make(name).supervised)
    return extracted, extracted.standardized() if standardized else extracted, settings


def _train_on_all(dataset: HashingDataset, labelled: bool) -> HashingDataset:
    """Return the dataset with all images, or all that have a label, as its training images, and without queries.

    Raises:
        ValueError: if not all of these have views.
    """
    rows = np.arange(len(dataset))
    train = rows[dataset.labels.any(axis=1)] if labelled else rows
    if dataset.viewed is not None and not np.isin(train, dataset.viewed).all():
        raise ValueError(
            f"{dataset.name!r} has views of its training images alone: leave out --train all, or extract the "
            "activations without --views"
        )
    return dataclasses.replace(dataset, query=rows[:0], database=rows, train=train)


def write_hasher(path: Path, hasher: hashers.Hasher, dataset: HashingDataset, train: Train = "split") -> None:
    """Write an encoder of features that gives a fitted hasher's codes.

    Args:
        path: the file to write.
        hasher: the hasher, fitted to the dataset's features.
        dataset: with ``center`` and ``scale`` if it is standardised; the encoder takes features as extracted.
        train: the images that it was fitted to, recorded if they are not the training split.
    """
    from hashgym.encoders.heads import hasher_head
    from hashgym.encoders.write import write

    origin: dict[str, Any] = {"hasher": type(hasher).__name__, "dataset": dataset.name, "settings": hasher.get_params()}
    if train != "split":
        origin["train"] = train
    write(
        path,
        hasher_head(hasher),
        dim=dataset.dim,
        image_shape=dataset.image_shape,
        bits=hasher.bits,
        lengths=prefix_lengths(hasher.bits, nested) if (nested := getattr(hasher, "nested", 0)) else (),
        source=origin,
        center=dataset.center,
        scale=dataset.scale,
        backbone=dataset.provenance.get("backbone"),
    )


def _compare(
    head: Path,
    hasher: hashers.Hasher,
    extracted: HashingDataset,
    dataset: HashingDataset,
    source: str,
    threads: int | None,
) -> Agreement:
    """Compare the codes of an encoder of features with those of its hasher, on up to COMPARED images.

    Raises:
        ValueError: if they differ beyond rounding.
    """
    from hashgym.encoders.write import compare

    count = min(COMPARED_MAPS, max(2, _NUMBERS // dataset.dim)) if dataset.has_maps else COMPARED
    rows = np.unique(np.linspace(0, len(dataset) - 1, count).astype(np.int64))
    agreement = compare(head, hasher.encode(dataset.features[rows]), extracted.features[rows], threads)
    if not agreement.exact:
        raise ValueError(
            f"{agreement.different - agreement.different_ties:,} of {agreement.bits:,} bits from ONNX Runtime differ "
            f"from those of {source}, beyond rounding: nothing was written; another version of onnxruntime may fix it"
        )
    return agreement


def _check_features(encoder: Encoder, features: str | Path) -> None:
    """Raise ValueError for features of another backbone than the run's."""
    from hashgym.encoders.write import deciding

    dataset, own = load(features), encoder.metadata["backbone"]
    if dataset.dim != encoder.dim or deciding(dataset.provenance.get("backbone")) != deciding(own):
        raise ValueError(f"{features} were extracted with another backbone than those of the run: give its features")
