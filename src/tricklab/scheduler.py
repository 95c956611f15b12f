"""Learning-rate schedules: pure functions of the step; `plateau` alone has a state.

A schedule says by what the first rate lr_0 is multiplied at step t of a decay that lasts T = `total` steps.
`@schedule` puts the warmup in front of it and turns durations into steps.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from tricklab.duration import Length, to_steps
from tricklab.errors import UserError

Curve = Callable[[int], float]
DURATIONS = ("every", "period", "timescale", "cooldown", "rise")  # of a decay: one step at least


class Multiplier:
    """By what lr_0 is multiplied at each step; `momentum(step)` where a schedule moves that too."""

    def __init__(self, share: Curve, momentum: Curve | None = None):
        self.share, self.momentum = share, momentum

    def __call__(self, step: int) -> float:
        return self.share(step)


def schedule(
    decay: Callable[..., float], momentum: Callable[..., float] | None = None
) -> Callable[..., Multiplier]:
    """Turn `decay(t, total, ...)` into `schedule(length, warmup=0, ...) -> multiplier`; `momentum` likewise.

    Warmup: step t of W has the share ramp((t + 1) / W) of what the decay begins with, so no step has rate 0 and the
    last of them has lr_0; a constant one has `warmup_share` instead. The decay runs over the T = steps - W that remain:
    its own durations count from the end of the warmup, and percentages are of T. Past the end it stays where it was.
    With `hold` each rate stays for so long from its first step on: with 1ep a schedule moves by epochs. Raises
    UserError for a duration that does not lie inside the run.
    """

    @functools.wraps(decay)
    def build(
        length: Length, warmup: float | str = 0, hold: float | str = 0, **options: Any
    ) -> Multiplier:
        w = _steps("warmup", warmup, length, 0, length.steps - 1)
        held = _steps("hold", hold, length, 0, length.steps) or 1
        shape, flat = options.pop("warmup_shape", "linear"), options.pop("warmup_share", 0.1)
        ramp = RAMPS.get(shape, lambda x: flat)
        rest = length._replace(steps=length.steps - w)
        for name in options.keys() & DURATIONS:
            options[name] = _steps(name, options[name], rest, 1, rest.steps)
        if options.get("milestones") == []:
            raise UserError(
                "scheduler.milestones=[] is empty; for a constant LR: scheduler=constant"
            )
        if "milestones" in options:
            last = max(rest.steps - 1, 1)
            options["milestones"] = [
                _steps("milestones", m, rest, 1, last) for m in options["milestones"]
            ]

        def after_warmup(step: int, curve: Callable[..., float]) -> float:
            return curve(min(max(step // held * held - w, 0), rest.steps), rest.steps, **options)

        def share(step: int) -> float:
            warm = step // held * held + 1
            return (ramp(warm / w) if warm <= w else 1.0) * after_warmup(step, decay)

        return Multiplier(
            share, functools.partial(after_warmup, curve=momentum) if momentum else None
        )

    return build


def _steps(option: str, duration: float | str, length: Length, least: int, most: int) -> int:
    steps = to_steps(duration, length, most)
    if not least <= steps <= most:
        raise UserError(
            f"scheduler.{option}={duration} is {steps} steps; allowed: {least} to {most}"
        )
    return steps


def _wave(x: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * x))


RAMPS = {"linear": lambda x: x, "cosine": lambda x: 1 - _wave(x)}
FALLS = {"linear": lambda x: 1 - x, "cosine": _wave, "1-sqrt": lambda x: 1 - math.sqrt(x)}


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
    now = min(t, total - 1)  # the very end is that of the last wave, not the start of another
    start, length = (now // period * period if mult == 1 else 0), period
    while start + length <= now:
        start, length = start + length, length * mult
    return floor + (1 - floor) * _wave((t - start) / length)


@schedule
def inverse_sqrt(t: int, total: int, timescale: int) -> float:
    """1 / sqrt(1 + t / timescale). Attention Is All You Need, arXiv 1706.03762, whose warmup is the timescale."""
    return (1 + t / timescale) ** -0.5


@schedule
def wsd(t: int, total: int, cooldown: int, shape: str = "linear", floor: float = 0.0) -> float:
    """Stay at lr_0, then fall to `floor` over `cooldown`: linear, cosine or 1-sqrt. arXiv 2404.06395, 2405.18392."""
    return floor + (1 - floor) * FALLS[shape](max(0.0, 1 - (total - t) / cooldown))


def _hill(t: int, total: int, rise: int) -> float:
    """Half a cosine wave from 0 at the first step to 1 at step rise - 1, another one to 0 at the last step."""
    if t < rise - 1:
        return 1 - _wave(t / (rise - 1))
    return _wave(min((t - rise + 1) / max(total - rise, 1), 1.0))


def _cycle_momentum(
    t: int, total: int, rise: int, momentum_low: float, momentum_high: float, **_: float
) -> float:
    return momentum_high - (momentum_high - momentum_low) * _hill(t, total, rise)


@functools.partial(schedule, momentum=_cycle_momentum)
def one_cycle(
    t: int, total: int, rise: int, start: float = 0.04, floor: float = 4e-6, **of_momentum: float
) -> float:
    """From `start` to lr_0 over `rise`, then to `floor`; momentum the other way. arXiv 1708.07120, 1803.09820."""
    low = start if t < rise - 1 else floor
    return low + (1 - low) * _hill(t, total, rise)


class Plateau(Multiplier):
    """Multiply by `gamma` when val/loss has not fallen for more than `patience` evaluations; not below `floor`."""

    def __init__(
        self,
        length: Length,
        gamma: float,
        patience: int,
        threshold: float,
        floor: float,
        **warmup: Any,
    ):
        share = constant(length, **warmup).share
        super().__init__(lambda step: share(step) * self.state["factor"])
        self.gamma, self.patience, self.threshold, self.floor = gamma, patience, threshold, floor
        self.state: dict[str, float] = {
            "factor": 1.0,
            "best": math.inf,
            "bad": 0,
        }  # kept in checkpoints

    def observe(self, loss: float) -> None:
        """Take note of an evaluation; only a loss below (1 - threshold) of the best one is lower."""
        self.state["bad"] += 1
        if loss < self.state["best"] * (1 - self.threshold):
            self.state |= {"best": loss, "bad": 0}
        if self.state["bad"] > self.patience:
            self.state |= {"factor": max(self.state["factor"] * self.gamma, self.floor), "bad": 0}


plateau = Plateau  # the word on the command line
