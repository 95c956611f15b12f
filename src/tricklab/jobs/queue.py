"""The jobs of a sweep: composed and checked before the first one starts, run where they are not done, summed up."""

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
from tricklab.cli.config import to_plain
from tricklab.cli.escape import for_terminal
from tricklab.cli.messages import explain
from tricklab.cli.overrides import command, parse_command_overrides, quote, swept_keys
from tricklab.errors import UserError
from tricklab.files import UnreadableError, read_table, write_text
from tricklab.jobs.process import JobSpec, last_line
from tricklab.run.folder import lock_run, read_result
from tricklab.run.identity import config_hash

NAME = 128  # characters of a group or a name in W&B


def strip_sweep_overrides(words: Sequence[str]) -> list[str]:
    """Leave out the words that are the sweep's alone."""
    return [word for word in words if not word.startswith(("sweep=", "sweep.", "slots=", "dry="))]


class Job(list[str]):
    """A run of the sweep in `root`: what launchers of Hydra take, a list of words; and what follows from its config.

    It may stop after `until` epochs, unless that is 0.
    """

    def __init__(self, words: Sequence[str], config: DictConfig, root: Path, until: int = 0):
        self.words, self.until, self.folder = (
            strip_sweep_overrides(words),
            until,
            root / config.hydra.sweep.subdir,
        )
        t, early = config.trainer, "early_stopping" in config.callbacks
        self.length = (
            t.max_epochs,
            t.max_steps,
            t.check_val_every_n_epoch,
            config.stop_after,
            early,
        )
        added = []
        if until:
            config.stop_after = f"{until}ep"
            added.append(f"stop_after={until}ep")
        if "wandb" in config.logger:
            varied = " ".join(
                word
                for word in self.words
                if word.split("=")[0] in {"seed", *swept_keys(parse_command_overrides())}
            )
            group = config.logger.wandb.group or root.name[:NAME]
            added += [
                f"logger.wandb.group={quote(group)}",
                f"logger.wandb.name={quote(varied[:NAME])}",
            ]
        planned, sources = config_hash(to_plain(config)), config.hydra.runtime.config_sources
        if paths := [
            s.path for s in sources if s.schema == "file" and "command-line" in s.provider
        ]:
            added.append(
                f"hydra.searchpath=[{','.join(quote(f'file://{path}') for path in paths)}]"
            )
        self.command = JobSpec([*self.words, *added], self.folder, planned, config.job_timeout)
        placed = [
            f"hydra.sweep.dir={quote(root)}",
            f"hydra.sweep.subdir={quote(self.folder.name)}",
        ]
        super().__init__([*self.command.words, *placed])

    def __str__(self) -> str:
        return " ".join(self.words)

    @property
    def result(self) -> dict[str, Any]:
        """What it has left; without a `result.json` it was killed, or not begun."""
        if result := read_result(self.folder):
            return result
        begun = (self.folder / "job.log").exists()
        return {
            "status": "killed" if begun else "open",
            "reason": last_line(self.folder),
            "objective": None,
        }

    @property
    def value(self) -> float | None:
        """The best accuracy on validation of its epochs until it may stop; None if it has not come there."""
        if not self.until:
            result = self.result
            stopped = {
                word for word in result.get("overrides", ()) if word.startswith("stop_after=")
            } - {*self.words}
            return result.get("objective") if result["status"] == "done" and not stopped else None
        try:
            rows = read_table(self.folder / "metrics.csv", growing=True)
            found = [
                (int(row["epoch"]), float(row["val/acc"]))
                for row in rows
                if row.get("epoch") and row.get("val/acc")
            ]
        except (UnreadableError, ValueError):
            return None
        whole = any(epoch >= self.until - 1 for epoch, _ in found)
        return max(accuracy for epoch, accuracy in found if epoch < self.until) if whole else None


class Composer:
    """Composes configs, once for all that differ in values of keys that are no group, since it takes 0.1 s."""

    def __init__(
        self, compose: Callable[[list[str]], DictConfig], is_group: Callable[[str], object]
    ):
        self.compose = functools.cache(lambda words: compose(list(words)))
        self.is_group = functools.cache(is_group)

    def __call__(self, words: Sequence[str]) -> DictConfig:
        parsed = OverridesParser.create().parse_overrides(list(words))
        values = [
            o
            for o in parsed
            if str(o.input_line)[0] not in "+~" and not self.is_group(o.key_or_group)
        ]
        config = copy.deepcopy(
            self.compose(tuple(str(o.input_line) for o in parsed if o not in values))
        )
        ConfigLoaderImpl._apply_overrides_to_config(values, config)
        return config


class Jobs:
    """The jobs of one command, in the folder of the sweep; its `config` is without what is swept."""

    def __init__(
        self, config: DictConfig, loader: ConfigLoader, launch: Callable[[list[Job]], object]
    ):
        self.config, self.launch = config, launch
        self.folder = Path(config.hydra.sweep.dir).absolute()
        self.all: dict[Path, Job] = {}
        self.lock: Any = None
        self.compose = Composer(
            functools.partial(loader.load_sweep_config, config), loader.get_group_options
        )

    def run(
        self, combinations: Sequence[Sequence[str]], until: int = 0, what: str = ""
    ) -> list[Job]:
        """Run a job for each combination of words, to its end or for so many epochs, if it is not done.

        Raises UserError: a combination is wrong, two have one folder, or another process is at the same sweep.
        """
        jobs = [self.plan(words, until) for words in combinations]
        unique = {job.folder: job for job in jobs}
        for job in jobs:
            if job.command.planned != unique[job.folder].command.planned:
                raise UserError(
                    f"{job} and {unique[job.folder]} have one folder; allowed: hydra.sweep.subdir by run"
                )
        self.all |= unique
        if not self.config.dry:
            self.acquire_lock()
        left = [job for job in unique.values() if job.value is None]
        number = "1 job" if len(unique) == 1 else f"{len(unique)} jobs"
        print(f"{what}{number}, {len(unique) - len(left)} done, in {self.folder}", flush=True)
        if self.config.dry:
            for job in left:
                print(f"  python train.py {shlex.join(job.command.line)}")
            raise SystemExit(0)  # what comes next may depend on the results
        if left:
            self.run_pending(left)
        return jobs

    def plan(self, words: Sequence[str], until: int = 0) -> Job:
        """Compose and check the config of a job."""
        try:
            config = self.compose(words)
            config.hydra.overrides.task = list(words)
            check(config)
        except (HydraException, OmegaConfBaseException, UserError) as error:
            raise UserError(f"{' '.join(words)}: {explain(error)}") from None
        return Job(words, config, self.folder, until)

    def acquire_lock(self) -> None:
        """Hold the folder, so that no other process runs the same jobs, and list them: others may lie beside theirs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = self.lock or lock_run(self.folder)
        if not self.lock:
            raise UserError(
                f"the sweep in {self.folder} is running; wait for it, or choose another hydra.sweep.dir"
            )
        jobs = [{"folder": job.folder.name, "overrides": job.words} for job in self.all.values()]
        text = json.dumps({"command": command(), "jobs": jobs}, indent=2, ensure_ascii=False)
        write_text(self.folder / "sweep.json", text + "\n")

    def run_pending(self, jobs: list[Job]) -> None:
        """Have the jobs run, and say of each how it ended when it does."""
        for job in jobs:
            if job.result["status"] == "done":  # for fewer epochs
                (job.folder / "result.json").unlink()
        over = threading.Event()
        follower = threading.Thread(target=self.print_progress, args=(jobs, over), daemon=True)
        try:  # from here on a signal may come at any moment
            follower.start()
            self.launch(jobs)
        finally:
            over.set()
            if follower.is_alive():
                follower.join()

    def print_progress(self, jobs: list[Job], over: threading.Event) -> None:
        started, waiting = time.time(), list(jobs)
        while waiting:
            last = over.wait(0.2)
            for job in [job for job in waiting if mtime(job.folder / "result.json") > started]:
                waiting.remove(job)
                n, result = len(jobs) - len(waiting), job.result
                left = (time.time() - started) / n * len(waiting)
                said = result["status"] if job.value is None else f"done {job.value:.4f}"
                print(
                    f"{n} of {len(jobs)}: {said}, {result['seconds']:.1f} s, {left:.0f} s left: {job}",
                    flush=True,
                )
            if last:
                return

    def summarise(self) -> bool:
        """Say how many are done, why the others are not, and how to go on; return whether all are done."""
        bad = [job for job in self.all.values() if job.value is None]
        print(f"{len(self.all) - len(bad)} of {len(self.all)} jobs done, in {self.folder}")
        for job in bad:
            reason = " ".join(str(job.result["reason"]).split())
            line = f"{job.result['status']}: {reason}: {job}; see {job.folder}/job.log"
            print(f"  {for_terminal(line)}")
        if bad:
            print(
                f"  the same command again goes on with these: python train.py {shlex.join(command())}"
            )
        return not bad


def mtime(path: Path) -> float:
    """Return when a file was written last; 0 if there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
