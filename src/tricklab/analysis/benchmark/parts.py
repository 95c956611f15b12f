"""The parts of the benchmark: each measures tables, by title. Imports torch only to train."""

import functools
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from tricklab.analysis.benchmark.cases import (
    CASES,
    COLOR,
    DATASET_SIZES,
    GREY,
    JPEG_FILES,
    NETS,
    OURS,
    WARMUP_STEPS,
    Overrides,
)
from tricklab.analysis.benchmark.rounds import (
    TURNS,
    Round,
    Table,
    Turn,
    alternate_in_processes,
    make_table,
    relative_to,
    run_in_new_process,
    take_turns,
)
from tricklab.cli.compose import compose_each

# images/s of the plain loop with the mlp and batches of 128 on two otherwise idle cores
IDLE_SPEED = 60_000


def measure_steps(threads: int, repeats: int) -> dict[str, Table]:
    """Measure the speed of each variant, and the fraction of the plain loop's in the same round.

    The fraction at their fastest turns is affected least by a busy machine.
    """
    tables = {}
    for net, batch_size in CASES:
        rounds = run_rounds(net, batch_size, threads, repeats)
        fastest = {name: max(speeds[name] for speeds in rounds) for name in rounds[0]}
        columns = {
            "images/s": rounds,
            "of the plain loop": relative_to("plain loop", rounds),
            "at their fastest": relative_to("plain loop", [fastest]),
        }
        tables[f"{net}, batches of {batch_size}"] = make_table(columns)
        if (net, batch_size) == ("mlp", 128):
            warn_of_busy_machine(fastest["plain loop"])
    return tables


def warn_of_busy_machine(speed: float) -> None:
    if speed < IDLE_SPEED:
        fastest = f"{speed:,.0f} images/s of the plain loop at best, not {IDLE_SPEED:,}"
        print(f"the machine is busy or slow: {fastest}")


def run_rounds(net: str, batch_size: int, threads: int, repeats: int) -> list[Round]:
    """Return the images/s of each variant in each round.

    Each repeat has new processes: the speed of the same program differs by some percent between
    processes, for as long as they live.
    """
    from tricklab.analysis.benchmark import loops

    size = ("data.images=60000", "data.val_size=100", f"data.batch_size={batch_size}")
    overrides = (*GREY, *NETS[net], *size)
    variants: dict[str, Turn] = {
        "plain loop": functools.partial(loops.plain_loop, overrides),
        "plain loop, DataLoader, 0 workers": functools.partial(loops.dataloader_loop, overrides, 0),
        "plain loop, DataLoader, 2 workers": functools.partial(loops.dataloader_loop, overrides, 2),
        "Lightning with nothing on": functools.partial(loops.plain_lightning, overrides),
    }
    for name, more in OURS.items():
        variants[name] = functools.partial(loops.ours, (*overrides, *more))
    rounds = []
    for _ in range(repeats):
        rounds += alternate_in_processes(variants, CASES[net, batch_size], threads, OURS)
    return rounds


def measure_start(threads: int, repeats: int) -> dict[str, Table]:
    """Measure the seconds of each stage of a run on digits, each time in a new process."""
    rounds = [run_in_new_process(time_stages, threads) for _ in range(repeats)]
    return {"python train.py, on digits": make_table({"seconds": rounds})}


def time_stages(threads: int) -> Round:
    started = time.perf_counter()
    (config,) = compose_each(["stop_after=1it"]).values()
    composed = time.perf_counter()

    import torch

    from tricklab.analysis.benchmark.loops import fit
    from tricklab.run.build import build_data

    torch.set_num_threads(threads)
    imported = time.perf_counter()
    timing = fit(config, build_data(config))
    return {
        "to compose the config": composed - started,
        "to import the rest": imported - composed,
        "from there to the end of the first step": timing.first_step_end - imported,
        "a checkpoint": timing.checkpoint,
    }


def measure_growth(threads: int, repeats: int) -> dict[str, Table]:
    """Measure images/s and peak memory by the number of training images."""
    labels = {f"{size:,} images": size for size in DATASET_SIZES}
    usual = f"{DATASET_SIZES[1]:,} images"
    rounds, _ = run_in_new_process(train_sizes, DATASET_SIZES, threads, repeats)
    peaks = {}
    for label, size in labels.items():
        _, peaks[label] = run_in_new_process(train_sizes, (size,), threads, 0)
    columns = {
        "images/s": rounds,
        f"of {usual}": relative_to(usual, rounds),
        "GB of data": [{label: size * 28 * 28 / 1e9 for label, size in labels.items()}],
        "GB at the peak": [peaks],
    }
    return {"mlp, batches of 128": make_table(columns)}


def train_sizes(sizes: tuple[int, ...], threads: int, repeats: int) -> tuple[list[Round], float]:
    """Train on so many images in turn; return the images/s, and the peak memory in GB."""
    import torch

    from tricklab.analysis.benchmark.loops import ours

    torch.set_num_threads(threads)
    turns: dict[str, Turn] = {}
    for size in sizes:
        overrides = (*GREY, f"data.images={size}", "data.val_size=100", *NETS["mlp"])
        turns[f"{size:,} images"] = functools.partial(ours, overrides)
    steps = CASES["mlp", 128]
    rounds = [take_turns(turns, steps) for _ in range(TURNS * repeats + 1)]
    return rounds[1:], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def measure_files(threads: int, repeats: int) -> dict[str, Table]:
    """Measure images/s from JPEG files, each time in a new process."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        run_in_new_process(write_jpegs, root, JPEG_FILES)
        rounds = [run_in_new_process(train_on_files, root, threads) for _ in range(repeats)]
    title = f"mlp, batches of 128, {JPEG_FILES:,} JPEG files of 32 x 32, {threads} workers"
    return {title: make_table({"images/s": rounds})}


def write_jpegs(root: Path, number: int) -> None:
    """Write so many images of `data=fake` into class folders, a few of them for testing."""
    from PIL import Image

    from tricklab.analysis.benchmark.loops import compose_and_load

    overrides: Overrides = (*COLOR, f"data.images={number}", "data.test_images=100")
    _, data = compose_and_load(overrides)
    for split in ("train", "test"):
        images, labels = getattr(data.splits, split)
        for label in data.classes:
            (root / split / label).mkdir(parents=True, exist_ok=True)
        pixels = images.permute(0, 2, 3, 1).numpy()
        for i, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
            Image.fromarray(image).save(root / split / data.classes[label] / f"{i}.jpg")


def train_on_files(root: Path, threads: int) -> Round:
    """Return the images/s of each way to train on files; decoding is part of the first epoch."""
    import torch

    from tricklab.analysis.benchmark.loops import compose_and_load, image_folder_loop, ours

    torch.set_num_threads(threads)
    options: Overrides = ("data.val_size=100", *NETS["mlp"])
    files: Overrides = ("data=folder", f"data.root={root}", f"data.num_workers={threads}", *options)
    started = time.perf_counter()
    _, data = compose_and_load(files)
    decoding = time.perf_counter() - started
    images = len(data.train_indices)
    never_files = (*COLOR, f"data.images={JPEG_FILES}", *options)
    cached = (*files, f"data.cache={root / 'cache'}")
    turns: dict[str, Turn] = {
        "plain loop, ImageFolder, DataLoader": functools.partial(
            image_folder_loop, files, root / "train", threads
        ),
        "ours, later epochs": functools.partial(ours, files),
        "ours, later epochs, data.cache=FOLDER": functools.partial(ours, cached),
        "ours, images that were never files": functools.partial(ours, never_files),
    }
    speeds = take_turns(turns, images // 128 - WARMUP_STEPS)
    first_epoch = decoding + images / speeds["ours, later epochs"]
    return speeds | {"ours, first epoch": images / first_epoch}


def measure_photographs(workers: int, repeats: int, root: Path) -> dict[str, Table]:
    """Measure images/s of loading photographs, each round in a new process."""
    from tricklab.analysis.benchmark.photographs import load_in_turns

    tables = {}
    for side in (128, 224):
        rounds = [run_in_new_process(load_in_turns, root, side, workers) for _ in range(repeats)]
        columns = {
            "images/s": rounds,
            "of torchvision": relative_to("torchvision, ImageFolder", rounds),
            "of timm": relative_to("timm, create_loader", rounds),
        }
        tables[f"{root}, {side} pixels, {workers} workers"] = make_table(columns)
    return tables


def measure_gpu(rehearse: bool) -> dict[str, Any]:
    """Measure on a GPU, or rehearse it, and print a block of Markdown."""
    from tricklab.analysis.benchmark.gpu import measure_gpu
    from tricklab.analysis.benchmark.gpu_page import format_gpu

    results = measure_gpu(rehearse)
    print(format_gpu(results))
    return results
