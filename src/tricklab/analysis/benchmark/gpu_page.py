"""The results of the part `gpu` as a block of Markdown."""

from collections.abc import Sequence
from typing import Any

from tricklab.analysis.benchmark.cases import COMPILED, MODES
from tricklab.analysis.benchmark.gpu_modes import SPEEDS
from tricklab.analysis.page import escape_pipes, format_table

RECIPE_COLUMNS = ("data", "epochs", "test accuracy", "images/s", "seconds", "peak GB")
DECIMALS = {"images/s": 0, "seconds": 0, "test accuracy": 4}  # others have two
NO_MEANING = "not meaningful on a CPU"


def format_gpu(results: dict[str, Any]) -> str:
    """Return machine and command, and the tables of checks, of modes and of the recipe."""
    tables = (
        list_checks(results),
        list_modes(results["modes"], results["rehearsal"]),
        list_recipe(results["recipe"]),
    )
    parts = [format_head(results)]
    parts += [format_table(table, escape_pipes) for table in tables]
    parts.append(f"The recipe: `{results['recipe']['overrides']}`.")
    return "\n\n".join(parts)


def format_head(results: dict[str, Any]) -> str:
    versions = f"torch {results['torch']}, CUDA {results['cuda'] or 'none'}"
    line = f"**{results['device']}**, {versions}, {results['date']}, `{results['command']}`"
    if results["rehearsal"]:
        line += "\n\nA rehearsal at a tiny size: none of these numbers measures anything."
    return line


def list_checks(results: dict[str, Any]) -> list[list[str]]:
    tests = dict(results["tests"])
    failures = tests.pop("failures")
    outcome = ", ".join(f"{number} {name}" for name, number in tests.items())
    if failures:
        outcome += f": {', '.join(failures)}"
    waits = NO_MEANING if results["rehearsal"] else results["waits"]
    return [["check", "result"], ["tests marked gpu", outcome], ["waits for the GPU", waits]]


def list_modes(rows: Sequence[dict[str, Any]], rehearsal: bool) -> list[list[str]]:
    """Return a row for each network and mode; a rehearsal marks those that it does not compute."""
    table = [["network", "mode", *SPEEDS, "note"]]
    for row in rows:
        mode = MODES[row["mode"]]
        on_gpu = mode.tf32 is not None or mode.cuda_graphs or COMPILED in mode.overrides
        note = row["note"] or (NO_MEANING if rehearsal and on_gpu else "")
        speeds = [format_cell(column, row[column]) for column in SPEEDS]
        table.append([row["network"], row["mode"], *speeds, note])
    return table


def list_recipe(recipe: dict[str, Any]) -> list[list[str]]:
    cells = [format_cell(column, recipe[column]) for column in RECIPE_COLUMNS]
    return [[*RECIPE_COLUMNS], cells]


def format_cell(column: str, value: Any) -> str:
    """Return a number with the decimals of its column, "-" for None, else the text."""
    if value is None:
        return "-"
    return f"{value:,.{DECIMALS.get(column, 2)}f}" if isinstance(value, float) else str(value)
