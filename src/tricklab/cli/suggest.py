"""Suggestions for unknown keys and options: the nearest name, or ours for one of other tools."""

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from tricklab.cli.config import find_options, list_groups, list_options
from tricklab.cli.renamed import find_new_name
from tricklab.errors import closest

# Overrides by the names that other tools have for them; {} is the value
KEY_ALIASES = {
    "optimizer.lr={}": "lr learning_rate lr0 base_lr init_lr initial_lr start_lr eta rate",
    "optimizer.weight_decay={}": "wd weight_decay decay l2_reg",
    "optimizer.momentum={}": "momentum mom",
    "optimizer={}": "opt optim optimiser",
    "trainer.max_epochs={}": "epochs epoch num_epochs n_epochs max_epochs nb_epochs ep",
    "trainer.max_steps={}": "steps max_steps num_steps total_steps iterations iters max_iters",
    "data.batch_size={}": "batch_size batch bs train_batch_size per_device_train_batch_size",
    "data.num_workers={}": "workers num_workers n_workers dataloader_num_workers j",
    "data.root={}": "data_dir data_path data_root dataset_dir dataset_path root train_dir",
    "data.size={}": "img_size image_size imgsz im_size input_size size resolution",
    "data.val_size={}": "val_split val_ratio val_pct validation_split valid_size",
    "data={}": "dataset data_set ds",
    "model={}": "arch net network architecture model_name backbone",
    "model.dropout={}": "dropout drop drop_rate dropout_rate p_dropout",
    "model.drop_path={}": "drop_path drop_path_rate stochastic_depth drop_connect",
    "model.weights=pretrained": "pretrained",
    "model.weights={}": "weights initial_checkpoint finetune init_checkpoint",
    "model.freeze=3ep model.weights=pretrained": "freeze_backbone freeze_epochs",
    "trainer.devices={}": "devices gpus gpu num_gpus n_gpus ngpus nproc world_size",
    "trainer.accelerator={}": "device accelerator",
    "trainer.precision=16-mixed": "amp fp16 half mixed_precision use_amp",
    "trainer.precision=bf16-mixed": "bf16 bfloat16",
    "trainer.gradient_clip_val={}": "clip clip_grad grad_clip clip_norm max_grad_norm",
    "trainer.accumulate_grad_batches={}": "accum accumulate grad_accum grad_accum_steps "
    "gradient_accumulation_steps accumulation_steps",
    "trainer.compile=true": "torch_compile torchcompile",
    "scheduler={}": "sched schedule lr_scheduler lr_schedule scheduler_name",
    "scheduler.warmup={}ep": "warmup_epochs",
    "scheduler.warmup={}it": "warmup_steps warmup_iters",
    "scheduler.warmup={}": "warmup",
    "scheduler.floor={}": "eta_min min_lr lr_min",
    "loss.label_smoothing={}": "smoothing label_smoothing ls smooth",
    "loss={}": "criterion loss_fn",
    "mixup=on mixup.alpha={}": "mixup_alpha",
    "mixup=cutmix mixup.alpha={}": "cutmix cutmix_alpha",
    "augment={}": "aug augs augmentation augmentations transform transforms",
    "augment=randaugment": "aa auto_augment autoaugment",
    "augment=erase augment.erase.probability={}": "reprob random_erasing cutout",
    "augment=flip augment.flip.horizontal={}": "hflip",
    "callbacks=ema": "ema model_ema use_ema",
    "callbacks=ema callbacks.ema.decay={}": "ema_decay model_ema_decay",
    "callbacks=early_stopping callbacks.early_stopping.patience={}": "patience",
    "callbacks=early_stopping": "early_stopping early_stop",
    "logger=wandb": "wandb use_wandb",
    "logger.wandb.project={}": "project wandb_project",
    "logger=tensorboard": "tensorboard tb",
    "seed={}": "seed_everything random_seed manual_seed random_state",
    "name={}": "run_name exp_name experiment_name exp",
    "resume={}": "checkpoint ckpt ckpt_path resume_from resume_from_checkpoint load",
    "hydra.run.dir={}": "output output_dir out out_dir save_dir log_dir logdir work_dir run_dir",
    "debug=batch": "fast_dev_run smoke_test",
    "debug=overfit": "overfit overfit_batches",
}

# Options by the names that other tools have for them. The first that exists is suggested,
# as a fork may lack some.
OPTION_ALIASES = {
    "augment=flip": "hflip horizontal_flip random_horizontal_flip mirror",
    "augment=resized_crop": "random_resized_crop rrc",
    "augment=crop": "random_crop random_resized_crop rrc",
    "augment=erase": "cutout random_erasing erasing",
    "augment=color": "color_jitter colour_jitter colour",
    "augment=pca_noise": "lighting pca color_noise",
    "augment=rotate": "random_rotation rotation",
    "augment=affine": "random_affine",
    "augment=randaugment": "ra rand_augment autoaugment auto_augment aa",
    "augment=trivialaugment": "ta_wide trivial_augment_wide",
    "augment=none": "off no false",
    "callbacks=ema": "swa model_ema",
    "callbacks=none": "off no false",
    "data=folder": "imagefolder image_folder imagenet custom path",
    "debug=batch": "true default fast_dev_run",
    "logger=none": "off no false csv",
    "logger=wandb": "wb weights_and_biases true",
    "loss=cross_entropy": "ce xent nll cross_entropy_loss",
    "loss=smooth": "label_smoothing smoothing",
    "mixup=off": "none no false",
    "mixup=on": "true yes mixup",
    "model=convnet": "cnn vgg simple small",
    "model=mlp": "dense linear fc",
    "model=resnet model.depth=20": "resnet20",
    "model=resnet model.depth=32": "resnet32",
    "model=resnet model.depth=44": "resnet44",
    "model=resnet model.depth=56": "resnet56",
    "optimizer=adamw": "adam",
    "optimizer=sgd": "nesterov momentum",
    "penalty=decay": "weight_decay wd",
    "penalty=none": "off no false",
    "scheduler=cosine": "cos cosine_annealing cosine_annealing_lr cosine_lr",
    "scheduler=cosine_restarts": "cosine_annealing_warm_restarts sgdr warm_restarts",
    "scheduler=constant": "none off no false fixed",
    "scheduler=one_cycle": "one_cycle_lr 1cycle",
    "scheduler=plateau": "reduce_lr_on_plateau reduce_on_plateau",
    "scheduler=polynomial": "poly polynomial_lr",
    "trainer=gpu": "cuda",
}

TORCHVISION_MODELS = re.compile(
    r"alexnet|convnext_(tiny|small|base|large)|densenet\d+|efficientnet_(b\d|v2_[sml])|googlenet|"
    r"inception_v3|maxvit_t|mnasnet\d_\d+|mobilenet_v[23]\w*|regnet_[xy]_\d+[gm]f|resnet\d+|"
    r"resnext\d+_\w+|shufflenet_v2_\w+|squeezenet1_\d|swin_(v2_)?[tsb]|vgg\d+(_bn)?|"
    r"vit_[blh]_\d+|wide_resnet\d+_2"
)

# Common to many groups, so no hint at another group
SWITCH_VALUES = ("none", "off", "no", "false", "true", "yes")


def suggest_key(key: str, value: str, known: Collection[str], conf: Path) -> str:
    """Return " Did you mean optimizer.lr=0.1?" for the key most likely meant, or "".

    Tried in this order: a new name, a key of an option that was not chosen, a name of other tools,
    a misspelt sibling, the same last part elsewhere in the config, a misspelt name of anything.
    """
    if new := find_new_name(key):
        return f" It is called {new if '=' in new else assign(new, value)} now."
    if owners := find_options(key, conf):
        group = key.partition(".")[0]
        example = f"{group}={owners[0]} {assign(key, value)}"
        return f" It belongs to {group}={', '.join(owners)}: {example}"
    parent, _, name = key.rpartition(".")
    siblings = find_siblings(key, known) if parent else []
    if alias := translate(KEY_ALIASES, name):
        return suggest_alias(alias.format(value), known, conf)
    if near := closest(name, siblings, 0.6):
        return f" Did you mean {assign(f'{parent}.{near}', value)}?"
    elsewhere = sorted(other for other in known if other.rpartition(".")[2] == name)
    if elsewhere:
        candidates = " or ".join(assign(other, value) for other in elsewhere[:3])
        return f" Did you mean {candidates}?"
    return suggest_misspelt(key, value, known, conf)


def suggest_misspelt(key: str, value: str, known: Collection[str], conf: Path) -> str:
    """Return a suggestion for a key similar to a name of other tools or of anything known."""
    parent, _, name = key.rpartition(".")
    if near := closest(name, list_names(KEY_ALIASES), 0.8):
        alias = str(translate(KEY_ALIASES, near))
        return suggest_alias(alias.format(value), known, conf)
    if not parent and (near := closest(name, find_siblings(key, known), 0.6)):
        return f" Did you mean {assign(near, value)}?"
    by_name = {other.rpartition(".")[2]: other for other in sorted(known, reverse=True)}
    near = closest(name, by_name, 0.75)
    return f" Did you mean {assign(by_name[near], value)}?" if near else ""


def find_siblings(key: str, known: Iterable[str]) -> list[str]:
    """Return the last parts of the keys with the same parent as a dotted key."""
    parent = key.rpartition(".")[0]
    prefix = f"{parent}." if parent else ""
    names = set()
    for other in known:
        if other.startswith(prefix):
            names.add(other[len(prefix) :].partition(".")[0])
    return sorted(name for name in names if not name.startswith("_"))


def assign(key: str, value: str) -> str:
    return f"{key}={value}" if value else key


def suggest_alias(overrides: str, known: Collection[str], conf: Path) -> str:
    """Suggest the overrides for a name of other tools, with the option that has their key."""
    key, _, value = overrides.rpartition(" ")[2].partition("=")
    if key != overrides.partition("=")[0]:  # several overrides, complete in themselves
        return f" Did you mean {overrides}?"
    if "." not in key and (conf / key).is_dir() and value not in list_options(conf / key):
        return suggest_option(key, value, conf)
    is_missing = key not in known and not key.startswith("hydra.")
    if is_missing and (owners := find_options(key, conf)):
        overrides = f"{key.partition('.')[0]}={owners[0]} {overrides}"
    return f" Did you mean {overrides}?"


def suggest_option(group: str, option: str, conf: Path) -> str:
    """Return " Did you mean scheduler=cosine?" for an option that `group` lacks, or ""."""
    known = list_options(conf / group)
    if overrides := translate_option(group, option, conf):
        return f" Did you mean {overrides}?"
    if group == "mixup" and re.fullmatch(r"0?\.\d+|[1-9]\d*(\.\d+)?", option):
        return f" Did you mean mixup=on mixup.alpha={option}?"
    if group == "model" and re.search(r"\d|_|-", option) and not closest(option, known, 0.9):
        library = "torchvision" if TORCHVISION_MODELS.fullmatch(option) else "timm"
        return f" Did you mean model={library} model.name={option}?"
    if overrides := find_in_other_groups(group, option, conf):
        return f" Did you mean {overrides}?"
    near = closest(option, known, 0.5)
    return f" Did you mean {group}={near}?" if near else ""


def find_in_other_groups(group: str, option: str, conf: Path) -> str:
    """Return overrides with the option of that name, or alias, of another group; or ""."""
    if option in SWITCH_VALUES:
        return ""
    for other in list_groups(conf):
        if other == group:
            continue
        if option in list_options(conf / other):
            return f"{other}={option}"
        if overrides := translate_option(other, option, conf):
            return overrides
    return ""


def translate_option(group: str, option: str, conf: Path) -> str:
    """Return the overrides for the name that other tools have for an option of a group, or ""."""
    for overrides, aliases in OPTION_ALIASES.items():
        owner, _, name = overrides.split()[0].partition("=")
        if owner != group or name not in list_options(conf / group):
            continue
        if normalise(option) in map(normalise, aliases.split()):
            return overrides
    return ""


def translate(table: dict[str, str], name: str) -> str | None:
    """Return the overrides for a name of other tools."""
    for overrides, aliases in table.items():
        if normalise(name) in map(normalise, aliases.split()):
            return overrides
    return None


def list_names(table: dict[str, str]) -> list[str]:
    return [name for aliases in table.values() for name in aliases.split()]


def normalise(name: str) -> str:
    """Return a name in lower case without `_` and `-`, on which tools disagree."""
    return re.sub("[_-]", "", name).lower()
