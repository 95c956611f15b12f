"""Hydra takes plugins from this namespace alone; what these do stands in `tricklab`."""

import functools
import signal
import sys
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig

from tricklab.errors import UserError
from tricklab.jobs.process import LocalPool, run_in_child
from tricklab.run.instantiate import build


class LocalLauncher(Launcher):
    """Runs jobs in processes of their own on this machine, as many at a time as there are slots."""

    def setup(self, *, config: DictConfig, **others: Any) -> None:
        self.config = config

    def launch(self, job_overrides: Sequence[Any], initial_job_idx: int) -> Sequence[JobReturn]:
        LocalPool(self.config).run([job.command for job in job_overrides])
        return []


class Search(Sweeper):
    """Runs the jobs that the option of the group `sweep` asks for, on the launcher that was chosen."""

    def setup(self, *, config: DictConfig, hydra_context: Any, **others: Any) -> None:
        from tricklab.jobs.queue import (
            Jobs,  # which defines resolvers: not for every program that looks for plugins
        )

        try:
            launcher = Plugins.instance().instantiate_launcher(
                config=config, hydra_context=hydra_context, **others
            )
        except RuntimeError as error:  # it knows no such plugin
            name = config.hydra.runtime.choices["hydra/launcher"]
            raise UserError(
                f"hydra/launcher={name} needs a plugin: pip install 'tricklab[{name}]'"
            ) from error
        launch = functools.partial(launcher.launch, initial_job_idx=0)
        apart = (
            launch
            if isinstance(launcher, LocalLauncher)
            else functools.partial(run_in_child, launch)
        )
        self.parser = OverridesParser.create(hydra_context.config_loader)  # which glob() asks
        self.jobs = Jobs(config, hydra_context.config_loader, apart)

    def sweep(self, arguments: list[str]) -> None:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        try:
            from tricklab.cli.overrides import as_typed

            search = build(self.jobs.config.sweep)
            search(self.parser.parse_overrides(as_typed(arguments)), self.jobs)
        finally:
            all_done = not self.jobs.lock or self.jobs.summarise()
        if not all_done:
            raise SystemExit(1)
