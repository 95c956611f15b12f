"""Old names of config keys: answered with the new one, and read in older checkpoints."""

import pytest
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from helpers.configs import compose_and_check
from tricklab.cli.messages import explain
from tricklab.cli.renamed import rename_keys
from tricklab.errors import UserError
from tricklab.run.untrusted import validate_config


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=folder", "data.resize=64"], "It is called data.size=64 now."),
        (["data=folder", "data.skip_damaged=true"], "It is called data.skip_corrupt=true now."),
        (["loss.weight=[1,2]"], "It is called loss.class_weights=[1,2] now."),
        (["mixup=on", "mixup.begin=1ep"], "It is called mixup.start=1ep now."),
        (["mixup=on", "mixup.end=80%"], "It is called mixup.stop=80% now."),
        (["augment=erase", "augment.erase.largest=0.2"], "augment.erase.scale=[LOW,HIGH] now."),
        (["penalty=l2", "penalty.l2.only=weight"], "It is called penalty.l2.params=weight now."),
        (["optimizer.lr_per=256"], "It is called optimizer.lr_base_batch_size=256 now."),
        (["model.body_lr=0.1"], "It is called model.backbone_lr_mult=0.1 now."),
        (["scheduler.hold=1ep"], "It is called scheduler.update_every=1ep now."),
        (["scheduler=cosine_restarts", "scheduler.mult=2"], "scheduler.period_mult=2 now."),
        (["logger=wandb", "logger.wandb.mistakes=9"], "logger.wandb.log_mistakes=9 now."),
        (["logger=wandb", "logger.wandb.confusion=true"], "log_confusion_matrix=true now."),
    ],
)
def test_old_name_answers_with_the_new_one(monkeypatch, overrides, message):
    monkeypatch.setattr("sys.argv", ["train.py", *overrides])
    with pytest.raises((HydraException, OmegaConfBaseException, UserError)) as refused:
        compose_and_check(*overrides)
    assert message in explain(refused.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [(["dry=true"], "It is called dry_run=true now."), (["sweep.of={}"], "sweep.arms={} now.")],
)
def test_old_name_of_a_sweep_answers_with_the_new_one(train, overrides, message):
    done = train("-m", "seed=0,1", "sweep=arms", *overrides)
    assert done.returncode == 1
    assert message in done.stderr


def test_rename_keys_joins_the_areas_of_erase():
    old = {"probability": 0.5, "smallest": 0.1, "largest": 0.3}
    assert rename_keys("augment.erase", old) == {"probability": 0.5, "scale": [0.1, 0.3]}
    assert rename_keys("augment.flip", {"smallest": 1}) == {"smallest": 1}


def test_config_of_an_older_checkpoint_is_read():
    config = {
        "model": {"_target_": "tricklab.model.mlp", "widths": [8], "body_lr": 0.5},
        "data": {"_target_": "tricklab.data.datasets.folder", "resize": 64, "skip_damaged": True},
    }
    valid = validate_config(config, "the config")
    assert valid.model.backbone_lr_mult == 0.5
    assert valid.data.size == 64
    assert valid.data.skip_corrupt
    with pytest.raises(UserError, match="does not exist"):
        validate_config({**config, "data": {**config["data"], "rezise": 1}}, "the config")
