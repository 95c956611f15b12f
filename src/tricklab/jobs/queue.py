"""The jobs of a sweep: all are checked before the first one starts, and run unless done."""

import copy
import functools
import json
import shlex
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from tricklab.cli.check import check
from tricklab.cli.escape import for_terminal
from tricklab.cli.messages import explain
from tricklab.cli.overrides import command
from tricklab.errors import UserError
from tricklab.files import write_text
from tricklab.jobs.job import Job
from tricklab.run.folder import lock_run


class Composer:
    """Composes configs; cached by the config-group overrides, as composing takes 0.1 s."""

    def __init__(
        self, compose: Callable[[list[str]], DictConfig], is_group: Callable[[str], object]
    ):
        self.compose = functools.cache(lambda overrides: compose(list(overrides)))
        self.is_group = functools.cache(is_group)

    def __call__(self, overrides: Sequence[str]) -> DictConfig:
        groups: list[str] = []
        values = []
        for override in OverridesParser.create().parse_overrides(list(overrides)):
            text = str(override.input_line)
            if text[0] in "+~" or self.is_group(override.key_or_group):
                groups.append(text)
            else:
                values.append(override)
        config = copy.deepcopy(self.compose(tuple(groups)))
        ConfigLoaderImpl._apply_overrides_to_config(values, config)
        return config


class Jobs:
    """The jobs of one command, in the folder of the sweep.

    `config` is the config of the sweep, without swept values; `launch` runs jobs.
    """

    def __init__(
        self, config: DictConfig, loader: ConfigLoader, launch: Callable[[list[Job]], object]
    ):
        self.config = config
        self.launch = launch
        self.folder = Path(config.hydra.sweep.dir).absolute()
        self.all: dict[Path, Job] = {}
        self.lock: Any = None
        compose = functools.partial(loader.load_sweep_config, config)
        self.compose = Composer(compose, loader.get_group_options)

    def run(
        self, combinations: Sequence[Sequence[str]], epoch_budget: int = 0, label: str = ""
    ) -> list[Job]:
        """Run a job for each list of overrides, unless done; to its end or its epoch budget.

        Raises UserError: a config is wrong, two jobs have one folder, or another process
        runs the same sweep. Raises SystemExit after a dry run.
        """
        jobs = [self.plan(overrides, epoch_budget) for overrides in combinations]
        unique = index_by_folder(jobs)
        self.all |= unique
        if not self.config.dry_run:
            self.acquire_lock()
        pending = [job for job in unique.values() if job.value is None]
        count = "1 job" if len(unique) == 1 else f"{len(unique)} jobs"
        done = len(unique) - len(pending)
        print(f"{label}{count}, {done} done, in {self.folder}", flush=True)
        if self.config.dry_run:
            for job in pending:
                print(f"  python train.py {shlex.join(job.spec.arguments)}")
            raise SystemExit(0)  # further jobs may depend on the results of these
        if pending:
            self.run_pending(pending)
        return jobs

    def plan(self, overrides: Sequence[str], epoch_budget: int = 0) -> Job:
        """Compose and check the config of a job. Raises UserError: it is wrong."""
        try:
            config = self.compose(overrides)
            config.hydra.overrides.task = list(overrides)
            check(config)
        except (HydraException, OmegaConfBaseException, UserError) as error:
            raise UserError(f"{' '.join(overrides)}: {explain(error)}") from None
        return Job(overrides, config, self.folder, epoch_budget)

    def acquire_lock(self) -> None:
        """Lock the folder, so that no other process runs the same jobs, and list the jobs.

        The list tells them from other folders beside theirs.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = self.lock or lock_run(self.folder)
        if not self.lock:
            expected = "wait for it, or choose another hydra.sweep.dir"
            raise UserError(f"the sweep in {self.folder} is running; {expected}")
        jobs = [
            {"folder": job.folder.name, "overrides": job.overrides} for job in self.all.values()
        ]
        text = json.dumps({"command": command(), "jobs": jobs}, indent=2, ensure_ascii=False)
        write_text(self.folder / "sweep.json", text + "\n")

    def run_pending(self, jobs: list[Job]) -> None:
        """Run jobs, and print a line when one ends."""
        for job in jobs:
            if job.result["status"] == "done":  # within an epoch budget
                (job.folder / "result.json").unlink()
        is_over = threading.Event()
        progress = threading.Thread(target=print_progress, args=(jobs, is_over), daemon=True)
        try:  # a signal may arrive at any moment from here on
            progress.start()
            self.launch(jobs)
        finally:
            is_over.set()
            if progress.is_alive():
                progress.join()

    def summarise(self) -> bool:
        """Print how many jobs are done, and why others are not. Return whether all are done."""
        pending = [job for job in self.all.values() if job.value is None]
        print(f"{len(self.all) - len(pending)} of {len(self.all)} jobs done, in {self.folder}")
        for job in pending:
            reason = " ".join(str(job.result["reason"]).split())
            line = f"{job.result['status']}: {reason}: {job}; see {job.folder}/job.log"
            print(f"  {for_terminal(line)}")
        if pending:
            again = f"python train.py {shlex.join(command())}"
            print(f"  the same command again resumes these: {again}")
        return not pending


def index_by_folder(jobs: Sequence[Job]) -> dict[Path, Job]:
    """Return jobs by their folder. Raises UserError: two different ones have one folder."""
    unique = {job.folder: job for job in jobs}
    for job in jobs:
        other = unique[job.folder]
        if job.spec.planned_hash != other.spec.planned_hash:
            expected = "Expected a hydra.sweep.subdir that differs by job"
            raise UserError(f"{job} and {other} have one folder. {expected}")
    return unique


def print_progress(jobs: Sequence[Job], is_over: threading.Event) -> None:
    """Print a line for each job that ends, until all have ended or the event is set."""
    started = time.time()
    waiting = list(jobs)
    while waiting:
        is_last_look = is_over.wait(0.2)
        for job in list(waiting):
            if mtime(job.folder / "result.json") > started:
                waiting.remove(job)
                ended = len(jobs) - len(waiting)
                seconds_left = (time.time() - started) / ended * len(waiting)
                print(f"{ended} of {len(jobs)}: {describe(job, seconds_left)}", flush=True)
        if is_last_look:
            return


def describe(job: Job, seconds_left: float) -> str:
    result = job.result
    outcome = result["status"] if job.value is None else f"done {job.value:.4f}"
    return f"{outcome}, {result['seconds']:.1f} s, {seconds_left:.0f} s left: {job}"


def mtime(path: Path) -> float:
    """Return the time when a file was last modified; 0 if there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
