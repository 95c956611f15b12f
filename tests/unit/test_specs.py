"""The spec in a key's comment: its grammar, what it allows and refuses, and its neutral value."""

import functools
import re
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from helpers.configs import compose_and_check, configure
from helpers.paths import CONF
from tricklab.cli.config import MULTI_OPTION_GROUPS, list_options
from tricklab.cli.grammar import parse_spec
from tricklab.cli.specs import find_spec, neutral_values, read_lines, read_nodes
from tricklab.cli.values import check_value
from tricklab.errors import UserError
from tricklab.run.identity import config_hash

GROUPS = [
    path.name
    for path in sorted(CONF.iterdir())
    if path.is_dir() and path.name not in ("debug", "experiment", "hydra", "local")
]
FILES = [path for path in sorted(CONF.rglob("*.yaml")) if "experiment" not in path.parts]

FRACTION = "0 to 1"
BELOW_ONE = "0 or more, less than 1"
ZERO_OR_MORE = "0 or more"
ONE_OR_MORE = "1 or more"
WEIGHTS = "balanced, or a list of numbers, each 0 or more, or null"
LR_FRACTION = "1e-06 to 1"
NO_DURATION = "is not a duration"

# key, the option that has it (for one at the top: ""), a value at the edge, one beyond, the answer
RANGES = [
    ("seed", "", 0, -1, ZERO_OR_MORE),
    ("seed", "", 2**63 - 1, 2**63, "0 or more, less than 9223372036854775808"),
    ("slots", "", 1, 0, ONE_OR_MORE),
    ("job_timeout", "", 1, 0, ONE_OR_MORE),
    ("augment.affine.degrees", "affine", 180, 181, "0 to 180"),
    ("augment.affine.translate", "affine", 1.0, 1.1, FRACTION),
    ("augment.affine.scale", "affine", 0.99, 1.0, "0 to 0.99"),
    ("augment.affine.shear", "affine", 89, 90, "0 to 89"),
    ("augment.color.brightness", "color", 0, -0.1, ZERO_OR_MORE),
    ("augment.color.contrast", "color", 0, -0.1, ZERO_OR_MORE),
    ("augment.color.saturation", "color", 0, -0.1, ZERO_OR_MORE),
    ("augment.color.hue", "color", 0.5, 0.6, "0 to 0.5"),
    ("augment.crop.padding", "crop", 0, -1, ZERO_OR_MORE),
    ("augment.erase.probability", "erase", 1.0, 1.1, FRACTION),
    ("augment.erase.scale", "erase", [0.0, 1.0], [-0.1, 0.5], FRACTION),
    ("augment.erase.scale", "erase", [0.0, 1.0], [0.5, 1.1], FRACTION),
    ("augment.erase.value", "erase", 255, 256, "0 to 255"),
    ("augment.flip.horizontal", "flip", 1.0, 1.1, FRACTION),
    ("augment.flip.vertical", "flip", 0.0, -0.1, FRACTION),
    ("augment.jitter.brightness", "jitter", 1.0, 1.1, FRACTION),
    ("augment.jitter.contrast", "jitter", 1.0, 1.1, FRACTION),
    ("augment.jitter.contrast", "strong", 1.0, 1.1, FRACTION),
    ("augment.pca_noise.std", "pca_noise", 0, -0.1, ZERO_OR_MORE),
    ("augment.randaugment.operations", "randaugment", 0, -1, ZERO_OR_MORE),
    ("augment.randaugment.magnitude", "randaugment", 30, 31, "0 to 30"),
    ("augment.rotate.degrees", "rotate", 180, 181, "0 to 180"),
    ("callbacks.last.every_n_steps", "none", 1, 0, ONE_OR_MORE),
    ("callbacks.progress.refresh_rate", "none", 0, -1, ZERO_OR_MORE),
    ("callbacks.early_stopping.patience", "early_stopping", 0, -1, ZERO_OR_MORE),
    ("callbacks.early_stopping.min_delta", "early_stopping", 0, -1, ZERO_OR_MORE),
    ("callbacks.ema.decay", "ema", 0.0, 1.0, BELOW_ONE),
    ("data.batch_size", "digits", 1, 0, ONE_OR_MORE),
    ("data.val_size", "digits", 0, -1, ZERO_OR_MORE),
    ("data.folds", "digits", 2, 1, "2 or more"),
    ("data.fold", "digits", 0, -1, ZERO_OR_MORE),
    ("data.train_size", "digits", 0.5, -0.5, ZERO_OR_MORE),
    ("data.split_seed", "digits", 2**63 - 1, -1, "0 or more, less than 9223372036854775808"),
    ("data.label_noise", "digits", 1.0, 1.1, FRACTION),
    ("data.imbalance", "digits", 1.0, 0.5, ONE_OR_MORE),
    ("data.num_workers", "digits", 0, -1, ZERO_OR_MORE),
    ("data.size", "folder", 1, 0, ONE_OR_MORE),
    ("data.test_size", "folder", 0, -0.1, ZERO_OR_MORE),
    ("data.images", "fake", 2, 1, "2 or more"),
    ("data.test_images", "fake", 1, 0, ONE_OR_MORE),
    ("data.channels", "fake", 1, 0, ONE_OR_MORE),
    ("data.height", "fake", 1, 0, ONE_OR_MORE),
    ("data.width", "fake", 1, 0, ONE_OR_MORE),
    ("data.num_classes", "fake", 2, 1, "2 or more"),
    ("logger.wandb.log_mistakes", "wandb", 0, -1, ZERO_OR_MORE),
    ("loss.class_weights", "smooth", [0, 2.5], [1, -1], WEIGHTS),
    ("loss.label_smoothing", "cross_entropy", 0.0, 1.0, BELOW_ONE),
    ("loss.label_smoothing", "smooth", 0.0, 1.0, BELOW_ONE),
    ("mixup.probability", "on", 1.0, 1.1, FRACTION),
    ("mixup.alpha", "on", 0, -0.1, ZERO_OR_MORE),
    ("mixup.alpha", "cutmix", 0, -0.1, ZERO_OR_MORE),
    ("mixup.alpha", "images_only", 0, -0.1, ZERO_OR_MORE),
    ("mixup.alpha", "alternate", 0, -0.1, ZERO_OR_MORE),
    ("mixup.cutmix_alpha", "alternate", 0, -0.1, ZERO_OR_MORE),
    ("model.backbone_lr_mult", "convnet", 0, -0.1, ZERO_OR_MORE),
    ("model.widths", "convnet", [1], [16, 0], ONE_OR_MORE),
    ("model.widths", "mlp", [1], [16, 0], ONE_OR_MORE),
    ("model.depth", "convnet", 1, 0, ONE_OR_MORE),
    ("model.depth", "resnet", 1, 0, ONE_OR_MORE),
    ("model.width", "resnet", 1, 0, ONE_OR_MORE),
    ("model.dropout", "mlp", 0.0, 1.0, BELOW_ONE),
    ("model.input_dropout", "mlp", 0.0, 1.0, BELOW_ONE),
    ("model.dropout", "convnet", 0.0, 1.0, BELOW_ONE),
    ("model.input_dropout", "convnet", 0.0, 1.0, BELOW_ONE),
    ("model.spatial_dropout", "convnet", 0.0, 1.0, BELOW_ONE),
    ("model.dropout", "resnet", 0.0, 1.0, BELOW_ONE),
    ("model.input_dropout", "resnet", 0.0, 1.0, BELOW_ONE),
    ("model.spatial_dropout", "resnet", 0.0, 1.0, BELOW_ONE),
    ("model.drop_path", "resnet", 0.0, 1.0, BELOW_ONE),
    ("model.dropout", "torchvision", 0.0, 1.0, BELOW_ONE),
    ("model.drop_path", "torchvision", 0.0, 1.0, BELOW_ONE),
    ("model.dropout", "timm", 0.0, 1.0, BELOW_ONE),
    ("model.drop_path", "timm", 0.0, 1.0, BELOW_ONE),
    ("optimizer.lr", "sgd", 0, -0.1, ZERO_OR_MORE),
    ("optimizer.lr_base_batch_size", "sgd", 1, 0, ONE_OR_MORE),
    ("optimizer.layer_decay", "sgd", 1, 0, "more than 0, at most 1"),
    ("optimizer.layer_decay", "sgd", 1e-9, 1.01, "more than 0, at most 1"),
    ("optimizer.momentum", "sgd", 0.0, 1.0, BELOW_ONE),
    ("optimizer.weight_decay", "sgd", 0, -0.1, ZERO_OR_MORE),
    ("optimizer.lr", "adamw", 0, -0.1, ZERO_OR_MORE),
    ("optimizer.lr_base_batch_size", "adamw", 1, 0, ONE_OR_MORE),
    ("optimizer.layer_decay", "adamw", 1, 0, "more than 0, at most 1"),
    ("optimizer.layer_decay", "adamw", 1e-9, 1.01, "more than 0, at most 1"),
    ("optimizer.betas", "adamw", [0.0, 0.9], [0.9, 1.0], BELOW_ONE),
    ("optimizer.eps", "adamw", 0, -0.1, ZERO_OR_MORE),
    ("optimizer.weight_decay", "adamw", 0, -0.1, ZERO_OR_MORE),
    ("penalty.decay.strength", "decay", 0, -0.1, ZERO_OR_MORE),
    ("penalty.l1.strength", "l1", 0, -0.1, ZERO_OR_MORE),
    ("penalty.l1_prox.strength", "l1_prox", 0, -0.1, ZERO_OR_MORE),
    ("penalty.l2.strength", "l2", 0, -0.1, ZERO_OR_MORE),
    ("penalty.max_norm.norm", "max_norm", 1e-9, 0, "more than 0"),
    ("scheduler.warmup_share", "constant", 1e-6, 0, LR_FRACTION),
    ("scheduler.floor", "cosine", 1.0, 1.1, FRACTION),
    ("scheduler.period_mult", "cosine_restarts", 1, 0, ONE_OR_MORE),
    ("scheduler.floor", "cosine_restarts", 1.0, 1.1, FRACTION),
    ("scheduler.gamma", "exponential", 1.0, 0, LR_FRACTION),
    ("scheduler.floor", "linear", 1.0, 1.1, FRACTION),
    ("scheduler.gamma", "multistep", 1.0, 0, LR_FRACTION),
    ("scheduler.start", "one_cycle", 1.0, 0, LR_FRACTION),
    ("scheduler.floor", "one_cycle", 1.0, 1.1, FRACTION),
    ("scheduler.momentum_low", "one_cycle", 0.0, 1.0, BELOW_ONE),
    ("scheduler.momentum_high", "one_cycle", 0.0, 1.0, BELOW_ONE),
    ("scheduler.gamma", "plateau", 1.0, 0, LR_FRACTION),
    ("scheduler.patience", "plateau", 0, -1, ZERO_OR_MORE),
    ("scheduler.threshold", "plateau", 1.0, 1.1, FRACTION),
    ("scheduler.floor", "plateau", 1.0, 1.1, FRACTION),
    ("scheduler.power", "polynomial", 0, -0.1, ZERO_OR_MORE),
    ("scheduler.floor", "polynomial", 1.0, 1.1, FRACTION),
    ("scheduler.gamma", "step", 1.0, 0, LR_FRACTION),
    ("scheduler.floor", "wsd", 1.0, 1.1, FRACTION),
    ("sweep.factor", "halving", 2, 1, "2 or more"),
    ("sweep.rounds", "halving", 1, 0, ONE_OR_MORE),
    ("sweep.trials", "optuna", 1, 0, ONE_OR_MORE),
    ("sweep.replicates", "optuna", 1, 0, ONE_OR_MORE),
    ("sweep.batch", "optuna", 1, 0, ONE_OR_MORE),
    ("sweep.seed", "optuna", 2**63 - 1, -1, "0 or more, less than 9223372036854775808"),
    ("trainer.num_nodes", "default", 1, 0, ONE_OR_MORE),
    ("trainer.max_epochs", "default", -1, -2, "-1 or more"),
    ("trainer.max_steps", "default", -1, -2, "-1 or more"),
    ("trainer.accumulate_grad_batches", "default", 1, 0, ONE_OR_MORE),
    ("trainer.gradient_clip_val", "default", 0, -1, ZERO_OR_MORE),
    ("trainer.log_every_n_steps", "default", 1, 0, ONE_OR_MORE),
    ("trainer.check_val_every_n_epoch", "default", 1, 0, ONE_OR_MORE),
    ("trainer.num_sanity_val_steps", "default", -1, -2, "-1 or more"),
    ("trainer.limit_train_batches", "default", 0.001, 0, "0.001 to 1, or an int of 1 or more"),
    ("trainer.limit_train_batches", "default", 5, 1.5, "0.001 to 1, or an int of 1 or more"),
    ("trainer.limit_val_batches", "default", 2**31 - 1, 2**31, "integers up to 2147483647"),
    ("trainer.limit_val_batches", "default", 0.001, 0.0, "0.001 to 1, or an int of 1 or more"),
    ("trainer.limit_test_batches", "default", 1, 0, "0.001 to 1, or an int of 1 or more"),
]
CHOICES = [
    ("callbacks.early_stopping.mode", "early_stopping", "max", "mx", "min, max. Did you mean"),
    ("data.mode", "folder", "L", "rgb", "RGB, L. Did you mean 'RGB'?"),
    ("data.sampler", "digits", "balanced", "balance", "shuffle, balanced. Did you mean 'balanced'"),
    ("loss.class_weights", "smooth", "balanced", "balance", f"{WEIGHTS}. Did you mean 'balanced'?"),
    ("loss.class_weights", "cross_entropy", [1], 3, WEIGHTS),
    ("loss.class_weights", "cross_entropy", None, ["balanced"], WEIGHTS),
    ("data.background", "folder", "black", "grey", "white, black"),
    ("mixup.per", "on", "image", "images", "batch, image. Did you mean 'image'?"),
    ("scheduler.warmup_shape", "cosine", "constant", "lin", "linear, cosine, constant. Did you"),
    ("scheduler.shape", "wsd", "1-sqrt", "sqrt", "linear, cosine, 1-sqrt. Did you mean '1-sqrt'"),
    ("trainer.accelerator", "default", "mps", "gqu", "auto, cpu, gpu, cuda, mps, tpu. Did you"),
    ("trainer.accelerator", "cpu", "gpu", "gqu", "auto, cpu, gpu, cuda, mps, tpu. Did you"),
    ("trainer.gradient_clip_algorithm", "default", "value", "nrm", "norm, value. Did you"),
    ("trainer.precision", "default", 16, 17, "32-true, 32, 16-mixed, 16, bf16-mixed, bf16, "),
    ("trainer.precision", "default", "transformer-engine-float16", "8", "32-true, 32, "),
    ("trainer.profiler", "default", None, ["simple"], "simple, advanced, pytorch, or null."),
    ("trainer.profiler", "default", "simple", "smple", "simple, advanced, pytorch, or null. Did"),
    ("trainer.strategy", "ddp", "auto", "fsdp", "auto, ddp, ddp_find_unused_parameters_true, "),
]
# the last two columns: a value of another type, and the answer
TYPES = [
    ("name", "", "mine", 3, "expected str or null, got int"),
    ("tags", "", [1, "a"], "x", "expected list, got str"),
    ("resume", "", 1, [1], "expected str or float or null, got list"),
    ("slots", "", None, 1.5, "expected int or null, got float"),
    ("job_timeout", "", None, "1h", "expected int or null, got str"),
    ("dry_run", "", True, 1, "expected bool, got int"),
    ("callbacks.last.every_n_steps", "none", None, "5", "expected int or null, got str"),
    ("data.batch_size", "digits", 5, True, "expected int, got bool"),
    ("data.folds", "digits", None, 2.5, "expected int or null, got float"),
    ("data.train_size", "digits", 5, "all", "expected float or null, got str"),
    ("data.num_workers", "digits", None, "2", "expected int or null, got str"),
    ("data.size", "folder", None, "32", "expected int or null, got str"),
    ("data.cache", "folder", "none", None, "expected str, got null"),
    ("logger.wandb.entity", "wandb", None, 3, "expected str or null, got int"),
    ("logger.wandb.group", "wandb", "seeds", 3, "expected str or null, got int"),
    ("logger.wandb.notes", "wandb", "", 3, "expected str or null, got int"),
    ("logger.wandb.name", "wandb", None, 3, "expected str or null, got int"),
    ("model.weights", "mlp", None, True, "expected str or null, got bool"),
    ("model.name", "timm", "resnet50", None, "expected str, got null"),
    ("model.widths", "mlp", [], 64, "expected list, got int"),
    ("model.widths", "mlp", [8], ["a"], "expected a list of int"),
    ("model.widths", "convnet", [8], [], "expected a non-empty list of int"),
    ("optimizer.lr_base_batch_size", "sgd", None, True, "expected int or null, got bool"),
    ("optimizer.betas", "adamw", [0, 0.5], [0.9], "expected two numbers, got list"),
    ("optimizer.betas", "adamw", [0, 0.5], 0.9, "expected two numbers, got float"),
    ("penalty.l1.params", "l1", None, 3, "expected str or null, got int"),
    ("sweep.objectives", "optuna", ["val/acc"], [], "expected a non-empty list of str"),
    ("trainer.devices", "default", "0,1", "a", "expected a number, auto for all, or a list"),
    ("trainer.devices", "ddp", [0, 1], None, "expected a number, auto for all, or a list"),
    ("trainer.gradient_clip_val", "default", 1, "1", "expected float or null, got str"),
]
DURATIONS = [
    ("stop_after", "", "1it", 5, NO_DURATION),
    ("stop_after", "", None, "0ep", "allowed: more than 0"),
    ("mixup.start", "on", "5ep", 80, NO_DURATION),
    ("mixup.stop", "cutmix", "100%", "101%", "allowed: 0% to 100%"),
    ("model.freeze", "mlp", 0, "3", NO_DURATION),
    ("scheduler.warmup", "constant", "5.5ep", "-5ep", NO_DURATION),
    ("scheduler.update_every", "cosine", "1ep", None, NO_DURATION),
    ("scheduler.every", "exponential", "10%", ["10%"], "expected one duration, as 10%"),
    ("scheduler.every", "step", "10%", 10, NO_DURATION),
    ("scheduler.period", "cosine_restarts", "10%", 10, NO_DURATION),
    ("scheduler.timescale", "inverse_sqrt", "10%", 10, NO_DURATION),
    ("scheduler.cooldown", "wsd", "10%", 10, NO_DURATION),
    ("scheduler.rise", "one_cycle", "10%", 10, NO_DURATION),
    ("scheduler.milestones", "multistep", ["1ep", "2ep"], "1ep", "expected a list of durations"),
    ("scheduler.milestones", "multistep", ["1ep"], [], "expected a list of durations"),
    ("scheduler.milestones", "multistep", ["1ep"], [1], NO_DURATION),
]


@functools.cache
def compose_option(group: str, option: str) -> DictConfig:
    return configure(f"{group}={option}") if option else configure()


def check(key: str, option: str, value: Any) -> None:
    """Check a value as the command line does, with the default and the spec of an option."""
    default = OmegaConf.select(compose_option(key.partition(".")[0], option), key)
    if OmegaConf.is_config(default):
        default = OmegaConf.to_container(default)
    check_value(key, value, default, find_spec(key, choice=option))


@pytest.mark.parametrize(("key", "option", "edge", "beyond", "allowed"), RANGES + CHOICES)
def test_range_allows_its_edge_and_refuses_beyond(key, option, edge, beyond, allowed):
    check(key, option, edge)
    message = f"{key}={beyond}; allowed: {allowed}"
    with pytest.raises(UserError, match=re.escape(message)):
        check(key, option, beyond)


@pytest.mark.parametrize(("key", "option", "right", "wrong", "message"), TYPES + DURATIONS)
def test_type_refuses_other_values(key, option, right, wrong, message):
    check(key, option, right)
    with pytest.raises(UserError, match=f"^{re.escape(key)}=.*{re.escape(message)}"):
        check(key, option, wrong)


def test_value_refuses_empty_text_and_what_is_not_finite():
    for value in (float("nan"), float("inf")):
        with pytest.raises(UserError, match=r"optimizer\.lr=.*: expected a finite number"):
            check("optimizer.lr", "sgd", value)
    with pytest.raises(UserError, match=r"data\.root= is empty; expected a value"):
        check("data.root", "folder", "")
    with pytest.raises(UserError, match=r"\.batch_size=2147483648; allowed: integers up to 21474"):
        check("data.batch_size", "digits", 2**31)


def find_pairs() -> list[tuple[str, str, str]]:
    """Return group, option and key of each key in `conf/` that has a spec."""
    pairs = []
    for group in GROUPS:
        for option in list_options(CONF / group):
            keys = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{option}.yaml"))
            if "_target_" in keys or group in MULTI_OPTION_GROUPS:
                pairs += [(group, option, key) for key in find_keys(group, option)]
    return pairs


def find_keys(group: str, option: str) -> list[str]:
    keys = []
    for node in read_nodes(group, (CONF,)):
        if node.option == option:
            names = [group, node.name] if node.name else [group]
            keys += [".".join([*names, rest]) for rest, line in node.lines.items() if line.spec]
    return keys


@pytest.mark.parametrize(("group", "option", "key"), find_pairs())
def test_spec_allows_the_default(group, option, key):
    default = OmegaConf.select(compose_option(group, option), key)
    plain = OmegaConf.to_container(default) if OmegaConf.is_config(default) else default
    check(key, option, plain)


def test_spec_allows_the_defaults_of_train_yaml():
    for key, line in read_lines(CONF / "train.yaml").items():
        if line.spec:
            check(key, "", OmegaConf.select(configure(), key))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_spec_of_every_key_can_be_parsed(path):
    for line in read_lines(path).values():
        if line.spec:
            parse_spec(line.spec, line.place)


@pytest.mark.parametrize(
    "text",
    [
        "[0, 1",
        "[0, 1) or",
        "0 to 1",
        "flaot",
        "int (1,2)",
        "{}",
        "[1, 2] int",
        "neutral",
        "a or b",
        "str [0, 1]",
    ],
)
def test_spec_that_can_not_be_parsed_names_file_and_line(text, tmp_path):
    path = tmp_path / "conf" / "data" / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(f"# Mine\nkey: 1 # {text}; prose\n")
    line = read_lines(path)["key"]
    with pytest.raises(UserError, match=r"conf/data/mine\.yaml:2: .* is not a spec. Expected"):
        parse_spec(line.spec, line.place)


def test_comment_is_told_from_quoted_text_and_prose(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text(
        "# First; line\n"
        "plain: a#b # prose, int\n"
        'text: "a # b; c" # str; prose\n'
        "long: 1 # {1, 2,\n"
        "  # 3}; further lines\n"
        "# int; a comment of its own\n"
        "node: # prose\n"
        "  # str; a comment of its own\n"
        "  inner: 1 # [0, 1]\n"
        "none: 2\n"
    )
    specs = {key: line.spec for key, line in read_lines(path).items()}
    assert specs == {
        "plain": "",
        "text": "str",
        "long": "{1, 2, 3}",
        "node": "",
        "node.inner": "[0, 1]",
        "none": "",
    }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["+trainer.gradient_clip_algorithm=nrm"],
            "gradient_clip_algorithm=nrm; allowed: norm, value. Did you mean 'norm'?",
        ),
        (
            [
                "+callbacks.mine._target_=pytorch_lightning.callbacks.EarlyStopping",
                "+callbacks.mine.monitor=val/loss",
                "+callbacks.mine.patience=-1",
            ],
            "callbacks.mine.patience=-1; allowed: 0 or more",
        ),
        (
            ["optimizer._target_=torch.optim.AdamW", "+optimizer.betas=[0.9]"],
            "optimizer.betas=[0.9]: expected two numbers",
        ),
    ],
)
def test_added_argument_has_the_spec_of_its_class(overrides, message):
    with pytest.raises(UserError, match=re.escape(message)):
        compose_and_check(*overrides)


@pytest.mark.parametrize("key", neutral_values())
def test_neutral_value_holds_for_every_option_with_the_key(key):
    """Otherwise an option that has had the key before would change its hash."""
    group, _, rest = key.partition(".")
    specs = [
        parse_spec(node.lines[rest].spec, node.lines[rest].place)
        for node in read_nodes(group, (CONF,))
        if rest in node.lines
    ]
    assert {spec.neutral for spec in specs} == {(neutral_values()[key],)}


def test_neutral_value_leaves_the_hash_unchanged(monkeypatch):
    assert neutral_values()["data.background"] == "white"
    before = {"data": {"name": "folder"}, "augment": {"mine": {"p": 1}}}
    monkeypatch.setattr(
        "tricklab.run.identity.neutral_values", lambda: {"augment.mine.new": None, "top": 0}
    )
    for value in (None, 3):
        later = {"data": {"name": "folder"}, "augment": {"mine": {"p": 1, "new": value}}, "top": 0}
        assert (config_hash(later) == config_hash(before)) == (value is None)


def test_neutral_values_are_read_from_every_group(tmp_path):
    (tmp_path / "augment").mkdir()
    (tmp_path / "train.yaml").write_text("new: 1 # int [0, 2], neutral 0; prose\n")
    text = "mine:\n  p: 1.0 # neutral null; prose\n  q: a # int, neutral 3\n  r: 1 # neutral\n"
    (tmp_path / "augment" / "mine.yaml").write_text(text)
    expected = {"new": 0, "augment.mine.p": None, "augment.mine.q": 3}
    assert neutral_values(tmp_path) == expected
