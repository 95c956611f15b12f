"""Folders of a data set: its splits, and their class folders."""

import os
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tricklab.data.images import EXTENSIONS
from tricklab.data.progress import warn
from tricklab.errors import UserError

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
TRAIN_NAMES = ("train", "Train", "TRAIN", "training", "Training")
SYSTEM = {  # folders of file managers, a NAS, archives and editors; lower case
    *("@eadir", "@tmp", "@__thumb", "@recycle", "@recently-snapshot", "#recycle", "#snapshot"),
    *("$recycle.bin", "system volume information", "lost+found", "__macosx", "__pycache__"),
}


def expand_home(path: str, option: str) -> Path:
    """Expand `~`. Raises UserError, which begins with `option`: there is no such home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{option}={path}: {error}") from error


def is_ignored(name: str) -> bool:
    """Whether a file or folder is hidden, or belongs to the system."""
    return name.startswith(".") or name.lower() in SYSTEM


class Folder(NamedTuple):
    """A folder with the names of its files, and its status before they were listed."""

    path: str
    status: os.stat_result
    names: list[str]


def walk(root: Path) -> Iterator[Folder]:
    """Yield a folder and those below it, except ignored ones; follow links, enter each folder once.

    A link back to a parent of `root` is not entered: it would bring images of other classes. Raises
    UserError: a folder that can't be read.
    """
    entered = {inode(path) for path in (*root.absolute().parents, *root.resolve().parents)}
    remaining = [str(root)]
    while remaining:
        path = remaining.pop()
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in entered:
                continue
            folders, names = list_names(path)
        except OSError as error:
            raise UserError(f"{error.filename} can't be read: {error.strerror}") from error
        entered.add((status.st_dev, status.st_ino))
        yield Folder(path, status, names)
        remaining += [os.path.join(path, name) for name in sorted(folders, reverse=True)]


def list_names(path: str) -> tuple[list[str], list[str]]:
    """Return the names of the folders, also behind links, and of the files that are not ignored."""
    folders: list[str] = []
    names: list[str] = []
    with os.scandir(path) as entries:
        for entry in entries:
            if not is_ignored(entry.name):
                (folders if is_folder(entry) else names).append(entry.name)
    return folders, names


def is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def extension_of(name: str) -> str:
    """Return the extension of a file's name, as `Path.suffix`, in lower case."""
    dot = name.rfind(".")
    return name[dot:].lower() if 0 < dot < len(name) - 1 else ""


def inode(path: Path | str) -> tuple[int, int]:
    """Return device and inode, the same for all links to a folder."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def subfolders(root: Path) -> list[Path]:
    """Return the folders in `root` that are not ignored, sorted. Raises UserError: not a folder."""
    if not root.is_dir():
        expected = "a folder with one folder per class"
        raise UserError(f"data.root={root} is not a folder. Expected {expected}")
    return sorted(path for path in root.iterdir() if path.is_dir() and not is_ignored(path.name))


def find_splits(root: Path) -> dict[str, Path]:
    """Return the train, val and test folders in `root`; empty if its folders are classes.

    A class may be called `test`: a split has folders itself, or all folders beside it are splits
    by name. Raises UserError: two folders for the same split.
    """
    folders = subfolders(root)
    candidates = [path for path in folders if path.name.lower() in SPLIT_NAMES]
    if not candidates:
        return {}
    only_splits = len(candidates) == len(folders)
    if not only_splits and not any(_has_classes(path) for path in candidates):
        return {}
    splits: dict[str, Path] = {}
    for path in candidates:
        split = SPLIT_NAMES[path.name.lower()]
        if split in splits:
            names = f"{splits[split].name} and {path.name}"
            raise UserError(f"data.root={root} has {names}, both for {split}; keep one of them")
        splits[split] = path
    return splits


def _has_classes(folder: Path) -> bool:
    """Whether a train or test folder has folders; those of `val` alone do not make it a split."""
    return SPLIT_NAMES[folder.name.lower()] != "val" and bool(subfolders(folder))


def warn_of_unused(root: Path, splits: Mapping[str, Path]) -> None:
    """Warn of folders with images that lie beside the splits."""
    if root in splits.values():
        return
    for path in subfolders(root):
        if path in splits.values():
            continue
        if any(map(has_images, walk(path))):
            names = ", ".join(SPLIT_NAMES)
            warn(f"data.root={root}: {path.name} is not used; splits are called {names}")


def has_images(folder: Folder) -> bool:
    return any(extension_of(name) in EXTENSIONS for name in folder.names)


def read_classes(root: Path) -> dict[str, Path]:
    """Return the class folders in `root` by name, sorted.

    Names are in NFC: file systems differ in how they encode accents. Raises UserError: two folders
    of one name, or a name that is not UTF-8.
    """
    classes: dict[str, Path] = {}
    for path in subfolders(root):
        name = unicodedata.normalize("NFC", path.name)
        if name in classes:
            raise UserError(f"{root} has the class {name!r} twice, with accents in two encodings")
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise UserError(f"{root}: the class name {name!r} is not UTF-8; rename the folder")
        classes[name] = path
    return dict(sorted(classes.items()))


def training_classes(root: Path, train: Path) -> list[str]:
    """Return the class names of the training folder.

    Raises UserError: fewer than two, or the classes are in a subfolder.
    """
    folders = read_classes(train)
    if nested := find_nested(folders, train == root):
        expected = " or ".join(f"data.root={path}" for path in nested)
        raise UserError(f"data.root={root}: the classes are in a subfolder. Expected {expected}")
    if len(folders) == 1:
        message = f"need at least 2 classes with images; there is {', '.join(folders)}"
        raise UserError(f"data.root={root}: {message}")
    if not folders:
        check_no_loose_images(train)
    return list(folders)


def check_no_loose_images(train: Path) -> None:
    images = sum(path.suffix.lower() in EXTENSIONS for path in train.iterdir())
    if images:
        message = f"{train} has {images:,} images, but no class folders"
        raise UserError(f"{message}. Expected {train}/CLASS/... for each class")


def find_nested(folders: Mapping[str, Path], without_splits: bool) -> list[Path]:
    """Return the folders that seem to be data sets instead of classes.

    These have a training folder; or there is only one, with several folders.
    """
    candidates = []
    for path in folders.values():
        # cheap, unlike find_splits, which reads the whole folder
        if any((path / name).is_dir() for name in TRAIN_NAMES):
            candidates.append(path)
    nested = [path for path in candidates if "train" in find_splits(path)]
    if not nested and without_splits and len(folders) == 1:
        nested = [path for path in folders.values() if len(subfolders(path)) > 1]
    return nested
