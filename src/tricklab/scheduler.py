"""Learning-rate schedules: pure functions of the step, without state.

A schedule says by what the first rate lr_0 is multiplied at step t of a decay that lasts T = `total` steps.
`@schedule` puts the warmup in front of it and turns durations into steps; the result is what `LambdaLR` takes.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from tricklab.duration import Length, to_steps
from tricklab.errors import UserError

Multiplier = Callable[[int], float]
Duration = int | float | str


def schedule(decay: Callable[..., float]) -> Callable[..., Multiplier]:
    """Turn `decay(t, total, ...)` into `schedule(length, warmup=0, ...) -> multiplier(step)`.

    Linear warmup: step t of W has (t + 1) / W, so no step has rate 0 and the last of them has lr_0. The decay
    runs over the T = steps - W that remain: its own durations count from the end of the warmup, and percentages
    are of T. Past the end it stays where it was.

    Raises:
        UserError: a warmup or a milestone that does not lie inside the run.
    """

    @functools.wraps(decay)
    def build(length: Length, warmup: Duration = 0, **options: Any) -> Multiplier:
        w = _inside("warmup", warmup, length)
        rest = Length(length.steps - w, length.epoch)
        if "every" in options:
            options["every"] = _inside("every", options["every"], rest, least=1)
        if "milestones" in options:
            options["milestones"] = [_inside("milestones", m, rest, least=1) for m in options["milestones"]]

        def multiplier(step: int) -> float:
            return (step + 1) / w if step < w else decay(min(step - w, rest.steps), rest.steps, **options)

        return multiplier

    return build


def _inside(option: str, duration: Duration, length: Length, least: int = 0) -> int:
    steps = to_steps(duration, length)
    if not least <= steps <= max(length.steps - 1, 0):
        allowed = f"{least} to {length.steps - 1}"
        raise UserError(f"scheduler.{option}={duration} is {steps} steps; allowed: {allowed}")
    return steps


@schedule
def constant(t: int, total: int) -> float:
    """Stay at lr_0."""
    return 1.0


@schedule
def step(t: int, total: int, every: int, gamma: float) -> float:
    """Multiply by `gamma` after each `every`."""
    return gamma ** (t // every)


@schedule
def multistep(t: int, total: int, milestones: Sequence[int], gamma: float) -> float:
    """Multiply by `gamma` at each of the `milestones`."""
    return gamma ** sum(t >= milestone for milestone in milestones)


@schedule
def cosine(t: int, total: int, floor: float = 0.0) -> float:
    """1/2 (1 + cos(pi t / T)), down to `floor`, a share of lr_0. Bag of Tricks, arXiv 1812.01187."""
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * t / total))


@schedule
def linear(t: int, total: int, floor: float = 0.0) -> float:
    """1 - t / T, down to `floor`, a share of lr_0."""
    return floor + (1 - floor) * (1 - t / total)
