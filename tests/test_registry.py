"""Users' own names: registered, found in other processes, and found by the command line."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from agents import drlih
from benchmarks.common import methods
from hashgym import hashers, rewards
from hashgym.data import HashingDataset
from hashgym.hashers.lsh import LSH
from hashgym.registry import Registry

MODULE = '''
from hashgym import hashers, rewards
from hashgym.hashers.lsh import LSH


@rewards.register("named-ones")
class Ones:
    """Share of bits that are 1."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def __call__(self, view):
        return self.scale * view.bits.mean(1)


def ones(view):
    return view.bits.mean(1)


@hashers.register("named-planes")
class Planes(LSH):
    """Hyperplanes of one's own."""


class Unregistered(LSH):
    pass


number = 3
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module of a user's own, on the path of this process and of those that it starts."""
    (tmp_path / "users_own_things.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.delitem(sys.modules, "users_own_things", raising=False)
    return "users_own_things"


def test_names_are_registered_once_and_again_where_they_are_the_same() -> None:
    registry: Registry[object] = Registry("thing")
    registry.register("a", LSH)
    registry.register("a", LSH)
    registry.register("a", "hashgym.hashers.lsh:LSH")
    assert registry.find("a") is LSH
    assert registry.descriptions["a"].startswith("Signs of random projections")
    with pytest.raises(ValueError, match=r"a thing 'a' is registered already, hashgym.hashers.lsh:LSH: choose"):
        registry.register("a", "hashgym.hashers.itq:ITQ")
    with pytest.raises(ValueError, match=r"'package.module:Name', got 'somewhere'"):
        registry.register("b", "somewhere")
    with pytest.raises(ValueError, match="must be a string that is not empty"):
        registry.register(3, LSH)  # type: ignore[arg-type]
    one, two = (lambda number=number: number for number in (1, 2))
    registry.register("f", one)
    with pytest.raises(ValueError, match="registered already"):
        registry.register("f", two)


def test_a_class_that_a_notebook_defines_again_takes_the_old_ones_place() -> None:
    registry: Registry[type] = Registry("thing")
    for number in (1, 2):
        cell: dict[str, object] = {"__name__": "__main__"}
        exec(f"class Mine:\n    number = {number}", cell)
        registry.register("mine", cell["Mine"])  # type: ignore[arg-type]
        assert registry.find("mine").number == number


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "tripplet",
            r"unknown reward 'tripplet'.*'triplet'.*; there are average_precision, .*'package.module:Name'",
        ),
        (
            "pairwise:dhc",
            r"unknown reward 'pairwise:dhc'.*; there are .*; and there is no module pairwise on",
        ),
        (
            "users_own_things.Ones",
            r"unknown reward 'users_own_things.Ones' \(did you mean 'users_own_things:Ones'\?\);",
        ),
        ("users_own_things:Nothing", "users_own_things has no reward 'Nothing' and registers none of that name"),
        ("users_own_things:number", "is a int: it must be a reward"),
        ("users_own_things.deeper:Ones", "there is no module users_own_things.deeper"),
        ("needs_another:Ones", "importing needs_another failed: No module named 'not_here_at_all'"),
        ("fails:Ones", "importing fails failed with ZeroDivisionError"),
    ],
)
def test_names_that_lead_nowhere(own: str, tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "needs_another.py").write_text("import not_here_at_all")
    (tmp_path / "fails.py").write_text("1 / 0")
    with pytest.raises(ValueError, match=message) as raised:
        rewards.make(name)
    assert "\n" not in str(raised.value)


def test_a_module_and_name_is_a_reward_everywhere(own: str) -> None:
    assert type(rewards.make(f"{own}:Ones")).__name__ == "Ones"
    assert rewards.make({"name": f"{own}:Ones", "scale": 2.0}).scale == 2  # type: ignore[attr-defined]
    assert rewards.make("named-ones", scale=3.0).scale == 3  # type: ignore[attr-defined]  # the import registered it
    assert rewards.make(f"{own}:named-ones") is not None
    assert rewards.make(f"{own}:ones").__name__ == "ones"  # type: ignore[attr-defined]  # a reward itself
    total = rewards.weighted({f"{own}:Ones": 1.0, "triplet": 0.5})
    assert len(total.terms) == 2
    with pytest.raises(ValueError, match=rf"^reward '{own}:Ones' has no setting scal.*: it has scale$"):
        rewards.make(f"{own}:Ones", scal=1)


def first_reward(name: str) -> tuple[float, bool]:
    """Return the reward of ones in an environment of a process of its own, and whether the name is registered there."""
    env = gym.make("hashgym:BitGroupHashing-v0", reward=name, bits=8, group_bits=8)
    env.reset(seed=0)
    return float(env.step(np.ones(8, np.int8))[1]), name in rewards.available()


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_workers_find_rewards_and_hashers(own: str) -> None:
    name = f"{own}:named-ones"
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(first_reward, name).result() == (2.0, False)  # the group's and the whole code's
        hasher = pool.submit(hashers.make, f"{own}:Unregistered", bits=4).result()
    assert type(hasher).__name__ == "Unregistered"


def test_hashers_are_registered_by_class_by_decorator_and_by_place(own: str) -> None:
    class Local(LSH):
        """Local planes."""

    hashers.register("local", Local)
    assert hashers.available()["local"] == "Local planes."
    assert type(hashers.make("local", bits=4)) is Local
    assert type(hashers.make(f"{own}:Planes", bits=4)).__name__ == "Planes"
    assert type(hashers.make("named-planes", bits=4)).__name__ == "Planes"
    env = gym.make("hashgym:RegionKeep-v0", base=f"{own}:Planes", bits=8, loss=np.zeros((2, 9)))
    assert type(env.unwrapped.base).__name__ == "Planes"
    with pytest.raises(ValueError, match=r"must be a subclass of hashgym.hashers.Hasher, got <class 'int'>"):
        hashers.register("number", int)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"hasher '{own}:Ones' must be a subclass"):
        hashers.make(f"{own}:Ones")


def test_a_saved_hasher_names_its_module_and_imports_nothing(own: str, tmp_path: Path) -> None:
    X = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)
    fitted = hashers.make(f"{own}:Unregistered", bits=3).fit(X)
    fitted.save(tmp_path / "own.npz")
    np.testing.assert_array_equal(hashers.load(tmp_path / "own.npz").encode(X), fitted.encode(X))
    del sys.modules[own]
    with pytest.raises(ValueError, match=f"'{own}:Unregistered', which is not registered: import {own} before"):
        hashers.load(tmp_path / "own.npz")
    assert own not in sys.modules

    class Local(LSH):
        pass

    with pytest.raises(ValueError, match=r"is not registered, and no module holds it: call .*register\(name, Local\)"):
        Local(bits=2).fit(X).save(tmp_path / "local.npz")
    hashers.register("local", Local)
    Local(bits=2).fit(X).save(tmp_path / "local.npz")
    hashers.HASHERS.entries.pop("local")
    with pytest.raises(ValueError, match=r"'local', which is not registered: call hashgym.hashers.register"):
        hashers.load(tmp_path / "local.npz")


def test_an_agent_takes_a_reward_of_a_module(own: str, multi_label: HashingDataset) -> None:
    args = drlih.Args(reward=f"{own}:Ones", bits=4, group_bits=4, updates=1, num_envs=8, hidden=8, device="cpu")
    assert drlih.train(multi_label, args, progress=False).dim == multi_label.dim


@pytest.mark.parametrize(
    ("make", "known"),
    [
        (
            lambda **given: gym.make("BitGroupHashing-v0", **given),
            "BitGroupHashing-v0 has no setting bitz.*: it has bits, ",
        ),
        (
            lambda **given: gym.make_vec("BitGroupHashing-v0", 2, **given),
            "has no setting bitz.*: it has bits, group_bits",
        ),
        (
            lambda **given: gym.make("RegionKeep-v0", **given),
            "RegionKeep-v0 has no setting bitz.*: it has base, ",
        ),
        (
            lambda **given: gym.make_vec("RegionKeep-v0", 2, **given),
            "RegionKeep-v0 has no setting bitz.*: it has base, ",
        ),
        (
            lambda **given: hashers.make("itq", **given),
            "itq has no setting bitz.*: it has bits, seed, iterations",
        ),
        (lambda **given: rewards.make("triplet", **given), "reward 'triplet' has no setting bitz: it has margin"),
        (
            lambda **given: rewards.make("pairwise:dch", **given),
            "dch has no setting bitz.*: it has bits, ",
        ),
        (lambda **given: rewards.make("weighted", **given), "reward 'weighted' has no setting bitz: it has terms"),
    ],
)
def test_unknown_settings_name_the_known_ones_in_a_line(make: Callable[..., object], known: str) -> None:
    with pytest.raises(ValueError, match=known) as raised:
        make(bitz=np.zeros((1_000, 50)))
    assert len(str(raised.value)) < 300
    assert "\n" not in str(raised.value)


def test_benchmarks_and_exports_take_a_hasher_of_a_module(own: str) -> None:
    configured = methods.settings(methods.Cell("digits", f"{own}:Planes", 8, 0))
    assert (type(configured).__name__, configured.bits) == ("Planes", 8)
    with pytest.raises(ValueError, match=r"there is no method 'moon': choose from lsh, itq"):
        methods.settings(methods.Cell("digits", "moon", 8, 0))
    with pytest.raises(ValueError, match=r"unknown hasher 'nowhere:Planes'; .* no module nowhere"):
        methods.settings(methods.Cell("digits", "nowhere:Planes", 8, 0))
