"""Image files to evaluate a checkpoint on: nothing is split off from them for training."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tricklab.data.batches import DatasetSplits
from tricklab.data.decoding import make_decoding, read_splits
from tricklab.data.file_list import LabeledFiles
from tricklab.data.folders import expand_home, find_splits
from tricklab.data.module import ImageData
from tricklab.data.search import Search
from tricklab.data.tables import Columns, find_files, read_rows, split_rows
from tricklab.errors import UserError

# Arguments of ImageData that say how images become the input of a network
INPUT_OPTIONS = ("input_channels", "size", "mean", "std", "fit", "crop_fraction", "interpolation")
OWNER = "the checkpoint"  # of the classes


def build_test_data(target: str, classes: Sequence[str], options: Mapping[str, Any]) -> ImageData:
    """Build the test set of `data=folder` or `data=table`; it stands for the other splits, too.

    `options` are those of the option `target` in conf/data; those of training are ignored. Raises
    UserError: there are other splits, but no test set; a class that is not in `classes`; a missing
    or corrupt image.
    """
    files = FINDERS[target](options, classes)
    splits = read_splits({"test": files}, list(classes), make_decoding(options))
    return make_test_data(splits, options)


def make_test_data(splits: DatasetSplits, options: Mapping[str, Any]) -> ImageData:
    """Return data of which only the test set is used; it stands for the other splits, too."""
    splits = splits._replace(train=splits.test, val=splits.test, groups=None)
    inputs = {name: options[name] for name in INPUT_OPTIONS if name in options}
    return ImageData(splits, options["batch_size"], seed=options["seed"], **inputs)


def find_in_folder(options: Any, classes: Sequence[str]) -> LabeledFiles:
    """Return the images in the folder `test` of `root`, or those of `root/CLASS/...`."""
    test = options.get("test", "test")
    path = expand_home(options["root"], "data.root")
    folders = find_splits(path) or {test: path}
    if test not in folders:
        expected = " or ".join(f"data.root={folder}" for folder in folders.values())
        raise UserError(f"data.root={path} has no {test} folder. Expected {expected}")
    decoding = make_decoding(options)
    search = Search(path, decoding.skip_corrupt, decoding.workers)
    files = search.find_classes(folders[test], classes, OWNER)
    search.warn()
    return files


def find_in_table(options: Any, classes: Sequence[str]) -> LabeledFiles:
    """Return the images of the test rows of `table`, or all if it has no splits."""
    table = expand_home(options["table"], "data.table")
    root = expand_home(options["root"], "data.root") if options["root"] else table.parent
    columns = Columns(*(options[name] for name in Columns._fields))
    rows = split_rows(table, read_rows(table, columns))
    if "test" not in rows and set(rows) != {"train"}:
        raise UserError(f"data.table={table} has rows of {', '.join(rows)}, but none of test")
    files = find_files(table, root, rows.get("test", rows.get("train", [])), classes, OWNER)
    return make_decoding(options).drop_corrupt(files, root)


FINDERS: dict[str, Callable[[Any, Sequence[str]], LabeledFiles]] = {
    "folder": find_in_folder,
    "table": find_in_table,
}
