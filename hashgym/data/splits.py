"""Splits: the query, database and training images of a dataset, and the labels that define similarity.

A split depends only on image names, labels and a seed. Images are ordered by a hash of seed and name, and counts are
taken from the front. So the split is the same on every machine and with every version of NumPy, and leaving out a
damaged image changes the place of few others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hashgym.checks import closest, counted
from hashgym.moved import keep_old_names
from hashgym.storage.errors import DataError

__all__ = ["PARTS", "RULES", "Rule", "Split", "default", "make", "rules"]

PARTS = {  # first folder of a name, in lower case -> part of the split
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "query", "queries"), "query"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("database", "gallery"), "database"),
    "train+database": "train+database",
}
COUNTED = 100  # most labels whose counts are described


@dataclass(frozen=True)
class Split:
    """Indices of a dataset's images and labels.

    Attributes:
        name: the split's name.
        query: int64 (Q,), ascending: query images, which are in neither of the other two.
        database: int64 (N,), ascending: database images.
        train: int64 (T,), ascending: training images.
        labels: int64 (L,), ascending: columns of the labels that define similarity.
        description: one line with the counts.
        seed: the seed that it was drawn with.
        asked: numbers of queries and training images that the user gave, instead of the split's own.
        counts: label -> its images among the queries, the training images and the database.
    """

    name: str
    query: NDArray[np.int64]
    database: NDArray[np.int64]
    train: NDArray[np.int64]
    labels: NDArray[np.int64]
    description: str
    seed: int
    asked: tuple[int | None, int | None] = (None, None)
    counts: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)

    @property
    def provenance(self) -> dict[str, Any]:
        """The entries of a dataset's provenance about its split, enough to draw it again."""
        return {
            "split": self.name,
            "split_seed": self.seed,
            "split_queries": self.asked[0],
            "split_train": self.asked[1],
            "split_description": self.description,
        }

    @property
    def described_counts(self) -> dict[str, str]:
        """Descriptions of the counts of every label; empty for more than 100 labels."""
        if len(self.counts) > COUNTED:
            return {}
        return {
            label: f"{counted(query, 'query', 'queries')}, {train:,} to train, {database:,} in the database"
            for label, (query, train, database) in self.counts.items()
        }

    def without(self, left_out: Sequence[int], labels: NDArray[np.uint8], label_names: Sequence[str]) -> Split:
        """Return the split of the other images, with their new indices; no image changes its part.

        Args:
            left_out: indices of images that cannot be read.
            labels: uint8 (n, L), of all images.
            label_names: L names.

        Raises:
            DataError: if no query, training image or database image is left.
        """
        kept = np.setdiff1d(np.arange(len(labels)), left_out)
        query, train, database = (
            np.searchsorted(kept, np.intersect1d(index, kept)) for index in (self.query, self.train, self.database)
        )
        for what, index in (("query", query), ("training image", train), ("image of the database", database)):
            if not len(index):
                raise DataError(f"no {what} of the split {self.name!r} can be read: repair the images, or draw more")
        counts = _counts(labels[kept][:, self.labels], (query, train, database))
        names = [label_names[i] for i in self.labels]
        notes = [note for note in self.description.split("; ")[1:] if not note.startswith("no ")]
        notes += [f"{counted(len(left_out), 'image')} that cannot be read left out"]
        description = "; ".join([_description(query, train, database, len(names)), *notes])
        return dataclasses.replace(
            self,
            query=query,
            train=train,
            database=database,
            description=description + _absent_labels(names, counts),
            counts={name: (int(q), int(t), int(d)) for name, (q, t, d) in zip(names, counts, strict=True)},
        )


@dataclass(frozen=True)
class Rule:
    """The rule by which a named split is drawn.

    Attributes:
        description: one line, for lists of splits.
        queries: number of queries; None takes every image of the query part.
        train: number of training images; None takes every image of the training part.
        images: size of the complete dataset; if fewer are present, counts shrink in proportion. 0: never.
        sample: "random", "label" (the same number for every label) or "part" (by the first folder of an image's name,
            see :data:`PARTS`).
        train_in_database: whether training images are in the database too. With "part", whether those in ``train`` are;
            if no image is in ``database``, they always are.
        label_count: number of labels that the split needs; 0 for any number.
        keeps: whether a label of this name defines similarity.
    """

    description: str
    queries: int | None
    train: int | None
    images: int = 0
    sample: Literal["random", "label", "part"] = "random"
    train_in_database: bool = True
    label_count: int = 0
    keeps: Callable[[str], bool] = lambda name: True


_RANDOM = Rule("a tenth (at most 1,000) as queries, a quarter (at most 5,000) to train, the rest database", 0, 0)
_GENERIC = {
    "random": _RANDOM,
    "given": Rule("as given by the folders or lists train, test (and val, database)", None, None, 0, "part", False),
}

_DIGITS = {"digits": Rule("300 queries, 1,000 to train, database all but the queries", 300, 1_000, 1_797, "label")}

RULES: Mapping[str, Mapping[str, Rule]] = {
    "digits": _DIGITS,
    "digits-pixels": _DIGITS,
    "digit-scenes": {"digit-scenes": Rule("queries of digits that no other scene shows", None, None, 0, "part", False)},
    "cifar10": {
        "cifar10-1": Rule(
            "1,000 queries, 5,000 to train, database 59,000 with the training images (DRLIH)",
            queries=1_000,
            train=5_000,
            images=60_000,
            sample="label",
        ),
        "cifar10": Rule(
            "1,000 queries, 5,000 to train, database 54,000 without the training images",
            queries=1_000,
            train=5_000,
            images=60_000,
            sample="label",
            train_in_database=False,
        ),
        "cifar10-2": Rule("the 10,000 test images as queries, 50,000 to train and search", None, None, 0, "part"),
    },
    "mirflickr25k": {
        "drlih": Rule(
            "38 labels, 1,000 queries, 5,000 to train, the rest database", 1_000, 5_000, 25_000, label_count=38
        ),
        "mch": Rule(
            "24 labels, 5,000 queries, 10,000 to train, the rest database",
            queries=5_000,
            train=10_000,
            images=25_000,
            label_count=24,
            keeps=lambda name: not name.endswith("_r1"),
        ),
        "deephash": Rule(
            "38 labels, 1,000 queries, 4,000 to train, database 20,000 without the training images",
            queries=1_000,
            train=4_000,
            images=25_000,
            train_in_database=False,
            label_count=38,
        ),
    },
    "nuswide21": {
        "drlih": Rule(
            "2,100 queries (100 a concept), 10,500 to train (500 a concept), the rest database (DRLIH and MCH)",
            queries=2_100,
            train=10_500,
            images=195_834,
            sample="label",
            label_count=21,
        ),
    },
    "coco": {
        "mch": Rule("5,000 queries, 10,000 to train, the rest database", 5_000, 10_000, 123_287, label_count=80),
    },
}


def rules(dataset: str) -> Mapping[str, Rule]:
    """Return the splits of a dataset by name, its default first; by default these are ``random`` and ``given``."""
    return RULES.get(dataset, _GENERIC)


def default(dataset: str, names: Sequence[str] = ()) -> str:
    """Return the name of the default split: ``given`` if the names of images contain a part of a split."""
    if dataset not in RULES:
        parts = {_part(name) for name in names}
        if parts & {"query", "validation"} and parts & {"train", "database", "train+database"}:
            return "given"
    return next(iter(rules(dataset)))


def make(
    dataset: str,
    split: str | None = None,
    *,
    labels: NDArray[np.uint8],
    label_names: Sequence[str],
    names: Sequence[str],
    seed: int = 0,
    queries: int | None = None,
    train: int | None = None,
) -> Split:
    """Draw a split. Images without any of the labels that define similarity are in no part of it; where there are no
    labels at all, every image may be drawn.

    At least one image of every label is left to search, and one to learn from where the number of training images
    allows it; of a label with few images, no more than half are drawn as queries while others have some left. By parts,
    queries are the images in ``test`` or ``query``; those in ``validation`` are queries if there are none of these, and
    otherwise in no part of the split.

    Args:
        dataset: the dataset's name.
        split: a name of :func:`rules`, or None for the default.
        labels: uint8 (n, L) of 0 and 1.
        label_names: L names.
        names: n different image names.
        seed: another seed draws other images.
        queries: number of queries, instead of the split's own.
        train: number of training images, instead of the split's own.

    Raises:
        DataError: for an unknown split, labels that do not fit the split, or more images than there are; the message
            names the labels with too few images.
    """
    split = split or default(dataset, names)
    rule, kept = _rule_and_labels(dataset, split, label_names)
    for what, count in (("queries", queries), ("train", train)):
        if count is not None and count < 1:
            raise DataError(f"{what} must be at least 1, got {count}")

    labels, kept_names = labels[:, kept], [label_names[i] for i in kept]
    order = _order(names, seed)
    if labels.shape[1]:
        order = order[labels[order].any(axis=1)]
    if split == "random":
        rule = _random_rule(labels[order])
    share = len(names) / rule.images if len(names) < 0.99 * rule.images else 1.0
    sampler = _Sampler(dataset, split, rule, labels, kept_names, share)
    held_out = 0
    if rule.sample == "part":
        part = np.array([_part(name) for name in names])[order]
        if (part == "query").any():
            held_out = int((part == "validation").sum())
        else:
            part[part == "validation"] = "query"
        query = sampler.draw("query", order[part == "query"], queries, rule.queries, spare=0)
        training = sampler.draw(
            "training", order[np.isin(part, ("train", "train+database"))], train, rule.train, spare=0
        )
        searched = np.isin(part, ("database", "train+database"))
        if rule.train_in_database or not searched.any():
            searched |= part == "train"
        database = np.sort(order[searched])
    else:
        # Of every label one image is left to search and one to learn from, which may be the same if both are allowed.
        apart = not rule.train_in_database
        query = sampler.draw("query", order, queries, rule.queries, spare=1 + apart)
        rest = order[~np.isin(order, query)]
        training = sampler.draw("training", rest, train, rule.train, spare=int(apart))
        database = np.setdiff1d(rest, training) if apart else np.sort(rest)
    if not len(database):
        raise DataError(f"split {split!r} of {dataset} leaves no image for the database; ask for fewer")

    counts = _counts(labels, (query, training, database))
    description = _description(query, training, database, len(kept))
    if len(order) < len(names):
        description += f"; {counted(len(names) - len(order), 'image')} without a label left out"
    if share < 1:
        description += f"; counts scaled down, as {len(names):,} of {rule.images:,} images are present"
    if held_out:
        description += f"; {counted(held_out, 'validation image')} held out: neither searched nor learnt from"
    description += _absent_labels(kept_names, counts)
    counts_of = {name: (int(q), int(t), int(d)) for name, (q, t, d) in zip(kept_names, counts, strict=True)}
    return Split(split, query, database, training, kept, description, seed, (queries, train), counts_of)


def _rule_and_labels(dataset: str, split: str, label_names: Sequence[str]) -> tuple[Rule, NDArray[np.int64]]:
    """Return the rule of a split by name, and the columns of the labels that define similarity in it."""
    known = rules(dataset)
    if split not in known:
        raise DataError(f"{dataset} has no split {split!r}{closest(split, known)}; it has {', '.join(known)}")
    rule = known[split]
    kept = np.array([i for i, name in enumerate(label_names) if rule.keeps(name)], np.int64)
    if rule.label_count and len(kept) != rule.label_count:
        raise DataError(
            f"split {split!r} of {dataset} needs {rule.label_count} labels and found {len(kept)}: load the dataset "
            "with this split, instead of splitting one that has lost labels to another split"
        )
    return rule, kept


@dataclass(frozen=True)
class _Sampler:
    """Draws the queries and training images of a split.

    Attributes:
        dataset, split: names, for messages; splits of :data:`RULES` are published and keep to their rules exactly.
        rule: of the split.
        labels: uint8 (n, L), those that define similarity.
        label_names: L names.
        share: fraction of the dataset that is present.
    """

    dataset: str
    split: str
    rule: Rule
    labels: NDArray[np.uint8]
    label_names: Sequence[str]
    share: float

    def draw(
        self, role: str, pool: NDArray[np.int64], requested: int | None, own: int | None, *, spare: int
    ) -> NDArray[np.int64]:
        """Draw images from a pool, ascending.

        Args:
            role: "query" or "training".
            pool: indices in the order of drawing.
            requested: number of images that the user gave.
            own: number of images of the rule; None for the whole pool.
            spare: images of every label that are left in the pool.
        """
        labels, by_part, published = self.labels, self.rule.sample == "part", self.dataset in RULES
        wanted = requested or (len(pool) if own is None else max(1, round(own * self.share)))
        about = f"split {self.split!r} of {self.dataset}: {wanted:,} {role} images requested"
        if not 1 <= wanted <= len(pool):
            where = f" in folders or lists for {'train' if role == 'training' else 'test'}" if by_part else ""
            raise DataError(f"{about}, but there are {len(pool):,}{where}")
        drawn = _stratified(pool, labels, wanted, self.rule.sample == "label", spare)
        if not len(drawn) or (requested and len(drawn) < wanted):
            counts = labels[pool].sum(axis=0, dtype=np.int64)
            few = [f"{self.label_names[i]} has {counts[i]:,}" for i in np.argsort(counts, kind="stable") if counts[i]]
            raise DataError(
                f"{about}, but only {len(drawn):,} can be drawn with at least {spare} of every label left over "
                f"({', '.join(few[:3])}{', ...' if few[3:] else ''}): ask for fewer, add images, or put images "
                "without a class of their own into one class"
            )
        if role == "training" or not published:  # published splits keep their queries
            drawn = _covering(drawn, pool, labels, spare)
        one_class = bool(labels.shape[1]) and (labels.sum(axis=1, dtype=np.int64) <= 1).all()
        if role == "training" and not published and not by_part and one_class:
            absent = np.flatnonzero(labels[pool].any(axis=0) & ~labels[drawn].any(axis=0))
            if len(absent):
                raise DataError(
                    f"{about}, which leaves none of class {self.label_names[absent[0]]}: ask for at least "
                    f"{int(labels[pool].any(axis=0).sum())}, one of each class"
                )
        return np.sort(drawn)


def _counts(labels: NDArray[np.uint8], parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return how many images of each part every label has, int64 (L, parts)."""
    return np.stack([labels[index].sum(axis=0, dtype=np.int64) for index in parts], axis=1)


def _description(
    query: NDArray[np.int64], training: NDArray[np.int64], database: NDArray[np.int64], labels: int
) -> str:
    """Return the number of labels, and of images in each part, as text."""
    both = int(np.isin(training, database).sum())
    return (
        f"{counted(labels, 'label') if labels else 'no labels'}, {counted(len(query), 'query', 'queries')}, "
        f"{counted(len(training), 'training image')}, database of {len(database):,} "
        + (f"with {counted(both, 'training image')}" if both else "without training images")
    )


def _absent_labels(label_names: Sequence[str], counts: NDArray[np.int64]) -> str:
    """Return as text the labels that only some parts of the split have; ``counts`` has a column for each part."""
    text = ""
    for what, column in zip(("queries", "training images", "images in the database"), counts.T, strict=True):
        absent = [label_names[i] for i in np.flatnonzero((column == 0) & counts.any(axis=1)).tolist()]
        if absent:
            text += f"; no {what} of {', '.join(absent[:5])}" + (f" and {len(absent) - 5:,} more" if absent[5:] else "")
    return text


def _order(names: Sequence[str], seed: int) -> NDArray[np.int64]:
    """Return the indices of the images in the order of the hashes of seed and name."""
    keys = [
        int.from_bytes(blake2b(f"{seed}/{name}".encode(errors="surrogateescape"), digest_size=8).digest(), "big")
        for name in names
    ]
    return np.argsort(np.array(keys, np.uint64), kind="stable").astype(np.int64)


def _part(name: str) -> str:
    """Return the part of an image by the first folder of its name, a value of :data:`PARTS`; empty if there is none."""
    return PARTS.get(name.partition("/")[0].lower(), "") if "/" in name else ""


def _random_rule(labels: NDArray[np.uint8]) -> Rule:
    """Return the rule of ``random``; balanced over classes if every image has one label."""
    images = len(labels)
    queries, train = max(1, min(1_000, images // 10)), max(1, min(5_000, images // 4))
    if not labels.shape[1] or (labels.sum(axis=1, dtype=np.int64) > 1).any():
        return dataclasses.replace(_RANDOM, queries=queries, train=train)
    classes = int(labels.any(axis=0).sum())
    return dataclasses.replace(
        _RANDOM, queries=queries, train=max(train, min(classes, images - queries)), sample="label"
    )


def _stratified(
    pool: NDArray[np.int64], labels: NDArray[np.uint8], count: int, by_label: bool, spare: int
) -> NDArray[np.int64]:
    """Draw images of ``pool`` in order; by label, labels take turns, rarest first, each with its next image.

    With ``spare``, a first pass leaves half of every label's images, at least ``spare``; a second, if too few were
    drawn, leaves only ``spare``. Fewer than ``count`` may be drawn.
    """
    if not by_label and not spare:
        return pool[:count]
    positive = labels > 0
    totals = positive[pool].sum(axis=0, dtype=np.int64)
    queues = [pool]
    if by_label:
        queues = [pool[positive[pool, column]] for column in np.argsort(totals, kind="stable")]
    taken: dict[int, None] = {}
    left = totals.copy()
    for least in (
        (np.maximum(spare, -(-totals // 2)), np.full_like(totals, spare)) if spare else (np.zeros_like(totals),)
    ):
        waiting = [iter(queue.tolist()) for queue in queues]
        while waiting and len(taken) < count:
            for queue in tuple(waiting):
                chosen = next((i for i in queue if i not in taken and (left > least)[positive[i]].all()), None)
                if chosen is None:
                    waiting.remove(queue)
                elif len(taken) < count:
                    taken[chosen] = None
                    left -= positive[chosen]
    return np.fromiter(taken, np.int64, len(taken))


def _covering(
    drawn: NDArray[np.int64], pool: NDArray[np.int64], labels: NDArray[np.uint8], spare: int
) -> NDArray[np.int64]:
    """Exchange the last of the ``drawn`` images that can be spared for images of labels that are missing."""
    positive = labels > 0
    totals, have = (positive[index].sum(axis=0, dtype=np.int64) for index in (pool, drawn))
    chosen = drawn.tolist()
    for column in np.argsort(totals, kind="stable"):
        if have[column] or totals[column] <= spare:
            continue
        held = pool[positive[pool, column]].tolist()
        added = next((i for i in held if (totals - have > spare)[positive[i]].all()), None)
        removed = next((i for i in reversed(chosen) if (have > 1)[positive[i]].all()), None)
        if added is not None and removed is not None:
            chosen[chosen.index(removed)] = added
            have += positive[added].astype(np.int64) - positive[removed]
    return np.array(chosen, np.int64)


keep_old_names(__name__)
