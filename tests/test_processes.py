from __future__ import annotations

import os
from contextlib import suppress

import pytest

from hashgym.processes import environment_variables


def test_variables_are_set_within_the_block_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASHGYM_A", "user's")
    monkeypatch.delenv("HASHGYM_B", raising=False)
    with environment_variables({"HASHGYM_A": "ours", "HASHGYM_B": "ours"}):
        assert (os.environ["HASHGYM_A"], os.environ["HASHGYM_B"]) == ("user's", "ours")
    assert os.environ["HASHGYM_A"] == "user's"
    assert "HASHGYM_B" not in os.environ


def test_what_the_user_has_set_is_replaced_on_demand_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASHGYM_A", "user's")
    with suppress(KeyError), environment_variables({"HASHGYM_A": "ours"}, replace=True):
        assert os.environ["HASHGYM_A"] == "ours"
        raise KeyError
    assert os.environ["HASHGYM_A"] == "user's"
