"""Stable-Baselines3 on all environments: eleven algorithms by one command, with presets that learn.

    python -m agents.sb3 ppo --dataset digits --bits 24 --out runs/ppo
    python -m agents.sb3 dqn --env RegionKeep-v0 --dataset digit-scenes
    python -m agents.sb3 ppo --env MultiCodeHashing-v0 --dataset digit-scenes

The algorithms are those of Stable-Baselines3 and sb3-contrib. Added are: the environments as a VecEnv
(:class:`hashgym.integrations.sb3.HashVecEnv`), wrappers (``sb3_wrappers``), a features extractor and the export of
policies (``sb3_policies``), presets (``sb3_presets``), evaluation and the best policy by held-out training images
(``sb3_callback``), and checkpoints without pickle that a killed run continues from (``sb3_checkpoint``).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import tyro
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

from hashgym import console
from hashgym.data import HashingDataset
from hashgym.device import explain_out_of_memory, resolve_device
from hashgym.encoders.heads import CodesHead, GroupsHead, RegionsHead, hasher_head
from hashgym.envs.bit_group_hashing import HashingTask
from hashgym.envs.multi_code_hashing import MultiCodeTask, check_images
from hashgym.envs.region_keep import RegionKeepTask
from hashgym.hashers import HASHERS, Hasher
from hashgym.integrations.sb3 import BackboneExtractor, HashVecEnv
from hashgym.optional import require
from hashgym.retrieval import metrics
from hashgym.terminal import command_line

try:
    import sb3_contrib  # noqa: F401  # by the modules below
except ModuleNotFoundError:
    require("sb3_contrib", "agents.sb3")

from . import bases, training
from . import checkpoint as files
from .arguments import read_command
from .sb3_callback import Curves, TrainingCallback, encode, measure
from .sb3_policies import Greedy, GreedyCodes, ImageAndCode
from .sb3_presets import PRESETS, Args
from .sb3_wrappers import FeatureDropout, Flat

__all__ = [
    "PRESETS",
    "Args",
    "FeatureDropout",
    "ImageAndCode",
    "Main",
    "command",
    "encode",
    "load",
    "main",
    "make_envs",
    "make_model",
    "measure",
    "train",
]


def make_envs(dataset: HashingDataset, args: Args, base: Hasher | None) -> VecEnv:
    """Return the environments that a run learns on, as a VecEnv of Stable-Baselines3."""
    task: dict[str, Any]
    if args.env == "BitGroupHashing-v0":
        task = {"bits": args.bits, "group_bits": args.group_bits, "action": args.preset.action, "reward": args.reward}
    elif args.env == "RegionKeep-v0":
        task = {"base": base}
    else:
        assert base is not None
        task = {"base": base, "codes": args.codes, "group_bits": args.group_bits or None}
    envs: VecEnv = HashVecEnv(gym.make_vec(args.env, num_envs=args.num_envs, dataset=dataset, **task))
    if args.input_dropout:
        envs = FeatureDropout(envs, args.input_dropout, args.seed)
    return Flat(envs) if args.algo == "crossq" else envs


def make_model(envs: VecEnv, args: Args) -> BaseAlgorithm:
    """Return the algorithm, untrained."""
    preset = args.preset
    settings = {**preset.settings, **args.settings}
    if "noise" in settings:  # a deterministic actor explores only by noise
        sigma = np.full(args.group_bits, settings.pop("noise"))
        settings["action_noise"] = NormalActionNoise(np.zeros(args.group_bits), sigma)
    try:
        return preset.algorithm(
            preset.policy_class,
            envs,
            policy_kwargs=args.policy_kwargs,
            seed=args.seed,
            device=resolve_device(args.device),
            **settings | {"learning_rate": LinearSchedule(settings["learning_rate"], 0.0, 1.0)},
        )
    except (TypeError, AssertionError) as error:  # of a wrong kind, or a value that the algorithm asserts
        raise ValueError(f"{args.algo}: {error}; settings are those of its constructor in Stable-Baselines3") from error


@files.exclusive
def train(
    dataset: HashingDataset,
    args: Args,
    *,
    base: Hasher | None = None,
    out: Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> BaseAlgorithm:
    """Train an algorithm on the training images of a dataset.

    A part of them is held out and evaluated at regular intervals; the policy with the best ranking of them, or where
    there is a base the highest reward on them, is kept.

    Args:
        dataset: feature vectors, which do best standardised (``HashingDataset.standardized``), or for
            BitGroupHashing-v0 activations or pixels, from which a backbone is trained as well.
        args: arguments of the run.
        base: the fitted base hasher, for RegionKeep-v0 and MultiCodeHashing-v0.
        out: folder for ``base.npz``, ``checkpoint.pt``, TensorBoard's files, and at the end ``policy.pt`` and the
            encoder ``policy.onnx``; None writes nothing.
        resume: continue the run that ``out`` holds; the result is that of a run that was never stopped.
        progress: whether to show a progress bar.

    Returns:
        The algorithm with its best policy, for :func:`hashgym.encode`, :func:`hashgym.encode_regions` or
        :func:`hashgym.encode_codes`.

    Raises:
        ValueError: if ``out`` holds a run and ``resume`` is false, or one with other arguments; for arguments or data
            that the environment or the algorithm rejects; if another process is training into ``out``.
        DiskFullError: if a file does not fit on the disk; the last checkpoint is complete.
    """
    if (base is None) != (args.env == "BitGroupHashing-v0"):
        raise ValueError("RegionKeep-v0 and MultiCodeHashing-v0 need base=, a fitted hasher, BitGroupHashing-v0 none")
    args = _resolved(args, dataset)
    checkpoint = files.load_checkpoint(out, args, resume)
    learning, held_out = training.split(dataset, args)
    with training.seed_everything(args.seed, resolve_device(args.device)):
        model = make_model(make_envs(learning, args, base), args)
        if base is not None and out is not None:
            bases.save_base(base, out)
        BackboneExtractor.measure(model.policy, learning)
        callback = TrainingCallback(args, dataset, held_out, base, out, progress)
        if checkpoint is not None:
            callback.restore(model, checkpoint)
        model.set_logger(Logger(None, [] if out is None else [Curves(out, purge_step=model.num_timesteps + 1)]))
        setting = "batch_size of settings" if hasattr(model, "batch_size") else "num_envs"
        batch_size = getattr(model, "batch_size", args.num_envs)
        threads, memory = training.limited_threads(model.policy, batch_size), explain_out_of_memory(setting, batch_size)
        with callback.bar, threads, memory:
            model.learn(
                args.steps - model.num_timesteps,
                callback,
                log_interval=None,  # type: ignore[arg-type]  # the callback writes the curves
                reset_num_timesteps=checkpoint is None,
            )
    if out is not None:
        bits = args.bits if base is None else base.bits
        image = {"image_shape": list(dataset.image_shape), "image_type": dataset.features.dtype.name}
        payload = files.policy_payload(model.policy, dataset, args, dim=dataset.dim, bits=bits, **image)
        files.save(payload, out / "policy.pt")
        # Loaded from the file, because the trained policy may hold tensors of its last update, which cannot be copied.
        greedy, path = Greedy(load(out / "policy.pt", "cpu")), out / "policy.onnx"
        if base is None:
            code: dict[str, Any] = {"bits": bits, "group_bits": args.group_bits}
            files.write_encoder(lambda: GroupsHead(greedy, **code), dataset, args, path, **code)
        elif args.env == "RegionKeep-v0":
            files.write_encoder(
                lambda: RegionsHead(hasher_head(base), greedy), dataset, args, path, bits=bits, threshold=0.5
            )
        else:
            writer = GreedyCodes(greedy.policy, bits, args.group_bits or bits)
            files.write_encoder(
                lambda: CodesHead(hasher_head(base), writer, args.codes, 0.5),
                *(dataset, args, path),
                bits=bits,
                codes=args.codes,
                threshold=0.5,
            )
    return model


def _resolved(args: Args, dataset: HashingDataset) -> Args:
    """Return the arguments with the backbone of the dataset's images; DataError if the environment has none."""
    if args.env == "BitGroupHashing-v0":
        return training.with_backbone(args, dataset)
    if args.env == "RegionKeep-v0":
        dataset.require("train_regions")
    else:
        check_images(dataset)
    return args


def load(path: Path, device: str = "auto") -> BasePolicy:
    """Load the ``policy.pt`` of a finished run; it encodes as the policy that was saved, to the last bit.

    Raises:
        ValueError: if the file is missing, corrupt, or no policy of this agent.
    """
    saved, args = files.load_policy(path, Args)
    if args.env == "BitGroupHashing-v0":
        task = HashingTask(bits=saved["bits"], group_bits=args.group_bits, action=args.preset.action)
        image = tuple(saved.get("image_shape", [saved["dim"]])), saved.get("image_type", "float32")
        observation_space: Any = task.observation_space(*image)
        action = task.action_space()
    elif args.env == "RegionKeep-v0":
        observation_space, action = RegionKeepTask().observation_space(saved["dim"], saved["bits"]), spaces.Discrete(2)
    else:
        codes = MultiCodeTask(codes=args.codes, group_bits=args.group_bits or None)
        observation_space = codes.observation_space(saved["dim"], saved["bits"])
        action = codes.acting(saved["bits"]).action_space()
    if args.algo == "crossq":
        observation_space = Flat.space(observation_space)
    network = args.policy_kwargs
    if args.backbone is not None:  # its weights are loaded below
        network["features_extractor_kwargs"]["pretrained"] = False
    policy = args.preset.policy_class(observation_space, action, lambda _: 0.0, **network)
    policy.load_state_dict(saved["weights"])
    policy.set_training_mode(False)
    return policy.to(resolve_device(device))


@dataclass(frozen=True)
class Main:
    """Train one of Stable-Baselines3's algorithms and measure its codes."""

    args: tyro.conf.OmitArgPrefixes[Args]
    dataset: str | None = None
    """an embedded dataset or a folder made by `hashgym features`; digits, or digit-scenes where there is a base"""
    base: str = "dch"
    """base hasher of RegionKeep-v0 and MultiCodeHashing-v0 by name, or a file that Hasher.save wrote"""
    similarity: str | None = None
    """what to learn from instead of labels: `neighbours`, or a CSV file of similar training images, name,name"""
    out: Path | None = None
    """folder for checkpoint, policy and TensorBoard files"""
    resume: bool = False
    """continue the run in `out`"""


def command(argv: Sequence[str] | None = None, prog: str | None = None) -> Main:
    """Read the command line, with the defaults of the algorithm's preset. Arguments as in :func:`read_command`."""
    return read_command(Main, "sb3", "--algo", "ppo", argv, prog=prog)


def main(run: Main) -> metrics.RetrievalResult | None:
    """Train, encode queries and database, and print the retrieval metrics; None without labels."""
    args: Args = run.args
    base: Hasher | None = None
    has_base = args.env != "BitGroupHashing-v0"
    with training.interruptible(run.out):
        source = run.dataset or ("digit-scenes" if has_base else "digits")
        learning, dataset = training.load_dataset(source, run.similarity)
        args = _resolved(args, dataset)
        if args.env == "RegionKeep-v0":
            dataset.require("regions")
        with files.hold_folder(run.out):
            files.load_checkpoint(run.out, args, run.resume)  # before a base is fitted
            resolve_device(args.device)
            if args.env == "MultiCodeHashing-v0" and run.base in HASHERS:  # a file has bits of its own
                MultiCodeTask(codes=args.codes, group_bits=args.group_bits or None).check_bits(args.bits)
            if has_base:
                base = bases.base_of_run(run.base, run.out if run.resume else None, args.bits, args.seed, learning)
            training.warn_unsaved(run.out)
            start_time = time.perf_counter()
            model = train(learning, args, base=base, out=run.out, resume=run.resume)
            seconds = time.perf_counter() - start_time
        if not dataset.has_labels:
            console.say(f"{args.algo} on {dataset.name}, trained in {seconds:.1f} s; {training.UNMEASURED}")
            return None
        result, codes = measure(model, args, dataset, base)
        console.say(
            f"{args.algo}, {args.bits if base is None else base.bits} bits on {dataset.name}: mAP {result.map:.4f} "
            f"(ties {result.map_pessimistic:.4f} to {result.map_optimistic:.4f}), "
            f"within radius 0 recall {result.recall_by_radius[0]:.4f}, precision {result.precision_by_radius[0]:.4f}, "
            f"{codes.anhc:.2f} codes an image, trained in {seconds:.1f} s"
        )
        return result


if __name__ == "__main__":
    with command_line():
        main(command())
