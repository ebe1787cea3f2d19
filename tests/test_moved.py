"""Old import paths keep working in this version, with a warning that names the new one."""

from __future__ import annotations

import subprocess
import sys
import warnings
from importlib import import_module
from operator import attrgetter

import pytest

import hashgym
from hashgym import moved
from hashgym.moved import renamed

NEEDS_EXTRA = {"index.faiss": "faiss", "retrieval.numba_kernels": "numba", "features.runtimes": "torch"}


# Names of the reference (docs/api.md) before modules moved, at the paths that it gave.
DOCUMENTED = {
    "codes": "CodeSets Words hamming longer_than pack span span_mask unpack word_count",
    "data": "DataError DatasetInfo HashingDataset ImageCollection datasets load read_images",
    "data.cache": "is_cache open_cache read_meta save verify",
    "data.files": "open_image",
    "data.splits": "PARTS RULES Rule Split apply default make rules",
    "encoders.encoder": "Encoder load_encoder",
    "encoders.export": "TIE Agreement add_backbone compare write",
    "encoders.sources": "Exported Train backbone_of export",
    "envs.bit_group_hashing": "BitGroupHashingEnv BitGroupHashingVectorEnv HashingTask make_vector_env",
    "envs.region_keep": "RegionKeepEnv RegionKeepTask RegionKeepVectorEnv",
    "envs.torch_backend": "BitGroupHashingTorchVectorEnv TensorCodebook TensorView",
    "features": "Backbone backbones extract make register",
    "features.regions": "Box corner_and_centre random_boxes",
    "gallery": "Codes Gallery Match build encode_images find_images open_codes open_gallery read_meta remove verify",
    "gallery.page": "results write",
    "gallery.server": "create_app serve",
    "hashers": "Hasher NotFittedError available load make register",
    "integrations.sb3": "HashVecEnv",
    "retrieval": "BucketIndex BucketSearch RetrievalResult average_precision average_precision_credit check_labels "
    "distance_histograms evaluate f1_bucket_curve mean_average_precision precision_at precision_recall_by_radius "
    "precision_within recall_within",
    "retrieval.buckets": "BucketIndex BucketSearch ball f1_bucket_curve pack_queries",
    "retrieval.index": "Found Ids Index backends check_options foreign load make ranked verify",
    "retrieval.kernels": "Backend Denominator Ties average_precision average_precision_credit distance_histograms",
    "retrieval.milvus": "MilvusIndex",
    "retrieval.tensors": "average_precision average_precision_credit distance_histograms",
    "rewards": "AveragePrecision Balance Codebook Pairwise Reward RewardError RewardLike RewardView Triplet Weighted "
    "available flip_credit make register squared_distance triplet_loss value value_and_credit weighted",
}
DOCUMENTED_EXTRA = {
    "envs.torch_backend": "torch",
    "gallery.server": "flask",
    "integrations.sb3": "stable_baselines3",
    "retrieval.tensors": "torch",
}


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget old paths that were imported before, and afterwards those that a test imported."""
    for old in moved.MODULES:
        monkeypatch.setitem(sys.modules, f"hashgym.{old}", None)
        del sys.modules[f"hashgym.{old}"]


@pytest.mark.parametrize("old", [old for old, new in moved.MODULES.items() if isinstance(new, str)])
def test_a_module_is_the_same_under_its_old_path(old: str) -> None:
    new = moved.MODULES[old]
    assert isinstance(new, str)
    if new in NEEDS_EXTRA:
        pytest.importorskip(NEEDS_EXTRA[new])
    module = import_module(f"hashgym.{new}")
    with pytest.warns(DeprecationWarning, match=f"^hashgym.{old} has moved to hashgym.{new}: import it from there"):
        assert import_module(f"hashgym.{old}") is module
    assert module.__name__ == module.__spec__.name == f"hashgym.{new}"


def test_a_module_that_was_split_has_the_names_of_its_parts() -> None:
    from hashgym.data import image_files, pictures
    from hashgym.storage import reading

    with pytest.warns(DeprecationWarning, match="moved to hashgym.data.image_files and hashgym.data.pictures and"):
        from hashgym.data import files  # type: ignore[attr-defined]
    assert files.list_images is image_files.list_images
    assert files.open_image is pictures.open_image
    assert files.MAX_PIXELS == pictures.MAX_PIXELS
    assert files.read_bounded is reading.read_bounded
    assert {*image_files.__all__, *pictures.__all__} < set(files.__all__)


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, row in moved.NAMES.items() for name in row])
def test_a_name_that_left_a_module_is_found_there(module: str, name: str) -> None:
    place, _, new = moved.NAMES[module][name].partition(":")
    old, now = import_module(f"hashgym.{module}"), import_module(f"hashgym.{place}")
    assert name not in vars(old), "the row is not needed"
    with pytest.warns(DeprecationWarning, match=f"^hashgym.{module}.{name} has moved to hashgym.{place}") as found:
        assert getattr(old, name) is attrgetter(new or name)(now)
    assert found[0].filename == __file__
    with pytest.raises(AttributeError, match=f"module 'hashgym.{module}' has no attribute 'nonsense'"):
        _ = old.nonsense


@pytest.mark.parametrize("old", DOCUMENTED)
def test_documented_names_are_found_at_their_former_paths(old: str) -> None:
    if old in DOCUMENTED_EXTRA:
        pytest.importorskip(DOCUMENTED_EXTRA[old])
    names = DOCUMENTED[old].split()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module = import_module(f"hashgym.{old}")
        assert all(getattr(module, name) is not None for name in names)
    left = moved.NAMES.get(module.__name__.removeprefix("hashgym."), {})
    messages = [str(warning.message) for warning in caught if "has moved to hashgym" in str(warning.message)]
    assert len(messages) == (old in moved.MODULES) + sum(name in left for name in names)


def test_new_paths_give_no_warning() -> None:
    """Nothing in the package uses an old path, and none is imported without need."""
    code = "import hashgym, hashgym.cli, hashgym.data.pictures; from hashgym.storage import job_store, pipeline"
    subprocess.run([sys.executable, "-W", "error::DeprecationWarning:hashgym", "-c", code], check=True)
    before = list(sys.meta_path)
    moved.install()
    assert sys.meta_path == before
    assert hashgym.__version__


@renamed(lanes="num_envs", history="hidden")
def function(num_envs=1, *, hidden=2):
    """Return both."""
    return num_envs, hidden


def test_renamed_arguments_warn_and_are_the_same():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert function(3, hidden=4) == (3, 4)
    with pytest.warns(DeprecationWarning, match=r"^lanes= is called num_envs= now$") as caught:
        assert function(lanes=5) == (5, 2)
    assert caught[0].filename == __file__
    with pytest.raises(TypeError, match="lanes= is the old name of num_envs=: give only num_envs="):
        function(lanes=5, num_envs=6)
    assert function.__doc__ == "Return both."
