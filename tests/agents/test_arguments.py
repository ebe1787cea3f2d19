"""Arguments of agents: former names, and the command line that is the same for all agents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents import drlih, mch, multicode, sb3
from agents.arguments import as_json


def test_former_names_are_taken() -> None:
    with pytest.warns(DeprecationWarning, match="lanes= is now called num_envs="):
        args = drlih.Args(lanes=8, rnn_hidden=2)
    assert args == drlih.Args(num_envs=8, rnn_hidden=2)
    with pytest.warns(DeprecationWarning, match="history= is now called rnn_hidden="):
        assert drlih.Args(history=2).rnn_hidden == 2
    options = ["--lanes", "8", "--history=2"]
    assert drlih.command(options) == drlih.command(["--num-envs", "8", "--rnn-hidden=2"])
    assert drlih.command(options).args.num_envs == 8


def test_numbers_of_numpy_are_saved_as_numbers() -> None:
    given = drlih.Args(learning_rate=np.float32(0.5), margin=np.float64(2), num_envs=np.int64(8), seed=np.uint8(3))
    plain = drlih.Args(learning_rate=0.5, margin=2.0, num_envs=8, seed=3)
    assert as_json(given) == as_json(plain)
    for agent in (mch, multicode, sb3):
        assert as_json(agent.Args(seed=np.int64(4))) == as_json(agent.Args(seed=4))
        with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
            agent.Args(seed=-1)


@pytest.mark.parametrize(
    ("agent", "option", "name", "chosen"),
    [
        (drlih, "--variant", "lstm", lambda run: run.args.variant),
        (mch, "--preset", "paper", lambda run: run.preset),
        (sb3, "--algo", "dqn", lambda run: run.args.algo),
    ],
)
def test_every_agent_takes_its_name_first_or_as_an_option(agent: Any, option: str, name: str, chosen: Any) -> None:
    rest = ["--dataset", "elsewhere", "--num-envs", "7"]
    first = agent.command([name, *rest])
    assert (chosen(first), first.dataset, first.args.num_envs) == (name, "elsewhere", 7)
    for words in ([option, name, *rest], [*rest, option, name], [f"{option}={name}", *rest]):
        assert agent.command(words) == first
    assert chosen(agent.command(rest)) in ("hashgym", "ppo")


def test_the_preset_of_mch_decides_what_is_left_out() -> None:
    assert mch.command(["paper", "--xi", "0.3"]) == mch.Main(mch.PAPER, xi=0.3, preset="paper")
    assert mch.command([]) == mch.Main(mch.Args())


def test_a_name_that_is_misplaced_or_unknown_is_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        drlih.command(["--dataset", "elsewhere", "gru"])  # else it would train with the preset of another variant
    assert "gru" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"variant must be one of hashgym, .*\(did you mean 'gru'\?\)"):
        drlih.command(["grru"])
    with pytest.raises(ValueError, match="preset must be one of hashgym, paper, got 'papre'"):
        mch.command(["papre"])


def test_help_names_the_command_that_was_run(capsys: pytest.CaptureFixture[str]) -> None:
    for prog, wanted in ((None, "python -m agents.drlih"), ("hashgym train drlih", "hashgym train drlih")):
        with pytest.raises(SystemExit, match="0"):
            drlih.command(["gru", "--help"], prog)
        printed = capsys.readouterr().out
        assert printed.startswith(f"usage: {wanted} ")
        assert "NAME" in printed
        assert "(default: gru)" in printed
        assert "(default: 512)" in printed  # its num_envs


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("agent", [drlih, mch, sb3])
def test_bad_input_is_rejected_before_anything_is_printed(
    agent: Any, resume: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = str({drlih: "digits", sb3: "digits", mch: "digit-scenes"}[agent] if resume else tmp_path)
    with pytest.raises(ValueError, match="no run to resume" if resume else str(tmp_path)):
        agent.main(agent.Main(agent.Args(), dataset=dataset, resume=resume))
    assert "--out" not in capsys.readouterr().err
