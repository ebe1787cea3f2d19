"""From photos to an index in one step: fit an encoder to them, encode them, and index their codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hashgym.encoders import load_encoder
from hashgym.gallery.encode import EncodingReport, EncodingSettings, update_codes
from hashgym.gallery.encoded_images import CODES, ENCODER, open_codes
from hashgym.gallery.fit import EncoderFit, check_method, method_of
from hashgym.gallery.index import CODES_OF_PHOTOS, build, check_updatable
from hashgym.gallery.search import INDEX
from hashgym.storage import owned
from hashgym.storage.errors import DataError

__all__ = ["BACKBONE", "BITS", "index_photos"]

BACKBONE, BITS = "efficientnet_lite0", 64


def index_photos(
    photos: Sequence[str | Path],
    out: str | Path,
    *,
    encoder: str | Path | None = None,
    bits: int | None = None,
    method: str | None = None,
    backbone: str | None = None,
    size: int | None = None,
    weights: str | None = None,
    backend: str | None = None,
    settings: EncodingSettings | None = None,
    options: Mapping[str, Any] | None = None,
) -> EncodingReport:
    """Make an index of photos, or update the one that was made of them: after that it has all of them, and no others.

    No labels are needed: unless there is an encoder, one is fitted to the photos (:class:`EncoderFit`) and kept. The
    codes lie in the folder ``codes`` of the index. A run that is killed continues where it was.

    Args:
        photos: files, folders (with all below them), and patterns, the same each time.
        out: the folder of the index.
        encoder: an encoder that takes pictures, instead of one that is fitted here.
        bits: length of the codes, for an encoder that is fitted here; 64 by default.
        method: by which an encoder is fitted here, see :func:`hashgym.encoders.build.fit_encoder`; by default ``itq``.
        backbone: of an encoder that is fitted here, see :func:`hashgym.features.make`; by default EfficientNet-Lite0.
        size: side in pixels of the backbone's input; None for its own.
        weights: a file or folder of the backbone's weights, see :func:`hashgym.features.make`; None for its own.
        backend: as for :func:`hashgym.gallery.build`.
        settings: for finding and encoding photos. By default those that cannot be read are left out and listed.
        options: of the back end.

    Returns:
        What was done; pictures that were left out are in ``open_codes(out / "codes").left_out``.

    Raises:
        ValueError: for an unknown backbone or back end, a backbone without an ONNX form, an encoder that takes
            features, or settings of one that is fitted here beside one that is given.
        DataError: if there are no photos; if ``out`` is something else, or has other photos or another encoder.
            Photos that ``settings.exclude`` leaves out now are dropped.
    """
    folder, settings = Path(out), settings or EncodingSettings(skip_bad=True)
    if INDEX.matches(folder):  # it may be a link to an index that was moved
        folder = folder.resolve()
    check_updatable(folder, backend, options)
    codes = folder / CODES_OF_PHOTOS
    if INDEX.matches(folder) and not CODES.matches(codes):
        raise DataError(
            f"{folder} was made of folders of codes: update those with `hashgym encode`, then the index with `hashgym "
            "index --add`; or choose another --out"
        )
    if encoder is not None:
        settings_of_fit = {"bits": bits, "method": method, "backbone": backbone, "size": size, "weights": weights}
        if needless := [name for name, value in settings_of_fit.items() if value is not None]:
            raise ValueError(f"{' and '.join(needless)}: only for an encoder that is fitted here, and one is given")
        source: str | Path | EncoderFit = encoder
    elif CODES.matches(codes):
        source, old = codes / ENCODER, open_codes(codes)
        if bits not in (None, old.bits):
            raise DataError(f"{folder} has codes of {old.bits} bits: leave out --bits, or choose another --out")
        if any(
            given is not None for given in (method, backbone, size, weights)
        ):  # opening a large network takes seconds
            own = load_encoder(source)
            if method is not None and (own_method := method_of(own)) != method:
                raise DataError(f"{folder} has an encoder by {own_method}: leave out --method, or choose another --out")
            network_there = own.metadata["backbone"]
            for option, given, has in (
                ("--backbone", backbone, network_there["name"]),
                ("--size", size, network_there["size"]),
            ):
                if given not in (None, has):
                    raise DataError(
                        f"{folder} has an encoder with {option} {has}: leave out {option}, or choose another --out"
                    )
            if weights is not None:
                from hashgym.encoders.build import backbone_of

                backbone_of(network_there, weights)  # raises ValueError for others
    else:
        from hashgym.features import make

        check_method(method)
        network = make(backbone or BACKBONE, size=size, weights=weights, device="cpu")
        source = EncoderFit(network, BITS if bits is None else bits, method)
        source.open()
    with owned.new_folder(folder):
        report = update_codes(source, photos, codes, settings, drop_excluded=True)
    build([codes], folder, backend, progress=settings.progress, options=options, replace=True)
    return replace(report, folder=Path(out))
