"""Stable-Baselines3 on activations and pixels: its own extractor of pictures, and BackboneExtractor."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.torch_layers import NatureCNN

import hashgym
from hashgym.data import HashingDataset
from hashgym.envs.bit_group_hashing import HashingTask
from hashgym.features.trainable import TrainableBackbone
from hashgym.integrations.sb3 import BackboneExtractor, HashVecEnv


def pixels(side: int) -> HashingDataset:
    """40 pictures of two classes, dark and bright."""
    rng = np.random.default_rng(0)
    classes = np.arange(40) % 2
    features = rng.integers(0, 128, (40, 3, side, side)) + 100 * classes[:, None, None, None]
    split = {"query": np.arange(8), "database": np.arange(8, 40), "train": np.arange(8, 40)}
    return HashingDataset("pictures", features.astype(np.uint8), np.eye(2, dtype=np.uint8)[classes], **split)


def make(dataset: HashingDataset) -> HashVecEnv:
    return HashVecEnv(gym.make_vec("BitGroupHashing-v0", num_envs=8, dataset=dataset, bits=6, group_bits=3))


def ppo(envs: HashVecEnv, **network: Any) -> PPO:
    return PPO("MultiInputPolicy", envs, n_steps=4, batch_size=16, policy_kwargs=network or None, seed=0, device="cpu")


def extractor(**arguments: Any) -> dict[str, Any]:
    return {"features_extractor_class": BackboneExtractor, "features_extractor_kwargs": arguments}


def test_pixels_of_36_and_more_go_to_stable_baselines3s_own_extractor() -> None:
    envs = make(pixels(36))
    model = ppo(envs)
    assert any(isinstance(module, NatureCNN) for module in model.policy.modules())
    assert type(model.get_env()) is HashVecEnv  # channels come first already: nothing is transposed
    model.learn(64)
    codes = hashgym.encode(model, pixels(36).features, bits=6, group_bits=3)
    assert codes.shape == (40, 6)


@pytest.mark.parametrize("normalize_images", [True, False])
def test_the_backbone_gets_exactly_the_pixels(normalize_images: bool) -> None:
    dataset = pixels(8)
    network = extractor(backbone="convnet", width=0, normalized_image=normalize_images)
    model = ppo(make(dataset), normalize_images=normalize_images, **network)
    found = model.policy.features_extractor
    assert isinstance(found, BackboneExtractor)
    observation = {
        "image": dataset.features[:5],
        "code": np.linspace(-1, 1, 30, dtype=np.float32).reshape(5, 6),
        "group": np.array([0, 1, 0, 1, 1]),
    }
    tensors, _ = model.policy.obs_to_tensor(observation)
    with torch.no_grad():
        features = model.policy.extract_features(tensors)
        image = found.backbone(torch.from_numpy(dataset.features[:5]))
    assert isinstance(features, torch.Tensor)
    assert features.shape[1] == found.features_dim
    torch.testing.assert_close(features[:, :-8], image, rtol=0, atol=0)
    torch.testing.assert_close(features[:, -8:-2].numpy(), observation["code"])
    np.testing.assert_array_equal(features[:, -2:].numpy(), np.eye(2)[observation["group"]])


def test_learning_changes_the_backbones_weights_but_not_its_averages() -> None:
    dataset = pixels(8)
    model = ppo(make(dataset), **extractor(backbone="convnet"))
    BackboneExtractor.measure(model.policy, dataset)
    before = {name: part.clone() for name, part in model.policy.features_extractor.state_dict().items()}
    model.learn(64)
    after = model.policy.features_extractor.state_dict()
    changed = {name for name, part in before.items() if not torch.equal(part, after[name])}
    assert "layer.0.weight" in changed
    assert any(name.startswith("backbone.network.blocks.1") for name in changed)
    assert not [name for name in changed if "running" in name or "tracked" in name]


def test_the_weights_of_the_backbone_are_not_drawn_again() -> None:
    """Stable-Baselines3 would make all weights of a features extractor orthogonal, pretrained ones too."""
    model = ppo(make(pixels(8)), **extractor(backbone="convnet"))
    found = model.policy.features_extractor
    assert isinstance(found, BackboneExtractor)

    def is_orthogonal(weight: torch.Tensor) -> bool:
        flat = weight.flatten(1)
        product = flat @ flat.T if len(flat) < flat.shape[1] else flat.T @ flat
        return torch.allclose(product, 2 * torch.eye(len(product)), atol=1e-4)

    assert is_orthogonal(found.layer[0].weight)  # type: ignore[index, union-attr]
    convolutions = [module for module in found.backbone.modules() if isinstance(module, torch.nn.Conv2d)]
    assert len(convolutions) == 3
    assert not any(is_orthogonal(convolution.weight) for convolution in convolutions)


def test_measured_averages_are_those_of_training_images() -> None:
    dataset = pixels(8)
    model = ppo(make(dataset), **extractor(backbone="convnet", width=0))
    BackboneExtractor.measure(model.policy, dataset, images=16)
    backbone = model.policy.features_extractor.backbone
    assert isinstance(backbone, TrainableBackbone)
    assert not backbone.training
    pictures = torch.from_numpy(dataset.features[dataset.train[::2]]).float() / 127.5 - 1
    with torch.no_grad():
        first, norm, *_ = backbone.network.blocks["1"].children()
        maps = first(pictures)
    torch.testing.assert_close(norm.running_mean, maps.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, maps.transpose(0, 1).flatten(1).var(1), rtol=1e-4, atol=1e-5)
    assert norm.momentum == 0.1  # as it was


def test_wrong_observations_are_named() -> None:
    flat = spaces.Box(-1, 1, (10,), np.float32)
    for space in (flat, HashingTask().observation_space((64,))):
        with pytest.raises(ValueError, match="BitGroupHashing-v0 on a dataset of activations or pixels, without flat"):
            BackboneExtractor(space, "convnet")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="are not what convnet takes"):
        BackboneExtractor(HashingTask().observation_space((5, 8, 8), np.uint8), "convnet")
