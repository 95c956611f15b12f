"""What CONTRIBUTING.md tells people to add, added to a copy of the project as it is told."""

import os
import re
import shutil

import pytest
from conftest import ONE_BATCH, ROOT

RECIPE = re.compile(
    r"```python\n(.*?)```.*?`(conf/[\w/]+\.yaml)`.*?```yaml\n(.*?)```.*?Try it: `(.*?)`", re.DOTALL
)


@pytest.mark.xdist_group("servers")
@pytest.mark.parametrize(
    ("section", "module"),
    [
        ("scheduler", "scheduler.py"),
        pytest.param("data set", "data/datasets.py", marks=pytest.mark.slow),
    ],
)
def test_add_as_told(fresh, section, module, tmp_path):
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8").split(f"## Add a {section}")[1]
    code, yaml, content, command = RECIPE.search(text).groups()
    for part in ("src", "conf"):
        shutil.copytree(
            ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__")
        )
    shutil.copy(ROOT / "train.py", tmp_path)
    with (tmp_path / "src" / "tricklab" / module).open("a", encoding="utf-8") as file:
        file.write("\n\n" + code)
    (tmp_path / yaml).write_text(content, "utf-8")
    script, *words = command.split()[1:]
    env = os.environ | {"PYTHONPATH": str(tmp_path / "src")}
    done = fresh(str(tmp_path / script), *words, *ONE_BATCH[1:], "trainer.max_epochs=2", env=env)
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout


def test_readme_and_contributing_tell_the_same():
    readme, contributing = (
        (ROOT / name).read_text("utf-8") for name in ("README.md", "CONTRIBUTING.md")
    )
    for block in re.findall(
        r"```(?:python|yaml)\n.*?```", readme.split("## How to add a trick")[1], re.DOTALL
    ):
        assert block in contributing
