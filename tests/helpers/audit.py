"""Records imports, changed files, processes and sockets by Python's own hook (`sys.addaudithook`).

python audit.py fuzz FILE SEED NUMBER    read fuzzed configs as untrusted; FILE is an exported run
python audit.py hydra FOLDER             give the payloads to Hydra's `instantiate`
python audit.py run LOG SCRIPT ...       run a script, and write its events to LOG
"""

import copy
import json
import os
import random
import runpy
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

MARK = "owned"
PAYLOADS: list[dict[str, Any]] = [
    {"_target_": "os.mkdir", "_args_": [MARK]},
    {"_target_": "os.system", "command": f"touch {MARK}"},
    {"_target_": "subprocess.Popen", "args": ["touch", MARK]},
    {"_target_": "logging.FileHandler", "filename": MARK, "mode": "w"},
    {"_target_": "builtins.exec", "_args_": [f"open('{MARK}', 'w')"]},
    {"_target_": "builtins.open", "_args_": [MARK, "w"]},
    {"_target_": "pathlib.Path.touch", "_args_": [{"_target_": "pathlib.Path", "_args_": [MARK]}]},
    {"_target_": "socket.create_connection", "_args_": [["127.0.0.1", 9]]},
    {"_target_": "importlib.import_module", "name": "antigravity"},
    {"_target_": "shutil.rmtree", "path": MARK, "ignore_errors": True},
    {"_target_": "tricklab.jobs.process.runpy.run_path", "path_name": MARK},
    {"_target_": "tricklab.run.record.run_git", "_args_": [".", "init", MARK]},
    {"_target_": "tricklab.data.datasets.mnist", "root": MARK},
    {"_target_": "tricklab.metrics_file.MetricsFile", "folder": MARK},
    {"_target_": "torch.load", "f": MARK, "weights_only": False},
    {"_target_": "torch.hub.load", "_args_": ["a/b", "c"]},
    {"_target_": "hydra.utils.instantiate", "_args_": [{"_target_": "os.mkdir", "_args_": [MARK]}]},
    {"_target_": "numpy.f2py.__main__.main"},
]
OWN_OPTIONS: list[dict[str, Any]] = [  # with values that reach out of the run
    {"_target_": "tricklab.data.datasets.mnist", "root": MARK},
    {"_target_": "tricklab.data.datasets.cifar10", "root": MARK},
    {"_target_": "tricklab.data.datasets.folder", "root": ".", "cache": MARK},
    {"_target_": "tricklab.model.timm", "name": "hf-hub:a/b"},
    {"_target_": "tricklab.model.timm", "name": f"local-dir:{MARK}"},
    {"_target_": "tricklab.model.torchvision", "name": "get_weight"},
    {"_target_": "tricklab.model.find_timm", "name": "resnet18"},
    {"_target_": "tricklab.model.mlp", "widths": [4], "weights": MARK},
]
TEXTS = (
    *("${claim}", "${claim.0}", "${oc.env:HOME}", "${oc.decode:${claim}}", "${oc.create:${claim}}"),
    *("${run_folder:${claim}}", "${job_name:}", "${model.widths}", "${.name}", "${..data}", "???"),
    *("\\${claim}", "${data.${seed}}", "{}", "[1, 2]", "tricklab.model.mlp", "../.."),
    *("\0", "\ud800"),
)
VALUES = (10**20, -1, float("nan"), float("inf"), None, True, 0, "", [], {}, [[]], [None], {"a": 1})
KEYS = ("_args_", "_partial_", "_recursive_", "_convert_", "_target_", "defaults", "hydra", "x")
WARM_UP: dict[str, dict[str, Any]] = {
    "model.mlp": {"widths": [4]},
    "model.resnet": {"depth": 8},
    "model.torchvision": {"name": "resnet18"},
    "model.timm": {"name": "resnet18"},
    "data.datasets.folder": {"root": "nowhere"},
    "data.datasets.fake": {"images": 20, "test_images": 10},
}
AUDITED = (
    *("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "os.link", "os.symlink"),
    *("os.chmod", "os.utime", "shutil."),
    *("os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess."),
    *("socket.", "ctypes.dlopen", "pickle.find_class"),
)


def record_events(events: list[str]) -> None:
    """Append to `events` whatever changes a file, starts a process, connects or is imported."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if writes and path != "/dev/null":
                events.append(f"open {path} {mode}")
        elif event == "import" and arguments[0] not in sys.modules:
            events.append(f"import {arguments[0]}")
        elif event.startswith(AUDITED):
            events.append(f"{event} {arguments[:1]}")

    sys.addaudithook(hook)


def find_nodes(config: Any) -> list[Any]:
    """Return all mappings and lists of a config."""
    if not isinstance(config, dict | list):
        return []
    children = list(config.values()) if isinstance(config, dict) else config
    nodes = [config]
    for child in children:
        nodes += find_nodes(child)
    return nodes


def mutate(config: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Return a config with a few changes, most of them hostile."""
    config = copy.deepcopy(config)
    config["claim"] = rng.choice([rng.choice(PAYLOADS), [rng.choice(PAYLOADS)]])
    for _ in range(rng.randint(1, 3)):
        value = draw_value(rng)
        node, key = draw_key(config, rng)
        if rng.random() < 0.2 and isinstance(value, dict):
            value["_partial_"] = rng.choice([True, False, "${seed}"])
        node[key] = value
        if rng.random() < 0.3:
            group = rng.choice(("model", "data", "augment", "trainer"))
            config[group] = rng.choice([value, {"_target_": value}, {"y": value}, [value]])
        if rng.random() < 0.1:
            option = copy.deepcopy(rng.choice(OWN_OPTIONS))
            config[option["_target_"].split(".")[1]] = option
    return config


def draw_value(rng: random.Random) -> Any:
    """Return a payload, a text or a value, or the name of a payload's target."""
    value = copy.deepcopy(rng.choice([*PAYLOADS, *TEXTS, *VALUES, [rng.choice(PAYLOADS)]]))
    if rng.random() < 0.3:
        targets = [payload["_target_"] for payload in PAYLOADS]
        value = rng.choice(targets + list(TEXTS))
    return value


def draw_key(config: dict[str, Any], rng: random.Random) -> tuple[Any, Any]:
    """Return a mapping or list of a config and one of its keys, or a new one."""
    groups = {key: config[key] for key in config if key != "claim"}
    node = rng.choice([node for node in find_nodes(groups) if node])
    if isinstance(node, list):
        return node, rng.randrange(len(node))
    return node, rng.choice([*node, *KEYS])


def read_untrusted(text: str) -> None:
    """Do with a config what evaluate, predict and export do before the first image."""
    from tricklab.files import parse_yaml
    from tricklab.run.build import build_net
    from tricklab.run.instantiate import build, build_each
    from tricklab.run.untrusted import validate_config
    from tricklab.run.weights import read_input_spec

    untrusted = parse_yaml(text, "x")
    spec = read_input_spec(untrusted.get("dataset", {}))
    config = validate_config(untrusted, "x")
    build_each(config.augment)
    if spec:
        build_net(config, spec.shape, 10)
    build(config.data, seed=config.seed, download=False)


def to_yaml(config: dict[str, Any], rng: random.Random) -> str:
    """Write a config, at times with anchors or tags."""
    text = json.dumps(config)  # YAML as well
    if rng.random() < 0.05:
        text = "a: &a [x,x,x]\nb: &b [*a,*a,*a]\n" + f"model: {json.dumps(config['model'])}\n"
    if rng.random() < 0.05:
        text = f"x: !!python/object/apply:os.mkdir ['{MARK}']\n" + f"seed: {config['seed']}\n"
    return text


def read_exported_config(path: Path) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        text = file.metadata()["config"]
    config: Any = OmegaConf.to_container(OmegaConf.create(text))
    return config


def import_libraries(config: dict[str, Any]) -> None:
    """Read a config with each option of WARM_UP, so that its imports are not events."""
    from tricklab.errors import UserError

    for target, options in WARM_UP.items():
        node = {"_target_": f"tricklab.{target}", **options}
        with suppress(UserError):  # the folder does not exist
            read_untrusted(json.dumps(config | {target.split(".")[0]: node}))
    read_untrusted(json.dumps(config | {"trainer": {}}))  # torch looks for a GPU


def fuzz(path: Path, seed: int, number: int) -> None:
    """Print the events after a warm-up, and how many configs were refused and accepted."""
    from tricklab.errors import UserError

    config = read_exported_config(path)
    import_libraries(config)
    rng = random.Random(seed)
    accepted = 0
    events: list[str] = []
    record_events(events)
    for _ in range(number):
        with suppress(UserError):
            read_untrusted(to_yaml(mutate(config, rng), rng))
            accepted += 1
    print(*events, f"{number - accepted} refused, {accepted} taken", sep="\n")


def count_events_of_hydra() -> None:
    """Print the number of events of each payload."""
    from hydra.utils import instantiate

    events: list[str] = []
    record_events(events)
    for payload in PAYLOADS:
        before = len(events)
        with suppress(Exception, SystemExit):
            instantiate(payload)
        print(payload["_target_"], len(events) - before)


def run(log: str, script: str) -> None:
    """Run a script with the remaining arguments, and write its events to a log."""
    events: list[str] = []
    sys.argv = sys.argv[3:]
    sys.path[0] = str(Path(script).parent)
    file = open(log, "w")  # noqa: SIM115  # before the hook is added
    record_events(events)
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        print(*events, sep="\n", file=file, flush=True)


if __name__ == "__main__":
    mode, first, *others = sys.argv[1:]
    if mode == "run":
        run(first, others[0])
    os.chdir(first if mode == "hydra" else Path(first).parent)
    if mode == "fuzz":
        fuzz(Path(first), *map(int, others))
    elif mode == "hydra":
        count_events_of_hydra()
