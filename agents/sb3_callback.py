"""Evaluation of Stable-Baselines3's agents, during training (curves, best policy, checkpoints) and after it."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import TensorBoardOutputFormat
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

import hashgym
from hashgym.codes import CodeSets
from hashgym.data import HashingDataset
from hashgym.hashers import Hasher
from hashgym.retrieval import metrics

from . import checkpoint as files
from . import sb3_checkpoint, training
from .arguments import as_json
from .sb3_presets import Args

__all__ = ["Curves", "TrainingCallback", "encode", "measure"]

LOGS = 100  # points of the TensorBoard curves


def encode(
    policy: Any, args: Args, dataset: HashingDataset, rows: NDArray[np.int64], base: Hasher | None = None
) -> CodeSets:
    """Return codes of some images of a dataset: one each, and where there is a base those that the policy keeps."""
    if base is None:
        return CodeSets.of(training.encode(policy, dataset, rows, bits=args.bits, group_bits=args.group_bits))
    if args.env == "MultiCodeHashing-v0":
        groups: dict[str, Any] = {"codes": args.codes, "group_bits": args.group_bits or None}
        return hashgym.encode_codes(policy, base, dataset.features[rows], **groups)
    regions = None if dataset.regions is None else dataset.regions[rows]
    return hashgym.encode_regions(policy, base, dataset.features[rows], regions)


def measure(
    policy: Any, args: Args, dataset: HashingDataset, base: Hasher | None = None
) -> tuple[metrics.RetrievalResult, CodeSets]:
    """Search the database for every query, with a base by its code alone. Returns measures and codes."""
    query: Any = (
        encode(policy, args, dataset, dataset.query) if base is None else base.encode(dataset.features[dataset.query])
    )
    database = encode(policy, args, dataset, dataset.database, base)
    return metrics.evaluate(query, dataset.labels[dataset.query], database, dataset.labels[dataset.database]), database


class Curves(TensorBoardOutputFormat):
    """TensorBoard's files in a folder; points from ``purge_step`` on, which a resumed run repeats, are dropped."""

    def __init__(self, folder: Path, purge_step: int) -> None:
        self.writer, self._is_closed = SummaryWriter(str(folder), purge_step=purge_step), False


class TrainingCallback(BaseCallback):
    """Progress bar, curves, the best policy on held-out images, and checkpoints, while an algorithm learns."""

    def __init__(
        self,
        args: Args,
        dataset: HashingDataset,
        held_out: NDArray[np.int64],
        base: Hasher | None,
        out: Path | None,
        progress: bool,
    ) -> None:
        super().__init__()
        self.args, self.dataset, self.held_out, self.base, self.out = args, dataset, held_out, base, out
        self.bar = training.progress_bar(progress)
        self.best, self.weights, self.marks = -np.inf, dict[str, Tensor](), dict[str, int]()

    def _on_training_start(self) -> None:
        self.task = self.bar.add_task(f"{self.args.algo}, {self.args.env}", total=self.args.steps)

    def _on_rollout_start(self) -> None:
        """Log, evaluate and save between an update and a rollout, the only point from which a run can continue."""
        if self._due("log", LOGS):
            self.model.dump_logs()
        if self._due("evaluate", self.args.evaluations):
            self._evaluate()
        if self.out is not None and self._due("save", self.args.checkpoints):
            self.model.dump_logs()  # what was recorded and not written yet is not in the checkpoint
            files.save(self.checkpoint(), self.out / "checkpoint.pt")

    def _on_step(self) -> bool:
        self.bar.update(self.task, completed=self.num_timesteps)
        info = self.training_env.unwrapped.last_info  # type: ignore[attr-defined]
        for name, part in info.get("final_info", info)["rewards"].items():
            if not name.startswith("_"):
                self.logger.record_mean(f"reward/{name}", float(part.mean()))
        return True

    def _on_training_end(self) -> None:
        self._evaluate()
        self.model.dump_logs()
        if self.weights:
            self.model.policy.load_state_dict(self.weights)
        self.model.policy.set_training_mode(False)

    def _due(self, action: str, times: int) -> bool:
        """Return whether an action that is done ``times`` times in a run, at equal intervals, is due."""
        count = self.num_timesteps * times // self.args.steps
        due = count > self.marks.get(action, 0)
        self.marks[action] = count
        return due

    def _evaluate(self) -> None:
        """Measure how held-out images find each other, and the reward of decisions on them; queries are never seen.

        The best policy has the highest tie-aware mAP of these. With a base it has the highest reward: among a few
        images mAP is best if all codes are kept, although that brings dissimilar images near too.
        """
        if len(self.held_out) < 2:
            return
        scores = {}
        if self.args.env != "RegionKeep-v0" or self.dataset.regions is not None:  # an encoding needs the five regions
            codes = encode(self.model, self.args, self.dataset, self.held_out, self.base)
            scores = training.retrieval_among(codes, self.dataset.labels[self.held_out])
        if self.base is not None:
            scores["reward/held_out"] = self._mean_reward()
        for name, score in scores.items():
            self.logger.record(name, score)
        # Without two held-out images that share a label there is no score, and the last policy is kept.
        score = scores.get("retrieval/held_out_map" if self.base is None else "reward/held_out", -np.inf)
        if score > self.best:
            self.best = score
            self.weights = {name: part.clone() for name, part in self.model.policy.state_dict().items()}

    def _mean_reward(self) -> float:
        """Return the mean reward of decisions on each of the held-out images' regions, or of their further codes."""
        rewards = []
        if self.args.env == "MultiCodeHashing-v0":
            observation, _ = self._evaluation_envs.reset(options={"index": self.held_out})
            done = np.zeros(1, bool)
            while not done[0]:
                action, _ = self.model.predict(observation, deterministic=True)
                observation, reward, done, _, _ = self._evaluation_envs.step(action)
                rewards.append(reward.mean())
            return float(np.sum(rewards))
        for region in range(self.dataset.train_regions.shape[1]):  # type: ignore[union-attr]
            options = {"index": self.held_out, "regions": np.full((len(self.held_out), 1), region)}
            observation, info = self._evaluation_envs.reset(options=options)
            action, _ = self.model.predict(observation, deterministic=True)
            rewards.append(np.where(action == 1, info["keep_reward"], 0.0).mean())
        return float(np.mean(rewards))

    @cached_property
    def _evaluation_envs(self) -> Any:
        task: dict[str, Any] = {"dataset": self.dataset, "base": self.base}
        if self.args.env == "MultiCodeHashing-v0":
            task |= {"codes": self.args.codes, "group_bits": self.args.group_bits or None}
        return gym.make_vec(self.args.env, num_envs=len(self.held_out), **task)

    @cached_property
    def _fingerprint(self) -> str:
        return files.fingerprint(self.dataset, regions=self.args.env == "RegionKeep-v0")

    def checkpoint(self) -> dict[str, Any]:
        """Return everything that decides how the run continues."""
        own = {"best": self.best, "weights": self.weights, "marks": self.marks}
        run = {"args": as_json(self.args), "data": self._fingerprint}
        return run | sb3_checkpoint.get_state(self.model) | {"watch": own}

    def restore(self, model: Any, checkpoint: dict[str, Any]) -> None:
        """Continue from a checkpoint.

        Raises:
            ValueError: if it was made on other data.
        """
        files.check_data(checkpoint, self._fingerprint)
        sb3_checkpoint.set_state(model, checkpoint)
        self.best, self.weights, self.marks = (checkpoint["watch"][key] for key in ("best", "weights", "marks"))
