"""Suggestions for unknown keys and options."""

from collections import Counter

import pytest

from helpers.configs import configure
from helpers.paths import CONF
from tricklab.cli.config import find_options, list_keys, list_options
from tricklab.cli.suggest import KEY_ALIASES, OPTION_ALIASES, normalise, suggest_key, suggest_option

KNOWN = list_keys(configure())


@pytest.mark.parametrize("typed", KEY_ALIASES)
def test_key_aliases_lead_to_existing_keys(typed):
    for override in typed.split():
        key, _, value = override.partition("=")
        group = (CONF / key).is_dir()
        assert group or key in KNOWN or find_options(key, CONF) or key == "hydra.run.dir"
        assert not group or value in ("{}", *list_options(CONF / key))


@pytest.mark.parametrize("typed", OPTION_ALIASES)
def test_option_aliases_lead_to_existing_options(typed):
    group, _, option = typed.split()[0].partition("=")
    assert option in list_options(CONF / group) or typed == "augment=resized_crop"


def test_key_alias_stands_for_one_key():
    listed = Counter(
        normalise(name) for of in KEY_ALIASES.values() for name in {*map(normalise, of.split())}
    )
    assert [name for name, n in listed.items() if n > 1] == []


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("lr", "0.1", " Did you mean optimizer.lr=0.1?"),
        ("LR", "0.1", " Did you mean optimizer.lr=0.1?"),
        ("model.lr", "0.1", " Did you mean optimizer.lr=0.1?"),
        ("learning-rate", "", " Did you mean optimizer.lr=?"),
        ("optimizer.nesterow", "true", " Did you mean optimizer.nesterov=true?"),
        ("trainer.epochs", "3", " Did you mean trainer.max_epochs=3?"),
        ("gpus", "2", " Did you mean trainer.devices=2?"),
        ("device", "cpu", " Did you mean trainer.accelerator=cpu?"),
        ("workers", "4", " Did you mean data.num_workers=4?"),
        ("wd", "1e-4", " Did you mean optimizer.weight_decay=1e-4?"),
        ("sched", "onecycle", " Did you mean scheduler=one_cycle?"),
        ("arch", "vit_tiny_patch16", " Did you mean model=timm model.name=vit_tiny_patch16?"),
        (
            "patience",
            "3",
            " Did you mean callbacks=early_stopping callbacks.early_stopping.patience=3?",
        ),
        ("seed_everything", "1", " Did you mean seed=1?"),
        ("sede", "1", " Did you mean seed=1?"),
        ("label_noize", "0.1", " Did you mean data.label_noise=0.1?"),
        (
            "data.root",
            "x",
            " It belongs to data=cifar10, cifar100, fashion_mnist, folder, mnist, table: "
            "data=cifar10 data.root=x",
        ),
        (
            "augment.crop.padding",
            "4",
            " It belongs to augment=crop, light, medium, strong: "
            "augment=crop augment.crop.padding=4",
        ),
        (
            "mixup.per",
            "image",
            " It belongs to mixup=on, alternate, cutmix, images_only: mixup=on mixup.per=image",
        ),
        ("xyzzy", "1", ""),
    ],
)
def test_suggest_key_finds_the_key_meant(key, value, message):
    assert suggest_key(key, value, KNOWN, CONF) == message


@pytest.mark.parametrize(
    ("group", "option", "message"),
    [
        ("scheduler", "cosin", " Did you mean scheduler=cosine?"),
        ("scheduler", "CosineAnnealingLR", " Did you mean scheduler=cosine?"),
        ("scheduler", "StepLR", " Did you mean scheduler=step?"),
        ("mixup", "0.4", " Did you mean mixup=on mixup.alpha=0.4?"),
        ("augment", "mixup", " Did you mean mixup=on?"),
        ("loss", "weight_decay", " Did you mean penalty=decay?"),
        ("augment", "cutmix", " Did you mean mixup=cutmix?"),
        ("augment", "RandomHorizontalFlip", " Did you mean augment=flip?"),
        ("model", "resnet20", " Did you mean model=resnet model.depth=20?"),
        ("model", "resnet50", " Did you mean model=torchvision model.name=resnet50?"),
        ("model", "resnetv2_50", " Did you mean model=timm model.name=resnetv2_50?"),
        ("model", "convnett", " Did you mean model=convnet?"),
        ("optimizer", "Adam", " Did you mean optimizer=adamw?"),
        ("loss", "ce", " Did you mean loss=cross_entropy?"),
        ("data", "qwertz", ""),
    ],
)
def test_suggest_option_finds_the_option_meant(group, option, message):
    assert suggest_option(group, option, CONF) == message


def test_suggest_option_prefers_the_exact_option_of_a_fork(tmp_path):
    (tmp_path / "augment").mkdir()
    (tmp_path / "augment" / "crop.yaml").write_text("# Crop\n")
    message = suggest_option("augment", "random_resized_crop", tmp_path)
    assert message == " Did you mean augment=crop?"
    (tmp_path / "augment" / "resized_crop.yaml").write_text("# Crop and resize\n")
    message = suggest_option("augment", "random_resized_crop", tmp_path)
    assert message == " Did you mean augment=resized_crop?"
