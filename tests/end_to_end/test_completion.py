"""Completion of the command line, queried as Hydra's script for bash does."""

import pytest

from helpers.paths import CONF
from tricklab.cli.config import list_options


@pytest.fixture
def complete(train_without_torch, monkeypatch):
    """Return the completions of a line, in a process that must not import torch."""

    def complete(line):
        monkeypatch.setenv("COMP_LINE", line)
        done = train_without_torch("-sc", "query=bash")
        assert (done.returncode, done.stderr) == (0, "")
        assert "torch" not in done.modules
        return done.stdout.split()

    return complete


@pytest.mark.parametrize("group", ["data", "callbacks", "scheduler"])
def test_completion_offers_the_options_of_a_group_and_no_included_files(complete, group):
    offered = complete(f"python train.py {group}=")
    assert offered == [f"{group}={option}" for option in list_options(CONF / group)]


def test_completion_offers_groups_and_keys_but_not_the_local_file(complete):
    offered = complete("python train.py l")
    assert offered == ["logger.", "logger=", "loss.", "loss="]
    assert "optimizer.lr=" in complete("python train.py optimizer.l")
