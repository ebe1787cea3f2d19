"""GIST against filters written out one by one."""

import numpy as np
import pytest
from PIL import Image

from hashgym import features
from hashgym.features import gist

SIDE = 64


def photo(seed: int, side: int = SIDE) -> np.ndarray:
    """A smooth random picture."""
    small = np.random.default_rng(seed).integers(40, 200, (9, 11, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC))


def grating(degrees: float, cycles_a_pixel: float) -> np.ndarray:
    """Light that varies along a direction counterclockwise from the horizontal."""
    y, x = np.mgrid[:SIDE, :SIDE]
    along = x * np.cos(np.radians(degrees)) - y * np.sin(np.radians(degrees))
    grey = 128 + 100 * np.sin(2 * np.pi * cycles_a_pixel * along)
    return np.repeat(grey[:, :, None], 3, axis=2).round().astype(np.uint8)


def table(picture: np.ndarray) -> np.ndarray:
    """GIST as (scale, orientation, row, column)."""
    return features.make("gist", size=len(picture))(picture[None])[0].reshape(4, 8, 4, 4)


def low_pass(values: np.ndarray, side: int) -> np.ndarray:
    m = len(values)
    out = np.fft.fft2(values)
    for v in range(m):
        for u in range(m):
            f = np.hypot(min(u, m - u), min(v, m - v)) / m * side  # cycles a picture
            out[v, u] *= np.exp(-(f**2) * np.log(2) / 4**2)
    return np.fft.ifft2(out).real


def naive(picture: np.ndarray) -> np.ndarray:
    """In double precision, with full transforms, centred spectra and a loop over the filters and cells."""
    side, margin = len(picture), len(picture) // 4
    m = side + 2 * margin
    grey = picture.astype(np.float64).mean(2)
    grey = np.log(1 + 255 * (grey - grey.min()) / (grey.max() - grey.min()))
    padded = np.pad(grey, margin, mode="symmetric")
    detail = padded - low_pass(padded, side)
    even = detail / (0.2 + np.sqrt(np.abs(low_pass(detail**2, side))))
    spectrum = np.fft.fft2(np.pad(even[margin:-margin, margin:-margin], margin, mode="symmetric"))
    fy, fx = np.mgrid[-m // 2 : m // 2, -m // 2 : m // 2]
    numbers = []
    for scale in range(4):
        for orientation in range(8):
            angle = np.angle(fx + 1j * fy) + orientation * np.pi / 8
            angle[angle > np.pi] -= 2 * np.pi
            along = np.hypot(fx, fy) / m / (0.3 / 1.85**scale) - 1
            passed = np.fft.ifftshift(np.exp(-10 * 0.35 * along**2 - 2 * np.pi * angle**2))
            response = np.abs(np.fft.ifft2(spectrum * passed))[margin:-margin, margin:-margin]
            for row in np.split(response, 4):
                numbers += [cell.mean() for cell in np.split(row, 4, axis=1)]
    return np.array(numbers)


@pytest.mark.parametrize("side", [16, 20, 64])
def test_against_a_loop_over_filters(side):
    picture = photo(0, side)
    backbone = features.make("gist", size=side)
    values = backbone(picture[None])
    assert (values.shape, values.dtype, backbone.dim, backbone.size) == ((1, 512), np.float32, 512, side)
    expected = naive(picture)
    assert expected.std() > 0.02
    np.testing.assert_allclose(values[0], expected, atol=2e-4 * expected.max())


@pytest.mark.parametrize("orientation", range(8))
@pytest.mark.parametrize("scale", [0, 1, 2])
def test_a_grating_answers_in_its_own_channel(orientation, scale):
    answers = table(grating(orientation * 22.5, 0.3 / 1.85**scale))[:, :, 1:3, 1:3].mean((2, 3))
    assert np.unravel_index(answers.argmax(), answers.shape) == (scale, orientation)
    around = answers[scale, [(orientation - 1) % 8, (orientation + 1) % 8]]
    assert around[0] == pytest.approx(around[1], rel=0.1)
    assert answers[scale, (orientation + 4) % 8] < 0.3 * answers[scale, orientation]


@pytest.mark.parametrize("row", range(4))
@pytest.mark.parametrize("column", [0, 3])
def test_a_pattern_answers_in_its_own_cell(row, column):
    picture = np.full((SIDE, SIDE, 3), 128, np.uint8)
    where = slice(16 * row + 3, 16 * row + 13), slice(16 * column + 3, 16 * column + 13)
    picture[where] = grating(45, 0.3)[where]
    energy = table(picture)[0, 2]
    assert np.unravel_index(energy.argmax(), (4, 4)) == (row, column)
    assert energy[row, column] > 0.6 * energy.sum()


def test_light_added_everywhere_changes_nothing():
    picture = photo(1)
    np.testing.assert_array_equal(table(picture + np.uint8(30)), table(picture))
    darker = (picture * 0.6 + 20).astype(np.uint8)
    assert np.abs(table(darker) - table(picture)).mean() < 0.1 * table(picture).mean()


def test_a_flat_picture_is_all_zero():
    assert not table(np.full((SIDE, SIDE, 3), 77, np.uint8)).any()


def test_alone_as_in_a_batch_and_every_time():
    batch = np.stack([photo(seed) for seed in range(5)])
    first, again = features.make("gist"), features.make("gist")
    values = first(batch)
    np.testing.assert_array_equal(again(batch), values)
    for picture, row in zip(batch, values, strict=True):
        np.testing.assert_array_equal(first(picture[None])[0], row)


def test_small_and_oblong_pictures_are_stretched():
    backbone = features.make("gist")
    for shape in ((32, 32), (50, 20)):
        image = Image.fromarray(np.resize(photo(2), (*shape, 3)))
        assert backbone.preprocess(image).shape == (64, 64, 3)


@pytest.mark.parametrize("shape", [(2, 64, 64), (2, 64, 32, 3), (0, 64, 64, 3)])
def test_a_batch_of_another_shape_is_rejected(shape):
    with pytest.raises(ValueError, match=r"gist takes preprocessed pictures, uint8 \(n, 64, 64, 3\)"):
        features.make("gist")(np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 62}, "multiple of 4, at least 16, got 62"),
        ({"size": 12}, "multiple of 4, at least 16, got 12"),
        ({"size": 0}, "at least 1"),
        ({"weights": "w.npy"}, "neither weights"),
        ({"runtime": "torch"}, "neither weights"),
        ({"device": "cuda"}, "neither weights"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        features.make("gist", **options)


def test_filters_differ_and_tile_the_frequencies():
    bank = gist.transfer_functions(SIDE)
    assert (bank.shape, bank.dtype) == ((32, 96, 96), np.float32)
    overlap = (bank.reshape(32, -1) @ bank.reshape(32, -1).T) / (bank**2).sum((1, 2))
    np.fill_diagonal(overlap, 0)
    assert overlap.max() < 0.95
    both_halves = bank + np.roll(bank[:, ::-1, ::-1], 1, axis=(1, 2))
    radius = np.hypot(np.fft.fftfreq(96)[:, None], np.fft.fftfreq(96))
    assert both_halves.sum(0)[(radius > 0.045) & (radius < 0.3)].min() > 0.9
