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
from tricklab.cli.config import CONF, list_keys, list_options
from tricklab.cli.help import format_help
from tricklab.cli.messages import explain, unknown_option
from tricklab.cli.overrides import defer_to_jobs, expand_home
from tricklab.cli.suggest import suggest_key
from tricklab.devices import world_size
from tricklab.errors import UserError


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
        with exit_with_message():
            if {"-h", "--help"} & set(sys.argv[1:]):
                print(help_text or format_help(), flush=True)
                return
            if help_text is None:
                check_flags(sys.argv[1:])
                sys.argv[1:] = defer_to_jobs(sys.argv[1:])
            main()
    except SystemExit as error:
        if world_size() == 1 or not isinstance(error.code, str):
            raise
        from tricklab.run.ranks import leave  # imports torch, which takes seconds

        leave(error.code.removeprefix("error: "))
        sys.exit(1)


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
        keys = list_keys(compose("train"))
    hint = suggest_key(name.strip("-").replace("-", "_"), value, keys, CONF)
    raise UserError(f"{name}: options are KEY=VALUE without dashes, as seed=1.{hint}")


def raise_user_error(message: str) -> None:
    raise UserError(message)


@contextmanager
def exit_with_message() -> Iterator[None]:
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
            (word for word in words if word[2].strip("[]") not in list_options(CONF / word[0])),
            None,
        )
        if not wrong or not str(error).startswith(
            "Config group override"
        ):  # as Hydra calls GROUP=null or GROUP=1
            raise
        sys.exit(f"error: {unknown_option(wrong[0], wrong[2])}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
