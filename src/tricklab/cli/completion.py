"""Completion in shells: `eval "$(python train.py -sc install=bash)"`."""

import re
from typing import Any

from hydra.plugins.completion_plugin import CompletionPlugin

# Files that only others include (`_options`, `_always`), and the values of this machine
INTERNAL = re.compile(r"[=/]_|^[+~]?local=")

_query_config_groups = CompletionPlugin._query_config_groups


def hide_internal_options() -> None:
    """Make Hydra's completion leave out files that are no options: it has no setting for that."""
    CompletionPlugin._query_config_groups = query_options  # type: ignore[assignment, method-assign]


def query_options(plugin: CompletionPlugin, *arguments: Any, **options: Any) -> Any:
    matches, is_exact = _query_config_groups(plugin, *arguments, **options)
    return [match for match in matches if not INTERNAL.search(match)], is_exact
