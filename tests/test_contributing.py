"""What CONTRIBUTING.md tells people to add, added to a copy of the project as it is told."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ONE_BATCH, ROOT

RECIPE = re.compile(r"```python\n(.*?)```.*?`(conf/[\w/]+\.yaml)`.*?```yaml\n(.*?)```.*?Try it: `(.*?)`", re.DOTALL)


@pytest.mark.parametrize(("section", "module"), [("scheduler", "scheduler.py"), ("data set", "data/datasets.py")])
def test_add_as_told(section, module, tmp_path):
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8").split(f"## Add a {section}")[1]
    code, yaml, content, command = RECIPE.search(text).groups()
    for part in ("src", "conf"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    shutil.copy(ROOT / "train.py", tmp_path)
    with (tmp_path / "src" / "tricklab" / module).open("a", encoding="utf-8") as file:
        file.write("\n\n" + code)
    (tmp_path / yaml).write_text(content, "utf-8")
    script, *words = command.split()[1:]
    done = subprocess.run(
        [sys.executable, script, *words, *ONE_BATCH[1:], "trainer.max_epochs=2"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout


def test_readme_and_contributing_tell_the_same():
    readme, contributing = ((ROOT / name).read_text("utf-8") for name in ("README.md", "CONTRIBUTING.md"))
    for block in re.findall(r"```(?:python|yaml)\n.*?```", readme.split("## How to add a trick")[1], re.DOTALL):
        assert block in contributing
