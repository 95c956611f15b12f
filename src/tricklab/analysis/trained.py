"""A checkpoint, with all that is needed to use it: for evaluation, prediction and export."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from torch import nn

from tricklab.analysis.judge import judge
from tricklab.cli.check import check_value
from tricklab.cli.compose import compose_each
from tricklab.cli.messages import unknown_name
from tricklab.cli.overrides import read_arguments
from tricklab.data.batches import InputSpec, Preprocess
from tricklab.data.datasets import folder_to_evaluate
from tricklab.data.module import ImageData
from tricklab.errors import UserError
from tricklab.files import CHECKSUM, CONFIG, checksum, read_checkpoint, to_yaml
from tricklab.run.build import build_net
from tricklab.run.instantiate import build
from tricklab.run.weights import State, read_input_spec, read_state

MAY_CHANGE = ("trainer.accelerator", "trainer.precision")  # besides the data
PICTURES = ("resize", "mode", "background")  # how pictures are decoded: as in training


class Trained(NamedTuple):
    """The weights of a checkpoint, the options they were trained with, and how they take images.

    `dataset` has the classes, and the `height`, `width` and `channels` of the images before they
    become the network's input; `arguments` are those of the script. `own_data`: whether `data` are
    still those of the run; `data_named`: whether they were named on the command line.
    """

    path: Path
    state: State
    config: DictConfig
    dataset: Mapping[str, Any]
    images: InputSpec
    temperature: float
    arguments: dict[str, Any]
    own_data: bool
    data_named: bool

    @property
    def classes(self) -> list[str]:
        return list(self.dataset["classes"])

    def net(self) -> nn.Module:
        """Build the network for evaluation. Raises UserError: these weights do not fit it."""
        net = build_net(self.config, self.images.shape, len(self.classes))
        dtype = next((x.dtype for x in self.state.values() if x.is_floating_point()), None)
        try:
            net.to(dtype).load_state_dict(self.state)
        except RuntimeError as error:
            raise UserError(f"ckpt={self.path}: {' '.join(str(error).split())[:200]}") from error
        return net.eval()

    def unaveraged(self) -> State:
        """Return the weights of the last step, where those of the checkpoint are an average."""
        kept = {} if self.path.suffix == ".safetensors" else read_checkpoint(self.path)
        last = kept.get("current_model_state", {})
        return {key[4:]: value for key, value in last.items() if key.startswith("net.")}

    def data(self) -> ImageData:
        """Build the data. Raises UserError: they can't be had, or have other classes.

        Class folders other than the run's own are for evaluation as a whole, or in their part
        `test`. Only what was named on the command line is downloaded.
        """
        options = {key: value for key, value in self.config.data.items() if key != "_target_"}
        if self.config.data._target_.endswith(".folder") and not self.own_data:
            data = folder_to_evaluate(**options, classes=self.classes, seed=self.config.seed)
        else:
            data = build(self.config.data, seed=self.config.seed, download=self.data_named)
        if data.classes != self.classes:
            raise UserError(
                f"the data have the classes {data.classes}, the checkpoint {self.classes}"
            )
        data.match_input_spec(self.images)
        return data

    def preprocess(self) -> Preprocess:
        """Return what makes the network's input of images of 0 .. 255."""
        return Preprocess(self.images)

    def to_safetensors(self) -> bytes:
        """Return a file with the weights, and in its metadata all that is needed to use them."""
        from safetensors.torch import save

        facts = {"dataset": dict(self.dataset), "temperature": self.temperature}
        config = to_yaml({**OmegaConf.to_container(self.config), **facts})  # type: ignore[dict-item]
        state = {key: tensor.contiguous().clone() for key, tensor in self.state.items()}
        metadata = {CONFIG: config}
        return save(state, metadata | {CHECKSUM: checksum(state, metadata)})


def read_trained(arguments: Sequence[str], **allowed: Any) -> Trained:
    """Read the checkpoint that `ckpt=PATH` or a bare PATH names, or that of the run in a folder.

    `allowed` are further arguments of a script with their defaults. `data=NAME` takes that option
    whole, `data.KEY=VALUE` changes the run's own. Raises UserError for anything else.
    """
    given = read_arguments(arguments)
    own = {key: given.pop(key, default) for key, default in {"ckpt": None, **allowed}.items()}
    path = find_checkpoint(own["ckpt"])
    state, theirs = read_state(path)
    dataset = check_dataset(theirs.get("dataset"), path)
    images = read_input_spec(dataset)
    assert images is not None  # a dataset without them was refused
    config = judge(theirs, f"the config of {path}")
    before = copy.deepcopy(config.data)
    named = any(key.split(".")[0] == "data" for key in given)
    change(config, given, dataset, [*own, "data", *MAY_CHANGE])
    own_data = same_place(before, config.data)
    temperature = theirs.get("temperature", 1.0)
    check_value("temperature", temperature, 1.0)
    return Trained(path, state, config, dataset, images, float(temperature), own, own_data, named)


def find_checkpoint(path: str | None) -> Path:
    """Return the path of a checkpoint, also where that of its run's folder is given."""
    found = Path(path or "").expanduser()
    if path and found.is_dir():
        found = found / "checkpoints" / "best.ckpt"
    if not path or not found.is_file():
        expected = "the path of a checkpoint, of an exported file or of a run's folder"
        raise UserError(f"ckpt={path}: no such file; expected {expected}")
    return found


def check_dataset(dataset: Any, path: Path) -> dict[str, Any]:
    """Return what a config says of its data. Raises UserError: it says nothing, or nonsense."""
    if not dataset:
        raise UserError(f"ckpt={path} has no config.yaml of its run beside its folder")
    sides = ("channels", "height", "width")
    classes = dataset.get("classes") if isinstance(dataset, dict) else None
    named = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    if not named or not all(0 < _integer(dataset.get(side)) <= 2**16 for side in sides):
        raise UserError(f"the config of {path}: dataset has no names of classes, or no size")
    return dict(dataset)


def _integer(value: Any) -> int:
    return value if type(value) is int else 0


def change(
    config: DictConfig, given: dict[str, str], dataset: Mapping[str, Any], allowed: Sequence[str]
) -> None:
    """Put the data and the options that were asked for in place of the run's."""
    if "data" in given:
        overrides = [
            f"{key}={given.pop(key)}" for key in list(given) if key.split(".")[0] == "data"
        ]
        config.data = prepare_alike(config.data, compose_one(overrides).data, dataset, overrides)
    for key, value in given.items():
        if not key.startswith("data.") and key not in MAY_CHANGE:
            raise UserError(unknown_name(key, key, allowed))
        default = OmegaConf.select(config, key, default=config)
        if default is config:
            raise UserError(unknown_name(key, key.split(".")[1], map(str, config.data)))
        OmegaConf.update(config, key, OmegaConf.from_dotlist([f"v={value}"]).v)
        check_value(key, OmegaConf.select(config, key), default)


def prepare_alike(
    before: DictConfig, data: DictConfig, dataset: Mapping[str, Any], given: Sequence[str]
) -> DictConfig:
    """Return other data whose pictures are decoded as the run's own were, unless `given` says how."""
    square = dataset["height"] == dataset["width"]
    of_run = {"resize": dataset["height"] if square else None}
    of_run["mode"] = "L" if dataset["channels"] == 1 else "RGB"
    of_run |= {key: before[key] for key in PICTURES if key in before}
    named = {argument.partition("=")[0].removeprefix("data.") for argument in given}
    alike = {key: value for key, value in of_run.items() if key in data and key not in named}
    return OmegaConf.merge(data, alike)  # type: ignore[return-value]


def same_place(one: DictConfig, other: DictConfig) -> bool:
    """Whether two data options read the same files."""
    places = [Path(data.get("root", "")).expanduser().resolve() for data in (one, other)]
    return bool(one._target_ == other._target_ and places[0] == places[1])


def compose_one(overrides: list[str]) -> DictConfig:
    """Compose the config that these ask for. Raises UserError: they ask for several."""
    config, *others = compose_each(overrides).values()
    if others:
        raise UserError(f"{' '.join(overrides)}; expected one value for each, without commas")
    return copy.deepcopy(config)
