"""Rename the project: package, imports, configs, tests and documents.

python scripts/rename.py NAME        in a fresh copy; then: pip install -e .
"""

import importlib.util
import keyword
import re
import shutil
import sys
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("conf", "src", "tests", "scripts", "notebooks", ".github", ".ci")


def main() -> None:
    old = read_name()
    new = sys.argv[1] if len(sys.argv) == 2 else ""
    check_name(new)
    files = find_files()
    if any(contains_word(new, path) for path in files):
        sys.exit(f"error: NAME={new} is a word of the project already. Expected another one")
    delete_installation()
    changed = [path for path in files if replace_word(old, new, path)]
    (ROOT / "src" / old).rename(ROOT / "src" / new)
    print(f"{old} is now {new}, in {len(changed)} files; next: pip install -e .")


def read_name() -> str:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    return re.findall(r'^name = "(\w+)"', text, re.MULTILINE)[0]


def check_name(name: str) -> None:
    """Exit unless a name can be that of a new module."""
    is_identifier = re.fullmatch(r"[a-z][a-z0-9_]*", name)
    if not is_identifier or keyword.iskeyword(name) or importlib.util.find_spec(name):
        expected = "small letters, digits and _, but no keyword or module of Python"
        sys.exit(f"error: NAME={name}; allowed: {expected}")


def find_files() -> list[Path]:
    files = [path for path in ROOT.iterdir() if path.is_file() and path.name != ".git"]
    for folder in FOLDERS:
        files += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    return files


def contains_word(word: str, path: Path) -> bool:
    return bool(re.search(rf"\b{word}\b", path.read_text("utf-8", "ignore")))


def delete_installation() -> None:
    """Delete metadata and bytecode that the installation under the old name made."""
    for folder in (*(ROOT / "src").glob("*.egg-info"), *ROOT.glob("src/**/__pycache__")):
        shutil.rmtree(folder)


def replace_word(old: str, new: str, path: Path) -> bool:
    """Replace a word in a text file; return whether it was found."""
    with suppress(UnicodeDecodeError, FileNotFoundError):  # an image, or deleted bytecode
        text, count = re.subn(rf"\b{old}\b", new, path.read_text("utf-8"))
        if count:
            path.write_text(text, "utf-8")
        return count > 0
    return False


if __name__ == "__main__":
    print(__doc__) if {"-h", "--help"} & set(sys.argv) else main()
