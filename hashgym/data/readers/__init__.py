"""Readers of datasets: one file each, and the registry that finds them by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hashgym.registry import Registry

__all__ = ["DATASETS", "Reader", "find_reader"]


@dataclass(frozen=True)
class Reader:
    """The reader of a dataset.

    Attributes:
        read: for images on disk ``read(folder, **options)``, which returns an ImageCollection and decodes nothing yet;
            for an embedded dataset ``read(seed)``, which returns a HashingDataset.
        reads_from: the files and folders that are read, for messages.
        options: keyword arguments of :func:`hashgym.data.read_images` that ``read`` takes.
        embedded: whether the dataset has features and needs no file.
    """

    read: Callable[..., Any]
    reads_from: str
    options: tuple[str, ...] = ()
    embedded: bool = False


DATASETS: Registry[Reader] = Registry("dataset")
for _name, _module, _description in (  # imported at first use
    ("digits", "digits", "1,797 handwritten digits of 8 x 8 pixels, 10 classes"),
    ("digits-pixels", "digits_pixels", "the digits as RGB pixels, for networks that are trained"),
    ("digit-scenes", "digit_scenes", "boards of 1 to 4 handwritten digits, 10 labels, with regions"),
    ("cifar10", "cifar10", "60,000 pictures of 32 x 32 pixels, 10 classes"),
    ("mirflickr25k", "mirflickr25k", "25,000 Flickr photos, 38 labels"),
    ("nuswide21", "nuswide21", "NUS-WIDE's photos with its 21 most frequent concepts"),
    ("coco", "coco", "COCO 2014, 123,287 photos, 80 labels"),
    ("folder:PATH", "folders", "any folder of class folders, or of images without labels"),
    ("photos:PATH", "photos", "any folder, all images below it, without labels"),
    (
        *("list:FILE", "lists"),
        "any list of `path 0 1 0 ...`, `path 7` or `path` lines, or a folder of train.txt, test.txt and database.txt",
    ),
):
    DATASETS.register(_name, f"hashgym.data.readers.{_module}:READER", _description)


def find_reader(dataset: str) -> tuple[Reader, str] | None:
    """Return the reader of a dataset and the path in its name, "pets" of ``folder:pets``; None for an unknown name."""
    prefix, colon, path = dataset.partition(":")
    for name in DATASETS.entries:
        if name.partition(":")[0] == prefix and bool(path) == (":" in name) == bool(colon):
            return DATASETS.find(name), path
    return None
