"""Folders of images: which files of which class they hold, and which of them are the parts of a data set."""

import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tricklab.data.images import ENDINGS, ImageFile, decode_errors
from tricklab.data.progress import is_first_process, warn
from tricklab.errors import UserError

PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
SYSTEM = {  # folders that file managers, a NAS, archives and editors leave; lower case
    *("@eadir", "@tmp", "@__thumb", "@recycle", "@recently-snapshot", "#recycle", "#snapshot"),
    *("$recycle.bin", "system volume information", "lost+found", "__macosx", "__pycache__"),
}
NOTES = {  # endings of files that lie beside images and are not missed
    *(".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".md", ".rst", ".html"),
    *(".htm", ".log", ".db", ".ini", ".url", ".lnk", ".xmp", ".aae", ".py", ".sh", ".md5"),
}


LabeledFiles = list[tuple[ImageFile, int]]  # files with the number of their class


def is_ignored(name: str) -> bool:
    """Whether a file or folder is hidden, or the system's."""
    return name.startswith(".") or name.lower() in SYSTEM


@dataclass
class Search:
    """Looks for images in folders below `root`, and counts the files that it leaves out."""

    root: Path
    skip_damaged: bool = False
    workers: int = 0  # that look for damage
    files: int = 0  # that were found, but for notes
    endings: Counter[str] = field(default_factory=Counter)  # of files that are not decoded
    links: list[str] = field(default_factory=list)  # to nowhere, or to what is no file

    def find(self, folder: Path) -> list[ImageFile]:
        """Return the image files below a folder, in order. Links are followed; no folder is entered twice."""
        images = []
        for path in walk(folder):
            ending = path.suffix.lower()
            if ending in NOTES:
                continue
            self.files += 1
            if ending not in ENDINGS:
                self.endings[ending] += 1
            elif (facts := look_at(path)) is None:
                self.links.append(str(path))
            else:
                name = path.relative_to(self.root).as_posix()
                images.append(ImageFile(path, name, facts.st_size, facts.st_mtime_ns))
        return sorted(images)

    def find_classes(
        self, folder: Path, classes: Sequence[str], whose: str = "the training folder"
    ) -> LabeledFiles:
        """Return the images below `folder/CLASS`, and the label of each; without damaged ones, if asked to.

        Raises UserError: a class that is not one of `classes`, which are `whose`; no image.
        """
        folders = read_classes(folder)
        if unknown := set(folders) - set(classes):
            raise UserError(f"{folder} has the class {min(unknown)!r}, which {whose} does not have")
        found: LabeledFiles = []
        for label, name in enumerate(classes):
            if name in folders:
                found += [(file, label) for file in self.find(folders[name])]
        if self.skip_damaged:
            found = self.leave_out_damaged(found)
        if not found:
            raise UserError(f"{folder} has no image in its class folders{self.in_brackets}")
        return found

    def leave_out_damaged(self, found: LabeledFiles) -> LabeledFiles:
        """Return the images that can be decoded, and print how many of them can't."""
        damages = decode_errors([file for file, _ in found], self.workers)
        if (messages := [text for text in damages if text]) and is_first_process():
            counts = f"{len(messages)} of {len(found)} images are left out"
            print(f"data.skip_damaged: {counts}, the first: {messages[0]}")
        return [image for image, text in zip(found, damages, strict=True) if not text]

    @property
    def summary(self) -> str:
        """What was left out and how it can be used, in one line; empty for nothing."""
        parts = []
        if self.endings:
            most = self.endings.most_common(5)
            counts = ", ".join(f"{number:,} {ending or 'without one'}" for ending, number in most)
            example = next((ending for ending, _ in most if ending), ".heic")
            convert = f"ImageMagick converts: mogrify -format png '*{example}'"
            parts.append(f"endings that are not decoded: {counts} ({convert})")
        if self.links:
            parts.append(f"{len(self.links):,} links that lead to no file, as {self.links[0]}")
        left_out = self.endings.total() + len(self.links)
        counts = f"{left_out:,} of {self.files:,} files are left out"
        return f"{counts}, {'; '.join(parts)}" if parts else ""

    @property
    def in_brackets(self) -> str:
        return f" ({self.summary})" if self.summary else ""

    def warn(self) -> None:
        if self.summary:
            warn(f"{self.root}: {self.summary}")


def walk(root: Path) -> Iterator[Path]:
    """Yield the files below a folder, without what is ignored. Links are followed, each folder is entered once.

    Not those that `root` lies in: so a link back to them ends, and brings no images of other classes. Raises UserError:
    a folder that can't be read.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} can't be read: {error.strerror}")

    entered = {inode(path) for path in (*root.absolute().parents, *root.resolve().parents)}
    for folder, folders, names in os.walk(root, followlinks=True, onerror=refuse):
        if (here := inode(folder)) in entered:
            folders.clear()
            continue
        entered.add(here)
        folders[:] = sorted(name for name in folders if not is_ignored(name))
        yield from (Path(folder, name) for name in names if not is_ignored(name))


def inode(path: Path | str) -> tuple[int, int]:
    """What tells folders apart whatever links lead to them."""
    facts = os.stat(path)
    return facts.st_dev, facts.st_ino


def look_at(path: Path) -> os.stat_result | None:
    """Return size and time of a file, also behind a link; None if there is none."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts if stat.S_ISREG(facts.st_mode) else None


def image_files(root: Path) -> list[Path]:
    """Find the images below a folder, in order; a line on stderr counts the files that are left out."""
    search = Search(root)
    found = [file.path for file in search.find(root)]
    search.warn()
    return found


def subfolders(root: Path) -> list[Path]:
    """Return the folders in a folder that are not ignored, sorted. Raises UserError: it is none."""
    if not root.is_dir():
        raise UserError(
            f"data.root={root} is not a folder; allowed: a folder with one folder a class"
        )
    return sorted(path for path in root.iterdir() if path.is_dir() and not is_ignored(path.name))


def find_parts(root: Path) -> dict[str, Path]:
    """Return the folders of train, val and test in `root`; none where its folders are classes.

    A class may be called `test`: it is a part if it has folders itself, or if all folders beside it are parts by name.
    Raises UserError: two spellings of the same part.
    """
    folders = subfolders(root)
    named = [path for path in folders if path.name.lower() in PARTS]
    deep = any(subfolders(path) for path in named if PARTS[path.name.lower()] != "val")
    if not named or not (deep or len(named) == len(folders)):
        return {}
    parts: dict[str, Path] = {}
    for path in named:
        part = PARTS[path.name.lower()]
        if part in parts:
            names = f"{parts[part].name} and {path.name}"
            raise UserError(f"data.root={root} has {names}, both for {part}; keep one of them")
        parts[part] = path
    return parts


def warn_of_unused(root: Path, parts: Mapping[str, Path]) -> None:
    """Name the folders with images that lie beside those of the parts."""
    for path in [] if root in parts.values() else subfolders(root):
        if path not in parts.values() and any(f.suffix.lower() in ENDINGS for f in walk(path)):
            names = ", ".join(PARTS)
            warn(f"data.root={root}: {path.name} is not used; parts are called {names}")


def read_classes(root: Path) -> dict[str, Path]:
    """Return the class folders in `root` by name, sorted; accents are composed, as not every system keeps them so.

    Raises UserError: two folders of one name, or a name that is no text.
    """
    classes: dict[str, Path] = {}
    for path in subfolders(root):
        name = unicodedata.normalize("NFC", path.name)
        if name in classes:
            raise UserError(f"{root} has the class {name!r} twice, with accents in two encodings")
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise UserError(f"{root}: the name of the class {name!r} is not UTF-8; rename it")
        classes[name] = path
    return dict(sorted(classes.items()))
