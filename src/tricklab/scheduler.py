"""Learning-rate schedules: pure functions of the step; `plateau` alone has a state.

A schedule returns the multiplier of the base LR lr_0 at step t of a decay over T = `total` steps.
`@schedule` puts the warmup in front and converts durations, the arguments of type `Steps`.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from tricklab.duration import Length, to_steps
from tricklab.errors import UserError
from tricklab.option import as_option, keys_after

Curve = Callable[[int], float]
Steps = Annotated[int, "duration"]
# 5ep, 300it or 10% in a config, steps in the function
IN_CONFIG: dict[Any, Any] = {Steps: float | str, Sequence[Steps]: Sequence[float | str]}


class Multiplier:
    """The multiplier of lr_0 at each step, and `momentum(step)` if a schedule moves it as well."""

    def __init__(self, factor: Curve, momentum: Curve | None = None):
        self.factor = factor
        self.momentum = momentum

    def __call__(self, step: int) -> float:
        return self.factor(step)


def _half_cosine(x: float) -> float:
    """From 1 at x = 0 to 0 at x = 1."""
    return 0.5 * (1 + math.cos(math.pi * x))


WARMUP_SHAPES = {"linear": lambda x: x, "cosine": lambda x: 1 - _half_cosine(x)}
DECAY_SHAPES = {
    "linear": lambda x: 1 - x,
    "cosine": _half_cosine,
    "1-sqrt": lambda x: 1 - math.sqrt(x),
}


def schedule(
    decay: Callable[..., float], momentum: Callable[..., float] | None = None
) -> Callable[..., Multiplier]:
    """Turn `decay(t, total, ...)` into `option(length, warmup=0, ...) -> Multiplier`.

    Step t of a warmup of W has `warmup_shape` at (t + 1) / W, times the start of the decay, so no
    step has LR 0 and the last has lr_0. With the shape "constant" it is `warmup_share` instead.
    The decay runs over the remaining T = steps - W: its durations count from the end of the
    warmup, percentages are of T. Past the end the multiplier stays as it is. With `update_every`
    the LR is updated once in so many steps. Raises UserError: a duration outside of the run.
    """
    keys = {key.name: key for fn in (decay, momentum) if fn for key in keys_after(fn, 2)}
    durations = {name for name, key in keys.items() if key.annotation in IN_CONFIG}
    for name in durations:
        keys[name] = keys[name].replace(annotation=IN_CONFIG[keys[name].annotation])

    def option(
        length: Length,
        *,
        warmup: float | str = 0,
        warmup_shape: str = "linear",
        warmup_share: float = 0.1,
        update_every: float | str = 0,
        **options: Any,
    ) -> Multiplier:
        phases = find_phases(length, warmup, warmup_shape, warmup_share, update_every)
        values = convert_durations(options, durations, phases.decay)
        factor = phases.with_warmup(functools.partial(decay, **values))
        moved = phases.after_warmup(functools.partial(momentum, **values)) if momentum else None
        return Multiplier(factor, moved)

    return as_option(option, decay, keys.values())


class Phases(NamedTuple):
    """A warmup, then a decay; the LR is updated every `interval` steps."""

    warmup: int  # steps
    decay: Length
    interval: int  # steps
    ramp: Callable[[float], float]  # the shape of the warmup

    def after_warmup(self, curve: Callable[[int, int], float]) -> Curve:
        """Return `curve(t, total)` by the step of the run: t = 0 until the end of the warmup."""

        def at_step(step: int) -> float:
            t = step // self.interval * self.interval - self.warmup
            return curve(min(max(t, 0), self.decay.steps), self.decay.steps)

        return at_step

    def with_warmup(self, decay: Callable[[int, int], float]) -> Curve:
        """Return the multiplier of LR by the step of the run."""
        after_warmup = self.after_warmup(decay)

        def factor(step: int) -> float:
            warm = step // self.interval * self.interval + 1
            scale = self.ramp(warm / self.warmup) if warm <= self.warmup else 1.0
            return scale * after_warmup(step)

        return factor


def find_phases(
    length: Length, warmup: float | str, shape: str, fraction: float, update_every: float | str
) -> Phases:
    """Divide a run of `length`. Raises UserError: a duration that is longer."""
    steps = find_steps("warmup", warmup, length, 0, length.steps - 1)
    interval = find_steps("update_every", update_every, length, 0, length.steps) or 1
    ramp = WARMUP_SHAPES.get(shape, lambda x: fraction)
    return Phases(steps, length._replace(steps=length.steps - steps), interval, ramp)


def convert_durations(
    options: Mapping[str, Any], durations: Iterable[str], decay: Length
) -> dict[str, Any]:
    """Convert durations, single ones or lists, to steps of the decay: at least one, at most all."""
    converted = dict(options)
    for name in options.keys() & set(durations):
        value = options[name]
        if isinstance(value, str | int | float):
            converted[name] = find_steps(name, value, decay, 1, decay.steps)
            continue
        if not value:
            hint = "for a constant LR: scheduler=constant"
            raise UserError(f"scheduler.{name}=[] is empty; {hint}")
        last = max(decay.steps - 1, 1)
        converted[name] = [find_steps(name, part, decay, 1, last) for part in value]
    return converted


def find_steps(option: str, duration: float | str, length: Length, least: int, most: int) -> int:
    """Return the steps of a duration. Raises UserError: it is not within [least, most]."""
    steps = to_steps(duration, length, most)
    if not least <= steps <= most:
        message = f"scheduler.{option}={duration} is {steps} steps"
        raise UserError(f"{message}; allowed: {least} to {most}")
    return steps


@schedule
def constant(t: int, total: int) -> float:
    """1: a constant LR.

    >>> [constant(Length(4, 1))(t) for t in range(4)]
    [1.0, 1.0, 1.0, 1.0]
    """
    return 1.0


@schedule
def step(t: int, total: int, every: Steps, gamma: float) -> float:
    """Multiply by `gamma` after each `every`: gamma ** floor(t / every).

    >>> [step(Length(4, 1), every="2it", gamma=0.5)(t) for t in range(4)]
    [1.0, 1.0, 0.5, 0.5]
    """
    return gamma ** (t // every)


@schedule
def multistep(t: int, total: int, milestones: Sequence[Steps], gamma: float) -> float:
    """Multiply by `gamma` at each of the `milestones`.

    >>> [multistep(Length(4, 1), milestones=["1it", "3it"], gamma=0.5)(t) for t in range(4)]
    [1.0, 0.5, 0.5, 0.25]
    """
    return gamma ** sum(t >= milestone for milestone in milestones)


@schedule
def exponential(t: int, total: int, every: Steps, gamma: float) -> float:
    """Decay by `gamma` per `every`, smoothly: gamma ** (t / every).

    >>> [round(exponential(Length(4, 1), every="2it", gamma=0.5)(t), 3) for t in range(4)]
    [1.0, 0.707, 0.5, 0.354]
    """
    return gamma ** (t / every)


@schedule
def cosine(t: int, total: int, floor: float = 0.0) -> float:
    """1/2 (1 + cos(pi t / T)), scaled to end at `floor`. Bag of Tricks, arXiv 1812.01187.

    >>> [round(cosine(Length(4, 1))(t), 3) for t in range(4)]
    [1.0, 0.854, 0.5, 0.146]
    """
    return floor + (1 - floor) * _half_cosine(t / total)


@schedule
def linear(t: int, total: int, floor: float = 0.0) -> float:
    """1 - t / T, scaled to end at `floor`.

    >>> [linear(Length(4, 1))(t) for t in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    """
    return floor + (1 - floor) * (1 - t / total)


@schedule
def polynomial(t: int, total: int, power: float, floor: float = 0.0) -> float:
    """(1 - t / T) ** power, scaled to end at `floor`.

    >>> [polynomial(Length(4, 1), power=2)(t) for t in range(4)]
    [1.0, 0.5625, 0.25, 0.0625]
    """
    return floor + (1 - floor) * (1 - t / total) ** power


@schedule
def cosine_restarts(
    t: int, total: int, period: Steps, period_mult: int = 1, floor: float = 0.0
) -> float:
    """Cosine decays, each cycle `period_mult` times as long as the last. SGDR, arXiv 1608.03983.

    >>> [cosine_restarts(Length(4, 1), period="2it")(t) for t in range(4)]
    [1.0, 0.5, 1.0, 0.5]
    """
    within = min(t, total - 1)  # the end of the run is that of the last cycle, not a restart
    start = within // period * period if period_mult == 1 else 0
    length = period
    while start + length <= within:
        start += length
        length *= period_mult
    return floor + (1 - floor) * _half_cosine((t - start) / length)


@schedule
def inverse_sqrt(t: int, total: int, timescale: Steps) -> float:
    """1 / sqrt(1 + t / timescale). arXiv 1706.03762, where the timescale is the warmup.

    >>> [round(inverse_sqrt(Length(4, 1), timescale="1it")(t), 3) for t in range(4)]
    [1.0, 0.707, 0.577, 0.5]
    """
    return (1 + t / timescale) ** -0.5


@schedule
def wsd(t: int, total: int, cooldown: Steps, shape: str = "linear", floor: float = 0.0) -> float:
    """Warmup-stable-decay: 1, then down to `floor` over `cooldown`. arXiv 2404.06395, 2405.18392.

    >>> [wsd(Length(4, 1), cooldown="2it")(t) for t in range(4)]
    [1.0, 1.0, 1.0, 0.5]
    """
    progress = max(0.0, 1 - (total - t) / cooldown)
    return floor + (1 - floor) * DECAY_SHAPES[shape](progress)


def _one_cycle(t: int, total: int, rise: int) -> float:
    """Half a cosine from 0 at t = 0 up to 1 at t = rise - 1, then down to 0 at the last step."""
    if t < rise - 1:
        return 1 - _half_cosine(t / (rise - 1))
    return _half_cosine(min((t - rise + 1) / max(total - rise, 1), 1.0))


def _cycle_momentum(
    t: int, total: int, rise: Steps, momentum_low: float, momentum_high: float, **_: float
) -> float:
    return momentum_high - (momentum_high - momentum_low) * _one_cycle(t, total, rise)


@functools.partial(schedule, momentum=_cycle_momentum)
def one_cycle(
    t: int, total: int, rise: Steps, start: float = 0.04, floor: float = 4e-6, **_: float
) -> float:
    """From `start` up to 1 over `rise`, then down to `floor`. arXiv 1708.07120, 1803.09820.

    The momentum moves the other way, between `momentum_low` and `momentum_high`.

    >>> [one_cycle(Length(4, 1), rise="2it", floor=0.0)(t) for t in range(4)]
    [0.04, 1.0, 0.5, 0.0]
    """
    low = start if t < rise - 1 else floor
    return low + (1 - low) * _one_cycle(t, total, rise)


class Plateau(Multiplier):
    """Multiply by `gamma` when val/loss has not improved for more than `patience` evaluations.

    The multiplier is at least `floor`. An improvement is a loss below (1 - threshold) of the best.

    >>> lr = Plateau(Length(4, 1), gamma=0.5, patience=0, threshold=0.0, floor=0.0)
    >>> [(lr.step(val_loss), lr(0))[1] for val_loss in (1.0, 0.9, 0.9, 0.8)]
    [1.0, 1.0, 0.5, 0.5]
    """

    def __init__(
        self,
        length: Length,
        gamma: float,
        patience: int,
        threshold: float,
        floor: float,
        **warmup: Any,
    ):
        warmup_factor = constant(length, **warmup).factor
        super().__init__(lambda step: warmup_factor(step) * self.state["factor"])
        self.gamma = gamma
        self.patience = patience
        self.threshold = threshold
        self.floor = floor
        # saved in checkpoints
        self.state: dict[str, float] = {"factor": 1.0, "best": math.inf, "bad": 0}

    def step(self, val_loss: float) -> None:
        """Update the multiplier after an evaluation."""
        self.state["bad"] += 1
        if val_loss < self.state["best"] * (1 - self.threshold):
            self.state |= {"best": val_loss, "bad": 0}
        if self.state["bad"] > self.patience:
            self.state |= {"factor": max(self.state["factor"] * self.gamma, self.floor), "bad": 0}


plateau = Plateau  # the name of its option
