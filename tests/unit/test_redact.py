"""Secrets in a patch."""

import subprocess

import pytest

from tricklab.cli.redact import redact_patch
from tricklab.run.record import uncommitted_changes

YAML = "diff --git a/conf/x.yaml b/conf/x.yaml\n"
PYTHON = "diff --git a/x.py b/x.py\n"


@pytest.mark.parametrize(
    ("head", "line", "redacted"),
    [
        (YAML, "+claim: {token: hunter2, b: 3}", "+claim: {token: ***, b: 3}"),
        (YAML, "+api_key: 'two words' # why", "+api_key: '***' # why"),
        (YAML, "-password: two words # why", "-password: *** # why"),
        (YAML, " token: token", " token: ***"),
        (YAML, "+- access-key: abc", "+- access-key: ***"),
        (YAML, "+token: ${oc.env:MINE}", "+token: ${oc.env:MINE}"),
        (YAML, "+token: ${oc.env:MINE,hunter2}", "+token: ***"),
        (YAML, "+secret: |\n+  hunter2\n+  more\n+b: 1", "+secret: |\n+  ***\n+  ***\n+b: 1"),
        (YAML, "+secret:\n+  hunter2", "+secret:\n+  ***"),
        (YAML, "+tokens: 3\n+seed: 1", "+tokens: 3\n+seed: 1"),
        (PYTHON, "+token = tokens[0]", "+token = tokens[0]"),
        (PYTHON, "+def f(password: str, token: int) -> None:", None),
        (PYTHON, '+password: str = "hunter2"', '+password: str = "***"'),
        (PYTHON, "+f(api_key='hunter2', token=token)", "+f(api_key='***', token=token)"),
        (PYTHON, '+{"HF_TOKEN": "hunter2"}', '+{"HF_TOKEN": "***"}'),
    ],
)
def test_redact_patch_stars_secrets_alone(head, line, redacted):
    patch = f"{head}{line}\n"
    assert redact_patch(patch) == (patch if redacted is None else f"{head}{redacted}\n")
    assert redact_patch(redact_patch(patch)) == redact_patch(patch)


def test_uncommitted_changes_have_no_secrets(tmp_path):
    """Neither of a file that git knows nor of a new one."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_text("seed: 1\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    old.write_text("seed: 1\nclaim: {token: hunter2}\n")
    new.write_text("api_key: hunter2\n")
    patch = uncommitted_changes(tmp_path)
    assert "+claim: {token: ***}\n" in patch
    assert "+api_key: ***\n" in patch
    assert "hunter2" not in patch
