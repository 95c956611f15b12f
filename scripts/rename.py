"""Give the project another name: package, imports, configs, tests, documents.

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
PARTS = ("conf", "src", "tests", "scripts", "notebooks", ".github", ".ci")


def main() -> None:
    old = re.findall(
        r'^name = "(\w+)"', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE
    )[0]
    new = sys.argv[1] if len(sys.argv) == 2 else ""
    if (
        not re.fullmatch(r"[a-z][a-z0-9_]*", new)
        or keyword.iskeyword(new)
        or importlib.util.find_spec(new)
    ):
        sys.exit(
            f"error: NAME={new}; allowed: small letters, digits and _, but no word or module that Python has"
        )
    files = [path for path in ROOT.iterdir() if path.is_file() and path.name != ".git"]
    files += [path for part in PARTS for path in (ROOT / part).rglob("*") if path.is_file()]
    if any(re.search(rf"\b{new}\b", path.read_text("utf-8", "ignore")) for path in files):
        sys.exit(f"error: NAME={new}; allowed: a word that does not stand in the project yet")
    for folder in (*(ROOT / "src").glob("*.egg-info"), *ROOT.glob("src/**/__pycache__")):
        shutil.rmtree(folder)  # made by the installation of the old name
    changed = 0
    for path in files:
        with suppress(
            UnicodeDecodeError, FileNotFoundError
        ):  # a picture, or of the old installation
            text, times = re.subn(rf"\b{old}\b", new, path.read_text("utf-8"))
            if times:
                path.write_text(text, "utf-8")
                changed += 1
    (ROOT / "src" / old).rename(ROOT / "src" / new)
    print(f"{old} is {new} now, in {changed} files; next: pip install -e .")


if __name__ == "__main__":
    print(__doc__) if {"-h", "--help"} & set(sys.argv) else main()
