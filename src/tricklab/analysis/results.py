"""Runs as a table: what their folders hold, as plain values.

The folders may come from a stranger: every file is read through `tricklab.files`, and a damaged one
counts as missing.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from tricklab.errors import UserError
from tricklab.files import UnreadableError, numbers, read_json, read_table, texts
from tricklab.run.folder import find_runs, read_result
from tricklab.run.identity import is_excluded_from_hash

if TYPE_CHECKING:  # pandas takes half a second to import
    import pandas  # type: ignore[import-untyped]

MAX_REASON = 500  # characters


class Run(NamedTuple):
    """A run, as its folder and its `result.json` describe it.

    `options` are the overridden values by key, without the keys that do not affect the result
    (`slots`, `logger`, ...); `overrides` are all of them as they were typed. `status` is that of
    `result.json`, or "missing" (no result), "stopped" (ended early by `sweep=halving`), "refused"
    (not a folder of its sweep). `test_images` is 0 where it is unknown.
    """

    folder: Path
    overrides: list[str]
    options: dict[str, str]
    status: str
    reason: str = ""
    metrics: Mapping[str, float] = MappingProxyType({})
    seconds: float = 0.0
    test_images: int = 0
    config_hash: str = ""
    started: str = ""
    commit: str = ""
    torch: str = ""

    @property
    def done(self) -> bool:
        return self.status == "done"


def load_runs(folder: str | Path) -> "pandas.DataFrame":
    """Return the runs below a folder (`runs`, or that of a sweep) as a table, one row each.

    Columns: the overridden options by key, the metrics by name, and status, reason, seconds,
    test_images, config_hash, started, commit, torch and folder, the path. Values of options are
    numbers where they can be, else text; what a run lacks is NaN.

    >>> runs = load_runs("sweeps/NAME")                                          # doctest: +SKIP
    >>> runs[runs.status == "done"].groupby("scheduler")["test/acc"].mean()      # doctest: +SKIP

    Raises UserError: `sweep.json` is damaged.
    """
    import pandas

    return pandas.DataFrame([to_row(run) for run in read_runs(Path(folder))])


def load_csv(path: str | Path) -> "pandas.DataFrame":
    """Return the numbers of a run's `metrics.csv` or `calibration.csv` as a table.

    What was not logged in a row is NaN; a file that is missing or damaged gives an empty table.
    """
    import pandas

    return pandas.DataFrame(read_numbers(Path(path)))


def to_row(run: Run) -> dict[str, Any]:
    """Return a run as a flat mapping; its own fields win over an option of the same name."""
    options = {key: number_or_text(value) for key, value in run.options.items()}
    fields = run._asdict()
    for name in ("overrides", "options", "metrics", "folder"):
        del fields[name]
    return {**options, **run.metrics, **fields, "folder": str(run.folder)}


def number_or_text(text: str) -> int | float | str:
    for convert in (int, float):
        with suppress(ValueError):
            return convert(text)
    return text


def read_runs(folder: Path) -> list[Run]:
    """Read the jobs of a sweep, in its order, or else all run folders below, the oldest first."""
    if (folder / "sweep.json").is_file():
        return read_sweep(folder)
    return [read_run(path) for path in reversed(find_runs(folder))]


def read_sweep(folder: Path) -> list[Run]:
    """Read the jobs in `sweep.json`, in its order, whatever state they are in.

    Raises UserError: it is missing or damaged, or lists no job.
    """
    try:
        listed = read_json(folder / "sweep.json").get("jobs")
    except UnreadableError as error:
        raise UserError(f"{folder} is not the folder of a sweep: {error}") from None
    jobs = [job for job in listed if isinstance(job, dict)] if isinstance(listed, list) else []
    if not any(is_folder_name(job.get("folder")) for job in jobs):
        raise UserError(f"{folder}: no jobs in sweep.json")
    return [read_job(folder, job.get("folder"), texts(job.get("overrides"))) for job in jobs]


def read_job(sweep: Path, name: object, overrides: Sequence[str]) -> Run:
    """Read the run of a job; only folders right below that of the sweep are opened."""
    folder = sweep / str(name)
    if is_folder_name(name) and not folder.is_symlink():
        return read_run(folder, overrides)
    options = parse_options(overrides)
    return Run(folder, list(overrides), options, "refused", "not a folder of this sweep")


def is_folder_name(name: object) -> bool:
    """Return whether this is the name of a direct child of a folder."""
    return isinstance(name, str) and name == Path(name).name not in ("", ".", "..")


def read_run(folder: Path, overrides: Sequence[str] | None = None) -> Run:
    """Read a run folder; `overrides` are those of its job, by default those of its result."""
    result: dict[str, Any] = {"status": "missing", **read_result(folder)}
    ran_with = texts(result.get("overrides"))
    overrides = ran_with if overrides is None else overrides
    options = parse_options(overrides)
    status = str(result["status"])
    reason = "" if status == "done" else str(result.get("reason") or "no result")
    early = [override for override in ran_with if override.startswith("stop_after=")]
    if early and "stop_after" not in options:
        status, reason = "stopped", early[-1]
    return Run(
        folder,
        list(overrides),
        options,
        status,
        " ".join(reason.split())[:MAX_REASON],
        numbers(result.get("metrics")),
        numbers(result).get("seconds", 0.0),
        int(numbers(result.get("images")).get("test", 0)),
        **read_provenance(result),
    )


def read_provenance(result: dict[str, Any]) -> dict[str, str]:
    """Return config hash, start, git commit and torch's version; "" where there is none."""
    git, versions = result.get("git"), result.get("versions")
    values = {
        "config_hash": result.get("config_hash"),
        "started": result.get("started"),
        "commit": git.get("commit") if isinstance(git, dict) else None,
        "torch": versions.get("torch") if isinstance(versions, dict) else None,
    }
    return {name: value if isinstance(value, str) else "" for name, value in values.items()}


def parse_options(overrides: Sequence[str]) -> dict[str, str]:
    """Return the values of overrides by key, of the keys that affect the result."""
    options = {}
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if not is_excluded_from_hash(key):
            options[key] = value
    return options


def read_numbers(path: Path) -> list[dict[str, float]]:
    """Return the numbers in each row of a CSV file; no row if it is missing or damaged."""
    try:
        return [parse_numbers(row) for row in read_table(path)]
    except UnreadableError:
        return []


def parse_numbers(row: dict[str, str]) -> dict[str, float]:
    values = {}
    for column, text in row.items():
        with suppress(ValueError):
            values[column] = float(text)
    return values
