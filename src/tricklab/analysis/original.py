"""What is reproduced: a run in a folder, possibly a stranger's, or a row of committed results."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tricklab.analysis.ablation import find_tricks, read_ablation
from tricklab.analysis.claims import CLAIMS, read_claim
from tricklab.analysis.recipes import Recipe, load_results, train_teacher
from tricklab.cli.config import CONF, flatten, list_options
from tricklab.cli.messages import unknown_name
from tricklab.cli.overrides import split_key
from tricklab.errors import UserError
from tricklab.files import numbers, read_text, texts
from tricklab.run.automatic import find_recorded
from tricklab.run.folder import read_config, read_result
from tricklab.run.identity import is_excluded_from_hash

# Groups to which a stranger's overrides can't add keys: these may write files
CLOSED_GROUPS = ("callbacks", "logger", "hydra", "trainer")
OVERRIDE = re.compile(r"\+{0,2}[a-z][\w.]*=(?:(?!\$\{).)*")  # no flag, package, removal or ${...}
OPTIMIZER_CLASS = re.compile(r"optimizer\._target_=torch\.optim\.\w+")
THREADS = "trainer.threads"  # repeated by OMP_NUM_THREADS, which older code knows, too
MEMORY_FORMAT = "trainer.channels_last"
# of a run, as far as its row has them
CIRCUMSTANCES = ("commit", "python", "torch", "pytorch-lightning", "data", "processor", "threads")
PLACES = ("data.root", "data.table")  # where data are read, and downloaded to


class Original(NamedTuple):
    """A finished run: what it was started with, what surrounded it, and what it measured.

    `folder` is None for a row of results. `config` is flat; `circumstances` are texts by name, ""
    where they were not recorded. `changes` are those that were not committed, as a patch.
    """

    name: str
    folder: Path | None
    overrides: list[str]
    metrics: Mapping[str, float]
    circumstances: Mapping[str, str]
    config: Mapping[str, Any]
    changes: str = ""


def read_original(folder: Path) -> Original:
    """Read the run in a folder. Raises UserError: none that is done, or unsafe overrides."""
    result = read_result(folder)
    if result.get("status") != "done":
        found = result.get("status", "no result.json")
        raise UserError(f"{folder}: {found}. Expected the folder of a run that is done")
    config = read_config(folder)
    overrides = [
        override
        for override in texts(result.get("overrides"))
        if not (is_excluded_from_hash(split_key(override)) or split_key(override) == THREADS)
    ]
    for override in overrides:
        check_override(override, folder)
    overrides += repeat_choice(config, overrides)
    return Original(
        folder.resolve().name,
        folder,
        overrides,
        numbers(result.get("metrics")),
        describe_circumstances(result, config),
        flatten_options(config),
        changes=read_changes(folder),
    )


def repeat_choice(config: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
    """Return an override for the memory format that a run has chosen, unless one says it."""
    choice = find_recorded(config)
    is_set = any(split_key(override) == MEMORY_FORMAT for override in overrides)
    if is_set or "channels_last" not in choice:
        return []
    return [f"{MEMORY_FORMAT}={str(choice['channels_last']).lower()}"]


def flatten_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a run by dotted key, with the memory format that it has chosen.

    Without the number of threads, which is one of the circumstances.
    """
    added = ("automatic", "choices", "dataset")
    options = flatten({key: value for key, value in config.items() if key not in added})
    choice = find_recorded(config)
    if "channels_last" in choice:
        options[MEMORY_FORMAT] = choice["channels_last"]
    options.pop(THREADS, None)
    return options


def read_changes(folder: Path) -> str:
    """Return the patch beside a run, which is compared, but never applied."""
    path = folder / "git.diff"
    return read_text(path) if path.is_file() else ""


def describe_circumstances(result: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, str]:
    """Return what may change the digits of a run: code, versions, machine, threads and data."""
    parts = {key: result.get(key) for key in ("git", "versions", "machine")}
    known = {key: part if isinstance(part, dict) else {} for key, part in parts.items()}
    dataset = config.get("dataset")
    data = dataset.get("fingerprint") if isinstance(dataset, dict) else ""
    machine = known["machine"]
    found = {
        "commit": known["git"].get("commit"),
        **{name: version for name, version in known["versions"].items() if name != "tricklab"},
        "processor": machine.get("processor"),
        "threads": machine.get("threads"),
        "devices": ", ".join(texts(result.get("devices"))),
        "data": data,
    }
    return {name: str(value or "") for name, value in found.items()}


def check_override(override: str, folder: Path) -> None:
    """Raise UserError for an override that could do more than set an option of `conf/`.

    The folder may be a stranger's: nothing in it is resolved, chooses a class, or adds a callback.
    """
    key, _, value = override.partition("=")
    plain = key.lstrip("+")
    is_added = key.startswith("+") and plain.split(".")[0] in CLOSED_GROUPS
    is_class = "_target_" in override and not OPTIMIZER_CLASS.fullmatch(override)
    is_outside = "." not in plain and ".." in value  # a file beside conf/
    if not OVERRIDE.fullmatch(override) or is_added or is_class or is_outside:
        raise UserError(f"{folder}: the override {override!r} is not taken from a folder")
    if plain in PLACES and not Path(value.strip("'\"")).expanduser().exists():
        raise UserError(f"{folder}: {plain}={value} does not exist here. Expected {plain}=PATH")


def read_row(options: Mapping[str, str]) -> Original:
    """Return the run of a row: of `claim`, `arm` and `seed`, or of `recipe`, maybe `arm`, `seed`.

    Raises UserError: there is no such row.
    """
    recipe = find_recipe(options["claim"], options["recipe"])
    arm, seed = options["arm"], options["seed"]
    if arm not in recipe.arms:
        raise UserError(unknown_name(f"arm={arm}", arm, recipe.arms))
    rows = load_results(recipe)[arm]
    if not seed.isdecimal() or int(seed) not in rows:
        allowed = ", ".join(map(str, sorted(rows))) or "none, as no seed has a row"
        raise UserError(f"seed={seed}; allowed for {recipe.name}: {allowed}")
    if recipe.teacher:
        train_teacher(recipe)
    row = rows[int(seed)]
    overrides = [f"experiment={recipe.name}", *recipe.arms[arm], f"seed={seed}"]
    metrics = {name: float(row[name]) for name in recipe.metrics}
    circumstances = {name: row.get(name, "") for name in CIRCUMSTANCES}
    name = "_".join(filter(None, [recipe.name.replace("/", "_"), arm, f"seed-{seed}"]))
    return Original(name, None, overrides, metrics, circumstances, {})


def find_recipe(claim: str, recipe: str) -> Recipe:
    """Return the recipe of a claim, an ablation or a recipe. Raises UserError: no such name."""
    name = claim or recipe
    option = "claim" if claim else "recipe"
    known = list_options(CLAIMS) if claim else list_options(CONF / "experiment")
    if name not in known:
        raise UserError(unknown_name(f"{option}={name}", name, known))
    if claim:
        return read_claim(name).recipe
    return read_ablation(name).recipe if find_tricks(name) else Recipe(name)
