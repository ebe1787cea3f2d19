"""Folders of many classes, made of MIRFLICKR's sets of labels."""

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from benchmarks import many_classes
from hashgym.data.readers import folders, mirflickr25k
from hashgym.storage.errors import DataError


@pytest.fixture
def mirflickr(tmp_path):
    """Nine photos: 1, 2 and 6 show a dog, 3 and 4 a dog and the sky, 5 the sea, and 7 to 9 nothing that has a label."""
    root = tmp_path / "mirflickr"
    (root / "annotations").mkdir(parents=True)
    for number in range(1, 10):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(root / f"im{number}.jpg")
    listed = {"dog": (1, 2, 3, 4, 6), "dog_r1": (1, 3), "sky": (3, 4), "sea": (5,)}
    for label in mirflickr25k.LABELS:
        (root / "annotations" / f"{label}.txt").write_text("".join(f"{n}\n" for n in listed.get(label, ())))
    return root


def test_a_class_is_a_set_of_labels_without_the_strict_ones(mirflickr, tmp_path):
    args = many_classes.Args(root=mirflickr, out=tmp_path / "classes", classes=3, photos=2)
    assert many_classes.main(args, Console(record=True)) == 2 + 2 + 1
    written = {path.name: sorted(file.name for file in path.iterdir()) for path in args.out.iterdir() if path.is_dir()}
    assert written == {"dog": ["im1.jpg", "im2.jpg"], "dog-sky": ["im3.jpg", "im4.jpg"], "sea": ["im5.jpg"]}
    assert (args.out / "dog" / "im2.jpg").read_bytes() == (mirflickr / "im2.jpg").read_bytes()
    assert folders.read(args.out).label_names == ("dog", "dog-sky", "sea")
    before = sorted(args.out.rglob("*"))
    with pytest.raises(DataError, match="exists already"):
        many_classes.main(args, Console(record=True))
    assert sorted(args.out.rglob("*")) == before


def test_bad_input_is_rejected_before_anything_is_written(mirflickr, tmp_path):
    out = tmp_path / "classes"
    with pytest.raises(ValueError, match="3 sets of labels"):
        many_classes.main(many_classes.Args(root=mirflickr, out=out, classes=4))
    with pytest.raises(DataError, match=r"im1\.jpg"):
        many_classes.main(many_classes.Args(root=tmp_path / "nothing", out=out))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mirflickr"]


def test_label_sets_by_size():
    labels = np.random.default_rng(0).integers(0, 2, (200, 3)).astype(np.uint8)
    found = many_classes.label_sets(labels, 7)
    assert sorted((len(rows) for _, rows in found), reverse=True) == [len(rows) for _, rows in found]
    for hot, rows in found:
        assert hot.any()
        assert rows.tolist() == [i for i in range(200) if labels[i].tolist() == hot.tolist()]
