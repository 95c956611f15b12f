"""Hydra finds plugins in this namespace only; the work is done in `tricklab`."""

import functools
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig

from tricklab.cli.overrides import as_typed
from tricklab.errors import UserError
from tricklab.jobs.process import LocalPool, run_in_child
from tricklab.jobs.queue import Jobs
from tricklab.run.instantiate import build


class LocalLauncher(Launcher):
    """Runs jobs in processes on this machine, as many at a time as there are slots."""

    def setup(self, *, config: DictConfig, **others: Any) -> None:
        self.config = config

    def launch(self, job_overrides: Sequence[Any], initial_job_idx: int) -> Sequence[JobReturn]:
        LocalPool(self.config).run([job.spec for job in job_overrides])
        return []


class Search(Sweeper):
    """Runs the jobs chosen by the option of the group `sweep`, on the launcher of the config."""

    def setup(self, *, config: DictConfig, hydra_context: Any, **others: Any) -> None:
        launcher = create_launcher(config, hydra_context, **others)
        launch: Callable[[list[Any]], object]
        launch = functools.partial(launcher.launch, initial_job_idx=0)
        if not isinstance(launcher, LocalLauncher):
            launch = functools.partial(run_in_child, launch)
        self.parser = OverridesParser.create(hydra_context.config_loader)  # resolves glob()
        self.jobs = Jobs(config, hydra_context.config_loader, launch)

    def sweep(self, arguments: list[str]) -> None:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        try:
            search = build(self.jobs.config.sweep)
            search(self.parser.parse_overrides(as_typed(arguments)), self.jobs)
        finally:
            # Without a lock it was a dry run, or failed before the first job
            all_done = not self.jobs.lock or self.jobs.summarise()
        if not all_done:
            raise SystemExit(1)


def create_launcher(config: DictConfig, hydra_context: Any, **others: Any) -> Launcher:
    """Return the launcher of the config. Raises UserError: its plugin is not installed."""
    try:
        return Plugins.instance().instantiate_launcher(
            config=config, hydra_context=hydra_context, **others
        )
    except RuntimeError as error:
        name = config.hydra.runtime.choices["hydra/launcher"]
        extra = name.removesuffix("_cluster")
        needed = f"a plugin: pip install 'tricklab[{extra}]'"
        raise UserError(f"hydra/launcher={name} needs {needed}") from error
