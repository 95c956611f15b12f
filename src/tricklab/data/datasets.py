"""Data sets as uint8 tensors. A new one is a function here and a YAML in conf/data."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import FashionMNIST

from tricklab.data.batches import DatasetSplits, LabeledImages
from tricklab.data.classes import Chosen, find_labels, keep_classes
from tricklab.data.decoding import Decoding, find_groups, make_decoding, read_splits
from tricklab.data.evaluation import make_test_data
from tricklab.data.file_list import LabeledFiles
from tricklab.data.folder_index import open_index
from tricklab.data.folders import expand_home, find_splits, training_classes, warn_of_unused
from tricklab.data.module import ImageData
from tricklab.data.published import read_cifar, read_mnist
from tricklab.data.search import Search, group_by_pattern
from tricklab.data.splits import split_off_test
from tricklab.data.tables import Columns, find_files, read_rows, sorted_classes, split_rows
from tricklab.devices import is_first
from tricklab.errors import UserError
from tricklab.randomness import generator

# Options of decoding that ImageData does not have
FILE_OPTIONS = set(Decoding._fields) - set(inspect.signature(ImageData).parameters)
TEST_SIZE = 0.2  # the default in conf/data/folder.yaml: an explicit 0.2 looks the same


def dataset(read: Callable[..., DatasetSplits]) -> Callable[..., ImageData]:
    """Turn `read(...) -> DatasetSplits` into a builder of `ImageData`, with the options of both.

    Options of image files reach `read` as its argument `decoding`. With `only_test` the builder
    takes no training image.
    """

    @functools.wraps(read)
    def build(**options: Any) -> ImageData:
        parameters = inspect.signature(read).parameters
        own = {name: options.pop(name) for name in [*options] if name in parameters}
        options.pop("download", None)  # evaluation passes it to every data set
        if isinstance(options.get("size"), int):
            options["size"] = [options["size"], options["size"]]
        if own.get("root") is not None:
            own["root"] = expand_home(own["root"], "data.root")
        chosen, only_test = options.get("classes"), options.get("only_test")
        if "decoding" in parameters:
            own["decoding"] = make_decoding(options)
        splits = read(**own)
        if "decoding" not in parameters:
            splits = keep_classes(splits, chosen)
        if only_test:
            return make_test_data(splits, options)
        return ImageData(splits, **{k: v for k, v in options.items() if k not in FILE_OPTIONS})

    return build


@dataset
def digits() -> DatasetSplits:
    """1,797 handwritten digits of 8 x 8 pixels from scikit-learn.

    A fixed stratified fifth is the test set.
    """
    # read from its file: importing sklearn.datasets takes a second
    (home,) = find_spec("sklearn").submodule_search_locations  # type: ignore[union-attr, misc]
    path = Path(home) / "datasets" / "data" / "digits.csv.gz"
    table = torch.from_numpy(np.loadtxt(path, delimiter=","))  # [N, 65]: pixels of 0 .. 16, label
    images = (table[:, :64] * 255 / 16).round().to(torch.uint8).view(-1, 1, 8, 8)
    labels = table[:, 64].long()
    train, test = split_off_test(labels, 0.2)
    return DatasetSplits(
        LabeledImages(images[train], labels[train]),
        LabeledImages(images[test], labels[test]),
        classes=list("0123456789"),
    )


@dataset
def mnist(root: Path, download: bool = True) -> DatasetSplits:
    """70,000 handwritten digits, 28 x 28 pixels, grey (LeCun et al., Proc. IEEE 86, 1998)."""
    return DatasetSplits(*read_mnist(root, "MNIST", download), list("0123456789"))


@dataset
def fashion_mnist(root: Path, download: bool = True) -> DatasetSplits:
    """70,000 articles of clothing, 28 x 28 pixels, grey (arXiv 1708.07747)."""
    return DatasetSplits(*read_mnist(root, "FashionMNIST", download), FashionMNIST.classes)


@dataset
def cifar10(root: Path, download: bool = True) -> DatasetSplits:
    """60,000 photographs of 10 classes, 32 x 32 pixels, colour (Krizhevsky, 2009)."""
    return DatasetSplits(*read_cifar(root, "CIFAR10", download))


@dataset
def cifar100(root: Path, download: bool = True) -> DatasetSplits:
    """60,000 photographs of 100 classes, 32 x 32 pixels, colour (Krizhevsky, 2009)."""
    return DatasetSplits(*read_cifar(root, "CIFAR100", download))


@dataset
def folder(
    root: Path,
    test_size: int | float,
    decoding: Decoding,
    test: str = "test",
    group: str | None = None,
    index: str | None = None,
) -> DatasetSplits:
    """Class folders: `root/train/CLASS/...`, maybe with `val` and `test`; or `root/CLASS/...`.

    Without a test folder, a fixed stratified part of training is the test set. For the options see
    conf/data/folder.yaml. Raises UserError: classes or images that are missing, corrupt images, or
    images of several sizes with `fit=none`.
    """
    folders = find_splits(root) or {"train": root}
    warn_of_unused(root, folders)
    folders = choose_test_folder(root, folders, test, test_size)
    classes = training_classes(root, folders["train"])
    folder_index = open_index(index, root) if index else None
    search = Search(root, decoding.skip_corrupt, decoding.workers, folder_index)
    files = {}
    for split, path in folders.items():
        files[split] = group_by_pattern(search.find_classes(path, classes), group)
    if folder_index:
        folder_index.save()
    check_no_class_is_empty(root, classes, files["train"], search, decoding.classes)
    if "test" not in files:
        files |= split_off_test_files(files["train"], test_size)
    search.warn()
    return read_splits(files, classes, decoding)


@dataset
def table(
    table: str,
    root: Path | None,
    path: str,
    label: str,
    split: str | None,
    group: str | None,
    test_size: int | float,
    decoding: Decoding,
) -> DatasetSplits:
    """Images listed in a table with their labels, for the options see conf/data/table.yaml.

    Without test rows, a fixed stratified part of the training rows is the test set. Raises
    UserError: a table that can't be read, several labels for an image, missing or corrupt images.
    """
    file = expand_home(table, "data.table")
    folder = root or file.parent
    rows = split_rows(file, read_rows(file, Columns(path, label, split, group)))
    if "train" not in rows:
        raise UserError(f"data.table={table} has no training row")
    if "test" in rows and test_size != TEST_SIZE:
        raise UserError(f"data.test_size={test_size}: the table has test rows; leave test_size out")
    classes = sorted_classes(rows["train"])
    files = {}
    for name, part in rows.items():
        labeled = find_files(file, folder, part, classes, "the training part")
        files[name] = decoding.drop_corrupt(labeled, folder)
    if "test" not in files:
        files |= split_off_test_files(files["train"], test_size)
    return read_splits(files, classes, decoding)


def choose_test_folder(
    root: Path, folders: Mapping[str, Path], test: str, test_size: int | float
) -> dict[str, Path]:
    """Return the folders of the splits, with `test=val` that of validation as the test set."""
    chosen = dict(folders)
    if test == "val":
        if "test" in folders or "val" not in folders:
            names = ", ".join(path.name for path in folders.values())
            expected = "train and val, but no test"
            raise UserError(f"data.test=val: data.root={root} has {names}. Expected {expected}")
        chosen["test"] = chosen.pop("val")
    elif "val" in folders and "test" not in folders and is_first():
        part = f"a part of {folders['train'].name} (data.test_size={test_size})"
        hint = f"data.test=val makes {folders['val'].name} the test set"
        print(f"test set: {part}, as there is no folder for it; {hint}")
    check_split_folders(root, chosen, test_size)
    return chosen


def split_off_test_files(files: LabeledFiles, test_size: int | float) -> dict[str, LabeledFiles]:
    train, test = split_off_test(files.labels, test_size, find_groups(files))
    return {"train": files.select(train), "test": files.select(test)}


def check_split_folders(root: Path, folders: Mapping[str, Path], test_size: int | float) -> None:
    if "train" not in folders:
        message = f"data.root={root} has {', '.join(folders)}, but no train"
        raise UserError(f"{message}; evaluate.py takes such a folder, training does not")
    if "test" in folders and test_size != TEST_SIZE:
        message = f"data.test_size={test_size}: {folders['test']} is the test set"
        raise UserError(f"{message}; leave test_size out")


def check_no_class_is_empty(
    root: Path,
    classes: Sequence[str],
    files: LabeledFiles,
    search: Search,
    chosen: Chosen | None,
) -> None:
    """Raise UserError: a class has no image, among those that are chosen if any are."""
    present = set(files.labels.unique().tolist())
    used = range(len(classes)) if chosen is None else find_labels(classes, chosen)
    empty = [classes[label] for label in used if label not in present]
    if empty:
        message = f"need at least 2 classes with images; empty: {', '.join(empty)}"
        raise UserError(f"data.root={root}: {message}{search.parenthesis}")


@dataset
def fake(
    images: int, test_images: int, channels: int, height: int, width: int, num_classes: int
) -> DatasetSplits:
    """Noise on a pattern per class, easy to learn; any number, shape and size of images."""
    rng = generator(0, "fake")
    shape = (channels, height, width)
    patterns = torch.randint(128, (num_classes, *shape), dtype=torch.uint8, generator=rng)
    train = fake_split(images, patterns, rng)
    test = fake_split(test_images, patterns, rng)
    return DatasetSplits(train, test, [str(label) for label in range(num_classes)])


def fake_split(n: int, patterns: Tensor, rng: torch.Generator) -> LabeledImages:
    labels = torch.arange(n) % len(patterns)
    images = torch.randint(128, (n, *patterns.shape[1:]), dtype=torch.uint8, generator=rng)
    for indices in torch.arange(n).split(4096):  # bounds the memory of patterns[labels]
        images[indices] += patterns[labels[indices]]
    return LabeledImages(images, labels)
