"""Exported heads give the bits of the trained policies and hashers, to the last."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import hashgym
from hashgym import codes, data, hashers
from hashgym.codes import CodeSets
from hashgym.data import HashingDataset
from hashgym.encoders import load_encoder
from hashgym.encoders.heads import GroupsHead, RegionsHead, hasher_head, signs
from hashgym.encoders.write import write
from hashgym.hashers import Hasher, NotFittedError
from hashgym.hashers.base import Features, Labels
from hashgym.hashers.ksh import KSH
from hashgym.hashers.sdh import SDH

ROWS = 10_000


@cache
def digits() -> HashingDataset:
    return data.load("digits")


@cache
def raw() -> Features:
    """The digits, and random vectors about as far from their mean: ROWS rows in all."""
    learnt = digits().standardized()
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal((ROWS - len(learnt.features), learnt.dim), np.float32)
    assert learnt.scale is not None
    return np.concatenate([digits().features, drawn * learnt.scale + learnt.center])


def moved(dataset: HashingDataset, x: Features) -> Features:
    return (x - dataset.center) / dataset.scale  # type: ignore[operator]


def fitted(name: str, **settings: Any) -> Hasher:
    learnt = digits().standardized()
    quick = {"updates": 30, "hidden": 48, "anchors": 60, "labelled": 200, "iterations": 3} | settings
    known = hashers.make(name).parameters()
    hasher = hashers.make(name, bits=24, **{key: value for key, value in quick.items() if key in known})
    rows = learnt.train[:400]
    return hasher.fit(learnt.features[rows], learnt.labels[rows])


def check(hasher: Hasher, path: Path) -> None:
    """Equal codes of features as extracted, read by ONNX Runtime, and of standardised ones, by the hasher itself."""
    learnt = digits().standardized()
    write(path, hasher_head(hasher), dim=learnt.dim, bits=24, source={}, center=learnt.center, scale=learnt.scale)
    encoder = load_encoder(path)
    values, margin = hasher.transform(moved(learnt, raw())), encoder.margins(raw())[:, 0]
    different = ((margin > 0) != (values > 0)).sum()
    if isinstance(hasher, (KSH, SDH)):  # large weights cancel each other, so that rounding weighs more
        assert np.abs(margin - values).max() < 3e-4 * values.std()
        assert different <= 5
    else:
        assert different == 0
    assert (encoder.encode(raw()).words[:, 0] == codes.pack(margin > 0)).all()
    assert len(np.unique(codes.pack(values > 0))) > 100  # or nothing were shown


@pytest.mark.parametrize("name", hashers.available())
def test_every_hasher(name: str, tmp_path: Path) -> None:
    check(fitted(name), tmp_path / "x.onnx")


def test_a_network_without_a_hidden_layer(tmp_path: Path) -> None:
    check(fitted("csq", hidden=0), tmp_path / "x.onnx")


def test_a_hasher_from_its_file(tmp_path: Path) -> None:
    fitted("sh").save(tmp_path / "sh.npz")
    check(hashers.load(tmp_path / "sh.npz"), tmp_path / "x.onnx")


@dataclass(kw_only=True, eq=False)
class Corner(Hasher):
    """Bits that say whether a coordinate is beyond the largest of the training images; computed by NumPy alone."""

    def _fit(self, X: Features, y: Labels | None) -> None:
        self.corner_ = X.max(0)[: self.bits]

    def _transform(self, X: Features) -> Features:
        return np.maximum(X[:, : self.bits] - self.corner_, 0)


class OwnHead(Corner):
    """The same in torch as well."""

    def head(self) -> nn.Module:
        class Beyond(nn.Module):
            def forward(self, X: Tensor) -> Tensor:
                return (X[:, :3] - corner).clamp(min=0)

        corner = torch.from_numpy(self.corner_)
        return Beyond()


class WrongHead(Corner):
    def head(self) -> nn.Module:
        return nn.Linear(5, 3)


def test_a_hasher_of_ones_own_needs_a_head_where_torch_cannot_run_it() -> None:
    X = np.random.default_rng(0).standard_normal((8, 5), np.float32)
    with pytest.raises(ValueError, match=r"Corner cannot be exported.*namespace.*head\(\)"):
        hasher_head(Corner(bits=3).fit(X))
    with pytest.raises(ValueError, match="WrongHead returns other values"):
        hasher_head(WrongHead(bits=3).fit(X))
    own = OwnHead(bits=3).fit(X)
    values = hasher_head(own)(torch.from_numpy(2 * X)).numpy()
    np.testing.assert_array_equal(values, own.transform(2 * X))
    with pytest.raises(NotFittedError):
        hasher_head(Corner(bits=3))


def test_a_head_is_a_copy() -> None:
    hasher = fitted("itq")
    x = torch.from_numpy(raw()[:5])
    head = hasher_head(hasher)
    before = head(x)
    hasher.center_ += 1  # type: ignore[attr-defined]
    assert torch.equal(head(x), before)
    assert isinstance(hasher.center_, np.ndarray)  # type: ignore[attr-defined]


class Parity(nn.Module):
    """A group's bits say whether the image's number is above the number of ones so far, and in which group we are."""

    def act(self, image: Tensor, code: Tensor, group: int, state: Any) -> tuple[Tensor, Any]:
        ones = (code > 0).sum(1, keepdim=True)
        step = 0 if state is None else state
        assert step == group
        assert (code[:, 2 * group :] == 0).all()
        assert (code[:, : 2 * group] != 0).all()
        above = image - ones - 0.5
        return torch.cat([above, -above if group % 2 else above], dim=1), step + 1


def test_groups_see_the_bits_before() -> None:
    values = GroupsHead(Parity(), bits=5, group_bits=2)(torch.tensor([[-1.0], [1.0], [9.0]]))
    # -1: below all; 1: above 0 ones, then below 2: in group 1 the second bit is turned, and 3 ones are too many
    assert (values > 0).tolist() == [
        [False, False, False, True, False],
        [True, True, False, True, False],
        [True, True, True, False, True],
    ]
    assert signs(torch.tensor([-0.5, 0.0, 0.5])).tolist() == [-1, -1, 1]


class Toy(nn.Module):
    """Keeps a region by how much it is like the image, and, in turn, unlike what is kept."""

    def __init__(self, in_turn: bool) -> None:
        super().__init__()
        self.in_turn = in_turn

    def keep(self, observation: dict[str, Tensor]) -> Tensor:
        shown = {key: torch.as_tensor(part) for key, part in observation.items()}
        score = (shown["image"] * shown["region"]).mean(1) + (shown["image_code"] * shown["region_code"]).mean(1) / 2
        if self.in_turn:
            score = score - (shown["kept"] * shown["region_code"]).mean(1) * (1 + shown["kept"][:, 0])
        return torch.sigmoid(3 * score)

    def keep_probability(self, observation: dict[str, NDArray[Any]]) -> NDArray[np.float64]:
        return self.keep(observation).double().numpy()  # type: ignore[arg-type]


@pytest.mark.parametrize("threshold", [None, 0.5, 0.3, 0.0, 1.0])
def test_regions_are_kept_as_encode_regions_keeps_them(threshold: float | None, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    views = rng.standard_normal((400, 6, 4), np.float32)
    base = hashers.make("lsh", bits=9).fit(views[:, 0])
    keeper, xi, path = Toy(threshold is not None), 0.5 if threshold is None else threshold, tmp_path / "x.onnx"
    head = RegionsHead(hasher_head(base), keeper, threshold=threshold)
    write(path, head, dim=4, bits=9, regions=5, sigma=0.5, threshold=xi, source={})
    encoder = load_encoder(path)
    for count in (6, 4, 2):
        expected = hashgym.encode_regions(
            keeper, base, views[:, 0], views[:, 1:count], threshold=xi, sequential=threshold is not None
        )
        found = encoder.encode(views[:, :count])
        np.testing.assert_array_equal(found.words, expected.words)
        np.testing.assert_array_equal(found.kept, expected.kept)
    if xi in (0.3, 0.5):
        assert 1.1 < expected.anhc < 1.9
    alone = encoder.encode(views[:, 0])
    assert (alone.words == CodeSets.of(base.encode(views[:, 0])).words).all()
    assert alone.kept.all()
