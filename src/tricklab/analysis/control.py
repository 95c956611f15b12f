"""The control of measured seconds: the speed of a plain loop, on the same machine at the time."""

import csv
import functools
import time
from pathlib import Path
from statistics import median

from tricklab.analysis.benchmark.cases import CASES, GREY, NETS
from tricklab.analysis.benchmark.rounds import TURNS, run_in_new_process
from tricklab.analysis.rows import CONTROL_FILE
from tricklab.devices import count_cores, wait_as_usual

NET = "convnet"
BATCH_SIZE = 128
IMAGES = 2000


def record_control(folder: Path) -> float:
    """Measure the control, add it to the file in a folder of runs, and return the images/s."""
    wait_as_usual()
    speed = run_in_new_process(time_control, count_cores())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CONTROL_FILE
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if is_new:
            writer.writerow(("time", "images_per_second"))
        writer.writerow((round(time.time()), round(speed)))
    return speed


def time_control(threads: int) -> float:
    """Return the images/s of a plain loop with the convnet on images of 28 x 28: the median."""
    import torch

    from tricklab.analysis.benchmark.loops import plain_loop

    torch.set_num_threads(threads)
    size = (f"data.images={IMAGES}", "data.val_size=100", f"data.batch_size={BATCH_SIZE}")
    turn = functools.partial(plain_loop, (*GREY, *NETS[NET], *size), CASES[NET, BATCH_SIZE])
    return median(turn() for _ in range(TURNS))
