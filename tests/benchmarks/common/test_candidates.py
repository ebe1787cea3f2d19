"""One agent keeps codes of regions and written ones: the codes are those of base and writer, and so are the rewards."""

import gymnasium as gym
import numpy as np
import pytest

import hashgym
import hashgym.hashers
from agents import mch, multicode
from benchmarks.common import candidates
from hashgym.codes import hamming
from hashgym.data import load


@pytest.fixture(scope="module")
def fitted():
    scenes = load("digit-scenes").standardized()
    base = hashgym.hashers.make("dch", bits=12, updates=50).fit(
        scenes.features[scenes.train], scenes.labels[scenes.train]
    )
    return scenes, base, multicode.train(scenes, base, multicode.Args(updates=3, holdout=0.0), progress=False)


def test_candidates_have_the_codes_of_base_and_writer(fitted):
    scenes, base, writer = fitted
    args = mch.Args(updates=2, num_envs=16, holdout=0.0, code_dropout=0.5)
    policy = candidates.train(scenes, base, writer, args)
    features, regions = scenes.features[:40], scenes.regions[:40]
    words, p = candidates.keep_probabilities(policy, base, writer, features, regions)
    of_regions = hashgym.encode_regions(lambda seen: np.ones(len(seen["image"])), base, features, regions).words
    np.testing.assert_array_equal(words[:, :-1], of_regions)
    np.testing.assert_array_equal(words[:, -1], multicode.encode(writer, base, features, threshold=0).words[:, 1])
    assert p.shape == (40, 7)
    assert (p[:, 0] == 1).all()
    again = candidates.train(scenes, base, writer, args)
    np.testing.assert_array_equal(candidates.keep_probabilities(again, base, writer, features, regions)[1], p)


def test_keeping_a_given_code_is_rewarded_by_the_loss_of_the_base(fitted):
    scenes, base, writer = fitted
    dataset = candidates.training_set(scenes, base, writer, dropout=0.0, seed=0)  # four equal versions
    given, count = candidates.GivenCodes(bits=base.bits, base=base), len(scenes.train)
    assert len(dataset.train) == candidates.VERSIONS * count
    np.testing.assert_array_equal(given.encode(dataset.features[:count]), base.encode(scenes.features[scenes.train]))

    env = gym.make("RegionKeep-v0", dataset=dataset, base=given)
    table, labels = base.loss_table(), dataset.labels
    own = hashgym.codes.pack(given.encode(dataset.features))
    written = dataset.train_regions.shape[1] - 1
    for row in (0, 5, count + 7):
        _, info = env.reset(options={"index": row, "regions": [written]})
        assert not dataset.train_regions[row, written, : scenes.dim].any()
        code = hashgym.codes.pack(given.encode(dataset.train_regions[row, written][None]))
        loss, kept = 0.0, 0.0
        for other in range(len(own)):
            similar = int((labels[row] & labels[other]).any())
            first, second = int(hamming(own[row], own[other])), int(hamming(code[0], own[other]))
            loss += table[similar, first]
            kept += table[similar, min(first, second)]
        assert info["keep_reward"] == pytest.approx((loss - kept) / len(own))
