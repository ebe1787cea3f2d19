"""GIST: how much of every orientation and scale there is in each part of a picture.

A. Oliva and A. Torralba, "Modeling the shape of the scene: a holistic representation of the spatial envelope", IJCV
42(3), 2001; filters and contrast normalisation with the constants of the authors' released program.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from hashgym.features.backbone import Backbone, Stretch, check_size

__all__ = ["CELLS", "ORIENTATIONS", "SCALES", "contrast", "describe", "make", "transfer_functions"]

SCALES, ORIENTATIONS, CELLS = 4, 8, 4
FINEST, RATIO = 0.3, 1.85  # centre frequency of the finest scale, cycles a pixel; factor between scales
CUTOFF = 4  # cycles a picture below which light and contrast are normalised


def make(
    *, size: int | None = None, weights: str | None = None, device: str = "auto", runtime: str = "auto"
) -> Backbone:
    """Return the backbone GIST: of the grey picture at size x size (64), 4 scales x 8 orientations x 4 x 4 cells = 512.

    Features are in this order: scales from fine to coarse; in each the orientations, where number j responds to
    gratings that vary along the direction j * 22.5 degrees counterclockwise from the horizontal; in each the cells,
    row by row.

    Raises:
        ValueError: for a size that is not a multiple of 4 or is below 16, for weights, a device or a runtime.
    """
    if weights is not None or device not in ("auto", "cpu") or runtime != "auto":
        raise ValueError("the backbone `gist` takes neither weights nor a device nor a runtime")
    side = check_size(size, 64)
    if side < 16 or side % CELLS:
        raise ValueError(f"the size of `gist` must be a multiple of {CELLS}, at least 16, got {side}")
    bank = transfer_functions(side)

    def network(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.stack([describe(picture, bank) for picture in batch])  # one by one: 32 responses fill the cache

    return Backbone(
        name="gist",
        dim=SCALES * ORIENTATIONS * CELLS**2,
        size=side,
        preprocessing=f"bicubic to {side} x {side}, mean of R, G and B from 0 to 255, local contrast",
        weights="",
        digest="",
        runtime="scipy",
        preprocess=Stretch(side),
        network=network,
    )


def describe(picture: NDArray[np.uint8], bank: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return GIST, float32 (512,), of a picture, uint8 (size, size, 3), by filters of :func:`transfer_functions`."""
    side = len(picture)
    margin = side // 4
    inside = slice(margin, margin + side)
    spectrum = scipy.fft.fft2(np.pad(contrast(picture), margin, mode="symmetric"))
    # Columns of the margin are dropped between the two passes, which saves a third of the second.
    half = scipy.fft.ifft(spectrum * bank, axis=2, overwrite_x=True)[:, :, inside]
    response = np.abs(scipy.fft.ifft(half, axis=1)[:, inside])
    cell = side // CELLS
    return response.reshape(len(bank), CELLS, cell, CELLS, cell).mean((2, 4)).reshape(-1)


def contrast(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the logarithm of the grey picture, less its local mean, over its local deviation: float32 (size, size)."""
    side = len(picture)
    margin = side // 4
    grey = picture.sum(axis=2, dtype=np.int32)
    grey -= grey.min()
    light: NDArray[np.float32] = np.log1p(grey.astype(np.float32) * np.float32(255 / max(grey.max(), 1)))
    padded = np.pad(light, margin, mode="symmetric")
    x, y = _frequencies(len(padded))
    # Falls to one half at the cutoff.
    low_pass = np.exp2(-(x**2 + y**2) * (side / CUTOFF) ** 2).astype(np.float32)[:, : len(padded) // 2 + 1]

    def blur(values: NDArray[np.float32]) -> NDArray[np.float32]:
        return scipy.fft.irfft2(scipy.fft.rfft2(values) * low_pass, s=values.shape)

    detail: NDArray[np.float32] = padded - blur(padded)
    deviation: NDArray[np.float32] = np.sqrt(np.abs(blur(detail * detail)))
    return (detail / (deviation + np.float32(0.2)))[margin:-margin, margin:-margin]


def transfer_functions(side: int) -> NDArray[np.float32]:
    """Return the filters' spectra, float32 (32, m, m) with m = 1.5 side, for pictures with a margin of a quarter.

    Filter number 8 s + j is exp(-3.5 (f / f_s - 1)² - 2π (θ + jπ / 8)²), with f_s = 0.3 / 1.85^s cycles a pixel and
    the angle in [-π, π]: it passes one half of the plane, so that the response's magnitude is its envelope.
    """
    x, y = _frequencies(side + 2 * (side // 4))
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    scale, orientation = np.divmod(np.arange(SCALES * ORIENTATIONS)[:, None, None], ORIENTATIONS)
    turned = (angle + orientation * np.pi / ORIENTATIONS + np.pi) % (2 * np.pi) - np.pi
    along = radius / (FINEST / RATIO**scale) - 1
    return np.exp(-3.5 * along**2 - 2 * np.pi * turned**2).astype(np.float32)


def _frequencies(m: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return horizontal and vertical frequencies in cycles a pixel of a spectrum's m x m entries; y points down."""
    frequency = np.fft.fftfreq(m)
    return frequency[None, :], frequency[:, None]
