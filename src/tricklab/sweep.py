"""How a sweep chooses its runs: all of a grid, the best of a grid in rounds, or trials that Optuna proposes."""

import math
import shlex
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override

from tricklab.cli import combine, unknown
from tricklab.errors import UserError
from tricklab.jobs import Job, Jobs, of_job
from tricklab.process import slots


def grid(words: Sequence[Override], jobs: Jobs) -> None:
    """Run every combination of the values of `words`."""
    jobs.run(combine(words))


def halving(words: Sequence[Override], jobs: Jobs, factor: int, rounds: int) -> None:
    """Run a grid for a part of the epochs, one of `factor` configurations for `factor` times as many, up to all.

    A configuration is judged by its mean over the seeds, the schedule is that of the full run, and what goes on is the
    same run as one that was never stopped. (Successive halving, Jamieson and Talwalkar, arXiv 1502.07943.)

    Raises:
        UserError: the length of a run is not a number of epochs, or is swept over.
    """
    trainer = jobs.config.trainer
    if trainer.max_steps > 0 or any(word.is_sweep_override() and "trainer.max" in word.key_or_group for word in words):
        raise UserError("sweep=halving counts whole epochs; allowed: one trainer.max_epochs, no trainer.max_steps")
    every = trainer.check_val_every_n_epoch
    left = combine(words)
    for n in range(rounds - 1, -1, -1):
        until = math.ceil(trainer.max_epochs / factor**n / every) * every if n else 0
        done = jobs.run(left, until, f"round {rounds - n} of {rounds}, {until or 'all'} epochs: ")
        left = best(left, [job.value for job in done], factor if n else len(left))
    print(f"best: python train.py {shlex.join(without_seed(of_job(left[0])))}")


def best(combinations: list[list[str]], values: Sequence[float | None], factor: int) -> list[list[str]]:
    """Return one of `factor` configurations, with all their seeds: those with the highest mean."""
    cells: dict[tuple[str, ...], list[float]] = {}
    for words, value in zip(combinations, values, strict=True):
        cells.setdefault(without_seed(words), []).append(-math.inf if value is None else value)
    ranked = sorted(cells, key=lambda words: -math.fsum(cells[words]) / len(cells[words]))  # a tie: the first
    kept = ranked[: math.ceil(len(ranked) / factor)]
    return [words for words in combinations if without_seed(words) in kept]


def without_seed(words: Sequence[str]) -> tuple[str, ...]:
    return tuple(word for word in words if not word.startswith("seed="))


def optuna(
    words: Sequence[Override],
    jobs: Jobs,
    trials: int,
    replicates: int,
    objectives: Sequence[str],
    batch: int | None,
    seed: int,
) -> None:
    """Run trials that Optuna's TPE proposes, each with `replicates` seeds, and say which was best.

    Nothing is stored: the same command proposes the same trials, and those that are done return at once.

    Raises:
        UserError: a seed is searched for, or Optuna is missing.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError("sweep=optuna needs optuna: pip install 'tricklab[optuna]'") from error
    searched = {str(word.key_or_group): word for word in words if word.is_sweep_override()}
    if "seed" in searched or not searched:
        said = searched["seed"].input_line if searched else "no values to choose from"
        raise UserError(f"sweep=optuna, {said}; allowed: values of other keys, and sweep.replicates for seeds")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directions: Any = ["maximize" if "acc" in name else "minimize" for name in objectives]
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed), directions=directions)
    space = {key: distribution(word) for key, word in searched.items()}
    fixed = of_job([str(word.input_line) for word in words if not word.is_sweep_override()])
    seeds = range(jobs.config.seed, jobs.config.seed + replicates)
    for first in range(0, trials, batch or slots(jobs.config)):
        asked = [study.ask(space) for _ in range(min(batch or slots(jobs.config), trials - first))]
        words_of = [[*without_seed(fixed), *(f"{k}={short(v)}" for k, v in trial.params.items())] for trial in asked]
        what = f"trials {first + 1} to {first + len(asked)} of {trials}: "
        done = jobs.run([[*words, f"seed={n}"] for words in words_of for n in seeds], what=what)
        for i, trial in enumerate(asked):
            values = means(done[i * replicates : (i + 1) * replicates], objectives)
            trial.set_user_attr("words", words_of[i])
            study.tell(trial, values, None if values else optuna.trial.TrialState.FAIL)
    for found in study.best_trials:
        said = ", ".join(f"{name} {value:.4f}" for name, value in zip(objectives, found.values, strict=True))
        print(f"best: {said}: python train.py {shlex.join(found.user_attrs['words'])}")


def means(replicates: Sequence[Job], objectives: Sequence[str]) -> list[float] | None:
    """Return the means of results over replicates; None if one of these has failed."""
    results = [job.result["metrics"] for job in replicates if job.value is not None]
    if len(results) < len(replicates):
        return None
    for name in objectives:
        if name not in results[0]:
            raise UserError(unknown(f"sweep.objectives={name}", name, results[0]))
    return [math.fsum(result[name] for result in results) / len(results) for name in objectives]


def short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def distribution(word: Override) -> Any:
    """Return what Optuna draws the values of a word from."""
    from optuna import distributions as d

    sweep: Any = word.value()
    if not isinstance(sweep, IntervalSweep):
        return d.CategoricalDistribution([str(value) for value in word.sweep_string_iterator()])
    of: Any = d.IntDistribution if isinstance(sweep.start, int) and isinstance(sweep.end, int) else d.FloatDistribution
    return of(sweep.start, sweep.end, log="log" in sweep.tags)
