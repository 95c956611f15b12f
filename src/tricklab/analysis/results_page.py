"""The page of committed results, `conf/experiment/README.md`: its tables come from the CSV rows.

Prose is written in the page itself; a table stands between `<!-- begin NAME -->` and
`<!-- end NAME -->` and is replaced. So are the pictures beside it.
"""

import re
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median

from tricklab.analysis.ablation import (
    ablation_table,
    describe_power,
    find_tricks,
    read_ablation,
)
from tricklab.analysis.claims import (
    CLAIMS,
    Judged,
    claims_table,
    judge_claim,
    load_claims,
    read_claim,
    summarise_claims,
)
from tricklab.analysis.interval_chart import draw_claims
from tricklab.analysis.page import escape_pipes, format_table
from tricklab.analysis.recipes import Recipe, Results, format_mean_std, load_results
from tricklab.analysis.rows import CONTROL, Row, is_published
from tricklab.cli.config import CONF, list_options
from tricklab.errors import UserError
from tricklab.files import read_text, write_text

EXPERIMENTS = CONF / "experiment"
PAGE = EXPERIMENTS / "README.md"
PICTURE = EXPERIMENTS / "claims.svg"
FEW_PICTURE = EXPERIMENTS / "few_claims.svg"
FEW = ("decay", "label_noise", "temperature", "by_step", "zeros")  # in README's picture
HEADER = (
    "recipe",
    "seeds",
    "test accuracy",
    "validation",
    "seconds a run (median; range)",
    "plain loop, images/s",
    "date",
    "measured on",
)


def update_page() -> bool:
    """Rewrite the page and its pictures by today's rows; return whether any has changed."""
    changed = False
    for path, content in make_files().items():
        if not path.is_file() or read_text(path) != content:
            write_text(path, content)
            changed = True
    return changed


def make_files() -> dict[Path, str]:
    """Return the page and its pictures by their paths."""
    return {PAGE: update_tables(read_text(PAGE)), **draw_pictures()}


def draw_pictures() -> dict[Path, str]:
    """Return the pictures of all claims with verdicts, and of a few."""
    verdicts: dict[str, list[Judged]] = {}
    few: dict[str, list[Judged]] = {}
    for name, (claim, results) in load_claims().items():
        if judged := judge_claim(claim, results):
            verdicts[claim.statement] = judged
        if name in FEW and judged:
            few[claim.statement] = judged
    return {PICTURE: draw_claims(verdicts), FEW_PICTURE: draw_claims(few)}


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
        rows = list(filter(is_published, load_results(Recipe(name))[""].values()))
        if rows:
            table.append(recipe_row(name, rows))
    return format_table(table, escape_pipes)


def recipe_row(name: str, rows: list[Row]) -> list[str]:
    seconds = [float(row["seconds"]) for row in rows]
    return [
        f"`{name}`",
        describe_seeds(rows),
        format_mean_std(rows, "test/acc"),
        f"{mean(float(row['val/acc']) for row in rows):.4f}",
        format_range(seconds),
        format_range([float(row[CONTROL]) for row in rows if row.get(CONTROL)]),
        max(row["date"] for row in rows),
        f"{read_evidence(name)}; {describe_machines(rows)}",
    ]


def describe_seeds(rows: list[Row]) -> str:
    seeds = [int(row["seed"]) for row in rows]
    return f"{min(seeds)} to {max(seeds)}"


def describe_machines(rows: list[Row]) -> str:
    """Return the machines of rows."""
    columns = ("processor", "cores", "threads")
    machines = {tuple(row.get(column, "") for column in columns) for row in rows}
    parts = [f"{name}, {threads} threads on {cores} cores" for name, cores, threads in machines]
    return " and ".join(sorted(parts))


def format_range(values: list[float]) -> str:
    """Return the median and the range, "" without values."""
    if not values:
        return ""
    return f"{median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


def read_evidence(name: str) -> str:
    """Return the second comment of a recipe: FLOPs, and what else its rows lack."""
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
            results = select_published(load_results(ablation.recipe))
            table = ablation_table(ablation.tricks, results, ablation.paper)
            power = describe_power(ablation.tricks, results)
            parts += [f"`{name}`:", format_table(table, escape_pipes), f"{power}."]
    return "\n\n".join(parts)


def select_published(results: Results) -> Results:
    return {
        arm: {seed: row for seed, row in rows.items() if is_published(row)}
        for arm, rows in results.items()
    }


def all_recipes() -> list[Recipe]:
    """Return all that have rows: recipes, ablations and claims."""
    names = list_options(EXPERIMENTS)
    recipes = [read_ablation(name).recipe if find_tricks(name) else Recipe(name) for name in names]
    return [*recipes, *(read_claim(name).recipe for name in list_options(CLAIMS))]


def describe_claims() -> str:
    """Return how many verdicts there are, their picture and their table."""
    claims = load_claims()
    picture = f"![The interval of each expectation, by claim]({PICTURE.name})"
    table = format_table(claims_table(claims), escape_pipes)
    return f"{summarise_claims(claims)}\n\n{picture}\n\n{table}"


TABLES: dict[str, Callable[[], str]] = {
    "recipes": recipes_table,
    "claims": describe_claims,
    "ablations": ablation_tables,
}
