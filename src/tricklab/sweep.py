"""How a sweep chooses its runs: a grid, arms, the best of a grid in rounds, or trials that Optuna proposes."""

import math
import shlex
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import DictConfig, OmegaConf

from tricklab.cli.overrides import combine, list_values
from tricklab.errors import UserError
from tricklab.jobs.queue import Job, Jobs, strip_sweep_overrides

REPLICATES = ("seed", "data.fold")  # of one configuration
OBJECTIVES = ("val/acc", "val/loss", "val/ece", "val/acc_top5")


def grid(words: list[Override], jobs: Jobs) -> None:
    """Run every combination of the values of `words`."""
    jobs.run(combine(words))


def arms(words: list[Override], jobs: Jobs, of: Mapping[str, Sequence[str]] | None) -> None:
    """Run each arm, a list of words of its own, with every combination of the values of `words`.

    Raises UserError: there is no arm.
    """
    if not of:
        raise UserError(
            "sweep=arms without sweep.of; allowed: with lists of words by name, as {a:['mixup=on']}"
        )
    jobs.run([[*combination, *arm] for arm in of.values() for combination in combine(words)])


def halving(words: list[Override], jobs: Jobs, factor: int, rounds: int) -> None:
    """Run a grid for a part of the epochs, one of `factor` configurations for `factor` times as many, up to all.

    A configuration is judged by its mean over the seeds, the schedule is that of the full run, and what goes on is the
    same run as one that was never stopped. (Successive halving, Jamieson and Talwalkar, arXiv 1502.07943.) Raises
    UserError: the runs differ in length, or do not count epochs alone.
    """
    left = combine(words)
    (epochs, steps, every, stop_after, early), *others = {
        jobs.plan(combination).length for combination in left
    }
    if others or steps > 0 or stop_after or early:
        says = "one trainer.max_epochs, no trainer.max_steps, no stop_after, no callbacks=early_stopping"
        raise UserError(f"sweep=halving ends runs after whole epochs itself; allowed: {says}")
    ends = {math.ceil(epochs / factor**n / every) * every for n in range(1, rounds)}
    for until in [*sorted(end for end in ends if end < epochs), 0]:
        done = jobs.run(left, until, f"{until or epochs} of {epochs} epochs: ")
        left = best(left, [job.value for job in done], factor if until else len(left))
        if not left:
            return
    print(f"best: python train.py {shlex.join(without_seed(strip_sweep_overrides(left[0])))}")


def best(
    combinations: list[list[str]], values: Sequence[float | None], factor: int
) -> list[list[str]]:
    """Return one of `factor` configurations, with all their seeds: those with the highest mean, if all were done."""
    cells: dict[tuple[str, ...], list[float]] = {}
    for words, value in zip(combinations, values, strict=True):
        cells.setdefault(without_seed(words), []).append(-math.inf if value is None else value)
    means = {cell: fmean(found) for cell, found in cells.items() if -math.inf not in found}
    kept = sorted(means, key=means.__getitem__, reverse=True)[
        : math.ceil(len(cells) / factor)
    ]  # a tie: the first
    return [words for cell in kept for words in combinations if without_seed(words) == cell]


def without_seed(words: Sequence[str]) -> tuple[str, ...]:
    """Return what is one configuration over its seeds, or over its folds."""
    return tuple(word for word in words if word.lstrip("+").split("=")[0] not in REPLICATES)


def optuna(
    words: list[Override],
    jobs: Jobs,
    trials: int,
    replicates: int,
    objectives: list[str],
    batch: int,
    seed: int,
) -> None:
    """Run trials that Optuna's TPE proposes, each with `replicates` seeds, and say which was best.

    Nothing is stored: the same command proposes the same trials as long as their results are the same, and those that
    are done return at once. Raises UserError: a seed is searched for, a value or objective is wrong, Optuna is missing.
    """
    space = make_space(words, jobs.config)
    import optuna

    if not objectives or not set(objectives) <= set(OBJECTIVES):
        raise UserError(
            f"sweep.objectives={list(objectives)}; allowed: one or more of {', '.join(OBJECTIVES)}"
        )
    given = [str(word.input_line) for word in words if not word.is_sweep_override()]
    for combination in probe_points(space):
        jobs.plan([*given, *combination])
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directions: Any = ["maximize" if "acc" in name else "minimize" for name in objectives]
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=seed), directions=directions
    )
    fixed = [
        word for word in strip_sweep_overrides(given) if not word.lstrip("+").startswith("seed=")
    ]
    seeds = range(jobs.config.seed, jobs.config.seed + replicates)
    for first in range(0, trials, batch):
        asked = [study.ask(space) for _ in range(min(batch, trials - first))]
        chosen = [[*fixed, *format_overrides(trial.params)] for trial in asked]
        what = f"trials {first + 1} to {first + len(asked)} of {trials}: "
        done = jobs.run([[*words, f"seed={n}"] for words in chosen for n in seeds], what=what)
        for i, trial in enumerate(asked):
            trial.set_user_attr("words", [*chosen[i], f"seed={','.join(map(str, seeds))}"])
            values = means(done[i * replicates : (i + 1) * replicates], objectives)
            study.tell(trial, values, None if values else optuna.trial.TrialState.FAIL)
    for line, found in {
        shlex.join(trial.user_attrs["words"]): trial for trial in study.best_trials
    }.items():
        said = ", ".join(
            f"{name} {value:.4f}" for name, value in zip(objectives, found.values, strict=True)
        )
        print(f"best: {said}: python train.py {'-m ' * (replicates > 1)}{line}")


def make_space(words: list[Override], config: DictConfig) -> dict[str, Any]:
    """Return what Optuna draws the values of each word from that has several; `config` has the types of their keys."""
    searched = {str(word.key_or_group): word for word in words if word.is_sweep_override()}
    wrong = [word.input_line for key, word in searched.items() if key in REPLICATES]
    if wrong or not searched:
        said = wrong[0] if wrong else "no values to choose from"
        raise UserError(
            f"sweep=optuna, {said}; allowed: values of other keys, and sweep.replicates for seeds"
        )
    for key, word in searched.items():
        whole = type(OmegaConf.select(config, key, throw_on_resolution_failure=False)) is int
        interval = word.value()
        if whole and isinstance(interval, IntervalSweep) and type(interval.start) is not int:
            typed = str(word.input_line).replace("interval(", "int(interval(", 1)
            said = f"{word.input_line}: {key} takes whole numbers"
            raise UserError(f"{said}; use {typed.replace(')', '))', 1)}")
    try:
        return {key: distribution(word) for key, word in searched.items()}
    except ImportError as error:
        raise UserError("sweep=optuna needs optuna: pip install 'tricklab[optuna]'") from error


def probe_points(space: dict[str, Any]) -> list[list[str]]:
    """Return words in which each choice and each end of an interval occurs, to be checked before anything runs."""
    ends = {key: getattr(of, "choices", None) or (of.low, of.high) for key, of in space.items()}
    longest = max(map(len, ends.values()))
    return [
        format_overrides({key: values[i % len(values)] for key, values in ends.items()})
        for i in range(longest)
    ]


def means(replicates: Sequence[Job], objectives: Sequence[str]) -> list[float] | None:
    """Return the means of results over replicates; None if one of these has failed."""
    results = [job.result["metrics"] for job in replicates if job.value is not None]
    if len(results) < len(replicates):
        return None
    if missing := [name for name in objectives if name not in results[0]]:
        raise UserError(f"sweep.objectives={missing}: there is none below 20 classes")
    return [fmean(result[name] for result in results) for name in objectives]


def format_overrides(values: Mapping[str, Any]) -> list[str]:
    return [
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in values.items()
    ]


def distribution(word: Override) -> Any:
    """Return what Optuna draws the values of a word from."""
    from optuna import distributions as d

    sweep: Any = word.value()
    if not isinstance(sweep, IntervalSweep):
        return d.CategoricalDistribution(list_values(word))
    of: Any = (
        d.IntDistribution
        if isinstance(sweep.start, int) and isinstance(sweep.end, int)
        else d.FloatDistribution
    )
    try:
        return of(sweep.start, sweep.end, log="log" in sweep.tags)
    except ValueError as error:
        raise UserError(f"{word.input_line}: {error}") from error
