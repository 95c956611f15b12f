"""Who holds a run's folder, and what a refused run leaves of it."""

import errno

import pytest

from helpers.configs import configure
from tricklab.errors import UserError
from tricklab.run.folder import lock_run, status
from tricklab.run.record import Record


def test_status_follows_from_the_lock_and_the_result(tmp_path):
    (tmp_path / "result.json").write_text('{"status": "failed"}')
    assert status(tmp_path) == "failed"
    assert not (tmp_path / ".lock").exists()
    lock = lock_run(tmp_path)
    assert status(tmp_path) == "running"
    lock.close()
    (tmp_path / "result.json").write_text('{"status": "killed"}')
    assert status(tmp_path) == "unfinished"


def test_lock_is_skipped_with_a_warning_where_there_are_none(tmp_path, monkeypatch, capsys):
    def flock(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("tricklab.run.folder.fcntl.flock", flock)
    assert lock_run(tmp_path)
    assert "can't be locked ([Errno 37] No locks available)" in capsys.readouterr().err


def test_second_run_is_refused_and_leaves_the_folder_of_the_first(tmp_path):
    first = Record(configure(), tmp_path / "run")
    second = Record(configure(), tmp_path / "run")
    first.start()
    with pytest.raises(UserError, match="is running"):
        second.start()
    second.discard()
    assert (tmp_path / "run" / "config.yaml").exists()
    first.discard()
    assert not (tmp_path / "run").exists()
