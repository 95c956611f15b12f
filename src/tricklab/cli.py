"""The command line: help from conf/, mistakes in one line, names of run folders. Imports nothing heavy."""

import itertools
import os
import re
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from tricklab.errors import UserError, nearest
from tricklab.escape import for_terminal
from tricklab.process import quoted, visible_devices, world_size
from tricklab.resume import config_hash, run_folder, task
from tricklab.suggest import (
    SEVERAL_OPTIONS,
    assign,
    find_siblings,
    flatten,
    options,
    suggest_key,
    suggest_option,
)

CONF = Path(__file__).parents[2] / "conf"
NOT_IN_NAME = re.compile(  # or elsewhere in it
    r"(data|model|sweep(\..*)?|seed|name|tags|resume|slots|dry|job_timeout|data\.(root|num_workers|cache))=|logger|hydra"
)


DEFERRED: dict[str, str] = {}  # what was typed, by what Hydra is given instead
HOME = re.compile(r"(?<![^=,])~(?=/|,|$)")  # at the start of a value, where the shell leaves it


def launch(main: Callable[[], Any], help_text: str | None = None) -> None:
    """Run `train.py`, or a script with its `help_text`: that for `--help`, and one line for a mistake of the user."""
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # for an ASCII terminal
    sys.argv[1:] = [expand_home(word) for word in sys.argv[1:]]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # or Hydra prints its own pages and exits
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # or a page on each lost connection
    warnings.filterwarnings(
        "ignore", "\n'hydra/launcher/ray' is validated"
    )  # its plugin has one of that name
    try:
        with one_line():
            if {"-h", "--help"} & set(sys.argv[1:]):
                print(help_text or list_words(), flush=True)
                return
            if help_text is None:
                check_flags(sys.argv[1:])
                sys.argv[1:] = defer_to_jobs(sys.argv[1:])
            main()
    except SystemExit as error:
        if world_size() == 1 or not isinstance(error.code, str):
            raise
        from tricklab.ranks import leave  # imports torch, which takes seconds

        leave(error.code.removeprefix("error: "))
        sys.exit(1)


def expand_home(word: str) -> str:
    """Put the home folder for `~` in KEY=~/PATH, which shells leave there, and which Hydra can't parse."""
    key, equals, value = word.partition("=")
    if not equals or not HOME.match(f"={value}", 1):
        return word
    path = HOME.sub(lambda match: os.path.expanduser("~"), f"={value}")[1:]
    return f"{key}={path if ',' in path else quoted(path)}"


def defer_to_jobs(words: Sequence[str]) -> list[str]:
    """Make keys of a swept group values to sweep over, one each: Hydra would apply them to the default option first.

    So `-m data=digits,folder data.root=PATH` gets to the jobs, of which the first is named as one without that key.
    """
    if not get_args_parser().parse_known_args(list(words))[0].multirun:
        return list(words)
    groups = {key for key in swept(parse_overrides(words)) if (CONF / key).is_dir()}
    for word in words:
        key, _, value = word.partition("=")
        if value and "." in key and key.partition(".")[0] in groups - {"sweep"}:
            (parsed,) = parse_overrides([word])
            if not parsed.is_sweep_override():
                DEFERRED[f"{key}=choice({value})"] = word
    typed = {word: deferred for deferred, word in DEFERRED.items()}
    return [typed.get(word, word) for word in words]


def as_typed(words: Iterable[str]) -> list[str]:
    """Undo `defer_to_jobs`."""
    return [DEFERRED.get(word, word) for word in words]


def command() -> list[str]:
    """Return the arguments on the command line, as they were typed."""
    return as_typed(sys.argv[1:])


def check_flags(words: Sequence[str]) -> None:
    """Refuse what begins with a dash and is not Hydra's, or runs a pickle."""
    parser = get_args_parser()
    parser.error = raise_user_error  # type: ignore[method-assign, assignment]  # or it prints its whole usage
    known, unknown = parser.parse_known_args(list(words))
    if known.experimental_rerun:
        said = "it would run a pickle; give the overrides in the run's result.json instead"
        raise UserError(f"--experimental-rerun is not supported: {said}")
    if not unknown:
        return
    if not unknown[0].startswith("-"):
        flag = next((word for word in words if word.startswith("-")), "-m")
        raise UserError(f"{flag} stands between overrides; it goes first: train.py {flag} ...")
    name, _, value = unknown[0].partition("=")
    after = words[words.index(unknown[0]) + 1 :] if unknown[0] in words else []
    if not value and after and not after[0].startswith("-") and "=" not in after[0]:
        value = after[0]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        keys = flatten(compose("train"))
    hint = suggest_key(name.strip("-").replace("-", "_"), value, keys, CONF)
    raise UserError(f"{name}: options are KEY=VALUE without dashes, as seed=1.{hint}")


def raise_user_error(message: str) -> None:
    raise UserError(message)


def compose_each(overrides: list[str]) -> dict[str, DictConfig]:
    """Compose and check a config for each combination of values with commas, by what tells it apart: "mixup=on"."""
    from tricklab.check import check  # which needs this module

    configs = {}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()  # for glob()
        parsed = OverridesParser.create(loader).parse_overrides(overrides)
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
            choices.append([f"{word.get_key_element()}={value}" for value in list_values(word)])
        else:
            raise UserError(
                f"{word.input_line}: an interval needs sweep=optuna; without it give values with commas"
            )
    return [list(combination) for combination in itertools.product(*choices)]


def list_values(word: Override) -> list[str]:
    """Return the values that an override sweeps over. Raises UserError: there is none."""
    values = [value for value in word.sweep_string_iterator() if not value.startswith("_")]
    if not values:
        raise UserError(f"{word.input_line} has no values to sweep over")
    return values


@contextmanager
def one_line() -> Iterator[None]:
    """Turn a mistake of the user into its message, without a traceback, and exit code 1."""
    try:
        yield
    except BrokenPipeError:  # as of `--help | head`: nobody reads any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
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
        sys.exit(f"error: {unknown_option(wrong[0], wrong[2])}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def title() -> str:
    """Return what was asked for on the command line, but for Hydra's own keys."""
    return " ".join(word for word in command() if not word.startswith("hydra"))


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
        return unknown_option(group, option)
    if isinstance(error, OverrideParseException):
        return for_terminal(unparsed(error.override))
    if match := re.match("Ambiguous value for argument '(.*?)'\n1. To use", str(error), re.DOTALL):
        return for_terminal(ambiguous(match[1]))
    if match := re.match("Error merging override (.*)", str(error)):
        return for_terminal(f"{match[1]}: the value is of another type than the option's")
    cause: Any = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and isinstance(
        cause.parent_node, DictConfig
    ):
        return unknown_key(str(cause.full_key), flatten(cause.parent_node._get_root()))  # type: ignore[arg-type]
    return for_terminal(" ".join(str(error).split("\nSee ")[0].split()))


def unparsed(override: str) -> str:
    """Say how to write an override that Hydra can't parse."""
    key, equals, value = override.partition("=")
    if equals and re.fullmatch(r"[+~]*[\w./@-]+", key) and value:
        plain = value.strip("\"'")
        typed = quote_twice(key, plain)
        return f"{override}: the value can't be parsed; quote it for Hydra and the shell: {typed}"
    if equals:
        return f"{override}: expected KEY=VALUE, without blanks around ="
    groups = [path.name for path in sorted(CONF.iterdir()) if path.is_dir()]
    homes = [f"{group}={override}" for group in groups if override in options(CONF / group)]
    if os.path.isdir(override):
        homes = [f"data=folder data.root={override}"]
    hint = f" Did you mean {' or '.join(homes)}?" if homes else ""
    return f"{override or repr(override)}: expected KEY=VALUE.{hint}"


def ambiguous(override: str) -> str:
    """Say what values with commas may mean without -m."""
    key, _, value = override.partition("=")
    text = quote_twice(key, value)
    several = f"'{key}=[{value}]'"
    if re.search(r"[/\\ ]", value):
        return f"{override}: quote a path with a comma for Hydra and the shell: {text}"
    if key in SEVERAL_OPTIONS:
        return f"{override}: for all of them together {several}, for a run each -m {override}"
    if (CONF / key).is_dir():
        return f"{override}: one option of {key}, or for a run each -m {override}"
    return f"{override}: for a run each -m {override}, for a list {several}, for a text {text}"


def quote_twice(key: str, value: str) -> str:
    """Return an override whose value is a text for Hydra, as it is typed in a shell."""
    if {"'", '"'} & set(value):
        return shlex.quote(f"{key}={quoted(value)}")
    return f"""'{key}="{value}"'"""


def unknown_option(group: str, option: str) -> str:
    """Say that a group has no such option, which it has, and what was meant."""
    there = ", ".join(options(CONF / group)) or "nothing"
    if not group:
        return for_terminal(f"--config-name {option} does not exist; allowed: {there}")
    hint = suggest_option(group, option, CONF) if (CONF / group).is_dir() else ""
    return for_terminal(f"{group}={option} does not exist; allowed: {there}.{hint}")


def unknown_key(key: str, known: Sequence[str]) -> str:
    """Say that there is no such key, which others stand beside it, and what was meant."""
    words = (word.lstrip("+~").partition("=") for word in command())
    typed, _, value = next(
        (word for word in words if f"{word[0]}.".startswith(f"{key}.")), (key, "", "")
    )
    known = [other for other in known if other.startswith("hydra") == key.startswith("hydra")]
    hint = suggest_key(typed, value, known, CONF)
    beside = ", ".join(find_siblings(key, known))
    listed = f"; allowed: {beside}" if beside and ("." in key or not hint) else ""
    return for_terminal(f"{assign(typed, value)}: no such option{listed}.{hint}")


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
    return f"{named(_root_, list_overrides(_root_.hydra))[:120]}_seed-{_root_.seed}"


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


def list_overrides(hydra: Any, kind: str = "task") -> list[str]:
    """Return the overrides that Hydra was given, in which ${oc.env:NAME} is not resolved: it may be a secret."""
    plain: Any = OmegaConf.to_container(hydra.overrides, resolve=False)
    return [str(word) for word in plain[kind]]


def named(config: DictConfig, words: Sequence[str]) -> str:
    """Return data, model and those of the words that belong into a name."""
    choices, kept = (
        config.hydra.runtime.choices,
        [word for word in words if not NOT_IN_NAME.match(word.lstrip("+~"))],
    )
    return "_".join(map(slug, [choices.data, choices.model, *sorted(kept)]))


def given() -> list[Override]:
    """Return the overrides of the command line."""
    return parse_overrides(command())


def parse_overrides(words: Iterable[str]) -> list[Override]:
    """Parse the overrides among the arguments of a command line."""
    overrides = [w for w in words if w.startswith("~") or ("=" in w and not w.startswith("-"))]
    return OverridesParser.create().parse_overrides(overrides)


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


def read_arguments(words: Sequence[str]) -> dict[str, str]:
    """Read the KEY=VALUE arguments of a script that uses a checkpoint.

    A path alone is `ckpt=PATH`; quotes are Hydra's where there are any.
    Raises UserError: another argument without a key, or one given twice.
    """
    given: dict[str, str] = {}
    for word in words:
        key, value = split_argument(word)
        key = key or "ckpt"
        if key in given:
            hint = f" or input={word}" if "=" not in word else ""
            raise UserError(
                f"{word}: ckpt={given['ckpt']} is given already; expected KEY=VALUE{hint}"
                if key == "ckpt"
                else f"{key} is given twice"
            )
        given[key] = value
    return given


def split_arguments(arguments: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Split the arguments of a script into names or paths, and the values of options by key.

    Raises UserError: an option is given twice.
    """
    names = []
    options: dict[str, str] = {}
    for argument in arguments:
        key, value = split_argument(argument)
        if not key:
            names.append(value)
        elif key in options:
            raise UserError(f"{key} is given twice")
        else:
            options[key] = value
    return names, options


def split_argument(argument: str) -> tuple[str, str]:
    """Split KEY=VALUE; the key is "" for a name, and for whatever exists as a file.

    The value is without the quotes that Hydra would need, unless the key has a dot: such an
    argument is an override, which Hydra parses.
    """
    key, equals, value = argument.partition("=")
    if not equals or os.path.exists(argument):
        return "", argument
    return key, value if "." in key else unquote(value)


def to_bool(key: str, value: str) -> bool:
    """Return a boolean option. Raises UserError: it is neither true nor false."""
    if value not in ("true", "false"):
        raise UserError(f"{key}={value}; allowed: true, false")
    return value == "true"


def unquote(value: str) -> str:
    """Take off the quotes that Hydra would need."""
    quote = value[:1]
    if len(value) > 1 and quote in "\"'" and value.endswith(quote):
        return value[1:-1].replace(f"\\{quote}", quote)
    return value
