"""The page of committed results, `conf/experiment/README.md`: its tables come from the CSV rows.

Prose is written in the page itself; a table stands between `<!-- begin NAME -->` and
`<!-- end NAME -->` and is replaced.
"""

import re
from collections.abc import Callable
from statistics import mean, median

from tricklab.analysis.ablation import (
    ablation_table,
    describe_power,
    find_tricks,
    read_ablation,
)
from tricklab.analysis.claims import claims_table
from tricklab.analysis.page import escape_pipes, format_table
from tricklab.analysis.recipes import Recipe, Row, format_mean_std, load_results
from tricklab.cli.config import CONF, list_options
from tricklab.errors import UserError
from tricklab.files import read_text, write_text

EXPERIMENTS = CONF / "experiment"
PAGE = EXPERIMENTS / "README.md"
HEADER = (
    "recipe",
    "seeds",
    "test accuracy",
    "validation",
    "seconds a run (median; range)",
    "date",
    "measured on",
)


def update_page() -> bool:
    """Rewrite the page with the tables of today's rows; return whether it has changed."""
    before = read_text(PAGE)
    after = update_tables(before)
    if after != before:
        write_text(PAGE, after)
    return after != before


def update_tables(page: str) -> str:
    """Return the text of the page with the tables of today's rows.

    Raises UserError: a table's markers are missing.
    """
    for name, make in TABLES.items():
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
        if begin not in page or end not in page:
            raise UserError(f"{PAGE}: no table between {begin.strip()} and {end}")
        before, _, rest = page.partition(begin)
        after = rest.partition(end)[2]
        page = f"{before}{begin}\n{make()}\n\n{end}{after}"
    return page


def recipes_table() -> str:
    """Return a row for each recipe that has results: mean ± std of the accuracies over seeds."""
    table = [list(HEADER)]
    for name in list_options(EXPERIMENTS):
        if find_tricks(name):
            continue
        rows = list(load_results(Recipe(name), seeds=1)[""].values())
        if rows:
            table.append(recipe_row(name, rows))
    return format_table(table, escape_pipes)


def recipe_row(name: str, rows: list[Row]) -> list[str]:
    seconds = [float(row["seconds"]) for row in rows]
    return [
        f"`{name}`",
        f"0 to {len(rows) - 1}",
        format_mean_std(rows, "test/acc"),
        f"{mean(float(row['val/acc']) for row in rows):.4f}",
        f"{median(seconds):,.0f} ({min(seconds):,.0f} to {max(seconds):,.0f})",
        max(row["date"] for row in rows),
        read_evidence(name),
    ]


def read_evidence(name: str) -> str:
    """Return the second comment of a recipe: FLOPs, hardware and what else its rows lack."""
    text = read_text(EXPERIMENTS / f"{name}.yaml")
    comments = re.findall(r"^# (?!@)(.*)$", text, re.MULTILINE)
    return comments[1] if len(comments) > 1 else ""


def ablation_tables() -> str:
    """Return the table of each recipe with tricks, with the smallest detectable difference."""
    parts = []
    for name in list_options(EXPERIMENTS):
        if not find_tricks(name):
            continue
        ablation = read_ablation(name)
        if ablation.recipe.csv_file.is_file():
            results = load_results(ablation.recipe, seeds=1)
            table = ablation_table(ablation.tricks, results, ablation.paper)
            power = describe_power(ablation.tricks, results)
            parts += [f"`{name}`:", format_table(table, escape_pipes), f"{power}."]
    return "\n\n".join(parts)


TABLES: dict[str, Callable[[], str]] = {
    "recipes": recipes_table,
    "claims": lambda: format_table(claims_table(collect=False), escape_pipes),
    "ablations": ablation_tables,
}
