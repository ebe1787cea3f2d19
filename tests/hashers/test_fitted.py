"""hashgym.hashers.fitted: a name, a file or a hasher becomes a fitted hasher."""

from __future__ import annotations

import numpy as np
import pytest

from hashgym import hashers


def test_names_files_and_hashers_become_the_same_fitted_hasher(multi_label, tmp_path):
    dataset = multi_label
    expected = hashers.make("itq", bits=4, seed=3).fit(dataset.features[dataset.train])
    file = tmp_path / "itq.npz"
    expected.save(file)
    for source in ("itq", file, str(file), expected, hashers.make("itq", bits=4, seed=3)):
        own = {"bits": 4, "seed": 3} if source == "itq" else {}
        found = hashers.fitted(source, dataset, **own)
        np.testing.assert_array_equal(found.transform(dataset.features), expected.transform(dataset.features))
    assert hashers.fitted(expected, dataset) is expected


def test_a_supervised_hasher_gets_the_labels(multi_label):
    assert hashers.fitted("sdh", multi_label, bits=4).n_features_in_ == multi_label.dim


def test_a_registered_name_is_not_a_path(multi_label, tmp_path, monkeypatch):
    (tmp_path / "lsh").write_text("not a hasher")
    monkeypatch.chdir(tmp_path)
    assert type(hashers.fitted("lsh", multi_label, bits=4)).__name__ == "LSH"
    with pytest.raises(ValueError, match="not a saved hasher"):
        hashers.fitted("./lsh", multi_label)


def test_other_sources_are_rejected(multi_label, tmp_path):
    with pytest.raises(ValueError, match=r"'ithq' is neither a hasher \(did you mean 'itq'\?\) nor the file of"):
        hashers.fitted("ithq", multi_label)
    with pytest.raises(ValueError, match=r"absent.npz' is neither a hasher nor the file of a saved one"):
        hashers.fitted(tmp_path / "absent.npz", multi_label)
    with pytest.raises(ValueError, match=r"'3' is neither"):
        hashers.fitted(3, multi_label)
    narrow = hashers.make("lsh", bits=4).fit(multi_label.features[:, :5])
    with pytest.raises(ValueError, match=r"fitted on 5 features, images of .* have 6: fit it on features of the same"):
        hashers.fitted(narrow, multi_label)
