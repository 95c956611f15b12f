"""Every option of conf/scheduler, found by globbing, and the oracles of those that torch or timm has too."""

import math
import random

import numpy as np
import pytest
import torch
from conftest import CONF, configure
from omegaconf import OmegaConf
from pytorch_lightning import LightningModule, Trainer
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler, PolyLRScheduler, StepLRScheduler
from torch.optim import lr_scheduler as oracle

from tricklab.cli.config import options
from tricklab.duration import Length, run_length
from tricklab.errors import UserError
from tricklab.run.instantiate import build
from tricklab.run.plan import make_plan

NAMES = options(CONF / "scheduler")
LENGTHS = [Length(1, 1), Length(2, 1), Length(7, 3), Length(100, 10), Length(12_345, 823)]
EXACT = {"rel": 0, "abs": 1e-12}


def multiplier(*overrides, length):
    """Build what `overrides` ask for; read without Hydra, which takes 50 ms."""
    (name, *values) = (override.removeprefix("scheduler").lstrip("=.") for override in overrides)
    files = [OmegaConf.load(CONF / "scheduler" / f"{file}.yaml") for file in ("_options", name)]
    config = OmegaConf.merge(*files, OmegaConf.from_dotlist(values))
    del config["defaults"]
    return build(config)(length)


def optimizer(momentum=0.95):
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=momentum)


@pytest.mark.parametrize("length", LENGTHS, ids=lambda length: str(length.steps))
@pytest.mark.parametrize("name", NAMES)
def test_rates_are_shares_of_the_first(name, length):
    rate = multiplier(f"scheduler={name}", length=length)
    rates = [rate(t) for t in range(length.steps)]
    assert all(0 < r <= 1 for r in rates)
    beyond = rate(length.steps)
    assert 0 <= beyond <= rates[-1]
    assert [rate(length.steps + n) for n in (1, 2, 1000)] == [beyond] * 3  # it never rises again
    if name != "one_cycle":
        assert rates[0] == 1


RAMPS = {
    "linear": lambda o, w: oracle.LinearLR(o, 1 / w, 1.0, max(w - 1, 1)),
    "constant": lambda o, w: oracle.ConstantLR(o, 0.1, w),
    "cosine": lambda o, w: oracle.CosineAnnealingLR(o, w),  # from 1 to 0, and read from its end
}


@pytest.mark.parametrize("shape", RAMPS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("w", [1, 2, 10, 1000])
def test_warmup_lies_in_front_and_inside(name, shape, w):
    """Step t of W has the ramp at (t + 1) / W, of what the decay begins with."""
    given = (f"scheduler={name}", f"scheduler.warmup_shape={shape}", f"scheduler.warmup={w}it")
    plain = multiplier(f"scheduler={name}", length=Length(90, 9))
    warm = multiplier(*given, length=Length(w + 90, 9))
    ramp = torch_rates(lambda o: RAMPS[shape](o, w), w + 1)[:w]
    if shape == "cosine":
        ramp = [1 - r for r in torch_rates(lambda o: RAMPS[shape](o, w), w + 1)[1:]]
    assert [warm(t) for t in range(w)] == pytest.approx([r * plain(0) for r in ramp], **EXACT)
    assert [warm(w + t) for t in range(90)] == [plain(t) for t in range(90)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("warmup", ["100it", "10ep", "100%", "11ep"])
def test_warmup_as_long_as_the_run_is_refused(name, warmup):
    with pytest.raises(UserError, match=f"scheduler.warmup={warmup}"):
        multiplier(f"scheduler={name}", f"scheduler.warmup={warmup}", length=Length(100, 10))


def torch_rates(make, steps):
    """Read torch's closed forms where it has them: its recursions are off by more than 1e-12 after 12,345 steps."""
    made = optimizer()
    scheduler, rates = make(made), []
    for t in range(steps):
        if hasattr(scheduler, "_get_closed_form_lr"):
            scheduler.last_epoch = t
            rates.append(scheduler._get_closed_form_lr()[0])
        else:
            rates.append(made.param_groups[0]["lr"])
            made.step()
            scheduler.step()
    return rates


OF_TORCH = [
    (["constant"], lambda o, n: oracle.ConstantLR(o, factor=1.0)),
    (["cosine"], lambda o, n: oracle.CosineAnnealingLR(o, n.steps)),
    (
        ["cosine", "scheduler.floor=0.1"],
        lambda o, n: oracle.CosineAnnealingLR(o, n.steps, eta_min=0.1),
    ),
    (["linear"], lambda o, n: oracle.LinearLR(o, 1.0, 0.0, n.steps)),
    (["linear", "scheduler.floor=0.1"], lambda o, n: oracle.LinearLR(o, 1.0, 0.1, n.steps)),
    (["step", "scheduler.every=1ep"], lambda o, n: oracle.StepLR(o, n.epoch, 0.1)),
    (["step", "scheduler.every=1it", "scheduler.gamma=0.5"], lambda o, n: oracle.StepLR(o, 1, 0.5)),
    (["multistep", "scheduler.milestones=[1it]"], lambda o, n: oracle.MultiStepLR(o, [1], 0.1)),
    (
        ["multistep", "scheduler.milestones=[1it]", "scheduler.gamma=0.3"],
        lambda o, n: oracle.MultiStepLR(o, [1], 0.3),
    ),
    (
        ["exponential", "scheduler.every=1ep", "scheduler.gamma=0.5"],
        lambda o, n: oracle.ExponentialLR(o, 0.5 ** (1 / n.epoch)),
    ),
    (
        ["exponential", "scheduler.every=1it", "scheduler.gamma=0.99"],
        lambda o, n: oracle.ExponentialLR(o, 0.99),
    ),
    (["polynomial", "scheduler.power=3.0"], lambda o, n: oracle.PolynomialLR(o, n.steps, 3.0)),
    (
        ["cosine_restarts", "scheduler.period=1ep"],
        lambda o, n: oracle.CosineAnnealingWarmRestarts(o, n.epoch),
    ),
    (
        ["cosine_restarts", "scheduler.period=1it", "scheduler.mult=2", "scheduler.floor=0.1"],
        lambda o, n: oracle.CosineAnnealingWarmRestarts(o, 1, 2, 0.1),
    ),
    (
        ["inverse_sqrt", "scheduler.timescale=1it"],
        lambda o, n: oracle.LambdaLR(o, lambda t: (1 + t) ** -0.5),
    ),
    (
        ["inverse_sqrt", "scheduler.timescale=1ep"],
        lambda o, n: oracle.LambdaLR(o, lambda t: (n.epoch / (n.epoch + t)) ** 0.5),
    ),
]


@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize("length", LENGTHS, ids=lambda length: str(length.steps))
@pytest.mark.parametrize(
    ("overrides", "make"), OF_TORCH, ids=lambda x: x[0] if isinstance(x, list) else ""
)
def test_equals_torch(overrides, make, length, warmup):
    whole = Length(length.steps + warmup, length.epoch)
    rate = multiplier(
        f"scheduler={overrides[0]}", f"scheduler.warmup={warmup}it", *overrides[1:], length=whole
    )
    ramp = torch_rates(lambda o: RAMPS["linear"](o, warmup), warmup) if warmup else []
    theirs = ramp + torch_rates(lambda o: make(o, length), length.steps)
    assert np.allclose([rate(t) for t in range(whole.steps)], theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [20, 100, 12_345])
@pytest.mark.parametrize("rise", [0.3, 0.5])
@pytest.mark.parametrize("warmup", [0, 5])
@pytest.mark.parametrize(
    ("start", "floor", "low", "high"), [(1 / 25, 4e-6, 0.85, 0.95), (0.1, 0.001, 0.7, 0.8)]
)
def test_one_cycle_equals_torch_in_rate_and_momentum(steps, rise, warmup, start, floor, low, high):
    made, options = (
        optimizer(),
        {"base_momentum": low, "max_momentum": high, "div_factor": 1 / start},
    )
    options |= {"final_div_factor": start / floor, "pct_start": round(rise * steps) / steps}
    theirs = oracle.OneCycleLR(made, 1.0, total_steps=steps, **options)
    given = [
        f"scheduler.rise={round(rise * steps)}it",
        f"scheduler.warmup={warmup}it",
        f"scheduler.start={start}",
    ]
    given += [
        f"scheduler.floor={floor}",
        f"scheduler.momentum_low={low}",
        f"scheduler.momentum_high={high}",
    ]
    ours = multiplier("scheduler=one_cycle", *given, length=Length(steps + warmup, 10))
    assert [ours.momentum(t) for t in range(warmup)] == [high] * warmup
    expected = []
    for t in range(steps):
        expected.append([made.param_groups[0][name] for name in ("lr", "momentum")])
        made.step()
        if t < steps - 1:
            theirs.step()
    found = [[ours(t), ours.momentum(t)] for t in range(warmup, warmup + steps)]
    assert np.allclose(found, expected, rtol=0, atol=1e-12)


def test_plateau_equals_torch():
    made, draw = optimizer(), random.Random(0)
    theirs = oracle.ReduceLROnPlateau(made, factor=0.5, patience=2, threshold=0.05, min_lr=0.01)
    given = (
        "scheduler.gamma=0.5",
        "scheduler.patience=2",
        "scheduler.threshold=0.05",
        "scheduler.floor=0.01",
    )
    ours = multiplier("scheduler=plateau", *given, length=Length(1000, 10))
    rates = set()
    for n in range(100):
        loss = (
            draw.uniform(0.9, 1.1) * 0.97**n if n < 30 else draw.choice([0.5, math.nan, math.inf])
        )
        theirs.step(loss)
        ours.observe(loss)
        rates.add(made.param_groups[0]["lr"])
        assert ours(0) == ours(999) == made.param_groups[0]["lr"]
    assert {1.0, 0.5, 0.01} <= rates


def test_timm_agrees():
    """Timm's warmup begins with rate 0 at step 0 and ends one step later: ours is its next step."""
    n, w = 100, 10

    def theirs(scheduler, t):
        return scheduler._get_lr(t + 1 if t < w else t)[0]

    common = {"warmup_t": w, "warmup_lr_init": 0.0, "warmup_prefix": True, "t_in_epochs": False}
    pairs = {
        ("cosine", "scheduler.floor=0.2"): CosineLRScheduler(
            optimizer(), n - w, lr_min=0.2, **common
        ),
        ("polynomial", "scheduler.power=0.5"): PolyLRScheduler(
            optimizer(), n - w, power=0.5, **common
        ),
        ("polynomial", "scheduler.floor=0.3"): PolyLRScheduler(
            optimizer(), n - w, power=2, lr_min=0.3, **common
        ),
        ("step", "scheduler.every=7it"): StepLRScheduler(
            optimizer(), decay_t=7, decay_rate=0.1, **common
        ),
    }
    for (name, *given), scheduler in pairs.items():
        ours = multiplier(
            f"scheduler={name}", *given, f"scheduler.warmup={w}it", length=Length(n, 10)
        )
        assert [ours(t) for t in range(n)] == pytest.approx(
            [theirs(scheduler, t) for t in range(n)], **EXACT
        )


def test_timm_reaches_a_milestone_one_step_early_and_torch_does_not():
    """We follow torch: the first step with the lower rate is the milestone."""
    timm = MultiStepLRScheduler(optimizer(), decay_t=[30], decay_rate=0.1, t_in_epochs=False)
    assert [timm._get_lr(t)[0] for t in (28, 29, 30)] == pytest.approx([1, 0.1, 0.1])
    ours = multiplier("scheduler=multistep", "scheduler.milestones=[30it]", length=Length(100, 10))
    assert [ours(t) for t in (28, 29, 30)] == [1, 1, 0.1]


@pytest.mark.parametrize(
    ("t", "expected"), [(0, 1.0), (25, (2 + 2**0.5) / 4), (50, 0.5), (75, (2 - 2**0.5) / 4)]
)
def test_cosine_by_hand(t, expected):
    assert multiplier("scheduler=cosine", length=Length(100, 10))(t) == pytest.approx(
        expected, abs=1e-15
    )


def test_multistep_by_hand():
    rate = multiplier(
        "scheduler=multistep", "scheduler.milestones=[2ep,50%]", length=Length(100, 10)
    )
    assert [rate(t) for t in (0, 19, 20, 49, 50, 99)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize("every", ["0", "11ep", "200it"])
def test_an_interval_outside_is_refused(every):
    with pytest.raises(UserError, match=f"scheduler.every={every}"):
        multiplier("scheduler=step", f"scheduler.every={every}", length=Length(100, 10))


@pytest.mark.parametrize("milestone", ["10ep", "100%", "200it", "0"])
def test_a_milestone_outside_is_refused(milestone):
    with pytest.raises(UserError, match=f"scheduler.milestones={milestone}"):
        multiplier(
            "scheduler=multistep", f"scheduler.milestones=[{milestone}]", length=Length(100, 10)
        )


def test_no_milestone_is_refused():
    with pytest.raises(UserError, match=r"scheduler\.milestones=\[\] is empty"):
        multiplier("scheduler=multistep", "scheduler.milestones=[]", length=Length(100, 10))


@pytest.mark.parametrize(
    "limit", ["trainer.max_epochs=3", "trainer.max_steps=7", "trainer.limit_train_batches=6"]
)
@pytest.mark.parametrize("accumulate", [1, 3, 4])
def test_the_optimizer_uses_the_planned_rates(run, accumulate, limit):
    """Of 11 batches an epoch, the last window is not full."""
    check_rates(run, "one_cycle", accumulate, limit)


@pytest.mark.parametrize("name", NAMES)
def test_the_optimizer_uses_the_planned_rates_of_each(run, name):
    check_rates(run, name, 3, "trainer.max_epochs=3")


def check_rates(run, name, accumulate, limit):
    overrides = [
        f"scheduler={name}",
        "scheduler.warmup=20%",
        "optimizer.lr=0.03",
        "model=mlp",
        limit,
    ]
    overrides += ["trainer.log_every_n_steps=1", f"trainer.accumulate_grad_batches={accumulate}"]
    overrides += [] if "max_epochs" in limit else ["trainer.max_epochs=3"]
    done, cfg = run(*overrides), configure(*overrides)
    plan = make_plan(cfg, build(cfg.data, seed=0), ranks=1)
    batches = 6 if "limit" in limit else 11
    steps = min(3 * math.ceil(batches / accumulate), 7 if "max_steps" in limit else 10**9)
    assert plan.last_step == steps
    assert done.column("lr") == pytest.approx(
        [0.03 * plan.multiplier(t) for t in range(steps)], **EXACT
    )
    if name == "one_cycle":
        assert done.column("momentum") == [plan.multiplier.momentum(t) for t in range(steps)]


@pytest.mark.slow
def test_two_processes_use_the_planned_rates(train, tmp_path):
    import csv

    given = (
        "scheduler=cosine",
        "scheduler.warmup=20%",
        "trainer=ddp",
        "trainer.devices=2",
        "trainer.accelerator=cpu",
    )
    given += (
        "trainer.accumulate_grad_batches=3",
        "trainer.log_every_n_steps=1",
        "trainer.max_epochs=3",
        "model=mlp",
    )
    done = train(*given, "hydra.run.dir=two", "data.batch_size=32")
    assert done.returncode == 0, done.stderr
    plan = multiplier(
        "scheduler=cosine", "scheduler.warmup=20%", length=Length(21, 7)
    )  # 1294 images, 64 a batch
    with (tmp_path / "two" / "metrics.csv").open() as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file) if row["lr"]]
    assert rates == pytest.approx([0.1 * plan(t) for t in range(21)], **EXACT)


class Counter(LightningModule):
    """Counts optimizer steps."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, i):
        return self.w.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def test_the_length_of_a_run_is_that_of_200_real_fits():
    draw, off = (
        random.Random(0),
        dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False),
    )
    for _ in range(200):
        batches, accumulate, epochs = draw.randint(1, 9), draw.randint(1, 5), draw.randint(1, 4)
        steps, limit = (
            draw.choice([-1, -1, draw.randint(1, 20)]),
            draw.choice([1.0, draw.randint(1, 9), 0.5]),
        )
        limit = 1.0 if limit == 0.5 and batches == 1 else limit  # half a batch is none, and refused
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            max_steps=steps,
            limit_train_batches=limit,
            accumulate_grad_batches=accumulate,
            enable_model_summary=False,
            **off,
        )
        trainer.fit(Counter(), torch.utils.data.DataLoader(torch.zeros(2 * batches, 1), 2))
        assert (
            trainer.global_step
            == run_length(2 * batches, 2, epochs, steps, limit, accumulate).steps
        )


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("linear", [1, 0.75, 0.5, 0.25]),
        ("cosine", [1, 0.853553, 0.5, 0.146447]),
        ("1-sqrt", [1, 0.5, 0.292893, 0.133975]),
    ],
)
def test_wsd_by_hand(shape, expected):
    rate = multiplier(
        "scheduler=wsd", "scheduler.cooldown=4it", f"scheduler.shape={shape}", length=Length(20, 5)
    )
    assert [rate(t) for t in range(16)] == [1] * 16
    assert [rate(t) for t in range(16, 20)] == pytest.approx(expected, abs=1e-6)
    assert rate(20) == 0
    given = ("scheduler.cooldown=4it", f"scheduler.shape={shape}", "scheduler.floor=0.2")
    floored = multiplier("scheduler=wsd", *given, length=Length(20, 5))
    assert [floored(t) for t in range(16, 21)] == pytest.approx(
        [0.2 + 0.8 * rate(t) for t in range(16, 21)]
    )


def test_the_share_of_a_constant_warmup():
    given = (
        "scheduler.warmup=3it",
        "scheduler.warmup_shape=constant",
        "scheduler.warmup_share=0.4",
    )
    rate = multiplier("scheduler=constant", *given, length=Length(9, 3))
    assert [rate(t) for t in range(4)] == [0.4, 0.4, 0.4, 1]


def test_a_schedule_that_moves_by_epochs_is_that_of_torch_stepped_by_epochs():
    theirs = torch_rates(lambda o: oracle.CosineAnnealingLR(o, 6), 6)
    rate = multiplier("scheduler=cosine", "scheduler.hold=1ep", length=Length(24, 4))
    assert [rate(t) for t in range(24)] == pytest.approx(
        [share for share in theirs for _ in range(4)], **EXACT
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("hold", [1, 3])
def test_a_rate_is_held_from_its_first_step_on(name, hold):
    words = (f"scheduler={name}", "scheduler.warmup=5it")
    free = multiplier(*words, length=Length(30, 10))
    held = multiplier(*words, f"scheduler.hold={hold}it", length=Length(30, 10))
    for curve, of in [(held, free), (held.momentum, free.momentum)]:
        assert not curve or [curve(t) for t in range(30)] == [
            of(t // hold * hold) for t in range(30)
        ]


@pytest.mark.parametrize("hold", ["31it", "4ep"])
def test_a_hold_longer_than_the_run_is_refused(hold):
    with pytest.raises(UserError, match=f"scheduler.hold={hold} is .* allowed: 0 to 30"):
        multiplier("scheduler=cosine", f"scheduler.hold={hold}", length=Length(30, 10))


@pytest.mark.parametrize("name", NAMES)
def test_a_part_of_a_run_of_one_step(name):
    rate = multiplier(f"scheduler={name}", "scheduler.warmup=10%", length=Length(1, 1))
    assert rate(0) == 1


@pytest.mark.parametrize("option", ["scheduler=wsd scheduler.shape", "scheduler.warmup_shape"])
def test_a_shape_that_there_is_not_is_refused(train, option):
    done = train(*f"{option}=lineer".split())
    assert done.returncode == 1
    assert f"{option.split()[-1]}=lineer; allowed: linear, cosine" in done.stderr
    assert "Did you mean 'linear'" in done.stderr


def test_restarts_end_at_the_bottom():
    """The last step of a run that is three waves long belongs to the third."""
    rate = multiplier("scheduler=cosine_restarts", "scheduler.period=10it", length=Length(30, 10))
    assert rate(20) == 1
    assert rate(29) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.9)))
    assert [rate(t) for t in (30, 31)] == [0, 0]


def test_a_plateau_lowers_the_rate_at_once_and_goes_on_after_a_stop(run):
    """A rate of 2 does not get below its best loss for long; the state comes back with the checkpoint."""
    given = (
        "scheduler=plateau",
        "scheduler.patience=0",
        "scheduler.gamma=0.5",
        "trainer.log_every_n_steps=1",
    )
    given += ("model=mlp", "optimizer.lr=2.0", "trainer.max_epochs=8")
    whole, epoch = run(*given, folder="whole"), 11
    rates, losses = whole.column("lr"), whole.column("val/loss")
    factor, best = 1.0, math.inf
    for n, loss in enumerate(losses):
        assert rates[n * epoch : (n + 1) * epoch] == [2.0 * factor] * epoch
        factor, best = (factor, loss) if loss < best * (1 - 1e-4) else (factor / 2, best)
    assert factor < 0.5
    run(*given, "stop_after=5ep", folder="part")
    part = run(*given, "resume=auto", folder="part")
    assert part.column("lr") == rates
    assert part.column("val/loss") == losses


def test_one_cycle_needs_a_momentum(run):
    given = ("scheduler=one_cycle", "optimizer._target_=torch.optim.Adagrad", "~optimizer.momentum")
    with pytest.raises(UserError, match="Adagrad has no momentum to move"):
        run(*given, "~optimizer.nesterov", "debug=batch")
    with pytest.raises(
        UserError, match=r"SGD has no momentum to move; allowed: optimizer\.momentum of more than 0"
    ):
        run(
            "scheduler=one_cycle",
            "optimizer.momentum=0",
            "optimizer.nesterov=false",
            "debug=batch",
            folder="still",
        )


def test_one_cycle_sets_the_momentum_of_the_optimizer(run, monkeypatch):
    seen = []
    step = torch.optim.AdamW.step

    def keep(self, closure):
        seen.append([(group["lr"], group["betas"]) for group in self.param_groups])
        return step(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", keep)
    given = ("scheduler=one_cycle", "optimizer=adamw", "model=mlp", "trainer.max_epochs=1")
    done = run(*given, "trainer.log_every_n_steps=1")
    plan = multiplier("scheduler=one_cycle", length=Length(11, 11))
    assert seen == [[(0.001 * plan(t), (plan.momentum(t), 0.999))] * 2 for t in range(11)]
    assert done.column("momentum") == [plan.momentum(t) for t in range(11)]
    assert len(set(done.column("momentum"))) > 5


def test_a_plateau_does_not_see_a_validation_that_a_stop_brings(run):
    given = (
        "scheduler=plateau",
        "scheduler.patience=0",
        "scheduler.gamma=0.5",
        "trainer.log_every_n_steps=11",
    )
    given += (
        "model=mlp",
        "optimizer.lr=2.0",
        "trainer.max_epochs=9",
        "trainer.check_val_every_n_epoch=3",
    )
    whole = run(*given, folder="whole").column("lr")
    run(*given, "stop_after=2ep", folder="part")
    run(*given, "stop_after=4ep", "resume=auto", folder="part")
    assert run(*given, "resume=auto", folder="part").column("lr") == whole
    assert whole[-1] < 2.0
