"""Search for image files in folders, with counts of the files that it skips."""

import os
import re
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tricklab.data.folders import read_classes, walk
from tricklab.data.image_files import ImageFile, decode_errors
from tricklab.data.images import EXTENSIONS
from tricklab.data.progress import warn
from tricklab.devices import is_first
from tricklab.errors import UserError

NOTES = {  # extensions of files that lie beside images, and are skipped without a warning
    *(".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".md", ".rst", ".html"),
    *(".htm", ".log", ".db", ".ini", ".url", ".lnk", ".xmp", ".aae", ".py", ".sh", ".md5"),
}

LabeledFiles = list[tuple[ImageFile, int]]  # files with their class index


@dataclass
class Search:
    """Finds images in folders below `root`, and counts the files that it skips.

    `workers` processes check for corrupt images. `files` counts all files except NOTES,
    `extensions` those of formats that are not decoded; `links` lists those that lead to no file.
    """

    root: Path
    skip_corrupt: bool = False
    workers: int = 0
    files: int = 0
    extensions: Counter[str] = field(default_factory=Counter)
    links: list[str] = field(default_factory=list)

    def find_images(self, folder: Path) -> list[ImageFile]:
        """Return the image files below a folder, sorted; links are followed, see `walk`."""
        images = []
        for path in walk(folder):
            extension = path.suffix.lower()
            if extension in NOTES:
                continue
            self.files += 1
            if extension not in EXTENSIONS:
                self.extensions[extension] += 1
                continue
            status = stat_file(path)
            if status is None:
                self.links.append(str(path))
                continue
            name = path.relative_to(self.root).as_posix()
            images.append(ImageFile(path, name, status.st_size, status.st_mtime_ns))
        return sorted(images)

    def find_classes(
        self, folder: Path, classes: Sequence[str], owner: str = "the training folder"
    ) -> LabeledFiles:
        """Return the images below `folder/CLASS` with their labels.

        Raises UserError: a class that is not among the `classes` of `owner`, or no image.
        """
        folders = read_classes(folder)
        if unknown := set(folders) - set(classes):
            raise UserError(f"{folder} has the class {min(unknown)!r}, which {owner} does not have")
        labeled: LabeledFiles = []
        for label, name in enumerate(classes):
            if name in folders:
                labeled += [(file, label) for file in self.find_images(folders[name])]
        if self.skip_corrupt:
            labeled = self.drop_corrupt(labeled)
        if not labeled:
            raise UserError(f"{folder} has no image in its class folders{self.parenthesis}")
        return labeled

    def drop_corrupt(self, labeled: LabeledFiles) -> LabeledFiles:
        """Return the images that can be decoded, and print the number of the others."""
        errors = decode_errors([file for file, _ in labeled], self.workers)
        messages = [message for message in errors if message]
        if messages and is_first():
            counts = f"{len(messages)} of {len(labeled)} images are left out"
            print(f"data.skip_corrupt: {counts}, the first: {messages[0]}")
        return [image for image, message in zip(labeled, errors, strict=True) if not message]

    @property
    def summary(self) -> str:
        """Skipped files by reason, and how to use them, in one line; empty if there are none."""
        reasons = []
        if self.extensions:
            reasons.append(self.describe_extensions())
        if self.links:
            reasons.append(f"{len(self.links):,} links that lead to no file, as {self.links[0]}")
        if not reasons:
            return ""
        skipped = self.extensions.total() + len(self.links)
        return f"{skipped:,} of {self.files:,} files are left out, {'; '.join(reasons)}"

    def describe_extensions(self) -> str:
        most = self.extensions.most_common(5)
        counts = ", ".join(f"{count:,} {extension or 'without one'}" for extension, count in most)
        example = next((extension for extension, _ in most if extension), ".heic")
        hint = f"ImageMagick converts: mogrify -format png '*{example}'"
        return f"extensions that are not decoded: {counts} ({hint})"

    @property
    def parenthesis(self) -> str:
        return f" ({self.summary})" if self.summary else ""

    def warn(self) -> None:
        if self.summary:
            warn(f"{self.root}: {self.summary}")


def stat_file(path: Path) -> os.stat_result | None:
    """Return size and times of a regular file, also behind a link; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def image_files(root: Path) -> list[Path]:
    """Return the images below a folder, sorted; warn of files that are skipped."""
    search = Search(root)
    paths = [file.path for file in search.find_images(root)]
    search.warn()
    return paths


def group_by_pattern(labeled: LabeledFiles, pattern: str | None) -> LabeledFiles:
    """Give each file the group that a regular expression finds in its name below the root.

    The group is the match, or what the first parentheses in the pattern match. Raises UserError: an
    invalid pattern, or a name in which it is not found.
    """
    if pattern is None:
        return labeled
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"data.group={pattern}: no regular expression ({error})") from error
    grouped = []
    for file, label in labeled:
        match = compiled.search(file.name)
        group = match and match[1 if compiled.groups else 0]
        if not group:
            raise UserError(f"data.group={pattern} is not found in {file.name}")
        grouped.append((file._replace(group=group), label))
    return grouped
