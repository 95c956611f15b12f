"""A model card beside an exported file, as model hubs read it: README.md with a YAML header."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml  # type: ignore[import-untyped]

from tricklab.analysis.evaluation import Evaluation
from tricklab.analysis.page import format_table
from tricklab.analysis.trained import LoadedCheckpoint
from tricklab.cli.escape import for_markdown
from tricklab.cli.overrides import split_key
from tricklab.data.evaluation import FINDERS
from tricklab.files import read_text, texts
from tricklab.run.folder import read_result
from tricklab.run.identity import is_excluded_from_hash

NAME = "README.md"
MARK = "<!-- written by scripts/export.py -->"
PLACES = ("data.root", "data.table", "model.weights", "loss.teacher")  # paths of the machine
MAX_CLASSES = 50  # that are listed
SHOWN = {  # metrics of the test set, by the names that readers know
    "test/acc": "accuracy",
    "test/balanced_acc": "balanced accuracy",
    "test/f1_macro": "F1 (macro)",
    "test/nll": "negative log-likelihood",
    "test/ece": "expected calibration error",
    "test/ece_t": "the same with temperature",
}
USAGE = {
    "onnx": """import numpy as np, onnxruntime

session = onnxruntime.InferenceSession({file!r})
images = np.zeros((1, {shape}), np.uint8)  # batch, channels, height, width; 0 to 255
(probabilities,) = session.run(None, {{"images": images}})""",
    "torch_export": """import torch

network = torch.export.load({file!r}).module()
images = torch.zeros(1, {shape}, dtype=torch.uint8)  # batch, channels, height, width; 0 to 255
probabilities = network(images)""",
    "safetensors": """# in a checkout of the project that trained it
# python scripts/predict.py ckpt={file} input=PICTURES
# python scripts/evaluate.py ckpt={file} data=folder data.root=PICTURES""",
}


class Subject(NamedTuple):
    """What a card describes: an exported file, its format, and its evaluation if there is one.

    `shape` is that of its images, `temperature` the one that its logits are divided by.
    """

    file: str
    kind: str
    shape: tuple[int, int, int]
    temperature: float
    evaluation: Evaluation | None


def card_path(output: Path) -> Path:
    """Return where the card of a file goes: README.md beside it, unless that is someone else's."""
    path = output.with_name(NAME)
    if path.exists() and MARK not in read_text(path):
        return output.with_name(f"{output.stem}.card.md")
    return path


def format_card(checkpoint: LoadedCheckpoint, subject: Subject) -> str:
    """Return the text of a card."""
    result = read_result(checkpoint.path.parents[1])
    parts = [
        format_header(checkpoint, subject),
        MARK,
        f"# {for_markdown(describe_network(checkpoint))}",
        format_results(subject.evaluation),
        format_input(checkpoint, subject.shape),
        format_usage(subject),
        format_training(result),
        "## License\n\nNot chosen yet: add `license: ...` to the header.",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def describe_network(checkpoint: LoadedCheckpoint) -> str:
    """Return the network and the data of a checkpoint in a few words."""
    model, data = checkpoint.config.model, checkpoint.config.data
    option = model._target_.rpartition(".")[2]
    name = model.get("name") or option
    dataset = data._target_.rpartition(".")[2]
    if dataset in FINDERS:
        return f"{name} for {len(checkpoint.classes)} classes"
    return f"{name} on {dataset}"


def format_header(checkpoint: LoadedCheckpoint, subject: Subject) -> str:
    """Return the YAML header: tags and, with an evaluation, the results as a model index."""
    header: dict[str, Any] = {
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "pytorch", subject.kind],
        "metrics": ["accuracy"],
    }
    if subject.evaluation:
        name = describe_network(checkpoint)
        header["model-index"] = [{"name": name, "results": [index_entry(checkpoint, subject)]}]
    text = yaml.safe_dump(header, sort_keys=False, allow_unicode=True)
    return f"---\n{text}---"


def index_entry(checkpoint: LoadedCheckpoint, subject: Subject) -> dict[str, Any]:
    """Return the results as a model hub lists them."""
    assert subject.evaluation
    data = checkpoint.config.data._target_.rpartition(".")[2]
    accuracy = subject.evaluation.results["test/acc"]
    return {
        "task": {"type": "image-classification", "name": "Image classification"},
        "dataset": {"type": data, "name": data, "split": "test"},
        "metrics": [{"type": "accuracy", "name": "Accuracy", "value": round(accuracy, 6)}],
    }


def format_results(evaluation: Evaluation | None) -> str:
    """Return a table of test results with their intervals."""
    if not evaluation:
        return "## Results\n\nNot evaluated: the data were not found where it was exported."
    table = [["metric", "test", "95 % interval"]]
    for name, label in SHOWN.items():
        if name not in evaluation.results:
            continue
        interval = ""
        if name in evaluation.intervals:
            low, high = evaluation.intervals[name]
            interval = f"{low:.4f} to {high:.4f}"
        table.append([label, f"{evaluation.results[name]:.4f}", interval])
    note = f"On {evaluation.images:,} test images; intervals are bootstrap intervals over these."
    return f"## Results\n\n{format_table(table)}\n\n{note}"


def format_input(checkpoint: LoadedCheckpoint, shape: tuple[int, int, int]) -> str:
    """Return which images the network takes, and its classes in order."""
    spec = checkpoint.input_spec
    classes = [for_markdown(name) for name in checkpoint.classes]
    listed = ", ".join(classes[:MAX_CLASSES]) + (", ..." if len(classes) > MAX_CLASSES else "")
    color = {1: "grey", 3: "RGB"}.get(shape[0], f"{shape[0]} channels")
    lines = [f"- images: {color}, {shape[1]} x {shape[2]} pixels, of 0 to 255"]
    if "fit" in checkpoint.config.data:
        resizing = f"`{spec.fit}`, crop fraction {spec.crop_fraction:g}, {spec.interpolation}"
        lines.append(f"- resized before by {resizing}")
    lines += [
        f"- normalised within by mean {format_list(spec.mean)} and std {format_list(spec.std)}",
        f"- {len(classes)} classes: {listed}",
    ]
    return "## Input and classes\n\n" + "\n".join(lines)


def format_list(values: list[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def format_usage(subject: Subject) -> str:
    shape = ", ".join(map(str, subject.shape))
    code = USAGE[subject.kind].format(file=subject.file, shape=shape)
    note = f"Logits are divided by the temperature {subject.temperature:.4g} within."
    return f"## Usage\n\n```python\n{code}\n```\n\n{note}"


def format_training(result: Mapping[str, Any]) -> str:
    """Return the command, the commit and the versions of a run; "" if they are not known."""
    overrides = [for_reader(override) for override in texts(result.get("overrides"))]
    versions, git = result.get("versions"), result.get("git")
    if not isinstance(versions, dict):
        return ""
    command = shlex.join(["python", "train.py", *filter(None, overrides)])
    lines = [f"    {for_markdown_code(command)}"]
    commit = git.get("commit") if isinstance(git, dict) else None
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines += ["", for_markdown(f"Commit {commit or 'unknown'}; {packages}.")]
    return "## Training\n\n" + "\n".join(lines)


def for_reader(override: str) -> str:
    """Return an override without the paths of the machine; "" if it does not affect the result."""
    key = split_key(override)
    if is_excluded_from_hash(key):
        return ""
    return f"{key}=PATH" if key in PLACES else override


def for_markdown_code(text: str) -> str:
    """Return one line for an indented block of code, where nothing is interpreted."""
    return text.encode("unicode_escape").decode("ascii").replace("\\\\", "\\")
