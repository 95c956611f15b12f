"""The plan of a run: batch sizes, base learning rate, and decay that keeps the sign of weights."""

import re

import pytest
from omegaconf import OmegaConf
from torch import nn

from helpers.configs import configure
from helpers.paths import CONF
from tricklab.duration import divide_epoch
from tricklab.errors import UserError
from tricklab.run.build import OF_TRAINING, build_penalties
from tricklab.run.instantiate import build, omit
from tricklab.run.plan import make_plan, scale_lr, total_decay

ADAM = ("optimizer=adamw", "optimizer._target_=torch.optim.Adam")
DECOUPLED = "+optimizer.decoupled_weight_decay=true"


def plan(*overrides, ranks=1):
    config = configure(*overrides)
    return make_plan(config, build(config.data, seed=0), ranks)


@pytest.mark.parametrize(
    ("images", "batch_size", "ranks", "drop_last", "sizes"),
    [
        (130, 128, 1, False, [128, 2]),
        (129, 128, 1, False, [128]),  # a batch of one image is dropped
        (130, 128, 1, True, [128]),
        (132, 64, 2, False, [64, 2]),
        (100, 33, 3, False, [33]),
        (130, 20, 3, False, [20, 20, 3]),
        (256, 128, 1, False, [128, 128]),
    ],
)
def test_divide_epoch_knows_the_batches_of_the_loader(images, batch_size, ranks, drop_last, sizes):
    batching = divide_epoch(images, batch_size, 1.0, 1, ranks, drop_last)
    assert batching == (ranks * sum(sizes), batch_size * ranks, len(sizes), 1, ranks)
    config = configure(
        f"data.train_size={images}", f"data.batch_size={batch_size}", "data.val_size=100"
    )
    data = build(config.data, seed=0, drop_last=drop_last)
    for rank in range(ranks):
        batches = data.training_batches(lambda: (0, 0), rank, ranks)
        assert [len(batch[0]) for batch in batches] == sizes


@pytest.mark.parametrize(
    ("overrides", "ranks", "lr"),
    [
        (("trainer.accumulate_grad_batches=64",), 1, 0.1 * 1294 / 256),
        (("trainer.accumulate_grad_batches=2",), 1, 0.1),
        (("data.batch_size=1000", "trainer.accumulate_grad_batches=2"), 1, 0.1 * 1294 / 256),
        (("data.batch_size=1000", "data.drop_last=true"), 1, 0.1 * 1000 / 256),
        (("trainer.limit_train_batches=1", "trainer.accumulate_grad_batches=8"), 1, 0.05),
        (("data.batch_size=64", "trainer.accumulate_grad_batches=2"), 4, 0.2),
    ],
)
def test_lr_scales_with_the_images_of_a_step(overrides, ranks, lr):
    """Images that there are: an epoch may be shorter than the accumulation window."""
    scaled = plan("optimizer.lr_base_batch_size=256", *overrides, ranks=ranks).lr
    assert scaled == pytest.approx(lr, rel=1e-12)


@pytest.mark.parametrize(
    "overrides",
    [
        ("penalty=decay", "penalty.decay.strength=1000"),
        ("optimizer=adamw", "optimizer.lr=10", "optimizer.weight_decay=0.2"),
        ("optimizer.lr=1", "optimizer.weight_decay=0.2"),
        ("penalty=l2", "penalty.l2.strength=1.1"),
        ("optimizer.weight_decay=0.2", "model.backbone_lr_mult=6"),
    ],
)
def test_plan_refuses_decay_that_flips_the_sign_of_weights(overrides):
    with pytest.raises(UserError, match="would multiply weights by -"):
        plan(*overrides)


def test_plan_refuses_to_stop_after_the_end():
    with pytest.raises(UserError, match="stop_after=1000ep is 11000"):
        plan("stop_after=1000ep")


def find_recipes():
    """Return all recipes, and the arms of claims that set an optimizer or a penalty."""
    recipes = [(path.stem, []) for path in sorted((CONF / "experiment").glob("*.yaml"))]
    for path in sorted((CONF / "experiment" / "claims").glob("*.yaml")):
        if re.search(r"\b(optimizer|penalty)\b", path.read_text()):
            arms = OmegaConf.load(path).claim.arms.values()
            recipes += [(f"claims/{path.stem}", list(arm)) for arm in arms]
    return recipes


@pytest.mark.parametrize(("name", "arm"), find_recipes(), ids=str)
def test_committed_recipe_keeps_the_sign_of_weights(name, arm):
    """At a tenth of the refused decay, or less."""
    config = configure(f"experiment={name}", *arm)
    assert total_decay(config) * scale_lr(config, config.data.batch_size) < 0.1


@pytest.mark.parametrize(
    "overrides",
    [
        ("optimizer.momentum=0", "optimizer.nesterov=false"),
        ("optimizer.momentum=0.9",),
        ("optimizer.weight_decay=1e-3", "penalty=l2", "penalty.l2.strength=1e-3"),
        ("optimizer.weight_decay=0", "penalty=decay", "penalty.decay.strength=0.3"),
        ("optimizer=adamw",),
        (*ADAM, DECOUPLED),
    ],
)
def test_total_decay_is_that_of_the_optimizer(overrides):
    """Measured on a weight whose loss has no gradient, after many small steps."""
    config = configure(*overrides)
    net = nn.Linear(1, 1, bias=False).double()
    weight = net.weight
    nn.init.ones_(weight)
    optimizer = build(omit(config.optimizer, *OF_TRAINING, "fused"), lr=0.01)([weight])
    penalties = build_penalties(config.penalty, net)
    for _ in range(2000):
        loss = penalties["l2"].fn([weight]) if "l2" in penalties else 0 * weight.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if "decay" in penalties:
            penalties["decay"].fn([weight.data], lr=0.01)
    assert weight.item() < 0.999
    assert weight.item() == pytest.approx((1 - 0.01 * total_decay(config)) ** 2000, rel=0.01)


@pytest.mark.parametrize(
    ("overrides", "decay"),
    [
        (("optimizer=adamw", "penalty=l2"), 0.05),  # Adam normalises the gradient of l2
        (ADAM, 0.0),
        (("penalty=[l1,l1_prox,max_norm]", "optimizer.weight_decay=0"), 0.0),
    ],
)
def test_total_decay_leaves_out_penalties_that_flip_no_sign(overrides, decay):
    assert total_decay(configure(*overrides)) == decay
