"""Hydra takes launchers from this namespace alone; what this one does stands in `tricklab.sweep`."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from tricklab.errors import UserError
from tricklab.sweep import Job, Sweep


class LocalLauncher(Launcher):
    """Runs the jobs of a sweep in processes of their own, as many at a time as there are slots."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.loader, self.config = hydra_context.config_loader, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        root = Path(self.config.hydra.sweep.dir).absolute()
        jobs = [Job(words, self.load, root) for words in job_overrides]
        sweep = Sweep(self.config, root, jobs)
        if self.config.dry:
            print(sweep.outline(), *(f"  python train.py {shlex.join(job.command)}" for job in sweep.left), sep="\n")
        else:
            sweep.run()
        return [returned(job, self.config.dry) for job in jobs]

    def load(self, words: list[str]) -> DictConfig:
        return self.loader.load_sweep_config(self.config, words)


def returned(job: Job, dry: bool) -> JobReturn:
    """Hand a result to the sweeper, for which a job that is not done raises an error."""
    result, done = JobReturn(overrides=job.words), job.result["status"] == "done"
    result.status = JobStatus.COMPLETED if done or dry else JobStatus.FAILED
    result.return_value = job.result["objective"] if done or dry else UserError(f"not all jobs are done: {job.folder}")
    return result
