"""Rewards of spans of bits: built-in ones by name, one a file, or any callable."""

from functools import partial

from hashgym.rewards.average_precision import AveragePrecision
from hashgym.rewards.balance import Balance
from hashgym.rewards.nca import NCA
from hashgym.rewards.pairwise import LOSSES, Pairwise
from hashgym.rewards.registry import (
    Reward,
    RewardError,
    RewardLike,
    available,
    flip_credit,
    make,
    register,
    value,
    value_and_credit,
)
from hashgym.rewards.triplet import Triplet, triplet_loss
from hashgym.rewards.view import Codebook, RewardView, squared_distance
from hashgym.rewards.weighted import Weighted, weighted

__all__ = [
    "NCA",
    "AveragePrecision",
    "Balance",
    "Codebook",
    "Pairwise",
    "Reward",
    "RewardError",
    "RewardLike",
    "RewardView",
    "Triplet",
    "Weighted",
    "available",
    "flip_credit",
    "make",
    "register",
    "squared_distance",
    "triplet_loss",
    "value",
    "value_and_credit",
    "weighted",
]

register("triplet", Triplet)
register("average_precision", AveragePrecision)
register("weighted", weighted)
register("balance", Balance)
register("nca", NCA)
register("pairwise", Pairwise)
for _loss in LOSSES:
    register(f"pairwise:{_loss}", partial(Pairwise, _loss))
