"""A checkpoint to resume from: validated completely before anything of a run is changed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tricklab.errors import UserError
from tricklab.files import UnreadableError, read_checkpoint

REQUIRED: dict[str, type] = {  # keys of a Lightning checkpoint that training needs, and their types
    **dict.fromkeys(("state_dict", "loops", "callbacks"), dict),
    **dict.fromkeys(("optimizer_states", "lr_schedulers"), list),
    **dict.fromkeys(("global_step", "epoch"), int),
}


class Progress(NamedTuple):
    """The position of a checkpoint, in optimizer steps and complete epochs, and its content."""

    steps: int
    epochs: int
    content: dict[str, Any]


NO_PROGRESS = Progress(0, 0, {})


def read_progress(path: Path) -> Progress:
    """Read a checkpoint to resume from. Raises UserError with alternatives: it is damaged."""
    try:
        content = read_checkpoint(path)
        for key, kind in REQUIRED.items():
            if not isinstance(content.get(key), kind):
                raise UnreadableError(f"{path} is damaged: it has no {key}")
        epochs = content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        best = path.parent / "best.ckpt"
        if content["callbacks"].get("best", {}).get("best") and not best.is_file():
            raise UnreadableError(f"{best} is missing, although {path.name} refers to it")
    except (UnreadableError, AttributeError, LookupError, TypeError) as error:
        raise UserError(f"resume: {error}; {_suggest_others(path)}") from error
    return Progress(content["global_step"], int(epochs), content)


def _suggest_others(path: Path) -> str:
    others = [f"resume={other}" for other in sorted(path.parent.glob("*.ckpt")) if other != path]
    return f"try {' or '.join(others)}" if others else "start a new run in another folder"


def check_dataset(ours: Mapping[str, Any], progress: Progress, path: Path) -> None:
    """Raise UserError if `config.yaml` describes other data than the checkpoint."""
    theirs = progress.content.get("dataset", ours)
    for key in sorted({**ours, **theirs}):
        if ours.get(key) != theirs.get(key):
            reason = f"dataset.{key} differs from {path.name}; the file was edited, or is damaged"
            raise UserError(f"resume: config.yaml: {reason}")


def check_fits(
    progress: Progress,
    weights: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    path: Path,
) -> None:
    """Raise UserError if the tensors of a checkpoint do not fit this network and optimizer."""
    if not progress.content:
        return
    try:
        _check_weights(weights, progress.content["state_dict"])
        (state,) = progress.content["optimizer_states"]
        optimizer.load_state_dict(state)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                _check_moments(parameter, optimizer.state.get(parameter, {}))
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"resume: {path} is damaged: {reason}; {_suggest_others(path)}") from error


def _check_weights(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    for key in {**ours, **theirs}:
        if not _same_kind(ours.get(key), theirs.get(key)):
            raise ValueError(f"{key} does not fit this network")


def _same_kind(one: Any, other: Any) -> bool:
    if not (isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)):
        return False
    return one.shape == other.shape and one.dtype == other.dtype


def _check_moments(parameter: torch.Tensor, moments: Mapping[str, Any]) -> None:
    for name, moment in moments.items():
        if torch.is_tensor(moment) and moment.numel() > 1 and moment.shape != parameter.shape:
            raise ValueError(f"{name} has the shape {list(moment.shape)}")
