"""Search for image files in folders, with counts of the files that it skips."""

import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tricklab.data.file_list import FileList, FileTable, LabeledFiles, make_list
from tricklab.data.folder_index import FolderIndex
from tricklab.data.folders import read_classes
from tricklab.data.image_files import decode_errors
from tricklab.data.listing import list_folder
from tricklab.data.progress import warn
from tricklab.devices import is_first
from tricklab.errors import UserError


@dataclass
class Search:
    """Finds images in folders below `root`, and counts the files that it skips.

    `workers` processes check for corrupt images. With an `index` only folders that changed are
    listed. `files` counts all files except NOTES, `extensions` those of formats that are not
    decoded; `links` lists those that lead to no file.
    """

    root: Path
    skip_corrupt: bool = False
    workers: int = 0
    index: FolderIndex | None = None
    files: int = 0
    extensions: Counter[str] = field(default_factory=Counter)
    links: list[str] = field(default_factory=list)

    def find_images(self, folder: Path) -> FileTable:
        """Return the image files below a folder, sorted; links are followed, see `walk`."""
        listing = self.index.find(folder) if self.index else list_folder(self.root, folder)
        self.files += listing.files
        self.extensions += listing.extensions
        self.links += listing.links
        return listing.images

    def find_classes(
        self, folder: Path, classes: Sequence[str], owner: str = "the training folder"
    ) -> LabeledFiles:
        """Return the images below `folder/CLASS` with their labels.

        Raises UserError: a class that is not among the `classes` of `owner`, or no image.
        """
        folders = read_classes(folder)
        if unknown := set(folders) - set(classes):
            raise UserError(f"{folder} has the class {min(unknown)!r}, which {owner} does not have")
        labels = [label for label, name in enumerate(classes) if name in folders]
        tables = [self.find_images(folders[classes[label]]) for label in labels]
        sizes = torch.tensor([table.files for table in tables], dtype=torch.long)
        repeated = torch.tensor(labels, dtype=torch.long).repeat_interleave(sizes)
        labeled = LabeledFiles(make_list(self.root, tables), repeated)
        if self.skip_corrupt:
            labeled = self.drop_corrupt(labeled)
        if not len(labeled.labels):
            raise UserError(f"{folder} has no image in its class folders{self.parenthesis}")
        return labeled

    def drop_corrupt(self, labeled: LabeledFiles) -> LabeledFiles:
        """Return the images that can be decoded, and print the number of the others."""
        errors = decode_errors(labeled.files, self.workers)
        messages = [message for message in errors if message]
        if messages and is_first():
            counts = f"{len(messages)} of {len(errors)} images are left out"
            print(f"data.skip_corrupt: {counts}, the first: {messages[0]}")
        good = [i for i, message in enumerate(errors) if not message]
        return labeled.select(torch.tensor(good, dtype=torch.long))

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


def image_files(root: Path) -> list[Path]:
    """Return the images below a folder, sorted; warn of files that are skipped."""
    search = Search(root)
    paths = [file.path for file in make_list(root, [search.find_images(root)])]
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
    return labeled._replace(files=labeled.files.with_groups(find_groups(labeled.files, compiled)))


def find_groups(files: FileList, pattern: re.Pattern[str]) -> list[str]:
    """Return the group of each file. Raises UserError: the pattern is not found in a name."""
    groups: list[str] = []
    for name in files.names():
        match = pattern.search(name)
        group = match and match[1 if pattern.groups else 0]
        if not group:
            raise UserError(f"data.group={pattern.pattern} is not found in {name}")
        groups.append(sys.intern(group))
    return groups
