import math
import random

import pytest
import torch

from tricklab.duration import Batching, Length, divide_epoch, parse, run_length, to_steps
from tricklab.errors import UserError


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        ("5ep", 50),
        ("0.5ep", 5),
        ("7it", 7),
        ("10%", 20),
        ("0.1%", 1),
        (0, 0),
        ("0", 0),
        ("0ep", 0),
        ("33%", 66),
    ],
)
def test_to_steps_converts_each_unit(duration, steps):
    assert to_steps(duration, Length(steps=200, epoch=10)) == steps


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        ("99%", 9),
        ("90%", 9),
        ("96%", 9),
        ("100%", 10),
        ("1%", 1),
        ("10it", 10),
        ("3ep", 15),
        ("0", 0),
    ],
)
def test_to_steps_does_not_round_a_percentage_to_the_whole(duration, steps):
    assert to_steps(duration, Length(10, 5), most=9) == steps


@pytest.mark.parametrize("wrong", [5, 1.5, "5", "5 ep", "ep", "5epochs", "-1ep", "", True, None])
def test_parse_refuses_what_is_not_a_duration(wrong):
    with pytest.raises(UserError, match=r"option=.* is not a duration; allowed: 0, .* 5ep"):
        parse(wrong, "option=")


# 1001 images: a final batch of one image has no batch statistics, and is dropped
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (dict(images=1000, batch_size=100, max_epochs=3), Length(30, 10)),
        (dict(images=1002, batch_size=100, max_epochs=3), Length(33, 11)),
        (dict(images=1001, batch_size=100, max_epochs=1), Length(10, 10)),
        (dict(images=1002, batch_size=100, max_epochs=3, drop_last=True), Length(30, 10)),
        (dict(images=1000, batch_size=100, max_epochs=3, accumulate=4), Length(9, 3)),
        (dict(images=1000, batch_size=100, max_epochs=3, limit_batches=7), Length(21, 7)),
        (dict(images=1000, batch_size=100, max_epochs=3, limit_batches=0.25), Length(6, 2)),
        (dict(images=1000, batch_size=100, max_epochs=3, max_steps=12), Length(12, 10)),
        (dict(images=1000, batch_size=100, max_epochs=-1, max_steps=12), Length(12, 10)),
        (dict(images=1000, batch_size=100, max_epochs=3, ranks=2), Length(15, 5)),
        (dict(images=7, batch_size=100, max_epochs=2), Length(2, 1)),
    ],
)
def test_run_length_by_hand(options, expected):
    assert run_length(**options) == expected


@pytest.mark.parametrize(
    "overrides",
    [
        ("data.batch_size=100", "trainer.accumulate_grad_batches=3"),
        ("data.drop_last=true", "trainer.accumulate_grad_batches=4"),
        ("trainer.limit_train_batches=0.5",),
        ("trainer.max_steps=7",),
    ],
)
def test_run_length_equals_the_steps_of_a_run(run, overrides):
    """With an accumulation window that is not full at the end of an epoch."""
    short = ("model=mlp", "trainer.max_epochs=2", "trainer.log_every_n_steps=1")
    done = run(*short, *overrides)
    values = dict(override.split("=") for override in overrides)
    expected = run_length(
        images=1294,
        batch_size=int(values.get("data.batch_size", 128)),
        max_epochs=2,
        max_steps=int(values.get("trainer.max_steps", -1)),
        limit_batches=float(values.get("trainer.limit_train_batches", 1.0)),
        accumulate=int(values.get("trainer.accumulate_grad_batches", 1)),
        drop_last="data.drop_last" in values,
    )
    assert len(done.column("lr")) == expected.steps
    assert done.column("step")[-1] == expected.steps
    assert math.isfinite(done.result["objective"])


def test_weights_give_each_image_of_a_step_the_same_weight():
    """Times Lightning's 1 / accumulate and DDP's 1 / ranks: n_i / sum n_i, in random epochs."""
    draw = random.Random(0)
    for _ in range(300):
        ranks, size, accumulate = draw.randint(1, 4), draw.randint(2, 9), draw.randint(1, 5)
        images = draw.randint(2 * ranks, 60)
        limit, drop_last = draw.choice([1.0, 0.7, 3]), draw.random() < 0.3
        batching = divide_epoch(images, size, limit, accumulate, ranks, drop_last)
        blocks = [len(block) for block in torch.arange(images - images % ranks).split(size * ranks)]
        used = blocks[: batching.batches]
        for first in range(0, len(used), accumulate):
            step = used[first : first + accumulate]
            for index, block in enumerate(step, first):
                loss_weight, weight_of_all = batching.weights(index, block // ranks)
                assert weight_of_all / accumulate == pytest.approx(1 / len(step))
                fraction = loss_weight * weight_of_all / accumulate / ranks
                assert fraction == pytest.approx(block / ranks / sum(step))
                assert loss_weight == 1 or len(set(step)) > 1
        assert sum(used) == batching.images


def test_weights_of_ranks_with_batches_of_different_sizes():
    """5 images go to 3 ranks as 2, 2 and 1."""
    batching = Batching(images=5, batch=6, batches=1, accumulate=1, ranks=3)
    fractions = [batching.weights(0, n)[0] / 3 for n in (2, 2, 1)]
    assert fractions == pytest.approx([2 / 5, 2 / 5, 1 / 5])
