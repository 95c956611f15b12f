"""Search strategies of a sweep: a grid, arms, successive halving, or trials of Optuna."""

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import DictConfig, OmegaConf

from tricklab.cli.overrides import combine, list_values, split_key
from tricklab.errors import UserError
from tricklab.jobs.job import Job, strip_sweep_overrides
from tricklab.jobs.queue import Jobs

REPLICATES = ("seed", "data.fold")  # keys that repeat one configuration
MINIMISED = ("val/loss", "val/ece")
OBJECTIVES = ("val/acc", *MINIMISED, "val/acc_top5", "val/balanced_acc", "val/f1_macro")


def grid(overrides: list[Override], jobs: Jobs) -> None:
    """Run every combination of the swept values."""
    jobs.run(combine(overrides))


def arms(overrides: list[Override], jobs: Jobs, arms: Mapping[str, Sequence[str]] | None) -> None:
    """Run each arm, a list of overrides, with every combination of the swept values.

    `arms` holds the overrides of each arm by name. Raises UserError: there is no arm.
    """
    if not arms:
        expected = "Expected lists of overrides by name, as {a:['mixup=on']}"
        raise UserError(f"sweep=arms without sweep.arms. {expected}")
    combinations = combine(overrides)
    jobs.run([[*combination, *arm] for arm in arms.values() for combination in combinations])


def halving(overrides: list[Override], jobs: Jobs, factor: int, rounds: int) -> None:
    """Run a grid by successive halving (Jamieson and Talwalkar, arXiv 1502.07943).

    Each round keeps the best 1 / `factor` of the configurations and trains them `factor`
    times as long; the last one trains to the end. A configuration's score is its mean over
    seeds. The schedule is that of the full run, and a resumed run equals one that was never
    stopped. Raises UserError: the runs differ in length, or do not count epochs alone.
    """
    remaining = combine(overrides)
    epochs, every = find_epochs(remaining, jobs)
    budgets = [*halving_budgets(epochs, every, factor, rounds), 0]
    for budget in budgets:
        label = f"{budget or epochs} of {epochs} epochs: "
        values = [job.value for job in jobs.run(remaining, budget, label)]
        remaining = select_best(remaining, values, factor if budget else len(remaining))
        if not remaining:
            return
    best = without_replicates(strip_sweep_overrides(remaining[0]))
    print(f"best: python train.py {shlex.join(best)}")


def find_epochs(combinations: list[list[str]], jobs: Jobs) -> tuple[int, int]:
    """Return the epochs of all runs, and the epochs between two validations.

    Raises UserError: the runs differ in these, or may end before.
    """
    length, *others = {jobs.plan(combination).length for combination in combinations}
    ends_early = length.max_steps > 0 or length.stop_after or length.early_stopping
    if others or ends_early:
        expected = "Expected one trainer.max_epochs, no trainer.max_steps, no stop_after, "
        raise UserError(
            f"sweep=halving ends runs after whole epochs itself. {expected}"
            "no callbacks=early_stopping"
        )
    return length.max_epochs, length.check_val_every_n_epoch


def halving_budgets(epochs: int, every: int, factor: int, rounds: int) -> list[int]:
    """Return the epochs after which the rounds but the last stop: multiples of `every`."""
    budgets = set()
    for n in range(1, rounds):
        budget = math.ceil(epochs / factor**n / every) * every
        if budget < epochs:
            budgets.add(budget)
    return sorted(budgets)


def select_best(
    combinations: list[list[str]], values: Sequence[float | None], factor: int
) -> list[list[str]]:
    """Return the best 1 / `factor` of the configurations, with all their replicates.

    Configurations are ranked by their mean value; those with a failed replicate are dropped.
    Of equal ones the first is better.
    """
    results: dict[tuple[str, ...], list[float]] = {}
    for combination, value in zip(combinations, values, strict=True):
        score = -math.inf if value is None else value
        results.setdefault(without_replicates(combination), []).append(score)
    means = {key: fmean(scores) for key, scores in results.items() if -math.inf not in scores}
    ranked = sorted(means, key=means.__getitem__, reverse=True)
    best = []
    for configuration in ranked[: math.ceil(len(results) / factor)]:
        best += [c for c in combinations if without_replicates(c) == configuration]
    return best


def without_replicates(overrides: Sequence[str]) -> tuple[str, ...]:
    """Return the overrides of a configuration, the same for all its seeds and folds."""
    return tuple(o for o in overrides if o.lstrip("+").split("=")[0] not in REPLICATES)


def optuna(
    overrides: list[Override],
    jobs: Jobs,
    trials: int,
    replicates: int,
    objectives: list[str],
    batch: int,
    seed: int,
) -> None:
    """Run trials proposed by Optuna's TPE, each with `replicates` seeds, and print the best.

    Nothing is stored: as long as results are the same, the same command proposes the same
    trials, and those that are done return at once.
    Raises UserError: a seed is searched for, a value or objective is wrong, Optuna is missing.
    """
    space = make_space(overrides, jobs.config)
    check_objectives(objectives)
    fixed = [str(o.input_line) for o in overrides if not o.is_sweep_override()]
    for point in probe_points(space):
        jobs.plan([*fixed, *point])
    study = create_study(objectives, seed)
    fixed = [o for o in strip_sweep_overrides(fixed) if split_key(o) != "seed"]
    seeds = range(jobs.config.seed, jobs.config.seed + replicates)
    for first in range(0, trials, batch):
        proposed = [study.ask(space) for _ in range(min(batch, trials - first))]
        label = f"trials {first + 1} to {first + len(proposed)} of {trials}: "
        run_trials(study, proposed, fixed, seeds, jobs, objectives, label)
    print_best_trials(study, objectives, replicates)


def check_objectives(objectives: Sequence[str]) -> None:
    if not objectives or not set(objectives) <= set(OBJECTIVES):
        allowed = ", ".join(OBJECTIVES)
        raise UserError(f"sweep.objectives={list(objectives)}; allowed: one or more of {allowed}")


def create_study(objectives: Sequence[str], seed: int) -> Any:
    """Return a study of Optuna that minimises `MINIMISED` and maximises all else."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directions: Any = ["minimize" if name in MINIMISED else "maximize" for name in objectives]
    sampler = optuna.samplers.TPESampler(seed=seed)
    return optuna.create_study(sampler=sampler, directions=directions)


def run_trials(
    study: Any,
    trials: Sequence[Any],
    fixed: Sequence[str],
    seeds: Sequence[int],
    jobs: Jobs,
    objectives: Sequence[str],
    label: str,
) -> None:
    """Run trials that were proposed together, with each seed, and report their results."""
    from optuna.trial import TrialState

    configurations = [[*fixed, *format_overrides(trial.params)] for trial in trials]
    combinations = []
    for configuration in configurations:
        combinations += [[*configuration, f"seed={seed}"] for seed in seeds]
    done = jobs.run(combinations, label=label)
    for i, trial in enumerate(trials):
        seed_override = f"seed={','.join(map(str, seeds))}"
        trial.set_user_attr("overrides", [*configurations[i], seed_override])
        replicates = done[i * len(seeds) : (i + 1) * len(seeds)]
        values = mean_results(replicates, objectives)
        study.tell(trial, values, None if values else TrialState.FAIL)


def print_best_trials(study: Any, objectives: Sequence[str], replicates: int) -> None:
    """Print each different configuration of the study's best trials once."""
    by_command = {
        shlex.join(trial.user_attrs["overrides"]): trial.values for trial in study.best_trials
    }
    flag = "-m " if replicates > 1 else ""
    for overrides, values in by_command.items():
        results = [f"{name} {value:.4f}" for name, value in zip(objectives, values, strict=True)]
        print(f"best: {', '.join(results)}: python train.py {flag}{overrides}")


def make_space(overrides: list[Override], config: DictConfig) -> dict[str, Any]:
    """Return Optuna's distribution of each swept key; `config` has the types of the keys.

    Raises UserError: there is nothing to search, a replicate is searched, Optuna is missing.
    """
    searched = {str(o.key_or_group): o for o in overrides if o.is_sweep_override()}
    replicates = [str(o.input_line) for key, o in searched.items() if key in REPLICATES]
    if replicates or not searched:
        problem = replicates[0] if replicates else "no values to choose from"
        expected = "Expected values of other keys, and sweep.replicates for seeds"
        raise UserError(f"sweep=optuna, {problem}. {expected}")
    for key, override in searched.items():
        check_interval(key, override, config)
    try:
        return {key: make_distribution(override) for key, override in searched.items()}
    except ImportError as error:
        raise UserError("sweep=optuna needs optuna: pip install 'tricklab[optuna]'") from error


def check_interval(key: str, override: Override, config: DictConfig) -> None:
    """Raise UserError for an interval of floats for a key that takes integers."""
    value = OmegaConf.select(config, key, throw_on_resolution_failure=False)
    interval = override.value()
    if type(value) is not int or not isinstance(interval, IntervalSweep):
        return
    if type(interval.start) is not int:
        typed = str(override.input_line)
        expected = typed.replace("interval(", "int(interval(", 1).replace(")", "))", 1)
        raise UserError(f"{typed}: {key} takes whole numbers; use {expected}")


def make_distribution(override: Override) -> Any:
    """Return Optuna's distribution of the values of an override.

    Raises UserError: an interval is empty, or a logarithmic one has 0 in it.
    """
    from optuna import distributions

    sweep: Any = override.value()
    if not isinstance(sweep, IntervalSweep):
        return distributions.CategoricalDistribution(list_values(override))
    kind: Any = distributions.FloatDistribution
    if isinstance(sweep.start, int) and isinstance(sweep.end, int):
        kind = distributions.IntDistribution
    try:
        return kind(sweep.start, sweep.end, log="log" in sweep.tags)
    except ValueError as error:
        raise UserError(f"{override.input_line}: {error}") from error


def probe_points(space: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield overrides that cover each choice and both ends of each interval of a space.

    They are checked before anything runs.
    """
    values = {}
    for key, distribution in space.items():
        choices = getattr(distribution, "choices", None)
        values[key] = choices or (distribution.low, distribution.high)
    for i in range(max(map(len, values.values()))):
        yield format_overrides({key: v[i % len(v)] for key, v in values.items()})


def mean_results(replicates: Sequence[Job], objectives: Sequence[str]) -> list[float] | None:
    """Return the mean of each objective over replicates; None if one of these has failed.

    Raises UserError: the runs have no such metric.
    """
    results = [job.result["metrics"] for job in replicates if job.value is not None]
    if len(results) < len(replicates):
        return None
    if missing := [name for name in objectives if name not in results[0]]:
        problem = "is missing in runs of an earlier version"
        if "top5" in missing[0]:
            problem = "is only computed for 20 or more classes"
        raise UserError(f"sweep.objectives={missing}: {missing[0]} {problem}")
    return [fmean(result[name] for result in results) for name in objectives]


def format_overrides(values: Mapping[str, Any]) -> list[str]:
    """Return KEY=VALUE for each value; floats with four significant digits."""
    overrides = []
    for key, value in values.items():
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        overrides.append(f"{key}={text}")
    return overrides
