"""Learning-rate schedules: pure functions of the step, without state.

A schedule says by what the first rate lr_0 is multiplied at step t of a decay that lasts T = `total` steps.
`@schedule` puts the warmup in front of it and turns durations into steps; the result is what `LambdaLR` takes.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from tricklab.duration import Length, to_steps
from tricklab.errors import UserError, nearest

Multiplier = Callable[[int], float]
Duration = int | float | str
ONE_OR_MORE = {"every", "period", "timescale", "cooldown"}  # durations of at least one step


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
        for name in ONE_OR_MORE & options.keys():
            options[name] = _inside(name, options[name], rest, least=1)
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
def exponential(t: int, total: int, every: int, gamma: float) -> float:
    """Fall by the factor `gamma` in each `every`, a little at each step."""
    return gamma ** (t / every)


@schedule
def cosine(t: int, total: int, floor: float = 0.0) -> float:
    """1/2 (1 + cos(pi t / T)), down to `floor`, a share of lr_0. Bag of Tricks, arXiv 1812.01187."""
    return floor + (1 - floor) * _wave(t / total)


@schedule
def linear(t: int, total: int, floor: float = 0.0) -> float:
    """1 - t / T, down to `floor`, a share of lr_0."""
    return floor + (1 - floor) * (1 - t / total)


@schedule
def polynomial(t: int, total: int, power: float, floor: float = 0.0) -> float:
    """(1 - t / T)^power, down to `floor`, a share of lr_0."""
    return floor + (1 - floor) * (1 - t / total) ** power


@schedule
def cosine_restarts(t: int, total: int, period: int, mult: int = 1, floor: float = 0.0) -> float:
    """Half a cosine wave again and again, each `mult` times as long as the one before. SGDR, arXiv 1608.03983."""
    start, length = 0, period
    while start + length <= min(t, total - 1):  # the very end is that of the last wave, not the start of another
        start, length = start + length, length * mult
    return floor + (1 - floor) * _wave((t - start) / length)


@schedule
def inverse_sqrt(t: int, total: int, timescale: int) -> float:
    """1 / sqrt(1 + t / timescale). Attention Is All You Need, arXiv 1706.03762, whose warmup is the timescale."""
    return (1 + t / timescale) ** -0.5


@schedule
def wsd(t: int, total: int, cooldown: int, shape: str = "linear", floor: float = 0.0) -> float:
    """Stay at lr_0, then fall to `floor` over `cooldown`: linear, cosine or 1-sqrt. arXiv 2404.06395, 2405.18392."""
    x = max(0.0, 1 - (total - t) / cooldown)
    falls = {"linear": 1 - x, "cosine": _wave(x), "1-sqrt": 1 - math.sqrt(x)}
    if shape not in falls:
        raise UserError(f"scheduler.shape={shape}; allowed: {', '.join(falls)}.{nearest(shape, falls)}")
    return floor + (1 - floor) * falls[shape]


def _wave(x: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * x))
