"""What Python itself reports of imports, changed files, processes and sockets (`sys.addaudithook`).

python audit.py fuzz FILE SEED NUMBER    read fuzzed configs as a stranger's, FILE is an exported one
python audit.py hydra FOLDER             give the payloads to Hydra's `instantiate`: what is noticed
python audit.py run LOG SCRIPT ...       run a script, and write what is noticed to LOG
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
    {"_target_": "tricklab.logger.MetricsFile", "folder": MARK},
    {"_target_": "torch.load", "f": MARK, "weights_only": False},
    {"_target_": "torch.hub.load", "_args_": ["a/b", "c"]},
    {"_target_": "hydra.utils.instantiate", "_args_": [{"_target_": "os.mkdir", "_args_": [MARK]}]},
    {"_target_": "numpy.f2py.__main__.main"},
]
OURS: list[dict[str, Any]] = [  # options of ours with values that reach out
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
    *(
        "\\${claim}",
        "${data.${seed}}",
        "{}",
        "[1, 2]",
        "tricklab.model.mlp",
        "../..",
        "\0",
        "\ud800",
    ),
)
VALUES = (10**20, -1, float("nan"), float("inf"), None, True, 0, "", [], {}, [[]], [None], {"a": 1})
KEYS = ("_args_", "_partial_", "_recursive_", "_convert_", "_target_", "defaults", "hydra", "x")
WARM: dict[str, dict[str, Any]] = {
    "model.mlp": {"widths": [4]},
    "model.resnet": {"depth": 8},
    "model.torchvision": {"name": "resnet18"},
    "model.timm": {"name": "resnet18"},
    "data.datasets.folder": {"root": "nowhere"},
    "data.datasets.fake": {"images": 20, "test_images": 10},
}


def watch(seen: list[str]) -> None:
    """Note in `seen` whatever changes a file, starts a process, connects or is imported."""
    changing = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "os.link")
    changing += ("os.symlink", "os.chmod", "os.utime", "shutil.", "os.system", "os.exec", "os.fork")
    changing += ("os.posix_spawn", "subprocess.", "socket.", "ctypes.dlopen", "pickle.find_class")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if writes and path != "/dev/null":
                seen.append(f"open {path} {mode}")
        elif event == "import" and arguments[0] not in sys.modules:
            seen.append(f"import {arguments[0]}")
        elif event.startswith(changing):
            seen.append(f"{event} {arguments[:1]}")

    sys.addaudithook(hook)


def nodes(config: Any) -> list[Any]:
    """Return all mappings and lists of a config."""
    if not isinstance(config, dict | list):
        return []
    parts = list(config.values()) if isinstance(config, dict) else config
    return [config, *(node for part in parts for node in nodes(part))]


def mutate(config: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Return a config with a few changes, most of them hostile."""
    config = copy.deepcopy(config)
    config["claim"] = rng.choice([rng.choice(PAYLOADS), [rng.choice(PAYLOADS)]])
    for _ in range(rng.randint(1, 3)):
        value = copy.deepcopy(rng.choice([*PAYLOADS, *TEXTS, *VALUES, [rng.choice(PAYLOADS)]]))
        if rng.random() < 0.3:
            value = rng.choice([p["_target_"] for p in PAYLOADS] + list(TEXTS))
        node = rng.choice([n for n in nodes({k: config[k] for k in config if k != "claim"}) if n])
        place = rng.randrange(len(node)) if isinstance(node, list) else rng.choice([*node, *KEYS])
        if rng.random() < 0.2 and isinstance(value, dict):
            value["_partial_"] = rng.choice([True, False, "${seed}"])
        node[place] = value
        if rng.random() < 0.3:
            group = rng.choice(("model", "data", "augment", "trainer"))
            config[group] = rng.choice([value, {"_target_": value}, {"y": value}, [value]])
        if rng.random() < 0.1:
            node = copy.deepcopy(rng.choice(OURS))
            config[node["_target_"].split(".")[1]] = node
    return config


def use(text: str) -> None:
    """Do with a config what evaluate, predict and export do before the first image."""
    from tricklab.analysis.untrusted import validate_config
    from tricklab.files import parse_yaml
    from tricklab.run.build import build_net
    from tricklab.run.instantiate import build, build_each
    from tricklab.run.weights import read_input_spec

    theirs = parse_yaml(text, "x")
    images, config = read_input_spec(theirs.get("dataset", {})), validate_config(theirs, "x")
    build_each(config.augment)
    if images:
        build_net(config, images.shape, 10)
    build(config.data, seed=config.seed, download=False)


def to_yaml(config: dict[str, Any], rng: random.Random) -> str:
    """Write a config, at times with anchors or tags."""
    text = json.dumps(config)  # YAML as well
    if rng.random() < 0.05:
        text = "a: &a [x,x,x]\nb: &b [*a,*a,*a]\n" + f"model: {json.dumps(config['model'])}\n"
    if rng.random() < 0.05:
        text = f"x: !!python/object/apply:os.mkdir ['{MARK}']\n" + f"seed: {config['seed']}\n"
    return text


def fuzz(path: Path, seed: int, number: int) -> None:
    """Print what is noticed after a warm-up, and how many configs were refused and taken."""
    from omegaconf import OmegaConf
    from safetensors import safe_open

    from tricklab.errors import UserError

    with safe_open(path, "pt") as file:
        honest: Any = OmegaConf.to_container(OmegaConf.create(file.metadata()["config"]))
    for target, options in WARM.items():  # imports what these need
        warm = honest | {target.split(".")[0]: {"_target_": f"tricklab.{target}", **options}}
        with suppress(UserError):  # as a folder that does not exist
            use(json.dumps(warm))
    rng, taken, refused = random.Random(seed), 0, 0
    seen: list[str] = []
    watch(seen)
    for _ in range(number):
        try:
            use(to_yaml(mutate(honest, rng), rng))
            taken += 1
        except UserError:
            refused += 1
    print(*seen, f"{refused} refused, {taken} taken", sep="\n")


def show_what_hydra_does() -> None:
    """Print how much is noticed of each payload."""
    from hydra.utils import instantiate

    seen: list[str] = []
    watch(seen)
    for payload in PAYLOADS:
        before = len(seen)
        with suppress(Exception, SystemExit):
            instantiate(payload)
        print(payload["_target_"], len(seen) - before)


def run(log: str, script: str) -> None:
    seen: list[str] = []
    sys.argv = sys.argv[3:]
    sys.path[0] = str(Path(script).parent)
    file = open(log, "w")  # noqa: SIM115  # before it is watched
    watch(seen)
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        print(*seen, sep="\n", file=file, flush=True)


if __name__ == "__main__":
    mode, first, *others = sys.argv[1:]
    if mode == "run":
        run(first, others[0])
    os.chdir(first if mode == "hydra" else Path(first).parent)
    if mode == "fuzz":
        fuzz(Path(first), *map(int, others))
    elif mode == "hydra":
        show_what_hydra_does()
