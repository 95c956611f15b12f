"""Measure the speed of this project, beside a plain PyTorch loop and the usual DataLoader.

python scripts/benchmark.py [steps] [start] [growth] [files] [--threads 2] [--repeats 7] [--json F]
python scripts/benchmark.py tricks [...]
python scripts/benchmark.py gpu [--rehearse] [--json F]
python scripts/benchmark.py photographs [--root data/imagenette/train] [...]

steps   images/s of a dense and a convolutional network, in turns; evaluation is not timed
start   seconds until the first step of `python train.py`, and of a checkpoint
growth  images/s and peak memory with 2, 60 and 600 thousand images
files   images/s from 60 thousand JPEG files: the first epoch, decoding included, and later ones
tricks  images/s with each trick: ours, by hand with own random numbers for each image as ours, and
        torchvision's v2 on the batch, which draws once for all its images and so does less
gpu     in about ten minutes, as Markdown: tests, waits, speed and memory in each precision, and a
        recipe, on a CUDA GPU; --rehearse runs all of it on the CPU, at a tiny size
photographs  images/s of loading the class folders of --root at 128 and 224 pixels; needs timm
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tricklab.analysis.benchmark import parts, rounds, tricks
from tricklab.cli.launch import launch
from tricklab.devices import wait_as_usual

DEFAULT_PARTS = {
    "steps": parts.measure_steps,
    "start": parts.measure_start,
    "growth": parts.measure_growth,
    "files": parts.measure_files,
}
PARTS = DEFAULT_PARTS | {"tricks": tricks.measure_tricks}  # which takes as long as all the others
PHOTOGRAPHS = "photographs"  # not by default, as they must be there
GPU = "gpu"  # likewise


def main() -> None:
    options = parse_arguments()
    wait_as_usual()  # plain loops on two threads would be half as fast
    threads, repeats = options.threads, options.repeats
    sys.argv = sys.argv[:1]  # the runs are named by the rest
    results: dict[str, Any] = {"threads": threads, "repeats": repeats}
    if options.parts != [GPU]:
        print(f"{threads} threads, medians of {repeats}; in turns, of {rounds.TURNS * repeats}")
    for part in options.parts or DEFAULT_PARTS:
        results |= measure(part, options)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


def measure(part: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure a part of the benchmark, and print and return its results."""
    if part == GPU:
        return {GPU: parts.measure_gpu(options.rehearse)}
    if part == PHOTOGRAPHS:
        tables = parts.measure_photographs(options.threads, options.repeats, options.root)
    else:
        tables = PARTS[part](options.threads, options.repeats)
    for title, table in tables.items():
        print(rounds.format_table(title, table))
    return tables


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--root", type=Path, default=Path("data/imagenette/train"))
    options = parser.parse_args()
    known = [*PARTS, GPU, PHOTOGRAPHS]
    if unknown := sorted(set(options.parts) - set(known)):
        parser.error(f"{', '.join(unknown)}: no such part; allowed: {', '.join(known)}")
    if options.rehearse and GPU not in options.parts:
        parser.error("--rehearse: only the part gpu has a rehearsal")
    return options


if __name__ == "__main__":
    launch(main, __doc__)
