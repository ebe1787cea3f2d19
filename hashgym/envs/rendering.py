"""Renderings of an episode as text or as a picture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hashgym.data import HashingDataset

__all__ = ["CodeScene", "CodesScene", "RegionScene", "Scene"]

WIDTH, TILE, MARGIN = 480, 64, 12
INK, PAPER, EMPTY = (32, 32, 32), (255, 255, 255), (222, 222, 222)
ONE, SIMILAR, DISSIMILAR = (36, 92, 160), (30, 140, 70), (200, 50, 40)


@dataclass(frozen=True)
class Scene(ABC):
    """The content of a rendering: one environment at one step.

    Attributes:
        dataset: the source of thumbnails and label names.
        index: the image.
        rewards: weighted reward components of the last step.
    """

    dataset: HashingDataset
    index: int
    rewards: dict[str, float]

    @abstractmethod
    def write(self) -> str:
        """Return the scene as text."""

    @abstractmethod
    def draw(self) -> NDArray[np.uint8]:
        """Return the scene as a picture, uint8 (h, w, 3)."""

    def picture(self, index: int) -> NDArray[np.uint8] | None:
        """Return a picture of an image, uint8 (h, w, 3): its thumbnail, else its pixels; None if it has neither."""
        if self.dataset.thumbnails is not None:
            return np.asarray(self.dataset.thumbnails[index])
        if self.dataset.features.dtype == np.uint8:
            return np.asarray(self.dataset.features[index]).transpose(1, 2, 0)
        return None

    def title(self, index: int) -> str:
        """Return an image's name and labels."""
        labels = [name for name, on in zip(self.dataset.label_names, self.dataset.labels[index], strict=True) if on]
        return f"{self.dataset.names[index]} ({', '.join(labels) or 'no label'})"


@dataclass(frozen=True)
class CodeScene(Scene):
    """An image, its code so far by groups, the rewards, and the nearest codes.

    Attributes:
        bits: bool (emitted,), the code so far.
        task_bits: q, the length of the whole code.
        group_bits: k, the length of a group.
        nearest: (image, Hamming distance over the emitted bits, whether similar) of the nearest codes.
    """

    bits: NDArray[np.bool_]
    task_bits: int
    group_bits: int
    nearest: list[tuple[int, int, bool]]

    def write(self) -> str:
        """Return the scene as text."""
        cells = "".join("1" if bit else "0" for bit in self.bits).ljust(self.task_bits, "·")
        groups = [cells[i : i + self.group_bits] for i in range(0, self.task_bits, self.group_bits)]
        lines = [f"image   {self.title(self.index)}", f"code    {' '.join(groups)}"]
        lines += [f"reward  {name} {value:+.3f}" for name, value in self.rewards.items()]
        lines += [
            f"near    {'+' if similar else '-'} {distance:3d} {self.title(i)}" for i, distance, similar in self.nearest
        ]
        return "\n".join(lines)

    def draw(self) -> NDArray[np.uint8]:
        """Return the scene as a picture, uint8 (h, w, 3)."""
        from PIL import Image, ImageDraw

        line, cell, gap = 14, 9, 4  # a gap follows each group
        # Long codes are broken into rows of whole groups, as many as fit; a group that is longer than a row is broken.
        per_row = (WIDTH - MARGIN + gap) // (cell * self.group_bits + gap) * self.group_bits or 48
        strip_rows = -(-self.task_bits // per_row)
        # The number of rewards changes with the step; a video needs pictures of one size.
        height = MARGIN * 5 + TILE * 2 + strip_rows * 20 + line * 3
        picture = Image.new("RGB", (WIDTH, height), PAPER)
        pen = ImageDraw.Draw(picture)

        def tile(index: int, left: int, top: int, frame: tuple[int, int, int]) -> None:
            if (shown := self.picture(index)) is None:
                pen.rectangle((left, top, left + TILE - 1, top + TILE - 1), fill=EMPTY)
                pen.text((left + 4, top + 4), str(self.dataset.names[index])[-9:], fill=INK)
            else:
                image = Image.fromarray(np.ascontiguousarray(shown))
                picture.paste(image.resize((TILE, TILE), Image.Resampling.NEAREST), (left, top))
            pen.rectangle((left - 2, top - 2, left + TILE + 1, top + TILE + 1), outline=frame, width=2)

        tile(self.index, MARGIN, MARGIN, INK)
        right = MARGIN * 2 + TILE
        pen.text((right, MARGIN), self.title(self.index), fill=INK)
        for row, (name, value) in enumerate(list(self.rewards.items())[:4]):
            pen.text((right, MARGIN + line * (row + 1)), f"{name} {value:+.3f}", fill=INK)

        top = MARGIN * 2 + TILE
        for bit in range(self.task_bits):
            row, column = divmod(bit, per_row)
            left = MARGIN + column * cell + (column // self.group_bits) * gap
            fill = EMPTY if bit >= len(self.bits) else ONE if self.bits[bit] else PAPER
            pen.rectangle((left, top + row * 20, left + 8, top + row * 20 + 15), fill=fill, outline=INK)

        top += strip_rows * 20 + MARGIN
        pen.text((MARGIN, top), "nearest codes: Hamming distance, green where a label is shared", fill=INK)
        for place, (index, distance, similar) in enumerate(self.nearest):
            left = MARGIN + 2 + place * (TILE + MARGIN)
            tile(index, left, top + line + 8, SIMILAR if similar else DISSIMILAR)
            pen.text((left, top + line + TILE + 12), str(distance), fill=INK)
        return np.asarray(picture)


@dataclass(frozen=True)
class CodesScene(Scene):
    """An image, its codes so far and the one that is being emitted.

    Attributes:
        codes: bool (1 + m, q), the image's own code first.
        kept: for every code: kept, discarded, or None if it was not emitted yet.
        bits: bool (emitted,), the code that is being emitted.
    """

    codes: NDArray[np.bool_]
    kept: list[bool | None]
    bits: NDArray[np.bool_]

    @property
    def lines(self) -> list[tuple[str, str]]:
        """A word on each code, and its bits as text."""
        words = {True: "kept", False: "discarded", None: "next"}
        rows = []
        for place, (code, kept) in enumerate(zip(self.codes, self.kept, strict=True)):
            shown = code if kept is not None else self.bits
            cells = "".join("1" if bit else "0" for bit in shown).ljust(len(code), "·")
            rows.append((f"{place} {'own' if place == 0 else words[kept]}", cells))
            if kept is None:
                break
        return rows

    def write(self) -> str:
        """Return the scene as text."""
        rows = [f"image        {self.title(self.index)}"]
        rows += [f"{word:<12} {cells}" for word, cells in self.lines]
        rewards = " ".join(f"{name} {value:+.4f}" for name, value in self.rewards.items())
        return "\n".join([*rows, f"rewards      {rewards or 'none yet'}"])

    def draw(self) -> NDArray[np.uint8]:
        """Return the scene as a picture, uint8 (h, w, 3)."""
        from PIL import Image, ImageDraw

        side, line, cells = 2 * TILE, 14, 48
        strips = -(-self.codes.shape[1] // cells)
        height = MARGIN * 3 + side + len(self.codes) * (line + strips * 18 + 4) + line
        picture = Image.new("RGB", (WIDTH, height), PAPER)
        pen = ImageDraw.Draw(picture)
        pen.rectangle((MARGIN, MARGIN, MARGIN + side - 1, MARGIN + side - 1), fill=EMPTY)
        if (shown := self.picture(self.index)) is not None:
            photo = Image.fromarray(np.ascontiguousarray(shown))
            picture.paste(photo.resize((side, side), Image.Resampling.NEAREST), (MARGIN, MARGIN))
        right = MARGIN * 2 + side
        pen.text((right, MARGIN), self.title(self.index), fill=INK)
        for row, (name, value) in enumerate(self.rewards.items()):
            pen.text((right, MARGIN + line * (row + 1)), f"{name} {value:+.4f}", fill=INK)
        top = MARGIN * 2 + side
        for word, bits in self.lines:
            pen.text((MARGIN, top), word, fill=DISSIMILAR if word.endswith("discarded") else INK)
            for place, bit in enumerate(bits):
                row, column = divmod(place, cells)
                left, y = MARGIN + column * 9, top + line + row * 18
                pen.rectangle((left, y, left + 8, y + 13), fill={"1": ONE, "0": PAPER, "·": EMPTY}[bit], outline=INK)
            top += line + strips * 18 + 4
        return np.asarray(picture)


@dataclass(frozen=True)
class RegionScene(Scene):
    """An image, a region of it, both codes, and the decisions so far.

    Attributes:
        region: which region.
        box: its left, top, right and bottom as fractions of the thumbnail, or None if unknown.
        image_bits: bool (q,).
        region_bits: bool (q,).
        decisions: for every region: 1 keep, 0 discard, -1 not decided yet.
        keep_reward: reward for keeping the region's code.
        similar_nearer: number of similar training images that keeping it brings nearer.
        dissimilar_nearer: number of dissimilar ones.
    """

    region: int
    box: NDArray[np.float32] | None
    image_bits: NDArray[np.bool_]
    region_bits: NDArray[np.bool_]
    decisions: list[int]
    keep_reward: float
    similar_nearer: int
    dissimilar_nearer: int

    @property
    def lines(self) -> list[str]:
        """The lines of text that both renderings have."""
        words = {1: "keep", 0: "discard", -1: "?"}
        return [
            f"decisions  {' '.join(words[decision] for decision in self.decisions)}",
            f"keeping    {self.keep_reward:+.4f}, brings {self.similar_nearer} similar and "
            f"{self.dissimilar_nearer} dissimilar nearer",
            "rewards    " + (" ".join(f"{name} {value:+.4f}" for name, value in self.rewards.items()) or "none yet"),
        ]

    def write(self) -> str:
        """Return the scene as text."""
        image, region = ("".join("1" if bit else "0" for bit in bits) for bits in (self.image_bits, self.region_bits))
        marks = "".join("^" if a != b else " " for a, b in zip(image, region, strict=True))
        differing = f"{marks.count('^')} of {len(marks)} bits differ"
        return "\n".join(
            [
                f"image      {self.title(self.index)}",
                f"           {image}",
                f"region {self.region:<4}{region}",
                f"           {marks} {differing}",
                *self.lines,
            ]
        )

    def draw(self) -> NDArray[np.uint8]:
        """Return the scene as a picture, uint8 (h, w, 3)."""
        from PIL import Image, ImageDraw

        side, line, cells = 2 * TILE, 14, 48
        strips = -(-len(self.image_bits) // cells)
        picture = Image.new("RGB", (WIDTH, MARGIN * 4 + side + line * 4 + strips * 40), PAPER)
        pen = ImageDraw.Draw(picture)
        pen.text((MARGIN, MARGIN), self.title(self.index), fill=INK)

        top, left = MARGIN + line + 4, MARGIN + side + MARGIN
        frame = {1: SIMILAR, 0: DISSIMILAR, -1: INK}[self.decisions[-1]]
        pen.rectangle((MARGIN, top, MARGIN + side - 1, top + side - 1), fill=EMPTY)
        pen.rectangle((left, top, left + side - 1, top + side - 1), fill=EMPTY)
        pen.text((left + 4, top + 4), f"region {self.region}", fill=INK)
        if self.dataset.thumbnails is not None:
            photo = Image.fromarray(np.asarray(self.dataset.thumbnails[self.index]))
            photo = photo.resize((side, side), Image.Resampling.NEAREST)
            picture.paste(photo, (MARGIN, top))
            # A thumbnail is the centre of its image: a region may lie partly or wholly outside it.
            x0, y0, x1, y1 = (0, 0, 0, 0) if self.box is None else np.rint(np.clip(self.box, 0, 1) * side).astype(int)
            if x1 > x0 and y1 > y0:
                picture.paste(photo.crop((x0, y0, x1, y1)).resize((side, side), Image.Resampling.NEAREST), (left, top))
                pen.rectangle((MARGIN + x0, top + y0, MARGIN + x1 - 1, top + y1 - 1), outline=frame, width=2)
        pen.rectangle((left - 2, top - 2, left + side + 1, top + side + 1), outline=frame, width=2)

        top += side + MARGIN
        for bit, both in enumerate(zip(self.image_bits, self.region_bits, strict=True)):
            row, column = divmod(bit, cells)
            x, y = MARGIN + column * 9, top + row * 40
            for code, on in enumerate(both):
                pen.rectangle((x, y + code * 15, x + 8, y + code * 15 + 12), fill=ONE if on else PAPER, outline=INK)
            if both[0] != both[1]:
                pen.rectangle((x, y + 30, x + 8, y + 33), fill=DISSIMILAR)
        top += strips * 40
        for row, text in enumerate(self.lines):
            pen.text((MARGIN, top + row * line), text, fill=INK)
        return np.asarray(picture)
