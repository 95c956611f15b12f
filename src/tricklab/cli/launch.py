"""Entry point of `train.py` and the scripts. Imports nothing heavy."""

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

import tricklab.cli.names  # registers resolvers of conf/train.yaml
import tricklab.run.folder  # noqa: F401  # likewise
from tricklab.cli.completion import hide_internal_options
from tricklab.cli.config import CONF, list_keys, list_options
from tricklab.cli.help import format_help
from tricklab.cli.messages import explain, unknown_option
from tricklab.cli.overrides import defer_to_jobs, expand_home
from tricklab.cli.suggest import suggest_key
from tricklab.devices import keep_freed_memory, wait_asleep, world_size
from tricklab.errors import UserError
from tricklab.files import use_libyaml


def launch(main: Callable[[], Any], help_text: str | None = None) -> None:
    """Run `train.py`, or a script, which has a `help_text`.

    Prints the help for `--help`, and one line for a mistake of the user.
    """
    configure_process()
    sys.argv[1:] = [expand_home(argument) for argument in sys.argv[1:]]
    try:
        with exit_with_message():
            if {"-h", "--help"} & set(sys.argv[1:]):
                print(help_text or format_help(), flush=True)
                return
            if help_text is None:
                check_flags(sys.argv[1:])
                hide_internal_options()
                sys.argv[1:] = defer_to_jobs(sys.argv[1:])
            main()
    except SystemExit as error:
        if world_size() == 1 or not isinstance(error.code, str):
            raise
        from tricklab.run.ranks import leave  # imports torch, which takes seconds

        leave(error.code.removeprefix("error: "))
        sys.exit(1)


def configure_process() -> None:
    """Set how this process prints and keeps memory, and silence libraries."""
    # An ASCII terminal shows other characters escaped
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    # Otherwise Hydra prints errors itself, on several lines, and exits
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # Otherwise torch prints a page for each lost connection
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    use_libyaml()
    keep_freed_memory()
    wait_asleep()
    # The plugin has an option of that name, too
    warnings.filterwarnings("ignore", "\n'hydra/launcher/ray' is validated")


def check_flags(arguments: Sequence[str]) -> None:
    """Refuse flags that Hydra doesn't have, and the one that runs a pickle.

    Raises UserError: such a flag, or one between overrides.
    """
    parser = get_args_parser()
    # Otherwise argparse prints Hydra's whole usage
    parser.error = raise_user_error  # type: ignore[method-assign, assignment]
    known, unknown = parser.parse_known_args(list(arguments))
    if known.experimental_rerun:
        problem = "it would run a pickle; give the overrides in the run's result.json instead"
        raise UserError(f"--experimental-rerun is not supported: {problem}")
    if not unknown:
        return
    if not unknown[0].startswith("-"):
        flag = next((a for a in arguments if a.startswith("-")), "-m")
        raise UserError(f"{flag} stands between overrides; it goes first: train.py {flag} ...")
    raise_unknown_flag(unknown[0], arguments)


def raise_user_error(message: str) -> None:
    raise UserError(message)


def raise_unknown_flag(flag: str, arguments: Sequence[str]) -> None:
    """Raise UserError with the override that a flag such as `--lr 0.1` most likely means."""
    name, _, value = flag.partition("=")
    following = arguments[arguments.index(flag) + 1 :] if flag in arguments else []
    if not value and following and not following[0].startswith("-") and "=" not in following[0]:
        value = following[0]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        keys = list_keys(compose("train"))
    hint = suggest_key(name.strip("-").replace("-", "_"), value, keys, CONF)
    raise UserError(f"{name}: options are KEY=VALUE without dashes, as seed=1.{hint}")


@contextmanager
def exit_with_message() -> Iterator[None]:
    """Exit with one line and code 1 for a mistake of the user, without a traceback."""
    try:
        yield
    except BrokenPipeError:  # the reader has gone, as in `--help | head`
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
        if str(error).startswith("Unsupported item value in defaults"):
            sys.exit('error: an option in a defaults list is no text; "on" and "off" need quotes')
        # Hydra's error for GROUP=null and GROUP=1
        wrong = find_wrong_option() if str(error).startswith("Config group override") else None
        if wrong is None:
            raise
        sys.exit(f"error: {unknown_option(*wrong)}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def find_wrong_option() -> tuple[str, str] | None:
    """Return the first group and option on the command line where the option doesn't exist."""
    for argument in sys.argv[1:]:
        group, _, option = argument.partition("=")
        folder = CONF / group
        if folder.is_dir() and option.strip("[]") not in list_options(folder):
            return group, option
    return None
