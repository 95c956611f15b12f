"""The command line: help made from conf/, mistakes in one line, names of run folders. Imports nothing heavy."""

import itertools
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from tricklab.errors import UserError, nearest
from tricklab.process import visible_devices, world_size
from tricklab.resume import config_hash, run_folder, task

CONF = Path(__file__).parents[2] / "conf"
NOT_IN_NAME = re.compile(  # or elsewhere in it
    r"(data|model|sweep(\..*)?|seed|name|tags|resume|slots|dry|job_timeout|data\.(root|num_workers|cache))=|logger|hydra"
)


def launch(main: Callable[[], Any], help_text: str | None = None) -> None:
    """Run `train.py`, or a script with its `help_text`: that for `--help`, and one line for a mistake of the user."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(help_text or list_words())
        return
    os.environ["HYDRA_FULL_ERROR"] = "1"  # or Hydra prints its own pages and exits
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # or a page on each lost connection
    warnings.filterwarnings(
        "ignore", "\n'hydra/launcher/ray' is validated"
    )  # its plugin has one of that name
    try:
        with one_line():
            main()
    except SystemExit as error:
        if world_size() == 1 or not isinstance(error.code, str):
            raise
        from tricklab.ranks import leave  # imports torch, which takes seconds

        leave(error.code.removeprefix("error: "))
        sys.exit(1)


def compose_each(overrides: list[str]) -> dict[str, DictConfig]:
    """Compose and check a config for each combination of values with commas, by what tells it apart: "mixup=on"."""
    from tricklab.check import check  # which needs this module

    parsed = OverridesParser.create().parse_overrides(overrides)
    configs = {}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for words in combine(parsed):
            config = compose("train", words, return_hydra_config=True)
            check(config)
            told = [word for word in words if word.split("=")[0] in swept(parsed)]
            configs[" ".join(told) or f"scheduler={config.hydra.runtime.choices.scheduler}"] = (
                config
            )
    return configs


def combine(words: Sequence[Override]) -> list[list[str]]:
    """Return every combination of the values that words have with commas. Raises UserError: an interval has none."""
    choices = []
    for word in words:
        if not word.is_sweep_override():
            choices.append([str(word.input_line)])
        elif word.is_discrete_sweep():
            choices.append(
                [f"{word.get_key_element()}={value}" for value in word.sweep_string_iterator()]
            )
        else:
            raise UserError(
                f"{word.input_line}; allowed: values with commas, or with sweep=optuna an interval"
            )
    return [list(combination) for combination in itertools.product(*choices)]


@contextmanager
def one_line() -> Iterator[None]:
    """Turn a mistake of the user into its message, without a traceback, and exit code 1."""
    try:
        yield
    except (
        HydraException,
        OmegaConfBaseException,
        UserError,
        OSError,
        YAMLError,
        UnicodeDecodeError,
    ) as error:
        sys.exit(f"error: {explain(error)}")
    except ValueError as error:
        words = (
            word.partition("=") for word in sys.argv[1:] if (CONF / word.partition("=")[0]).is_dir()
        )
        wrong = next(
            (word for word in words if word[2].strip("[]") not in options(CONF / word[0])), None
        )
        if not wrong or not str(error).startswith(
            "Config group override"
        ):  # as Hydra calls GROUP=null or GROUP=1
            raise
        sys.exit(f"error: {unknown(''.join(wrong), wrong[2], options(CONF / wrong[0]))}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def title() -> str:
    """Return what was asked for on the command line, but for Hydra's own keys."""
    return " ".join(word for word in sys.argv[1:] if not word.startswith("hydra"))


def options(group: Path) -> list[str]:
    """Return the options of a group: its YAML files, without those that only others include."""
    return sorted(path.stem for path in group.glob("*.yaml") if not path.name.startswith("_"))


def list_words(conf: Path = CONF) -> str:
    """List every option of every group with the first comment in its file, and the top-level keys."""
    lines = ["python train.py [GROUP=OPTION] [KEY=VALUE] ...    (* is the default)"]
    train = OmegaConf.load(conf / "train.yaml")
    defaults = {
        k: v for entry in train.defaults if isinstance(entry, DictConfig) for k, v in entry.items()
    }
    groups = sorted(path.name for path in conf.iterdir() if path.is_dir() and path.name != "hydra")
    for group in [*groups, "hydra/launcher"]:
        lines += ["", group]
        for option in options(conf / group):
            star = (
                "*" if option in (defaults.get(group), defaults.get(f"override {group}")) else " "
            )
            lines.append(
                f" {star}{group}={option}".ljust(30) + description(conf / group / f"{option}.yaml")
            )
    keys = {
        str(k): "null" if v is None else v
        for k, v in train.items()
        if k not in ("defaults", "hydra") and v != {}
    }
    lines += ["", "keys", *(f"  {key}={value}" for key, value in keys.items())]
    lines += ["", "python train.py --cfg job    every key of the chosen options with its value"]
    lines += ["python train.py -m seed=0,1,2    one run for each value"]
    return "\n".join(lines)


def description(path: Path) -> str:
    """Return the first comment of a YAML file that is not for Hydra."""
    comments = re.findall(r"^# (?!@)(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return comments[0] if comments else ""


def explain(error: BaseException) -> str:
    """Say in one line what is wrong, what is allowed and which right word is nearest."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return unknown(f"{group}={option}", option, options(CONF / group))
    cause: Any = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and isinstance(
        cause.parent_node, DictConfig
    ):
        return unknown(str(cause.full_key), str(cause.key), map(str, cause.parent_node))
    return " ".join(str(error).split("\nSee ")[0].split())


def unknown(what: str, word: str, allowed: Iterable[str]) -> str:
    """Say that `what` does not exist, what there is, and the nearest to `word`."""
    allowed = sorted(
        a for a in allowed if not a.startswith("_")
    )  # _target_ and the like are not for overriding
    return f"{what} does not exist; allowed: {', '.join(allowed) or 'nothing'}.{nearest(word, allowed)}"


def run_name(*, _root_: DictConfig) -> str:
    """Name a run by `name`, or by its overrides; and by its seed."""
    return f"{slug(_root_.name)}_seed-{_root_.seed}" if _root_.name else job_name(_root_=_root_)


def job_name(*, _root_: DictConfig) -> str:
    """Name a run by its overrides and its seed."""
    return f"{named(_root_, _root_.hydra.overrides.task)[:120]}_seed-{_root_.seed}"


def sweep_name(*, _root_: DictConfig) -> str:
    """Name a sweep by `name`, or by its overrides and the keys it goes through: a grid that grows keeps its folder."""
    words = given()
    fixed = named(_root_, [str(word.input_line) for word in words if not word.is_sweep_override()])
    name = (
        slug(_root_.name)
        if _root_.name
        else "_".join([fixed, "by", *map(slug, sorted(swept(words)))])
    )
    return name if len(name) <= 120 else f"{name[:107]}_{config_hash({'name': name})}"


def named(config: DictConfig, words: Sequence[str]) -> str:
    """Return data, model and those of the words that belong into a name."""
    choices, kept = (
        config.hydra.runtime.choices,
        [word for word in words if not NOT_IN_NAME.match(word.lstrip("+~"))],
    )
    return "_".join(map(slug, [choices.data, choices.model, *sorted(kept)]))


def given() -> list[Override]:
    """Return the overrides of the command line."""
    words = [
        word
        for word in sys.argv[1:]
        if word.startswith("~") or ("=" in word and not word.startswith("-"))
    ]
    return OverridesParser.create().parse_overrides(words)


def swept(words: Iterable[Override]) -> set[str]:
    """Return the keys that have several values."""
    return {o.get_key_element() for o in words if o.is_sweep_override()}


def slug(text: Any) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", str(text)).strip("-.") or "_"


for resolver in (run_name, job_name, sweep_name, run_folder):
    OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)
OmegaConf.register_new_resolver(
    "config_hash", lambda *, _root_: config_hash(task(_root_)), replace=True
)
OmegaConf.register_new_resolver("gpus_a_job", lambda: min(1, len(visible_devices())), replace=True)
