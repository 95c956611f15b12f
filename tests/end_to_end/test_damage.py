"""Runs with a damaged or edited file: it is named, and nothing is changed."""

import random
import zipfile

import pytest
import torch
from omegaconf import OmegaConf

from tricklab.analysis.trained import load_checkpoint
from tricklab.errors import UserError
from tricklab.files import CONFIG, UnreadableError, read_checkpoint, read_safetensors, read_yaml

OVERRIDES = ("model=mlp", "model.widths=[4]", "stop_after=2it")


def read_export(path):
    """Return what the checksum of an exported file covers: tensors and config."""
    tensors, metadata = read_safetensors(path)
    return tensors, metadata[CONFIG]


def is_equal(one, other):
    """Compare nested dicts, lists and tensors."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(is_equal, one, other))
    return one == other


def flip_byte(content, offset, rng):
    """Return the content with another byte at the offset."""
    flipped = bytearray(content)
    flipped[offset] ^= rng.randrange(1, 256)
    return bytes(flipped)


def find_tensor(content, path):
    """Return the offsets of the first weight matrix in the content of a file."""
    weights = load_checkpoint(path).state.values()
    matrix = next(tensor for tensor in weights if tensor.ndim == 2).numpy().tobytes()
    start = content.index(matrix)
    return range(start, start + len(matrix))


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("last.ckpt", read_checkpoint),
        ("best.ckpt", read_checkpoint),
        ("best.safetensors", read_export),
    ],
)
def test_flipped_byte_is_detected_or_changes_nothing(cached_run, run_script, name, read):
    """In a tensor, where torch and safetensors detect nothing, it is always detected."""
    run = cached_run(*OVERRIDES).folder
    assert run_script("export.py", str(run)).returncode == 0
    path = run / "checkpoints" / name
    content, original = path.read_bytes(), read(path)
    rng = random.Random(0)
    in_tensor = rng.sample(find_tensor(content, path), 100)
    anywhere = rng.sample(range(len(content)), 100)
    undetected = []
    for offset in [*in_tensor, *anywhere]:
        path.write_bytes(flip_byte(content, offset, rng))
        try:
            damaged = read(path)
        except UnreadableError:
            continue
        undetected.append(offset)
        assert is_equal(damaged, original), f"byte {offset}"
    assert not set(undetected) & set(in_tensor)
    assert len(undetected) <= 50


def test_tensor_that_is_marked_as_a_folder_is_refused(cached_run):
    """One flipped byte of the zip's directory: torch would return memory that nobody has set."""
    path = cached_run(*OVERRIDES).folder / "checkpoints" / "last.ckpt"
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        entry = content.index(b"PK\x01\x02", archive.start_dir + 1)
    content[entry + 38] |= 0x10  # the external attributes
    path.write_bytes(content)
    with pytest.raises(UnreadableError, match="has attributes; torch writes none"):
        read_checkpoint(path)


@pytest.mark.parametrize("key", ["mean", "std", "classes", "input"])
def test_edited_config_is_refused(cached_run, run_script, key):
    run = cached_run(*OVERRIDES).folder
    config = read_yaml(run / "config.yaml")
    config["dataset"][key] = [*config["dataset"][key][::-1], "x"]
    (run / "config.yaml").write_text(OmegaConf.to_yaml(config))
    output = run_script("evaluate.py", str(run))
    assert output.returncode == 1
    assert "config.yaml: dataset differs from best.ckpt" in output.stderr


def drop(key):
    return lambda checkpoint: {k: v for k, v in checkpoint.items() if k != key}


def drop_first_weight(checkpoint):
    weights = dict(list(checkpoint["state_dict"].items())[1:])
    return checkpoint | {"state_dict": weights}


def reshape_weight(checkpoint):
    weights = checkpoint["state_dict"] | {"net.1.weight": torch.zeros(2, 2)}
    return checkpoint | {"state_dict": weights}


def reshape_momentum(checkpoint):
    state = checkpoint["optimizer_states"][0]["state"]
    state[0].update(momentum_buffer=torch.zeros(7))
    return checkpoint


@pytest.mark.parametrize(
    "edit",
    [
        lambda checkpoint: [checkpoint],
        drop("optimizer_states"),
        drop_first_weight,
        reshape_weight,
        reshape_momentum,
        lambda checkpoint: checkpoint | {"optimizer_states": []},
        lambda checkpoint: checkpoint | {"state_dict": None},
        lambda checkpoint: checkpoint | {"callbacks": {"best": {}, "last": 3}},
        lambda checkpoint: checkpoint | {"callbacks": {"best": {"best_model_path": 3}}},
        lambda checkpoint: checkpoint | {"loops": {}},
        lambda checkpoint: checkpoint | {"global_step": "three"},
        lambda checkpoint: checkpoint | {"lr_schedulers": None},
        lambda checkpoint: checkpoint | {"dataset": {}},
        lambda checkpoint: checkpoint | {"temperature": "hot"},
    ],
)
def test_resume_names_a_checkpoint_of_another_structure(cached_run, run, edit):
    done = cached_run(*OVERRIDES)
    last = done.folder / "checkpoints" / "last.ckpt"
    metrics = done.metrics_text
    torch.save(edit(done.checkpoint()), last)
    message = r"last\.ckpt|config\.yaml: dataset|checkpoint"
    with pytest.raises(UserError, match=message) as error:
        run(*OVERRIDES[:2], f"resume={done.folder}")
    assert len(str(error.value).splitlines()) == 1
    assert done.metrics_text == metrics
