"""The memory format and the threads that `auto` stands for, chosen and restored."""

import json
import os

import pytest
import torch
import yaml
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from helpers.configs import compose_and_check, configure
from tricklab.analysis.evaluation import make_trainer
from tricklab.devices import wait_as_usual, wait_asleep
from tricklab.errors import UserError
from tricklab.run import hardware
from tricklab.run.automatic import describe, find_recorded, is_automatic, restore
from tricklab.run.build import build_net
from tricklab.run.folder import check_same_options
from tricklab.run.hardware import choose, choose_threads, flops_per_image
from tricklab.run.trained import read_trained

SHORT = ("data.train_size=128", "trainer.max_epochs=2")
CHOICE = {"channels_last": True, "threads": 2}
SMALL, LARGE = 0.99e8, 1e8  # FLOPs of a layer


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CORES_OF_RUN", raising=False)
    for module in ("devices", "run.automatic"):
        monkeypatch.setattr(f"tricklab.{module}.count_cores", lambda: 8)


@pytest.mark.parametrize(
    ("net", "shape", "flops"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), (3, 2, 2), 2 * 12 * 5),
        (nn.Conv2d(3, 4, 3, padding=1), (3, 6, 5), 2 * 3 * 4 * 9 * 30),
        (nn.Conv2d(4, 4, 3, groups=2), (4, 5, 5), 2 * 2 * 4 * 9 * 9),
    ],
)
def test_flops_are_two_for_each_weight_and_position(net, shape, flops):
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(4, *shape))
    assert sum(flops_per_image(counter, images=4).values()) == flops


def test_network_without_flops_has_none():
    with FlopCounterMode(display=False) as counter:
        nn.Flatten()(torch.zeros(2, 3, 4))
    assert flops_per_image(counter, images=2) == {}
    assert choose(configure(), nn.Flatten(), {}) == {"channels_last": False, "threads": 1}


@pytest.mark.parametrize(
    ("overrides", "channels_last", "threads"),
    [
        ((), True, 1),  # 8 x 8 pixels
        (("data.batch_size=1024",), True, 8),
        (("model=mlp",), False, 1),
        (("model=mlp", "model.widths=[4096,4096]"), False, 8),
        (("model=resnet", "model.depth=8", "data.batch_size=2048"), True, 8),
        (("model=mlp", "trainer.channels_last=true", "trainer.threads=3"), True, 3),
        (("trainer.channels_last=false",), False, 1),
    ],
)
def test_choice_follows_from_the_config(overrides, channels_last, threads):
    config = configure(*overrides)
    net = build_net(config, (1, 8, 8), 10)
    assert (config.trainer.channels_last, config.trainer.threads) == (channels_last, threads)
    is_channels_last = any(
        weight.ndim == 4
        and weight.shape[1] > 1
        and weight.is_contiguous(memory_format=torch.channels_last)
        for weight in net.parameters()
    )
    assert is_channels_last == (channels_last and "model=mlp" not in overrides)


def test_memory_format_is_chosen_for_a_cpu_alone(monkeypatch):
    flops = {"aten.convolution": 51.0, "aten.mm": 49.0}
    monkeypatch.setattr(hardware, "has_gpu", lambda: True)
    assert not choose(configure(), nn.Conv2d(1, 2, 3), flops)["channels_last"]
    assert choose(configure("trainer=cpu"), nn.Conv2d(1, 2, 3), flops)["channels_last"]
    dense = {"aten.convolution": 49.0, "aten.mm": 51.0}
    assert not choose(configure("trainer=cpu"), nn.Conv2d(1, 2, 3), dense)["channels_last"]


def test_evaluation_has_the_threads_of_the_run_but_no_more_than_cores(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr("tricklab.analysis.evaluation.count_cores", lambda: 3)
    for threads, expected in ((2, 2), (64, 3)):
        make_trainer(configure("trainer=cpu", f"trainer.threads={threads}").trainer)
        assert torch.get_num_threads() == expected
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("environment", "devices", "flops", "threads"),
    [
        ({}, 1, SMALL, 1),
        ({}, 1, LARGE, 8),
        ({}, 3, LARGE, 2),
        ({}, 16, LARGE, 1),
        ({}, "0,1", LARGE, 4),
        ({}, "auto", LARGE, 8),
        ({"CORES_OF_RUN": "2"}, 1, LARGE, 2),
        ({"CORES_OF_RUN": "2"}, 1, SMALL, 1),
        ({"OMP_NUM_THREADS": "5"}, 1, SMALL, 5),
        ({"OMP_NUM_THREADS": "5"}, 2, LARGE, 5),
    ],
)
def test_threads_follow_from_layers_and_cores(monkeypatch, environment, devices, flops, threads):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    trainer = configure("trainer.accelerator=cpu", f"trainer.devices='{devices}'").trainer
    assert choose_threads(trainer, flops) == threads


def test_recorded_choice_replaces_auto_alone():
    trainer = configure("trainer.threads=2").trainer
    restore(trainer, {"channels_last": False, "threads": 7})
    assert (trainer.channels_last, trainer.threads) == (False, 2)


@pytest.mark.parametrize(
    ("recorded", "found"),
    [
        ({}, {}),
        (
            {"automatic": {"channels_last": True, "threads": 2}},
            {"channels_last": True, "threads": 2},
        ),
        ({"trainer": {"channels_last": False}}, {"channels_last": False}),  # of an older run
        ({"trainer": {"channels_last": "auto"}, "automatic": None}, {}),
        ({"automatic": {"channels_last": 1, "threads": True}}, {}),
        ({"automatic": {"channels_last": "true", "threads": 10**9}}, {}),
        ({"automatic": {"threads": 0}}, {}),
        ({"automatic": ["threads"]}, {}),
    ],
)
def test_only_a_valid_choice_is_taken_from_a_file(recorded, found):
    assert find_recorded(recorded) == found


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("trainer.threads", "auto", True),
        ("trainer.channels_last", True, False),
        ("trainer.devices", "auto", False),
        ("threads", "auto", False),
    ],
)
def test_automatic_keys_are_known(key, value, expected):
    assert is_automatic(key, value) == expected


def test_description_names_threads_and_format():
    assert describe({"threads": 1, "channels_last": False}) == "1 thread of 8 cores"
    assert describe({"threads": 2, "channels_last": True}) == "2 threads of 8 cores, channels last"


@pytest.mark.parametrize("value", ["0", "1025", "many", "1.5", "true"])
def test_wrong_number_of_threads_is_refused(value):

    with pytest.raises(UserError, match=r"trainer\.threads"):
        compose_and_check(f"trainer.threads={value}")


def test_waiting_threads_sleep_soon_unless_the_environment_says_otherwise(monkeypatch):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    wait_asleep()
    assert os.environ["GOMP_SPINCOUNT"] == "3000"
    wait_as_usual()
    assert "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    wait_asleep()
    wait_as_usual()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    wait_asleep()
    assert "GOMP_SPINCOUNT" not in os.environ


# Whole runs


def choice_of(run):
    """Return what config.yaml, the checkpoint and result.json say."""
    config = yaml.safe_load((run.folder / "config.yaml").read_text())
    checkpoint = torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)
    threads = json.loads((run.folder / "result.json").read_text())["machine"]["threads"]
    assert config["automatic"] == checkpoint["automatic"]
    assert config["automatic"]["threads"] == threads
    return config["automatic"]


def test_run_records_and_resume_restores_its_choice(run, monkeypatch, capsys):
    first = run(*SHORT, "stop_after=1ep", folder="run")
    assert choice_of(first) == {"channels_last": True, "threads": 1}
    assert "1 thread of 8 cores, channels last" in capsys.readouterr().out
    config = yaml.safe_load((first.folder / "config.yaml").read_text())
    assert config["trainer"]["channels_last"] == config["trainer"]["threads"] == "auto"
    # on another machine, another choice
    monkeypatch.setattr(hardware, "choose_threads", lambda *arguments: 2)
    monkeypatch.setattr(hardware, "on_cpu", lambda trainer: False)
    again = run(*SHORT, "resume=auto", folder="run")
    assert choice_of(again) == {"channels_last": True, "threads": 1}
    other = run(*SHORT, folder="other")
    assert choice_of(other) == {"channels_last": False, "threads": 2}


def test_run_from_before_auto_resumes_in_its_memory_format(run):
    """Its config.yaml has `channels_last: false`, which was the default."""
    first = run(*SHORT, "trainer.channels_last=false", "stop_after=1ep", folder="run")
    last = first.folder / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    del checkpoint["automatic"]
    torch.save(checkpoint, last)
    path = first.folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    del config["automatic"], config["trainer"]["threads"]
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    again = configure(*SHORT, "resume=auto", "trainer=cpu")
    check_same_options(first.folder, again)
    assert choice_of(run(*SHORT, "resume=auto", folder="run"))["channels_last"] is False


def test_network_is_read_with_the_choice_in_its_checkpoint(run):
    """Not with that of this machine, nor with another one beside it."""
    first = run(*SHORT, "stop_after=1ep")
    best = first.folder / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(best, weights_only=True)
    checkpoint["automatic"] = {"channels_last": False, "threads": 2}
    torch.save(checkpoint, best)
    trained = read_trained(best, "ckpt")
    assert (trained.config.trainer.channels_last, trained.config.trainer.threads) == (False, 2)
    trained.net()
    assert (trained.config.trainer.channels_last, trained.config.trainer.threads) == (False, 2)
