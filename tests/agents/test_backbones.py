"""Agents that train a backbone together with their head, from activations, views of them, and pixels."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import hashgym
from agents import checkpoint, drlih, sb3, training
from agents.drlih import Args
from hashgym import data, features, hashers
from hashgym.data import HashingDataset
from hashgym.encoders.write import compare
from hashgym.features.trainable import TrainableBackbone
from hashgym.integrations.sb3 import BackboneExtractor
from hashgym.retrieval import metrics
from tests.features import tiny

KINDS = ("pixels", "activations", "views")
CODE: dict[str, Any] = {"bits": 6, "group_bits": 4}
SMALL: dict[str, Any] = CODE | {"hidden": 16, "rnn_hidden": 5, "num_envs": 12, "updates": 6, "holdout": 0.2}


@pytest.fixture(autouse=True)
def _tiny_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network with weights, which can be cut."""
    monkeypatch.setitem(features.NETWORKS.entries, "tiny", tiny.load)


@cache
def small(kind: str) -> HashingDataset:
    """90 digits: pixels, or activations of a network after block 1, with 3 shifted views of 50 of them."""
    whole = data.load("digits-pixels")
    pixels, labels = whole.features[:90], whole.labels[:90]
    rows = np.random.default_rng(0).permutation(90)
    split: dict[str, Any] = {"query": rows[:20], "database": np.sort(rows[20:]), "train": np.sort(rows[45:])}
    if kind == "pixels":
        return HashingDataset("small", pixels, labels, **split, provenance=whole.provenance)
    with torch.no_grad():
        block = tiny.load().network.until(1)
        shifted = [np.roll(pixels, shift, axis=(2, 3)) for shift in ((0, 0), (1, 0), (0, 1))]
        views = np.stack([block(torch.from_numpy(each).float() / 127.5 - 1).numpy() for each in shifted], 1)
    views = views.astype(np.float16)
    split["provenance"] = {"backbone": {"name": "tiny", "cut": 1, "weights": "tiny.pth", "digest": tiny.DIGEST}}
    if kind == "views":
        viewed = rows[40:]
        split |= {"views": np.ascontiguousarray(views[viewed]), "viewed": viewed}
    return HashingDataset("small", np.ascontiguousarray(views[:, 0]), labels, **split)


def weights(policy: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(policy.state_dict())


def assert_equal_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    for (name, a), b in zip(weights(one).items(), weights(other).values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    ("kind", "variant"), [("views", "hashgym"), ("views", "gru"), *(("pixels", variant) for variant in drlih.VARIANTS)]
)
def test_every_variant_trains_its_backbone_and_is_saved(kind: str, variant: str, tmp_path: Path) -> None:
    dataset, args = small(kind), Args(**SMALL, variant=variant)
    policy = drlih.train(dataset, args, out=tmp_path, progress=False)
    assert policy.args.backbone == ("convnet" if kind == "pixels" else "tiny:1")
    with torch.random.fork_rng():
        torch.manual_seed(args.seed)
        untrained = drlih.build(dataset.image_shape, policy.args)
    moved = {name for name, part in weights(policy).items() if not torch.equal(part, weights(untrained)[name])}
    assert {name.split(".")[0] for name in moved} >= {"backbone"}
    assert any(name.startswith("backbone.network.blocks.3") for name in moved)

    loaded = drlih.load(tmp_path / "policy.pt", "cpu")
    assert loaded.args == policy.args
    codes = hashgym.encode(policy, dataset.features, **CODE)
    np.testing.assert_array_equal(hashgym.encode(loaded, dataset.features, **CODE), codes)
    flat = dataset.features.reshape(90, -1).astype(np.float32)
    assert compare(tmp_path / "policy.onnx", codes, flat).exact


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("agent", ["hashgym", "gru", "ppo"])
def test_on_cuda_an_agent_is_trained_saved_and_resumed(kind: str, agent: str, tmp_path: Path) -> None:
    dataset = small(kind)
    if agent == "ppo":
        model = sb3.train(dataset, small_sb3("ppo", device="cuda"), out=tmp_path, progress=False)
        trained, policy = model.policy, sb3.load(tmp_path / "policy.pt", "cpu")
    else:
        args = Args(**SMALL, variant=agent, head_updates=3, checkpoint_every=2, device="cuda")
        trained = drlih.train(dataset, args, out=tmp_path, progress=False)
        assert_equal_weights(drlih.train(dataset, args, out=tmp_path, resume=True, progress=False), trained)
        policy = drlih.load(tmp_path / "policy.pt", "cpu")
    assert {part.device.type for part in trained.parameters()} == {"cuda"}
    codes = hashgym.encode(trained, dataset.features, **CODE)
    assert (hashgym.encode(policy, dataset.features, **CODE) != codes).mean() < 0.1


@pytest.mark.parametrize(
    ("kind", "variant", "head_updates"), [("pixels", "hashgym", 0), ("views", "gru", 3), ("activations", "paper", 2)]
)
def test_an_interrupted_run_resumes_to_the_same_bits(
    kind: str, variant: str, head_updates: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = Args(**SMALL, variant=variant, head_updates=head_updates, checkpoint_every=2)
    update = drlih.Run.update

    def interrupted(run: drlih.Run) -> dict[str, float]:
        if run.num_updates == 5:
            raise KeyboardInterrupt
        return update(run)

    with monkeypatch.context() as patched:
        patched.setattr(drlih.Run, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            drlih.train(small(kind), args, out=tmp_path, progress=False)
    assert checkpoint.load(tmp_path / "checkpoint.pt")["update"] == 4
    resumed = drlih.train(small(kind), args, out=tmp_path, resume=True, progress=False)
    assert_equal_weights(resumed, drlih.train(small(kind), args, progress=False))
    other = dataclasses.replace(small(kind), features=small(kind).features[::-1].copy())
    if kind == "views":  # what is learnt from are the views
        other = dataclasses.replace(small(kind), views=small(kind).views[:, ::-1].copy())  # type: ignore[index]
    with pytest.raises(ValueError, match="made on other data"):
        drlih.train(other, args, out=tmp_path, resume=True, progress=False)


def test_a_run_of_an_earlier_version_resumes(multi_label: HashingDataset, tmp_path: Path) -> None:
    """Its arguments know nothing of backbones, its policy no shape of images."""
    args = Args(**SMALL, checkpoint_every=3)
    whole = drlih.train(multi_label, args, out=tmp_path, progress=False)
    new = ("backbone", "backbone_learning_rate", "backbone_weights", "head_updates", "augment")
    for name in ("checkpoint.pt", "policy.pt"):
        content = checkpoint.load(tmp_path / name)
        content["args"] = json.dumps({key: v for key, v in json.loads(content["args"]).items() if key not in new})
        content.pop("image_shape", None)
        checkpoint.save(content, tmp_path / name)
    assert_equal_weights(drlih.load(tmp_path / "policy.pt", "cpu"), whole)
    assert_equal_weights(drlih.train(multi_label, args, out=tmp_path, resume=True, progress=False), whole)


def test_the_digest_of_the_data_equals_that_of_whole_arrays(multi_label: HashingDataset) -> None:
    import hashlib

    for dataset in (multi_label, *map(small, KINDS)):
        images = dataset.features[dataset.train]
        if dataset.views is not None and dataset.viewed is not None:
            images = np.stack([dataset.views[list(dataset.viewed).index(i)] for i in dataset.train])
        whole = dataset.train.tobytes() + dataset.labels[dataset.train].tobytes() + images.tobytes()
        assert checkpoint.fingerprint(dataset) == hashlib.sha256(whole).hexdigest()


def test_the_backbone_has_a_learning_rate_of_its_own_on_the_same_cosine() -> None:
    args = training.with_backbone(Args(**SMALL, learning_rate=0.01, backbone_learning_rate=0.002), small("pixels"))
    policy = drlih.build((3, 8, 8), args)
    assert policy.backbone is not None
    run = drlih.Run(policy.train(), small("pixels"), np.array([], int), args)
    head, backbone = run.optimizer.param_groups
    trained = [p for p in policy.backbone.parameters() if p.requires_grad]
    assert {id(p) for p in backbone["params"]} == {id(p) for p in trained}
    assert {id(p) for p in head["params"]} == {id(p) for p in policy.parameters()} - {
        id(p) for p in policy.backbone.parameters()
    }
    for t in range(6):
        run.update()
        factor = 0.5 * (1 + math.cos(math.pi * t / 6))
        assert head["lr"] == pytest.approx(0.01 * factor)
        assert backbone["lr"] == pytest.approx(0.002 * factor)


@pytest.mark.parametrize("kind", ["pixels", "views"])
def test_the_head_is_trained_before_the_backbone(kind: str) -> None:
    dataset = small(kind)
    args = training.with_backbone(Args(**SMALL, head_updates=4), dataset)
    torch.manual_seed(0)
    policy = drlih.build(dataset.image_shape, args).train()
    backbone = policy.backbone
    assert backbone is not None
    before = {name: part.clone() for name, part in weights(policy).items()}
    run = drlih.train_head(policy, dataset, args, progress=False)
    assert policy.backbone is backbone
    assert run.num_updates == 4
    changed = {name for name, part in weights(policy).items() if not torch.equal(part, before[name])}
    assert changed >= {"hidden.weight", "head.weight"}
    assert {name for name in changed if name.startswith("backbone.")} == {
        f"backbone.normalize.running_{which}" for which in ("mean", "var")
    }
    # The head saw standardised features of the images without augmentation, which the backbone gives now.
    seen = torch.from_numpy(run.dataset.features)
    with torch.no_grad():
        given = backbone.eval()(torch.from_numpy(dataset.images(dataset.train)))
    torch.testing.assert_close(given, seen, rtol=0, atol=1e-4)
    torch.testing.assert_close(seen.mean(0), torch.zeros(policy.dim), rtol=0, atol=1e-4)
    whole = drlih.Run(policy, dataset, np.array([], int), args)
    whole.take_codebook(run)
    np.testing.assert_array_equal(*(each.envs.get_state()["codebook"] for each in (run, whole)))
    with pytest.raises(ValueError, match="head_updates must be finite and at least 0, got -1"):
        Args(head_updates=-1)


def test_held_out_images_are_neither_learnt_from_nor_augmented() -> None:
    dataset, args = small("views"), training.with_backbone(Args(**SMALL), small("views"))
    learning, held_out = training.split(dataset, args)
    assert len(held_out) == 9
    assert dataset.viewed is not None
    assert dataset.views is not None
    run = drlih.Run(drlih.build(dataset.image_shape, args).train(), learning, held_out, args)
    shown = {tuple(v.reshape(-1)[:50]) for i in held_out for v in dataset.views[list(dataset.viewed).index(i)]}
    for _ in range(20):
        run.rollout()
        assert not shown & {tuple(image.reshape(-1)[:50].astype(np.float16)) for image in run.obs["image"]}
    codes, labels = hashgym.encode(run.policy, dataset.features[held_out], **CODE), dataset.labels[held_out]
    scores = [
        metrics.mean_average_precision(codes[i : i + 1], labels[i : i + 1], np.delete(codes, i, 0), rest)
        for i in range(9)
        if (rest := np.delete(labels, i, 0))[:, labels[i] > 0].any()
    ]
    assert run.evaluate()["retrieval/held_out_map"] == pytest.approx(np.mean(scores), rel=1e-9)
    assert run.policy.training


class Counted(np.ndarray[Any, Any]):
    """An array that counts the images read from it at once."""

    most = 0

    def __getitem__(self, key: Any) -> Any:
        part = np.asarray(self)[key]
        Counted.most = max(Counted.most, part.size // (32 * 8 * 8))
        return part


def test_an_evaluation_reads_a_few_images_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = small("activations")
    args = training.with_backbone(Args(**SMALL), dataset)
    policy = drlih.build(dataset.image_shape, args).eval()
    rows = np.arange(0, 90, 2)
    whole = hashgym.encode(policy, dataset.features[rows], **CODE)
    counted = dataclasses.replace(dataset)
    object.__setattr__(counted, "features", dataset.features.view(Counted))
    monkeypatch.setattr(training, "MAPS_AT_ONCE", 7)
    Counted.most = 0
    np.testing.assert_array_equal(training.encode(policy, counted, rows, **CODE), whole)
    assert Counted.most == 7


def test_mapped_files_are_encoded_without_a_warning(tmp_path: Path) -> None:
    for kind in ("pixels", "activations"):
        dataset = small(kind)
        np.save(tmp_path / f"{kind}.npy", dataset.features)
        mapped = np.load(tmp_path / f"{kind}.npy", mmap_mode="r")
        policy = drlih.build(dataset.image_shape, training.with_backbone(Args(**SMALL), dataset)).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            codes = hashgym.encode(policy, mapped, **CODE)
        np.testing.assert_array_equal(codes, hashgym.encode(policy, dataset.features, **CODE))


def test_a_backbone_given_by_hand() -> None:
    named = small("pixels")
    unnamed = dataclasses.replace(named, provenance={})
    with pytest.raises(ValueError, match="does not name the network that takes them: give backbone="):
        drlih.train(unnamed, Args(**SMALL), progress=False)
    given = drlih.train(unnamed, Args(**SMALL, backbone="convnet"), progress=False)
    assert_equal_weights(given, drlih.train(named, Args(**SMALL), progress=False))
    run = drlih.command(["--backbone", "tiny:1", "--backbone-learning-rate", "1e-4", "--augment", "none"])
    assert (run.args.backbone, run.args.backbone_learning_rate, run.args.augment) == ("tiny:1", 1e-4, "none")


def test_floats_are_no_pixels() -> None:
    """They would be scaled as if they were numbers from 0 to 255."""
    whole = small("pixels")
    floats = dataclasses.replace(whole, features=(whole.features / 255).astype(np.float32))
    for given in (None, "convnet"):
        for train in (
            lambda backbone: drlih.train(floats, Args(**SMALL, backbone=backbone), progress=False),
            lambda backbone: sb3.train(floats, sb3.Args(**CODE, backbone=backbone), progress=False),
        ):
            with pytest.raises(
                ValueError, match=r"the backbone convnet takes pixels, uint8 \(n, 3, H, W\); got float32"
            ):
                train(given)


def test_a_new_backbone_encodes_in_evaluation_mode_and_stays_in_training() -> None:
    pixels = small("pixels").features[:64]
    backbone = TrainableBackbone("convnet", pixels.shape[1:])
    first, again = backbone.features_of(pixels), backbone.features_of(pixels)
    np.testing.assert_array_equal(first, again)
    assert backbone.training
    assert backbone.features_of(pixels, np.arange(0)).shape == (0, backbone.dim)


@pytest.mark.parametrize(
    ("dataset", "backbone", "message"),
    [
        ("digits", "convnet", "are feature vectors, which no backbone takes: leave backbone out, or extract"),
        ("digits-pixels", "tiny:1", "are not what tiny takes after block 1"),
        ("digits-pixels", "tiny:3", "tiny can be cut"),
        ("digits-pixels", "convnet:x", "a backbone is NAME or NAME:CUT"),
        ("digits-pixels", "convnett", "convnett"),
    ],
)
def test_a_wrong_backbone_is_rejected_before_anything_is_written(
    dataset: str, backbone: str, message: str, tmp_path: Path
) -> None:
    for main in (
        lambda out: drlih.main(drlih.Main(Args(**SMALL, backbone=backbone), dataset=dataset, out=out)),
        lambda out: sb3.main(sb3.Main(sb3.Args(**CODE, backbone=backbone), dataset=dataset, out=out)),
    ):
        with pytest.raises(ValueError, match=message):
            main(tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_activations_of_another_network_are_rejected() -> None:
    for backbone in ("tiny:2", "convnet", "efficientnet_lite0:1"):
        with pytest.raises(ValueError, match=f"are activations for the backbone tiny:1, got '{backbone}'"):
            drlih.train(small("activations"), Args(**SMALL, backbone=backbone), progress=False)
    policy = drlih.build((32, 8, 8), Args(**SMALL, backbone="tiny:1"))
    with pytest.raises(ValueError, match=r"trained on images of shape \(32, 8, 8\), got \(3, 8, 8\)"):
        hashgym.encode(policy, small("pixels").features, **CODE)
    with pytest.raises(ValueError, match=r"trained on images of shape \(5,\), got \(3, 8, 8\)"):
        hashgym.encode(drlih.build((5,), Args(**SMALL)), small("pixels").features, **CODE)


def test_augmentation_is_chosen() -> None:
    plain, again, augmented = (
        drlih.train(small("pixels"), Args(**SMALL, augment=augment), progress=False)
        for augment in ("none", "none", "crop-flip")
    )
    assert_equal_weights(plain, again)
    with pytest.raises(AssertionError):
        assert_equal_weights(plain, augmented)
    with pytest.raises(ValueError, match="augment must be one of crop-flip, none, got 'crop'"):
        Args(augment="crop")


def test_an_agent_learns_from_pixels_what_projections_of_them_do_not_show() -> None:
    dataset = data.load("digits-pixels")
    query, database, labels, train = dataset.query, dataset.database, dataset.labels, dataset.train

    def score(codes: NDArray[np.bool_]) -> float:
        return metrics.mean_average_precision(codes[query], labels[query], codes[database], labels[database])

    vectors = dataset.features[:, 0].reshape(len(dataset), -1) / np.float32(255)
    scaled = (vectors - vectors[train].mean(0)) / np.maximum(vectors[train].std(0), 1e-3)
    unsupervised = [
        score(hashers.make(name, bits=24).fit(flat[train], None).encode(flat))
        for name in ("lsh", "itq")
        for flat in (vectors, scaled)
    ]
    args = Args(
        updates=60, num_envs=64, hidden=64, learning_rate=5e-3, backbone_learning_rate=5e-3, input_dropout=0.1,
        dropout=0.1, augment="none",
    )  # fmt: skip
    policy = drlih.train(dataset, args, progress=False)
    assert score(hashgym.encode(policy, dataset.features, bits=24)) > max(unsupervised) + 0.2


def small_sb3(algo: str, **changes: Any) -> sb3.Args:
    settings = {"batch_size": 32} if "batch_size" in sb3.PRESETS["BitGroupHashing-v0"][algo].settings else {}
    if "learning_starts" in sb3.PRESETS["BitGroupHashing-v0"][algo].settings:
        settings |= {"learning_starts": 32, "buffer_size": 200}
    sizes: dict[str, Any] = {"steps": 128, "num_envs": 8, "evaluations": 2, "checkpoints": 4, "holdout": 0.2}
    return sb3.Args(algo=algo, **{"settings": settings} | sizes | CODE | changes)


@pytest.mark.parametrize(
    ("kind", "algo"),
    [
        *(("pixels", algo) for algo in ("ppo", "recurrent_ppo", "sac")),
        ("views", "a2c"),
    ],
)
def test_algorithms_of_stable_baselines3_train_the_backbone_and_are_saved(kind: str, algo: str, tmp_path: Path) -> None:
    dataset = small(kind)
    model = sb3.train(dataset, small_sb3(algo), out=tmp_path, progress=False)
    policy = sb3.load(tmp_path / "policy.pt", "cpu")
    codes = hashgym.encode(model, dataset.features, **CODE)
    np.testing.assert_array_equal(hashgym.encode(policy, dataset.features, **CODE), codes)
    assert compare(tmp_path / "policy.onnx", codes, dataset.features.reshape(90, -1).astype(np.float32)).exact
    backbones = [module.backbone for module in model.policy.modules() if isinstance(module, BackboneExtractor)]
    optimizers = [getattr(model.policy, "optimizer", None), getattr(getattr(model, "actor", None), "optimizer", None)]
    trained = {id(p) for each in optimizers if each for group in each.param_groups for p in group["params"]}
    assert any(id(p) in trained for backbone in backbones for p in backbone.parameters())


def test_a_killed_run_of_stable_baselines3_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args, save = small_sb3("ppo"), checkpoint.save
    whole = sb3.train(small("pixels"), args, progress=False)

    def save_and_die(content: dict[str, Any], path: Path) -> None:
        save(content, path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            sb3.train(small("pixels"), args, out=tmp_path, progress=False)
    resumed = sb3.train(small("pixels"), args, out=tmp_path, resume=True, progress=False)
    assert_equal_weights(resumed.policy, whole.policy)


def test_a_policy_of_stable_baselines3_of_an_earlier_version_loads(multi_label: HashingDataset, tmp_path: Path) -> None:
    args = small_sb3("a2c")
    model = sb3.train(multi_label, args, out=tmp_path, progress=False)
    for name in ("checkpoint.pt", "policy.pt"):
        content = checkpoint.load(tmp_path / name)
        old = {key: part for key, part in json.loads(content["args"]).items() if not key.startswith("backbone")}
        content = {key: part for key, part in content.items() if not key.startswith("image_")}
        checkpoint.save(content | {"args": json.dumps(old)}, tmp_path / name)
    assert_equal_weights(sb3.load(tmp_path / "policy.pt", "cpu"), model.policy)
    resumed = sb3.train(multi_label, args, out=tmp_path, resume=True, progress=False)
    assert_equal_weights(resumed.policy, model.policy)


def test_what_stable_baselines3_cannot_train_from_maps() -> None:
    for arguments, message in (
        ({"algo": "crossq"}, "crossq on BitGroupHashing-v0 takes feature vectors, .* such as ppo"),
        ({"algo": "ppo", "input_dropout": 0.5}, "input_dropout drops features of vectors"),
    ):
        with pytest.raises(ValueError, match=message):
            sb3.train(small("pixels"), small_sb3(**arguments), progress=False)  # type: ignore[arg-type]
    with pytest.raises(data.DataError, match="pixels for a network that is trained, which have no regions"):
        sb3.main(sb3.Main(sb3.Args(env="RegionKeep-v0"), dataset="digits-pixels"))


def test_ppo_learns_from_pixels() -> None:
    dataset = data.load("digits-pixels")
    args = sb3.Args(bits=8, group_bits=8, num_envs=64, steps=3_000, settings={"batch_size": 128}, holdout=0)
    before = sb3.train(dataset, dataclasses.replace(args, steps=64, settings={"n_epochs": 1}), progress=False)
    scores = [sb3.measure(m, args, dataset)[0].map for m in (before, sb3.train(dataset, args, progress=False))]
    assert scores[1] > scores[0] + 0.05
