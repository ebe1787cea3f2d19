"""From what was learnt to an encoder: what ``hashgym export`` does."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hashgym import hashers
from hashgym.data import load
from hashgym.data.dataset import DataError, HashingDataset
from hashgym.data.sealed import sync
from hashgym.encoders.encoder import Encoder, load_encoder

if TYPE_CHECKING:
    from hashgym.encoders.export import Agreement
    from hashgym.features import Backbone

__all__ = ["Exported", "backbone_of", "export"]

COMPARED = 10_000  # images at most
POLICY = "policy.onnx"


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        encoder: the file, opened.
        agreement: of its codes with those of the hasher it was made of; None where no features were given, or of a run,
            which was compared with its policy when it wrote its own file.
    """

    encoder: Encoder
    agreement: Agreement | None


def export(
    source: str | Path,
    out: str | Path,
    *,
    features: str | Path | None = None,
    bits: int | None = None,
    seed: int = 0,
    standardized: bool = True,
    features_only: bool = False,
    weights: str | None = None,
) -> Exported:
    """Write an encoder.

    Args:
        source: the folder of a training run or its ``policy.onnx``; a file that :meth:`hashgym.hashers.Hasher.save`
            wrote; or the name of a hasher, which is fitted to the training images of ``features`` here and now.
        out: the file to write.
        features: the features that were learnt from; a hasher needs them. Its codes are compared on up to 10,000.
        bits: q, of a hasher that is fitted here.
        seed: of a hasher that is fitted here.
        standardized: whether a saved hasher was fitted to ``dataset.standardized()``, as all of ours are.
        features_only: leave out the backbone, so that the encoder takes features.
        weights: the file of the backbone's weights, where they are not its own.

    Raises:
        ValueError: for a source that is none, options that it does not take, a backbone that cannot be had or has other
            weights, or an encoder whose bits are others than the hasher's.
    """
    from hashgym.encoders.export import add_backbone, compare

    target, place = Path(out), Path(source)
    if target.exists():
        raise DataError(f"{target} exists already: remove it, or choose another --out")
    run = place / POLICY if place.is_dir() else place if place.suffix == ".onnx" else None
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        head, agreement = Path(work) / "head.onnx", None
        if run is not None:
            if bits is not None:
                raise ValueError("--bits belongs to a hasher that is fitted here: a run has its length already")
            if not run.is_file():
                raise DataError(
                    f"{place} has no {POLICY}, which a finished training run writes where onnx is installed "
                    "(pip install 'hashgym[onnx]'): finish it with --resume"
                )
            head = run
        else:
            extracted, dataset, hasher = _hasher(place, str(source), features, bits, seed, standardized)
            _write(head, hasher, dataset, str(source))
            rows = np.unique(np.linspace(0, len(dataset) - 1, COMPARED).astype(np.int64))
            agreement = compare(head, hasher.encode(dataset.features[rows]), extracted.features[rows])
            if not agreement.exact:
                raise ValueError(
                    f"ONNX Runtime gives {agreement.different - agreement.different_ties:,} of "
                    f"{agreement.bits:,} bits otherwise than {source}, beyond rounding: nothing was written; "
                    "another version of onnxruntime may mend it"
                )
        encoder, final = load_encoder(head), head
        if features is not None and run is not None:
            _check_features(encoder, features)
        if encoder.takes == "features" and not features_only:
            final = Path(work) / "encoder.onnx"
            add_backbone(head, final, backbone_of(encoder, weights))
        elif encoder.takes == "pictures":
            raise ValueError(f"{run} takes pictures already: copy it")
        temporary = target.with_name(f".{target.name}.tmp")  # a killed run's is written over by the next
        try:
            shutil.copyfile(final, temporary)
            sync(temporary)
            os.replace(temporary, target)
            sync(target.parent)
        finally:
            temporary.unlink(missing_ok=True)
    return Exported(load_encoder(target), agreement)


def backbone_of(encoder: Encoder, weights: str | None = None) -> Backbone:
    """The backbone that made the features that an encoder takes, built again.

    Raises:
        ValueError: if the encoder does not know it, or it cannot be had.
        DataError: if it has other weights than it had.
    """
    from hashgym.features import make

    made: Mapping[str, Any] | None = encoder.metadata["backbone"]
    if not made:
        raise ValueError(
            "the features that this was learnt from do not say which backbone made them, so it cannot be included: "
            "--features-only writes an encoder of features"
        )
    backbone = make(made["name"], size=made["size"], weights=weights, device="cpu")
    if backbone.digest != made["digest"]:
        raise DataError(
            f"{made['name']} has other weights here ({backbone.weights}, SHA-256 {backbone.digest[:12]}) than those "
            f"that made the features ({made['weights']}, {made['digest'][:12]}): say with --weights where those are"
        )
    return backbone


def _hasher(
    place: Path, name: str, features: str | Path | None, bits: int | None, seed: int, standardized: bool
) -> tuple[HashingDataset, HashingDataset, hashers.Hasher]:
    """The features as they were extracted, on the scale of a hasher, and that hasher, fitted."""
    saved = place.suffix == ".npz"
    if not saved and name not in hashers.HASHERS:
        raise ValueError(
            f"{name} is neither the folder of a training run, nor a saved hasher (.npz), nor the name of a hasher: "
            f"{', '.join(hashers.available())}, or package.module:Class"
        )
    if features is None:
        raise ValueError(f"{name} is a hasher: --features says which features it was, or is to be, fitted to")
    if saved == (bits is not None):
        given = "is fitted already and has its length: leave out --bits" if saved else "needs its length: --bits 64"
        raise ValueError(f"the hasher {name} {given}")
    if not saved and not standardized:
        raise ValueError("--unstandardized belongs to a saved hasher: one that is fitted here standardises")
    extracted = load(features)
    extracted = dataclasses.replace(extracted, regions=None, train_regions=None, boxes=None, train_boxes=None)
    dataset = extracted.standardized() if standardized else extracted
    if saved:
        try:
            hasher = hashers.load(place)
        except FileNotFoundError:
            raise DataError(f"{place} does not exist: `hasher.save` writes it") from None
    else:
        train = dataset.train
        hasher = hashers.make(name, bits=bits, seed=seed).fit(dataset.features[train], dataset.labels[train])
    return extracted, dataset, hasher


def _write(path: Path, hasher: hashers.Hasher, dataset: HashingDataset, source: str) -> None:
    from hashgym.encoders.export import write
    from hashgym.encoders.heads import hasher_head

    if hasher.n_features_in_ != dataset.dim:
        raise ValueError(f"{source} was fitted to {hasher.n_features_in_} features, --features has {dataset.dim}")
    write(
        path,
        hasher_head(hasher),
        dim=dataset.dim,
        bits=hasher.bits,
        source={"hasher": type(hasher).__name__, "dataset": dataset.name, "settings": hasher.get_params()},
        center=dataset.center,
        scale=dataset.scale,
        backbone=dataset.provenance.get("backbone"),
    )


def _check_features(encoder: Encoder, features: str | Path) -> None:
    """Refuse features of another backbone than the run's."""
    dataset = load(features)
    if dataset.dim != encoder.dim or dataset.provenance.get("backbone") != encoder.metadata["backbone"]:
        raise ValueError(f"{features} is of another backbone than the one that the run was trained with")
