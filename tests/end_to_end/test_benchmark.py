"""The benchmark: its turns and tables, and that each variant trains the same network."""

import pytest
import torch
from torch import nn

from tricklab.analysis.benchmark import loops, parts, rounds
from tricklab.analysis.benchmark.cases import EVERYTHING, GREY, NETS, OURS

THREADS = torch.get_num_threads()


def test_fractions_are_of_the_same_round_and_of_the_fastest_turns(monkeypatch, capsys):
    speeds = [(100.0, 50.0), (200.0, 180.0), (50.0, 40.0)]
    measured = [{"plain loop": plain, "ours": ours} for plain, ours in speeds]
    monkeypatch.setattr(parts, "run_rounds", lambda *arguments: measured)
    tables = parts.measure_steps(threads=1, repeats=1)
    assert tables["mlp, batches of 128"]["ours"] == {
        "images/s": 50,
        "of the plain loop": 0.8,
        "at their fastest": 0.9,
    }
    assert "200 images/s of the plain loop at best" in capsys.readouterr().out


def test_repeats_start_new_processes(monkeypatch):
    groups = []

    def alternate(variants, steps, threads, ours):
        assert set(ours) == set(OURS)
        groups.append(set(variants))
        return [{"group": len(groups)}]

    monkeypatch.setattr(parts, "alternate_in_processes", alternate)
    assert parts.run_rounds("mlp", 128, threads=1, repeats=2) == [{"group": 1}, {"group": 2}]
    assert groups[0] == groups[1] >= {"plain loop", *OURS}


@pytest.mark.kills
def test_rounds_time_all_variants(monkeypatch):
    """In processes that are forked, as new ones take ten seconds each."""
    context = rounds.multiprocessing.get_context
    monkeypatch.setattr(rounds.multiprocessing, "get_context", lambda method: context("fork"))
    monkeypatch.setitem(parts.CASES, ("mlp", 128), 16)
    monkeypatch.setitem(parts.NETS, "mlp", ("model=mlp", "data.images=4000"))
    monkeypatch.setattr(parts, "OURS", {"defaults": (), "everything on": EVERYTHING})
    measured = parts.run_rounds("mlp", 128, threads=THREADS, repeats=1)
    assert len(measured) == rounds.TURNS
    for speeds in measured:
        assert list(speeds) == [
            "plain loop",
            "plain loop, DataLoader, 0 workers",
            "plain loop, DataLoader, 2 workers",
            "Lightning with nothing on",
            "defaults",
            "everything on",
        ]
        assert min(speeds.values()) > 0
    assert loops.compose_and_load.cache_info().currsize == 0  # each has a process of its own


@pytest.mark.slow
def test_files_are_trained_on_in_each_way(monkeypatch, tmp_path):
    monkeypatch.setattr(parts, "JPEG_FILES", 3000)
    parts.write_jpegs(tmp_path, 3000)
    assert len(list(tmp_path.glob("train/*/*.jpg"))) == 3000
    speeds = parts.train_on_files(tmp_path, THREADS)
    assert speeds["ours, first epoch"] < speeds["ours, later epochs"]
    assert min(speeds.values()) > 0


def test_new_process_keeps_the_start_method():
    expression = "__import__('multiprocessing').get_start_method()"
    assert rounds.run_in_new_process(eval, expression) == eval(expression)


def test_table_holds_the_medians():
    measured = [{"a": 1200.0, "b": 0.5}, {"a": 1100.0, "b": 0.25}, {"a": 9000.0, "b": 0.75}]
    table = rounds.make_table({"images/s": measured, "again": measured})
    lines = rounds.format_table("speed", table).splitlines()[1:]
    assert [line.split() for line in lines] == [
        ["speed", "images/s", "again"],
        ["a", "1,200", "1,200"],
        ["b", "0.500", "0.500"],
    ]


def test_stages_of_a_start_add_up(monkeypatch):
    stages = parts.time_stages(THREADS)
    assert list(stages) == [
        "to compose the config",
        "to import the rest",
        "from there to the end of the first step",
        "a checkpoint",
    ]
    assert min(stages.values()) > 0


# ours calls the network on zeros and in an evaluation before the first batch
@pytest.mark.parametrize(
    ("train", "batch"),
    [(loops.plain_loop, -1), (loops.plain_lightning, -1), (loops.ours, 2)],
    ids=["plain loop", "Lightning", "ours"],
)
def test_loops_train_the_same_network_on_normalised_images(monkeypatch, train, batch):
    inputs = record_inputs(monkeypatch)
    train(SMALL, 5)
    check_batch(inputs[batch])


def test_dataloader_loop_trains_the_same_network(monkeypatch):
    inputs = record_inputs(monkeypatch)
    loops.dataloader_loop(SMALL, workers=0, steps=5)
    check_batch(inputs[-1])


SMALL = (*GREY, "data.images=600", "data.val_size=100", *NETS["mlp"])


def record_inputs(monkeypatch):
    """Return a list to which each input of an MLP is appended."""
    inputs = []

    def flatten(self, images):
        inputs.append(images)
        return images.flatten(1)

    monkeypatch.setattr(nn.Flatten, "forward", flatten)
    return inputs


def check_batch(images):
    assert images.shape == (128, 1, 28, 28)
    assert images.mean().abs() < 0.1
    assert (images.std() - 1).abs() < 0.1
