"""The examples of CONTRIBUTING.md, each added to a copy of the project and run."""

import os
import re
import shutil
from typing import NamedTuple

import pytest

from helpers.configs import ONE_BATCH
from helpers.paths import CONF, ROOT

CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
README = (ROOT / "README.md").read_text("utf-8")
SECURITY = (ROOT / "SECURITY.md").read_text("utf-8")
DOCUMENTS = sorted({*ROOT.glob("*.md"), *ROOT.glob(".github/**/*.md"), *CONF.glob("**/*.md")})
MODULE = re.compile(r"`(src/tricklab/[\w/]+\.py)`:\n\n```python\n(.*?)```", re.DOTALL)
YAML = re.compile(r"`(conf/[\w/]+\.yaml)`[^`]*?:\n\n```yaml\n(.*?)```", re.DOTALL)
TRY_IT = re.compile(r"Try it: `python train.py (.*?)`. Out of range: `(.*?)=(.*?)`")
SECTIONS = [
    "A schedule",
    "An augmentation",
    "A mixing",
    "A term of the loss",
    "A projection after the step",
    "A network",
    "A data set",
    "A callback",
    "An optimizer",
]


class Example(NamedTuple):
    """A definition, its YAML, and a command line that uses it."""

    module: str
    code: str
    yaml_path: str
    yaml: str
    overrides: list[str]
    key: str
    out_of_range: str


def read_example(title: str) -> Example:
    """Read the section `title` of CONTRIBUTING.md; the module is "" without a definition."""
    section = CONTRIBUTING.split(f"## {title}\n")[1].split("\n## ")[0]
    definition = MODULE.search(section)
    module, code = definition.groups() if definition else ("", "")
    yaml_path, yaml = YAML.search(section).groups()
    overrides, key, out_of_range = TRY_IT.search(section).groups()
    return Example(module, code, yaml_path, yaml, overrides.split(), key, out_of_range)


@pytest.fixture
def project(tmp_path):
    """A copy of the project."""
    ignore = shutil.ignore_patterns("*.egg-info", "__pycache__")
    for part in ("src", "conf"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=ignore)
    shutil.copy(ROOT / "train.py", tmp_path)
    return tmp_path


@pytest.fixture
def train_in(project, fork_script):
    """Run the copy's `train.py` with its own package."""

    def train_in(*overrides):
        env = os.environ | {"PYTHONPATH": str(project / "src")}
        return fork_script(str(project / "train.py"), *overrides, env=env)

    return train_in


def add(example, project):
    """Add a definition and a YAML to a copy of the project: no other file changes."""
    if example.module:
        with (project / example.module).open("a", encoding="utf-8") as file:
            file.write("\n\n" + example.code)
    assert not (project / example.yaml_path).exists()
    (project / example.yaml_path).write_text(example.yaml, "utf-8")


@pytest.mark.slow
@pytest.mark.xdist_group("servers")
def test_contributing_examples_train_together_and_check_their_ranges(project, train_in):
    examples = [read_example(title) for title in SECTIONS]
    for example in examples:
        add(example, project)

    overrides = [override for example in examples for override in example.overrides]
    penalties = [o.removeprefix("penalty=") for o in overrides if o.startswith("penalty=")]
    others = [o for o in overrides if not o.startswith("penalty=")]
    together = [*others, f"penalty=[{','.join(penalties)}]"]
    done = train_in(*together, *ONE_BATCH[1:], "trainer.max_epochs=2")
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout

    for example in examples:
        refused = train_in(*example.overrides, f"{example.key}={example.out_of_range}")
        assert refused.returncode == 1
        assert f"{example.key}={example.out_of_range}" in refused.stderr


@pytest.mark.slow
@pytest.mark.xdist_group("servers")
def test_contributing_claim_composes(project, train_in):
    section = CONTRIBUTING.split("## A claim\n")[1]
    path, yaml = YAML.search(section).groups()
    (project / path).write_text(yaml, "utf-8")
    done = train_in("experiment=claims/cooldown", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    assert "than: cosine" in done.stdout


def test_contributing_has_an_example_of_each_kind():
    kinds = re.findall(r"^\| \[(.*?)\]\(#(.*?)\)", CONTRIBUTING, re.MULTILINE)
    titles = re.findall(r"^## (.*)", CONTRIBUTING, re.MULTILINE)
    anchors = [title.lower().replace(" ", "-") for title in titles]
    assert len(kinds) == 10
    assert {anchor for _, anchor in kinds} <= set(anchors)


def test_readme_shows_the_schedule_of_contributing():
    how_to = README.split("## How to add a trick")[1].split("## Map")[0]
    blocks = re.findall(r"```(?:python|yaml)\n.*?```", how_to, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        assert block in CONTRIBUTING


def test_readme_is_for_a_person_in_a_hurry():
    assert len(README.encode()) <= 12_000


def test_readme_options_exist():
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|(.*?) ?\|$", README, re.MULTILINE)
    groups = [row for row in rows if (CONF / row[0]).is_dir()]
    assert len(groups) == 14
    for group, options, keys in groups:
        yamls = "".join(path.read_text("utf-8") for path in CONF.glob(f"{group}/*.yaml"))
        for option in re.findall(r"`(\w+)`", options):
            assert (CONF / group / f"{option}.yaml").is_file(), option
        for key in re.findall(r"`[\w.]*\.(\w+)(?:=\S+)?`", keys):
            assert re.search(rf"^\s*{key}:", yamls, re.MULTILINE), key


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_document_links_lead_to_files(document):
    links = re.findall(r"\]\(((?!https?:|#)[^)#]+)", document.read_text("utf-8"))
    missing = [link for link in links if not (document.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize(
    "document", [README, CONTRIBUTING, SECURITY], ids=["README", "CONTRIBUTING", "SECURITY"]
)
def test_document_names_files_that_exist(document):
    paths = re.findall(r"`((?:src/tricklab|conf|scripts|tests|notebooks)/[\w/]+\.\w+)`", document)
    examples = re.findall(r"`(conf/[\w/]+\.yaml)`[^`]*?:\n\n```yaml", document)
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert set(missing) <= {*examples, "conf/local/default.yaml"}


def test_readme_map_names_files_that_exist():
    tree = README.split("## Map")[1].split("```")[1]
    source = ROOT / "src" / "tricklab"
    for line in tree.split("src/tricklab/")[1].split("scripts/")[0].splitlines()[1:]:
        folder = re.match(r"\s+(\w+)/", line)
        parent = source / folder[1] if folder else source
        for name in re.findall(r"\w+\.py", line):
            assert (parent / name).is_file(), f"{parent.name}/{name}"
