"""Measure what comfort costs here: this project beside a plain PyTorch loop and the usual DataLoader.

python scripts/benchmark.py [steps] [start] [growth] [files] [--threads 2] [--repeats 7] [--json FILE]

steps   images/s of a dense and a convolutional network: all take turns; evaluation and its checkpoint are not counted
start   seconds until the first step of `python train.py`, and for a checkpoint
growth  images/s and peak memory with 2, 60 and 600 thousand images
files   images/s from 60 thousand JPEG files: the first epoch, decoding included, and the later ones
"""

import argparse
import contextlib
import functools
import gc
import io
import json
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from tricklab.cli.compose import compose_each
from tricklab.cli.launch import launch
from tricklab.run.build import build_data

FLOOR = (
    60_000  # images/s of the plain loop with the dense network, batches of 128, on two quiet cores
)
GREY = ["data=fake", "data.channels=1", "data.height=28", "data.width=28", "data.test_images=100"]
NETS = {"mlp": ["model=mlp", "model.widths=[64,128,64]"], "convnet": ["model=convnet"]}
CASES = {("mlp", 128): 200, ("mlp", 512): 80, ("convnet", 128): 20}  # steps a turn
TURNS = (
    3  # of each in a repeat: several short ones, as the speed of a machine changes within seconds
)
IMAGES, PENALTIES = ["augment=[crop,flip,erase]", "mixup=on"], ["penalty=[l1,l2]"]
EVERYTHING = [
    *IMAGES,
    *PENALTIES,
    "scheduler=cosine",
    "scheduler.warmup=10%",
    "loss=smooth",
    "model.dropout=0.1",
]
OURS = {"defaults": [], "defaults, l1 + l2": PENALTIES, "defaults, augmented and mixed": IMAGES}
OURS |= {"everything on": EVERYTHING, "defaults, channels last": ["trainer.channels_last=true"]}
OURS |= {
    "defaults, channels last, bfloat16": [
        "trainer.channels_last=true",
        "trainer.precision=bf16-mixed",
    ]
}
OURS |= {"defaults, compiled": ["trainer.compile=true"]}
SIZES, JPEGS = (2_000, 60_000, 600_000), 60_000
COLOUR = ["data=fake", "data.channels=3", "data.height=32", "data.width=32"]
PLAIN: dict[str, Any] = {
    "lr": 0.1,
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 5e-4,
    "foreach": True,
}
WARM = 10  # steps of a turn that are not counted
Tables = dict[str, dict[str, dict[str, float]]]  # by title, row and column


def main() -> None:
    parts: dict[str, Callable[[int, int], Tables]] = {
        "steps": steps,
        "start": start,
        "growth": growth,
        "files": files,
    }
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if wrong := set(options.parts) - {*parts}:
        parser.error(f"{', '.join(wrong)} is no part; allowed: {', '.join(parts)}")
    sys.argv = sys.argv[:1]  # the names of folders are made of the rest
    print(
        f"{options.threads} threads, medians of {options.repeats}; in turns, of {TURNS * options.repeats}"
    )
    found: dict[str, Any] = {"threads": options.threads, "repeats": options.repeats}
    for part in options.parts or parts:
        found |= (tables := parts[part](options.threads, options.repeats))
        for title, rows in tables.items():
            show(title, rows)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def show(title: str, rows: dict[str, dict[str, float]]) -> None:
    print(f"\n{title:55}" + "".join(f"{column:>20}" for column in next(iter(rows.values()))))
    for name, values in rows.items():
        print(
            f"  {name:53}"
            + "".join(f"{value:20,.{0 if value > 100 else 3}f}" for value in values.values())
        )


def apart(measure: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process of its own, which has done nothing else yet."""
    with ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), initializer=fork_workers
    ) as pool:
        return pool.submit(measure, *arguments).result()


def fork_workers() -> None:
    """Have loaders start their workers as they do by default, and not as this process was."""
    multiprocessing.set_start_method(None, force=True)


def steps(threads: int, repeats: int) -> Tables:
    """Return the median speed of each, and the median of its share of the plain loop's speed in the same round.

    And that share of the fastest turns of both, which a busy machine changes least.
    """
    tables = {}
    for net, batch in CASES:
        rounds = take_turns(net, batch, threads, repeats)
        shares = [
            {name: speed / speeds["plain loop"] for name, speed in speeds.items()}
            for speeds in rounds
        ]
        fastest = {name: max(speeds[name] for speeds in rounds) for name in rounds[0]}
        of_these = {name: speed / fastest["plain loop"] for name, speed in fastest.items()}
        found = {"images/s": rounds, "of the plain loop": shares, "at their fastest": [of_these]}
        tables[f"{net}, batches of {batch}"] = columns(found)
        if (net, batch) == ("mlp", 128) and fastest["plain loop"] < FLOOR:
            print(
                f"no quiet machine: {fastest['plain loop']:,.0f} images/s of the plain loop at best, not {FLOOR:,}"
            )
    return tables


def columns(found: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Return rows of medians, from the rounds of each column."""
    names = next(iter(found.values()))[0]
    return {
        name: {column: median(r[name] for r in rounds) for column, rounds in found.items()}
        for name in names
    }


def take_turns(net: str, batch: int, threads: int, repeats: int) -> list[dict[str, float]]:
    """Return the images/s of each in each round; in each repeat, each has a new process for its turns.

    Of the same program, one process is some percent faster than the next, as long as it lives.
    """
    words = [
        *GREY,
        "data.images=60000",
        "data.val_size=100",
        *NETS[net],
        f"data.batch_size={batch}",
    ]
    ways: dict[str, Callable[[int], float]] = {
        "plain loop": functools.partial(plain_loop, words),
        "plain loop, DataLoader, 0 workers": functools.partial(by_loader, words, 0),
        "plain loop, DataLoader, 2 workers": functools.partial(by_loader, words, 2),
        "Lightning with nothing on": functools.partial(bare_lightning, words),
    }
    ways |= {name: functools.partial(ours, [*words, *more]) for name, more in OURS.items()}
    return [
        speeds for _ in range(repeats) for speeds in in_processes(ways, CASES[net, batch], threads)
    ]


def in_processes(
    ways: Mapping[str, Callable[[int], float]], steps: int, threads: int
) -> list[dict[str, float]]:
    """Return the images/s of each in each round, each in a process of its own: compiling slows all that follows."""
    context, turns = multiprocessing.get_context("forkserver"), dict[str, Callable[[int], float]]()
    context.set_forkserver_preload(
        ["tricklab.run.experiment"]
    )  # all begin with the same imports, which take seconds
    with contextlib.ExitStack() as stack:
        for name, way in ways.items():
            pool = stack.enter_context(
                ProcessPoolExecutor(1, context, initializer=begin, initargs=(threads,))
            )
            turns[name] = lambda steps, pool=pool, way=way: pool.submit(way, steps).result()  # type: ignore[misc]
        return [in_any_order(turns, steps) for _ in range(TURNS + 1)][1:]


def begin(threads: int) -> None:
    import torch

    fork_workers()
    torch.set_num_threads(threads)


def in_any_order(turns: Mapping[str, Callable[[int], float]], steps: int) -> dict[str, float]:
    speeds = {name: turns[name](steps) for name in random.sample([*turns], len(turns))}
    return {name: speeds[name] for name in turns}


def plain_loop(
    words: Sequence[str], steps: int, workers: int | None = None, root: Path | None = None
) -> float:
    """Train without any framework: on one tensor of uint8, or by a DataLoader with transforms for each image.

    Its images are in memory, or else in the class folders of `root`.
    """
    import torch

    from tricklab.run.build import build_net

    config, data = prepared(tuple(words))
    net = build_net(config, data.shape, len(data.classes)).train()
    optimizer = torch.optim.SGD(net.parameters(), **PLAIN)
    batches = (
        gathered(data, steps + WARM)
        if workers is None
        else loaded(data, steps + WARM, workers, root)
    )
    for step, (images, labels) in enumerate(batches):
        if step == WARM:
            began = time.perf_counter()
        loss = torch.nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return steps * data.batch_size / (time.perf_counter() - began)


def by_loader(words: Sequence[str], workers: int, steps: int) -> float:
    return plain_loop(words, min(25, steps), workers)


def bare_lightning(words: Sequence[str], steps: int) -> float:
    """Train as the plain loop does, by Lightning without logger, checkpoints and progress bar."""
    import pytorch_lightning as pl
    import torch

    from tricklab.run.build import build_net
    from tricklab.run.experiment import quiet_lightning

    class Bare(pl.LightningModule):
        net: Any

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == WARM:
                self.began = time.perf_counter()
            return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.net.parameters(), **PLAIN)

    quiet_lightning()
    config, data = prepared(tuple(words))
    module = Bare()
    module.net = build_net(config, data.shape, len(data.classes)).train()
    extras = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    off: dict[str, Any] = dict.fromkeys(extras, False)
    trainer = pl.Trainer(accelerator=config.trainer.accelerator, max_epochs=1, **off)
    trainer.fit(module, gathered(data, steps + WARM))
    return steps * data.batch_size / (time.perf_counter() - module.began)


def gathered(data: Any, steps: int) -> Any:
    """Yield normalised batches by one gather of uint8 each."""
    import torch

    images, labels = data.splits.train
    scale, shift = 1 / (255 * data.std[0]), -data.mean[0] / data.std[0]
    for _ in range(steps):
        rows = torch.randint(len(labels), (data.batch_size,))
        yield (
            images.index_select(0, rows).float().mul_(scale).add_(shift),
            labels.index_select(0, rows),
        )


def loaded(data: Any, steps: int, workers: int, root: Path | None) -> Any:
    """Yield normalised batches as most do: a dataset of single pictures, transforms, a DataLoader."""
    import torch
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    transform = v2.Compose(
        [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(data.mean, data.std)]
    )
    if root:
        folder = ImageFolder(str(root), transform)
        return torch.utils.data.DataLoader(
            folder, data.batch_size, shuffle=True, num_workers=workers
        )
    size, labels = steps * data.batch_size, data.splits.train.labels.tolist()
    pictures = [v2.functional.to_pil_image(image) for image in data.splits.train.images[:size]]

    class Pictures(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return size

        def __getitem__(self, row: int) -> Any:
            return transform(pictures[row % len(pictures)]), labels[row % len(pictures)]

    return torch.utils.data.DataLoader(
        Pictures(), data.batch_size, shuffle=True, num_workers=workers
    )


def ours(words: Sequence[str], steps: int) -> float:
    """Train as `python train.py` does, files, checkpoints and progress bar included."""
    clock = fit(*prepared((*words, f"stop_after={steps + WARM}it", "trainer.max_epochs=1000")))
    return steps * clock.images / clock.seconds


@functools.cache
def prepared(words: tuple[str, ...]) -> tuple[Any, Any]:
    """Return the config and the data of these words, the same ones each time."""
    from tricklab.run.build import build_data

    (config,) = compose_each(list(words)).values()
    return config, build_data(config)


def fit(config: Any, data: Any) -> Any:
    """Train in a temporary folder; return a clock with `first`, when the first step ended, and what it measured."""
    import pytorch_lightning as pl

    from tricklab.fast import skip_overhead
    from tricklab.run.build import build_module, build_net, build_trainer
    from tricklab.run.experiment import quiet_lightning
    from tricklab.run.plan import make_plan

    class Clock(pl.Callback):
        """Seconds of training after the first steps; it stands still in evaluation."""

        images, checkpoint = data.batch_size, 0.0

        def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
            if trainer.global_step in (1, WARM):
                self.seconds, self.first = 0.0, getattr(self, "first", time.perf_counter())
                self.on_validation_end()

        def on_validation_start(self, *rest: Any) -> None:
            self.seconds += time.perf_counter() - self.since

        def on_validation_end(self, *rest: Any) -> None:
            self.since = time.perf_counter()

    quiet_lightning()
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        trainer = build_trainer(config, Path(folder))
        trainer.callbacks.insert(0, clock)  # type: ignore[attr-defined]
        plan = make_plan(config, data, trainer.world_size)
        data.mixup_window = plan.mixup_window
        net = build_net(config, data.shape, len(data.classes))
        module = build_module(config, data, net, plan)
        gc.freeze()
        skip_overhead(trainer, module)
        trainer.fit(module, datamodule=data)
        began = time.perf_counter()
        trainer.save_checkpoint(Path(folder) / "again.ckpt")
        clock.checkpoint = time.perf_counter() - began
    return clock


def start(threads: int, repeats: int) -> Tables:
    """Return the median seconds of each stage of a run on digits, each time in a new process."""
    return {
        "python train.py, on digits": columns(
            {"seconds": [apart(stages, threads) for _ in range(repeats)]}
        )
    }


def stages(threads: int) -> dict[str, float]:
    began = time.perf_counter()
    (config,) = compose_each(["stop_after=1it"]).values()
    composed = time.perf_counter()
    import torch

    from tricklab.run import (
        build,  # noqa: F401
        experiment,  # noqa: F401
    )

    torch.set_num_threads(threads)
    imported = time.perf_counter()
    clock = fit(config, build_data(config))
    stages = {"to compose the config": composed - began, "to import the rest": imported - composed}
    after = {
        "from there to the end of the first step": clock.first - imported,
        "a checkpoint": clock.checkpoint,
    }
    return stages | after


def growth(threads: int, repeats: int) -> Tables:
    """Return images/s, in turns, and the peak memory of a process that has trained on so many images."""
    rounds, usual = apart(grown, SIZES, threads, repeats)[0], f"{SIZES[1]:,} images"
    shares = [{name: speed / speeds[usual] for name, speed in speeds.items()} for speeds in rounds]
    memory = {f"{size:,} images": apart(grown, (size,), threads, 0)[1] for size in SIZES}
    data = {f"{size:,} images": size * 784 / 1e9 for size in SIZES}
    found = {
        "images/s": rounds,
        f"of {usual}": shares,
        "GB of data": [data],
        "GB at the peak": [memory],
    }
    return {"mlp, batches of 128": columns(found)}


def grown(
    sizes: tuple[int, ...], threads: int, repeats: int
) -> tuple[list[dict[str, float]], float]:
    import torch

    torch.set_num_threads(threads)
    words = {
        f"{size:,} images": [*GREY, f"data.images={size}", "data.val_size=100", *NETS["mlp"]]
        for size in sizes
    }
    turns = {name: functools.partial(ours, more) for name, more in words.items()}
    rounds = [in_any_order(turns, CASES["mlp", 128]) for _ in range(TURNS * repeats + 1)]
    return rounds[1:], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def files(threads: int, repeats: int) -> Tables:
    """Return the median images/s of each, each time in a new process."""
    with tempfile.TemporaryDirectory() as root:
        apart(write_files, Path(root))
        rounds = [apart(from_files, Path(root), threads) for _ in range(repeats)]
    return {
        f"mlp, batches of 128, {JPEGS:,} JPEG files of 32 x 32, {threads} workers": columns(
            {"images/s": rounds}
        )
    }


def write_files(root: Path) -> None:
    """Write JPEG files of `data=fake`, all but a few of them for training."""
    from PIL import Image

    _, data = prepared((*COLOUR, f"data.images={JPEGS}", "data.test_images=100"))
    for part, (images, labels) in (("train", data.splits.train), ("test", data.splits.test)):
        for i, (image, label) in enumerate(
            zip(images.permute(0, 2, 3, 1).numpy(), labels.tolist(), strict=True)
        ):
            (folder := root / part / data.classes[label]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{i}.jpg")


def from_files(root: Path, threads: int) -> dict[str, float]:
    import torch

    from tricklab.run import build  # noqa: F401  # takes seconds

    torch.set_num_threads(threads)
    in_memory = ("data.val_size=100", *NETS["mlp"])
    words = ("data=folder", f"data.root={root}", f"data.num_workers={threads}", *in_memory)
    began = time.perf_counter()
    images = len(prepared(words)[1].train_indices)
    decoding = time.perf_counter() - began
    mapped = (*words, f"data.cache={root / 'cache'}")
    turns: dict[str, Callable[[int], float]] = {
        "plain loop, ImageFolder, DataLoader": lambda n: plain_loop(
            words, n, threads, root / "train"
        ),
        "ours, later epochs": functools.partial(ours, words),
        "ours, later epochs, data.cache=FOLDER": functools.partial(ours, mapped),
        "ours, images that were never files": functools.partial(
            ours, (*COLOUR, f"data.images={JPEGS}", *in_memory)
        ),
    }
    speeds = in_any_order(turns, images // 128 - WARM)
    return {
        **speeds,
        "ours, first epoch": images / (decoding + images / speeds["ours, later epochs"]),
    }


if __name__ == "__main__":
    launch(main, __doc__)
