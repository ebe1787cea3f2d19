"""Old import paths and names of modules that have moved."""

from __future__ import annotations

import importlib

import pytest

import hashgym.gallery


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("hashgym.gallery", "Codes", "EncodedImages"),
        ("hashgym.gallery.codes", "Codes", "EncodedImages"),
        ("hashgym.encoders.sources", "export", "build_encoder"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*has moved to:DeprecationWarning")
def test_an_old_name_gives_the_new_thing_with_a_warning(module, old, new):
    place = importlib.import_module(module)
    with pytest.warns(DeprecationWarning, match=rf"{old} is now {new}"):
        found = getattr(place, old)
    assert found is getattr(place, new)
    with pytest.raises(AttributeError, match="no attribute 'never_there'"):
        place.never_there  # noqa: B018


def test_a_module_that_was_split_is_found_in_its_package():
    with pytest.warns(DeprecationWarning, match=r"hashgym\.gallery\.gallery has moved to hashgym\.gallery:"):
        place = importlib.import_module("hashgym.gallery.gallery")
    assert place is hashgym.gallery
    assert {"Gallery", "Match", "Names", "REGIONS", "build", "open_gallery", "read_meta", "remove", "verify"} <= set(
        dir(place)
    )
